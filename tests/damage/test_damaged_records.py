"""Damaged notebooks, records, journals, run logs and checkpoints: named, never dropped, and the others are read."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.analysis.records import write_notebook
from tests.damage.records import ABSURD, MARKUP, damaged_bytes, damaged_values, full_record, quantization_record
from vitfp8.analysis import load_results, quantization, write_report_files
from vitfp8.analysis import study_tables as tables
from vitfp8.analysis import text as prose
from vitfp8.analysis.figures.of_health import study_health, study_steps
from vitfp8.analysis.figures.of_study import FIGURES, draw_figure
from vitfp8.checkpoint import CheckpointError, first_sound, load_checkpoint, save_checkpoint
from vitfp8.files import file_digest
from vitfp8.record import (
    RunJournal,
    append_to_run_log,
    load_history,
    load_quantization,
    load_records,
    load_runs,
    read_record,
    record_from_journal,
)

TOP = Path(__file__).resolve().parents[2]


def as_bytes(content: str | bytes) -> bytes:
    """A notebook as it lies on the disk."""
    return content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------------------------------ notebooks


def assert_named_or_read(folder: Path, label: str) -> bool:
    """A folder with ``mutant.ipynb`` and a good run: the good one is read, the other read or named in one line."""
    found, problems = load_records(folder)
    names = {path.name for path, _ in found}
    assert "good.ipynb" in names, label
    assert ("mutant.ipynb" in names) == (not problems) and len(problems) <= 1, (label, problems)
    for problem in problems:
        assert "mutant.ipynb: " in problem and problem.isprintable() and len(problem) <= 2000, (label, problem)
    return not problems


def test_a_damaged_notebook_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    write_notebook(full_record("BaseFP32", 1), folder / "good.ipynb")
    read = total = marked = 0
    for label, content in damaged_bytes(full_record(), tmp_path):
        (folder / "mutant.ipynb").write_bytes(content)
        if label in ("marker {'kind': 'rvn'}", "marker {'kind': 'analysis'}"):  # what holds a record is a run
            assert assert_named_or_read(folder, label)
            marked += 1
        read += assert_named_or_read(folder, label)
        total += 1
    assert total > 250 and 5 < read < total / 4 and marked == 2


def test_an_analysis_is_no_run_and_no_problem(tmp_path: Path) -> None:
    notebook = {"cells": [], "metadata": {"vitfp8": {"kind": "analysis"}}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "analysis.ipynb").write_text(json.dumps(notebook))
    assert load_records(tmp_path) == ([], [])
    notebook["metadata"] = {"vitfp8": {"kind": 5}}
    (tmp_path / "analysis.ipynb").write_text(json.dumps(notebook))
    assert "holds no record" in load_records(tmp_path)[1][0]


@pytest.fixture(scope="module")
def survivors(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Records with one absurd or missing value each that are readable all the same."""
    folder = tmp_path_factory.mktemp("survivors") / "study"
    write_notebook(full_record("BaseFP32", 1), folder / "good.ipynb")
    kept, total = [], 0
    for record in (full_record(), quantization_record()):
        for label, content in damaged_values(record, 260, seed=1):
            (folder / "mutant.ipynb").write_bytes(as_bytes(content))
            total += 1
            if assert_named_or_read(folder, label):
                kept.append(as_bytes(content))
    assert total == 520 and len(kept) > 150
    return kept


def show_everything(folder: Path, report: Path) -> str:
    """Every table, figure and sentence of a study, as text where it is text."""
    results = load_results(folder)
    write_report_files(results, report)
    parts = [prose.opening(results, "", MARKUP), quantization.quantization_remark(results.quantized)]
    parts += [
        write(results)
        for write in (prose.methods, prose.outcomes, prose.comparisons, prose.curve_remark, prose.time_remark,
                      prose.excluded_remark, prose.limits)
    ]  # fmt: skip
    parts += [
        table.to_html()
        for table in (tables.comparison(results), tables.precision_table(results), tables.contrast_table(results),
                      tables.not_in_results(results), tables.provenance_table(results),
                      quantization.quantization_table(results.quantized))
    ]  # fmt: skip
    drawn = [draw_figure(row.number, results) for row in FIGURES] + [study_health(results), study_steps(results)]
    parts += [figure if isinstance(figure, str) else str(len(figure.png(20))) for figure in drawn]
    return "\n".join(parts)


def test_the_analysis_shows_every_record_that_can_be_read(survivors: list[bytes], tmp_path: Path) -> None:
    draw = random.Random(4)
    for number in range(2):
        folder = tmp_path / f"study{number}"
        write_notebook(full_record("AugmFP16", 5), folder / "good.ipynb")
        later = quantization_record(7)
        later.quantization[0].format, later.quantization[1].operands = "of a later version", MARKUP
        write_notebook(later, folder / "later.ipynb")
        for index, content in enumerate(draw.sample(survivors, 12)):
            (folder / f"mutant{index}.ipynb").write_bytes(content)
        (folder / "broken.ipynb").write_text("{")
        shown = show_everything(folder, tmp_path / "report")
        assert "broken.ipynb" in shown
        assert "\x1b" not in shown and "<script" not in shown


