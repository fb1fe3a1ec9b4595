"""What stands in a notebook beside its record: parameter cells, papermill's metadata, errors, the order of execution."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitfp8.params import assignments, field_notes
from vitfp8.params.quantization import parameters_of
from vitfp8.record import RECORD_MIME, RunRecord
from vitfp8.verify.figures import differences, shown

#: A level of `vitfp8.verify.checks` and one line.
Found = tuple[str, str]


def source_of(cell: dict[str, Any]) -> str:
    """A cell's text: nbformat writes it as one string or as a list of lines."""
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The code cells of a notebook that hold any code."""
    return [cell for cell in notebook["cells"] if cell.get("cell_type") == "code" and source_of(cell).strip()]


def tagged(notebook: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    """The code cells with a tag."""
    return [cell for cell in code_cells(notebook) if tag in cell.get("metadata", {}).get("tags", [])]


def wrong_parameters(notebook: dict[str, Any], record: RunRecord) -> Iterator[Found]:
    """Parameter cells and papermill's metadata against the record's parameters."""
    defaults: dict[str, Any] = {}
    for cell in tagged(notebook, "parameters"):
        defaults |= assignments(source_of(cell)) or {}
    injected: dict[str, Any] = {}
    for cell in tagged(notebook, "injected-parameters"):
        values = assignments(source_of(cell))
        if values is None:
            yield "FAILED", "the injected-parameters cell does more than assign values"
            return
        injected |= values
    if not defaults:
        yield "FAILED", "there is no parameters cell"
        return
    papermill = notebook.get("metadata", {}).get("papermill")
    if isinstance(papermill, dict):
        for key, cell_value, value in differences(injected, papermill.get("parameters", {})):
            yield "FAILED", f"{key}: {shown(cell_value)} in the injected-parameters cell, {shown(value)} in papermill's metadata"
    there = _as_validated({**defaults, **injected}, record)
    for key, cell_value, value in differences(there, record.parameters):
        yield "FAILED", f"{key}: {shown(cell_value)} in the parameter cells, {shown(value)} in the record"
    taken = [key for key in defaults if key not in injected] if injected else []
    if set(taken) != set(record.defaults_taken):
        yield "FAILED", f"defaults_taken: {shown(record.defaults_taken)} stands there, {shown(taken)} follows from the cells"


def _as_validated(values: dict[str, Any], record: RunRecord) -> dict[str, Any]:
    """Values as the notebook's validation leaves them (``1e-3`` becomes a number); as they are where it refuses them today."""
    kind = parameters_of(record.experiment)
    later = {key: note.neutral for key, note in field_notes(kind).items() if note.neutral is not ... and key not in values}
    try:
        valid = kind.model_validate(later | values).model_dump()
    except ValidationError:
        return values
    return {key: value for key, value in valid.items() if key not in later or key in record.parameters}


def wrong_outputs(notebook: dict[str, Any], record: RunRecord) -> Iterator[Found]:
    """More than one record, and in a completed run errors and the order of its cells. Printed text is shown, never read."""
    cells = code_cells(notebook)
    records = [number for number, cell in enumerate(cells) for output in _outputs(cell) if RECORD_MIME in output.get("data", {})]
    if len(records) > 1:
        yield "FAILED", f"{len(records)} records stand in it, not one"
    if record.status == "completed":
        yield from _wrong_order(notebook, cells, max(records, default=0))


def _outputs(cell: dict[str, Any]) -> list[dict[str, Any]]:
    """A cell's outputs that are objects."""
    return [output for output in cell.get("outputs") or [] if isinstance(output, dict)]


def _wrong_order(notebook: dict[str, Any], cells: list[dict[str, Any]], record_at: int) -> Iterator[Found]:
    """Cells of a completed run that raised, were not executed, or were executed in another order."""
    executed_by_papermill = isinstance(notebook.get("metadata", {}).get("papermill"), dict)
    before = 0
    for number, cell in enumerate(cells):
        for output in _outputs(cell):
            if output.get("output_type") == "error":
                where = f"code cell {number + 1} raised {output.get('ename')}"
                if number <= record_at:
                    yield "FAILED", f"{where}, though the run is completed"
                else:
                    yield "note", f"{where} after the run was completed"
                return
        count = cell.get("execution_count")
        if not isinstance(count, int):
            yield "FAILED" if executed_by_papermill else "note", f"code cell {number + 1} was not executed"
        elif count <= before:
            level = "FAILED" if executed_by_papermill else "note"
            yield level, f"code cell {number + 1} was executed out of order (its number is {count}, after {before})"
        else:
            before = count


def other_code(notebook: dict[str, Any], template: Path) -> list[int]:
    """Numbers, from 1, of the code cells that differ from today's template; injected parameters do not count."""
    there = [source_of(cell).strip() for cell in code_cells(json.loads(template.read_text(encoding="utf-8")))]
    injected = tagged(notebook, "injected-parameters")
    here = [source_of(cell).strip() for cell in code_cells(notebook) if cell not in injected]
    longest = max(len(here), len(there))
    here, there = (texts + [""] * (longest - len(texts)) for texts in (here, there))
    return [number for number, (a, b) in enumerate(zip(here, there, strict=True), 1) if a != b]
