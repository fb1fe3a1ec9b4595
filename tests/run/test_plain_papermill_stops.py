"""Plain papermill that is ended early: its notebook reads as what it is, with how far it came."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TOP
from vitfp8.record import RECORD_MIME, EpochRow, RecordError, RunJournal, RunRecord, read_record


def notebook_of(path: Path, *outputs: dict[str, object], begun: bool = True, injected: str = "epochs = 9\n") -> Path:
    """The training notebook as papermill saves it: parameters injected, the last cell with these outputs."""
    notebook = json.loads((TOP / "notebooks" / "train.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    cells.insert(1, {**cells[0], "source": injected, "metadata": {"tags": ["injected-parameters"]}})
    cells[2]["outputs"] = list(outputs)
    metadata = {"papermill": {"start_time": "2026-01-01T00:00:00+00:00", "end_time": None, "exception": None}} if begun else {}
    path.write_text(json.dumps({**notebook, "cells": cells, "metadata": metadata}), encoding="utf-8")
    return path


def test_one_that_ended_before_its_training_is_interrupted(tmp_path: Path) -> None:
    record = read_record(notebook_of(tmp_path / "out.ipynb"))
    assert (record.status, record.experiment, record.progress) == ("interrupted", "BaseFP32", {"epoch": 0, "epochs": 9})
    assert "training had not begun" in str(record.reason)


def test_one_whose_parameters_were_refused_has_failed_with_that_reason(tmp_path: Path) -> None:
    error = {"output_type": "error", "ename": "InputError", "evalue": "epochs: 0: must be 1 or more", "traceback": []}
    record = read_record(notebook_of(tmp_path / "out.ipynb", error))
    assert (record.status, record.reason) == ("failed", "InputError: epochs: 0: must be 1 or more")


def test_a_template_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no record"):
        read_record(notebook_of(tmp_path / "out.ipynb", begun=False))


def test_an_announced_record_leads_to_the_journal_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RunRecord(experiment="BaseFP32", seed=0, provenance={"run_id": "r"}, run_folder="runs/BaseFP32-s0-x")
    shown = {"output_type": "display_data", "data": {RECORD_MIME: record.to_payload(), "text/plain": ""}, "metadata": {}}
    path = notebook_of(tmp_path / "out.ipynb", shown)
    with RunJournal(tmp_path / "runs" / "BaseFP32-s0-x", record.model_copy(), show=False) as journal:
        journal.record.run_folder = "runs/BaseFP32-s0-x"
        journal.epoch(EpochRow(epoch=1, val_acc=0.25), {"epoch": 1, "epochs": 9})
        assert read_record(path).status == "running"
    monkeypatch.chdir("/")
    seen = read_record(path)
    assert (seen.status, seen.progress["epoch"], seen.history[0].val_acc) == ("interrupted", 1, 0.25)
    assert "-p run_folder" in str(seen.reason) and "BaseFP32-s0-x continues it" in str(seen.reason)


def test_papermill_ended_in_the_training_cell_leaves_a_record_that_knows_its_epochs(project: Path) -> None:
    command = [sys.executable, "-m", "papermill", "notebooks/train.ipynb", "out.ipynb", "--no-progress-bar"]
    command += ["-f", "params/BaseFP32.yaml", "-f", "params/presets/smoke.yaml", "-p", "epochs", "400"]
    process = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200

    def epochs() -> int:
        return sum(path.read_bytes().count(b'"epoch":{') for path in project.glob("runs/*/journal.jsonl"))

    while epochs() < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    while read_record("out.ipynb").status == "running":  # its kernel ends about two seconds later
        assert time.monotonic() < deadline
        time.sleep(0.2)
    record = read_record("out.ipynb")
    assert record.status == "interrupted" and record.progress["epoch"] == epochs() == len(record.history) >= 2
    assert (project / str(record.run_folder) / "checkpoints" / "last.pt").is_file()
