"""What several commands print: the console, and a record as cells of a table."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vitfp8.run.preflight import Finding


def console() -> Any:
    """A rich console that honours NO_COLOR and uses the full width when nobody watches.

    Texts of records are data: they are shown as they stand, without mark-up, emoji codes and terminal escapes.
    """
    from rich.console import Console

    from vitfp8.errors import printable

    class Verbatim(Console):
        """Takes no text for mark-up."""

        def render_str(self, text: str, **options: Any) -> Any:
            """A text as a cell shows it."""
            return super().render_str(printable(text), **{**options, "markup": False, "emoji": False, "highlight": False})

    return Verbatim(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=False)


def print_findings(findings: Sequence[Finding]) -> None:
    """What was found of the machine, a line each; warnings and refusals go to standard error."""
    from vitfp8.errors import printable

    for finding in findings:
        level = "" if finding.level == "ok" else f"{finding.level}: "
        click.echo(printable(f"{level}{finding.subject}: {finding.text}"), err=finding.level in ("warning", "refusal"))


def record_cells(record: Any) -> tuple[str, str, str, str]:
    """Epoch, best validation accuracy, test accuracy and time of a record, as text.

    Of a quantisation after training: measurements, and the test accuracy of the 8-bit way that costs least, with its difference
    to the source in points.
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
    """The cells of a quantisation after training."""
    progress, row = record.progress, record.best_way
    done = f"{progress.get('epoch', 0)}/{progress.get('epochs', '?')} measured" if progress else ""
    accuracy = "" if row is None or row.test_acc is None else f"{100 * row.test_acc:.2f} % "
    test = "" if row is None else f"{accuracy}({100 * row.accuracy_difference:+.2f})"
    seconds = record.hardware.summary.get("seconds")
    return done, "", test, duration(seconds) if isinstance(seconds, (int, float)) else ""


def duration(seconds: float) -> str:
    """Seconds as ``1:02:03`` or ``2:03``; ``?`` for what is no number of seconds."""
    if not 0 <= seconds < math.inf:
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
