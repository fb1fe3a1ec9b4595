"""Reading records back: from one notebook, or from a study's folder. Needs neither torch nor nbformat.

A notebook's record is completed by what became known afterwards. While its status is ``running``, the journal is newer than the
notebook. A run is running while the training process or the command that executes it holds its lock, and interrupted otherwise.
The run log beside the notebook holds what the runner found (a kernel that died) and dated notes.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from vitfp8.catalog import EXPERIMENTS, catalogue_order
from vitfp8.errors import InputError
from vitfp8.home import at_home, study_home
from vitfp8.params import assignments, why_no_text
from vitfp8.record.codec import RECORD_MIME, LaterVersionError
from vitfp8.record.journal import (
    JOURNAL,
    RUNNER_LOCK,
    append_line,
    is_executing,
    is_live,
    is_locked,
    record_from_journal,
)
from vitfp8.record.schema import RunRecord, validated


class RecordError(InputError):
    """A notebook's record is missing or damaged; the message names the file."""


class UnreadHereError(RecordError):
    """A notebook may hold a whole record, but not one that can be read here; running it again is not the way out."""


class NotARunError(RecordError):
    """A notebook is marked as something else than a run, e.g. an analysis."""


#: A larger file is refused, since reading it would fill the memory: an executed notebook has less than a megabyte.
LARGEST_NOTEBOOK_BYTES = 200 * 1024 * 1024

