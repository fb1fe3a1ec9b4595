"""Following a training as it goes: a live curve when somebody watches, a line an epoch in a batch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

History = Sequence[dict[str, Any]]


def somebody_watches() -> bool:
    """Whether a person has this notebook open: Jupyter's server names the session, papermill does not."""
    return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch on one line.

    Args:
        row: columns of `vitfp8.record.EpochRow`.
        epochs: planned epochs.
    """
    parts = [
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}",
        f"train loss {row['train_loss']:.4f}",
        f"val loss {row['val_loss']:.4f}",
        f"val acc {100 * row['val_acc']:.2f} %",
        f"{row['images_per_second']:.0f} images/s",
    ]
    if row.get("loss_scale") is not None:
        parts.append(f"loss scale {row['loss_scale']:g}, {row['skipped_steps']} skipped")
    return "  ".join(parts)


def follow_training(epochs: int) -> Callable[[History], None]:
    """What to call after each epoch with the history so far.

    Args:
        epochs: planned epochs.

    Returns:
        Draws a live curve where somebody watches; else prints one line.
    """
    if somebody_watches():
        from vitfp8.analysis.run_figures import LiveCurve

        curve = LiveCurve()
        return curve.update

    def print_line(history: History) -> None:
        print(epoch_line(history[-1], epochs))
        sys.stdout.flush()

    return print_line
