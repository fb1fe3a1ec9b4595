"""The journal of a running run: where truth lives until the notebook is written, and its projection into the notebook.

The journal is ``journal.jsonl`` in the run folder: one JSON object a line, appended and flushed to disk. Folding its events gives
the record. The notebook shows the same record in one display that is updated by its id; before training begins `announce` shows
it, so that a file that was last written then holds a record, which names its journal. The training process holds ``run.lock``;
the operating system releases it when the process dies, however it dies.
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
    """Append a line to a file and wait until it is on disk: all of it or none of it.

    A torn line at the end (a process died while writing) keeps to itself: the new line begins on a line of its own.

    Args:
        path: made when it is not there.
        line: one line of text, without its end.

    Raises:
        OSError: it cannot be written; the file is as it was.
    """
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and (file.seek(size - 1), file.read(1))[1] != b"\n"
        rest = memoryview((b"\n" if torn else b"") + line.encode("utf-8") + b"\n")
        try:
            while rest:  # on a disk that is nearly full a part of it is written, without an error
                rest = rest[file.write(rest) or 0 :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def is_live(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder.

    Args:
        folder: the run folder; it need not exist.
    """
    return is_locked(folder / LOCK)


def is_executing(folder: Path) -> bool:
    """Whether a run is being executed: a process trains in its run folder, or a command is starting or ending it.

    Args:
        folder: the run folder; it need not exist.
    """
    return is_live(folder) or is_locked(folder / RUNNER_LOCK)


def is_locked(lock_file: Path) -> bool:
    """Whether a living process holds a lock; a dead one's is released by the operating system, however it died.

    Nothing is made, truncated or written: `filelock` would do all three to a file that a record merely names.

    Args:
        lock_file: the lock's file; it need not exist.
    """
    import fcntl

    try:
        if not lock_file.is_file():
            return False
        handle = os.open(lock_file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False  # not to be read, or no file name at all: nobody trains there
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
    """Fold the events of a run folder's journal into its record; None when there is no readable journal.

    A torn last line (the process died while writing) is passed over, and so is an event that is damaged. Between the marks of a
    merge conflict are the events of two runs: they are not folded, nor is what follows until a run begins anew.

    Args:
        folder: the run folder.
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
    """Refuse to run into a folder whose run has ended: a lab record is not overwritten by running its cells again.

    A command that executes runs has decided that before, and holds the folder. The record is shown once more: running all cells
    has emptied the cell that held it.

    Args:
        folder: a run folder; it need not exist.

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
    """Show a record in the running notebook, or update what is shown; the display's handle. Outside a notebook: nothing."""
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
    """Add the row of an epoch: it takes the place of that epoch and of all later ones; a damaged row is passed over."""
    epoch = row.get("epoch") if isinstance(row, dict) else None
    if isinstance(row, dict) and isinstance(epoch, int):
        for later in [known for known in rows if known >= epoch]:
            del rows[later]
        rows[epoch] = row


def summary_line(record: RunRecord) -> str:
    """A record on one line, as readers without our MIME type see it.

    Args:
        record: the record.
    """
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
    """Show a record in the notebook before training begins; nothing outside a notebook.

    Papermill saves a notebook after each cell, but within a long one only now and then: whatever ends it early in the training
    cell leaves this record, and with it the way to the journal. The journal's own display takes its place.

    Args:
        record: as it is known before training.
        folder: the run folder that the journal will be in.
    """
    handle = _display(record.model_copy(update={"run_folder": str(from_home(folder))}))
    if handle is not None:
        _announced[str(record.provenance.get("run_id"))] = handle


class RunJournal:
    """Writes a run's journal and keeps the notebook's display of the record current.

    Use as a context manager: on entering it takes the run folder's lock, on leaving it releases it.

    Args:
        folder: the run folder; made when it is not there.
        record: the record as it is known at the start.
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
        """Say how it ended when nobody has said so yet, then release the lock."""
        try:
            if kind is not None and self.record.status == "running":
                interrupted = issubclass(kind, KeyboardInterrupt)
                reason = "interrupted by the user" if interrupted else f"{kind.__name__}: {error}".splitlines()[0][:500]
                end = {"status": "interrupted" if interrupted else "failed", "reason": reason, "finished": now()}
                try:
                    self.update(**end)
                except JournalError:  # then the notebook alone says it
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

        Args:
            **fields: attributes of `RunRecord`, as their types or as plain values.

        Raises:
            JournalError: the journal cannot be written; the record is as it was, so that nothing counts that is not on disk.
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
        """Add an epoch's row.

        Args:
            row: the epoch's figures.
            progress: how far the run has come: ``epoch``, ``epochs``, ``step``.
        """
        self.record.history = [old for old in self.record.history if old.epoch < row.epoch] + [row]
        self.record.progress = progress
        self._append({"epoch": row.model_dump(mode="python"), "set": {"progress": progress}})
        self.publish()

    def publish(self) -> None:
        """Show the record in the notebook, or update what is shown; nothing outside a notebook."""
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
        """Append one event and wait until it is on disk.

        Raises:
            JournalError: it cannot be written; what the journal held before is unharmed.
        """
        line = json.dumps(json_safe({"time": now(), **event}), separators=(",", ":"), allow_nan=False)
        try:
            append_line(self.folder / JOURNAL, line)
        except OSError as error:
            why = error.strerror or str(error)
            raise JournalError(
                f"{self.folder / JOURNAL}: cannot be written ({why}); make room or mend permissions, the same command continues"
            ) from None
