"""Figures of the explorer of formats: grids, steps, magnitudes, what rounding loses, and an image under each format.

Everything comes as numpy arrays and plain rows: this module draws and computes no number format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator

from vitfp8.analysis.figures.drawing import WIDTH, Figure, drawing, new_figure, plot_label
from vitfp8.analysis.figures.panels import legend_below

#: A grid with more points than this is drawn as a bar: its ticks would run together.
MOST_TICKS = 400

#: Operand → colour and line style.
_LOOKS: Mapping[str, tuple[str, Any]] = {
    "activation": ("#0072b2", "-"),
    "weight": ("#333333", "--"),
    "gradient": ("#d55e00", "-."),
}

#: Colours and line styles of formats, in turn.
_FORMAT_LOOKS: Sequence[tuple[str, Any]] = (
    ("#0072b2", "-"), ("#d55e00", "--"), ("#009e73", "-."), ("#333333", ":"), ("#8e44ad", (0, (7, 2))),
    ("#a0522d", (0, (5, 1, 1, 1))),
)  # fmt: skip

#: Column of an error map → its title and colour map.
_MEASURES: Sequence[tuple[str, str, str]] = (
    ("sqnr_db", "SQNR (dB)", "YlGnBu"),
    ("underflow", "Underflow: becomes 0 (%)", "Oranges"),
    ("saturated", "Saturated: clipped (%)", "Reds"),
)


def _power(value: float, _: object = None) -> str:
    """A tick at log2 value: the power of two, with superscripts that every font has."""
    return "1" if round(value) == 0 else "2" + _superscript(round(value))


def _superscript(number: int) -> str:
    """A whole number as a superscript."""
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _power_axis(ax: Axes, low: float, high: float) -> None:
    """A logarithmic x axis to base 2, whose values are logarithms already."""
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64) if (high - low) / step <= 12)
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(MultipleLocator(step))
    ax.xaxis.set_major_formatter(FuncFormatter(_power))


def number_lines(grids: Mapping[str, np.ndarray]) -> Figure:
    """The positive numbers of each format: on a logarithmic axis, and on a linear one where each format's largest number is 1.

    Args:
        grids: label → numbers that are not negative, ascending. More than `MOST_TICKS` are drawn as a bar.
    """
    with drawing():
        rows = len(grids)
        figure = new_figure(2 * (0.27 * rows + 0.75), alternative="the numbers of each format")
        panels = figure.subplots(2, 1)
        lows = [np.log2(grid[grid > 0][0]) for grid in grids.values()]
        highs = [np.log2(grid[-1]) for grid in grids.values()]
        # a format with float32's range would squeeze the others into a corner
        narrow = [i for i, (low, high) in enumerate(zip(lows, highs, strict=True)) if high - low < 64] or list(range(rows))
        low, high = min(lows[i] for i in narrow) - 1, max(highs[i] for i in narrow) + 1
        for place, grid in enumerate(grids.values()):
            color = _FORMAT_LOOKS[place % len(_FORMAT_LOOKS)][0]
            positive = grid[grid > 0]
            _ticks(panels[0], np.log2(positive).clip(low, high), place, color)
            _ticks(panels[1], grid / grid[-1], place, color)
            if np.log2(positive[0]) < low or np.log2(positive[-1]) > high:
                words = f"reaches from 2{_superscript(math.floor(lows[place]))} to 2{_superscript(math.ceil(highs[place]))}"
                panels[0].text((low + high) / 2, place, words, ha="center", va="center", color="white", fontsize=7)
        _power_axis(panels[0], low, high)
        panels[0].set_title("Each number of the format (logarithmic)")
        panels[1].set_title("Scaled so that the largest number is 1 (linear)")
        panels[1].set_xlim(-0.01, 1.01)
        for ax in panels:
            ax.set_yticks(range(rows), [plot_label(label, 18) for label in grids])
            ax.set_ylim(rows - 0.4, -0.6)
            ax.grid(visible=False)
            ax.spines["left"].set_visible(False)
            ax.tick_params(axis="y", length=0)
    return figure


def _ticks(ax: Axes, xs: np.ndarray, place: int, color: str) -> None:
    """A row of ticks, or a bar where there are too many."""
    if len(xs) > MOST_TICKS:
        ax.barh(place, xs[-1] - xs[0], left=xs[0], height=0.6, color=color, linewidth=0)
    else:
        ax.vlines(xs, place - 0.3, place + 0.3, color=color, linewidth=0.8)


def relative_steps(grids: Mapping[str, np.ndarray]) -> Figure:
    """The largest relative rounding error of a number by its magnitude: half the step of the grid ÷ the number.

    Args:
        grids: label → numbers that are not negative, ascending.
    """
    with drawing():
        figure = new_figure(2.5, alternative="largest relative rounding error by magnitude")
        ax = figure.subplots()
        ends = [(np.log2(grid[grid > 0][0]), np.log2(grid[-1])) for grid in grids.values()]
        narrow = [end for end in ends if end[1] - end[0] < 64] or ends
        low, high = min(end[0] for end in narrow) - 2, max(end[1] for end in narrow) + 1
        handles = []
        for place, (label, grid) in enumerate(grids.items()):
            color, style = _FORMAT_LOOKS[place % len(_FORMAT_LOOKS)]
            xs = np.arange(low, min(high, np.log2(grid[-1])) + 1e-9, 1 / 64)
            at = np.searchsorted(grid, 2.0**xs, side="right").clip(1, len(grid) - 1)
            error = (grid[at] - grid[at - 1]) / 2 / 2.0**xs
            ax.plot(xs, np.minimum(error, 1), color=color, linestyle=style)
            handles.append(Line2D([], [], color=color, linestyle=style, label=plot_label(label, 20)))
        _power_axis(ax, low, high)
        ax.set_yscale("log")
        ax.set_ylim(top=1.3)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
        ax.set_xlabel("Magnitude of the number")
        ax.set_ylabel("Largest relative error")
        legend_below(figure, handles, columns=min(5, len(handles)))
    return figure


def magnitudes(tensors: Mapping[str, np.ndarray], ranges: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Where the magnitudes of tensors lie, and what the formats cover of it.

    Args:
        tensors: ``activation``, ``weight``, ``gradient`` → values of any shape.
        ranges: label of a format → smallest subnormal, smallest normal and largest number.
    """
    with drawing():
        figure = new_figure(2.1 + 0.22 * len(ranges), alternative="magnitudes of the tensors and ranges of the formats")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.7, 0.22 * len(ranges) + 0.1])
        logs = {name: np.log2(np.abs(values[values != 0], dtype=np.float64)) for name, values in tensors.items()}
        lows = [np.quantile(values, 0.001) for values in logs.values() if len(values)]
        narrow = [(small, largest) for small, _, largest in ranges.values() if np.log2(largest / small) < 64]
        low = math.floor(min([*lows, *(np.log2(small) for small, _ in narrow)])) - 1
        high = (
            math.ceil(max([*(values.max() for values in logs.values() if len(values)), *(np.log2(end) for _, end in narrow)])) + 1
        )
        bins = np.arange(low, high + 0.25, 0.5)
        handles = []
        for name, values in logs.items():
            color, style = _LOOKS[name]
            share = np.histogram(values, bins)[0] / max(tensors[name].size, 1)
            above.stairs(100 * share, bins, color=color, linestyle=style, linewidth=1.4)
            zeros = 1 - len(values) / max(tensors[name].size, 1)
            handles.append(Line2D([], [], color=color, linestyle=style, label=f"{name} ({100 * zeros:.3g} % are zero)"))
        above.set_ylabel("Elements (%)")
        above.set_ylim(bottom=0)
        for place, (small, normal, largest) in enumerate(ranges.values()):
            ends = np.log2([small, normal, largest]).clip(low, high)
            below.barh(
                place, ends[1] - ends[0], left=ends[0], height=0.6, color="#b9cfe0", hatch="////", edgecolor="white", linewidth=0
            )
            below.barh(place, ends[2] - ends[1], left=ends[1], height=0.6, color="#5b8db8", linewidth=0)
        below.set_yticks(range(len(ranges)), [plot_label(label, 18) for label in ranges])
        below.set_ylim(len(ranges) - 0.4, -0.6)
        below.grid(visible=False, axis="y")
        _power_axis(below, low, high)
        below.set_xlabel("Magnitude; hatched: subnormal numbers of the format, unscaled")
        legend_below(figure, handles, columns=3)
    return figure


