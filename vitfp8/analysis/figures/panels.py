"""The parts that the report's figures share: curves with bands, bars with points, legends below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from vitfp8.analysis.disturbance import MARK
from vitfp8.analysis.figures.drawing import WIDTH, Figure, percent_axis, plot_label
from vitfp8.analysis.grouping import Curve, Group
from vitfp8.analysis.statistics import describe

#: What a dagger means, in every legend that needs one.
EMULATED = "† emulated arithmetic: shown, not to be compared"

#: What a double dagger means, in every legend that needs one.
DISTURBED = f"{MARK} others took the processor: shown, not to be compared"

#: What "validation" is of imported runs, in every legend that needs it.
IMPORTED = "imported: “validation” is the test set, which also chose the epoch"

#: Columns that a training accuracy and loss are taken from, in order of preference: the clean subset in evaluation mode first.
CLEAN_ACCURACY = ("clean_train_acc", "train_acc")
CLEAN_LOSS = ("clean_train_loss", "train_loss")

#: Height of a line of a legend, in inches.
LEGEND_LINE = 0.17

#: Width of a legend's line sample and of a character beside it, in inches.
_LEGEND_HANDLE, _LEGEND_CHARACTER = 0.62, 0.064


def draw_line(ax: Axes, group: Group, curve: Curve, place: int = 0) -> None:
    """One curve: mean, markers now and then, and the band of the seeds.

    Args:
        ax: where.
        group: gives the style.
        curve: what.
        place: of the curve among others, so that markers of curves that coincide do not cover each other.
    """
    style = group.style
    every = max(1, math.ceil(len(curve.epochs) / 8))
    ax.plot(
        curve.epochs, curve.mean, color=style.color, linestyle=style.linestyle, marker=style.marker,
        markevery=(place * max(1, every // 4) % every, every),
        markerfacecolor="white" if group.origin == "imported" else style.color,
    )  # fmt: skip
    if curve.n > 1:
        ax.fill_between(curve.epochs, curve.low, curve.high, color=style.color, alpha=0.18, linewidth=0)


def legend_entry(group: Group, *, timed: bool = False) -> Line2D:
    """The legend's entry of a group, with its number of runs.

    Args:
        group: whose.
        timed: whether what is drawn says nothing when the arithmetic is emulated.
    """
    label = plot_label(group.marked_label if timed else group.label)
    return Line2D(
        [], [], color=group.style.color, linestyle=group.style.linestyle, marker=group.style.marker,
        markerfacecolor="white" if group.origin == "imported" else group.style.color, label=f"{label} (n = {group.n})",
    )  # fmt: skip


def words(text: str) -> Line2D:
    """A legend's entry that is a remark.

    Args:
        text: what it says.
    """
    return Line2D([], [], linestyle="", label=text)


def mark_words(groups: Sequence[Group]) -> list[Line2D]:
    """A legend's entries on the marks of some groups' times; none where no group has one.

    Args:
        groups: those that are drawn.
    """
    return [words(text) for mark, text in (("†", EMULATED), (MARK, DISTURBED)) if any(mark in group.marks for group in groups)]


def legend_lines(handles: Sequence[Any], columns: int = 2) -> int:
    """How many lines a legend takes so that it is no wider than the figure.

    Args:
        handles: its entries, which fill one column after the other.
        columns: how many stand beside each other where they are short.
    """
    lengths = [len(str(handle.get_label())) for handle in handles]
    for count in range(columns, 1, -1):
        lines = math.ceil(len(lengths) / count)
        widest = [max(lengths[start : start + lines]) for start in range(0, len(lengths), lines)]
        if sum(_LEGEND_HANDLE + _LEGEND_CHARACTER * width for width in widest) <= WIDTH:
            return lines
    return len(lengths)


def legend_below(figure: Any, handles: Sequence[Any], columns: int = 2) -> None:
    """A legend below the panels, where it covers nothing; a figure (not a part of one) grows by its height.

    Args:
        figure: or a part of one.
        handles: the entries.
        columns: how many stand beside each other where they are short.
    """
    lines = legend_lines(handles, columns)
    figure.legend(handles=handles, loc="outside lower center", ncols=math.ceil(len(handles) / max(lines, 1)))
    if isinstance(figure, Figure):
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + LEGEND_LINE * lines)


def epoch_axis(ax: Axes) -> None:
    """Whole epochs on the x axis.

    Args:
        ax: whose.
    """
    ax.set_xlabel("Epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def accuracy_panels(panels: Sequence[Axes], curves: Sequence[tuple[Group, Curve]]) -> None:
    """Accuracy over all epochs and, in a second panel, the last half enlarged.

    Args:
        panels: one or two.
        curves: at least one.
    """
    for ax in panels:
        for place, (group, curve) in enumerate(curves):
            draw_line(ax, group, curve, place)
        epoch_axis(ax)
        percent_axis(ax.yaxis)
    panels[0].set_ylabel("Validation accuracy (%)")
    panels[0].set_title("All epochs")
    if len(panels) > 1:
        last = max(curve.epochs.max() for _, curve in curves)
        tails = [(c.low[c.epochs >= last / 2], c.high[c.epochs >= last / 2]) for _, c in curves]
        low = min((values.min() for values, _ in tails if len(values)), default=0.0)
        high = max((values.max() for _, values in tails if len(values)), default=1.0)
        pad = max(0.05 * (high - low), 0.002)
        panels[1].set_xlim(last / 2, last + 0.02 * last)
        panels[1].set_ylim(low - pad, min(high + pad, 1.001) if high <= 1 else high + pad)
        panels[1].set_title("Last half, enlarged")


def loss_panels(panels: Sequence[Axes], groups: Sequence[Group]) -> list[Curve]:
    """Training loss and validation loss, on a logarithmic axis where they span more than a factor of 20.

    Args:
        panels: two that share their y axis.
        groups: whose.

    Returns:
        The curves that were drawn; nothing is drawn when there is none.
    """
    drawn: list[Curve] = []
    kinds = (("Training loss", CLEAN_LOSS), ("Validation loss", ("val_loss",)))
    for ax, (title, columns) in zip(panels, kinds, strict=True):
        for place, group in enumerate(groups):
            if curve := group.curve(*columns):
                draw_line(ax, group, curve, place)
                drawn.append(curve)
        ax.set_title(title)
        epoch_axis(ax)
    panels[0].set_ylabel("Cross-entropy (nats)")
    if drawn:
        low, high = min(curve.low.min() for curve in drawn), max(curve.high.max() for curve in drawn)
        if low > 0 and high / low > 20:
            panels[0].set_yscale("log")
            panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panels[0].yaxis.set_minor_formatter(NullFormatter())
    return drawn


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One panel of horizontal bars.

    Attributes:
        key: a column of `load_runs`.
        title: with the unit.
        factor: from the column's unit to that one.
        digits: after the point.
        timed: whether emulated arithmetic, or others on the machine, make the value say nothing.
        peak_key: column of a maximum that is marked beside the mean.
        percent: whether the axis runs from 0 to 100.
    """

    key: str
    title: str
    factor: float = 1.0
    digits: int = 1
    timed: bool = False
    peak_key: str | None = None
    percent: bool = False


