"""Numeric health as pictures: which layer loses what and when, and what happened at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitfp8.analysis.figures import WIDTH, Figure, drawing, new_figure

#: Measure → its title, unit factor, and colour map.
_MEASURES: Mapping[str, tuple[str, float, str]] = {
    "underflow": ("Underflow (%)", 100.0, "viridis"),
    "saturated": ("Saturated (%)", 100.0, "viridis"),
    "sqnr_db": ("SQNR (dB)", 1.0, "viridis_r"),
}


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
                    ax.set_title(f"{operand}s")
                ticks = np.unique(np.linspace(1, len(steps), min(4, len(steps))).round().astype(int))
                ax.set_xticks(ticks, [f"{steps[tick - 1]:,}" for tick in ticks])
            row[0].set_yticks(range(len(layers)), [name.removeprefix("blocks.") for name in layers], fontsize=5)
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
            panels[0].semilogy(x[finite], values[finite], color="#0072b2", linewidth=0.6)
        for step in x[~np.isfinite(values)]:
            panels[0].axvline(step, color="#d55e00", linewidth=0.6)
        panels[0].set_title("Gradient norm before clipping" + (", skipped steps marked" if (~np.isfinite(values)).any() else ""))
        if scales:
            panels[1].step(np.arange(1, len(scales) + 1) * stride, scales, where="post", color="#0072b2")
            panels[1].set_yscale("log", base=2)
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