def error_map(rows: Sequence[Mapping[str, Any]], *, by: Sequence[str], across: Sequence[str]) -> Figure:
    """What rounding loses: SQNR, underflow and saturated fractions, as three maps with the numbers written in.

    Args:
        rows: each with the keys of `by` and `across`, and ``sqnr_db``, ``underflow``, ``saturated`` (fractions).
        by: keys that make a line of a map.
        across: keys that make a column. A combination that no row has is left blank.
    """
    lines = list(dict.fromkeys(tuple(row[key] for key in by) for row in rows))
    columns = list(dict.fromkeys(tuple(row[key] for key in across) for row in rows))
    found = {(tuple(row[key] for key in by), tuple(row[key] for key in across)): row for row in rows}
    with drawing():
        figure = new_figure(3 * (0.19 * len(lines) + 0.3) + 0.35, alternative="SQNR, underflow and saturation")
        panels = figure.subplots(len(_MEASURES), 1, sharex=True)
        for ax, (key, title, colors) in zip(panels, _MEASURES, strict=True):
            values = np.full((len(lines), len(columns)), np.nan)
            for i, line in enumerate(lines):
                for j, column in enumerate(columns):
                    if (line, column) in found:
                        values[i, j] = found[line, column][key] * (1 if key == "sqnr_db" else 100)
            _one_map(ax, values, colors, bounds=(0, 60) if key == "sqnr_db" else (0, 100))
            ax.set_title(title)
            ax.set_yticks(range(len(lines)), [plot_label(" ".join(map(str, line)), 30) for line in lines])
        panels[-1].set_xticks(range(len(columns)), ["\n".join(map(str, column)) for column in columns])
    return figure


