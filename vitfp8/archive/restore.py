"""Check a backup, and copy it back. Neither changes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vitfp8.archive.copying import (
    ArchiveError,
    FileCopyError,
    Watch,
    check_apart,
    check_room,
    copy_verified,
    destination_error,
    digest_from_disk,
    make_folders,
    on_disk,
)
from vitfp8.archive.manifest import FILES, INCOMING, LOCK, MANIFEST, SUPERSEDED, Entry, Manifest, Store, shown
from vitfp8.errors import InputError
from vitfp8.files import sync_folder
from vitfp8.record import is_locked

#: A file that is being copied back, in the folder where it will stand.
_ASIDE = ".vitfp8-restore.tmp"

#: How many files a line names before it only counts them.
_NAMED = 5


@dataclass(kw_only=True)
class CheckResult:
    """What reading a backup found.

    Attributes:
        files: that were read.
        size: their bytes.
        problems: a line each: missing, altered, extra, or an interruption.
        seconds: how long it took.
    """

    files: int = 0
    size: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(kw_only=True)
class RestoreResult:
    """What was copied back.

    Attributes:
        copied: files and links.
        copied_size: their bytes.
        kept: that were there already, with the same content.
        problems: a line for each file that could not be restored.
        notes: lines that a reader should see.
        seconds: how long it took.
    """

    copied: int = 0
    copied_size: int = 0
    kept: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


Progress = Callable[[int, int, str], None]


def _no_progress(done: int, total: int, name: str) -> None:
    """Nobody watches."""


class _Meter:
    """Adds up bytes for whoever watches."""

    def __init__(self, total: int, stop: Callable[[], bool], progress: Progress) -> None:
        self.done, self.total, self.progress = 0, total, progress
        self.watch = Watch(stop=stop, progress=self.tell)

    def tell(self, count: int, name: str) -> None:
        """Pass progress on."""
        self.done += count
        self.progress(self.done, max(self.total, self.done), name)


def _opened(place: Path) -> tuple[Store, Manifest]:
    """A backup that nobody writes to, and what it holds: an unfinished first one, what it has so far."""
    store = Store(place.absolute())
    if not place.is_dir():
        raise InputError(f"backup: {shown(place)!r}: there is no such folder; is its disk mounted?")
    if is_locked(store.place / LOCK):
        raise InputError(f"{shown(place)}: a command is writing this backup; wait for it")
    manifest = store.current() or store.unfinished()
    if manifest is None:
        raise InputError(f"{shown(place)}: is no backup by vitfp8 (it has no {MANIFEST}); give the folder that was backed up to")
    return store, manifest


# ---------------------------------------------------------------------------------------------------------------- verify


def verify(place: Path, *, stop: Callable[[], bool] = lambda: False, progress: Progress = _no_progress) -> CheckResult:
    """Read every file of a backup, earlier versions too, and compare it with its SHA-256.

    Args:
        place: the backup's folder.
        stop: whether the user wants to stop.
        progress: told bytes done, bytes in all and the file's path.

    Raises:
        InputError: it is no backup, or is being written.
        StoppedError: `stop` said so.
    """
    begun = time.monotonic()
    store, manifest = _opened(place)
    stores = [("", store, manifest)]
    result = CheckResult()
    for older in store.set_asides():
        name = f"{SUPERSEDED}/{older.place.name}/"
        found = older.current()
        if found is None:
            result.problems.append(f"{shown(name)}: extra: has no {MANIFEST}")
        else:
            stores.append((name, older, found))
    meter = _Meter(sum(held.size for _, _, held in stores), stop, progress)
    if store.journal.is_file() or store.decided.is_file():
        line = f"{INCOMING}/: a backup was interrupted; `vitfp8 backup {shown(manifest.source)} {shown(place)}` goes on with it"
        result.problems.append(line)
    for prefix, one, held in stores:
        result.problems += [f"{prefix}{MANIFEST}: line {number}: is damaged" for number in held.damaged]
        for entry in held.entries.values():
            if entry.link is None:
                result.files, result.size = result.files + 1, result.size + entry.size
                if problem := _check(one, held, entry, prefix, meter.watch):
                    result.problems.append(problem)
        if not held.staged:  # else files that are being replaced are there as well
            result.problems += [f"{shown(prefix + path)}: extra: the manifest does not know it" for path in _extra(one, held)]
    result.seconds = time.monotonic() - begun
    return result


def _check(store: Store, manifest: Manifest, entry: Entry, prefix: str, watch: Watch) -> str | None:
    """What is wrong with one file, in a line."""
    path = store.location(manifest, entry)
    name = shown(f"{prefix}{path.relative_to(store.place).as_posix()}")
    if not os.path.lexists(path):
        return f"{name}: missing"
    if path.is_symlink() or not path.is_file():
        return f"{name}: altered: is not a file any more"
    if (size := path.lstat().st_size) != entry.size:
        return f"{name}: altered: has {size} bytes instead of {entry.size}"
    try:
        return None if digest_from_disk(path, entry.path, watch) == entry.sha256 else f"{name}: altered: its SHA-256 differs"
    except FileCopyError as problem:
        return str(problem)


def _extra(store: Store, manifest: Manifest) -> Iterator[str]:
    """Files of a backup that its manifest does not know."""
    ours = {MANIFEST, FILES, SUPERSEDED, INCOMING, LOCK}
    yield from sorted(path.name for path in store.place.iterdir() if path.name not in ours)
    for folder, folders, names in os.walk(store.files):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in sorted([*names, *links]):
            path = Path(folder, name).relative_to(store.files).as_posix()
            if path not in manifest.entries or manifest.entries[path].link is not None:
                yield f"{FILES}/{path}"


# --------------------------------------------------------------------------------------------------------------- restore


def restore(
    place: Path, target: Path, *, stop: Callable[[], bool] = lambda: False, progress: Progress = _no_progress
) -> RestoreResult:
    """Copy a backup back. Files that are there with the same content are kept; none is overwritten.

    Args:
        place: the backup's folder, or one of the dated folders of earlier versions in it.
        target: where to; made when it is not there.
        stop: whether the user wants to stop.
        progress: told bytes done, bytes in all and the file's path.

    Raises:
        InputError: it cannot begin: no backup, files that differ, no room; nothing was written.
        ArchiveError: it could not go on; the same call continues.
        StoppedError: the same.
    """
    begun = time.monotonic()
    store, manifest = _opened(place)
    check_apart(store.place, target)
    result = RestoreResult()
    if not store.manifest.is_file() and not store.decided.is_file():
        result.notes.append(f"{shown(place)}: was never finished; this is what it holds")
    if manifest.damaged:
        result.problems.append(
            f"{MANIFEST}: {len(manifest.damaged)} damaged lines: their files are in {FILES}/, and not restored"
        )
    files = [entry for entry in manifest.entries.values() if entry.link is None]
    missing = _missing(target, files, stop)
    check_room(target, sum(on_disk(entry.size) for entry in missing))
    meter = _Meter(2 * sum(entry.size for entry in missing), stop, progress)
    result.kept = len(files) - len(missing)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{shown(target)}: cannot be made ({error.strerror}); give another folder") from None
    try:
        for entry in missing:
            try:
                _restore_file(store.location(manifest, entry), target, entry, meter.watch)
            except FileCopyError as problem:
                result.problems.append(str(problem))
                continue
            result.copied, result.copied_size = result.copied + 1, result.copied_size + entry.size
        for entry in manifest.entries.values():
            if entry.link is not None:
                _restore_link(target, entry, result)
    except OSError as error:
        raise ArchiveError(f"{shown(error.filename or target)}: {error.strerror or error}") from None
    result.seconds = time.monotonic() - begun
    return result


def _missing(target: Path, entries: list[Entry], stop: Callable[[], bool]) -> list[Entry]:
    """Entries that are not in a folder; files that differ, or stand in the way, are refused all together."""
    if os.path.lexists(target) and not target.is_dir():
        raise InputError(f"{shown(target)}: is not a folder; give another place")
    missing, conflicts = [], []
    watch = Watch(stop=stop)
    for entry in entries:
        path = target / entry.path
        blocked = next((part for part in _folders(target, entry.path) if os.path.lexists(part) and not _is_folder(part)), None)
        if blocked is not None:
            conflicts.append(blocked.relative_to(target).as_posix())
        elif not os.path.lexists(path):
            missing.append(entry)
        elif not _is_same(path, entry, watch):
            conflicts.append(entry.path)
    if conflicts := list(dict.fromkeys(conflicts)):
        names = ", ".join(shown(path) for path in conflicts[:_NAMED]) + (", …" if len(conflicts) > _NAMED else "")
        count = "1 file there differs" if len(conflicts) == 1 else f"{len(conflicts)} files there differ"
        raise InputError(f"{shown(target)}: {count} from the backup ({names}); nothing was restored: give another folder")
    return missing


def _folders(target: Path, path: str) -> Iterator[Path]:
    """The folders that lead to a file, from the outermost."""
    folder = target
    for part in path.split("/")[:-1]:
        folder = folder / part
        yield folder


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _is_same(path: Path, entry: Entry, watch: Watch) -> bool:
    """Whether a file has the content of an entry."""
    if path.is_symlink() or not path.is_file() or path.lstat().st_size != entry.size:
        return False
    try:
        return digest_from_disk(path, entry.path, watch) == entry.sha256
    except FileCopyError:
        return False


def _restore_file(source: Path, target: Path, entry: Entry, watch: Watch) -> None:
    """Copy one file back under its name, when what was read is what was backed up."""
    if not os.path.lexists(source):
        raise FileCopyError(f"{shown(entry.path)}: is missing in the backup, and not restored")
    aside = None
    try:
        path = make_folders(target, entry.path)
        aside = path.with_name(_ASIDE)
        copied = copy_verified(source, aside, entry.path, watch)
        if copied is None or copied.sha256 != entry.sha256:
            raise FileCopyError(f"{shown(entry.path)}: is altered in the backup, and not restored")
        with suppress(OSError):
            aside.chmod(entry.mode & 0o777)
            os.utime(aside, ns=(entry.mtime_ns, entry.mtime_ns))
        aside.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise destination_error(error, target, entry.path) from None
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


def _restore_link(target: Path, entry: Entry, result: RestoreResult) -> None:
    """Make a link again, unless it would lead out of the folder or something stands in its place."""
    assert entry.link is not None
    name = f"{shown(entry.path)} -> {shown(entry.link)}"
    depth = entry.path.count("/")
    for part in entry.link.split("/"):
        depth += -1 if part == ".." else 0 if part in ("", ".") else 1
        if depth < 0:
            break
    if entry.link.startswith("/") or depth < 0:
        result.notes.append(f"{name}: a link out of the folder is not restored; make it by hand where that place is there")
        return
    path = make_folders(target, entry.path)
    if path.is_symlink() and str(path.readlink()) == entry.link:
        result.kept += 1
    elif os.path.lexists(path):
        result.problems.append(f"{name}: something else stands in its place, and it is not restored")
    else:
        try:
            path.symlink_to(entry.link)
            result.copied += 1
        except OSError as error:
            result.problems.append(f"{name}: cannot be made ({error.strerror})")
