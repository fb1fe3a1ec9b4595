"""The study's home: the folder with ``executed/``, ``report/`` and ``runs/``, the same for a terminal and for a notebook.

A terminal works in the project's folder, JupyterLab in that of the open notebook. So that both mean the same place, a relative
path of a study is meant from its home: the nearest folder, from the working directory upwards, that has ``executed/``, or has
``params/`` and ``notebooks/``; without one the working directory itself. An absolute path is taken as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vitfp8.errors import InputError

PACKAGE = Path(__file__).resolve().parent


def study_home() -> Path:
    """The study's home, absolute.

    Raises:
        InputError: the working directory has been deleted.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise InputError("the working directory is not there any more; change to another folder") from None
    for folder in (here, *here.parents):
        if (folder / "executed").is_dir() or ((folder / "params").is_dir() and (folder / "notebooks").is_dir()):
            return folder
    return here


def at_home(path: str | Path) -> Path:
    """Where a path of a study is: a relative one is meant from the study's home.

    Args:
        path: e.g. ``executed/digits``.

    Returns:
        The path as it is where it is absolute or the working directory is the home, else an absolute one.
    """
    path, home = Path(path), study_home()
    return path if path.is_absolute() or home == Path.cwd() else home / path


def from_home(path: str | Path) -> Path:
    """A path as records and parameters name it: from the study's home, whatever the working directory.

    Args:
        path: as `at_home` gives it.
    """
    path, home = Path(path), study_home()
    if home == Path.cwd() or not path.is_relative_to(home):
        return path
    return path.relative_to(home)


def places() -> list[Path]:
    """Folders that may hold ``notebooks/`` and ``params/``, nearest first."""
    return list(dict.fromkeys([Path.cwd(), study_home(), PACKAGE.parent, Path(sys.prefix) / "share" / "vitfp8"]))


def run_command(study: str, *experiments: str) -> str:
    """The command that makes the runs of a study, or some of them, and nothing else.

    A study without a file has a preset of its own name, as ``vitfp8 run --preset`` gives it, or one that only the user knows.

    Args:
        study: its name.
        experiments: which; none: those of the study.
    """
    words = ["vitfp8 run", *experiments]
    if any((place / "params" / "studies" / f"{study}.yaml").is_file() for place in places()):
        words += [] if study == "paper" else [f"--study {study}"]
    elif any((place / "params" / "presets" / f"{study}.yaml").is_file() for place in places()):
        words.append(f"--preset {study}")
    else:
        words.append(f"--study {study} --preset PRESET")
    return " ".join(words)
