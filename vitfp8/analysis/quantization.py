"""Quantisation after training: its tables, figures and sentences. Every number comes from records of FP8Test.

Differences are to the source on the same test images. With several seeds, a cell or dot is a mean over the runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from vitfp8.analysis.after_training import PUBLISHED, Way, format_label, quantized_groups, way_words, ways
from vitfp8.analysis.escaping import escape_markdown as md
from vitfp8.analysis.figures.drawing import Figure, drawing, new_figure, plot_label
from vitfp8.analysis.figures.panels import legend_below
from vitfp8.analysis.results import StudyResults
from vitfp8.analysis.table import MISSING, ReportTable, number
from vitfp8.analysis.text import listed, points
from vitfp8.analysis.values import finite, finite_values
from vitfp8.catalog import QUANTIZED_FORMATS, QUANTIZED_OPERANDS, label_of
from vitfp8.record import RunRecord

#: Granularity → what a table calls it, its colour and its marker: no figure depends on colour.
_LOOKS: Mapping[str, tuple[str, str, str]] = {
    "tensor": ("per-tensor scale", "#0072b2", "o"),
    "channel": ("per-channel scale", "#e67e22", "s"),
    "mx": ("MX blocks of 32", "#2e7d32", "D"),
}
_IMPORTED_LOOK = ("imported, as an earlier project had it", "#525252", "h")
_PUBLISHED_LOOK = ("integers up to ±240, as published (9 bits)", "#7f3c8d", "*")

#: Below this p a test says that two models differ, by convention.
_LEVEL = 0.05


def _look(way: Way) -> tuple[str, str, str]:
    """Label, colour and marker of its granularity, or of the published rounding."""
    if way.imported:
        return _IMPORTED_LOOK
    if way.format == PUBLISHED:
        return _PUBLISHED_LOOK
    return _LOOKS.get(way.granularity, (way.granularity, "#525252", "v"))


def _spread(way: Way, key: str, factor: float, digits: int) -> str:
    """Mean, ± standard deviation where there are several runs."""
    values = way.values(key)
    if not values:
        return MISSING
    text = number(statistics.fmean(values), factor, digits)
    return text + (f" ± {number(statistics.stdev(values), factor, digits)}" if len(values) > 1 else "")


def _decibels(way: Way) -> str:
    """The SQNR of the logits: infinite where nothing changed."""
    if any(row.logit_sqnr_db is not None and row.logit_sqnr_db == math.inf for row in way.rows):
        return "∞" if len(way.rows) == 1 else MISSING
    return number(way.mean("logit_sqnr_db"), 1, 1)


def _test_cell(way: Way) -> str:
    """McNemar's p of one run; of several, how many are below the level."""
    p = way.values("mcnemar_p")
    if not p:
        return MISSING
    if len(p) > 1:
        return f"{sum(value < _LEVEL for value in p)} of {len(p)} < {_LEVEL}"
    return "1" if p[0] == 1 else f"{p[0]:.3g}" if p[0] >= 0.001 else "< 0.001"


def _export_cell(way: Way) -> str:
    """Size of the exported file, and whether it gave the same predictions when loaded back."""
    exports = [row.export for row in way.rows if row.export]
    if not exports:
        return MISSING
    size = finite(exports[0].get("bytes"))
    same = all(export.get("same_predictions") is True for export in exports)
    return number(size, 1e-6, 3) + ("" if same else " (differs when loaded)")


def quantization_table(records: Sequence[RunRecord], stem: str = "quantization") -> ReportTable:
    """One row per way of quantising: accuracy, difference to the source with its test, what changed, and sizes.

    Args:
        records: of completed quantisations.
        stem: name of its files.
    """
    rows, values = [], []
    for way in ways(records):
        own, source = way.mean("weight_bytes"), way.mean("source_weight_bytes")
        share = MISSING if own is None or not source else f"{number(own, 1e-6, 3)} ({number(own / source, 100, 0)} %)"
        granularity = MISSING if way.format == PUBLISHED else way.granularity
        rows.append([
            way.label, granularity, QUANTIZED_OPERANDS.get(way.operands, way.operands),
            _spread(way, "test_acc", 100, 2), _spread(way, "accuracy_difference", 100, 2), _test_cell(way),
            number(way.mean("changed_predictions"), 100, 2), _decibels(way), number(way.mean("logit_cosine"), 1, 4), share,
            _export_cell(way),
        ])  # fmt: skip
    for record in records:
        for measured in record.quantization:
            identity = {
                "run": record.run_name,
                "origin": record.origin,
                "seed": record.seed,
                "source_test_acc": record.source.get("test_acc"),
            }
            values.append(identity | measured.model_dump(exclude={"predictions", "export"}))
    notes = []
    fresh = [record for record in records if record.origin != "imported"]
    if len(fresh) < len(records):
        words = _source_words([record for record in records if record.origin == "imported"])
        notes.append(
            f"Imported: from the files of an earlier project, differences to {words}, on the test set that also chose the best "
            "epoch; never averaged with others."
        )
    if fresh:
        sources = _source_words(fresh)
        notes.append(f"Differences in points to the source on the same test images ({sources}). p: McNemar's exact test.")
        if len(fresh) > 1:
            notes.append(f"Means over {len(fresh)} runs, ± is the standard deviation; McNemar's test is made for each run.")
        notes.append(
            "Scales of activations are calibrated on training images; those of MX blocks are computed as the block comes."
        )
    if any(way.format == PUBLISHED for way in ways(records)):
        notes.append("INT ±240: weights rounded to whole numbers up to ±240 under one scale, as a published study did; 9 bits.")
    columns = ["Format", "Scales", "Quantised", "Test acc. (%)", "Diff.", "p", "Changed (%)", "SQNR (dB)", "Cosine",
               "Weights (MB)", "File (MB)"]  # fmt: skip
    return ReportTable(stem=stem, columns=columns, rows=rows, notes=notes, values=pd.DataFrame(values))


