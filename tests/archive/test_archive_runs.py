"""Runs that are backed up, while they train too, and that continue where they were restored."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from tests.test_workflow import start, vitfp8, wait_for_epoch
from vitfp8 import read_record
from vitfp8.archive.backup import backup
from vitfp8.archive.manifest import Store
from vitfp8.archive.restore import restore, verify
from vitfp8.checkpoint import load_checkpoint, save_checkpoint
from vitfp8.experiment import prepare_experiment
from vitfp8.params import RunParams
from vitfp8.record import RunJournal, RunRecord, backup_state
from vitfp8.run.plan import PlannedRun, plan_batch
from vitfp8.run.study_file import Study

TRAIN = ("run", "BaseFP32", "--preset", "smoke", "-p", "epochs", "30")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The last weights of a run."""
    return load_checkpoint(folder / "checkpoints" / "last.pt")["model"]


def planned() -> PlannedRun:
    """The run of `TRAIN`, as the command decides about it here."""
    (run,) = plan_batch("smoke", Study(), experiments=["BaseFP32"], preset="smoke", assignments=[("epochs", "30")])
    return run


def train(folder: Path) -> tuple[RunRecord, dict[str, torch.Tensor]]:
    """Begin or continue the same run in a run folder, to its end; its record and last weights."""
    params = planned().params.model_copy(update={"run_folder": str(folder)})
    assert isinstance(params, RunParams)
    experiment = prepare_experiment(params)
    with RunJournal(folder, experiment.record(), show=False) as journal:
        record = experiment.run(journal)
    return record, weights(folder)


