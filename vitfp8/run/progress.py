"""How far a study has come, for whoever looks from another terminal: from the journals, and from what its batches say they plan.

A batch keeps ``.batch-<pid>.json`` in the study's folder while it runs, and holds the lock beside it; a file whose lock nobody
holds is left over from a killed batch and says nothing.
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
from vitfp8.files import write_whole
from vitfp8.record import Remark, RunRecord, is_live, is_locked, load_records, now, remarks_of
from vitfp8.run.locate import executed_folder
from vitfp8.run.runner import Batch
from vitfp8.run.study_file import check_study_name

_PATTERN = ".batch-*.json"

#: Epochs whose median tells how long the next ones take.
_RECENT_EPOCHS = 5


class BatchFile:
    """What a running batch tells other terminals; use as a context manager.

    Args:
        folder: the study's; made when it is not there.
        seconds: lab record → how long its run is expected to take; None: not known.
    """

    def __init__(self, folder: Path, seconds: Mapping[Path, float | None]) -> None:
        self._seconds = seconds
        self._path = folder / f".batch-{os.getpid()}.json"
        self._started = now()
        self._said: object = None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._path.with_suffix(".lock"))

    def __enter__(self) -> BatchFile:
        """Take the lock, and clear away what killed batches left."""
        for path in self._path.parent.glob(_PATTERN):
            if not is_locked(path.with_suffix(".lock")):
                _remove(path)
        self._lock.acquire(timeout=5)
        return self

    def __exit__(self, *error: object) -> None:
        """The batch is over: nothing is left behind."""
        self._lock.release()
        _remove(self._path)

    def write(self, batch: Batch) -> None:
        """Write how the batch stands, when that has changed; a full disk is passed over, since the batch matters more.

        Args:
            batch: as it stands.
        """
        runs = []
        for run in batch.planned:
            result = batch.results.get(run.output)
            status = "running" if batch.current is run else result.status if result else "waiting"
            runs.append({"run": run.output.stem, "status": status, "seconds": self._seconds.get(run.output)})
        said = (runs, batch.message.partition(",")[0])
        if said == self._said:
            return
        with suppress(OSError):
            write_whole(self._path, json.dumps({"started": self._started, "message": said[1], "runs": runs}))
            self._said = said


def _remove(path: Path) -> None:
    """Remove a batch's file and its lock."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)


def _live_batches(folder: Path) -> list[dict[str, Any]]:
    """What the batches say that run in a study's folder now."""
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
    """How far one run has come.

    Attributes:
        run: its name.
        status: the record's, or ``waiting``.
        record: None while it waits.
        seconds_left: until it ends; None: not known, or it has ended.
        remarks: what is noted of it.
    """

    run: str
    status: str
    record: RunRecord | None
    seconds_left: float | None
    remarks: Sequence[Remark] = ()


@dataclass(frozen=True)
class StudyProgress:
    """How far a study has come.

    Attributes:
        runs: those that there are, then those that a running batch has planned.
        seconds_left: until the running batches end; None: not known.
        message: what a batch waits for.
        batches: number of batches that run now.
        problems: one line for each notebook that cannot be read.
    """

    runs: Sequence[RunProgress]
    seconds_left: float | None
    message: str
    batches: int
    problems: Sequence[str]


def latest_study(name: str | None) -> Path:
    """The folder of a study; of the one whose runs changed last where none is named.

    Args:
        name: the study's, or None.

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
    """When a study's journals or batches changed last."""
    times = [folder.stat().st_mtime]
    for path in [*folder.glob("*/journal.jsonl"), *folder.glob(_PATTERN)]:
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def study_progress(folder: Path) -> StudyProgress:
    """Read how far a study has come; changes nothing.

    Args:
        folder: ``executed/<study>``.

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
    """A number that another process wrote, if it is one."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e12:
        return None
    return float(value)


def _seconds_left(record: RunRecord, folder: Path) -> float | None:
    """What is left of a running training, from its latest epochs and from how long the present one has taken so far."""
    done = [row.epoch_seconds for row in record.history if row.epoch_seconds is not None][-_RECENT_EPOCHS:]
    epochs, epoch = record.progress.get("epochs"), record.progress.get("epoch")
    if not done or not isinstance(epochs, int) or not isinstance(epoch, int) or not 0 <= epoch <= epochs < 2**31:
        return None
    each = statistics.median(done)
    since = 0.0
    with suppress(OSError):
        since = min(max(time.time() - (folder / "journal.jsonl").stat().st_mtime, 0.0), each)
    return max((epochs - epoch) * each - since, 0.0)
