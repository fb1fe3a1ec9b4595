"""``vitfp8 runs``: what is there, and what to do with single records."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from vitfp8.cli.tables import console, record_cells

if TYPE_CHECKING:
    from pathlib import Path

    from vitfp8.record import RunRecord


@click.command()
@click.argument("study", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def runs(study: str | None, as_json: bool) -> None:
    """List what is there, also unfinished, failed and diverged runs."""
    import json

    from vitfp8.params import InputError
    from vitfp8.record import load_records
    from vitfp8.workflow.locate import executed_folder
    from vitfp8.workflow.study import check_study_name

    if study:
        check_study_name(study, "study")
    executed = executed_folder()
    folders = [executed / study] if study else sorted(path for path in executed.glob("*") if path.is_dir())
    if study and not folders[0].is_dir():
        there = ", ".join(sorted(path.name for path in executed.glob("*") if path.is_dir())) or "none yet"
        raise InputError(f"study: {study!r}: there is no {folders[0]}; there are: {there}")
    rows: list[tuple[str, Path, RunRecord]] = []
    problems: list[str] = []
    for folder in folders:
        found, bad = load_records(folder)
        problems += bad
        rows += [(folder.name, path, record) for path, record in found]
    if as_json:
        out = [
            {
                "study": name,
                "run": path.stem,
                "status": record.status,
                "origin": record.origin,
                "reason": record.reason,
                "progress": for_json(record.progress),
                "metrics": for_json(record.metrics.model_dump()),
                "path": str(path),
            }
            for name, path, record in rows
        ]
        click.echo(json.dumps({"runs": out, "problems": problems}, indent=1, allow_nan=False, default=str))
        return
    if not rows and not problems:
        click.echo(f"nothing in {executed}/ yet; `vitfp8 run --preset digits` is a start")
        return
    from rich.table import Table

    table = Table()
    for column in ("study", "run", "status", "epoch", "validation", "test", "time", "note"):
        table.add_column(column, overflow="fold")
    for name, path, record in rows:
        table.add_row(name, path.stem, record.status, *record_cells(record), _note(record))
    console().print(table)
    if any(record.origin == "imported" for _, _, record in rows):
        click.echo("imported: what stands as validation is the test set, which also chose the best epoch")
    for problem in problems:
        click.echo(f"vitfp8: {problem}", err=True)


def _note(record: RunRecord) -> str:
    """What the table says of a run beside its figures."""
    parts = ["imported" if record.origin == "imported" else "", record.reason or ""]
    return ": ".join(part for part in parts if part)


def for_json(value: Any) -> Any:
    """What JSON can hold: NaN and infinity, which it has no word for, are null.

    Args:
        value: numbers, texts and containers of them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(item) for item in value]
    return value