def assert_identical(
    record: RunRecord, found: dict[str, torch.Tensor], undisturbed: RunRecord, expected: dict[str, torch.Tensor]
) -> None:
    """Digest, predictions and weights are those of the run that nobody disturbed."""
    assert record.status == undisturbed.status == "completed" and undisturbed.deterministic["promised"]
    assert record.deterministic["digest"] == undisturbed.deterministic["digest"]
    assert record.predictions == undisturbed.predictions
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.e2e
def test_a_run_backed_up_while_it_trains_continues_elsewhere_to_the_same_bits(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path_factory.mktemp("disk")
    run = Path("executed") / "smoke" / "BaseFP32-s0.ipynb"
    process = start(*TRAIN)
    wait_for_epoch(run.with_suffix(""), 3)
    live = vitfp8("backup", "executed", str(disk / "live"))
    assert "smoke/BaseFP32-s0 is being trained" in live.stdout, live.stdout
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "the results are backed up on" in output and "changed since" in output, output
    backup(Path("executed"), disk / "interrupted")
    undisturbed, expected = train(disk / "undisturbed" / "BaseFP32-s0")

    restore(disk / "live", disk / "restored")
    copy = disk / "restored" / "smoke" / "BaseFP32-s0"
    before = read_record(copy.with_suffix(".ipynb"))
    assert before.status == "interrupted" and 3 <= before.progress["epoch"] < 30
    continued, found = train(copy)
    assert continued.history[: len(before.history)] == before.history, "it continued, times and all"
    assert_identical(continued, found, undisturbed, expected)

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder in ("notebooks", "params"):
        shutil.copytree(project / folder, elsewhere / folder)
    monkeypatch.chdir(elsewhere)
    restore(disk / "interrupted", Path("executed"))
    before = read_record(run)
    assert before.status == "interrupted" and 0 < before.progress["epoch"] < 30
    assert "not backed up; `vitfp8 backup executed PLACE` does it" in vitfp8(*TRAIN).stdout
    assert (run.with_suffix("") / "attempt-1.ipynb").exists(), "it continued, and did not begin anew"
    assert len(read_record(run).history) == 30
    assert_identical(read_record(run), weights(run.with_suffix("")), undisturbed, expected)

    backup(Path("executed"), disk / "finished")
    restored = tmp_path_factory.mktemp("finished")
    monkeypatch.chdir(restored)
    for folder in ("notebooks", "params"):
        shutil.copytree(project / folder, restored / folder)
    restore(disk / "finished", Path("executed"))
    assert planned().action == "keep"
    listed = json.loads(vitfp8("runs", "smoke", "--json").stdout)["runs"]
    assert [row["status"] for row in listed] == ["completed"]


def test_checkpoints_that_are_rewritten_all_the_time_are_copied_with_their_digests(tmp_path: Path) -> None:
    source = tmp_path / "executed"
    folder = source / "smoke" / "BaseFP32-s0"
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    ended = threading.Event()

    def train() -> None:
        step = 0
        while not ended.is_set():
            step += 1
            save_checkpoint(
                {"step": step, "w": torch.full((50_000,), step)}, checkpoints / "last.pt", before=checkpoints / "previous.pt"
            )

    record = RunRecord(experiment="BaseFP32", parameters={}, parameters_digest="0")
    with RunJournal(folder, record, show=False):
        trainer = threading.Thread(target=train)
        trainer.start()
        try:
            while not (checkpoints / "previous.pt.sha256").exists():
                assert trainer.is_alive()
            for _ in range(3):
                done = backup(source, tmp_path / "backup")
                assert done.live == ["smoke/BaseFP32-s0"]
                copies = tmp_path / "backup" / "files" / "smoke" / "BaseFP32-s0" / "checkpoints"
                for path in copies.glob("*.pt"):
                    load_checkpoint(path)
        finally:
            ended.set()
            trainer.join()
    assert backup(source, tmp_path / "backup").live == [] and verify(tmp_path / "backup").problems == []
    assert Store(tmp_path / "backup").current() is not None


def test_a_journal_that_is_being_written_is_copied_up_to_its_last_whole_line(tmp_path: Path) -> None:
    folder = tmp_path / "executed" / "smoke" / "BaseFP32-s0"
    record = RunRecord(experiment="BaseFP32", parameters={}, parameters_digest="0")
    with RunJournal(folder, record, show=False):
        whole = (folder / "journal.jsonl").read_bytes()
        with (folder / "journal.jsonl").open("ab") as journal:
            journal.write(b'{"half a li')
            journal.flush()
            backup(tmp_path / "executed", tmp_path / "backup")
    copy = tmp_path / "backup" / "files" / "smoke" / "BaseFP32-s0" / "journal.jsonl"
    assert copy.read_bytes() == whole
    assert backup_state(tmp_path / "executed" / "smoke").changed == 1, "the source has more"


def test_a_copy_beside_a_training_original_does_not_read_as_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record names its run folder relative to the project; a copy has one of its own, which nobody trains in."""
    monkeypatch.chdir(tmp_path)
    folder = Path("executed") / "smoke" / "BaseFP32-s0"
    record = RunRecord(experiment="BaseFP32", parameters={}, parameters_digest="0", run_folder=str(folder))
    with RunJournal(folder, record, show=False):
        backup(Path("executed"), tmp_path / "backup")
        restore(tmp_path / "backup", tmp_path / "copy")
        assert read_record(folder.with_suffix(".ipynb")).status == "running"
        assert read_record(tmp_path / "copy" / "smoke" / "BaseFP32-s0.ipynb").status == "interrupted"


def test_the_summary_of_a_report_says_whether_the_results_are_backed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.analysis.records import make_record, write_study
    from vitfp8.analysis import load_results
    from vitfp8.analysis.summary import summary_text

    monkeypatch.chdir(tmp_path)
    study = Path("executed") / "trial"
    write_study(study, [make_record("BaseFP32"), make_record("AugmFP32")])
    assert "The results are not backed up; `vitfp8 backup executed PLACE` does it." in summary_text(load_results(study))
    backup(Path("executed"), tmp_path / "disk")
    assert f"UTC to {tmp_path / 'disk'}, nothing changed since." in summary_text(load_results(study))
    notebook = next(study.glob("*.ipynb"))
    os.utime(notebook, ns=(1, 1))
    assert f"1 file changed since; `vitfp8 backup executed {tmp_path / 'disk'}`" in summary_text(load_results(study))
