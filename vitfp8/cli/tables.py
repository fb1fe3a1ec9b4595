"""What several commands print: the console, and a record as cells of a table."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vitfp8.workflow.preflight import Finding


def console() -> Any:
    """A rich console that honours NO_COLOR and uses the full width when nobody watches.

    Texts of records are data: they are shown as they stand, without mark-up, emoji codes and terminal escapes.
    """
    from rich.console import Console

    from vitfp8.params import printable

    class Verbatim(Console):
        """Takes no text for mark-up."""

        def render_str(self, text: str, **options: Any) -> Any:
            """A text as a cell shows it."""
            return super().render_str(printable(text), **{**options, "markup": False, "emoji": False, "highlight": False})

    return Verbatim(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=False)


def print_findings(findings: Sequence[Finding]) -> None:
    """What was found of the machine, a line each; warnings and refusals go to standard error."""
    from vitfp8.params import printable

    for finding in findings:
        level = "" if finding.level == "ok" else f"{finding.level}: "
        click.echo(printable(f"{level}{finding.subject}: {finding.text}"), err=finding.level in ("warning", "refusal"))


def record_cells(record: Any) -> tuple[str, str, str, str]:
    """Epoch, best validation accuracy, test accuracy and time of a record, as text."""
    if record is None:
        return "", "", "", ""
    progress, metrics = record.progress, record.metrics
    best = metrics.best_val_acc
    if best is None:
        known = (row.val_acc for row in record.history if row.val_acc is not None and not math.isnan(row.val_acc))
        best = max(known, default=None)
    seconds = sum(row.epoch_seconds or 0 for row in record.history)
    return (
        f"{progress.get('epoch', 0)}/{progress.get('epochs', '?')}",
        "" if best is None else f"{100 * best:.2f} %",
        "" if metrics.test_acc is None else f"{100 * metrics.test_acc:.2f} %",
        duration(seconds) if record.history else "",
    )


def duration(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``; ``?`` for what is no number of seconds."""
    if not 0 <= seconds < math.inf:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
