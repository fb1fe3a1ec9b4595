"""Studies made of records, as a runner would leave them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.analysis.records import FOUR, diverged, imported, make_record, write_study
from vitfp8.record import RunRecord


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study of the given records and returns its folder."""

    def write(*records: RunRecord, name: str = "trial") -> Path:
        return write_study(tmp_path / "executed" / name, list(records))

    return write


@pytest.fixture
def four(study: Callable[..., Path]) -> Path:
    """One seed of the four experiments."""
    return study(*(make_record(name) for name in FOUR))


@pytest.fixture
def rich(study: Callable[..., Path]) -> Path:
    """Three seeds of the four, with a GPU, and beside them a diverged, an interrupted, a failed and an imported run."""
    records = [make_record(name, seed, gpu=True) for name in FOUR for seed in range(3)]
    records = [record for record in records if (record.experiment, record.seed) != ("BaseFP16", 1)]
    records += [
        diverged(),
        make_record("AugmFP16", 7, status="interrupted", reason="Ctrl-C", progress={"epoch": 5, "epochs": 12}),
        make_record("AugmFP32", 8, status="failed", reason="out of memory"),
        imported(),
    ]
    return study(*records)