def test_tables_of_a_folder_name_what_they_cannot_read(survivors: list[bytes], tmp_path: Path) -> None:
    for index, content in enumerate(survivors):
        (tmp_path / f"mutant{index}.ipynb").write_bytes(content)
    (tmp_path / "broken.ipynb").write_bytes(b"\xff")
    for load in (load_runs, load_history, load_quantization):
        with pytest.warns(UserWarning, match="broken.ipynb"):
            frame = load(tmp_path)
        assert len(frame.attrs["problems"]) == 1
        assert all(isinstance(name, str) and name.startswith("mutant") for name in frame["run"])


def test_a_name_that_a_record_chose_takes_no_column_of_ours(tmp_path: Path) -> None:
    record = full_record("BaseFP32", 0, status="failed")
    record.hardware.summary |= {"run": "other", "status": "completed", "experiment": "AugmFP32", "test_acc": 1.0, "path": "/etc"}
    record.history[0].run = "other"  # type: ignore[attr-defined]
    record.metrics.status = "completed"  # type: ignore[attr-defined]
    path = write_notebook(record, tmp_path / "mine.ipynb")
    row = load_runs(tmp_path).iloc[0]
    assert (row["run"], row["status"], row["experiment"], row["path"]) == ("mine", "failed", "BaseFP32", str(path))
    assert row["test_acc"] == record.metrics.test_acc
    assert set(load_history(tmp_path)["run"]) == {"mine"}


