"""Back up a folder of results: `backup` copies it, verified; `vitfp8.archive.restore` checks it and copies it back.

What a backup looks like and why it is whole at every instant is said in `vitfp8.archive.manifest`. The order of copying matters
for a run that is being trained meanwhile: its record first, then the checkpoint that it resumes from, then the weights of its
best epoch. So what is copied of it never claims more than its checkpoints hold, and continues like an interrupted run.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from vitfp8.archive.commit import commit, prune
from vitfp8.archive.copying import (
    ArchiveError,
    FileCopyError,
    Watch,
    check_apart,
    check_room,
    copy_verified,
    destination_error,
    make_folders,
    on_disk,
)
from vitfp8.archive.manifest import LOCK, Entry, Manifest, Store, shown
from vitfp8.errors import InputError
from vitfp8.files import write_atomically
from vitfp8.record import is_live, now
from vitfp8.record.backups import LEDGER, ledger_with, walk
from vitfp8.record.journal import JOURNAL as RUN_JOURNAL

#: How often a file that is rewritten while it is copied is tried.
_ATTEMPTS = 20

#: Seconds between two of them.
_PAUSE = 0.1


@dataclass(kw_only=True)
class BackupResult:
    """What a backup did.

    Attributes:
        files: files and links that it holds.
        size: their bytes.
        copied: files that were copied now, or by the interrupted backup that this one finished.
        copied_size: their bytes.
        kept_aside: where earlier versions are, in the backup; None when none had to be kept.
        aside: number of earlier versions there.
        links: links that were recorded and not followed: ``path -> target``.
        live: run folders whose runs were training meanwhile.
        problems: a line for each file that is not in the backup as it is at the source.
        notes: lines that a reader should see.
        seconds: how long it took.
    """

    files: int = 0
    size: int = 0
    copied: int = 0
    copied_size: int = 0
    kept_aside: Path | None = None
    aside: int = 0
    links: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def backup(
    source: Path,
    place: Path,
    *,
    moved: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> BackupResult:
    """Copy a folder into a backup, or bring the backup up to date.

    Args:
        source: the folder.
        place: the backup's folder; made when it is not there.
        moved: whether the backup may be one of a folder that was elsewhere before.
        stop: whether the user wants to stop; asked often.
        progress: told bytes done, bytes in all (each byte is copied and read back) and the file's path.

    Raises:
        InputError: it cannot begin; nothing was written.
        ArchiveError: it could not go on; the backup before is whole, and the same call continues.
        StoppedError: `stop` said so; the same.
    """
    begun = time.monotonic()
    source, place = _checked_source(source), place.absolute()
    check_apart(source, place)
    store = Store(place)
    work = _Plan(source, store, moved)
    check_room(place, work.needed, work.spare)
    if not work.stats:
        raise InputError(f"{shown(source)}: holds no file; is its disk mounted? nothing was changed")
    with _writing(place):
        if store.decided.exists():
            commit(store)
        work = _Plan(source, store, moved)  # another command may have finished before the lock was ours
        copying = _Copying(work, Watch(stop=stop), progress)
        result = copying.run()
        _write_ledger(place, copying.new, result)
    result.seconds = time.monotonic() - begun
    return result


def _checked_source(source: Path) -> Path:
    """The folder itself, links resolved."""
    if not source.exists():
        raise InputError(f"source: {shown(source)!r}: there is no such folder; `vitfp8 backup executed PLACE` copies all studies")
    if not source.is_dir():
        raise InputError(f"source: {shown(source)!r}: is not a folder; give the folder that holds it")
    return source.resolve()


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Hold the backup for this command; what the disk refuses becomes one line."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{shown(place)}: another command is writing this backup; wait for it") from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(place)}: cannot be written ({why}); check its permissions, or give another place") from None
    try:
        yield
    except OSError as error:
        raise ArchiveError(f"{shown(error.filename or place)}: {error.strerror or error}") from None
    finally:
        lock.release()


class _Plan:
    """What there is to do, by names, sizes and times; writes nothing.

    Attributes:
        stats: path → `os.lstat` of each file and link at the source.
        known: path → entry that need not be copied, unless its file has changed by then.
        staged: the part of `known` that an interrupted backup has copied.
        to_copy: paths of files that must be copied, records first.
        needed: bytes that this takes on the disk.
        spare: bytes of unfinished copies that are replaced.
    """

    def __init__(self, source: Path, store: Store, moved: bool) -> None:
        self.source, self.store = source, store
        if not store.is_backup and not store.is_fresh:
            raise InputError(
                f"{shown(store.place)}: is not empty and no backup by vitfp8; give an empty folder, or one that is not there yet"
            )
        self.before = store.current()
        unfinished = store.unfinished()
        for earlier in (self.before, unfinished):
            if earlier is not None and earlier.source != str(source) and not moved:
                raise InputError(
                    f"{shown(store.place)}: is the backup of {shown(earlier.source)}; give another place, or --moved if that "
                    "folder is the one that you back up now"
                )
        self.unreadable: dict[str, str] = {}
        self.special: list[str] = []
        self.stats: dict[str, os.stat_result] = {}
        for path, found in walk(source, self._cannot_read):
            if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
                self.stats[path] = found
            else:
                self.special.append(path)
        self.known = {}
        if (before := self.before) is not None:
            unchanged = {path: entry for path, entry in before.entries.items() if self._is_unchanged(entry)}
            self.known = {path: entry for path, entry in unchanged.items() if store.holds(before, entry)}
        staged = unfinished.entries if unfinished is not None else {}
        self.staged = {path: entry for path, entry in staged.items() if self._is_unchanged(entry) and path not in self.known}
        self.known |= self.staged
        links = [path for path, found in self.stats.items() if stat.S_ISLNK(found.st_mode)]
        self.to_copy = sorted(self.stats.keys() - self.known.keys() - set(links), key=_order)
        self.links = links
        self.needed = sum(on_disk(self.stats[path].st_size) for path in self.to_copy) + 400 * len(self.stats)
        replaced = [store.staged_files / path for path in self.to_copy if store.is_staged(path)]
        self.spare = sum(path.stat().st_size for path in [*replaced, *store.incoming.glob("copying.tmp")])

    def _cannot_read(self, error: OSError) -> None:
        """Remember a folder that cannot be read."""
        folder = Path(error.filename).relative_to(self.source).as_posix()
        self.unreadable["" if folder == "." else f"{folder}/"] = error.strerror or str(error)

    def _is_unchanged(self, entry: Entry) -> bool:
        """Whether the source's file is the one that was copied, by size and time."""
        found = self.stats.get(entry.path)
        return found is not None and entry.link is None and (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime_ns)

    def was_deleted(self, path: str) -> bool:
        """Whether a file of the backup is no longer at the source; one that cannot be seen is not deleted."""
        return path not in self.stats and path not in self.special and not path.startswith(tuple(self.unreadable))


