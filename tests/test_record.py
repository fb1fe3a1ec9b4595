"""The record: into a notebook and back, completed by journal, lock and run log, whatever is damaged."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TOP
from vitfp8.analysis import load_results
from vitfp8.params import IDENTITY_RULE, Layer, read_layer, validate
from vitfp8.record import (
    RECORD_MIME,
    EpochRow,
    JournalError,
    Metrics,
    Precision,
    RecordError,
    RunJournal,
    RunRecord,
    append_to_run_log,
    code_digest,
    collect_provenance,
    digest_of,
    is_live,
    load_history,
    load_records,
    load_runs,
    payload_digest,
    read_notebook,
    read_record,
    record_from_journal,
)
from vitfp8.record.schema import STATED


def example(**values: object) -> RunRecord:
    """A completed record of two epochs."""
    rows = [EpochRow(epoch=n, train_loss=1 / n, val_acc=0.5 + 0.1 * n, grad_norm=math.inf) for n in (1, 2)]
    defaults: dict[str, object] = {
        "experiment": "BaseFP32",
        "seed": 0,
        "status": "completed",
        "parameters": {"precision": "fp32", "augmentation": "basic", "epochs": 2},
        "precision": Precision(requested="fp32", effective="fp32", backend="native"),
        "history": rows,
        "metrics": Metrics(epochs=2, best_val_acc=0.7, test_acc=0.65),
        "predictions": {"labels": [1, 2], "last": [1, 3]},
        "started": "2026-01-01T00:00:00+00:00",
    }
    return RunRecord.model_validate(defaults | values)


def write_notebook(path: Path, record: RunRecord | None, *, metadata: dict[str, object] | None = None) -> Path:
    """An executed notebook as nbformat writes it, with the record in an output."""
    outputs = []
    if record is not None:
        data = {RECORD_MIME: record.to_payload(), "text/plain": ["vitfp8 record"]}
        outputs = [{"output_type": "display_data", "metadata": {}, "data": data}]
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": [], "execution_count": 1, "outputs": outputs}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [cell], "metadata": metadata or {}, "nbformat": 4, "nbformat_minor": 5}, indent=1))
    return path


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = example()
    back = read_record(write_notebook(tmp_path / "BaseFP32-s0.ipynb", record))
    assert back == record
    assert back.history[0].grad_norm == math.inf, "what is not finite survives JSON"


def test_the_payload_is_json_with_a_readable_header_and_one_compressed_string() -> None:
    payload = example().to_payload()
    text = json.dumps(payload, allow_nan=False)
    assert json.loads(text) == payload
    assert isinstance(payload["bulk"], str) and "history" not in payload and "predictions" not in payload
    assert payload["metrics"]["test_acc"] == 0.65 and payload["status"] == "completed"


def test_readers_need_neither_torch_nor_nbformat(tmp_path: Path) -> None:
    write_notebook(tmp_path / "BaseFP32-s0.ipynb", example())
    code = (
        "import sys, vitfp8; r = vitfp8.load_runs(sys.argv[1]); h = vitfp8.load_history(sys.argv[1]);"
        "assert (len(r), len(h)) == (1, 2);"
        "assert not {'torch', 'nbformat', 'papermill'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_tables_have_a_row_a_run_and_a_row_an_epoch(tmp_path: Path) -> None:
    for seed in (1, 0):
        for name in ("AugmFP16", "BaseFP32"):
            write_notebook(tmp_path / f"{name}-s{seed}.ipynb", example(experiment=name, seed=seed))
    runs, history = load_runs(tmp_path), load_history(tmp_path)
    assert list(runs["run"]) == ["BaseFP32-s0", "BaseFP32-s1", "AugmFP16-s0", "AugmFP16-s1"], "the catalogue's order"
    assert len(history) == 8
    promised = {
        "run", "experiment", "variant", "seed", "status", "origin", "precision", "backend", "augmentation", "epochs",
        "best_val_acc", "final_train_acc", "final_val_acc", "generalization_gap", "test_acc", "best_test_acc", "train_seconds",
        "images_per_second",
    }  # fmt: skip
    assert promised <= set(runs.columns)
    promised = {
        "run", "experiment", "seed", "epoch", "train_loss", "train_acc", "val_loss", "val_acc", "learning_rate", "epoch_seconds",
        "images_per_second", "grad_norm", "loss_scale", "skipped_steps",
    }  # fmt: skip
    assert promised <= set(history.columns)


def test_each_notebook_of_a_study_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_notebook(tmp_path / f"BaseFP32-s{seed}.ipynb", example(seed=seed)) for seed in (0, 1)]
    paths.append(write_notebook(tmp_path / "lost.ipynb", None))
    read: list[Path] = []

    def counting(path: Path) -> dict[str, Any]:
        read.append(path)
        return read_notebook(path)

    monkeypatch.setattr("vitfp8.record.reading.read_notebook", counting)
    for load in (load_records, load_results):
        load(tmp_path)
        assert sorted(read) == paths
        read.clear()


def test_a_run_without_a_notebook_is_completed_by_its_run_log(tmp_path: Path) -> None:
    with RunJournal(tmp_path / "BaseFP32-s0", example(status="running"), show=False):
        pass
    append_to_run_log(tmp_path / "BaseFP32-s0.ipynb", {"time": "2026-06-01T00:00:00+00:00", "event": "failed", "reason": "gone"})
    [(_, record)], problems = load_records(tmp_path)
    assert (record.status, record.reason, problems) == ("failed", "gone", [])


def test_a_record_begins_with_what_its_parameters_state() -> None:
    params = validate([read_layer(TOP / "params" / "AugmFP16.yaml"), Layer("here", {"seed": 3, "variant": "wide"})])
    record = RunRecord.of(params, progress={"epoch": 0})
    assert (record.run_name, record.kind, record.status) == ("AugmFP16~wide-s3", "run", "running") and record.started
    assert {key: getattr(record, key) for key in STATED} == {key: record.parameters[key] for key in STATED}
    assert (record.parameters_digest, record.identity_rule) == (params.digest, IDENTITY_RULE)
    alone = {key: value for key, value in record.to_payload().items() if key not in STATED}
    assert RunRecord.from_payload(alone) == record, "a header need not repeat its parameters"


def test_the_record_says_what_a_run_is_not_the_file_name(tmp_path: Path) -> None:
    write_notebook(tmp_path / "renamed.ipynb", example(experiment="AugmFP32", seed=3))
    row = load_runs(tmp_path).iloc[0]
    assert (row["experiment"], row["seed"]) == ("AugmFP32", 3)


def test_running_without_a_live_lock_is_interrupted(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "BaseFP32-s0.ipynb", example(status="running"))
    record = read_record(path)
    assert record.status == "interrupted" and "lock" in str(record.reason)


def test_a_live_lock_says_running_and_the_journal_is_newer_than_the_notebook(tmp_path: Path) -> None:
    folder = tmp_path / "BaseFP32-s0"
    record = example(status="running", history=[], metrics=Metrics(), provenance={"run_id": "r"})
    path = write_notebook(tmp_path / "BaseFP32-s0.ipynb", record)
    with RunJournal(folder, record, show=False) as journal:
        journal.epoch(EpochRow(epoch=1, val_acc=0.25), {"epoch": 1, "epochs": 2})
        seen = read_record(path)
        assert (seen.status, seen.progress["epoch"], seen.history[0].val_acc) == ("running", 1, 0.25)
        assert is_live(folder)
        journal.update(status="completed")
    assert not is_live(folder)
    assert read_record(path).status == "completed"


def test_a_killed_process_releases_the_lock_and_its_journal_says_how_far_it_came(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from vitfp8.record import EpochRow, RunJournal, RunRecord
with RunJournal(Path(sys.argv[1]), RunRecord(experiment="BaseFP32", seed=0), show=False) as journal:
    journal.epoch(EpochRow(epoch=1, val_acc=0.5), {"epoch": 1, "epochs": 9})
    print("ready", flush=True)
    time.sleep(60)
"""
    folder = tmp_path / "BaseFP32-s0"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    assert is_live(folder)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while is_live(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    found, _ = load_records(tmp_path)
    assert [(r.status, r.progress["epoch"]) for _, r in found] == [("interrupted", 1)]


def test_a_torn_last_line_of_the_journal_is_passed_over(tmp_path: Path) -> None:
    with RunJournal(tmp_path, example(status="running"), show=False):
        pass
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"set": {"status": "compl')
    record = record_from_journal(tmp_path)
    assert record is not None and record.status == "running"


def test_an_event_after_a_torn_line_begins_on_a_line_of_its_own(tmp_path: Path) -> None:
    with RunJournal(tmp_path, example(status="running"), show=False):
        pass
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"set": {"status": "compl')
    again = example(status="running", provenance={"run_id": "the continued one"})
    with RunJournal(tmp_path, again, show=False) as journal:
        journal.update(status="diverged")
    record = record_from_journal(tmp_path)
    assert record is not None and record.status == "diverged" and record.provenance == {"run_id": "the continued one"}


def test_a_line_that_does_not_fit_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from vitfp8.record import append_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
append_line(Path(sys.argv[1]), "a" * 60)
try:
    append_line(Path(sys.argv[1]), "b" * 60)
except OSError as error:
    sys.exit(str(error.strerror))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert (tmp_path / "log").read_text() == "a" * 60 + "\n"


def test_an_end_that_is_not_on_disk_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, line: str) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(JournalError, match="No space left"),
        RunJournal(tmp_path, example(status="running"), show=False) as journal,
    ):
        monkeypatch.setattr("vitfp8.record.journal.append_line", full)
        journal.update(status="completed", reason=None)
    assert journal.record.status == "failed" and "No space left" in str(journal.record.reason)
    record = record_from_journal(tmp_path)
    assert record is not None and record.status == "running" and not is_live(tmp_path)


def test_the_payload_carries_a_digest_of_all_the_rest() -> None:
    payload = example().to_payload()
    assert payload["payload_digest"] == payload_digest(json.loads(json.dumps(payload)))
    again = RunRecord.from_payload(payload)
    assert again == example() and again.to_payload() == payload
    older = {key: value for key, value in payload.items() if key != "payload_digest"}
    assert RunRecord.from_payload(older) == example()


def test_an_exception_in_a_run_is_recorded_as_failed_and_ctrl_c_as_interrupted(tmp_path: Path) -> None:
    for error, status in ((ValueError("boom"), "failed"), (KeyboardInterrupt(), "interrupted")):
        folder = tmp_path / status
        with pytest.raises(type(error)), RunJournal(folder, example(status="running"), show=False):
            raise error
        record = record_from_journal(folder)
        assert record is not None and record.status == status and record.reason


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock, Timeout

    def refuse(self: FileLock, timeout: float = 0) -> None:
        raise Timeout("run.lock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(ValueError, match="another process trains in it"):
        RunJournal(tmp_path, example(), show=False)


def test_the_run_log_completes_the_record(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "BaseFP32-s0.ipynb", example(status="running"))
    earlier = [
        {"time": "2025-01-01T00:00:00+00:00", "event": "failed", "reason": "written by an earlier version"},
        {"time": "2026-01-01T01:30:00+02:00", "event": "failed", "reason": "before it, though its text sorts after it"},
        {"time": "2026-06-01T00:00:00+00:00", "event": "failed", "reason": "an earlier attempt", "execution": "another"},
        {"time": "2026-06-01T00:00:00+00:00", "event": "interrupted", "reason": "an earlier attempt", "execution": "another"},
    ]
    path.with_name("BaseFP32-s0.log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in earlier))
    assert read_record(path).status == "interrupted" and "lock" in str(read_record(path).reason)
    append_to_run_log(path, {"time": "2026-06-01T00:00:00+00:00", "event": "failed", "reason": "killed"})
    append_to_run_log(path, {"time": "2026-06-02T00:00:00+00:00", "event": "note", "text": "the fan was broken"})
    with path.with_name("BaseFP32-s0.log.jsonl").open("a") as file:
        file.write('{"torn')
    record = read_record(path)
    assert (record.status, record.reason) == ("failed", "killed")
    assert record.notes == [{"time": "2026-06-02T00:00:00+00:00", "text": "the fan was broken"}]


def test_an_analysis_in_the_folder_is_no_run_and_a_missing_record_is_named(tmp_path: Path) -> None:
    write_notebook(tmp_path / "analysis.ipynb", None, metadata={"vitfp8": {"kind": "analysis"}})
    write_notebook(tmp_path / "lost.ipynb", None)
    write_notebook(tmp_path / "BaseFP32-s0.ipynb", example())
    with pytest.warns(UserWarning, match="lost.ipynb"):
        runs = load_runs(tmp_path)
    assert list(runs["run"]) == ["BaseFP32-s0"]
    assert len(runs.attrs["problems"]) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"schema_version": 1', '"schema_version": 99'),
        lambda text: text.replace('"bulk": "e', '"bulk": "AAA'),
        lambda text: text.replace('"completed"', '"finished"'),
        lambda text: text.replace('"cells"', '"sells"'),
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_a_damaged_notebook_is_named_and_the_others_are_read(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    good = write_notebook(tmp_path / "BaseFP32-s0.ipynb", example())
    bad = tmp_path / "BaseFP32-s1.ipynb"
    bad.write_text(damage(good.read_text()))
    with pytest.raises(RecordError, match="BaseFP32-s1") as caught:
        read_record(bad)
    assert "\n" not in str(caught.value)
    found, problems = load_records(tmp_path)
    assert len(found) == 1 and len(problems) == 1 and "BaseFP32-s1" in problems[0]


_DAMAGED_VALUE = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=9), st.lists(st.integers(), max_size=2))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_damage_of_a_payload_is_a_value_error_or_a_record_that_has_the_value(data: st.DataObject) -> None:
    payload = example().to_payload()
    key = data.draw(st.sampled_from(sorted(payload)))
    payload[key] = data.draw(_DAMAGED_VALUE)
    try:
        record = RunRecord.from_payload(payload)
    except ValueError as error:
        assert 0 < len(str(error)) < 400 and len(str(error).splitlines()) == 1
        return
    again = record.to_payload()
    stated = [name for name in payload if name not in ("payload_digest", "bulk")]  # these two are made anew
    assert {name: again[name] for name in stated} == {name: payload[name] for name in stated}
    assert record.history == ([] if payload["bulk"] is None else example().history)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", None), ("schema_version", 99), ("status", "finished"), ("bulk", 0), ("bulk", ""), ("bulk", []),
        ("bulk", "AAA"), ("seed", "zero"), ("metrics", []), ("notes", "none"), ("parameters", None),
    ],
)  # fmt: skip
def test_a_payload_with_a_value_that_cannot_be_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError):
        RunRecord.from_payload(example().to_payload() | {key: value})


def test_the_deterministic_digest_ignores_time_and_sees_every_number() -> None:
    one, slower, other = example(), example(started="2027-01-01T00:00:00+00:00"), example()
    slower.history[0].epoch_seconds = 99.0
    other.history[0].train_loss = math.nextafter(1.0, 2.0)
    assert digest_of(one.deterministic_part()) == digest_of(slower.deterministic_part())
    assert digest_of(one.deterministic_part()) != digest_of(other.deterministic_part())


def test_provenance_names_code_versions_and_machine() -> None:
    provenance = collect_provenance()
    assert len(provenance["code_digest"]) == 64 and provenance["code_digest"] == code_digest()
    assert {"torch", "timm", "papermill"} <= set(provenance["versions"])
    assert provenance["processor"] and provenance["python"]
    assert json.dumps(provenance)
