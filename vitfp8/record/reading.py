"""Reading records back: from one notebook, or a study's folder as tables. Needs neither torch nor nbformat.

What the notebook says is completed by what became known afterwards: while a run's status is ``running``, its journal is newer
than the notebook. A run is running while the training process or the command that executes it holds its lock; without either it
is interrupted. The run log beside the notebook says what the runner found (a kernel that died) and holds dated notes.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    import pandas as pd


class RecordError(InputError):
    """A notebook's record is missing or damaged; the message names the file."""


class UnreadHereError(RecordError):
    """A notebook may well hold a whole record, but not one that can be read here; running it again is not the way out."""


#: An executed notebook has less than a megabyte; beyond this it is something else, and reading it would fill the memory.
LARGEST_NOTEBOOK_BYTES = 200 * 1024 * 1024

#: Notebook metadata key that tells "not a run" (an analysis) from "a run whose record is missing".
MARKER = "vitfp8"


def _read_notebook(path: Path) -> dict[str, Any]:
    """A notebook as JSON, its cells a list.

    Raises:
        RecordError: the file is missing, or no notebook.
    """
    try:
        if path.stat().st_size > LARGEST_NOTEBOOK_BYTES:
            raise RecordError(f"{path}: is larger than an executed notebook can be; is it another file?")
        content = path.read_bytes()
        notebook = json.loads(content.decode("utf-8"))
    except RecordError:
        raise
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no such notebook; `vitfp8 runs` lists what there is") from None
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        if why := why_no_text(content):
            raise UnreadHereError(f"{path}: {why}") from None
        raise RecordError(f"{path}: {_why_no_notebook(content)}") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise RecordError(f"{path}: is not a notebook; run it again")
    return notebook


def read_payload(path: Path) -> dict[str, Any] | None:
    """The payload of the last record that stands in a notebook; None when the notebook is marked as no run.

    Args:
        path: an executed notebook.

    Raises:
        RecordError: the file is missing, no notebook, or holds no record.
    """
    notebook = _read_notebook(path)
    metadata = notebook.get("metadata")
    marker = metadata.get(MARKER) if isinstance(metadata, dict) else None
    for cell in reversed(notebook["cells"]):
        outputs = cell.get("outputs") if isinstance(cell, dict) else None
        for output in reversed(outputs) if isinstance(outputs, list) else ():
            data = output.get("data") if isinstance(output, dict) else None
            if isinstance(data, dict) and RECORD_MIME in data:
                payload = data[RECORD_MIME]
                if not isinstance(payload, dict):
                    raise RecordError(f"{path}: its record is damaged (a {type(payload).__name__}, no object); run it again")
                return payload  # whatever the marker says: what holds a record is a run
    if isinstance(marker, dict) and isinstance(marker.get("kind"), str) and marker["kind"] != "run":
        return None
    raise RecordError(f"{path}: holds no record: it ended before its record began, or is no run; run it again")


def _why_no_notebook(content: bytes) -> str:
    """What a text is that is not JSON, with the way out."""
    if not content.strip():
        return "is empty; take it back from Git or a backup, or run it again"
    if content.startswith(b"\xef\xbb\xbf"):
        return "begins with a byte-order mark, which no notebook does; save it as UTF-8 without one"
    return "is not a notebook (no valid JSON: cut off or damaged); take it back from Git or a backup, or run it again"


def says_its_end(path: Path) -> bool:
    """Whether a notebook itself says how its run ended, not its journal alone: it was written to the end.

    Args:
        path: an executed notebook; it need not exist.
    """
    try:
        payload = read_payload(path)
    except RecordError:
        return False
    return isinstance(payload, dict) and payload.get("status") != "running"


def run_log(path: Path) -> list[dict[str, Any]]:
    """Events of the run log beside a notebook; a torn or damaged line is passed over."""
    log = path.with_suffix("").with_name(path.stem + ".log.jsonl")
    events = []
    try:
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    except OSError:
        text = ""
    if text:
        for line in text.splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                events.append(event)
    return events


