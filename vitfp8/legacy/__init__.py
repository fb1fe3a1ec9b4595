"""Taking in the results of an earlier project: its runs become records marked ``imported``, each in a notebook of its own.

`source` reads the old tree and changes nothing in it, `names` knows what its folders are called now and how the project worked,
`values` reads its metrics files, `checkpoints` looks into its checkpoints, `records` puts a record together, `notebook` shows it,
`store` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitfp8.errors import InputError
from vitfp8.legacy.names import parse_renaming
from vitfp8.legacy.records import Imports, find_runs
from vitfp8.legacy.source import experiment_folders, read_tree, shown
from vitfp8.legacy.store import PlannedImport, locked, plan_import, write_import, write_others
from vitfp8.run.locate import executed_folder
from vitfp8.run.study_file import check_study_name

__all__ = ["ImportResult", "import_results"]

#: The study that an import goes to when none is named.
IMPORTED_STUDY = "imported"


@dataclass
class ImportResult:
    """What an import did, or would do.

    Attributes:
        study: ``executed/<study>``.
        imports: what the source holds, and what of it is left, with the reasons.
        planned: what becomes of each run.
        failed: a sentence for each run that could not be written.
        others: where files that belong to no run were copied; None where there are none.
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
        study: names the folder below ``executed/``.
        renaming: ``OLD=NEW`` or ``OLD=NEW~VARIANT``: which experiment a folder is.
        force: whether imports that are there and differ are moved aside.
        dry_run: whether nothing is written.
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
    result = ImportResult(folder, imports, plan_import(imports, folder, force=force))
    if dry_run:
        return result
    with locked(folder):
        for item in result.planned:
            on_run(item)
            try:
                write_import(item, tree)
            except OSError as error:
                place = shown(error.filename or item.output)
                result.failed.append(
                    f"{place}: {error.strerror or shown(error)}; what is there is whole, and the same command goes on"
                )
        try:
            result.others = write_others(imports, folder)
        except OSError as error:
            result.failed.append(f"{shown(error.filename or folder)}: {error.strerror or shown(error)}; the same command goes on")
    return result


def _nothing(imports: Imports, source: Path) -> str:
    """Why there is nothing to import, on one line, with the way out."""
    where = f"SOURCE: {str(source)!r}"
    inside = source / "results"
    if inside.is_dir() and experiment_folders(read_tree(inside)):
        return f"{where}: holds no experiment's folder; give {str(inside)!r}"
    if imports.left:
        more = f" (and {len(imports.left) - 1} more)" if len(imports.left) > 1 else ""
        return f"{where}: nothing can be imported: {imports.left[0]}{more}"
    return (
        f"{where}: holds no experiment's folder; give the folder of results with checkpoints/<name>/ or "
        "<name>/{checkpoints,metrics}/ in it"
    )
