"""The short form of `make chaos`: a few kills of real processes, each continued to the same bits."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos import Life, storm


@pytest.mark.e2e
def test_killed_runs_continue_to_the_same_bits(tmp_path: Path) -> None:
    plan = [("runner", "random"), ("kernel", "checkpoint"), ("both", "notebook")]
    lives = storm(tmp_path, "fp16", plan, random.Random(1), per_life=3)
    assert [kill for life in lives for kill in life.kills] == plan


def test_a_notebook_is_saved_aside_and_moved_into_place(tmp_path: Path) -> None:
    """Papermill's own writer truncates the file first; whoever dies then leaves half a notebook."""
    life = Life(tmp_path, "fp32", epochs=2)
    process = life.start()
    seen = False
    while process.poll() is None:
        with suppress(OSError):
            seen |= any(entry.name.startswith(f".{life.output.name}.") for entry in os.scandir(life.output.parent))
    assert process.returncode == 0 and seen
