"""Writing imported runs into a study: originals copied and verified, then a notebook each; nothing is overwritten."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from vitfp8.archive.copying import check_room, on_disk
from vitfp8.errors import InputError
from vitfp8.files import sync_folder, write_whole
from vitfp8.legacy.notebook import notebook_text
from vitfp8.legacy.records import ImportedRun, Imports
from vitfp8.legacy.source import SourceFile, SourceTree, shown
from vitfp8.record import RecordError, RunRecord, digest_of, read_record
from vitfp8.run.superseded import move_aside

#: In a run folder and beside the runs: the files as they were.
ORIGINAL = "original"
OTHERS = "imported"

_CHUNK = 1 << 20


@dataclass(frozen=True)
class PlannedImport:
    """What becomes of one run.

    Attributes:
        run: which.
        output: its lab record.
        action: ``import``, ``keep`` or ``replace``.
    """

    run: ImportedRun
    output: Path
    action: str

    @property
    def originals(self) -> Path:
        """Where its files go."""
        return self.output.with_suffix("") / ORIGINAL


def plan_import(imports: Imports, study: Path, *, force: bool) -> list[PlannedImport]:
    """What becomes of each run, given what is in the study. Writes nothing.

    Args:
        imports: what the source holds.
        study: ``executed/<study>``.
        force: whether what differs is replaced.

    Raises:
        InputError: the study and the source lie inside each other, something else is there already, or there is no room.
    """
    top, target = imports.tree.top, study.resolve()
    if target.is_relative_to(top) or top.is_relative_to(target):
        raise InputError(
            f"SOURCE: {imports.tree.given!r}: holds {study}, or lies in it; an import never changes its source: call it in "
            "another folder, or give the folder of results alone"
        )
    planned = []
    for run in imports.runs:
        output = study / f"{run.record.run_name}.ipynb"
        action = _action(run.record, output)
        if action == "replace" and not force:
            raise InputError(
                f"{output}: is there already, and differs from what {shown(run.folder.path)} holds; --force moves it aside, or "
                f"import this one under another name: --as {shown(run.folder.name)}={run.record.experiment}~VARIANT"
            )
        planned.append(PlannedImport(run, output, action))
    files = [*imports.others, *(file for item in planned if item.action != "keep" for file in item.run.files)]
    check_room(study, sum(on_disk(file.bytes) for file in files))
    return planned


def _action(record: RunRecord, output: Path) -> str:
    """Whether a run is new, there already, or something else is there."""
    if not output.exists():
        return "import"
    try:
        about = read_record(output).provenance.get("imported")
    except RecordError:
        return "replace"
    same = isinstance(about, dict) and about.get("fingerprint") == record.provenance["imported"]["fingerprint"]
    return "keep" if same else "replace"


@contextmanager
def locked(study: Path) -> Iterator[None]:
    """Hold a study for one import.

    Args:
        study: ``executed/<study>``; made if need be.

    Raises:
        InputError: another import writes into it, or it cannot be written.
    """
    try:
        study.mkdir(parents=True, exist_ok=True)
        lock = FileLock(study / ".import.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{study}: another import writes into it; wait for it") from None
    except OSError as error:
        raise InputError(f"{study}: cannot be written ({error.strerror}); check permissions and disk space") from None
    try:
        yield
    finally:
        lock.release()


def write_import(item: PlannedImport, tree: SourceTree) -> None:
    """Copy a run's files, verify them, then write its notebook; of a run that is kept, copy what is missing.

    Args:
        item: from `plan_import`.
        tree: the source.

    Raises:
        OSError: something cannot be read or written; what is there is whole, and the same command goes on.
    """
    if item.action == "replace" or (item.action == "import" and not _continues(item)):
        move_aside(item.output)
    start = len(item.run.folder.path) + 1
    for file in item.run.files:
        _copy(tree, file, item.originals / file.path[start:])
    if item.action != "keep":
        item.run.record.run_folder = str(item.output.with_suffix(""))
        write_whole(item.output, notebook_text(item.run.record, item.output.name))


def write_others(imports: Imports, study: Path) -> Path | None:
    """Copy the files that belong to no run; the folder is named by their digest, so that two imports never mix.

    Args:
        imports: what the source holds.
        study: ``executed/<study>``.

    Returns:
        The folder; None where there are no such files.
    """
    if not imports.others:
        return None
    digest = digest_of([[file.path.encode("utf-8", "surrogateescape").hex(), file.sha256] for file in imports.others])
    folder = study / OTHERS / digest[:12]
    for file in imports.others:
        _copy(imports.tree, file, folder / file.path)
    return folder


def _continues(item: PlannedImport) -> bool:
    """Whether a run folder without a notebook is an earlier try of this import (or is not there)."""
    start = len(item.run.folder.path) + 1
    folder = item.output.with_suffix("")
    wanted = {item.originals / file.path[start:] for file in item.run.files}
    return not folder.exists() or all(path in wanted for path in folder.rglob("*") if not path.is_dir())


def _copy(tree: SourceTree, file: SourceFile, target: Path) -> None:
    """Copy a file aside, move it into place, and read it back: its digest is the source's, or an error says so."""
    if target.is_file() and not target.is_symlink() and _digest(target) == file.sha256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(
        f".{hashlib.sha256(target.name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.{os.getpid()}.tmp"
    )
    try:
        with tree.open(file.path) as source, aside.open("xb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
            state = os.fstat(source.fileno())
            copy.flush()
            os.fsync(copy.fileno())
        os.utime(aside, ns=(state.st_atime_ns, state.st_mtime_ns))
        if _digest(aside) != file.sha256:
            raise OSError(f"{shown(file.path)} has changed since it was read, or its copy is damaged; import again")
        aside.replace(target)
        sync_folder(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
