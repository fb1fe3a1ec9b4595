"""The eight figures of a report, one table of them, and those of a single run.

Each drawing function takes the study's results and gives a figure, or a sentence that says what is missing. Several seeds are a
line (their mean) and a band (least to greatest). Times, memory and energy of emulated arithmetic carry a dagger; those of runs
that others disturbed are left out, or carry a double dagger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from vitfp8.analysis.figures.drawing import Figure, drawing, new_figure, percent_axis, plot_label, save_figure
from vitfp8.analysis.figures.of_run import LiveCurve, image_grid, run_curves
from vitfp8.analysis.figures.panels import (
    CLEAN_ACCURACY,
    CLEAN_LOSS,
    IMPORTED,
    LEGEND_LINE,
    Bars,
    accuracy_panels,
    bar_panel,
    epoch_axis,
    legend_below,
    legend_entry,
    legend_lines,
    loss_panels,
    mark_words,
    time_unit,
    words,
)
from vitfp8.analysis.grouping import Curve, Group
from vitfp8.analysis.quantization import difference_figure
from vitfp8.analysis.results import StudyResults
from vitfp8.analysis.values import finite
from vitfp8.home import at_home

__all__ = [
    "FIGURES", "FigureRow", "LiveCurve", "draw_figure", "gpu_power", "hardware", "image_grid", "losses", "one_page",
    "quantization", "run_curves", "show_figure", "summary_bars", "train_val_gap", "val_accuracy",
]  # fmt: skip

#: A figure, or the sentence that says why there is none.
Drawn = Figure | str


def _nothing_completed(results: StudyResults) -> str | None:
    """The sentence that stands for a figure when no run has completed."""
    if results.groups:
        return None
    return f"No training of this study has completed ({results.status_words(trainings=True)}), so that there is nothing to draw."


def _imported_words(groups: Iterable[Group]) -> list[Line2D]:
    """What "validation" is of imported runs, as a legend's entry; none where there are none."""
    return [words(IMPORTED)] if any(group.imported for group in groups) else []


def _panel_count(curves: Sequence[tuple[Group, Curve]]) -> int:
    """Two panels of accuracy where there are epochs enough to enlarge the last half."""
    return 2 if max(len(curve.epochs) for _, curve in curves) >= 8 else 1


def val_accuracy(results: StudyResults) -> Drawn:
    """Figure 1: validation accuracy by epoch.

    Args:
        results: the study.
    """
    if missing := _nothing_completed(results):
        return missing
    curves = [(group, curve) for group in results.groups if (curve := group.curve("val_acc"))]
    if not curves:
        return "No completed run has a validation accuracy by epoch, so that there is no curve of it."
    figure = new_figure(2.95, alternative="validation accuracy by epoch")
    accuracy_panels(list(figure.subplots(1, _panel_count(curves), squeeze=False)[0]), curves)
    legend_below(figure, [*(legend_entry(group) for group, _ in curves), *_imported_words(group for group, _ in curves)])
    return figure


def train_val_gap(results: StudyResults) -> Drawn:
    """Figure 2: training against validation accuracy, the gap shaded, one panel an experiment.

    Args:
        results: the study.
    """
    if missing := _nothing_completed(results):
        return missing
    found = [(g, train, val) for g in results.groups if (train := g.curve(*CLEAN_ACCURACY)) and (val := g.curve("val_acc"))]
    if not found:
        return "No completed run has both a training and a validation accuracy by epoch, so that no gap can be drawn."
    rows = math.ceil(len(found) / 2)
    figure = new_figure(2.1 * rows + 0.3, alternative="training against validation accuracy")
    panels = figure.subplots(rows, min(2, len(found)), sharex=True, sharey=True, squeeze=False)
    for ax, (group, train, val) in zip(panels.flat, found, strict=False):
        style = group.style
        shared, at_train, at_val = np.intersect1d(train.epochs, val.epochs, return_indices=True)
        ax.fill_between(shared, train.mean[at_train], val.mean[at_val], color=style.color, alpha=0.22, linewidth=0)
        ax.plot(train.epochs, train.mean, color="#333333", linestyle="--", linewidth=1.1)
        ax.plot(val.epochs, val.mean, color=style.color, linestyle="-")
        gaps = group.values("generalization_gap")
        gap = f"gap at the end {100 * math.fsum(gaps) / len(gaps):.1f} points" if gaps else "gap not recorded"
        title = plot_label(group.label, 34) + (" *" if train.column != CLEAN_ACCURACY[0] else "")
        ax.set_title(f"{title}\n{gap}, n = {group.n}")
        percent_axis(ax.yaxis)
    for ax in panels[:, 0]:
        ax.set_ylabel("Accuracy (%)")
    columns = panels.shape[1]
    for index, ax in enumerate(panels.flat):
        if index >= len(found):
            ax.set_visible(False)
        elif index + columns >= len(found):
            ax.tick_params(labelbottom=True)
            epoch_axis(ax)
    handles = [
        Line2D([], [], color="#333333", linestyle="--", linewidth=1.1, label="training images"),
        Line2D([], [], color="#333333", linestyle="-", label="validation images"),
        Patch(facecolor="#333333", alpha=0.22, label="gap"),
    ]
    if any(train.column != CLEAN_ACCURACY[0] for _, train, _ in found):
        handles.append(words("* on augmented images, while training"))
    handles += _imported_words(group for group, _, _ in found)
    legend_below(figure, handles, columns=3 if len(handles) == 3 else 2)
    return figure


