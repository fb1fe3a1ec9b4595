"""A record says where its run went on from a checkpoint, each time, and keeps what was noted of earlier interruptions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_checkpoint import DeathError, die_after, run
from vitfp8.experiment import PreparedRun, prepare_experiment
from vitfp8.params import RunParams
from vitfp8.record import remarks_of


@pytest.fixture
def prepared(smoke_params: Callable[..., RunParams], tmp_path: Path) -> Callable[..., PreparedRun]:
    """An experiment of seconds, in one run folder."""

    def make() -> PreparedRun:
        return prepare_experiment(smoke_params("BaseFP32", run_folder=str(tmp_path / "BaseFP32-s0"), epochs=4))

    return make


def test_a_run_that_died_twice_says_both_continuations_and_the_checkpoint_that_was_passed_over(
    prepared: Callable[..., PreparedRun], tmp_path: Path
) -> None:
    first = prepared()
    steps = len(first.trainer.batches)
    die_after(first, 2 * steps + 3)
    assert first.record().continued == []
    last = tmp_path / "BaseFP32-s0" / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"continued from previous\.pt"):
        second = prepared()
    die_after(second, 2 * steps + 1)  # in epoch 4
    record = run(prepared())
    assert record.status == "completed" and [(at["epoch"], at["step"]) for at in record.continued] == [(1, 0), (3, 0)]
    remarks = remarks_of(tmp_path / "BaseFP32-s0.ipynb", record)
    assert [remark.kind for remark in remarks] == ["continued", "continued", "note"]
    assert "last.pt" in remarks[2].text and DeathError.__name__ not in str(remarks)