def append_to_run_log(path: Path, event: dict[str, Any]) -> None:
    """Append one event to the run log beside a notebook.

    Args:
        path: the executed notebook (which may not exist yet).
        event: JSON-able; ``time`` (ISO 8601) and ``event`` (``failed``, ``interrupted``, ``note``) say what it is. How an
            execution ended is written with which one it was.

    Raises:
        OSError: the run log cannot be written; it is as it was.
    """
    log = path.with_name(path.stem + ".log.jsonl")
    if event.get("event") in ("failed", "interrupted") and (record := _latest(path)) is not None:
        event = {**event, "execution": execution_of(record)}
    append_line(log, json.dumps(event, ensure_ascii=False))


def _latest(path: Path) -> RunRecord | None:
    """The record of a run's latest execution, as its notebook or its journal has it."""
    with suppress(RecordError, ValueError, AttributeError, KeyError, TypeError):
        if (payload := read_payload(path)) is not None:  # it may have died before its journal began
            return RunRecord.from_payload(payload)
    return record_from_journal(path.with_suffix(""))


def execution_of(record: RunRecord) -> str | None:
    """What tells the executions of a run from each other."""
    return record.provenance.get("run_id") or record.started


def is_about(event: dict[str, Any], record: RunRecord) -> bool:
    """Whether an event of the run log is about this execution: what happened to an earlier one does not count.

    Events name their execution, since clocks jump; those of earlier versions do not, and their time has to do.
    """
    if "execution" in event:
        return bool(event["execution"] == execution_of(record))
    try:
        return record.started is None or datetime.fromisoformat(str(event["time"])) >= datetime.fromisoformat(record.started)
    except (KeyError, ValueError, TypeError):  # no time, no zone
        return str(event.get("time", "")) >= (record.started or "")


def read_record(path: str | Path, *, lock_is_ours: bool = False) -> RunRecord:
    """Read the record of an executed notebook, completed by its journal and run log.

    A notebook that papermill began to execute and that ended before it held a record is one as well: what it was to do stands in
    its parameter cells.

    Args:
        path: ``executed/<study>/<run>.ipynb``.
        lock_is_ours: whether the calling process holds the run's `RUNNER_LOCK`, which then does not tell that it is running.

    Raises:
        RecordError: one line that names the file, when there is no readable record.
    """
    path = Path(path) if os.path.exists(path) else at_home(path)  # noqa: PTH110 (a name that is none exists nowhere)
    folder = path.with_suffix("")
    record: RunRecord | None = None
    problem: RecordError | None = None
    try:
        payload = read_payload(path)
        if payload is None:
            raise RecordError(f"{path}: is marked as no run (an analysis); it has no record")
        record = RunRecord.from_payload(payload)
    except RecordError as error:
        problem = error
    except LaterVersionError as error:
        problem = UnreadHereError(f"{path}: its record cannot be read: {error}")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        why = str(error) or type(error).__name__
        problem = RecordError(f"{path}: its record cannot be read ({why}); run it again")
    if record is None and (journal := record_from_journal(folder)) is not None:
        record = journal
    elif record is None:
        record = _unrecorded(path)
    if record is None:
        assert problem is not None
        raise problem
    places = run_folders(path, record)
    if record.status == "running":
        record = next((journal for place in places if (journal := _own_journal(place, record, folder)) is not None), record)
    executing = any(is_live(place) for place in places) or (not lock_is_ours and is_locked(folder / RUNNER_LOCK))
    if executing and record.status in ("running", "interrupted", "failed"):  # or an earlier attempt's end: it is executed again
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
    """What the journal of a run folder says of the execution that a record is of; None where it is of another one."""
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


def _unrecorded(path: Path) -> RunRecord | None:
    """What a notebook was to do that papermill began to execute and that ended before it held a record; None for any other."""
    try:
        notebook = _read_notebook(path)
        begun = str(notebook["metadata"]["papermill"]["start_time"])
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        values: dict[str, Any] = {}
        for cell in cells:
            if {"parameters", "injected-parameters"} & set(cell["metadata"].get("tags", ())):
                values |= assignments("".join(cell["source"])) or {}
        errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
        record = validated(
            {
                "kind": "quantization" if EXPERIMENTS[values["experiment"]].source else "run",
                **{key: values[key] for key in ("experiment", "variant", "seed", "question", "expectation", "run_folder")},
                "parameters": values,
                "started": begun,
                "progress": {"epoch": 0, **({"epochs": values["epochs"]} if "epochs" in values else {})},
            }
        )
    except (RecordError, KeyError, TypeError, ValueError, AttributeError):
        return None
    record.reason = "its training had not begun: it was ended, or papermill is still preparing it"
    if errors:
        record.status = "failed"
        record.reason = f"{errors[0].get('ename')}: {errors[0].get('evalue')}".splitlines()[0][:500]
    return record


