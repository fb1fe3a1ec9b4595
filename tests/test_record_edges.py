"""Records at their edges: what is shown in a notebook, journals that begin with a history, ledgers, digests of lists, git."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.test_record import example, write_notebook
from vitfp8.record import (
    RECORD_MIME,
    EpochRow,
    JournalError,
    RunJournal,
    RunRecord,
    append_to_run_log,
    backup_state,
    payload_digest,
    provenance,
    read_record,
    record_from_journal,
    source_run_command,
    superseded_of,
)
from vitfp8.record.backups import LEDGER, ledger_with, read_ledger, walk
from vitfp8.record.journal import announce

# ------------------------------------------------------------------------------------------------ shown in a notebook


class Display:
    """A display in a notebook: everything that it has shown."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.shown = [data]

    def update(self, data: dict[str, Any], raw: bool) -> None:
        assert raw
        self.shown.append(data)


@pytest.fixture
def displays(monkeypatch: pytest.MonkeyPatch) -> list[Display]:
    """The displays of a notebook, as IPython makes them."""
    import IPython.core.getipython
    import IPython.display

    made: list[Display] = []

    def display(data: dict[str, Any], raw: bool, display_id: bool) -> Display:
        assert raw and display_id
        made.append(Display(data))
        return made[-1]

    monkeypatch.setattr(IPython.core.getipython, "get_ipython", object)
    monkeypatch.setattr(IPython.display, "display", display)
    return made


def test_a_notebook_shows_a_record_once_and_updates_it_with_each_event(tmp_path: Path, displays: list[Display]) -> None:
    with RunJournal(tmp_path, example(status="running", history=[], progress={})) as journal:
        journal.epoch(EpochRow(epoch=1, val_acc=0.25), {"epoch": 1, "epochs": 2})
        journal.update(status="completed")
    (display,) = displays
    records = [RunRecord.from_payload(data[RECORD_MIME]) for data in display.shown]
    assert [(record.status, len(record.history)) for record in records] == [("running", 0), ("running", 1), ("completed", 1)]


def test_an_announced_record_gives_way_to_the_journals(tmp_path: Path, displays: list[Display]) -> None:
    record = example(status="running", provenance={"run_id": "r"})
    announce(record, tmp_path)
    with RunJournal(tmp_path, record) as journal:
        journal.update(status="completed")
    announced, shown = displays
    assert [RECORD_MIME in data for data in announced.shown] == [True, False]
    assert announced.shown[1]["text/plain"].startswith("run folder: ") and all(RECORD_MIME in data for data in shown.shown)


def test_another_runs_announced_record_is_left_as_it_is(tmp_path: Path, displays: list[Display]) -> None:
    announce(example(status="running", provenance={"run_id": "another"}), tmp_path)
    with RunJournal(tmp_path, example(status="running", provenance={"run_id": "r"})) as journal:
        journal.update(status="completed")
    assert len(displays[0].shown) == 1


# --------------------------------------------------------------------------------------------------- journals and logs


def test_a_journal_that_begins_with_a_history_keeps_it(tmp_path: Path) -> None:
    with RunJournal(tmp_path, example(status="running"), show=False) as journal:
        journal.epoch(EpochRow(epoch=3, val_acc=0.75), {"epoch": 3, "epochs": 3})
    found = record_from_journal(tmp_path)
    assert found is not None and [(row.epoch, row.val_acc) for row in found.history] == [(1, 0.6), (2, 0.7), (3, 0.75)]


def test_a_disk_that_is_full_is_named_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, line: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    with RunJournal(tmp_path, example(status="running"), show=False) as journal:
        with monkeypatch.context() as patch:
            patch.setattr("vitfp8.record.journal.append_line", full)
            with pytest.raises(JournalError, match=r"journal.jsonl: cannot be written \(No space left on device\); make room"):
                journal.update(status="completed")
        journal.update(status="completed")


def test_an_interruption_that_a_runner_noted_is_no_failure(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "BaseFP32-s0.ipynb", example(status="running"))
    append_to_run_log(path, {"time": "2026-06-01T00:00:00+00:00", "event": "interrupted", "reason": "Ctrl-C"})
    record = read_record(path)
    assert (record.status, record.reason) == ("interrupted", "Ctrl-C")


def test_a_failure_that_a_runner_noted_takes_nothing_from_a_completed_run(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "BaseFP32-s0.ipynb", example())
    append_to_run_log(path, {"time": "2026-06-01T00:00:00+00:00", "event": "failed", "reason": "the kernel died"})
    assert read_record(path).status == "completed"