def losses(results: StudyResults) -> Drawn:
    """Figure 3: training and validation loss by epoch.

    Args:
        results: the study.
    """
    if missing := _nothing_completed(results):
        return missing
    figure = new_figure(2.95, alternative="training and validation loss by epoch")
    drawn = loss_panels(figure.subplots(1, 2, sharey=True), results.groups)
    if not drawn:
        return "No completed run has a loss by epoch, so that there is no curve of it."
    handles = [legend_entry(group) for group in results.groups if group.curve("val_loss", *CLEAN_LOSS)]
    if any(curve.column == "train_loss" for curve in drawn):
        handles.append(words("where no clean training loss is recorded: as trained on"))
    handles += _imported_words(results.groups)
    legend_below(figure, handles)
    return figure


def _longest(groups: Sequence[Group]) -> float:
    """Seconds of the longest training."""
    return max((value for group in groups for value in group.timed_values("train_seconds")), default=0.0)


def _summary_bars(groups: Sequence[Group]) -> list[Bars]:
    """The panels of figure 4."""
    unit, factor = time_unit(_longest(groups))
    return [
        Bars(key="best_val_acc", title="Best validation\naccuracy (%)", factor=100, digits=2, percent=True),
        Bars(key="generalization_gap", title="Generalisation gap\n(points)", factor=100, digits=2),
        Bars(key="train_seconds", title=f"Training time\n({unit})", factor=factor, digits=1, timed=True),
    ]


def summary_bars(results: StudyResults) -> Drawn:
    """Figure 4: best accuracy, generalisation gap and time.

    Args:
        results: the study.
    """
    if missing := _nothing_completed(results):
        return missing
    groups = results.groups
    figure = new_figure(1.0 + 0.42 * len(groups), alternative="best accuracy, generalisation gap and time")
    for index, (ax, bars) in enumerate(zip(figure.subplots(1, 3), _summary_bars(groups), strict=True)):
        bar_panel(ax, groups, bars, names=index == 0)
    handles = [*mark_words(groups), *_imported_words(groups)]
    if handles:
        legend_below(figure, handles, columns=1)
    return figure


_HARDWARE = tuple(
    Bars(key=f"{key}_mean", peak_key=f"{key}_max", title=title, digits=0, timed=True, percent=True)
    for key, title in (("cpu_percent", "CPU (%)"), ("memory_percent", "Memory (%)"), ("gpu_utilization_percent", "GPU (%)"))
)


def hardware(results: StudyResults) -> Drawn:
    """Figure 5: utilisation of processor, memory and GPU, mean and maximum.

    Args:
        results: the study.
    """
    if missing := _nothing_completed(results):
        return missing
    groups = results.groups
    measured = [bars for bars in _HARDWARE if any(group.values(bars.key) for group in groups)]
    if not measured:
        return "No utilisation of processor, memory or GPU was measured in these runs, so that there is no figure of it."
    figure = new_figure(0.9 + 0.42 * len(groups), alternative="hardware utilisation, mean and maximum")
    for index, (ax, bars) in enumerate(zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True)):
        bar_panel(ax, groups, bars, names=index == 0)
    handles = [
        Patch(facecolor="#bbbbbb", edgecolor="#333333", label="mean"),
        Line2D([], [], color="black", marker="|", markersize=9, markeredgewidth=2, linestyle="", label="maximum"),
    ]
    handles += mark_words(groups)
    legend_below(figure, handles, columns=len(handles))
    return figure


def quantization(results: StudyResults) -> Drawn:
    """Figure 6: FP8 quantisation after training, against its source.

    Args:
        results: the study.
    """
    if results.quantized:
        return difference_figure(results.quantized)
    beside = [f"{run} {record.status}" for run, record in results.quantizations.items()]
    there = f" but {', '.join(beside)}" if beside else ""
    return (
        f"This study holds no completed record of FP8Test{there}, which quantises a trained Augmented FP16 model to FP8 after "
        "training, so that there is no figure of it."
    )