def _one_map(ax: Axes, values: np.ndarray, colors: str, bounds: tuple[float, float]) -> None:
    """A coloured table of numbers; blank where there is none."""
    shown = np.sqrt(values.clip(*bounds)) if bounds[1] == 100 else values.clip(*bounds)
    top = math.sqrt(bounds[1]) if bounds[1] == 100 else bounds[1]
    ax.imshow(shown, cmap=colors, vmin=bounds[0], vmax=top * 1.25, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else "exact" if np.isinf(value) and value > 0 else _number(value, bounds[1] == 100)
        dark = not np.isnan(value) and shown[i, j] > 0.7 * top
        ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "#222222")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _number(value: float, percent: bool) -> str:
    """A number as a cell of a map shows it."""
    if not percent:
        return f"{value:.1f}"
    return "0" if value == 0 else "<0.01" if value < 0.01 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def image_panels(image: np.ndarray, rounded: Mapping[str, np.ndarray]) -> Figure:
    """An image, the same rounded to each format, and the differences, all on one scale.

    Args:
        image: shape [height, width, channels], one or three channels.
        rounded: label of a format → the image rounded, same shape.
    """
    low, high = float(image.min()), float(image.max())
    errors = {label: (other - image).mean(axis=-1) for label, other in rounded.items()}
    largest = max((float(np.abs(error).max()) for error in errors.values()), default=0.0) or 1.0
    with drawing():
        count = len(rounded) + 1
        width = min(WIDTH + 1.2, 1.25 * count + 0.8)
        figure = new_figure(2 * width / (count + 0.7) + 0.55, width=width, alternative="the image under each format")
        panels = figure.subplots(2, count, squeeze=False)
        for ax in panels.flat:
            ax.axis("off")
        for ax, (label, shown) in zip(panels[0], {"FP32": image, **rounded}.items(), strict=True):
            unit = ((shown - low) / ((high - low) or 1)).clip(0, 1)
            ax.imshow(unit[..., 0] if unit.shape[-1] == 1 else unit, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(plot_label(label, 16), fontsize=8)
        for ax, (label, error) in zip(panels[1][1:], errors.items(), strict=True):
            mappable = ax.imshow(error, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
            worst = float(np.abs(rounded[label] - image).max()) / ((high - low) or 1)
            ax.set_title(f"at most {100 * worst:.2g} %", fontsize=7)
        panels[1][0].text(0.5, 0.5, "difference,\n% of the\nimage's range", ha="center", va="center", fontsize=8)
        if errors:
            bar = figure.colorbar(mappable, ax=list(panels[1][1:]), shrink=0.8, pad=0.02)
            end = f"{100 * largest / ((high - low) or 1):.2g} %"
            bar.set_ticks([-largest, 0, largest], labels=[f"−{end}", "0", f"+{end}"])
    return figure


def class_probabilities(names: Sequence[str], probabilities: Mapping[str, np.ndarray]) -> Figure:
    """The class probabilities of one image under the first precision, and how far the others are from them.

    Args:
        names: of the classes.
        probabilities: label → probabilities, shape [classes]; the first is what the others are compared with. Of more than
            twelve classes the likeliest are shown.
    """
    with drawing():
        first, *others = probabilities
        shown = np.sort(np.argsort(-probabilities[first], kind="stable")[:12])
        figure = new_figure(3.2, alternative="class probabilities of the image")
        above, below = figure.subplots(2, 1, sharex=True)
        xs = np.arange(len(shown))
        above.bar(xs, 100 * probabilities[first][shown], color="#9a9a9a", width=0.6)
        above.set_title(f"Probability under {plot_label(first, 24)} (%)")
        handles = []
        for place, label in enumerate(others):
            color, _ = _FORMAT_LOOKS[place % len(_FORMAT_LOOKS)]
            offset = 0.7 * ((place + 0.5) / len(others) - 0.5)
            style: Any = {"linestyle": "", "marker": "os^Dv*PX"[place % 8], "color": color, "markersize": 4}
            below.plot(xs + offset, 100 * (probabilities[label] - probabilities[first])[shown], **style)
            handles.append(Line2D([], [], label=plot_label(label, 24), **style))
        below.axhline(0, color="#666666", linewidth=0.8)
        below.set_title("Change of the probability (percentage points)")
        below.set_xticks(xs, [plot_label(str(names[index]), 12) for index in shown])
        below.tick_params(axis="x", labelrotation=90 if max(len(str(names[index])) for index in shown) > 5 else 0)
        below.set_xlabel("Class")
        for ax in (above, below):
            ax.grid(visible=False, axis="x")
        legend_below(figure, handles, columns=min(4, len(handles)))
    return figure