# -------------------------------------------------------------------------------------------------- journals, run logs


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The journal of a run of three epochs, without a notebook."""
    folder = tmp_path / "study" / "BaseFP32-s0"
    record = full_record("BaseFP32", 0, status="running")
    rows, record.history = record.history[:3], []
    with RunJournal(folder, record, show=False) as writing:
        for row in rows:
            writing.epoch(row, {"epoch": row.epoch, "epochs": 9})
        writing.update(status="completed")
    return folder / "journal.jsonl"


def damaged_journals(content: bytes) -> Iterator[tuple[str, bytes]]:
    """What was damaged, and the journal."""
    draw = random.Random(2)
    for length in range(0, len(content), max(1, len(content) // 60)):
        yield f"cut at {length}", content[:length]
    for _ in range(60):
        flipped = bytearray(content)
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        yield "bit", bytes(flipped)
    lines = content.decode().splitlines()
    for number, line in enumerate(lines):
        yield f"without line {number}", "\n".join(lines[:number] + lines[number + 1 :]).encode()
        for key in json.loads(line):
            for value in ABSURD:
                event = json.dumps(json.loads(line) | {key: value})
                yield f"line {number}: {key}: {value!r}"[:80], "\n".join([*lines[:number], event, *lines[number + 1 :]]).encode()
    for junk in ("[", "[" * 100_000, "5", '"x"', "null", "\x00", '{"epoch": {}}', '{"epoch": {"epoch": "x"}}', '{"set": []}'):
        yield f"junk {junk[:20]}", "\n".join([lines[0], junk, *lines[1:]]).encode()


def test_a_damaged_journal_is_read_as_far_as_it_goes_or_named(journal: Path) -> None:
    content, folder = journal.read_bytes(), journal.parent.parent
    whole = record_from_journal(journal.parent)
    assert whole is not None and (whole.status, len(whole.history)) == ("completed", 3)
    total = named = 0
    for label, damaged in damaged_journals(content):
        journal.write_bytes(damaged)
        found, problems = load_records(folder)
        assert len(found) + len(problems) == 1, label
        assert all("BaseFP32-s0/journal.jsonl: " in problem for problem in problems), label
        total, named = total + 1, named + len(problems)
    assert total > 300 and named < total / 2


def test_a_damaged_event_costs_no_other_one(journal: Path) -> None:
    first, *others = journal.read_text().splitlines()
    journal.write_text("\n".join([first, '{"epoch": {"epoch": []}}', '{"set": 5}', "{", *others]))
    record = record_from_journal(journal.parent)
    assert record is not None and (record.status, len(record.history)) == ("completed", 3)


def test_a_damaged_run_log_costs_neither_record_nor_notes(tmp_path: Path) -> None:
    path = write_notebook(full_record(), tmp_path / "BaseFP16-s0.ipynb")
    log = tmp_path / "BaseFP16-s0.log.jsonl"
    for value in [*ABSURD, "[" * 100_000]:
        line = (
            value
            if isinstance(value, str) and value.startswith("[")
            else json.dumps({"event": value, "time": value, "text": value})
        )
        log.write_text(line + "\n" + json.dumps(value) + "\n\x00\n")
        append_to_run_log(path, {"time": "2026-01-02", "event": "note", "text": "kept"})
        assert read_record(path).notes[-1]["text"] == "kept"
    log.write_bytes(b"\xff\xfe\x00")
    assert read_record(path).status == "completed"


# ---------------------------------------------------------------------------------------------------------- checkpoints


class Executes:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def sign(path: Path) -> Path:
    """Give a file the digest that says it is what was written: an attacker can do that too."""
    path.with_name(path.name + ".sha256").write_text(f"{file_digest(path)}  {path.name}\n")
    return path


def test_the_pickles_of_these_tests_do_execute_when_they_are_trusted(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Executes(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("signed", [False, True])
def test_a_poisoned_checkpoint_executes_nothing_and_the_one_before_is_taken(tmp_path: Path, signed: bool) -> None:
    canary, last, previous = (tmp_path / name for name in ("canary", "last.pt", "previous.pt"))
    save_checkpoint({"epoch": 3}, previous)
    for write in (
        lambda: torch.save({"version": 1, "model": Executes(canary)}, last),
        lambda: torch.save(Executes(canary), last, _use_new_zipfile_serialization=False),
        lambda: last.write_bytes(pickle.dumps(Executes(canary))),
        lambda: last.write_bytes(pickle.dumps(Executes(canary), protocol=0)),
    ):
        save_checkpoint({"epoch": 4}, last)
        write()
        if signed:
            sign(last)
        with pytest.raises(CheckpointError, match=r"last\.pt: ") as refusal:
            load_checkpoint(last)
        assert str(refusal.value).isprintable()
        sound = first_sound([last, previous])
        assert sound is not None and sound[0]["epoch"] == 3 and "last.pt" in sound[2][0]
    assert not canary.exists()


def test_a_damaged_checkpoint_is_refused_whatever_its_digest_says(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint({"model": {"w": torch.arange(60.0)}, "epoch": 2}, path)
    content, note = path.read_bytes(), path.with_name("last.pt.sha256").read_bytes()
    draw = random.Random(9)
    damaged = [content[:length] for length in range(0, len(content), len(content) // 60)]
    for _ in range(150):
        flipped = bytearray(content)
        for _ in range(draw.choice([1, 1, 8, 64])):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [
        b"",
        b"PK\x03\x04",
        b"\x80\x02.",
        b"\x80\x05]",
        draw.randbytes(500),
        content + b"x",
        b"\x80\x02K\x01.",
        b"(lp0\n.",
    ]
    for number, altered in enumerate(damaged):
        path.write_bytes(altered)
        path.with_name("last.pt.sha256").write_bytes(note)
        if altered != content:
            with pytest.raises(CheckpointError, match=r"last\.pt: is not what was written"):
                load_checkpoint(path)
        sign(path)
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            assert str(error).isprintable() and "last.pt: " in str(error), number
        else:
            assert state["version"] == 1
    for note_text in (b"", b"\xff", b"0" * 64, b"\n\n"):
        path.write_bytes(content)
        path.with_name("last.pt.sha256").write_bytes(note_text)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


# --------------------------------------------------------------------------------------------------- the command itself


def test_the_command_lists_what_it_can_and_names_the_rest(survivors: list[bytes], project: Path) -> None:
    folder = project / "executed" / "mixed"
    write_notebook(full_record("AugmFP16", 5, status="failed", reason=MARKUP), folder / "good.ipynb")
    for index, content in enumerate(survivors[::3]):
        (folder / f"mutant{index}.ipynb").write_bytes(content)
    for label, content in list(damaged_bytes(full_record(), project))[:60:4]:
        (folder / f"cut {label}.ipynb").write_bytes(content)
    (folder / "esc\x1b[31m.ipynb").write_text("{}")
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    for arguments in (["runs", "mixed"], ["runs", "mixed", "--json"], ["watch", "mixed", "--once"]):
        command = [sys.executable, "-m", "vitfp8", *arguments]
        done = subprocess.run(command, cwd=project, capture_output=True, env=environment, timeout=120, check=False)
        output = (done.stdout + done.stderr).decode()
        assert done.returncode == 0 and "Traceback" not in output, output[-2000:]
        assert "good" in output and "cut cut at" in output and "\x1b" not in output
    listed = json.loads(
        subprocess.run(
            [sys.executable, "-m", "vitfp8", "runs", "mixed", "--json"],
            cwd=project,
            capture_output=True,
            env=environment,
            check=True,
        ).stdout
    )
    assert len(listed["runs"]) + len(listed["problems"]) == len(list(folder.glob("*.ipynb")))
    shutil.rmtree(folder)
