"""What several commands print: findings, and a record as cells of a table."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vitfp8.run.preflight import Finding


def console() -> Any:
    """A rich console that honours NO_COLOR and is 140 columns wide when the output is not a terminal.

    Texts of records are data: markup, emoji codes and terminal escapes in them have no effect.
    """
    from rich.console import Console

    from vitfp8.errors import printable

    class Verbatim(Console):
        """Takes no text for markup."""

        def render_str(self, text: str, **options: Any) -> Any:
            """The text as a cell shows it."""
            return super().render_str(printable(text), **{**options, "markup": False, "emoji": False, "highlight": False})

    return Verbatim(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=False)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print one line per finding on the machine; warnings and refusals go to standard error."""
    from vitfp8.errors import printable

    for finding in findings:
        level = "" if finding.level == "ok" else f"{finding.level}: "
        click.echo(printable(f"{level}{finding.subject}: {finding.text}"), err=finding.level in ("warning", "refusal"))


def record_cells(record: Any) -> tuple[str, str, str, str]:
    """Epoch, best validation accuracy, test accuracy and time of a record, as text.

    For a quantisation after training: measurements done, no validation accuracy, and the test accuracy of the 8-bit way that
    costs least, with its difference from the source run in points.
    """
    if record is None:
        return "", "", "", ""
    if record.kind == "quantization":
        return _quantized_cells(record)
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


def _quantized_cells(record: Any) -> tuple[str, str, str, str]:
    """`record_cells` of a quantisation after training."""
    progress, row = record.progress, record.best_way
    done = f"{progress.get('epoch', 0)}/{progress.get('epochs', '?')} measured" if progress else ""
    accuracy = "" if row is None or row.test_acc is None else f"{100 * row.test_acc:.2f} % "
    test = "" if row is None else f"{accuracy}({100 * row.accuracy_difference:+.2f})"
    seconds = record.hardware.summary.get("seconds")
    return done, "", test, duration(seconds) if isinstance(seconds, (int, float)) else ""


def duration(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``; ``?`` for a value that is not a duration."""
    if not 0 <= seconds < math.inf:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
