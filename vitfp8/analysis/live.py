"""Following a training as it goes: a live curve when somebody watches, a line an epoch in a batch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitfp8.home import from_home, study_home

History = Sequence[dict[str, Any]]


def somebody_watches() -> bool:
    """Whether a person has this notebook open: Jupyter's server names the session, papermill does not."""
    return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ


def say_where(**folders: str | Path | None) -> None:
    """Print where a notebook reads and writes; a person who watches also sees which folder that is in.

    Args:
        **folders: what it is, with ``_`` for a space, e.g. ``run_folder``, and where; None is passed over.
    """
    named = ", ".join(f"{what.replace('_', ' ')} {from_home(place)}" for what, place in folders.items() if place is not None)
    print(f"{named} (in {study_home()})" if somebody_watches() else named)


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
        from vitfp8.analysis.figures.of_run import LiveCurve

        curve = LiveCurve()
        return curve.update

    def print_line(history: History) -> None:
        print(epoch_line(history[-1], epochs))
        sys.stdout.flush()

    return print_line


def quantization_line(row: Any, done: int, planned: int) -> str:
    """One measurement of a quantisation on one line.

    Args:
        row: a `vitfp8.record.QuantizationRow` or `SensitivityRow`.
        done: how many there are with this one.
        planned: how many there will be.
    """
    accuracy = getattr(row, "test_acc", None)
    split = "validation" if accuracy is None else "test"
    accuracy = row.val_acc if accuracy is None else accuracy
    what = f"{row.format} {row.granularity} {row.operands}" + (f" {row.layer} alone" if hasattr(row, "layer") else "")
    return (
        f"{done:>{len(str(planned))}}/{planned}  {what}: {split} acc {100 * accuracy:.2f} % "
        f"({100 * row.accuracy_difference:+.2f}), logit SQNR {row.logit_sqnr_db:.1f} dB"
    )


def follow_quantization(planned: int) -> Callable[[Any], None]:
    """What to call after each measurement of a quantisation with its row: prints one line.

    Args:
        planned: how many there will be.
    """
    done = 0

    def print_line(row: Any) -> None:
        nonlocal done
        done += 1
        print(quantization_line(row, done, planned))
        sys.stdout.flush()

    return print_line