def one_page(results: StudyResults) -> Drawn:
    """Figure 7: the study on one page.

    Args:
        results: the study.
    """
    if missing := _nothing_completed(results):
        return missing
    groups = results.groups
    curves = [(group, curve) for group in groups if (curve := group.curve("val_acc"))]
    handles = [*(legend_entry(group) for group in groups), *_imported_words(groups)]
    bars_height = 0.9 + 0.3 * len(groups)
    heights = [2.4, 2.2 + LEGEND_LINE * legend_lines(handles), bars_height, bars_height + 0.2]
    figure = new_figure(sum(heights) + 0.3, alternative="the study on one page")
    upper, middle, bars, more = np.asarray(figure.subfigures(4, 1, height_ratios=heights))
    datasets = ", ".join(sorted({str(value) for group in groups for value in group.runs["dataset"].dropna()}))
    figure.suptitle(plot_label(f"Study {results.name}: {datasets or 'unknown data'}, {results.status_words()}", 90), fontsize=11)
    if curves:
        accuracy_panels(list(upper.subplots(1, _panel_count(curves), squeeze=False)[0]), curves)
    loss_panels(middle.subplots(1, 2, sharey=True), groups)
    legend_below(middle, handles)
    unit, factor = time_unit(_longest(groups))
    rows = (
        (bars, (
            Bars(key="test_acc", title="Test accuracy (%)", factor=100, digits=2, percent=True),
            Bars(key="generalization_gap", title="Gap (points)", factor=100, digits=2),
        )),
        (more, (
            Bars(key="train_seconds", title=f"Training time ({unit})", factor=factor, timed=True),
            Bars(key="images_per_second", title="Images a second", digits=0, timed=True),
        )),
    )  # fmt: skip
    for place, panels_of_row in rows:
        for index, (ax, panel) in enumerate(zip(place.subplots(1, 2), panels_of_row, strict=True)):
            bar_panel(ax, groups, panel, names=index == 0)
    if handles := mark_words(groups):
        legend_below(more, handles, columns=1)
    return figure


_GPU = (("gpu_power_watts", "GPU power (W)"), ("gpu_utilization_percent", "GPU utilisation (%)"))


