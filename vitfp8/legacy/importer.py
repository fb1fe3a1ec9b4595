"""``vitfp8 import``: originals are copied and verified, then each run gets a notebook; nothing is overwritten."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from vitfp8.archive.copying import check_room, on_disk
from vitfp8.errors import InputError, printable
from vitfp8.files import file_digest, sync_folder, write_atomically
from vitfp8.legacy.names import parse_renaming
from vitfp8.legacy.notebook import notebook_text
from vitfp8.legacy.records import ImportedRun, Imports, find_runs
from vitfp8.legacy.source import SourceFile, SourceTree, read_tree
from vitfp8.record import RecordError, RunRecord, digest_of, read_record
from vitfp8.run.locate import executed_folder
from vitfp8.run.study_file import check_study_name
from vitfp8.run.superseded import move_aside

#: The study that an import goes to when none is named.
IMPORTED_STUDY = "imported"

#: In a run folder and beside the runs: the files as they were.
ORIGINAL = "original"
OTHERS = "imported"


@dataclass(frozen=True)
class PlannedImport:
    """What becomes of one run: its lab record ``output``, and ``action``: ``import``, ``keep`` or ``replace``."""

    run: ImportedRun
    output: Path
    action: str

    def copies(self) -> dict[Path, SourceFile]:
        """Where its files go."""
        place, start = self.output.with_suffix("") / ORIGINAL, len(self.run.folder.path) + 1
        return {place / file.path[start:]: file for file in self.run.files}


@dataclass
class ImportResult:
    """What an import did, or would do.

    Attributes:
        study: ``executed/<study>``.
        imports: what the source holds, and what is not imported, with the reasons.
        planned: what becomes of each run.
        failed: one sentence for each run that could not be written.
        others: folder of the copied files that belong to no run; None where there are none.
    """

    study: Path
    imports: Imports
    planned: list[PlannedImport]
    failed: list[str] = field(default_factory=list)
    others: Path | None = None


def import_results(
    source: str | Path,
    *,
    study: str = IMPORTED_STUDY,
    renaming: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    on_run: Callable[[PlannedImport], None] = lambda item: None,
) -> ImportResult:
    """Import the results of an earlier project into a study. The source is only read.

    Args:
        source: its folder of results.
        study: name of the folder below ``executed/``.
        renaming: ``OLD=NEW`` or ``OLD=NEW~VARIANT``: which experiment a folder is.
        force: move earlier imports that differ aside.
        dry_run: write nothing.
        on_run: called before each run is written.

    Raises:
        InputError: nothing can be imported, a name is refused, something else is there, or there is no room.
    """
    check_study_name(study)
    said = parse_renaming(renaming)
    tree = read_tree(source)
    imports = find_runs(tree, said)
    if not imports.runs:
        raise InputError(_nothing(imports, Path(source)))
    folder = executed_folder() / study
    result = ImportResult(folder, imports, _plan(imports, folder, force=force))
    if dry_run:
        return result
    with _locked(folder):
        for item in result.planned:
            on_run(item)
            try:
                _write(item, tree)
            except OSError as error:
                result.failed.append(_failure(error, item.output))
        try:
            result.others = _copy_others(imports, folder)
        except OSError as error:
            result.failed.append(_failure(error, folder))
    return result


def _failure(error: OSError, place: Path) -> str:
    """One line on what could not be written."""
    where = printable(str(error.filename or place))
    return f"{where}: {error.strerror or printable(str(error))}; what was written is whole, and the same command continues"


def _nothing(imports: Imports, source: Path) -> str:
    """Why nothing can be imported, on one line, with the way out."""
    where = f"SOURCE: {str(source)!r}"
    inside = source / "results"
    if inside.is_dir() and read_tree(inside).experiments:
        return f"{where}: holds no experiment's folder; give {str(inside)!r}"
    if imports.left:
        more = f" (and {len(imports.left) - 1} more)" if len(imports.left) > 1 else ""
        return f"{where}: nothing can be imported: {imports.left[0]}{more}"
    layouts = "checkpoints/<name>/ or <name>/{checkpoints,metrics}/"
    return f"{where}: holds no experiment's folder; give the folder of results that holds {layouts}"


def _plan(imports: Imports, study: Path, *, force: bool) -> list[PlannedImport]:
    """What becomes of each run, given what the study holds. Writes nothing.

    Raises:
        InputError: study and source lie inside each other, something else is there already, or there is no room.
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
                f"{output}: exists, and differs from {printable(run.folder.path, 160)}; --force moves it aside, or import this "
                f"one under another name: --as {printable(run.folder.name, 160)}={run.record.experiment}~VARIANT"
            )
        planned.append(PlannedImport(run, output, action))
    files = [*imports.others, *(file for item in planned if item.action != "keep" for file in item.run.files)]
    check_room(study, sum(on_disk(file.bytes) for file in files))
    return planned


def _action(record: RunRecord, output: Path) -> str:
    """Whether a run is new, imported already, or something else is in its place."""
    if not output.exists():
        return "import"
    try:
        about = read_record(output).provenance.get("imported")
    except RecordError:
        return "replace"
    same = isinstance(about, dict) and about.get("fingerprint") == record.provenance["imported"]["fingerprint"]
    return "keep" if same else "replace"


@contextmanager
def _locked(study: Path) -> Iterator[None]:
    """Hold a study, which is made if need be, for one import.

    Raises:
        InputError: another import holds it, or it cannot be written.
    """
    try:
        study.mkdir(parents=True, exist_ok=True)
        lock = FileLock(study / ".import.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{study}: another import is writing to it; wait until it has finished") from None
    except OSError as error:
        raise InputError(f"{study}: cannot be written ({error.strerror}); check permissions and disk space") from None
    try:
        yield
    finally:
        lock.release()


def _write(item: PlannedImport, tree: SourceTree) -> None:
    """Copy and verify a run's files, then write its notebook; of a run that is kept, copy only what is missing."""
    copies, folder = item.copies(), item.output.with_suffix("")
    started = folder.exists() and any(path not in copies for path in folder.rglob("*") if not path.is_dir())
    if item.action == "replace" or (item.action == "import" and started):  # files that this import did not leave
        move_aside(item.output)
    for target, file in copies.items():
        _copy(tree, file, target)
    if item.action != "keep":
        item.run.record.run_folder = str(folder)
        write_atomically(item.output, notebook_text(item.run.record, item.output.name))


def _copy_others(imports: Imports, study: Path) -> Path | None:
    """Copy the files that belong to no run into a folder named by their digest, so that two imports never mix."""
    if not imports.others:
        return None
    digest = digest_of([[file.path.encode("utf-8", "surrogateescape").hex(), file.sha256] for file in imports.others])
    folder = study / OTHERS / digest[:12]
    for file in imports.others:
        _copy(imports.tree, file, folder / file.path)
    return folder


def _copy(tree: SourceTree, file: SourceFile, target: Path) -> None:
    """Copy a file to a temporary one, read it back, compare digests, and rename it atomically."""
    if target.is_file() and not target.is_symlink() and file_digest(target) == file.sha256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]  # the name itself may be as long as a name can be
    temporary = target.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        with tree.open(file.path) as source, temporary.open("xb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
            state = os.fstat(source.fileno())
            copy.flush()
            os.fsync(copy.fileno())
        os.utime(temporary, ns=(state.st_atime_ns, state.st_mtime_ns))
        if file_digest(temporary) != file.sha256:
            raise OSError(f"{printable(file.path, 160)} has changed since it was read, or its copy is damaged; import again")
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