#: Notebook metadata key that tells "not a run" (an analysis) from "a run whose record is missing".
MARKER = "vitfp8"


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook as JSON; its ``cells`` are a list.

    Raises:
        RecordError: the file is missing, or is not a notebook.
    """
    try:
        if path.stat().st_size > LARGEST_NOTEBOOK_BYTES:
            raise RecordError(f"{path}: is larger than an executed notebook can be; is it another file?")
        content = path.read_bytes()
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no such notebook; `vitfp8 runs` lists what there is") from None
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RecordError(f"{path}: is not a file name") from None
    try:
        notebook = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        if why := why_no_text(content):
            raise UnreadHereError(f"{path}: {why}") from None
        raise RecordError(f"{path}: {_why_no_notebook(content)}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise RecordError(f"{path}: is not a notebook; run it again")
    return notebook


def _why_no_notebook(content: bytes) -> str:
    """Why a text is not JSON, with the way out."""
    if not content.strip():
        return "is empty; take it back from Git or a backup, or run it again"
    if content.startswith(b"\xef\xbb\xbf"):
        return "begins with a byte-order mark, which no notebook does; save it as UTF-8 without one"
    return "is not a notebook (no valid JSON: cut off or damaged); take it back from Git or a backup, or run it again"


def payload_of(path: Path, notebook: dict[str, Any]) -> dict[str, Any]:
    """The payload of the last record in a notebook.

    Args:
        path: of the notebook, for errors.
        notebook: what `read_notebook` gave.

    Raises:
        RecordError: it holds no record; `NotARunError` if it is marked as not a run.
    """
    for cell in reversed(notebook["cells"]):
        outputs = cell.get("outputs") if isinstance(cell, dict) else None
        for output in reversed(outputs) if isinstance(outputs, list) else ():
            data = output.get("data") if isinstance(output, dict) else None
            if isinstance(data, dict) and RECORD_MIME in data:
                payload = data[RECORD_MIME]
                if not isinstance(payload, dict):
                    raise RecordError(f"{path}: its record is damaged (a {type(payload).__name__}, not an object); run it again")
                return payload  # whatever the marker says: a notebook with a record is a run
    metadata = notebook.get("metadata")
    marker = metadata.get(MARKER) if isinstance(metadata, dict) else None
    if isinstance(marker, dict) and isinstance(marker.get("kind"), str) and marker["kind"] != "run":
        raise NotARunError(f"{path}: is marked as not a run (an analysis); it has no record")
    raise RecordError(f"{path}: holds no record: it ended before its record began, or is not a run; run it again")


def written_record(path: Path, notebook: dict[str, Any] | None = None) -> RunRecord:
    """The record that a notebook itself holds.

    Args:
        path: of the notebook.
        notebook: its content, if it has been read.

    Raises:
        RecordError: one line that names the file.
    """
    payload = payload_of(path, read_notebook(path) if notebook is None else notebook)
    try:
        return RunRecord.from_payload(payload)
    except LaterVersionError as error:
        raise UnreadHereError(f"{path}: its record cannot be read: {error}") from None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise RecordError(f"{path}: its record cannot be read ({why}); run it again") from None


def says_its_end(path: Path) -> bool:
    """Whether a notebook itself says how its run ended, not its journal alone: it was written to the end."""
    try:
        return payload_of(path, read_notebook(path)).get("status") != "running"
    except RecordError:
        return False


def run_log_of(path: Path) -> Path:
    """The run log beside a notebook."""
    return path.with_name(path.name.removesuffix(".ipynb") + ".log.jsonl")


def run_log(path: Path) -> list[dict[str, Any]]:
    """Events of the run log beside a notebook; torn and damaged lines are passed over."""
    try:
        lines = run_log_of(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    events = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict)]


def append_to_run_log(path: Path, event: dict[str, Any]) -> None:
    """Append one event to the run log beside a notebook.

    Args:
        path: the notebook, which may not exist yet.
        event: JSON-able: ``time`` (ISO 8601), ``event`` (``failed``, ``interrupted``, ``note``) and what there is to say. The end
            of an execution is written with the execution that ended.

    Raises:
        OSError: the run log cannot be written; it is as it was.
    """
    if event.get("event") in ("failed", "interrupted"):
        record: RunRecord | None
        try:
            record = written_record(path)
        except RecordError:
            record = record_from_journal(path.with_suffix(""))
        if record is not None:
            event = {**event, "execution": execution_of(record)}
    append_line(run_log_of(path), json.dumps(event, ensure_ascii=False))


def execution_of(record: RunRecord) -> str | None:
    """What tells the executions of a run from each other."""
    return record.provenance.get("run_id") or record.started


def is_about(event: dict[str, Any], record: RunRecord) -> bool:
    """Whether an event of the run log is about this execution and not about an earlier one.

    Events name their execution, since clocks jump. Those of early versions do not; their time decides.
    """
    if "execution" in event:
        return bool(event["execution"] == execution_of(record))
    try:
        return record.started is None or datetime.fromisoformat(str(event["time"])) >= datetime.fromisoformat(record.started)
    except (KeyError, ValueError, TypeError):  # no time, or no zone
        return str(event.get("time", "")) >= (record.started or "")


def read_record(path: str | Path, *, lock_is_ours: bool = False) -> RunRecord:
    """Read the record of an executed notebook, completed by its journal and run log.

    A notebook that papermill began to execute, and that ended before it held a record, counts as well: its parameter cells tell
    what it was to do.

    Args:
        path: ``executed/<study>/<run>.ipynb``.
        lock_is_ours: whether the calling process holds the run's `RUNNER_LOCK`, which then does not tell that it is running.

    Raises:
        RecordError: one line that names the file, when there is no readable record.
    """
    path = Path(path) if os.path.exists(path) else at_home(path)  # noqa: PTH110 (takes what is not a file name at all)
    return _completed(path, lock_is_ours=lock_is_ours)


def _completed(path: Path, *, lock_is_ours: bool = False) -> RunRecord:
    """`read_record`, of a path that is taken as it is."""
    folder = path.with_suffix("")
    notebook = None
    try:
        notebook = read_notebook(path)
        record = written_record(path, notebook)
    except RecordError:
        found = record_from_journal(folder) or (_unrecorded(notebook) if notebook else None)
        if found is None:
            raise
        record = found
    places = run_folders(path, record)
    if record.status == "running":
        record = next((journal for place in places if (journal := _own_journal(place, record, folder)) is not None), record)
    executing = any(is_live(place) for place in places) or (not lock_is_ours and is_locked(folder / RUNNER_LOCK))
    if executing and record.status in ("running", "interrupted", "failed"):  # an earlier attempt may have ended otherwise
        record.status, record.reason = "running", None
    elif not executing and record.status == "running":
        record.status, record.reason = "interrupted", record.reason or _why_interrupted(record, folder)
    for event in run_log(path):
        if event.get("event") == "note":
            record.notes.append({key: event.get(key) for key in ("time", "text")})
        elif executing or not is_about(event, record):
            continue
        elif event.get("event") == "failed" and record.status in ("running", "interrupted"):
            record.status, record.reason = "failed", str(event.get("reason", ""))
        elif event.get("event") == "interrupted" and record.status == "interrupted":
            record.reason = str(event.get("reason", ""))
    return record


def _own_journal(place: Path, record: RunRecord, beside: Path) -> RunRecord | None:
    """The record in a run folder's journal, if it is of the same execution."""
    journal = record_from_journal(place)
    execution = record.provenance.get("run_id")
    if journal is None or journal.provenance.get("run_id") != execution or (execution is None and place != beside):
        return None
    return journal


