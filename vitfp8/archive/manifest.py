"""What a backup holds: its manifest, and where in its folder each file stands.

    PLACE/manifest.jsonl      a header, then a line a file: path, size, time of change, SHA-256
    PLACE/files/              plain copies, under their own names
    PLACE/superseded/<date>/  earlier versions that a later backup found changed or deleted: a backup of the same form
    PLACE/incoming/           a backup that is being made, or was interrupted

A backup is made in two steps. Files are copied to ``incoming/files`` and verified there, one after the other, while what stands
in ``files/`` is left alone. When all are there, the new manifest is written into ``incoming/``, and from this instant the backup
is the new one: what is left to do is moving files, which whoever comes next can finish. So a backup is whole at every instant.

A manifest is data that may have been tampered with: no path of it leads out of the folder that it is read for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfp8.errors import InputError
from vitfp8.files import write_atomically

MANIFEST = "manifest.jsonl"
FILES = "files"
SUPERSEDED = "superseded"
INCOMING = "incoming"
JOURNAL = "journal.jsonl"
LOCK = "backup.lock"

#: Version of the layout; an earlier program refuses a later one.
VERSION = 1

_ABOUT = "a backup by vitfp8: plain copies in files/; `vitfp8 restore` copies them back, `vitfp8 backup --verify` checks them"


def shown(path: str | Path) -> str:
    """A path on one line, whatever is in its name."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file or link of a backup.

    Attributes:
        path: relative, with ``/``; bytes that are no UTF-8 stand in it as Python's surrogates.
        size: bytes.
        mtime_ns: time of the last change at the source, nanoseconds.
        sha256: hexadecimal; empty for a link.
        mode: permission bits.
        link: what a symbolic link points to; None for a file.
        extends: SHA-256 of the earlier version that this one begins with, so that nothing of it is lost.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str = ""
    mode: int = 0o644
    link: str | None = None
    extends: str | None = None

    def to_line(self) -> str:
        """The line of a manifest."""
        values = {key: value for key, value in vars(self).items() if value not in (None, "")}
        return json.dumps(values, separators=(",", ":"))

    def has_content_of(self, other: Entry) -> bool:
        """Whether two entries stand for the same bytes, or the same link.

        Args:
            other: of the same or another path.
        """
        return (self.sha256, self.link) == (other.sha256, other.link)


def entry_from(values: dict[str, Any]) -> Entry:
    """An entry as a line of a manifest states it.

    Args:
        values: the line, as read.

    Raises:
        ValueError: it states something that no entry can; the path of an `InputError` leads out of the backup.
    """
    entry = Entry(**{key: values[key] for key in Entry.__dataclass_fields__ if key in values})
    whole = all(type(number) is int for number in (entry.size, entry.mtime_ns, entry.mode))
    if not whole or entry.size < 0 or not isinstance(entry.path, str):
        raise ValueError("no entry")
    if entry.link is None and not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
        raise ValueError("no SHA-256")
    parts = entry.path.split("/")
    if "\0" in entry.path or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"path: {ascii(entry.path)[:200]}: leads out of the backup: the manifest has been tampered with")
    return entry