def bar_panel(ax: Axes, groups: Sequence[Group], bars: Bars, *, names: bool) -> None:
    """Bars of the groups' means with the seeds as points; what was not measured says so.

    Args:
        ax: where.
        groups: a bar each, from above.
        bars: what.
        names: whether the groups' names stand at the left.
    """
    least, greatest = 0.0, 0.0
    for position, group in enumerate(groups):
        values_of = group.timed_values if bars.timed else group.values
        values = [bars.factor * value for value in values_of(bars.key)]
        sample = describe(values)
        if sample is None:
            ax.text(0, position, " not measured", va="center", fontsize=7, color="#666666")
            continue
        marks = group.marks if bars.timed else ""
        faded = bool(marks)
        ax.barh(
            position, sample.mean, height=0.66, color=group.style.color, hatch=group.style.hatch, edgecolor="#333333",
            linewidth=0.8, linestyle="--" if faded else "-", alpha=0.45 if faded else 0.9,
        )  # fmt: skip
        if sample.n > 1 and bars.peak_key is None:
            ax.plot(values, [position] * sample.n, "o", markersize=3, color="black", markerfacecolor="white", clip_on=False)
        end, text = max(0.0, sample.maximum), f"{sample.mean:.{bars.digits}f}".replace("-", "−")
        if bars.peak_key is not None:
            if peaks := values_of(bars.peak_key):
                peak = bars.factor * max(peaks)
                ax.plot([peak], [position], marker="|", markersize=11, markeredgewidth=2, color="black", linestyle="")
                end, text = max(end, peak), f"{text} / {peak:.{bars.digits}f}"
        elif sample.sd is not None:
            text += f" ± {sample.sd:.{bars.digits}f}"
        ax.annotate(
            f"{text} {marks}".rstrip(), (end, position), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7
        )
        least, greatest = min(least, sample.minimum), max(greatest, end)
    _bar_axes(ax, groups, bars, least, greatest, names=names)


def _bar_axes(ax: Axes, groups: Sequence[Group], bars: Bars, least: float, greatest: float, *, names: bool) -> None:
    """Limits, ticks and title of a panel of bars: ticks end where the values do, the numbers stand beyond."""
    room = 2.1 if any(group.n > 1 for group in groups) else 1.7
    top = (100.0 if bars.percent else greatest) or 1.0
    ax.set_xlim(1.05 * least, least + room * (top - least) if least < 0 else room * top)
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.set_yticks(range(len(groups)), [plot_label(group.label, 36) for group in groups] if names else [""] * len(groups))
    ax.tick_params(axis="y", length=0)
    ticks = [0, 50, 100] if bars.percent else MaxNLocator(nbins=3).tick_values(least, top)
    ax.set_xticks([tick for tick in ticks if least <= tick <= 1.0001 * top])
    ax.grid(axis="y", visible=False)
    ax.set_title(bars.title)


def time_unit(longest: float) -> tuple[str, float]:
    """The unit in which a time reads well, and the factor from seconds to it.

    Args:
        longest: in seconds.
    """
    return ("s", 1.0) if longest < 180 else ("min", 1 / 60) if longest < 3 * 3600 else ("h", 1 / 3600)