def _order(path: str) -> tuple[int, str]:
    """Records first; then what a run resumes from; the other weights last, so that they are never older than what names them."""
    name = path.rpartition("/")[2].removesuffix(".sha256")
    if name.endswith((".ipynb", ".jsonl")):
        return (0 if name.endswith(".ipynb") else 1), path
    if not name.endswith(".pt"):
        return 2, path
    return (3 if name in ("last.pt", "previous.pt") else 4), path


class _Copying:
    """Copies what a plan says into ``incoming/`` and puts it in place."""

    def __init__(self, plan: _Plan, watch: Watch, progress: Callable[[int, int, str], None]) -> None:
        self.plan, self.store, self.watch = plan, plan.store, watch
        self.total = 2 * sum(plan.stats[path].st_size for path in plan.to_copy)
        self.done = 0
        self.progress = progress
        watch.progress = self._tell
        self.result = BackupResult()
        self.result.problems += [f"{shown(folder)}: cannot be read ({why})" for folder, why in plan.unreadable.items()]
        self.result.notes += [f"{shown(path)}: is neither file nor link, and not copied" for path in plan.special]
        self.new = Manifest(source=str(plan.source), started=now(), entries=dict(plan.known))
        self.earlier = plan.before.entries if plan.before is not None else {}
        self.incoming = set(plan.staged)
        paths = (path for path in plan.stats if path.endswith("/" + RUN_JOURNAL))
        self.run_folders = sorted({path.rpartition("/")[0] for path in paths})

    def _tell(self, count: int, name: str) -> None:
        """Pass progress on."""
        self.done += count
        self.progress(self.done, max(self.total, self.done), name)

    def run(self) -> BackupResult:
        """Copy, decide, put in place."""
        plan, result = self.plan, self.result
        result.live = [folder for folder in self.run_folders if is_live(plan.source / folder)]
        self._note_links()
        if plan.to_copy:
            self._begin()
        for unit in self._units():
            self._copy_unit(unit)
        for path, entry in self.earlier.items():
            if path not in self.new.entries and not plan.was_deleted(path):
                self.new.entries[path] = entry  # could not be copied now: the earlier version stays
        result.files, result.size = len(self.new.entries), self.new.size
        copied = [self.new.entries[path] for path in self.incoming]
        result.copied, result.copied_size = len(copied), sum(entry.size for entry in copied)
        if self._is_something_new():
            prune(self.store, self.incoming)
            self.store.incoming.mkdir(exist_ok=True)
            self.new.aside = self._name_of_aside()
            self.new.write(self.store.decided)
            result.aside = commit(self.store)
            if result.aside:
                result.kept_aside = self.store.superseded / self.new.aside
        else:
            shutil.rmtree(self.store.incoming, ignore_errors=True)
        return result

    def _is_something_new(self) -> bool:
        """Whether the manifest has to be written."""
        before = self.plan.before
        if before is None or before.damaged or before.source != self.new.source or self.result.copied:
            return True
        return before.entries != self.new.entries

    def _name_of_aside(self) -> str:
        """A folder of earlier versions that is not there yet."""
        stamp = name = self.new.started[:19].replace("-", "").replace(":", "").replace("T", "-")
        number = 1
        while (self.store.superseded / name).exists():
            number += 1
            name = f"{stamp}-{number}"
        return name

    def _begin(self) -> None:
        """Make ``incoming/``, and its journal anew with what an interrupted backup has copied."""
        self.store.staged_files.mkdir(parents=True, exist_ok=True)
        Manifest(source=self.new.source, started=self.new.started, entries=dict(self.plan.staged)).write(self.store.journal)

    def _note_links(self) -> None:
        """Record links; what they point to is elsewhere, or copied under its own name."""
        for path in self.plan.links:
            target = str((self.plan.source / path).readlink())
            found = self.plan.stats[path]
            self.new.entries[path] = Entry(path=path, size=found.st_size, mtime_ns=found.st_mtime_ns, link=target)
            self.result.links.append(f"{shown(path)} -> {shown(target)}")

    def _units(self) -> Iterator[list[str]]:
        """What is copied together: a checkpoint and the file with its digest, else a single file."""
        taken: set[str] = set()
        for path in self.plan.to_copy:
            content = path.removesuffix(".sha256")
            note = content + ".sha256"
            both = content in self.plan.stats and note in self.plan.stats
            unit = [content, note] if both else [path]
            if not taken & set(unit):
                taken |= set(unit)
                yield unit

    def _copy_unit(self, unit: list[str]) -> None:
        """Copy files that belong together; while their run trains, until they agree."""
        for _ in range(_ATTEMPTS):
            try:
                complete = all(self._copy(path) for path in unit)
            except FileCopyError as problem:
                self._leave(unit)
                self.result.problems.append(str(problem))
                return
            if complete and (len(unit) == 1 or self._agree(*unit) or not self._trains(unit[0])):
                return
            time.sleep(_PAUSE)
        self._leave(unit)
        self.result.problems.append(f"{shown(unit[0])}: is rewritten faster than it can be copied; back up again later")

    def _leave(self, unit: list[str]) -> None:
        """Let the backup keep what it had of some files."""
        for path in unit:
            self.new.entries.pop(path, None)
            self.incoming.discard(path)
            if path in self.earlier:
                self.new.entries[path] = self.earlier[path]

    def _trains(self, path: str) -> bool:
        """Whether a file belongs to a run that trains now."""
        for folder in self.run_folders:
            if path.startswith(folder + "/") and is_live(self.plan.source / folder):
                if folder not in self.result.live:
                    self.result.live.append(folder)
                return True
        return False

    def _agree(self, content: str, note: str) -> bool:
        """Whether a copied checkpoint has the digest that the copied file beside it states."""
        if content not in self.new.entries or note not in self.new.entries:
            return True  # gone at the source meanwhile
        waits = note in self.incoming
        file = (self.store.staged_files if waits else self.store.files) / note
        return file.read_text(errors="replace").split()[:1] == [self.new.entries[content].sha256]

    def _copy(self, path: str) -> bool:
        """Copy one file into ``incoming/``, unless it is there; False when it was rewritten meanwhile."""
        source, entry, earlier = self.plan.source / path, self.new.entries.get(path), self.earlier.get(path)
        try:
            found = source.lstat()
        except FileNotFoundError:
            return self._forget(path)
        if entry is not None and (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime_ns):
            return True
        self.new.entries.pop(path, None)
        # under a name that is never too long; a half-written file never stands under its own
        aside = self.store.incoming / "copying.tmp"
        try:
            target = make_folders(self.store.staged_files, path)
            copied = copy_verified(
                source,
                aside,
                path,
                self.watch,
                prefix=earlier.size if earlier is not None and earlier.link is None else 0,
                whole_lines=path.endswith(".jsonl") and self._trains(path),
            )
            if copied is None:
                return False
            aside.replace(target)
        except OSError as error:
            if not os.path.lexists(source):
                return self._forget(path)
            raise destination_error(error, self.store.place, path) from None
        finally:
            aside.unlink(missing_ok=True)
        extends = earlier.sha256 if earlier is not None and earlier.sha256 == copied.prefix_sha256 != "" else None
        entry = Entry(
            path=path,
            size=copied.size,
            mtime_ns=copied.stat.st_mtime_ns,
            sha256=copied.sha256,
            mode=copied.stat.st_mode & 0o777,
            extends=extends,
        )
        self.new.entries[path] = entry
        self.incoming.add(path)
        with self.store.journal.open("a", encoding="ascii") as journal:
            journal.write(entry.to_line() + "\n")
        return True

    def _forget(self, path: str) -> bool:
        """A file is gone since the folder was read: that is no problem."""
        self.new.entries.pop(path, None)
        self.incoming.discard(path)
        self.plan.stats.pop(path, None)
        return True


def _write_ledger(place: Path, held: Manifest, result: BackupResult) -> None:
    """Say beside the results that they are backed up; a source that cannot be written is no failure."""
    ledger = Path(held.source) / LEDGER
    seen = {path: [entry.size, entry.mtime_ns] for path, entry in held.entries.items()}
    text = ledger_with(ledger.parent, place=str(place), time=held.started, files=result.files, size=result.size, seen=seen)
    try:
        write_atomically(ledger, text)
    except OSError as error:
        result.notes.append(f"{shown(ledger)}: cannot be written ({error.strerror}): summaries will not know of this backup")