@dataclass(kw_only=True)
class Manifest:
    """What a manifest states.

    Attributes:
        source: the folder that was copied, absolute.
        started: when the backup began, ISO 8601.
        aside: name of the folder in ``superseded/`` that took what this backup replaced.
        entries: path → entry.
        damaged: numbers of the lines that cannot be read.
        staged: whether its files may still wait in ``incoming/``.
    """

    source: str
    started: str
    aside: str = ""
    staged: bool = False
    entries: dict[str, Entry] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries.values() if entry.link is None)

    def header(self) -> str:
        """The first line."""
        return json.dumps({"vitfp8_backup": VERSION, "about": _ABOUT, "source": self.source, "started": self.started,
                           "aside": self.aside})  # fmt: skip

    def write(self, path: Path) -> None:
        """Write it whole.

        Args:
            path: where.
        """
        lines = [self.header(), *(self.entries[name].to_line() for name in sorted(self.entries))]
        write_atomically(path, "\n".join(lines) + "\n")


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest or the journal of an unfinished backup; None where there is none.

    Args:
        path: the file.

    Raises:
        InputError: it is none of ours, is of a later version, or leads out of the backup.
    """
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read ({error.strerror}); check permissions and the disk") from None
    header = _object(lines[0]) if lines else {}
    version = header.get("vitfp8_backup")
    if not isinstance(version, int) or not isinstance(header.get("source"), str):
        raise InputError(f"{shown(path)}: line 1: is not the header of a backup; copy what you need from {FILES}/ by hand")
    if version > VERSION:
        raise InputError(f"{shown(path)}: was made by a later vitfp8 (layout {version}, this one knows {VERSION}); update it")
    aside = str(header.get("aside") or "")
    if not re.fullmatch(r"[0-9-]*", aside):
        raise InputError(f"{shown(path)}: aside: {ascii(aside)[:200]}: leads out of the backup: it has been tampered with")
    found = Manifest(source=header["source"], started=str(header.get("started", "")), aside=aside)
    for number, line in enumerate(lines[1:], start=2):
        try:
            entry = entry_from(_object(line))
        except InputError as error:
            raise InputError(f"{shown(path)}: line {number}: {error}; restore nothing from it unseen") from None
        except (ValueError, TypeError):
            found.damaged.append(number)
            continue
        found.entries[entry.path] = entry
    return found


def _object(line: str) -> dict[str, Any]:
    """A line as a JSON object; an empty one when it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class Store:
    """The folder of a backup, read only.

    Args:
        place: the folder; it need not exist.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.files = place / FILES
        self.incoming = place / INCOMING
        self.staged_files = place / INCOMING / FILES
        self.journal = place / INCOMING / JOURNAL
        self.decided = place / INCOMING / MANIFEST
        self.manifest = place / MANIFEST
        self.superseded = place / SUPERSEDED

    @property
    def is_backup(self) -> bool:
        """Whether a backup was made or begun here."""
        return any(path.is_file() for path in (self.manifest, self.journal, self.decided))

    @property
    def is_fresh(self) -> bool:
        """Whether nothing is here but what the first instants of a backup leave."""
        names = {path.name for path in self.place.iterdir()} if self.place.is_dir() else set()
        return names <= {LOCK, INCOMING} and not (self.incoming.is_dir() and any(self.incoming.iterdir()))

    def current(self) -> Manifest | None:
        """The manifest of the backup as it stands, also when the last one has been decided but not all put in place.

        Raises:
            InputError: see `read_manifest`.
        """
        decided = read_manifest(self.decided)
        if decided is None:
            return read_manifest(self.manifest)
        decided.staged = True
        return decided

    def unfinished(self) -> Manifest | None:
        """What an interrupted backup has copied and verified so far; None where none was interrupted.

        Raises:
            InputError: see `read_manifest`.
        """
        found = read_manifest(self.journal)
        if found is None:
            return None
        entries = {path: entry for path, entry in found.entries.items() if _has_size(self.staged_files / path, entry.size)}
        return Manifest(source=found.source, started=found.started, entries=entries, staged=True)

    def location(self, manifest: Manifest, entry: Entry) -> Path:
        """Where the bytes of an entry are now.

        Args:
            manifest: `current` or `unfinished`.
            entry: of it.
        """
        waits = manifest.staged and self.is_staged(entry.path)
        return (self.staged_files if waits else self.files) / entry.path

    def is_staged(self, path: str) -> bool:
        """Whether a file waits in ``incoming/``.

        Args:
            path: of an entry.
        """
        staged = self.staged_files / path
        return staged.is_file() and not staged.is_symlink()

    def holds(self, manifest: Manifest, entry: Entry) -> bool:
        """Whether the file of an entry is there, by its size; its bytes are not read.

        Args:
            manifest: `current` or `unfinished`.
            entry: of it.
        """
        return entry.link is not None or _has_size(self.location(manifest, entry), entry.size)

    def set_asides(self) -> Iterable[Store]:
        """The folders of earlier versions, oldest first."""
        folders = sorted(self.superseded.iterdir()) if self.superseded.is_dir() else []
        return [Store(folder) for folder in folders if folder.is_dir()]


def _has_size(path: Path, size: int) -> bool:
    """Whether a regular file of that size is there."""
    try:
        stat = path.lstat()
    except OSError:
        return False
    return path.is_file() and not path.is_symlink() and stat.st_size == size