def _source_words(records: Sequence[RunRecord]) -> str:
    """Accuracy of the sources in words."""
    accuracies = finite_values(record.source.get("test_acc") for record in records)
    names = sorted({str(record.source.get("experiment")) for record in records})
    if not accuracies:
        return ", ".join(names)
    shown = number(statistics.fmean(accuracies), 100)
    spread = f" ± {number(statistics.stdev(accuracies), 100)}" if len(accuracies) > 1 else ""
    return f"{', '.join(names)}, {shown}{spread} %, n = {len(accuracies)}"


def run_table(record: RunRecord) -> ReportTable:
    """The table of one run.

    Args:
        record: of a quantisation.
    """
    return quantization_table([record])


# -------------------------------------------------------------------------------------------------------------- figures


def difference_figure(records: Sequence[RunRecord]) -> Figure:
    """Accuracy difference to the source by format and granularity, one panel for each kind of operands; runs are small dots.

    Args:
        records: of completed quantisations, with rows.
    """
    found = ways(records)
    # the ways are in the catalogue's order; what it does not know (a record of a later version) comes last
    operands = list(dict.fromkeys(way.operands for way in found))
    known = [name for name in QUANTIZED_FORMATS if any(way.format == name for way in found)]
    formats = list(dict.fromkeys([*known, *(way.format for way in found)]))
    with drawing():
        figure = new_figure(0.9 + 0.42 * len(formats), alternative="accuracy difference to the source after quantisation")
        panels = figure.subplots(1, len(operands), sharex=True, sharey=True, squeeze=False)[0]
        for ax, name in zip(panels, operands, strict=True):
            here = [way for way in found if way.operands == name]
            for way in here:
                _dots(ax, way, formats.index(way.format), [_look(w) for w in here if w.format == way.format])
            ax.axvline(0, color="#333333", linewidth=0.9)
            ax.set_title(plot_label(QUANTIZED_OPERANDS.get(name, name)))
            ax.set_xlabel("Difference to the source (points)")
            ax.grid(axis="y", visible=False)
        panels[0].set_yticks(range(len(formats)), [plot_label(format_label(name)) for name in formats])
        panels[0].set_ylim(len(formats) - 0.5, -0.5)
        panels[0].margins(x=0.12)
        looks = dict.fromkeys(_look(way) for way in found)
        handles = [
            Line2D(
                [], [], color=color, marker=marker, linestyle="", markersize=9 if marker == "*" else 6, label=plot_label(label)
            )
            for label, color, marker in looks
        ]
        legend_below(figure, handles, columns=2)
    return figure


def _dots(ax: Any, way: Way, position: int, beside: Sequence[tuple[str, str, str]]) -> None:
    """The mean of one way to quantise, and its runs where there are several."""
    _, color, marker = _look(way)
    values = [100 * value for value in way.values("accuracy_difference")]
    if not values:
        return
    place = position + 0.22 * (beside.index(_look(way)) - (len(beside) - 1) / 2)
    mean = statistics.fmean(values)
    ax.plot([0, mean], [place, place], color=color, linewidth=0.9, alpha=0.6)
    ax.plot([mean], [place], marker=marker, color=color, markersize=9 if marker == "*" else 5.5, linestyle="")
    if len(values) > 1:
        ax.plot(values, [place] * len(values), marker=".", color="#333333", markersize=3, linestyle="")


