"""Backup, its check and its way back: on real files, with real processes that are killed, on disks that are really full."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

from vitfp8.archive.backup import backup
from vitfp8.archive.copying import ArchiveError
from vitfp8.archive.manifest import Store
from vitfp8.archive.restore import restore, verify
from vitfp8.cli import main
from vitfp8.errors import InputError
from vitfp8.record import backup_state
from vitfp8.record.backups import LEDGER


def command(*words: str | Path) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(main, [str(word) for word in words])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, without the ledger and locks: path → content."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {path: content for path, content in found.items() if not path.endswith((".lock", LEDGER))}


def rewrite(path: Path, content: str) -> None:
    """Give a file another content and a time of change that no coarse clock hides."""
    path.write_text(content)
    seen = path.stat().st_mtime_ns
    os.utime(path, ns=(seen, seen + random.randrange(1_000, 1_000_000_000)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder as a study leaves it, with a file that nobody knows."""
    folder = tmp_path / "executed"
    run = folder / "smoke" / "BaseFP32-s0"
    (run / "checkpoints").mkdir(parents=True)
    (folder / "smoke" / "BaseFP32-s0.ipynb").write_text('{"cells": []}')
    (folder / "smoke" / "BaseFP32-s0.log.jsonl").write_text('{"event": "note"}\n')
    (run / "journal.jsonl").write_text('{"begin": {}}\n')
    (run / "checkpoints" / "last.pt").write_bytes(random.Random(0).randbytes(300_000))
    (run / "checkpoints" / "last.pt.sha256").write_text("0" * 64 + "  last.pt\n")
    (folder / "what is this.bin").write_bytes(b"\0\1")
    (run / "run.lock").touch()
    (run / "checkpoints" / ".last.pt.77.tmp").write_text("half")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a backup goes; not there yet."""
    return tmp_path / "disk" / "backup"


def without_unfinished(folder: Path) -> dict[str, bytes]:
    """The files that a backup is to hold."""
    return {path: content for path, content in tree(folder).items() if not path.endswith(".tmp")}


# ---------------------------------------------------------------------------------------------------------------- backup


def test_a_backup_holds_every_file_and_the_next_one_copies_what_changed(source: Path, place: Path) -> None:
    first = backup(source, place)
    assert tree(place / "files") == without_unfinished(source) and first.copied == first.files == 6
    assert (place / "files" / "what is this.bin").stat().st_mtime_ns == (source / "what is this.bin").stat().st_mtime_ns
    assert backup(source, place).copied == 0
    (source / "smoke" / "AugmFP32-s0.ipynb").write_text("{}")
    again = backup(source, place)
    assert (again.copied, again.files, again.kept_aside) == (1, 7, None)
    assert tree(place / "files") == without_unfinished(source)
    assert verify(place).problems == []


def test_earlier_versions_are_kept_aside_and_can_be_restored(source: Path, place: Path, tmp_path: Path) -> None:
    backup(source, place)
    notebook = source / "smoke" / "BaseFP32-s0.ipynb"
    earlier = {"smoke/BaseFP32-s0.ipynb": notebook.read_bytes(), "what is this.bin": b"\0\1"}
    rewrite(notebook, '{"cells": [1]}')
    (source / "what is this.bin").unlink()
    done = command("backup", source, place)
    assert done.exit_code == 0 and "2 earlier versions" in done.output and str(place / "superseded") in done.output
    assert tree(place / "files") == without_unfinished(source)
    (dated,) = (place / "superseded").iterdir()
    assert tree(dated / "files") == earlier
    restore(dated, tmp_path / "earlier")
    assert tree(tmp_path / "earlier") == earlier
    assert verify(place).problems == []


def test_what_the_new_backup_still_holds_is_not_kept_twice(source: Path, place: Path) -> None:
    backup(source, place)
    with (source / "smoke" / "BaseFP32-s0" / "journal.jsonl").open("a") as journal:
        journal.write('{"set": {}}\n')
    (source / "smoke" / "superseded").mkdir()
    (source / "smoke" / "BaseFP32-s0.ipynb").rename(source / "smoke" / "superseded" / "BaseFP32-s0@1.ipynb")
    done = backup(source, place)
    assert done.copied == 2 and done.kept_aside is None and not (place / "superseded").exists()
    assert tree(place / "files") == without_unfinished(source) and verify(place).problems == []


def test_a_file_that_became_a_folder_and_one_that_the_backup_lost_are_put_right(source: Path, place: Path) -> None:
    backup(source, place)
    (source / "what is this.bin").unlink()
    (source / "what is this.bin").mkdir()
    (source / "what is this.bin" / "inside").write_text("x")
    (place / "files" / "smoke" / "BaseFP32-s0.ipynb").unlink()
    assert backup(source, place).copied == 2
    assert tree(place / "files") == without_unfinished(source) and verify(place).problems == []


def test_names_that_are_hard_to_print_are_copied_and_come_back(source: Path, place: Path, tmp_path: Path) -> None:
    names = ["sp ace", "new\nline", os.fsdecode(b"no\xffutf8"), "é✓", "-option", 200 * "n" + ".ipynb"]
    for name in names:
        (source / name).write_text(name.encode("ascii", "replace").decode())
    assert command("backup", source, place).exit_code == 0
    assert verify(place).problems == []
    restore(place, tmp_path / "back")
    assert tree(tmp_path / "back") == without_unfinished(source)
    (place / "files" / "new\nline").write_text("?")
    done = command("backup", "--verify", place)
    assert done.exit_code == 1 and "'files/new\\nline': altered" in done.output


def test_links_are_recorded_and_never_followed(source: Path, place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("not of the source")
    (source / "out").symlink_to(tmp_path / "elsewhere")
    (source / "up").symlink_to("../elsewhere")
    (source / "in").symlink_to("smoke/BaseFP32-s0.ipynb")
    done = command("backup", source, place)
    assert done.exit_code == 0 and f"out -> {tmp_path / 'elsewhere'}" in done.output
    assert "not of the source" not in str(tree(place))
    back = tmp_path / "back"
    restored = command("restore", place, back)
    assert restored.exit_code == 0 and restored.output.count("a link out of the folder is not restored") == 2
    assert (back / "in").readlink() == Path("smoke/BaseFP32-s0.ipynb") and not (back / "out").is_symlink()
    assert restore(place, back).copied == 0, "a second time everything is there"


def refusals(source: Path, place: Path, tmp_path: Path) -> list[tuple[tuple[str | Path, ...], str]]:
    """Command lines that are refused, and what their line says."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("somebody's")
    (tmp_path / "empty").mkdir()
    (tmp_path / "alias").symlink_to(source)
    backup(source, place)
    for name in ("huge", "small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    os.truncate(tmp_path / "huge" / "file", 8 * 10**12)  # no disk here has that: a file with a hole takes nothing
    return [
        (("backup", source, source / "smoke" / "backup"), "lies inside"),
        (("backup", source, tmp_path / "alias" / "backup"), "lies inside"),
        (("backup", source, source), "itself"),
        (("backup", source, tmp_path / "alias"), "itself"),
        (("backup", source / "smoke", tmp_path), "lies inside"),
        (("backup", tmp_path / "none", place), "there is no such folder"),
        (("backup", source / "what is this.bin", place), "is not a folder"),
        (("backup", tmp_path / "empty", tmp_path / "new"), "holds no file"),
        (("backup", source, tmp_path / "other"), "is not empty and no backup"),
        (("backup", source, tmp_path / "other" / "file"), "is not a folder"),
        (("backup", source, "/proc/backup"), "/proc"),
        (("backup", tmp_path / "small", place), "is the backup of"),
        (("backup", tmp_path / "huge", tmp_path / "new"), "8.0 TB are needed"),
        (("backup", source), "DEST"),
        (("backup", "--verify", source), "is no backup"),
        (("backup", "--verify", place, source), "takes one folder"),
        (("restore", source, tmp_path / "new"), "is no backup"),
        (("restore", place, place / "files" / "new"), "lies inside"),
        (("restore", place, place), "itself"),
        (("restore", place, tmp_path), "lies inside"),
    ]


def test_bad_input_is_one_line_exit_2_and_nothing_written(source: Path, place: Path, tmp_path: Path) -> None:
    cases = refusals(source, place, tmp_path)
    before = sorted(path.as_posix() for path in tmp_path.rglob("*"))
    for words, part in cases:
        done = command(*words)
        assert done.exit_code == 2 and part in done.output, (words, done.output)
        assert len(done.output.strip().splitlines()) == 1, done.output
        assert sorted(path.as_posix() for path in tmp_path.rglob("*")) == before, words


def test_a_folder_that_has_moved_is_backed_up_on_request(source: Path, place: Path, tmp_path: Path) -> None:
    backup(source, place)
    source.rename(tmp_path / "moved")
    assert "--moved" in command("backup", tmp_path / "moved", place).output
    assert backup(tmp_path / "moved", place, moved=True).copied == 0
    assert backup(tmp_path / "moved", place).copied == 0


def test_a_file_that_cannot_be_copied_is_named_and_its_earlier_version_stays(source: Path, place: Path) -> None:
    backup(source, place)
    notebook = source / "smoke" / "BaseFP32-s0.ipynb"
    earlier = notebook.read_bytes()
    notebook.unlink()
    os.mkfifo(notebook)
    done = command("backup", source, place)
    assert "is neither file nor link" in done.output
    assert tree(place / "files")["smoke/BaseFP32-s0.ipynb"] == earlier and verify(place).problems == []


def test_two_commands_do_not_write_one_backup(source: Path, place: Path) -> None:
    backup(source, place)
    with FileLock(place / "backup.lock"):
        for words in (("backup", source, place), ("backup", "--verify", place), ("restore", place, place.parent / "back")):
            done = command(*words)
            assert done.exit_code == 2 and "wait for it" in done.output


# ------------------------------------------------------------------------------------------------------------ disk full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of two megabytes; None where mounting is not permitted."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        yield None
        return
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_meanwhile_is_one_line_and_the_backup_before_stays_whole(
    source: Path, small_disk: Path | None, tmp_path: Path
) -> None:
    place = (small_disk or tmp_path) / "backup"
    backup(source, place)
    before = tree(place / "files")
    for number in range(8):
        (source / f"{number}.bin").write_bytes(random.Random(number).randbytes(100_000))
    if small_disk is not None:

        def fill(done: int, total: int, name: str) -> None:
            if name == "2.bin":
                with suppress(OSError):
                    (small_disk / "somebody's").write_bytes(bytes(2_000_000))

        with pytest.raises(ArchiveError, match="No space left on device") as caught:
            backup(source, place, progress=fill)
        assert len(str(caught.value).splitlines()) == 1
        assert Store(place).journal.is_file(), "what was copied is not copied again"
        (small_disk / "somebody's").unlink()
    else:
        done = subprocess.run(
            [sys.executable, "-m", "vitfp8", "backup", str(source), str(place)],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and "Traceback" not in done.stderr
    assert {path: content for path, content in tree(place / "files").items() if path in before} == before
    restore(place, tmp_path / "back")
    assert before.items() <= tree(tmp_path / "back").items()
    assert backup(source, place).problems == [] and verify(place).problems == []
    assert tree(place / "files") == without_unfinished(source)


def test_a_disk_that_is_too_full_is_found_before_anything_is_written(
    source: Path, small_disk: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk or tmp_path / "disk"
    disk.mkdir(exist_ok=True)
    if small_disk is None:  # mounting is not permitted: what the system says of the disk is that of a small one
        usage = shutil.disk_usage(tmp_path)._replace(free=2_097_152)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    (source / "large.bin").write_bytes(bytes(2_500_000))
    with pytest.raises(InputError, match="the disk is too full: 2.8 MB are needed, 2.1 MB are free"):
        backup(source, disk / "backup")
    assert not any(disk.iterdir())


def test_a_file_that_the_disk_cannot_take_is_named_and_the_others_are_copied(source: Path, place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vitfp8", "backup", str(source), str(place)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "last.pt" in done.stderr and "File too large" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert tree(place / "files").keys() == without_unfinished(source).keys() - {
        "smoke/BaseFP32-s0/checkpoints/last.pt",
        "smoke/BaseFP32-s0/checkpoints/last.pt.sha256",
    }
    assert "2 files changed since" in backup_state(source).words
    assert backup(source, place).copied == 2 and verify(place).problems == []


# ---------------------------------------------------------------------------------------------------- killed and stopped


def many_files(source: Path, count: int = 250) -> None:
    """Enough files that a backup takes a while."""
    for number in range(count):
        folder = source / "many" / f"{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.bin").write_bytes(random.Random(number).randbytes(5_000))


def start_and_wait(source: Path, place: Path, files: int) -> subprocess.Popen[str]:
    """Start a backup; return when it has copied some files and goes on."""
    words = [sys.executable, "-m", "vitfp8", "backup", str(source), str(place)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError):
            if Store(place).journal.read_bytes().count(b"\n") > files:
                return process
        time.sleep(0.002)
    raise AssertionError("no file was copied")


def test_a_killed_backup_goes_on_and_copies_nothing_twice(source: Path, place: Path, tmp_path: Path) -> None:
    backup(source, place)
    before = tree(place / "files")
    many_files(source)
    rewrite(source / "smoke" / "BaseFP32-s0.ipynb", "{}")
    process = start_and_wait(source, place, files=30)
    process.kill()
    process.wait()
    store = Store(place)
    unfinished = store.unfinished()
    assert unfinished is not None and 30 <= len(unfinished.entries) < 250
    for path in unfinished.entries:
        assert (store.staged_files / path).read_bytes() == (source / path).read_bytes()
    assert tree(place / "files") == before, "the backup before is untouched"
    restore(place, tmp_path / "back")
    assert tree(tmp_path / "back") == before
    assert any("interrupted" in problem for problem in verify(place).problems)
    numbers = {path: (store.staged_files / path).stat().st_ino for path in unfinished.entries}
    assert backup(source, place).copied == 251
    assert {path: (place / "files" / path).stat().st_ino for path in numbers} == numbers
    assert tree(place / "files") == without_unfinished(source) and verify(place).problems == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_backup_says_so_and_the_same_command_goes_on(
    source: Path, place: Path, number: signal.Signals, status: int
) -> None:
    many_files(source)
    process = start_and_wait(source, place, files=10)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status and output == "vitfp8: stopped; the same command goes on\n"
    assert not (place / "files").exists() and not list(place.rglob("*.tmp"))
    assert backup(source, place).copied == 256 and verify(place).problems == []


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do work in a process that kills itself at its n-th move, link or removal of a file; whether it came so far."""
    child = os.fork()
    if child == 0:
        try:
            left = [step]

            def counted(real: Callable[..., object]) -> Callable[..., object]:
                def act(*arguments: object, **options: object) -> object:
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **options)

                return act

            for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
                setattr(os, name, counted(getattr(os, name)))
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_at_any_step_a_backup_is_the_one_before_or_the_new_one(
    source: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while files are put in place: changed, deleted, appended, new and turned into a folder."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what it is for, a power cut, is not what happens here
    backup(source, place)
    old = tree(place / "files")
    kept = {"smoke/BaseFP32-s0.ipynb": old["smoke/BaseFP32-s0.ipynb"], "what is this.bin": old["what is this.bin"]}
    rewrite(source / "smoke" / "BaseFP32-s0.ipynb", "{}")
    with (source / "smoke" / "BaseFP32-s0.log.jsonl").open("a") as log:
        log.write("{}\n")
    (source / "what is this.bin").unlink()
    (source / "what is this.bin").mkdir()
    (source / "what is this.bin" / "inside").write_text("new")
    new = without_unfinished(source)
    shutil.copytree(place, tmp_path / "start")
    seen, step = set(), 0
    while True:
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "start", place)
        if not killed_at(step, lambda: backup(source, place)):
            break
        restore(place, tmp_path / f"back-{step}")
        found = tree(tmp_path / f"back-{step}")
        assert found in (old, new), step
        seen.add(found == new)
        backup(source, place)
        assert tree(place / "files") == new and verify(place).problems == [], step
        (dated,) = (place / "superseded").iterdir()
        assert tree(dated / "files") == kept and not (place / "incoming").exists(), step
        step += 1
    assert seen == {False, True} and step > 20


def test_the_first_backup_of_a_source_that_is_gone_gives_what_it_has(source: Path, place: Path, tmp_path: Path) -> None:
    many_files(source)
    process = start_and_wait(source, place, files=20)
    process.kill()
    process.wait()
    done = command("restore", place, tmp_path / "back")
    assert done.exit_code == 0 and "was never finished" in done.output
    assert len(tree(tmp_path / "back")) >= 20 and tree(tmp_path / "back").items() <= tree(source).items()


# ---------------------------------------------------------------------------------------------------- verify and restore


def test_verify_names_what_is_missing_altered_or_extra_and_changes_nothing(source: Path, place: Path) -> None:
    backup(source, place)
    rewrite(source / "smoke" / "BaseFP32-s0.ipynb", "{}")
    backup(source, place)
    assert command("backup", "--verify", place).exit_code == 0
    (dated,) = (place / "superseded").iterdir()
    checkpoint = place / "files" / "smoke" / "BaseFP32-s0" / "checkpoints" / "last.pt"
    flipped = bytearray(checkpoint.read_bytes())
    flipped[1000] ^= 1
    checkpoint.write_bytes(flipped)
    (place / "files" / "what is this.bin").unlink()
    (place / "files" / "extra").write_text("?")
    (dated / "files" / "smoke" / "BaseFP32-s0.ipynb").write_text("longer than before, by far")
    lines = (place / "manifest.jsonl").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if "log.jsonl" in line)
    lines[at] = lines[at][:40]
    (place / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    before = tree(place)
    done = command("backup", "--verify", place)
    assert done.exit_code == 1 and tree(place) == before
    for line in (
        "files/smoke/BaseFP32-s0/checkpoints/last.pt: altered: its SHA-256 differs",
        "files/what is this.bin: missing",
        "files/extra: extra",
        f"superseded/{dated.name}/files/smoke/BaseFP32-s0.ipynb: altered",
        f"manifest.jsonl: line {at + 1}: is damaged",
        "files/smoke/BaseFP32-s0.log.jsonl: extra",
        "6 problems in",
    ):
        assert line in done.output, done.output


def test_restore_keeps_what_is_the_same_and_overwrites_nothing(source: Path, place: Path, tmp_path: Path) -> None:
    backup(source, place)
    back = tmp_path / "back"
    assert restore(place, back).copied == 6 and tree(back) == without_unfinished(source)
    assert (back / "what is this.bin").stat().st_mtime_ns == (source / "what is this.bin").stat().st_mtime_ns
    (back / "what is this.bin").unlink()
    again = restore(place, back)
    assert (again.copied, again.kept) == (1, 5)
    (back / "what is this.bin").unlink()
    (back / "smoke" / "BaseFP32-s0.ipynb").write_text("mine")
    before = tree(back)
    done = command("restore", place, back)
    assert done.exit_code == 2 and "smoke/BaseFP32-s0.ipynb" in done.output and "another folder" in done.output
    assert tree(back) == before


def test_an_altered_file_is_not_restored_and_the_others_are(source: Path, place: Path, tmp_path: Path) -> None:
    backup(source, place)
    (place / "files" / "what is this.bin").write_bytes(b"\0\2")
    (place / "files" / "smoke" / "BaseFP32-s0.ipynb").unlink()
    done = command("restore", place, tmp_path / "back")
    assert done.exit_code == 1 and "what is this.bin: is altered" in done.output and "ipynb: is missing" in done.output
    assert len(tree(tmp_path / "back")) == 4


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", "a/../../outside", "", "a//b", "./a", "nul\0"])
def test_a_manifest_that_leads_outside_is_refused(source: Path, place: Path, tmp_path: Path, path: str) -> None:
    backup(source, place)
    entry = json.loads((place / "manifest.jsonl").read_text().splitlines()[1])
    with (place / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps(entry | {"path": path}) + "\n")
    for words in (("restore", place, tmp_path / "back"), ("backup", "--verify", place), ("backup", source, place)):
        done = command(*words)
        assert done.exit_code == 2 and "tampered" in done.output and len(done.output.splitlines()) == 1, done.output
    assert not (tmp_path / "back").exists() and not (tmp_path / "outside").exists()


def test_nothing_is_written_through_a_link_that_stands_in_the_way(source: Path, place: Path, tmp_path: Path) -> None:
    outside, back = tmp_path / "outside", tmp_path / "back"
    outside.mkdir()
    back.mkdir()
    backup(source, place)
    (back / "smoke").symlink_to(outside)
    assert command("restore", place, back).exit_code == 2 and not any(outside.iterdir())
    shutil.rmtree(place / "files" / "smoke")
    (place / "files" / "smoke").symlink_to(outside)
    done = command("backup", source, place)
    assert done.exit_code == 1 and "is not a folder; move it away" in done.output and not any(outside.iterdir())


# ------------------------------------------------------------------------------------------------------- what is said of it


def test_the_state_tells_place_date_and_changes_without_reading_the_backup(
    source: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    study = Path("executed") / "smoke"
    assert backup_state(study).words == "not backed up; `vitfp8 backup executed PLACE` does it"
    backup(Path("executed"), place)
    shutil.move(place, place.with_name("in a drawer"))
    state = backup_state(study)
    assert state.is_current and str(place) in state.words and "nothing changed since" in state.words
    (source / "other-study").mkdir()
    (source / "other-study" / "a.ipynb").write_text("{}")
    assert backup_state(study).is_current and backup_state("executed").changed == 1
    assert backup_state("executed/other-study").words == f"not backed up; `vitfp8 backup executed {place}` does it"
    rewrite(source / "smoke" / "BaseFP32-s0.ipynb", "{}")
    (source / "smoke" / "BaseFP32-s0").rename(source / "smoke" / "moved")
    state = backup_state(study)
    assert state.changed == 4 and state.words.endswith(
        f"4 files changed since; `vitfp8 backup executed {place}` brings it up to date"
    )


def test_a_damaged_ledger_never_says_that_results_are_safe(source: Path, place: Path) -> None:
    backup(source, place)
    ledger = source / LEDGER
    whole = ledger.read_text()
    for damaged in (
        "",
        "[]\n",
        whole[:60],
        whole.replace('"seen"', '"sene"'),
        "null\n{}\n",
        "\udcff".encode(errors="surrogateescape").decode("latin1"),
    ):
        ledger.write_text(damaged)
        assert backup_state(source).place is None
    ledger.write_text("garbage\n" + whole)
    assert backup_state(source).is_current
    backup(source, place)
    assert len(ledger.read_text().splitlines()) == 2, "a line a backup; what is no line is gone"


def test_of_two_backups_the_better_one_is_named(source: Path, tmp_path: Path) -> None:
    backup(source, tmp_path / "a")
    backup(source, tmp_path / "b")
    (source / "new").write_text("x")
    assert backup_state(source).changed == 1
    backup(source, tmp_path / "a")
    state = backup_state(source)
    assert state.is_current and state.place == str(tmp_path / "a")
