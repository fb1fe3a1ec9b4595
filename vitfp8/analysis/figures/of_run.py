"""Figures of a single run: its curves, live or final, and a grid of its images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from vitfp8.analysis.figures.drawing import WIDTH, Figure, drawing, new_figure, percent_axis, plot_label
from vitfp8.analysis.figures.panels import epoch_axis, legend_below
from vitfp8.analysis.values import finite


def run_curves(history: Sequence[dict[str, Any]], *, validation: str = "validation") -> Figure:
    """Loss, accuracy and learning rate of one run by epoch.

    Args:
        history: a row an epoch, with the columns of `vitfp8.record.EpochRow`.
        validation: what the images of ``val_loss`` and ``val_acc`` are, for the legend.
    """
    panels = (
        ("Loss (nats an image)", (("train_loss", "training, as trained"), ("clean_train_loss", "training, clean"),
                                  ("val_loss", validation))),
        ("Accuracy (%)", (("train_acc", "training, as trained"), ("clean_train_acc", "training, clean"),
                          ("val_acc", validation))),
        ("Learning rate", (("learning_rate", "learning rate"),)),
    )  # fmt: skip
    looks: Any = (("#888888", ":", "x"), ("#333333", "--", "s"), ("#0072b2", "-", "o"))
    with drawing():
        figure = new_figure(2.7, width=WIDTH + 1.2, alternative="loss, accuracy and learning rate by epoch")
        for ax, (title, columns) in zip(figure.subplots(1, 3), panels, strict=True):
            for (color, linestyle, marker), (column, _) in zip(looks[-len(columns) :], columns, strict=True):
                points = [
                    (row["epoch"], value) for row in history if (value := finite(row.get(column))) is not None
                ]  # fmt: skip
                if points:
                    xs, ys = zip(*points, strict=True)
                    ax.plot(xs, ys, color=color, linestyle=linestyle, marker=marker, markevery=max(1, len(xs) // 8))
            if not ax.lines:
                ax.text(0.5, 0.5, "no value yet", transform=ax.transAxes, ha="center", va="center", color="#666666")
            ax.set_title(title)
            epoch_axis(ax)
        percent_axis(figure.axes[1].yaxis)
        figure.axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)
        handles = [
            Line2D([], [], color=color, linestyle=linestyle, marker=marker, label=label)
            for (color, linestyle, marker), (_, label) in zip(looks, panels[0][1], strict=True)
        ]
        legend_below(figure, handles, columns=3)
    return figure


def image_grid(images: np.ndarray, labels: Sequence[Any], *, columns: int = 8) -> Figure:
    """Images in a grid, each with its label.

    Args:
        images: shape [n, height, width, channels], one or three channels, in [0, 1]; values beyond are clipped.
        labels: what stands above each image.
        columns: images a row.
    """
    images = np.clip(np.nan_to_num(np.asarray(images, dtype=float)), 0, 1)
    columns = max(1, min(columns, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    with drawing():
        figure = new_figure(rows * (WIDTH / columns + 0.18), alternative=f"{len(images)} images")
        for index, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            ax.axis("off")
            if index < len(images):
                image = images[index]
                ax.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                ax.set_title(plot_label(str(labels[index]), 14), fontsize=7, pad=2)
    return figure


class LiveCurve:
    """A figure of one run that is drawn anew in place after each epoch, for somebody who watches."""

    def __init__(self) -> None:
        """Nothing is shown before the first update."""
        self.legend_entry: Any = None

    def update(self, history: Sequence[dict[str, Any]]) -> None:
        """Draw the history so far, where the last drawing stood.

        Args:
            history: a row an epoch, with the columns of `vitfp8.record.EpochRow`.
        """
        from IPython.display import display

        figure = run_curves(history)
        if self.legend_entry is None:
            self.legend_entry = display(figure, display_id=True)
        else:
            self.legend_entry.update(figure)
