"""Where notebooks, parameter files and results are: at the study's home, in the checkout, or where they were installed."""

from __future__ import annotations

import re
from pathlib import Path

from vitfp8.errors import InputError, suggest
from vitfp8.home import at_home, places


def executed_folder() -> Path:
    """Where executed notebooks go: ``executed/`` at the study's home; see `vitfp8.home`."""
    return at_home("executed")


def report_folder() -> Path:
    """Where reports go: ``report/`` at the study's home."""
    return at_home("report")


def find_file(name: str, *, what: str) -> Path:
    """The nearest file of that name.

    Args:
        name: relative to a project's top, e.g. ``params/BaseFP32.yaml``.
        what: what the user asked for, as an error line begins, e.g. ``experiment: 'BaseFP23'``.

    Returns:
        Its path, relative to the working directory where it lies below it.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    for place in places():
        path = place / name
        if path.is_file():
            return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    wanted = Path(name)
    known = sorted({path.stem for place in places() for path in (place / wanted.parent).glob(f"*{wanted.suffix}")})
    raise InputError(f"{what}: there is no {name}; {suggest(wanted.stem, known) if known else 'run it in the project folder'}")


def template(name: str) -> Path:
    """The template notebook of that name, e.g. ``train.ipynb``."""
    return find_file(f"notebooks/{name}", what=f"notebook: {name!r}")


def parameter_file(experiment: str) -> Path:
    """The parameter file of an experiment.

    Args:
        experiment: its name in the catalogue.
    """
    return find_file(f"params/{experiment}.yaml", what=f"experiment: {experiment!r}")


def preset_file(preset: str) -> Path:
    """The file of a preset: its name, or a path to a YAML file of one's own.

    Args:
        preset: e.g. ``digits``, or ``my/preset.yaml``.
    """
    if preset.endswith((".yaml", ".yml")):
        return Path(preset)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", preset):
        raise InputError(f"--preset: {preset!r}: is neither the name of a preset nor a file that ends in .yaml; check it")
    return find_file(f"params/presets/{preset}.yaml", what=f"--preset: {preset!r}")