def sensitivity_figure(record: RunRecord) -> Figure | str:
    """SQNR of the logits with one layer quantised, by layer and format: the lower, the more this layer hurts.

    Args:
        record: of a quantisation.

    Returns:
        The figure, or a sentence where no layer was measured.
    """
    if not record.sensitivity:
        return "No layer was quantised alone in this run (sensitivity: false)."
    layers = list(dict.fromkeys(row.layer for row in record.sensitivity))
    formats = list(dict.fromkeys(row.format for row in record.sensitivity))
    looks: Any = (("#0072b2", "o"), ("#e67e22", "s"), ("#2e7d32", "D"), ("#7f3c8d", "*"))
    titles = (("logit_sqnr_db", 1.0, "SQNR of the logits (dB)"), ("accuracy_difference", 100.0, "Validation accuracy (points)"))
    with drawing():
        figure = new_figure(0.8 + 0.17 * max(len(layers), 6), alternative="sensitivity of layers to quantisation")
        panels = figure.subplots(1, 2, sharey=True)
        for ax, (key, factor, title) in zip(panels, titles, strict=True):
            for name, (color, marker) in zip(formats, looks, strict=False):
                rows = [row for row in record.sensitivity if row.format == name]
                points = [(factor * v, layers.index(row.layer)) for row in rows if (v := finite(getattr(row, key))) is not None]
                if points:
                    xs, ys = zip(*points, strict=True)
                    ax.plot(xs, ys, color=color, marker=marker, linestyle="", markersize=4.5)
            ax.set_title(title)
        panels[1].axvline(0, color="#333333", linewidth=0.9)
        panels[0].set_yticks(range(len(layers)), [plot_label(layer.removeprefix("blocks."), 24) for layer in layers])
        panels[0].set_ylim(len(layers) - 0.5, -0.5)
        handles = [
            Line2D([], [], color=color, marker=marker, linestyle="", label=format_label(name))
            for name, (color, marker) in zip(formats, looks, strict=False)
        ]
        legend_below(figure, handles, columns=len(handles))
    return figure


# ------------------------------------------------------------------------------------------------------------ sentences


def quantization_remark(records: Sequence[RunRecord]) -> str:
    """What quantisation after training cost, in numbers, as Markdown; empty where nothing was quantised.

    Args:
        records: of completed quantisations.
    """
    records = [record for record in records if record.origin != "imported"]
    known = [(way, value) for way in ways(records) if (value := way.mean("accuracy_difference")) is not None]
    eight_bits = [(way, value) for way, value in known if way.format != PUBLISHED]
    if not eight_bits:
        return ""
    best, worst = max(eight_bits, key=lambda pair: pair[1]), min(eight_bits, key=lambda pair: pair[1])
    sources = listed(sorted({md(label_of(str(record.source.get("experiment")))) for record in records}))
    n = f"mean over {len(records)} runs" if len(records) > 1 else "one run"
    told = [p for way, _ in eight_bits for p in way.values("mcnemar_p")]
    below = sum(p < _LEVEL for p in told)
    span = f"{points(best[1])} points ({_way_words(best[0])}; {n})"
    if len(eight_bits) > 1:
        span = f"{points(worst[1])} ({_way_words(worst[0])}) to {span}"
    sentences = [f"Quantised after training to 8 bits, the test accuracy of {sources} changes by {span}."]
    sentences += (
        [
            f"McNemar's exact test gives a p below {_LEVEL} in {below} of {len(told)} comparisons with the source; they are not "
            "adjusted for their number, and each is about one trained model.",
        ]
        if told
        else []
    )
    by_name = {(way.format, way.granularity, way.operands): value for way, value in known}
    published, true = by_name.get((PUBLISHED, "tensor", "weights")), by_name.get(("e4m3", "tensor", "weights"))
    if published is not None and true is not None:
        sentences.append(
            "The published rounding of weights to integers up to ±240, which is no FP8 format, changes it by "
            f"{points(published)} points; true E4M3 of the same weights under one scale by {points(true)}."
        )
    exports = [row.export for record in records for row in record.quantization if row.export]
    if exports:
        same = sum(export.get("same_predictions") is True for export in exports)
        sentences.append(
            f"Saved in their 8-bit dtypes and loaded back, {same} of {len(exports)} quantised models gave the same predictions."
        )
    return " ".join([*sentences, _worst_layer(records)]).strip()


def study_remark(results: StudyResults) -> str:
    """`quantization_remark` of the runs that figure and table show, and which other quantisations the study holds.

    Args:
        results: the study.
    """
    shown = {id(record) for record in results.quantized}
    others = [group for group in quantized_groups(results) if id(group.first) not in shown]
    further = [f"{md(group.label)} ({listed([md(run) for run in group.runs])})" for group in others]
    text = f"Figure and table leave out {listed(further)}, whose outcome is given above." if further else ""
    return " ".join(filter(None, [quantization_remark(results.quantized), text]))


def _way_words(way: Way) -> str:
    """A way to quantise in words, for Markdown."""
    return str(md(way_words(way)))


def _worst_layer(records: Sequence[RunRecord]) -> str:
    """The layer that moves the logits most when it alone is quantised to E4M3, over the runs."""
    found: dict[str, list[float]] = {}
    for record in records:
        for row in record.sensitivity:
            if row.format == "e4m3" and (value := finite(row.logit_sqnr_db)) is not None:
                found.setdefault(row.layer, []).append(value)
    if len(found) < 2:
        return ""
    means = {layer: statistics.fmean(values) for layer, values in found.items()}
    worst = min(means, key=lambda layer: means[layer])
    return (
        f"Of {len(means)} layers quantised alone to E4M3, {md(worst)} moves the logits most (SQNR "
        f"{number(means[worst], 1, 1)} dB on validation images)."
    )
