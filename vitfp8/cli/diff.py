"""``vitfp8 diff``: two records side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from vitfp8.cli.tables import console

if TYPE_CHECKING:
    from vitfp8.verify.compare import Comparison, Difference


@click.command()
@click.argument("one", metavar="RUN")
@click.argument("other", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def diff(one: str, other: str, as_json: bool) -> None:
    """Compare two records: parameters, code, versions, machine, data, outcome, history, predictions.

    RUN: a notebook, a run folder, or STUDY/RUN, e.g. digits/BaseFP32-s0. Changes are the second less the first.
    """
    import json

    from vitfp8.cli.records import for_json
    from vitfp8.record import find_run, read_record
    from vitfp8.verify.compare import compare, title

    paths = [find_run(run) for run in (one, other)]
    records = [read_record(path) for path in paths]
    found = compare(*records)
    if as_json:
        runs = [{"path": str(path), "status": record.status} for path, record in zip(paths, records, strict=True)]
        click.echo(json.dumps(for_json({"runs": runs, **found.as_json()}), indent=1, allow_nan=False))
        return
    _print(found, [title(path, record) for path, record in zip(paths, records, strict=True)])


def _print(found: Comparison, titles: list[str]) -> None:
    """A row for each value that differs, and a line for everything else."""
    from rich.table import Table

    from vitfp8.errors import printable

    table = Table()
    for column in ("", "value", *titles, "change"):
        table.add_column(column, overflow="fold")
    for section in found.sections:
        for number, each in enumerate(section.different):
            table.add_row("" if number else section.name, each.name, *_cells(each))
    if table.row_count:
        console().print(table)
    else:
        click.echo(f"{titles[0]} and {titles[1]}: no parameter, version or figure differs")
    for line in _lines(found):
        click.echo(printable(line))


def _lines(found: Comparison) -> list[str]:
    """What stands below the table: remarks, history, digests, predictions, and what is the same."""
    lines = [f"{section.name}: {section.remark}" for section in found.sections if section.remark]
    if found.first_different_epoch is not None:
        first, *further = found.history
        words = f"{first.name} {_shown(first.name, first.one)} and {_shown(first.name, first.other)}"
        more = f", and {len(further)} more columns" if further else ""
        lines.append(f"history: first differs in epoch {found.first_different_epoch}: {words}{more}")
    elif found.epochs_compared:
        lines.append(f"history: the same in the {found.epochs_compared} epochs that both have, to the last bit, times left out")
    lines.append(
        {
            "equal": "deterministic digests: equal",
            "different": "deterministic digests: different",
            "unknown": "deterministic digests: not both records have one",
        }[found.deterministic]
    )
    for weights, counted in found.predictions.items():
        if counted is None:
            lines.append(f"predictions ({weights}): of different images; not compared")
        else:
            lines.append(f"predictions ({weights}): {counted[0]} of {counted[1]} images have another class")
    same = [f"{section.name} ({len(section.same)})" for section in found.sections if section.same]
    return [*lines, f"the same: {', '.join(same) or 'nothing'}"]


def _cells(each: Difference) -> tuple[str, str, str]:
    """A difference as the cells of its row."""
    change = ""
    if each.change is not None:
        change = f"{100 * each.change:+.2f} points" if _is_share(each.name) else f"{each.change:+.4g}"
    return _shown(each.name, each.one), _shown(each.name, each.other), change


def _is_share(name: str) -> bool:
    """Whether a figure is a fraction that a label shows in per cent."""
    return name.endswith(("_acc", "generalization_gap")) or " weights" in name


def _shown(name: str, value: Any) -> str:
    """A value as a cell shows it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{100 * value:.2f} %" if _is_share(name) and math.isfinite(value) else f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
