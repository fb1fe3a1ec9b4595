"""Archive: a checksum-verified copy of lab records and run folders, and its way back.

A backup is a folder with ``manifest.jsonl`` and the copies below ``files/``. Each copy is written aside, flushed, read back and
compared before it gets its name and its line in the manifest; so a backup that was killed is sound, and the same command goes on.
What has changed at the source replaces its copy, and the earlier copy is kept below ``superseded/``; what was deleted stays.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath

from vitfp8.params import InputError
from vitfp8.record import is_live, is_locked, now
from vitfp8.record.backups import LEDGER
from vitfp8.workflow.files import sync_folder
from vitfp8.workflow.plan import RUNNER_LOCK

MANIFEST = "manifest.jsonl"
FILES = "files"
SUPERSEDED = "superseded"

#: First line of a manifest: tells a backup from any other folder.
_HEADER = {"vitfp8_backup": 1}
_PIECE = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One file of a backup: its size in bytes, time of change at the source (ns), and SHA-256."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass
class Outcome:
    """What a backup or restore did.

    Attributes:
        copied: files copied now.
        kept: files that were there already.
        bytes: copied.
        left_out: what was not copied, one line each with the reason.
    """

    copied: int = 0
    kept: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list)


def back_up(source: Path, place: Path, *, on_file: Callable[[str], None] = lambda name: None) -> Outcome:
    """Copy a folder of lab records, verified; killed at any moment, the same call goes on.

    Runs that are executing, locks, temporary files and links are left out and named.

    Args:
        source: e.g. ``executed``; only the ledger ``.backups.jsonl`` is written there.
        place: an earlier backup, an empty folder, or one to be made.
        on_file: called with each file's name before it is copied.

    Raises:
        InputError: a place that cannot be, or a disk too full; nothing has been written.
        OSError: the disk failed or filled up meanwhile; what is in the backup is sound.
    """
    if not source.is_dir():
        raise InputError(f"{source}: there is no such folder; `vitfp8 backup executed PLACE` copies all studies")
    here, there = source.resolve(), place.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise InputError(f"{place}: a backup cannot lie inside what it copies, nor around it; give a folder elsewhere")
    manifest = _read_manifest(place) if place.exists() else {}
    outcome, began = Outcome(), now()
    waiting: list[tuple[str, Path]] = []
    for name, path in _files_of(source, outcome.left_out):
        known, state = manifest.get(name), path.stat()
        if (
            known is not None
            and (known.size, known.mtime_ns) == (state.st_size, state.st_mtime_ns)
            and (place / FILES / name).is_file()
        ):
            outcome.kept += 1
        else:
            waiting.append((name, path))
    _check_room(there, sum(path.stat().st_size for _, path in waiting), place)
    (place / FILES).mkdir(parents=True, exist_ok=True)
    if not (place / MANIFEST).exists():
        _append(place / MANIFEST, _HEADER)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for name, path in waiting:
        on_file(name)
        target = place / FILES / name
        state = path.stat()
        digest, size = _copy(path, target, keep=place / SUPERSEDED / stamp / name)
        _append(place / MANIFEST, {"path": name, "size": size, "mtime_ns": state.st_mtime_ns, "sha256": digest})
        outcome.copied += 1
        outcome.bytes += size
    _append(source / LEDGER, {"time": began, "place": str(there)})
    return outcome


def verify_backup(place: Path) -> tuple[int, list[str]]:
    """Read every file of a backup and compare it with its manifest; changes nothing.

    Args:
        place: the backup.

    Returns:
        How many files are sound, and one line for each that is missing, altered or not in the manifest.

    Raises:
        InputError: it is no backup.
    """
    manifest, problems, sound = _read_manifest(place), [], 0
    for name, entry in manifest.items():
        path = place / FILES / name
        if not path.is_file():
            problems.append(f"{path}: is missing")
        elif _digest(path) != entry.sha256:
            problems.append(f"{path}: is not what was copied (its SHA-256 differs)")
        else:
            sound += 1
    for name, path in _files_of(place / FILES, []):
        if name not in manifest:
            problems.append(f"{path}: is not in the manifest")
    return sound, problems


def restore(place: Path, target: Path, *, on_file: Callable[[str], None] = lambda name: None) -> Outcome:
    """Copy a backup back, verified; files that are there already and equal are kept.

    Args:
        place: the backup.
        target: where to; made when it is not there.
        on_file: called with each file's name before it is copied.

    Raises:
        InputError: it is no backup or a damaged one, the target holds other files of the same names, or the disk is too full;
            nothing has been written.
        OSError: the disk failed or filled up meanwhile; what is there is whole, and the same call goes on.
    """
    manifest = _read_manifest(place)
    here, there = place.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise InputError(f"{target}: cannot lie inside the backup, nor around it; give a folder elsewhere")
    _, problems = verify_backup(place)
    damaged = [problem for problem in problems if "not in the manifest" not in problem]
    if damaged:
        raise InputError(f"{damaged[0]}{f' (and {len(damaged) - 1} more)' if len(damaged) > 1 else ''}; take another backup")
    outcome = Outcome()
    waiting = []
    for name, entry in manifest.items():
        path = target / name
        if not path.exists():
            waiting.append((name, entry))
        elif path.is_file() and path.stat().st_size == entry.size and _digest(path) == entry.sha256:
            outcome.kept += 1
        else:
            raise InputError(f"{path}: is there and differs from the backup's; restore into another folder")
    _check_room(there, sum(entry.size for _, entry in waiting), target)
    for name, entry in waiting:
        on_file(name)
        _, size = _copy(place / FILES / name, target / name, mtime_ns=entry.mtime_ns)
        outcome.copied += 1
        outcome.bytes += size
    return outcome


def _files_of(folder: Path, left_out: list[str]) -> Iterator[tuple[str, Path]]:
    """Names and paths of the files below a folder; links are not followed, runs that execute are passed over."""
    live: set[Path] = set()
    for root, folders, names in os.walk(folder):
        here = Path(root)
        for name in sorted(folders):
            path = here / name
            if path.is_symlink():
                left_out.append(f"{path}: is a link")
                folders.remove(name)
            elif is_live(path) or is_locked(path / RUNNER_LOCK):
                left_out.append(f"{path}: is running; back up again when it has ended")
                live.add(path)
                folders.remove(name)
        folders.sort()
        for name in sorted(names):
            path = here / name
            if name.endswith(".lock") or name in (LEDGER,) or (name.startswith(".") and name.endswith((".tmp", ".json"))):
                continue
            if path.with_suffix("") in live or here / name.removesuffix(".log.jsonl") in live:
                continue
            try:
                name.encode()
            except UnicodeEncodeError:
                left_out.append(f"{path!r}: its name is no UTF-8")
                continue
            if path.is_symlink() or not path.is_file():
                left_out.append(f"{path}: is a link or no plain file")
                continue
            yield path.relative_to(folder).as_posix(), path


def _read_manifest(place: Path) -> dict[str, Entry]:
    """The files of a backup; a torn last line (it was killed) is passed over. An empty folder is an empty backup."""
    if not place.is_dir():
        raise InputError(f"{place}: there is no such backup; give the folder that `vitfp8 backup` wrote")
    try:
        lines = (place / MANIFEST).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        if any(place.iterdir()) and [path.name for path in place.iterdir()] != [FILES]:
            raise InputError(f"{place}: is no backup of vitfp8 and is not empty; give another folder") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{place / MANIFEST}: cannot be read ({error}); take another backup") from None
    found: dict[str, Entry] = {}
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            if number == 0 and row == _HEADER:
                continue
            name = row["path"]
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or "\0" in name:
                raise InputError(f"{place / MANIFEST}:{number + 1}: {name!r} leads out of the backup; do not use this backup")
            found[name] = Entry(int(row["size"]), int(row["mtime_ns"]), str(row["sha256"]))
        except InputError:
            raise
        except (ValueError, KeyError, TypeError):
            if number + 1 < len(lines):
                raise InputError(f"{place / MANIFEST}:{number + 1}: is damaged; take another backup") from None
    return found


def _check_room(resolved: Path, needed: int, place: Path) -> None:
    """Refuse a disk too full, or a place that cannot be written, before anything is written."""
    existing = resolved
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{place}: {existing} cannot be written; check its permissions or give another folder")
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise InputError(f"{place}: {needed:,} bytes are needed and {free:,} are free; make room or give another disk")


def _append(path: Path, row: Mapping[str, object]) -> None:
    """Append a line and wait until it is on disk; a torn line before it is closed first."""
    text = json.dumps(row, ensure_ascii=False) + "\n"
    with path.open("ab") as file:
        if file.tell():
            with path.open("rb") as before:
                before.seek(-1, os.SEEK_END)
                torn = before.read(1) != b"\n"
            if torn:
                os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path, *, keep: Path | None = None, mtime_ns: int | None = None) -> tuple[str, int]:
    """Copy aside, read back, compare, move into place; what was there before goes to `keep`. Returns digest and bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left_over in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):  # of a copy that was killed
        left_over.unlink(missing_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    total, size = hashlib.sha256(), 0
    try:
        with source.open("rb") as reading, aside.open("wb") as writing:
            while piece := reading.read(_PIECE):
                total.update(piece)
                size += len(piece)
                writing.write(piece)
            writing.flush()
            os.fsync(writing.fileno())
            if hasattr(os, "posix_fadvise"):  # so that it is read back from the disk, not from memory
                os.posix_fadvise(writing.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if _digest(aside) != total.hexdigest():
            raise OSError(None, "what was written reads back differently: the disk is not sound", str(target))
        state = source.stat()
        os.utime(aside, ns=(state.st_atime_ns, state.st_mtime_ns if mtime_ns is None else mtime_ns))
        if keep is not None and target.exists() and _digest(target) != total.hexdigest():
            keep.parent.mkdir(parents=True, exist_ok=True)
            target.rename(keep)
        aside.replace(target)
        sync_folder(target.parent)
    finally:
        aside.unlink(missing_ok=True)
    return total.hexdigest(), size
