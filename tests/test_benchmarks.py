"""The GPU's benchmark, as far as a processor can run it: every side, the turns, rejected blocks, the table."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitfp8.precision import choose_backend

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
MODEL = {"variant": "trial", "image_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.fixture
def cuda_step(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The benchmark's names, with three steps of warming up and nothing compiled."""
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    names = runpy.run_path(str(BENCHMARKS / "cuda_step.py"))
    names["measure"].__globals__.update(WARM_UP=3, BLOCK=2)
    try:
        yield SimpleNamespace(**names, globals=names["measure"].__globals__)  # type: ignore[misc]
    finally:
        torch.use_deterministic_algorithms(False)


def test_every_side_that_a_device_has_is_timed_in_turns(cuda_step: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    found = cuda_step.measure("trial", torch.device("cpu"), batch=4, steps=4, given=MODEL)
    sides = {row["side"]: row for row in found["sides"]}
    assert {"plain fp32, eager", "plain bf16, compiled", "ours fp32, eager", "ours fp32, compiled"} <= sides.keys()
    for precision in ("bf16", "fp16", "fp8"):  # what is emulated here says nothing about a GPU and is left out
        native = choose_backend(precision, torch.device("cpu"))[0] == "native"
        assert any(name.startswith(f"ours {precision}") for name in sides) is native
    assert all(len(row["milliseconds"]) == 2 and row["images_per_second"] > 0 for row in sides.values())
    assert sides["plain fp32, eager"]["to_plain_fp32"] == 1
    table = capsys.readouterr().out
    assert all(name in table for name in sides) and "ours fp8 tensorwise, eager: left out: " in table


def test_a_block_on_a_slowed_down_card_is_rejected(cuda_step: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(False, 1.0), (True, 5.0), (False, 6.0), (False, 9.0)])
    card: Any = SimpleNamespace(read=lambda: next(readings), seconds=lambda step, times: 0.02 * times)
    side = cuda_step.Side("one", "fp32", lambda: None)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    cuda_step.time_sides([side], card, 2)
    assert (side.blocks, side.rejected, side.joules) == ([20.0], 1, 3.0)
    card.read = lambda: (True, 1.0)
    with pytest.raises(SystemExit, match="slowed down by heat or power"):
        cuda_step.time_sides([side], card, 2)