def gpu_power(results: StudyResults) -> Drawn:
    """Figure 8: GPU power and utilisation over time; of several seeds each is a thin line.

    Args:
        results: the study.
    """
    if missing := _nothing_completed(results):
        return missing
    series: dict[str, list[tuple[Group, np.ndarray, np.ndarray]]] = {column: [] for column, _ in _GPU}
    for group in results.groups:
        for run in group.runs["run"]:
            samples = results.records[run].hardware.samples
            for column in series:
                pairs = [
                    (second, number)
                    for time, value in zip(samples.get("seconds", []), samples.get(column, []), strict=False)
                    if (second := finite(time)) is not None and (number := finite(value)) is not None
                ]
                if len(pairs) > 1:
                    series[column].append((group, *np.array(pairs).T))
    shown = [(column, title) for column, title in _GPU if series[column]]
    if not shown:
        return f"No power or utilisation of a GPU was measured in these runs{_why_no_gpu(results)}."
    longest = max(times[-1] for rows in series.values() for _, times, _ in rows)
    unit, factor = time_unit(longest)
    figure = new_figure(0.5 + 1.8 * len(shown), alternative="GPU power and utilisation over time")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (column, title) in zip(panels, shown, strict=True):
        for group, times, values in series[column]:
            style = group.style
            ax.plot(
                factor * times, values, color=style.color, linestyle=style.linestyle, linewidth=1.0, marker=style.marker,
                markevery=max(1, len(times) // 8), alpha=0.9 if group.n == 1 else 0.6,
            )  # fmt: skip
        ax.set_ylabel(title)
        ax.set_ylim(0, 1.1 * max(values.max() for _, _, values in series[column]) or 1.0)
    panels[-1].set_xlabel(f"Time since the training began ({unit})")
    drawn = {group.label for rows in series.values() for group, _, _ in rows}
    handles = [legend_entry(group, timed=True) for group in results.groups if group.label in drawn]
    handles += mark_words([group for group in results.groups if group.label in drawn])
    legend_below(figure, handles)
    return figure


def _why_no_gpu(results: StudyResults) -> str:
    """The reason that the monitors gave, in brackets; empty when they gave none."""
    for record in results.records.values():
        reasons = record.hardware.summary.get("unavailable")
        if isinstance(reasons, dict):
            for key, reason in reasons.items():
                if str(key).lower().startswith(("gpu", "nvidia", "apple gpu")) and isinstance(reason, str):
                    return f" ({plot_label(reason, 120)})"
    return ""


@dataclass(frozen=True, kw_only=True)
class FigureRow:
    """A figure of the report.

    Attributes:
        number: in the report's file names.
        stem: file name without ending.
        title: what a heading says.
        caption: what stands below it.
        draw: gives the figure, or a sentence that says what is missing.
    """

    number: int
    stem: str
    title: str
    caption: str
    draw: Callable[[StudyResults], Drawn]

    @property
    def label(self) -> str:
        """What a text refers to, e.g. ``fig-val-accuracy``."""
        return "fig-" + self.stem[3:].replace("_", "-")


_SEEDS = "Lines are means over the runs, bands reach from the least to the greatest of them; n is the number of runs."

#: The figures of a report; to add one is to add a row, and a cell in ``notebooks/analysis.ipynb``.
FIGURES: tuple[FigureRow, ...] = (
    FigureRow(
        number=1, stem="01_val_accuracy", title="Validation accuracy", draw=val_accuracy,
        caption=f"Validation accuracy by epoch. {_SEEDS}",
    ),
    FigureRow(
        number=2, stem="02_train_val_gap", title="Training against validation", draw=train_val_gap,
        caption="Accuracy on training and validation images by epoch; the gap between them is shaded. Training accuracy is "
        "measured on a fixed clean subset of the training images in evaluation mode, or, where a star marks it, on the "
        "augmented images while training. Lines are means over the n runs.",
    ),
    FigureRow(
        number=3, stem="03_losses", title="Loss", draw=losses,
        caption="Training loss (on the clean subset, without label smoothing) and validation loss by epoch. " + _SEEDS,
    ),
    FigureRow(
        number=4, stem="04_summary_bars", title="Accuracy, gap and time", draw=summary_bars,
        caption="Best validation accuracy, generalisation gap and training time: mean over the runs, ± standard deviation "
        "and single runs as points where there are several. A dagger marks times of emulated arithmetic, a double dagger "
        "times of runs that others disturbed.",
    ),
    FigureRow(
        number=5, stem="05_hardware", title="Utilisation", draw=hardware,
        caption="Utilisation of the hardware while training, mean / maximum over the samples. A dagger marks emulated "
        "arithmetic, whose load says nothing about the format, a double dagger runs that others disturbed.",
    ),
    FigureRow(
        number=6, stem="06_fp8_quantization", title="FP8 quantisation", draw=quantization,
        caption="Test accuracy after quantisation to 8 bits, less that of the model that was quantised, on the same images. "
        "Large markers are means over the runs, small dots single runs. The star is the integer rounding of a published study, "
        "which takes 9 bits.",
    ),
    FigureRow(
        number=7, stem="07_summary", title="Summary", draw=one_page,
        caption="The study on one page: validation accuracy, losses, test accuracy with the last epoch's weights, "
        "generalisation gap, time and throughput. A dagger marks times of emulated arithmetic, a double dagger times of runs "
        "that others disturbed.",
    ),
    FigureRow(
        number=8, stem="08_gpu_power", title="GPU power", draw=gpu_power,
        caption="Power and utilisation of the GPU over time, one line per run.",
    ),
)  # fmt: skip


def draw_figure(number: int, results: StudyResults) -> Drawn:
    """A figure of the report, or the sentence that stands for it.

    Args:
        number: of a row of `FIGURES`.
        results: the study.
    """
    row = next(row for row in FIGURES if row.number == number)
    with drawing():
        return row.draw(results)


def show_figure(number: int, results: StudyResults, report_folder: str | Path | None = None, lead: str = "") -> None:
    """Display a figure in a notebook and write its files; where data are missing, display the sentence that says so.

    Args:
        number: of a row of `FIGURES`.
        results: the study.
        report_folder: its ``figures/`` gets the files; None: nothing is written.
        lead: Markdown before the figure; left out with it.
    """
    from IPython.display import Markdown, display

    from vitfp8.analysis.escaping import escape_markdown

    row = next(row for row in FIGURES if row.number == number)
    drawn = draw_figure(number, results)
    if isinstance(drawn, str):
        if report_folder is not None:  # a file of an earlier report would contradict the sentence
            for ending in ("png", "pdf"):
                (at_home(report_folder) / "figures" / f"{row.stem}.{ending}").unlink(missing_ok=True)
        display(Markdown(f"*{row.title}.* {escape_markdown(drawn)}"))
        return
    if report_folder is not None:
        save_figure(drawn, at_home(report_folder) / "figures", row.stem)
    if lead:
        display(Markdown(lead))
    display(drawn)
