"""Put a decided backup in place: move what it replaces aside, then what it brings into ``files/``.

Every step can be done again: whoever was killed here is finished by the next command, in the same order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from vitfp8.archive.copying import Watch, digest_from_disk, make_folders
from vitfp8.archive.manifest import FILES, MANIFEST, Entry, Manifest, Store, read_manifest
from vitfp8.files import sync_folder


def prune(store: Store, wanted: Collection[str]) -> None:
    """Remove from ``incoming/`` what is not to be put in place: files that an interrupted backup copied and that changed since.

    Args:
        store: the backup.
        wanted: paths of the files to be put in place.
    """
    for folder, _, names in os.walk(store.staged_files, topdown=False):
        for name in names:
            path = Path(folder, name)
            if path.relative_to(store.staged_files).as_posix() not in wanted:
                path.unlink()
        with suppress(OSError):
            Path(folder).rmdir()


def commit(store: Store) -> int:
    """Make ``files/`` what the decided manifest says. An earlier version is deleted only when the new backup holds its bytes.

    Args:
        store: the backup; ``incoming/manifest.jsonl`` is there.

    Returns:
        How many earlier versions are kept aside.

    Raises:
        ArchiveError: something foreign stands in the way.
        OSError: the disk refuses.
    """
    new = read_manifest(store.decided)
    assert new is not None
    old = read_manifest(store.manifest)
    before = old.entries if old is not None else {}
    aside = store.superseded / new.aside
    held = {entry.sha256 for entry in new.entries.values() if entry.link is None}
    store.files.mkdir(exist_ok=True)
    for path, entry in before.items():
        if entry.link is None:
            _clear(store, aside, path, entry, new.entries.get(path), held)
    touched = set()
    for path in new.entries:
        if not store.is_staged(path):
            continue
        target = make_folders(store.files, path)
        if path not in before and os.path.lexists(target):
            _move(target, aside, path)  # nobody knows whose it is: it stays
        (store.staged_files / path).replace(target)
        touched.add(target.parent)
    for folder in touched:
        sync_folder(folder)
    kept = _write_aside_manifest(aside, old, new)
    store.decided.replace(store.manifest)
    sync_folder(store.place)
    shutil.rmtree(store.incoming, ignore_errors=True)
    return kept


def _clear(store: Store, aside: Path, path: str, entry: Entry, successor: Entry | None, held: set[str]) -> None:
    """Take an earlier version out of the way of the new backup."""
    if successor is not None and (successor.has_content_of(entry) or (successor.link is None and not store.is_staged(path))):
        return  # it stays, or its successor has been put in place before an interruption
    current = store.files / path
    if not os.path.lexists(current) or (current.is_dir() and not current.is_symlink()):
        return
    extended = successor is not None and successor.extends == entry.sha256
    if entry.size and entry.sha256 not in held and not extended:
        _move(current, aside, path)
    elif successor is None or successor.link is not None:
        current.unlink()
    for folder in current.parents:
        if folder == store.files:
            break
        try:
            folder.rmdir()
        except OSError:
            break


def _move(current: Path, aside: Path, path: str) -> None:
    """Move a file of ``files/`` to the same path among the earlier versions."""
    root = aside / FILES
    root.mkdir(parents=True, exist_ok=True)
    target = make_folders(root, path)
    current.replace(target)
    sync_folder(target.parent)


def _write_aside_manifest(aside: Path, old: Manifest | None, new: Manifest) -> int:
    """Say what the folder of earlier versions holds; their number."""
    root = aside / FILES
    if not root.is_dir():
        return 0
    for torn in aside.glob(f".{MANIFEST}.*.tmp"):  # of a command that was killed while it wrote the one below
        torn.unlink()
    entries = {}
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            path = file.relative_to(root).as_posix()
            known = old.entries.get(path) if old is not None else None
            if known is None:
                found = file.lstat()
                digest = digest_from_disk(file, path, Watch())
                known = Entry(path=path, size=found.st_size, mtime_ns=found.st_mtime_ns, sha256=digest)
            entries[path] = known
    started = old.started if old is not None else new.started
    Manifest(source=new.source, started=started, entries=entries).write(aside / MANIFEST)
    return len(entries)
