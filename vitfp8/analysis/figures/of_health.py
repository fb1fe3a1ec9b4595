"""Numeric health as pictures: which layer loses what and when, and what happened at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vitfp8.analysis.figures.drawing import WIDTH, Figure, drawing, new_figure, plot_label
from vitfp8.analysis.grouping import Group
from vitfp8.analysis.results import StudyResults

#: Measure → its title, unit factor, and colour map.
_MEASURES: Mapping[str, tuple[str, float, str]] = {
    "underflow": ("Underflow (%)", 100.0, "viridis"),
    "saturated": ("Saturated (%)", 100.0, "viridis"),
    "sqnr_db": ("SQNR (dB)", 1.0, "viridis_r"),
}


def _log_axis(ax: Axes, base: int) -> None:
    """A logarithmic y axis with plain numbers: formulas are not parsed in these figures."""
    ax.set_yscale("log", base=base)
    ax.yaxis.set_major_locator(LogLocator(base=base, subs=(1, 2, 5) if base == 10 else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def health_grid(health: Mapping[str, Any], measure: str, operand: str) -> tuple[list[str], list[int], np.ndarray]:
    """One measure of one operand as a matrix.

    Args:
        health: a record's numeric health.
        measure: ``underflow``, ``saturated``, ``nonfinite``, ``amax``, ``sqnr_db`` or ``scale``.
        operand: ``activation``, ``weight`` or ``gradient``.

    Returns:
        Layers, sampled steps, and values of shape [layers, steps]: micro-batches of a step are averaged, NaN is unknown.
    """
    layers = [str(name) for name in health.get("layers", [])]
    samples = health.get("samples", {})
    steps = sorted(set(samples.get("step", [])))
    place = {step: position for position, step in enumerate(steps)}
    sums, counts = np.zeros((len(layers), len(steps))), np.zeros((len(layers), len(steps)))
    wanted = list(health.get("operands", [])).index(operand) if operand in health.get("operands", []) else -1
    rows = zip(*(samples.get(name, []) for name in ("step", "layer", "operand", measure)), strict=False)
    for step, layer, which, value in rows:
        if which == wanted and 0 <= layer < len(layers) and isinstance(value, (int, float)) and math.isfinite(value):
            sums[layer, place[step]] += value
            counts[layer, place[step]] += 1
    with np.errstate(invalid="ignore"):
        return layers, steps, sums / np.where(counts == 0, np.nan, counts)


def health_figure(health: Mapping[str, Any]) -> Figure | str:
    """Heat maps of layers × time: underflow, saturation and SQNR of activations, weights and gradients.

    Args:
        health: a record's numeric health.

    Returns:
        The figure, or the sentence that stands in its place.
    """
    if not health.get("samples"):
        return "Numeric health was not sampled in this run: nothing is rounded in FP32, or `health_every` is 0."
    operands = [str(name) for name in health["operands"]]
    layers = [str(name) for name in health["layers"]]
    with drawing():
        height = 1.1 + len(_MEASURES) * max(1.0, 0.115 * len(layers))
        figure = new_figure(height, width=WIDTH + 1.2, alternative="numeric health of each layer over time")
        axes = figure.subplots(len(_MEASURES), len(operands), sharex=True, sharey=True, squeeze=False)
        for number, (measure, (title, factor, colors)) in enumerate(_MEASURES.items()):
            row = axes[number]
            grids = [health_grid(health, measure, operand) for operand in operands]
            values = np.concatenate([grid[2].ravel() for grid in grids]) * factor
            known = values[np.isfinite(values)]
            low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
            if measure != "sqnr_db":
                low, high = 0.0, high or 1.0
            for ax, operand, (_, steps, grid) in zip(row, operands, grids, strict=True):
                extent = (0.5, len(steps) + 0.5, len(layers) - 0.5, -0.5)
                image = ax.imshow(grid * factor, aspect="auto", cmap=colors, vmin=low, vmax=high, extent=extent,
                                  interpolation="nearest")  # fmt: skip
                ax.grid(False)
                if number == 0:
                    ax.set_title(plot_label(f"{operand}s"))
                ticks = np.unique(np.linspace(1, len(steps), min(4, len(steps))).round().astype(int))
                ax.set_xticks(ticks, [f"{steps[tick - 1]:,}" for tick in ticks])
            row[0].set_yticks(range(len(layers)), [plot_label(name.removeprefix("blocks."), 30) for name in layers], fontsize=5)
            row[0].set_ylabel("Block and layer")
            figure.colorbar(image, ax=list(row), label=title, fraction=0.04)
        for ax in axes[-1]:
            ax.set_xlabel("Step")
    return figure


def steps_figure(health: Mapping[str, Any]) -> Figure | str:
    """Gradient norm and loss scale at each step; skipped steps are marked.

    Args:
        health: a record's numeric health.

    Returns:
        The figure, or the sentence that stands in its place.
    """
    trace = health.get("steps", {})
    norms = trace.get("grad_norm") or []
    if not norms:
        return "No step of this run was recorded."
    stride, scales = int(trace.get("stride", 1)), trace.get("loss_scale") or []
    x = np.arange(1, len(norms) + 1) * stride
    values = np.array([norm if isinstance(norm, (int, float)) else math.nan for norm in norms], dtype=float)
    finite = np.isfinite(values) & (values > 0)
    with drawing():
        figure = new_figure(2.0, width=WIDTH + 1.2, alternative="gradient norm and loss scale by step")
        panels = figure.subplots(1, 2 if scales else 1, squeeze=False)[0]
        if finite.any():
            panels[0].plot(x[finite], values[finite], color="#0072b2", linewidth=0.6)
            _log_axis(panels[0], 10)
        for step in x[~np.isfinite(values)]:
            panels[0].axvline(step, color="#d55e00", linewidth=0.6)
        panels[0].set_title("Gradient norm before clipping" + (", skipped steps marked" if (~np.isfinite(values)).any() else ""))
        if scales:
            panels[1].step(np.arange(1, len(scales) + 1) * stride, scales, where="post", color="#0072b2")
            _log_axis(panels[1], 2)
            panels[1].set_title("Loss scale")
        for ax in panels:
            ax.set_xlabel("Step")
    return figure


def show_health(health: Mapping[str, Any]) -> None:
    """Display both figures in the running notebook, or the sentences that stand in their place.

    Args:
        health: a record's numeric health.
    """
    from IPython.display import Markdown, display

    for shown in (health_figure(health), steps_figure(health)):
        display(Markdown(shown) if isinstance(shown, str) else shown)


def _sampled(results: StudyResults) -> list[tuple[Group, Mapping[str, Any]]]:
    """Groups whose first run has numeric health, with it."""
    found = [(group, results.records[group.runs["run"].iloc[0]].health) for group in results.groups]
    return [(group, health) for group, health in found if health.get("samples")]


#: Columns of the study's heat maps: measure, operand, title.
_STUDY_COLUMNS = (
    ("sqnr_db", "activation", "SQNR of activations (dB)"),
    ("sqnr_db", "gradient", "SQNR of gradients (dB)"),
    ("underflow", "gradient", "Underflow of gradients (%)"),
)


def study_health(results: StudyResults) -> Figure | str:
    """Heat maps of layers × time, a row for each low-precision experiment (its first run).

    Args:
        results: the study.

    Returns:
        The figure, or the sentence that stands in its place.
    """
    sampled = _sampled(results)
    if not sampled:
        return (
            "No completed run of this study carries samples of numeric health: nothing is rounded in FP32, and imported runs "
            "have none."
        )
    with drawing():
        heights = [max(0.9, 0.075 * len(health["layers"])) for _, health in sampled]
        figure = new_figure(0.8 + sum(heights) + 0.3 * len(heights), alternative="numeric health of the layers over time")
        axes = figure.subplots(len(sampled), len(_STUDY_COLUMNS), squeeze=False, height_ratios=heights)
        for number, (group, health) in enumerate(sampled):
            for ax, (measure, operand, title) in zip(axes[number], _STUDY_COLUMNS, strict=True):
                factor, colors = _MEASURES[measure][1], _MEASURES[measure][2]
                layers, steps, grid = health_grid(health, measure, operand)
                extent = (0.5, len(steps) + 0.5, len(layers) - 0.5, -0.5)
                image = ax.imshow(grid * factor, aspect="auto", cmap=colors, extent=extent, interpolation="nearest")
                figure.colorbar(image, ax=ax, fraction=0.06)
                ax.grid(False)
                if number == 0:
                    ax.set_title(title, fontsize=7)
                ax.set_xticks([1, len(steps)], [f"{steps[0]:,}", f"{steps[-1]:,}"])
                ax.set_yticks([])
            labels = [plot_label(name.removeprefix("blocks."), 30) for name in layers]
            if len(labels) <= 24:
                axes[number][0].set_yticks(range(len(labels)), labels, fontsize=4)
            axes[number][0].set_ylabel(plot_label(group.label, 30), fontsize=6)
        for ax in axes[-1]:
            ax.set_xlabel("Step")
    return figure


def study_steps(results: StudyResults) -> Figure | str:
    """Gradient norm and loss scale by step: a line for each experiment's first run.

    Args:
        results: the study.

    Returns:
        The figure, or the sentence that stands in its place.
    """
    traces = [(group, results.records[group.runs["run"].iloc[0]].health.get("steps") or {}) for group in results.groups]
    traces = [(group, trace) for group, trace in traces if trace.get("grad_norm")]
    if not traces:
        return "No completed run of this study carries a trace of its steps."
    scaled = any(trace.get("loss_scale") for _, trace in traces)
    with drawing():
        figure = new_figure(2.4, alternative="gradient norm and loss scale by step")
        panels = figure.subplots(1, 2 if scaled else 1, squeeze=False)[0]
        for group, trace in traces:
            look = {"color": group.style.color, "linestyle": group.style.linestyle, "linewidth": 0.7,
                    "label": plot_label(group.label)}  # fmt: skip
            for ax, name in zip(panels, ("grad_norm", "loss_scale"), strict=False):
                raw = trace.get(name) or []
                values = np.array([v if isinstance(v, (int, float)) else math.nan for v in raw], dtype=float)
                values[~np.isfinite(values) | (values <= 0)] = math.nan
                width = max(1, len(values) // 200) if name == "grad_norm" else 1
                if width > 1:  # the median of a window: steps are noisier than a line can show
                    values = np.nanmedian(values[: len(values) // width * width].reshape(-1, width), axis=1)
                if len(values):
                    ax.plot(np.arange(1, len(values) + 1) * width * int(trace.get("stride", 1)), values, **look)
        for ax, title, base in zip(panels, ("Gradient norm before clipping", "Loss scale"), (10, 2), strict=False):
            _log_axis(ax, base)
            ax.set_title(title)
            ax.set_xlabel("Step")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def show_study_health(results: StudyResults, *, what: str, lead: str = "") -> None:
    """Display one of the study's figures of numeric health, or the sentence that stands in its place.

    Args:
        results: the study.
        what: ``layers`` (heat maps) or ``steps`` (curves).
        lead: Markdown before the figure; left out with it.
    """
    from IPython.display import Markdown, display

    drawn = study_health(results) if what == "layers" else study_steps(results)
    if isinstance(drawn, str):
        display(Markdown(drawn))
        return
    if lead:
        display(Markdown(lead))
    display(drawn)
