"""What figures show beside their being drawn: values, units of ticks, titles of panels, words, leads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from tests.analysis.records import FOUR, imported, make_record
from tests.analysis.test_outcomes import quantized
from vitfp8.analysis.figures import of_formats as format_figures
from vitfp8.analysis.figures.drawing import Figure
from vitfp8.analysis.figures.of_health import health_figure, health_grid, steps_figure, study_health, study_steps
from vitfp8.analysis.figures.of_study import FIGURES, draw_figure, image_grid, show_figure
from vitfp8.analysis.results import load_results
from vitfp8.record import Metrics

Study = Callable[..., Path]


def figure_of(number: int, folder: Path) -> Figure:
    figure = draw_figure(number, load_results(folder))
    assert isinstance(figure, Figure)
    return figure


def tick(ax: Axes, value: float) -> str:
    """What a tick of the y axis says."""
    return str(ax.yaxis.get_major_formatter()(value, 0))


# --------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(("number", "panels"), [(1, 2), (2, 4)])
def test_fractions_stand_as_percent_on_axes_that_say_percent(number: int, panels: int, four: Path) -> None:
    axes = figure_of(number, four).axes
    assert "(%)" in axes[0].get_ylabel() and [tick(ax, 0.955) for ax in axes] == ["95.5"] * panels


def test_both_panels_of_losses_show_every_experiment_and_say_whose_loss_it_is(four: Path) -> None:
    axes = figure_of(3, four).axes
    assert [(ax.get_title(), len(ax.lines)) for ax in axes] == [("Training loss", 4), ("Validation loss", 4)]


def test_bars_are_as_long_as_what_they_show_and_negative_ones_are_within_the_axis(study: Study) -> None:
    below = make_record(metrics=Metrics(best_val_acc=0.75, generalization_gap=-0.04, train_seconds=30.0))
    accuracy, gap, _ = figure_of(4, study(below)).axes
    assert [round(bar.get_width(), 9) for ax in (accuracy, gap) for bar in ax.patches] == [75, -4]
    assert gap.get_xlim()[0] < -4


def test_a_panel_that_no_experiment_needs_is_not_seen(study: Study) -> None:
    axes = figure_of(2, study(*(make_record(name) for name in FOUR[:3]))).axes
    assert [ax.get_visible() for ax in axes] == [True, True, True, False]


def test_the_gap_of_imported_runs_says_what_their_validation_is(study: Study) -> None:
    texts = [text.get_text() for legend in figure_of(2, study(imported())).legends for text in legend.get_texts()]
    assert "imported: “validation” is the test set, which also chose the epoch" in texts


def test_every_way_to_quantise_has_its_mark_at_its_difference(study: Study) -> None:
    marks = [line for line in figure_of(6, study(quantized())).axes[0].lines if len(line.get_xdata()) == 1]
    assert sorted(round(float(line.get_xdata()[0]), 9) for line in marks) == [-1.0, -0.2, 0.1, 2.0]


def test_a_variant_never_has_the_style_of_its_experiment(study: Study) -> None:
    own, variant = (load_results(study(make_record(variant=name), name=f"study{name}")).groups[0].style for name in ("", "trial"))
    assert variant.color == own.color and (variant.linestyle, variant.marker) != (own.linestyle, own.marker)


def test_images_are_shown_from_black_to_white() -> None:
    ax = image_grid(np.full((1, 4, 4, 1), 0.5), ["grey"]).axes[0]
    assert ax.images[0].get_clim() == (0, 1)


def test_every_figure_has_words_of_its_own_for_a_terminal(four: Path) -> None:
    drawn = [draw_figure(row.number, load_results(four)) for row in FIGURES]
    words = [figure.alternative for figure in drawn if isinstance(figure, Figure)]
    assert len(words) == 6 == len(set(words)) and "figure" not in words


def test_a_lead_stands_before_the_figure_and_only_where_there_is_one(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    shown: list[object] = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    results = load_results(four)
    show_figure(1, results, lead="The curves:")
    show_figure(1, results)
    show_figure(8, results, lead="The power:")
    assert [getattr(thing, "data", "figure") for thing in shown] == [
        "The curves:", "figure", "figure",
        "*GPU power.* No power or utilisation of a GPU was measured in these runs (no NVIDIA driver).",
    ]  # fmt: skip


def test_steps_of_formats_are_read_in_powers_of_two_and_percent() -> None:
    ax = format_figures.relative_steps({"BF16": np.array([0.0, 0.25, 0.5, 1.0, 2.0, 4.0])}).axes[0]
    assert [str(ax.xaxis.get_major_formatter()(at, 0)) for at in (-3, 0, 10)] == ["2⁻³", "1", "2¹⁰"]
    assert tick(ax, 0.0625) == "6.25 %"


def test_a_format_of_normal_range_is_not_said_to_reach_beyond_the_axis() -> None:
    small, large = np.array([0.0, 0.5, 1.0, 2.0]), np.array([0.0, 2.0**-120, 1.0, 2.0**120])
    texts = [text.get_text() for text in format_figures.number_lines({"small": small, "large": large}).axes[0].texts]
    assert texts == ["reaches from 2⁻¹²⁰ to 2¹²⁰"]
    for ends in ((0.5, 2.0**120), (2.0**-120, 2.0)):  # at one end alone
        figure = format_figures.number_lines({"small": small, "half": np.array(ends)})
        assert len(figure.axes[0].texts) == 1


def test_each_number_of_a_format_has_a_tick_that_can_be_seen() -> None:
    ticks = format_figures.number_lines({"small": np.array([0.0, 0.5, 1.0, 2.0])}).axes[0].collections[0].get_segments()
    assert [float(tick[0][0]) for tick in ticks] == [-1, 0, 1] and all(abs(tick[1][1] - tick[0][1]) > 0.5 for tick in ticks)


def test_a_format_of_wide_range_does_not_squeeze_the_others() -> None:
    small, large = np.array([0.0, 0.5, 1.0, 2.0]), np.array([0.0, 2.0**-120, 1.0, 2.0**120])
    ax = format_figures.relative_steps({"small": small, "large": large}).axes[0]
    assert ax.get_xlim() == (-3, 2) and len(ax.lines) == 2


def test_an_error_map_shows_decibels_and_percent() -> None:
    rows = [{"format": "e4m3", "operand": "weight", "sqnr_db": 31.26, "underflow": 0.005, "saturated": 1.0}]
    figure = format_figures.error_map(rows, by=["format"], across=["operand"])
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["31.3", "0.50", "100"]


def test_classes_stand_below_their_probabilities() -> None:
    chances = {"fp32": np.array([0.2, 0.8]), "fp16": np.array([0.3, 0.7])}
    below = format_figures.class_probabilities(["cat", "dog"], chances).axes[1]
    assert [label.get_text() for label in below.get_xticklabels()] == ["cat", "dog"]


# ----------------------------------------------------------------------------------------------------- numeric health

#: Two layers, three operands, two sampled steps; one sample names a layer that is not there.
HEALTH: dict[str, Any] = {
    "every": 4,
    "layers": ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"],
    "operands": ["activation", "weight", "gradient"],
    "samples": {
        "step": [4, 4, 4, 8, 8, 8, 8],
        "layer": [0, 1, 0, 0, 0, 1, 2],
        "operand": [0, 0, 2, 0, 0, 2, 0],
        "underflow": [0.25, 0.5, 0.75, 0.1, 0.3, 1.0, 0.9],
        "saturated": [0.0] * 7,
        "sqnr_db": [30.0, 20.0, 10.0, 31.0, 33.0, 5.0, 1.0],
    },
    "steps": {"grad_norm": [0.5, 2.0, float("nan"), 0.25], "loss_scale": [1024.0, 1024.0, 512.0, 512.0]},
}


def low_precision(name: str = "BaseFP16", **changes: Any) -> Any:
    return make_record(name, health=HEALTH | changes)


def test_samples_of_health_become_a_matrix_in_which_unknown_is_unknown() -> None:
    layers, steps, grid = health_grid(HEALTH, "underflow", "activation")
    assert (layers, steps) == (HEALTH["layers"], [4, 8])
    assert np.array_equal(grid, [[0.25, 0.2], [0.5, np.nan]], equal_nan=True)


def test_maps_of_health_show_percent_and_decibels_of_each_operand(study: Study) -> None:
    figure = health_figure(HEALTH)
    assert isinstance(figure, Figure)
    maps = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in maps[:3]] == ["activations", "weights", "gradients"]
    assert [float(maps[place].images[0].get_array()[0, 0]) for place in (0, 2, 6)] == [25, 75, 30]
    assert [label.get_text() for label in maps[6].get_xticklabels()] == ["4", "8"]
    of_study = study_health(load_results(study(low_precision())))
    assert isinstance(of_study, Figure)
    assert [float(ax.images[0].get_array()[0, 0]) for ax in of_study.axes if ax.images] == [30, 10, 75]


def test_steps_are_shown_on_logarithmic_axes_and_skipped_ones_are_marked() -> None:
    figure = steps_figure(HEALTH)
    assert isinstance(figure, Figure)
    norm, scale = figure.axes
    assert [ax.get_yscale() for ax in (norm, scale)] == ["log", "log"]
    assert [list(line.get_xdata()) for line in norm.lines] == [[1, 2, 4], [3, 3]]


def test_steps_of_a_study_have_a_line_an_experiment_and_loss_scales_where_there_are_any(study: Study) -> None:
    without = {"steps": {"grad_norm": [0.5, 2.0, 0.25, 0.0]}}
    figure = study_steps(load_results(study(low_precision(), low_precision("BaseFP8", **without), name="both")))
    assert isinstance(figure, Figure)
    assert [len(ax.lines) for ax in figure.axes] == [2, 1]
    alone = study_steps(load_results(study(low_precision("BaseFP8", **without), name="alone")))
    assert isinstance(alone, Figure) and len(alone.axes) == 1
    assert np.array_equal(alone.axes[0].lines[0].get_ydata(), [0.5, 2.0, 0.25, np.nan], equal_nan=True)


def test_a_study_without_numeric_health_says_so(four: Path) -> None:
    assert str(study_health(load_results(four))).startswith("No completed run of this study carries samples of numeric health")
    assert study_steps(load_results(four)) == "No completed run of this study carries a trace of its steps."