def run_folders(notebook: Path, record: RunRecord) -> list[Path]:
    """Where the run folder of a record may be: beside its notebook, else where the record says too.

    A folder beside the notebook that holds a journal is the run's own: what the record names may be the original of a copy. And
    a record from elsewhere is data: the place that it names is followed only below the notebook's folder or the study's home,
    where a notebook that was executed without a runner has its run folder.

    Args:
        notebook: the executed notebook.
        record: what it holds.
    """
    folders = [notebook.with_name(notebook.name.removesuffix(".ipynb"))]
    if record.run_folder and not (folders[0] / JOURNAL).is_file():
        try:
            tops = [study_home(), Path.cwd(), notebook.parent.resolve()]
            stated = dict.fromkeys((top / record.run_folder).resolve() for top in tops)  # seen from where it was executed
            folders += [place for place in stated if any(place.is_relative_to(top) for top in tops)]
        except (OSError, ValueError, RuntimeError):
            pass  # no file name of this system: it came from another one
    return folders


def load_records(folder: str | Path) -> tuple[list[tuple[Path, RunRecord]], list[str]]:
    """Every record of a study's folder, in the catalogue's order, and one line for each notebook that cannot be read.

    Args:
        folder: ``executed/<study>``.

    Returns:
        ``(path, record)`` pairs, and problems, each naming its file.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(folder) if Path(folder).is_dir() else at_home(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of runs; `vitfp8 runs` lists the studies")
    found: list[tuple[Path, RunRecord]] = []
    problems: list[str] = []
    for path in sorted(folder.glob("*.ipynb")):
        try:
            if read_payload(path) is None:
                continue
        except RecordError:
            pass  # its journal may know more: read_record decides
        try:
            found.append((path, read_record(path)))
        except RecordError as error:
            problems.append(str(error))
    for journal in sorted(folder.glob("*/journal.jsonl")):
        notebook = journal.parent.with_name(journal.parent.name + ".ipynb")
        if notebook.exists():
            continue
        record = record_from_journal(journal.parent)
        if record is not None:
            executing = is_executing(journal.parent)
            if executing and record.status in ("interrupted", "failed"):
                record.status, record.reason = "running", None
            elif not executing and record.status == "running":
                record.status = "interrupted"
            found.append((notebook, record))
        elif not is_executing(journal.parent):  # it may be about to write its first line
            why = _why_of(journal) or "holds no readable record, and there is no notebook beside its folder; run it again"
            problems.append(f"{journal}: {why}")
    for log in sorted(folder.glob("*.log.jsonl")):
        if (instead := _why_of(log)) is not None:
            problems.append(f"{log}: {instead}; until then what it says is not known")
    found.sort(key=lambda pair: (catalogue_order(pair[1].experiment), pair[1].variant, pair[1].seed or 0))
    return found, problems


def _why_of(path: Path) -> str | None:
    """What a journal or run log is instead of lines of JSON, with the way out; None where nothing of the kind is known."""
    with suppress(OSError):
        return why_no_text(path.read_bytes(), appended=True)
    return None


def _run_row(path: Path, record: RunRecord) -> dict[str, Any]:
    """One row of `load_runs`."""
    precision = record.precision
    row = {
        "run": path.stem,
        "experiment": record.experiment,
        "variant": record.variant,
        "seed": record.seed,
        "status": record.status,
        "reason": record.reason,
        "origin": record.origin,
        "precision": precision.effective if precision else record.parameters.get("precision"),
        "precision_requested": precision.requested if precision else record.parameters.get("precision"),
        "backend": precision.backend if precision else None,
        "augmentation": record.parameters.get("augmentation"),
        "dataset": record.data.get("name") or record.parameters.get("dataset"),
        "model": record.model.get("name") or record.parameters.get("model"),
        "device": record.provenance.get("device"),
        **{key: getattr(record.metrics, key) for key in type(record.metrics).model_fields},
        "epochs_done": record.progress.get("epoch"),
        "parameters_digest": record.parameters_digest,
        "code_digest": record.provenance.get("code_digest"),
        "data_digest": record.data.get("digest"),
        "started": record.started,
        "path": str(path),
    }
    further = record.hardware.summary | (record.metrics.model_extra or {})
    return _beside(row, {key: value for key, value in further.items() if not isinstance(value, (dict, list))})


def _beside(row: dict[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    """A row with what else a record holds: a name that it chose itself never takes the place of what we say of it."""
    return row | {key: value for key, value in further.items() if key not in row}


def _history_rows(path: Path, record: RunRecord) -> list[dict[str, Any]]:
    """The rows of `load_history` that one run gives."""
    identity = {"run": path.stem, "experiment": record.experiment, "variant": record.variant, "seed": record.seed}
    return [_beside(identity, row.model_dump()) for row in record.history]


def _quantization_rows(path: Path, record: RunRecord) -> list[dict[str, Any]]:
    """The rows of `load_quantization` that one run gives: one for each way to quantise."""
    source = record.source
    identity = {
        "run": path.stem,
        "experiment": record.experiment,
        "variant": record.variant,
        "seed": record.seed,
        "status": record.status,
        "origin": record.origin,
        "source_run": source.get("run"),
        "source_experiment": source.get("experiment"),
        "source_test_acc": source.get("test_acc"),
        "source_test_loss": source.get("test_loss"),
        "dataset": record.data.get("name"),
        "model": record.model.get("name"),
    }
    rows = []
    for row in record.quantization:
        export = row.export or {}
        own = {"export_bytes": export.get("bytes"), "export_same_predictions": export.get("same_predictions"), "path": str(path)}
        rows.append(_beside(identity | own, row.model_dump(exclude={"predictions", "export"})))
    return rows


def load_quantization(folder: str | Path) -> pd.DataFrame:
    """A table with a row a run and variant of FP8Test, whatever its status; see `vitfp8.record.QuantizationRow` for the columns.

    Accuracies and their differences are fractions, SQNRs decibels.

    Args:
        folder: ``executed/<study>``.
    """
    columns = ["run", "experiment", "variant", "seed", "status", "format", "granularity", "operands", "test_acc",
               "accuracy_difference", "mcnemar_p", "changed_predictions", "logit_sqnr_db", "weight_bytes"]  # fmt: skip
    return _table(folder, _quantization_rows, columns)


def load_runs(folder: str | Path) -> pd.DataFrame:
    """A table with a row a training run: what it is, how it ended, its final figures (fractions, seconds) and digests.

    Quantisations after training have a table of their own: `load_quantization`.

    ``frame.attrs["problems"]`` lists the notebooks that could not be read, which are also warned about.

    Args:
        folder: ``executed/<study>``.
    """
    columns = ["run", "experiment", "variant", "seed", "status", "origin", "precision", "backend", "augmentation", "epochs"]
    return _table(folder, lambda path, record: [_run_row(path, record)] if record.kind == "run" else [], columns)


def load_history(folder: str | Path) -> pd.DataFrame:
    """A table with a row a run and epoch; see `vitfp8.record.EpochRow` for columns and units.

    Args:
        folder: ``executed/<study>``.
    """
    return _table(folder, _history_rows, ["run", "experiment", "variant", "seed", "epoch"])


def _table(
    folder: str | Path, rows_of: Callable[[Path, RunRecord], list[dict[str, Any]]], columns_if_empty: list[str]
) -> pd.DataFrame:
    """Records as a table; `rows_of` gives each record's rows."""
    import pandas as pd

    found, problems = load_records(folder)
    for problem in problems:
        warnings.warn(problem, stacklevel=3)
    rows = [row for path, record in found for row in rows_of(path, record)]
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns_if_empty)
    if "seed" in frame:
        frame["seed"] = frame["seed"].astype("Int64")
    frame.attrs["problems"] = problems
    return frame
