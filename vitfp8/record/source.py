"""The run that another one starts from: found, and refused when it is none to start from. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from vitfp8.errors import InputError
from vitfp8.home import run_command
from vitfp8.record.reading import RecordError, read_record, run_folders
from vitfp8.record.schema import RunRecord

#: Status of a source that is no source → what to do about it.
_WAY_OUT = {
    "running": "wait for it",
    "interrupted": "finish it first: {command}",
    "failed": "run it first: {command}",
    "diverged": "a diverged model is not quantised; take another seed or another source_run",
}


def source_command(
    experiment: str, *, variant: str = "", seed: int = 0, study: str | None = None, preset: str | None = None
) -> str:
    """The command that makes a source run.

    Args:
        experiment: of the source.
        variant: of the source.
        seed: of the source.
        study: name of the study, None where it is not known.
        preset: the preset; empty where none is used, None where it is not known.
    """
    if preset is None:
        words = [run_command(study, experiment) if study else f"vitfp8 run {experiment} --preset PRESET"]
    else:
        words = ["vitfp8 run", experiment]
        words += [f"--preset {preset}"] if preset else []
        words += [f"--study {study}"] if study is not None and study != (preset or "paper") else []
    if variant:
        words.append(f"-p variant {variant}")
    if seed:
        words.append(f"-p seed {seed}")
    return f"`{' '.join(words)}`"


def _forced(command: str) -> str:
    """The command that makes a source run although it is finished; without ``--force`` it would be kept."""
    return f"{command.removesuffix('`')} --force`"


def notebook_of(place: str | Path) -> Path:
    """The executed notebook that a notebook or run folder means.

    Args:
        place: ``executed/<study>/<run>.ipynb`` or ``executed/<study>/<run>``.
    """
    place = Path(place)
    return place if place.suffix == ".ipynb" else place.with_name(place.name + ".ipynb")


def read_source(place: str | Path, *, experiment: str, seed: int | None, command: str) -> RunRecord:
    """Read the record of a completed training run that another run starts from.

    Args:
        place: its executed notebook or run folder.
        experiment: what it must be a run of.
        seed: which it must have; None: any.
        command: what makes it, for whoever has none.

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
    if "best" not in record.checkpoints:
        raise InputError(f"{where}: its record names no weights of the best epoch; run it again: {_forced(command)}")
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
    folders = run_folders(notebook, record)
    for folder in folders:
        if (folder / "checkpoints" / "best.pt").is_file():
            return folder / "checkpoints" / "best.pt"
    raise InputError(
        f"source_run: {str(notebook)!r}: {folders[0] / 'checkpoints' / 'best.pt'} is not there; copy the run's folder beside its "
        "notebook, or run it again with --force (a finished run is kept without it)"
    )
