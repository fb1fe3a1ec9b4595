"""Figures: what is drawn, what is said instead, and that files repeat byte by byte."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.records import FOUR, HOSTILE, diverged, imported, make_record
from vitfp8.analysis.figures.drawing import Figure, plot_label, save_figure
from vitfp8.analysis.figures.of_study import FIGURES, LiveCurve, draw_figure, image_grid, run_curves, show_figure
from vitfp8.analysis.results import StudyResults, load_results
from vitfp8.record import EpochRow, Hardware, Metrics

Study = Callable[..., Path]


def _drawn(results: StudyResults) -> dict[int, Figure | str]:
    return {row.number: draw_figure(row.number, results) for row in FIGURES}


def _texts(figure: Figure) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text)]


def test_the_report_has_eight_figures_with_the_promised_names() -> None:
    assert [row.number for row in FIGURES] == list(range(1, 9))
    assert all(row.stem.startswith(f"{row.number:02d}_") for row in FIGURES)
    assert (FIGURES[0].stem, FIGURES[7].stem) == ("01_val_accuracy", "08_gpu_power")


def test_a_study_with_everything_measured_draws_all_but_the_quantisation(rich: Path) -> None:
    drawn = _drawn(load_results(rich))
    assert {number for number, figure in drawn.items() if isinstance(figure, str)} == {6}


def test_without_gpu_samples_a_sentence_says_why(four: Path) -> None:
    assert draw_figure(8, load_results(four)) == (
        "No power or utilisation of a GPU was measured in these runs (no NVIDIA driver)."
    )  # fmt: skip


def test_when_nothing_completed_every_figure_is_a_sentence(study: Study) -> None:
    drawn = _drawn(load_results(study(diverged("BaseFP32", 0))))
    assert all(isinstance(figure, str) and figure.endswith(".") for figure in drawn.values())
    assert "1 diverged" in str(drawn[1])


def test_records_without_numbers_give_sentences_not_errors(study: Study) -> None:
    empty = make_record(history=[], metrics=Metrics(), hardware=Hardware())
    drawn = _drawn(load_results(study(empty)))
    assert {number for number, figure in drawn.items() if isinstance(figure, str)} >= {1, 2, 3, 5, 6, 8}


def test_nan_in_a_history_is_left_out_of_the_curves(study: Study) -> None:
    history = [EpochRow(epoch=e, val_acc=float("nan") if e == 3 else 0.5, val_loss=float("inf")) for e in range(1, 12)]
    figure = draw_figure(1, load_results(study(make_record(history=history))))
    assert isinstance(figure, Figure) and list(figure.axes[0].lines[0].get_xdata()) == [1, 2, *range(4, 12)]


def test_one_run_and_mixed_imported_runs_are_drawn(study: Study) -> None:
    for records in ([make_record(epochs=2)], [imported()], [imported(), make_record()]):
        drawn = _drawn(load_results(study(*records, name=f"study{len(records)}{records[0].origin}")))
        assert all(isinstance(drawn[number], Figure) for number in (1, 2, 3, 4, 7))


def test_the_gap_has_a_panel_an_experiment_with_its_name(four: Path) -> None:
    figure = draw_figure(2, load_results(four))
    assert isinstance(figure, Figure)
    assert [ax.get_title().split("\n")[0] for ax in figure.axes] == [
        "Baseline FP32", "Augmented FP32", "Baseline FP16", "Augmented FP16",
    ]  # fmt: skip
    assert "gap at the end 2.0 points, n = 1" in figure.axes[0].get_title()


def test_a_training_accuracy_on_augmented_images_is_starred(study: Study) -> None:
    figure = draw_figure(2, load_results(study(imported())))
    assert isinstance(figure, Figure) and "*" in figure.axes[0].get_title()
    assert any("on augmented images" in text for text in _texts(figure))


def test_several_seeds_have_a_band_and_say_n(rich: Path) -> None:
    figure = draw_figure(1, load_results(rich))
    assert isinstance(figure, Figure)
    assert len(figure.axes[0].collections) == 4  # the imported run is one
    assert "Baseline FP16 (n = 2)" in _texts(figure)


def test_emulated_times_are_marked_and_their_meaning_is_said(four: Path) -> None:
    for number in (4, 5, 7):
        figure = draw_figure(number, load_results(four))
        assert isinstance(figure, Figure)
        texts = _texts(figure)
        assert any(text.endswith(" †") for text in texts) and any("not to be compared" in text for text in texts)


def test_native_times_are_not_marked(study: Study) -> None:
    figure = draw_figure(4, load_results(study(make_record("BaseFP32"))))
    assert isinstance(figure, Figure) and not any("†" in text for text in _texts(figure))


def test_axes_have_units(rich: Path) -> None:
    figures = [figure for figure in _drawn(load_results(rich)).values() if isinstance(figure, Figure)]
    labels = "\n".join(text for figure in figures for text in _texts(figure))
    for unit in ("(%)", "(nats)", "(points)", "(s)", "(W)", "Epoch"):
        assert unit in labels


@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_two_renders_are_the_same_bytes_and_hold_no_date(four: Path, number: int) -> None:
    first, second = (draw_figure(number, load_results(four)) for _ in range(2))
    assert isinstance(first, Figure) and isinstance(second, Figure)
    assert first.png() == second.png() and first.pdf() == second.pdf()
    assert b"CreationDate" not in first.pdf() and b"Software" not in first.png()


def test_pdf_fonts_are_embedded_as_truetype(four: Path) -> None:
    figure = draw_figure(1, load_results(four))
    assert isinstance(figure, Figure)
    assert re.search(rb"/Subtype\s*/(Type0|TrueType|CIDFontType2)", figure.pdf()) and b"/Type3" not in figure.pdf()


def test_files_have_at_least_200_dots_an_inch(four: Path, tmp_path: Path) -> None:
    from PIL import Image

    figure = draw_figure(1, load_results(four))
    assert isinstance(figure, Figure)
    png, pdf = save_figure(figure, tmp_path, "01_val_accuracy")
    assert Image.open(png).width >= 200 * figure.get_size_inches()[0] - 1 and pdf.read_bytes().startswith(b"%PDF")


def test_hostile_names_are_drawn_as_they_stand_without_a_warning(study: Study) -> None:
    folder = study(make_record("BaseFP32"))
    from tests.analysis.records import write_notebook

    write_notebook(make_record(variant=r"$\frac{$ _x"), folder / "a.ipynb")
    write_notebook(make_record("_hidden$", gpu=True), folder / "b.ipynb")
    write_notebook(make_record(variant=HOSTILE), folder / "c.ipynb")
    results = load_results(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = [figure.pdf() for figure in _drawn(results).values() if isinstance(figure, Figure)]
    assert len(drawn) >= 6 and all(page.startswith(b"%PDF-") for page in drawn)
    figure = draw_figure(1, results)
    assert isinstance(figure, Figure) and any("_hidden$" in text for text in _texts(figure))


def test_no_text_leaves_the_figure(rich: Path) -> None:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    checked = 0
    for row in FIGURES:
        figure = draw_figure(row.number, load_results(rich))
        if isinstance(figure, str):
            continue
        figure.png(round(figure.dpi))  # legends are placed for this resolution, in which extents are told
        width, height = figure.canvas.get_width_height()
        axes = [axis for ax in figure.findobj(Axes) for axis in (ax.xaxis, ax.yaxis)]
        # labels of ticks beyond the limits are there and are not drawn
        ticks = {text for axis in axes for tick in (*axis.majorTicks, *axis.minorTicks) for text in tick.findobj(Text)}
        for text in figure.findobj(Text):
            ax = text.axes
            hidden = not text.get_visible() or not text.get_text().strip() or (ax is not None and not ax.get_visible())
            clipped = text.get_clip_on() and (text.get_clip_box() is not None or text.get_clip_path() is not None)
            if hidden or clipped or text in ticks:
                continue
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.y0 >= -1, (row.stem, text.get_text())
            assert box.x1 <= width + 1 and box.y1 <= height + 1, (row.stem, text.get_text())
            checked += 1
    assert checked > 50


def test_a_figure_shows_itself_as_png_and_pdf_and_words() -> None:
    figure = run_curves([row.model_dump() for row in make_record().history])
    data, metadata = figure._repr_mimebundle_()
    assert set(data) == {"image/png", "application/pdf", "text/plain"}
    assert base64.b64decode(data["application/pdf"]).startswith(b"%PDF") and metadata["image/png"]["width"] > 0


@pytest.mark.parametrize("history", [[], [{"epoch": 1, "val_acc": None}], [{"epoch": 1, "val_loss": float("nan")}]])
def test_run_curves_survive_an_empty_history(history: list[dict[str, object]]) -> None:
    assert run_curves(history).png().startswith(b"\x89PNG")


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_takes_grey_and_colour(channels: int) -> None:
    figure = image_grid(np.random.default_rng(0).random((10, 8, 8, channels)), [f"${i}_" for i in range(10)])
    assert len([ax for ax in figure.axes if ax.images]) == 10 and figure.png()


def test_the_live_curve_is_one_display_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    calls: list[str] = []

    class Handle:
        def update(self, figure: Figure) -> None:
            calls.append("update")

    def display(figure: Figure, display_id: bool) -> Handle:
        calls.append("display")
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    curve = LiveCurve()
    for epochs in (1, 2, 3):
        curve.update([row.model_dump() for row in make_record(epochs=epochs).history])
    assert calls == ["display", "update", "update"]


def test_a_figure_that_has_lost_its_data_loses_its_file(rich: Path, four: Path, tmp_path: Path) -> None:
    show_figure(8, load_results(rich), tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["08_gpu_power.pdf", "08_gpu_power.png"]
    without = load_results(four)
    for record in without.records.values():
        record.hardware = Hardware()
    show_figure(8, without, tmp_path)
    assert list((tmp_path / "figures").iterdir()) == []


def test_labels_are_one_line_bounded_and_never_hidden() -> None:
    assert plot_label("a\n\x00b") == "a b" and len(plot_label("x" * 100)) == 44 and not plot_label("_x").startswith("_")
    assert len(FOUR) == 4
