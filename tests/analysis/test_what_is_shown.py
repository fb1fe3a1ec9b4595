"""What figures and sentences say beside their numbers: units of ticks, titles of panels, leads, what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from tests.analysis.records import make_record
from vitfp8.analysis import format_figures, prose
from vitfp8.analysis.figures import Figure
from vitfp8.analysis.metrics import load_results
from vitfp8.analysis.plots import FIGURES, draw_figure, show_figure

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


def test_both_panels_of_losses_say_whose_loss_they_show(four: Path) -> None:
    assert [ax.get_title() for ax in figure_of(3, four).axes] == ["Training loss", "Validation loss"]


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


# --------------------------------------------------------------------------------------------------------- sentences


def test_experiments_without_a_completed_run_are_named(study: Study) -> None:
    text = prose.excluded_remark(load_results(study(make_record("BaseFP32"), make_record("AugmFP16"))))
    assert text.endswith("Without a completed run: Augmented FP32 and Baseline FP16.")


def test_an_error_of_the_test_set_needs_its_size_and_an_accuracy(study: Study) -> None:
    without_size = load_results(study(make_record(data={}), name="size"))
    assert "The test set has" not in prose.limits(without_size)
