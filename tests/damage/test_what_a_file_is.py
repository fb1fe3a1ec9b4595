"""A file that is something else than its name says is named as what it is, with the right way out."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import pytest

from tests.analysis.records import make_record, write_study
from vitfp8.errors import InputError
from vitfp8.params import read_layer, validate
from vitfp8.record import RecordError, read_record, record_from_journal
from vitfp8.record.reading import load_records
from vitfp8.reporting.citation import read_citation
from vitfp8.run.plan import decide
from vitfp8.run.study_file import parse_study
from vitfp8.verify.checks import verify

TOP = Path(__file__).resolve().parents[2]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 182734\n"
CONFLICT = b"<<<<<<< HEAD\n%b=======\n%b>>>>>>> theirs\n"
OTHER = {
    "pointer": (POINTER, "is a Git LFS pointer, not the file itself; `git lfs pull`"),
    "conflict": (CONFLICT % (b"epochs: 5\n", b"epochs: 6\n"), "merge conflict (line 1); resolve it"),
    "conflict later": (b"a: 1\r\n" + CONFLICT % (b"", b""), "merge conflict (line 2); resolve it"),
    "utf-16": ("epochs: 5\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    "utf-16 without mark": ("epochs: 5\n".encode("utf-16-le"), "it holds NUL bytes"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not text"),
}
EACH = pytest.mark.parametrize(("content", "said"), OTHER.values(), ids=OTHER)


def refusal(error: pytest.ExceptionInfo[InputError], path: Path) -> str:
    """The line of a refusal, without the file that it must begin with."""
    line = str(error.value)
    assert line.startswith(f"{path}: "), line
    return line.removeprefix(f"{path}: ")


@EACH
def test_a_notebook_that_is_something_else_is_named_and_not_to_be_run_again(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "BaseFP32-s0.ipynb"
    path.write_bytes(content)
    with pytest.raises(RecordError) as error:
        read_record(path)
    assert said in refusal(error, path) and "run it again" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; take it back"),
        (b" \n", "is empty; take it back"),
        (codecs.BOM_UTF8 + b'{"cells": []}', "byte-order mark"),
        (b'{"cells": [', "cut off or damaged"),
    ],
)
def test_a_notebook_that_is_damaged_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "BaseFP32-s0.ipynb"
    path.write_bytes(content)
    with pytest.raises(RecordError) as error:
        read_record(path)
    assert said in refusal(error, path)


@EACH
def test_a_run_whose_notebook_is_something_else_is_not_silently_executed_again(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "BaseFP32-s0.ipynb"
    path.write_bytes(content)
    params = validate([read_layer(TOP / "params" / "BaseFP32.yaml")])
    with pytest.raises(InputError) as error:
        decide(path, params)
    assert said in refusal(error, path) and "--force moves it aside" in str(error.value)
    assert decide(path, params, force=True)[0] == "replace"


def test_a_record_of_a_later_version_asks_for_an_update_and_is_not_executed_again(tmp_path: Path) -> None:
    write_study(tmp_path, [make_record("BaseFP32", 0)])
    path = tmp_path / "BaseFP32-s0.ipynb"
    path.write_text(re.sub(r'"schema_version": *\d+', '"schema_version": 99', path.read_text()))
    with pytest.raises(RecordError) as error:
        read_record(path)
    assert "update it" in refusal(error, path) and "run it again" not in str(error.value)
    params = validate([read_layer(TOP / "params" / "BaseFP32.yaml")])
    with pytest.raises(InputError, match="update it; or --force moves it aside"):
        decide(path, params)


@EACH
def test_parameter_study_and_citation_files_that_are_something_else_are_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    for read in (read_layer, lambda file: parse_study(read_layer(file)), read_citation):
        with pytest.raises(InputError) as error:
            read(path)
        assert said in refusal(error, path)


@pytest.mark.parametrize("name", ["pointer", "conflict", "utf-16"])
def test_a_run_log_that_is_something_else_is_named_by_readers_and_verify(name: str, tmp_path: Path) -> None:
    content, said = OTHER[name]
    write_study(tmp_path, [make_record("BaseFP32", 0)])
    log = tmp_path / "BaseFP32-s0.log.jsonl"
    log.write_bytes(content)
    ((path, _),), problems = load_records(tmp_path)
    assert len(problems) == 1 and problems[0].startswith(f"{log}: ") and said in problems[0]
    failed = [check.text for check in verify([path]) if check.subject == "run log" and check.level == "FAILED"]
    assert len(failed) == 1 and said in failed[0]


@pytest.mark.parametrize("name", ["pointer", "conflict", "utf-16"])
def test_a_journal_that_is_something_else_is_named_and_not_folded(name: str, tmp_path: Path) -> None:
    content, said = OTHER[name]
    begin = b'{"begin": {"experiment": "BaseFP32", "seed": 0, "status": "running"}}\n'
    folder = tmp_path / "BaseFP32-s0"
    folder.mkdir()
    (folder / "journal.jsonl").write_bytes(begin + content if name == "conflict" else content)
    assert record_from_journal(folder) is None
    found, (problem,) = load_records(tmp_path)
    assert found == [] and problem.startswith(f"{folder / 'journal.jsonl'}: ") and "run it again" not in problem
    assert (said.replace("line 1", "line 2") if name == "conflict" else said) in problem


def test_a_run_that_begins_after_a_conflict_in_its_journal_is_read(tmp_path: Path) -> None:
    begin = b'{"begin": {"experiment": "BaseFP32", "seed": %d, "status": "running"}}\n'
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(begin % 1 + CONFLICT % (begin % 2, begin % 3))
    assert record_from_journal(tmp_path) is None
    journal.write_bytes(journal.read_bytes() + begin % 4)
    record = record_from_journal(tmp_path)
    assert record is not None and record.seed == 4


def test_nul_bytes_that_a_power_cut_left_in_a_journal_are_passed_over(tmp_path: Path) -> None:
    begin = b'{"begin": {"experiment": "BaseFP32", "seed": 0, "status": "running"}}\n'
    (tmp_path / "journal.jsonl").write_bytes(begin + b"\0" * 512)
    record = record_from_journal(tmp_path)
    assert record is not None and record.experiment == "BaseFP32"
