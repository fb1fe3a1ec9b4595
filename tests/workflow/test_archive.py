"""Backup and restore on real files and processes: verified, resumable, never destroying the only copy of a lab record."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_workflow import start, vitfp8, wait_for_epoch
from vitfp8 import read_record
from vitfp8.params import InputError
from vitfp8.record.backups import backup_words
from vitfp8.workflow.archive import back_up, restore, verify_backup


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder of studies with a notebook, a run folder and a stray file each."""
    for study in ("one", "two"):
        folder = tmp_path / "executed" / study
        (folder / "BaseFP32-s0" / "checkpoints").mkdir(parents=True)
        (folder / "BaseFP32-s0.ipynb").write_text(f'{{"study": "{study}"}}')
        (folder / "BaseFP32-s0" / "checkpoints" / "last.pt").write_bytes(os.urandom(100_000))
        (folder / "BaseFP32-s0" / "run.lock").touch()
        (folder / "notes with spaces, ü.txt").write_text("kept too")
    return tmp_path / "executed"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but locks and the ledger."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name != ".backups.jsonl"
    }


def test_a_backup_is_complete_adds_what_is_new_and_keeps_what_it_replaces(studies: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk" / "backup"
    assert back_up(studies, place).copied == 6
    assert contents(place / "files") == contents(studies)
    assert back_up(studies, place).copied == 0
    notebook = studies / "one" / "BaseFP32-s0.ipynb"
    notebook.write_text('{"study": "one", "again": true}')
    (studies / "two" / "notes with spaces, ü.txt").unlink()
    outcome = back_up(studies, place)
    assert (outcome.copied, outcome.kept) == (1, 4)
    (old,) = (place / "superseded").rglob("*.ipynb")
    assert old.read_text() == '{"study": "one"}'
    assert (place / "files" / "two" / "notes with spaces, ü.txt").exists(), "what was deleted at the source stays"
    assert verify_backup(place) == (6, [])


def test_verify_names_what_is_missing_altered_or_extra(studies: Path, tmp_path: Path) -> None:
    place = tmp_path / "backup"
    back_up(studies, place)
    (place / "files/one/BaseFP32-s0.ipynb").write_text('{"study": "0ne"}')
    (place / "files/two/BaseFP32-s0.ipynb").unlink()
    (place / "files/stray").touch()
    done = vitfp8("backup", "--verify", str(place), check=1)
    assert [word in done.stderr for word in ("SHA-256 differs", "is missing", "not in the manifest")] == [True] * 3
    with pytest.raises(InputError, match="take another backup"):
        restore(place, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_restore_brings_everything_back_and_overwrites_nothing(studies: Path, tmp_path: Path) -> None:
    place, target = tmp_path / "backup", tmp_path / "elsewhere"
    back_up(studies, place)
    assert restore(place, target).copied == 6 and contents(target) == contents(studies)
    assert restore(place, target).kept == 6
    (target / "one" / "BaseFP32-s0.ipynb").write_text("mine")
    with pytest.raises(InputError, match="differs from the backup's; restore into another folder"):
        restore(place, target)
    assert (target / "one" / "BaseFP32-s0.ipynb").read_text() == "mine"


def test_places_that_cannot_be_are_refused_and_nothing_is_written(studies: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    for source, place, part in (
        (studies, studies / "backup", "inside"),
        (studies, studies, "inside"),
        (studies, tmp_path, "around"),
        (tmp_path / "nothing", tmp_path / "backup", "no such folder"),
        (studies, other, "is no backup of vitfp8"),
        (studies, other / "file", "no such backup"),
    ):
        with pytest.raises(InputError, match=part):
            back_up(source, place)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_manifest_that_leads_out_of_the_backup_is_refused(studies: Path, tmp_path: Path) -> None:
    place = tmp_path / "backup"
    back_up(studies, place)
    for name in ("../outside", "/tmp/outside"):
        text = (place / "manifest.jsonl").read_text()
        row = {"path": name, "size": 1, "mtime_ns": 0, "sha256": "0"}
        (place / "manifest.jsonl").write_text(text + json.dumps(row) + "\n")
        with pytest.raises(InputError, match="leads out of the backup"):
            restore(place, tmp_path / "back")
        (place / "manifest.jsonl").write_text(text)


def test_links_are_not_followed_and_named(studies: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not ours")
    (studies / "one" / "link").symlink_to(secret)
    (studies / "folder").symlink_to(tmp_path)
    outcome = back_up(studies, tmp_path / "backup")
    assert len(outcome.left_out) == 2 and not (tmp_path / "backup/files/one/link").exists()


def test_a_backup_killed_at_any_moment_is_sound_and_the_same_command_goes_on(studies: Path, tmp_path: Path) -> None:
    for number in range(400):
        (studies / "one" / f"file-{number}").write_bytes(os.urandom(20_000))
    place = tmp_path / "backup"
    command = [sys.executable, "-m", "vitfp8", "backup", str(studies), str(place)]
    for files in (1, 60, 150):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        manifest = place / "manifest.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (manifest.exists() and manifest.read_bytes().count(b"\n") > files):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert "Not backed up" in backup_words(studies / "one")
        assert not [problem for problem in verify_backup(place)[1] if "differs" in problem or "missing" in problem]
    done = vitfp8("backup", str(studies), str(place))
    assert "were there" in done.stdout and contents(place / "files") == contents(studies)
    assert "nothing has changed since" in backup_words(studies / "one")


def test_a_disk_that_fills_up_is_one_line_and_the_same_command_goes_on(studies: Path, tmp_path: Path) -> None:
    place = tmp_path / "backup"
    command = [sys.executable, "-m", "vitfp8", "backup", str(studies), str(place)]

    def small() -> None:  # files larger than this cannot be written: what a full disk does, without one
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=small, timeout=60)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "the same command goes on" in done.stderr
    assert not list(place.rglob("*.tmp"))
    vitfp8("backup", str(studies), str(place))
    assert verify_backup(place) == (6, [])


def test_an_interrupted_run_backed_up_and_restored_elsewhere_continues(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("run", "BaseFP32", "--preset", "smoke", "-p", "epochs", "40")
    process = start(*command)
    path = project / "executed" / "smoke" / "BaseFP32-s0.ipynb"
    wait_for_epoch(path.with_suffix(""), 3)
    assert "is running" in vitfp8("backup", "executed", "copy").stderr
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    vitfp8("backup", "executed", "copy")
    vitfp8("restore", "copy", "elsewhere/executed")
    assert "changed since: `vitfp8 backup executed" in " ".join(vitfp8(*command).stdout.split())
    expected = read_record(path).deterministic["digest"]
    for name in ("notebooks", "params"):
        (project / "elsewhere" / name).symlink_to(project / name)
    monkeypatch.chdir(project / "elsewhere")
    assert "continue" in vitfp8(*command, "--dry-run").stdout
    vitfp8(*command)
    record = read_record(Path("executed/smoke/BaseFP32-s0.ipynb"))
    assert record.status == "completed" and record.deterministic["digest"] == expected
