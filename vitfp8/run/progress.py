"""A study's progress as another terminal sees it: from the records, and from what its running batches plan.

While a batch runs it keeps ``.batch-<pid>.json`` in the study's folder and holds the lock beside it. A file whose lock is free is
left over from a killed batch and is ignored.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from vitfp8.errors import InputError, suggest
from vitfp8.files import write_atomically
from vitfp8.record import JOURNAL, Remark, RunRecord, is_live, is_locked, load_records, now, remarks_of
from vitfp8.run.locate import executed_folder
from vitfp8.run.runner import Batch
from vitfp8.run.study_file import check_study_name

_PATTERN = ".batch-*.json"

#: The time of an epoch is estimated from the median of this many latest ones.
_RECENT_EPOCHS = 5


class BatchFile:
    """The file in which a running batch tells other terminals how it stands; use as a context manager.

    Args:
        folder: of the study; created if missing.
        seconds: lab record → expected seconds of its run; None: not known.
    """

    def __init__(self, folder: Path, seconds: Mapping[Path, float | None]) -> None:
        self._seconds = seconds
        self._path = folder / f".batch-{os.getpid()}.json"
        self._started = now()
        self._said: object = None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._path.with_suffix(".lock"))

    def __enter__(self) -> BatchFile:
        """Take the lock, and remove what killed batches left."""
        for path in self._path.parent.glob(_PATTERN):
            if not is_locked(path.with_suffix(".lock")):
                _remove(path)
        self._lock.acquire(timeout=5)
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lock and remove the file."""
        self._lock.release()
        _remove(self._path)

    def write(self, batch: Batch) -> None:
        """Write how the batch stands if that has changed; a full disk is ignored, since the batch matters more."""
        runs = []
        for run in batch.planned:
            result = batch.results.get(run.output)
            status = "running" if batch.current is run else result.status if result else "waiting"
            runs.append({"run": run.output.stem, "status": status, "seconds": self._seconds.get(run.output)})
        said = (runs, batch.message.partition(",")[0])
        if said == self._said:
            return
        with suppress(OSError):
            write_atomically(self._path, json.dumps({"started": self._started, "message": said[1], "runs": runs}))
            self._said = said


def _remove(path: Path) -> None:
    """Remove a batch's file and its lock file."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)


def _live_batches(folder: Path) -> list[dict[str, Any]]:
    """The contents of the files of the batches that run in a study's folder now."""
    said = []
    for path in sorted(folder.glob(_PATTERN)):
        if is_locked(path.with_suffix(".lock")):
            with suppress(OSError, ValueError, RecursionError):
                content = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(content, dict) and isinstance(content.get("runs"), list):
                    said.append(content)
    return said


@dataclass(frozen=True)
class RunProgress:
    """The progress of one run."""

    run: str  # its name
    status: str  # the record's, or waiting, or starting
    record: RunRecord | None  # None while it waits for the first time
    seconds_left: float | None  # None: not known, or it has ended
    remarks: Sequence[Remark] = ()


@dataclass(frozen=True)
class StudyProgress:
    """The progress of a study."""

    runs: Sequence[RunProgress]  # those with a record, then those that a running batch has planned
    seconds_left: float | None  # until the running batches end; None: not known
    message: str  # what a batch waits for
    batches: int  # how many run now
    problems: Sequence[str]  # one line for each file that cannot be read


def latest_study(name: str | None) -> Path:
    """The folder of the named study, or of the one whose runs changed last.

    Raises:
        InputError: there is no such study, or none at all.
    """
    executed = executed_folder()
    there = [path for path in executed.glob("*") if path.is_dir()] if executed.is_dir() else []
    if name is not None:
        if not (executed / check_study_name(name)).is_dir():
            known = suggest(name, sorted(path.name for path in there)) if there else "there are none yet"
            raise InputError(f"study: {name!r}: there is no {executed / name}; {known}")
        return executed / name
    if not there:
        raise InputError(f"study: there is nothing in {executed} yet; `vitfp8 run --preset digits` is a start")
    return max(there, key=_changed)


def _changed(folder: Path) -> float:
    """When a study's journals or batches last changed, in seconds since the epoch."""
    times = [folder.stat().st_mtime]
    for path in [*folder.glob(f"*/{JOURNAL}"), *folder.glob(_PATTERN)]:
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def study_progress(folder: Path) -> StudyProgress:
    """The progress of the study in ``executed/<study>``; changes nothing.

    Raises:
        InputError: there is no such folder.
    """
    found, problems = load_records(folder)
    batches = _live_batches(folder)
    expected = {str(row.get("run")): row for batch in batches for row in batch["runs"] if isinstance(row, dict)}
    runs: list[RunProgress] = []
    for path, record in found:
        planned = expected.pop(path.stem, None)
        noted = remarks_of(path, record)
        if record.status == "running" and (planned is None or is_live(path.with_suffix(""))):
            runs.append(RunProgress(path.stem, "running", record, _seconds_left(record, path.with_suffix("")), noted))
        elif planned is not None and planned.get("status") == "waiting":
            runs.append(RunProgress(path.stem, "waiting", record, _number(planned.get("seconds")), noted))
        elif planned is not None and planned.get("status") == "running":
            runs.append(RunProgress(path.stem, "starting", record, _number(planned.get("seconds")), noted))
        else:
            runs.append(RunProgress(path.stem, record.status, record, None, noted))
    for name, row in expected.items():
        status = "starting" if row.get("status") == "running" else str(row.get("status"))
        runs.append(RunProgress(name, status, None, _number(row.get("seconds")) if status in ("waiting", "starting") else None))
    ahead = [run for run in runs if run.status in ("running", "waiting", "starting")]
    left = [run.seconds_left for run in ahead]
    total = None if not ahead or None in left else sum(seconds for seconds in left if seconds is not None)
    message = "; ".join(str(batch.get("message")) for batch in batches if batch.get("message"))
    return StudyProgress(runs, total, message, len(batches), problems)


def _number(value: object) -> float | None:
    """A value that another process wrote, if it is a number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e12:
        return None
    return float(value)


def _seconds_left(record: RunRecord, folder: Path) -> float | None:
    """Seconds left of a running training, from its latest epochs and the time since the last one ended."""
    done = [row.epoch_seconds for row in record.history if row.epoch_seconds is not None][-_RECENT_EPOCHS:]
    epochs, epoch = record.progress.get("epochs"), record.progress.get("epoch")
    if not done or not isinstance(epochs, int) or not isinstance(epoch, int) or not 0 <= epoch <= epochs < 2**31:
        return None
    each = statistics.median(done)
    since = 0.0
    with suppress(OSError):
        since = min(max(time.time() - (folder / JOURNAL).stat().st_mtime, 0.0), each)
    return max((epochs - epoch) * each - since, 0.0)
