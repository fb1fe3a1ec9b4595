"""Files that are whole at every instant: written to a temporary file, flushed to disk, renamed atomically. And their digests."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vitfp8.errors import InputError


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file atomically: a temporary file in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: where; its folder must exist.
        data: its new content; a text is written as UTF-8.

    Raises:
        OSError: it cannot be written; what was at `path` is unchanged, and nothing is left aside.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(folder: Path) -> None:
    """Refuse a place where nothing can be written, without writing.

    Args:
        folder: it need not exist: then it could be made.

    Raises:
        InputError: one line that names the folder which forbids it.
    """
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: {place.resolve()} cannot be written; check its permissions or work in another folder")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a move survives a power cut.

    Args:
        folder: an existing folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size_words(count: float) -> str:
    """Bytes, for a reader: ``12 bytes``, ``3.4 GB``.

    Args:
        count: bytes.
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
