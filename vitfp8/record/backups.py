"""Whether and where results are backed up, told without reading the backup: its disk may be in a drawer.

`vitfp8 backup` keeps a ledger in the folder that it copied: a JSON object a line, one for each backup, and in the last one of
each place what every file looked like (size and time of change). Telling what has changed since costs a look at each file's
metadata. A damaged line is passed over, so that results count as not backed up rather than as safe.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vitfp8.record.codec import compress, expand

#: The ledger, in the folder that is backed up.
LEDGER = ".vitfp8-backups.jsonl"

#: Names of files that no backup holds: locks, files being written, what a running batch tells other terminals, and the ledger.
NOT_COPIED = ("*.lock", ".*.tmp", ".batch-*.json", LEDGER)

#: How many folders up from a study a ledger is looked for: the study's own, `executed`, the project.
_LEVELS = 3


@dataclass(frozen=True)
class BackupState:
    """Whether and where a folder's files are backed up.

    Attributes:
        source: the folder that a backup copies.
        place: the backup, or one of the same source that holds nothing of the folder yet; None: there is none.
        time: when it was made, ISO 8601; None: the folder is not backed up.
        changed: number of files that are new or have changed since.
    """

    source: Path
    place: str | None = None
    time: str | None = None
    changed: int = 0

    @property
    def is_current(self) -> bool:
        """Whether there is a backup and nothing has changed since."""
        return self.time is not None and self.changed == 0

    @property
    def command(self) -> str:
        """The command that backs up; `PLACE` stands for a folder on another disk where none is known."""
        return f"vitfp8 backup {shlex.quote(str(self.source))} {'PLACE' if self.place is None else shlex.quote(self.place)}"

    @property
    def words(self) -> str:
        """The state as the end of a sentence that begins with "The results are"."""
        if self.time is None or self.place is None:
            return f"not backed up; `{self.command}` does it"
        made = f"backed up on {self.time[:16].replace('T', ' ')} UTC to {shlex.quote(self.place)}"
        if self.changed == 0:
            return f"{made}, nothing changed since"
        files = "1 file" if self.changed == 1 else f"{self.changed} files"
        return f"{made}, {files} changed since; `{self.command}` brings it up to date"


def walk(folder: Path, on_error: Callable[[OSError], None] = lambda error: None) -> Iterator[tuple[str, os.stat_result]]:
    """What a backup of a folder looks at: everything below it that is not a folder, sorted. Links are not followed.

    Args:
        folder: an existing folder.
        on_error: called for a folder that cannot be read.

    Yields:
        The path relative to `folder`, with ``/``, and its `os.lstat`.
    """

    def below(prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        try:
            with os.scandir(folder / prefix) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            on_error(error)
            return
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from below(f"{prefix}{entry.name}/")
                elif not any(fnmatchcase(entry.name, pattern) for pattern in NOT_COPIED):
                    yield prefix + entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # gone since the folder was read

    yield from below("")


def backup_state(folder: str | Path) -> BackupState:
    """Whether and where the files of a folder are backed up.

    Args:
        folder: ``executed/<study>``, or ``executed``; it need not exist.

    Returns:
        The best backup: the one with the fewest changes since, and of those the latest.
    """
    folder = Path(folder).absolute()
    now = {path: [stat.st_size, stat.st_mtime_ns] for path, stat in walk(folder)}
    states: list[BackupState] = []
    waiting: list[BackupState] = []
    for source in [folder, *folder.parents][:_LEVELS]:
        prefix = "" if source == folder else folder.relative_to(source).as_posix() + "/"
        for place, line in latest_backups(source).items():
            files = line["files_seen"]
            changed = sum(files.get(prefix + path) != seen for path, seen in now.items())
            holds_some = any(prefix + path in files for path in now)
            state = BackupState(_shown(source), place, line["time"] if holds_some else None, changed)
            (states if holds_some else waiting).append(state)
    if not states and waiting:
        return waiting[-1]
    if not states:
        # a study's neighbours are worth as much: what is proposed is the folder of all studies
        return BackupState(_shown(folder if folder.name == "executed" else folder.parent), changed=len(now))
    return min(sorted(states, key=lambda state: str(state.time), reverse=True), key=lambda state: state.changed)


def _shown(folder: Path) -> Path:
    """A folder as a user in the working directory names it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def latest_backups(source: Path) -> dict[str, dict[str, Any]]:
    """The last line on each place of a folder's ledger, with what the files looked like.

    Args:
        source: the folder that was backed up.

    Returns:
        Place → ``time`` and ``files_seen``: path → [bytes, nanoseconds].
    """
    latest: dict[str, dict[str, Any]] = {}
    for line in read_ledger(source):
        try:
            seen = expand(line["seen"])
        except (KeyError, ValueError):
            continue
        if isinstance(seen, dict) and isinstance(line.get("place"), str) and isinstance(line.get("time"), str):
            latest[line["place"]] = {"time": line["time"], "files_seen": seen}
    return latest


def read_ledger(source: Path) -> list[dict[str, Any]]:
    """The lines of a folder's ledger; lines that are not JSON objects are skipped.

    Args:
        source: the folder that was backed up.
    """
    try:
        lines = (source / LEDGER).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def ledger_with(source: Path, *, place: str, time: str, files: int, size: int, seen: Mapping[str, list[int]]) -> str:
    """The text of a folder's ledger with one backup more; earlier ones to the same place lose their bulk, not their line.

    Args:
        source: the folder that was backed up.
        place: where to.
        time: when it began, ISO 8601.
        files: how many the backup holds.
        size: their bytes.
        seen: path → [bytes, nanoseconds] of each file as it was copied.
    """
    lines = read_ledger(source)
    for line in lines:
        if line.get("place") == place:
            line.pop("seen", None)
    lines.append({"time": time, "place": place, "files": files, "bytes": size, "seen": compress(dict(seen))})
    return "".join(json.dumps(line) + "\n" for line in lines)
