"""The journal of a running run: where truth lives until the notebook is written, and its projection into the notebook.

The journal is ``journal.jsonl`` in the run folder: one JSON object per line, appended and flushed to disk. Folding its events
gives the record. The notebook shows the same record in one display, which is updated by its id. `announce` shows it before
training begins, so that a notebook that is never saved again still names its journal. The training process holds ``run.lock``;
the operating system releases it however the process dies.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from vitfp8.errors import InputError
from vitfp8.home import from_home
from vitfp8.record.codec import RECORD_MIME, from_json, json_safe
from vitfp8.record.schema import EpochRow, RunRecord, now, validated

JOURNAL = "journal.jsonl"
LOCK = "run.lock"

#: In a run folder: held by the command that executes the run, from before its kernel starts until its notebook is written.
RUNNER_LOCK = "runner.lock"

#: Displays of announced records, by their execution, until a journal shows the record.
_announced: dict[str, Any] = {}


class JournalError(InputError):
    """A journal cannot be written; the message names the file."""


def append_line(path: Path, line: str) -> None:
    """Append one line to a file, which is created if missing, and wait until it is on disk: all of it or none of it.

    After a torn last line (a process died while writing) the new one begins on a line of its own.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and (file.seek(size - 1), file.read(1))[1] != b"\n"
        rest = memoryview((b"\n" if torn else b"") + line.encode("utf-8") + b"\n")
        try:
            while rest:  # a disk that is nearly full takes a part of it, without an error
                rest = rest[file.write(rest) or 0 :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def is_live(folder: Path) -> bool:
    """Whether a process trains in a run folder, which need not exist."""
    return is_locked(folder / LOCK)


def is_executing(folder: Path) -> bool:
    """Whether a process trains in a run folder, which need not exist, or a command is starting or ending its run."""
    return is_live(folder) or is_locked(folder / RUNNER_LOCK)


def is_locked(lock_file: Path) -> bool:
    """Whether a living process holds the lock of a file, which need not exist.

    Nothing is created, truncated or written: `filelock` would do all three to a file that a record merely names.
    """
    import fcntl

    try:
        if not lock_file.is_file():
            return False
        handle = os.open(lock_file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False  # unreadable, or not a file name at all
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # what `filelock` holds is exclusive
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks, e.g. a copy on a read-only medium
    finally:
        os.close(handle)  # and with it the shared lock


def record_from_journal(folder: Path) -> RunRecord | None:
    """The record that a run folder's journal gives when its events are folded; None when there is no readable journal.

    Torn and damaged lines are passed over. A merge conflict holds the events of two runs: neither they nor what follows is
    folded until a run begins anew.
    """
    try:
        lines = (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    values: dict[str, Any] | None = None
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line.startswith(("<" * 7, ">" * 7)):
            values = None
        try:
            event = from_json(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(event, dict):
            continue
        if isinstance(begin := event.get("begin"), dict):
            values, rows = begin, {}
            history = begin.get("history")
            for row in history if isinstance(history, list) else ():
                _lay_row(rows, row)
        elif values is not None:
            if isinstance(changes := event.get("set"), dict):
                values.update(changes)
            _lay_row(rows, event.get("epoch"))
    try:
        return validated({**values, "history": list(rows.values())}) if values else None
    except ValueError:
        return None


def refuse_finished(folder: Path) -> None:
    """Refuse a run folder whose run has ended: running its cells again does not overwrite a lab record.

    A command that executes runs has decided that already, and holds the folder. The record is shown once more, because running
    all cells has emptied the cell that held it.

    Raises:
        InputError: its run is completed or diverged.
    """
    record = record_from_journal(folder)
    if record is None or record.status not in ("completed", "diverged") or is_locked(folder / RUNNER_LOCK):
        return
    _display(record)
    raise InputError(
        f"run_folder: {str(folder)!r}: holds a finished run ({record.status}), which is not overwritten; to run anew, run all "
        "cells with run_folder = None or another folder; to see what this notebook showed, reload it from disk without saving"
    )


def _display(record: RunRecord, handle: Any = None) -> Any:
    """Show a record in the running notebook, or update what is shown; returns the display's handle, None outside a notebook."""
    from IPython.core.getipython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return None
    # text/plain goes with every update: without it HTML and LaTeX exports drop the output with a warning
    data = {RECORD_MIME: record.to_payload(), "text/plain": summary_line(record)}
    if handle is None:
        return display(data, raw=True, display_id=True)
    handle.update(data, raw=True)
    return handle


def _lay_row(rows: dict[int, dict[str, Any]], row: object) -> None:
    """Add the row of an epoch, which replaces that epoch and all later ones; a damaged row is passed over."""
    epoch = row.get("epoch") if isinstance(row, dict) else None
    if isinstance(row, dict) and isinstance(epoch, int):
        for later in [known for known in rows if known >= epoch]:
            del rows[later]
        rows[epoch] = row


def summary_line(record: RunRecord) -> str:
    """A record on one line, as readers without our MIME type see it."""
    parts = [f"vitfp8 record: {record.run_name}", record.status]
    if record.progress:
        unit = record.progress.get("unit", "epoch")
        parts.append(f"{unit} {record.progress.get('epoch', 0)} of {record.progress.get('epochs', '?')}")
    if record.metrics.test_acc is not None:
        parts.append(f"test accuracy {100 * record.metrics.test_acc:.2f} %")
    if record.reason:
        parts.append(record.reason)
    return " · ".join(parts)


def announce(record: RunRecord, folder: Path) -> None:
    """Show a record in the notebook, if there is one, before training begins.

    Papermill saves a notebook after each cell but seldom within one: a run that ends early in the training cell leaves this
    record, which names the journal. The journal's own display replaces it.

    Args:
        record: as it is known before training.
        folder: the run folder in which the journal will be.
    """
    handle = _display(record.model_copy(update={"run_folder": str(from_home(folder))}))
    if handle is not None:
        _announced[str(record.provenance.get("run_id"))] = handle


class RunJournal:
    """Writes a run's journal and keeps the notebook's display of the record current; use as a context manager.

    Making it takes the run folder's lock, leaving it releases the lock.

    Args:
        folder: the run folder; created if missing.
        record: as it is known at the start.
        show: whether to display the record in the running notebook.

    Raises:
        InputError: another process trains in this folder, its run has ended, or it cannot be written.
    """

    def __init__(self, folder: Path, record: RunRecord, *, show: bool = True) -> None:
        self.folder = folder
        self.record = record
        self._show = show
        self._handle: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / LOCK)
            self._lock.acquire(timeout=5)
        except Timeout:
            raise InputError(
                f"run_folder: {str(folder)!r}: another process trains in it; wait for it, or give another folder"
            ) from None
        except OSError as error:
            raise InputError(
                f"run_folder: {str(folder)!r}: cannot be written ({error.strerror}); check permissions and disk space"
            ) from None
        try:
            refuse_finished(folder)
        except InputError:
            self._lock.release()
            raise
        self.record.run_folder = str(from_home(folder))

    def __enter__(self) -> RunJournal:
        """Write the first event and show the record."""
        try:
            self._append({"begin": self.record.model_dump(mode="python")})
            self.publish()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Record how the run ended if that has not been recorded, then release the lock."""
        try:
            if kind is not None and self.record.status == "running":
                interrupted = issubclass(kind, KeyboardInterrupt)
                reason = "interrupted by the user" if interrupted else f"{kind.__name__}: {error}".splitlines()[0][:500]
                end = {"status": "interrupted" if interrupted else "failed", "reason": reason, "finished": now()}
                try:
                    self.update(**end)
                except JournalError:  # the notebook alone tells it
                    self.record = self.record.model_copy(update=end)
                    self.publish()
        finally:
            self._lock.release()
        if self._show and self.record.status == "interrupted":
            print(self._how_to_continue())

    def _how_to_continue(self) -> str:
        """Where the checkpoint of a stopped run is, and what continues it; one line."""
        checkpoint = self.folder / "checkpoints" / "last.pt"
        where = f"the checkpoint is {from_home(checkpoint)}" if checkpoint.is_file() else "no checkpoint was saved yet"
        if is_locked(self.folder / RUNNER_LOCK):
            return f"stopped: {where}; the same command continues"
        return f'stopped: {where}; to continue, run all cells with run_folder = "{from_home(self.folder)}"'

    def update(self, **fields: Any) -> None:
        """Set fields of the record, write them to the journal and show them.

        Raises:
            JournalError: the journal cannot be written; the record is as it was, since only what is on disk counts.
        """
        before = {key: getattr(self.record, key) for key in fields}
        for key, value in fields.items():
            setattr(self.record, key, value)
        try:
            self._append({"set": self.record.model_dump(mode="python", include=set(fields))})
        except JournalError:
            for key, value in before.items():
                setattr(self.record, key, value)
            raise
        self.publish()

    def epoch(self, row: EpochRow, progress: dict[str, Any]) -> None:
        """Add an epoch's row, and how far the run has come: ``epoch``, ``epochs``, ``step``."""
        self.record.history = [old for old in self.record.history if old.epoch < row.epoch] + [row]
        self.record.progress = progress
        self._append({"epoch": row.model_dump(mode="python"), "set": {"progress": progress}})
        self.publish()

    def publish(self) -> None:
        """Show the record in the notebook, if there is one, or update what is shown."""
        if not self._show:
            return
        first = self._handle is None
        self._handle = _display(self.record, self._handle)
        if first and (announced := _announced.pop(str(self.record.provenance.get("run_id")), None)) is not None:
            announced.update({"text/plain": f"run folder: {self.record.run_folder}"}, raw=True)  # one record in a notebook

    def summary_line(self) -> str:
        """The record on one line; see `summary_line`."""
        return summary_line(self.record)

    def _append(self, event: dict[str, Any]) -> None:
        """Append one event and wait until it is on disk; a `JournalError` leaves the journal as it was."""
        line = json.dumps(json_safe({"time": now(), **event}), separators=(",", ":"), allow_nan=False)
        try:
            append_line(self.folder / JOURNAL, line)
        except OSError as error:
            why = error.strerror or str(error)
            raise JournalError(
                f"{self.folder / JOURNAL}: cannot be written ({why}); make room or mend permissions, the same command continues"
            ) from None