@pytest.mark.parametrize(("name", "counts"), [("BaseFP32-s0", True), ("elsewhere", False)])
def test_a_journal_that_names_no_run_counts_only_beside_its_notebook(name: str, counts: bool, tmp_path: Path) -> None:
    folder = tmp_path / name
    record = example(status="running", history=[], run_folder=str(folder))
    path = write_notebook(tmp_path / "BaseFP32-s0.ipynb", record)
    with RunJournal(folder, record, show=False) as journal:
        journal.update(status="completed")
    assert read_record(path).status == ("completed" if counts else "interrupted")


def test_only_names_with_a_date_are_taken_for_earlier_records(tmp_path: Path) -> None:
    (tmp_path / "superseded").mkdir()
    for name in (".DS_Store", "notes.txt", "BaseFP32-s0@20260101T000000.ipynb"):
        (tmp_path / "superseded" / name).touch()
    assert superseded_of(tmp_path) == {"BaseFP32-s0": ["BaseFP32-s0@20260101T000000.ipynb"]}


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("column", [["x"], [[0.5]], [0.5, None, "x"], "0.5", None])
def test_numeric_health_that_is_no_columns_of_numbers_is_refused(column: object) -> None:
    with pytest.raises(ValueError, match="columns of numbers"):
        example(health={"layers": ["a"], "operands": ["weight"], "samples": {"underflow": column}, "steps": {}})
    with pytest.raises(ValueError, match="columns of numbers"):
        example(health={"steps": {"grad_norm": column}})


@pytest.mark.parametrize("other", [[1, 3], [1], [1, 2, 2], [2, 1], [1, [2]], [True, 2]])
def test_a_change_within_a_list_changes_the_payloads_digest(other: object) -> None:
    assert payload_digest({"a": [1, 2], "b": {"c": [[1, 2]]}}) != payload_digest({"a": other, "b": {"c": [[1, 2]]}})
    assert payload_digest({"a": [1, 2], "b": {"c": [[1, 2]]}}) != payload_digest({"a": [1, 2], "b": {"c": [other]}})


# ---------------------------------------------------------------------------------------- commands, ledgers, git


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ({"preset": ""}, "vitfp8 run AugmFP16"),
        ({"preset": "", "study": "paper"}, "vitfp8 run AugmFP16"),
        ({"preset": "", "study": "mine"}, "vitfp8 run AugmFP16 --study mine"),
        ({"preset": "digits"}, "vitfp8 run AugmFP16 --preset digits"),
        ({"preset": "digits", "study": "digits"}, "vitfp8 run AugmFP16 --preset digits"),
        ({"preset": "digits", "study": "mine"}, "vitfp8 run AugmFP16 --preset digits --study mine"),
        ({"preset": "digits", "variant": "wide", "seed": 3}, "vitfp8 run AugmFP16 --preset digits -p variant wide -p seed 3"),
        ({}, "vitfp8 run AugmFP16 --preset PRESET"),
    ],
)
def test_the_command_that_makes_a_source_says_what_is_not_understood_anyway(given: dict[str, Any], command: str) -> None:
    assert source_run_command("AugmFP16", **given) == f"`{command}`"


def test_an_earlier_backup_to_the_same_place_loses_its_bulk_and_no_other_does(tmp_path: Path) -> None:
    for place, time in (("one", "2026-01-01"), ("other", "2026-01-02"), ("one", "2026-01-03")):
        text = ledger_with(tmp_path, place=place, time=time, files=1, size=2, seen={"a": [2, 3]})
        (tmp_path / LEDGER).write_text(text)
    assert [(line["place"], "seen" in line) for line in read_ledger(tmp_path)] == [("one", False), ("other", True), ("one", True)]


@pytest.mark.parametrize(("levels", "found"), [(0, True), (1, True), (2, True), (3, False)])
def test_a_ledger_is_found_up_to_the_project(levels: int, found: bool, tmp_path: Path) -> None:
    study = tmp_path / "project" / "executed" / "digits"
    study.mkdir(parents=True)
    (study / "a").write_text("b")
    source = [study, *study.parents][levels]
    seen = {path: [stat.st_size, stat.st_mtime_ns] for path, stat in walk(source)}
    (source / LEDGER).write_text(ledger_with(source, place="disk", time="2026-01-01T00:00:00", files=1, size=1, seen=seen))
    assert backup_state(study).is_current is found


def test_digests_of_files_unknown_to_git_are_taken_until_enough_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_MOST_UNTRACKED_BYTES", 10)
    for name in "abc":
        (tmp_path / name).write_text("12345")
    assert [row["sha256"] is not None for row in provenance._described(tmp_path, ["a", "b", "c"])] == [True, True, False]


def test_a_git_that_cannot_be_started_costs_the_commit_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(subprocess, "run", refuse)
    state = provenance.git_state()
    assert state["commit"] is None and state["git_note"] == "git cannot be started (Permission denied)"
