"""The run that a user means: a notebook, a run folder, or ``<study>/<run>``. Imports no torch."""

from __future__ import annotations

import difflib
from pathlib import Path

from vitfp8.errors import InputError
from vitfp8.home import at_home
from vitfp8.record.journal import JOURNAL
from vitfp8.record.source import notebook_of


def find_run(run: str | Path, *, executed: Path | None = None) -> Path:
    """The lab record of a run; it need not exist where the run folder's journal knows the run.

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
    there = runs_there(executed)
    wanted = text.removeprefix(f"{executed}/").removesuffix(".ipynb").rstrip("/")
    near = [name for name in there if name.partition("/")[2] == wanted] or difflib.get_close_matches(wanted, there, n=1)
    way_out = f"did you mean {near[0]}?" if near else "`vitfp8 runs` lists what there is"
    raise InputError(f"run: {text!r}: {what}; {way_out}")


def runs_there(executed: Path) -> list[str]:
    """Every ``<study>/<run>`` for which there is a notebook or a journal, sorted.

    Args:
        executed: the folder of the studies.
    """
    notebooks = {path.with_suffix("") for path in executed.glob("*/*.ipynb") if path.name != "analysis.ipynb"}
    journals = {path.parent for path in executed.glob(f"*/*/{JOURNAL}")}
    return sorted(path.relative_to(executed).as_posix() for path in notebooks | journals)
