"""The run that a user means, or that another run starts from: a notebook, a run folder, or ``<study>/<run>``."""

from __future__ import annotations

import difflib
from pathlib import Path

from vitfp8.errors import InputError
from vitfp8.home import at_home, run_command
from vitfp8.record.journal import JOURNAL
from vitfp8.record.reading import RecordError, read_record, run_folders
from vitfp8.record.schema import RunRecord

#: Status of a source run that cannot be started from → what to do about it.
_WAY_OUT = {
    "running": "wait for it",
    "interrupted": "finish it first: {command}",
    "failed": "run it first: {command}",
    "diverged": "a diverged model is not quantised; take another seed or another source_run",
}


def notebook_of(place: str | Path) -> Path:
    """The executed notebook of ``executed/<study>/<run>.ipynb`` or ``executed/<study>/<run>``."""
    place = Path(place)
    return place if place.suffix == ".ipynb" else place.with_name(place.name + ".ipynb")


def find_run(run: str | Path, *, executed: Path | None = None) -> Path:
    """The lab record of a run; it need not exist if the run folder has a journal.

    Args:
        run: ``executed/<study>/<run>.ipynb``, ``executed/<study>/<run>`` or ``<study>/<run>``.
        executed: the folder of the studies; None: ``executed/`` at the study's home.

    Raises:
        InputError: there is no such run; the nearest one is suggested.
    """
    text, executed = str(run), executed or at_home("executed")
    try:
        for place in (Path(text), executed / text):
            notebook = notebook_of(place)
            if place.name and (notebook.is_file() or (notebook.with_suffix("") / JOURNAL).is_file()):
                return notebook
        what = "is a folder without a run's journal" if Path(text).is_dir() else "there is no such run"
    except (OSError, ValueError):
        what = "is not a file name"
    if text.endswith(".ipynb"):
        what = "there is no such notebook"
    there = _runs_there(executed)
    wanted = text.removeprefix(f"{executed}/").removesuffix(".ipynb").rstrip("/")
    near = [name for name in there if name.partition("/")[2] == wanted] or difflib.get_close_matches(wanted, there, n=1)
    way_out = f"did you mean {near[0]}?" if near else "`vitfp8 runs` lists what there is"
    raise InputError(f"run: {text!r}: {what}; {way_out}")


def _runs_there(executed: Path) -> list[str]:
    """Every ``<study>/<run>`` in the folder of the studies that has a notebook or a journal, sorted."""
    notebooks = {path.with_suffix("") for path in executed.glob("*/*.ipynb") if path.name != "analysis.ipynb"}
    journals = {path.parent for path in executed.glob(f"*/*/{JOURNAL}")}
    return sorted(path.relative_to(executed).as_posix() for path in notebooks | journals)


def source_run_command(
    experiment: str, *, variant: str = "", seed: int = 0, study: str | None = None, preset: str | None = None
) -> str:
    """The command that makes a source run, in backquotes.

    Args:
        experiment: the experiment of the source run.
        variant: its variant.
        seed: its seed.
        study: name of the study; None: not known.
        preset: the preset; empty: none is used; None: not known.
    """
    if preset is None:
        words = [run_command(study, experiment) if study else f"vitfp8 run {experiment} --preset PRESET"]
    else:
        words = ["vitfp8 run", experiment]
        words += [f"--preset {preset}"] if preset else []
        words += [f"--study {study}"] if study is not None and study != (preset or "paper") else []
    words += [f"-p variant {variant}"] if variant else []
    words += [f"-p seed {seed}"] if seed else []
    return f"`{' '.join(words)}`"


def read_source_run(place: str | Path, *, experiment: str, seed: int | None, command: str) -> RunRecord:
    """Read the record of a completed training run that another run starts from.

    Args:
        place: its executed notebook or run folder.
        experiment: what it must be a run of.
        seed: the seed that it must have; None: any.
        command: makes it; from `source_run_command`.

    Raises:
        InputError: it is missing, unfinished, failed, diverged, of another experiment or seed, or has no best weights.
    """
    notebook = notebook_of(place)
    where = f"source_run: {str(notebook)!r}"
    try:
        record = read_record(notebook)
    except RecordError as error:
        if notebook.exists():
            raise InputError(f"source_run: {error}") from None
        raise InputError(f"{where}: there is no such run of {experiment}; run it first: {command}") from None
    if record.origin == "imported":
        raise InputError(f"{where}: is imported from an earlier project, whose weights are not loaded; run it here: {command}")
    if record.kind != "run" or record.experiment != experiment:
        raise InputError(f"{where}: is a run of {record.experiment}, not of {experiment}; change source_experiment or source_run")
    if seed is not None and record.seed != seed:
        raise InputError(f"{where}: has the seed {record.seed}, not {seed}; change seed or source_run")
    if record.status != "completed":
        way_out = _WAY_OUT[record.status].format(command=command)
        why = f" ({record.reason})" if record.reason else ""
        raise InputError(f"{where}: is {record.status}, not completed{why}; {way_out}")
    if "best" not in record.checkpoints:  # a finished run is kept without --force
        again = f"{command.removesuffix('`')} --force`"
        raise InputError(f"{where}: its record names no weights of the best epoch; run it again: {again}")
    return record


def best_weights(place: str | Path, record: RunRecord) -> Path:
    """The file with the weights of a run's best validation epoch.

    Args:
        place: the run's executed notebook or run folder.
        record: the run's record.

    Raises:
        InputError: the file is not there.
    """
    notebook = notebook_of(place)
    files = [folder / "checkpoints" / "best.pt" for folder in run_folders(notebook, record)]
    for file in files:
        if file.is_file():
            return file
    raise InputError(
        f"source_run: {str(notebook)!r}: {files[0]} is not there; copy the run's folder beside its notebook, or run it again "
        "with --force (a finished run is kept without it)"
    )
