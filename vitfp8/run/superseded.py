"""Lab records that a repeated run or import replaces: moved aside, never deleted."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

from vitfp8.record import RUNNER_LOCK, SUPERSEDED


def move_aside(output: Path) -> None:
    """Move a lab record, its run log and what is in its run folder into ``superseded/``, under the present time.

    The run's lock stays where it is: with whoever holds it.

    Args:
        output: the lab record, ``executed/<study>/<run>.ipynb``; it need not exist.
    """
    place = output.parent / SUPERSEDED
    place.mkdir(parents=True, exist_ok=True)
    # a clock that was set back gives a name twice
    stamp, count = datetime.now().strftime("%Y%m%d-%H%M%S"), 1
    while any(place.glob(f"{output.stem}@{stamp}*")):
        count += 1
        stamp = f"{stamp.split('.')[0]}.{count}"
    name, folder = f"{output.stem}@{stamp}", output.with_suffix("")
    for path in (output, output.with_name(output.stem + ".log.jsonl")):
        if path.exists():
            shutil.move(path, place / (name + path.name.removeprefix(output.stem)))
    content = [path for path in folder.iterdir() if path.name != RUNNER_LOCK] if folder.is_dir() else []
    if content:
        (place / name).mkdir()
        for path in content:
            shutil.move(path, place / name / path.name)  # the run folder may be on a disk of its own