def _why_interrupted(record: RunRecord, beside: Path) -> str:
    """One line for a run that no process executes, with the way to go on where no runner knows its run folder."""
    reason = "no process holds the run's lock any more"
    if not record.run_folder or Path(record.run_folder).name == beside.name or not record.progress.get("epoch"):
        return reason
    return f"{reason}; papermill with -p run_folder {record.run_folder} continues it"


def _unrecorded(notebook: dict[str, Any]) -> RunRecord | None:
    """The record of a notebook that papermill began to execute and that ended before it held one; None for any other."""
    try:
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        values: dict[str, Any] = {}
        for cell in cells:
            if {"parameters", "injected-parameters"} & set(cell["metadata"].get("tags", ())):
                values |= assignments("".join(cell["source"])) or {}
        errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
        record = validated(
            {
                "kind": "quantization" if EXPERIMENTS[values["experiment"]].source else "run",
                "parameters": values,
                "run_folder": values["run_folder"],
                "started": str(notebook["metadata"]["papermill"]["start_time"]),
                "progress": {"epoch": 0, **({"epochs": values["epochs"]} if "epochs" in values else {})},
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    record.reason = "its training had not begun: it was ended, or papermill is still preparing it"
    if errors:
        record.status = "failed"
        record.reason = f"{errors[0].get('ename')}: {errors[0].get('evalue')}".splitlines()[0][:500]
    return record


def run_folders(notebook: Path, record: RunRecord) -> list[Path]:
    """Where the run folder of a record may be: beside its notebook, then where the record says.

    A folder beside the notebook that holds a journal is the run's own: what the record names may be the original of a copy. A
    record from elsewhere is data: the place that it names is followed only below the notebook's folder, the working directory
    or the study's home, where a notebook that was executed without a runner has its run folder.
    """
    folders = [notebook.with_name(notebook.name.removesuffix(".ipynb"))]
    if record.run_folder and not (folders[0] / JOURNAL).is_file():
        with suppress(OSError, ValueError, RuntimeError):  # not a file name here: the record came from another system
            tops = [study_home(), Path.cwd(), notebook.parent.resolve()]
            stated = dict.fromkeys((top / record.run_folder).resolve() for top in tops)
            folders += [place for place in stated if any(place.is_relative_to(top) for top in tops)]
    return folders


def load_records(folder: str | Path) -> tuple[list[tuple[Path, RunRecord]], list[str]]:
    """Every record of a study's folder, in the catalogue's order, and one line for each file that cannot be read.

    Each notebook is read once. A run that has a journal and no notebook yet counts as well.

    Args:
        folder: ``executed/<study>``.

    Returns:
        ``(path of the notebook, record)`` pairs, and problems, each naming its file.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(folder) if Path(folder).is_dir() else at_home(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of runs; `vitfp8 runs` lists the studies")
    found: list[tuple[Path, RunRecord]] = []
    problems: list[str] = []
    notebooks = set(folder.glob("*.ipynb"))
    for path in sorted(notebooks):
        try:
            found.append((path, _completed(path)))
        except NotARunError:
            continue
        except RecordError as error:
            problems.append(str(error))
    for journal in sorted(folder.glob(f"*/{JOURNAL}")):
        path = journal.parent.with_name(f"{journal.parent.name}.ipynb")
        if path in notebooks:
            continue
        try:
            found.append((path, _completed(path)))
        except RecordError:
            if not is_executing(journal.parent):  # else it may be about to write its first line
                why = _why_unread(journal) or "holds no readable record, and there is no notebook beside its folder; run it again"
                problems.append(f"{journal}: {why}")
    for log in sorted(folder.glob("*.log.jsonl")):
        if (why_not := _why_unread(log)) is not None:
            problems.append(f"{log}: {why_not}; until then what it says is not known")
    found.sort(key=lambda pair: (catalogue_order(pair[1].experiment), pair[1].variant, pair[1].seed or 0))
    return found, problems


def _why_unread(path: Path) -> str | None:
    """Why a journal or run log is not lines of JSON, with the way out; None if it is, or nothing is known."""
    with suppress(OSError):
        return why_no_text(path.read_bytes(), appended=True)
    return None
