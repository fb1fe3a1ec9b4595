"""``vitfp8 runs``: what there is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from vitfp8.cli.tables import console, record_cells

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vitfp8.record import Remark, RunRecord


@click.command()
@click.argument("study", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def runs(study: str | None, as_json: bool) -> None:
    """List what is there, also unfinished, failed and diverged runs."""
    import json

    from vitfp8.analysis.disturbance import disturbed
    from vitfp8.errors import InputError, printable
    from vitfp8.record import load_records, remarks_of, superseded_of
    from vitfp8.run.locate import executed_folder
    from vitfp8.run.study_file import check_study_name

    if study:
        check_study_name(study, "study")
    executed = executed_folder()
    folders = [executed / study] if study else sorted(path for path in executed.glob("*") if path.is_dir())
    if study and not folders[0].is_dir():
        there = ", ".join(sorted(path.name for path in executed.glob("*") if path.is_dir())) or "none yet"
        raise InputError(f"study: {study!r}: there is no {folders[0]}; there are: {there}")
    rows: list[tuple[str, Path, RunRecord, list[Remark]]] = []
    problems: list[str] = []
    set_aside: dict[str, dict[str, list[str]]] = {}
    for folder in folders:
        found, bad = load_records(folder)
        problems += bad
        rows += [(folder.name, path, record, remarks_of(path, record)) for path, record in found]
        named = {path.stem for path, _ in found}
        if gone := {run: names for run, names in superseded_of(folder).items() if run not in named}:
            set_aside[folder.name] = gone
    if as_json:
        out = [
            {
                "study": name,
                "run": path.stem,
                "kind": record.kind,
                "status": record.status,
                "origin": record.origin,
                "reason": record.reason,
                "progress": for_json(record.progress),
                "metrics": for_json(record.metrics.model_dump()),
                **_quantized(record),
                "disturbed": disturbed(record),
                "continued": for_json(record.continued),
                "notes": for_json(record.notes),
                "remarks": [vars(remark) for remark in remarks],
                "path": str(path),
            }
            for name, path, record, remarks in rows
        ]
        listed = {"runs": out, "problems": problems, "set_aside": set_aside}
        click.echo(json.dumps(listed, indent=1, allow_nan=False, default=str))
        return
    if not rows and not problems and not set_aside:
        click.echo(f"nothing in {executed}/ yet; `vitfp8 run --preset digits` is a start")
        return
    from rich.table import Table

    table = Table()
    for column in ("study", "run", "status", "epoch", "validation", "test", "time", "note"):
        table.add_column(column, overflow="fold")
    for name, path, record, remarks in rows:
        table.add_row(name, path.stem, record.status, *record_cells(record), _note(record, remarks))
    console().print(table)
    if any(record.origin == "imported" for _, _, record, _ in rows):
        click.echo("imported: the validation column shows the test set, which also chose the best epoch")
    if any(_quantized(record) for _, _, record, _ in rows):
        click.echo("quantised after training: test accuracy of the best 8-bit way, and its difference from the source run")
    for name, gone in set_aside.items():
        for run, names in gone.items():
            click.echo(printable(f"{name}: {run} has only earlier lab records, in superseded/: {', '.join(names)}"))
    for problem in problems:
        click.echo(f"vitfp8: {problem}", err=True)


def _note(record: RunRecord, remarks: Sequence[Remark]) -> str:
    """The last cell of a run's row."""
    from vitfp8.analysis.disturbance import disturbed
    from vitfp8.record import remark_words

    parts = ["imported" if record.origin == "imported" else "", record.reason or ""]
    said = ": ".join(part for part in parts if part)
    busy = "others took the processor" if disturbed(record) else ""
    return "; ".join(filter(None, [said, remark_words(remarks), busy]))


def _quantized(record: RunRecord) -> dict[str, Any]:
    """The source run of a quantisation and the 8-bit way that costs least accuracy; empty for a training."""
    row = record.best_way
    if row is None:
        return {}
    keys = ("format", "granularity", "operands", "test_acc", "accuracy_difference")
    return {
        "source": {key: record.source.get(key) for key in ("run", "experiment", "variant", "test_acc")},
        "best_way": for_json({key: getattr(row, key) for key in keys}),
    }


def for_json(value: Any) -> Any:
    """A value for other programs' JSON readers: NaN and infinity are null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    return value
