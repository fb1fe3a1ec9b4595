"""Factors come from records, never from names; recipes and other variants are compared in a family of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.records import FOUR, make_record
from vitfp8.analysis import study_tables as tables
from vitfp8.analysis import text as prose
from vitfp8.analysis.contrasts import find_contrasts
from vitfp8.analysis.results import load_results
from vitfp8.analysis.statistics import holm
from vitfp8.analysis.summary import summary
from vitfp8.catalog import BUNDLES
from vitfp8.record import Precision, RunRecord

Study = Callable[..., Path]


def fp8(seed: int, variant: str = "", shift: float = 0.0, **parameters: Any) -> RunRecord:
    """A run of BaseFP8 or of a variant of it."""
    record = make_record("BaseFP8", seed, variant=variant)
    record.parameters |= {"fp8_recipe": "tensorwise", "base_precision": "bf16", "variant": variant, **parameters}
    record.precision = Precision(requested="fp8", effective="fp8", backend="emulated", recipe=record.parameters["fp8_recipe"])
    assert record.metrics.test_acc is not None
    record.metrics.test_acc -= shift + 0.0001 * seed
    return record


def changed(experiment: str, variant: str = "", seed: int = 0, **parameters: Any) -> RunRecord:
    """A run with other parameters than its experiment has."""
    record = make_record(experiment, seed, variant=variant)
    record.parameters |= {"variant": variant, **parameters}
    return record


def recipes() -> list[RunRecord]:
    """Six seeds of FP32, of FP8 and of two recipes."""
    records = []
    for seed in range(6):
        records += [
            make_record("BaseFP32", seed), fp8(seed, shift=0.002), fp8(seed, "mxfp8", 0.001, fp8_recipe="mxfp8"),
            fp8(seed, "rowwise", 0.003, fp8_recipe="rowwise"),
        ]  # fmt: skip
    return records


def test_each_recipe_is_compared_with_its_base_and_with_fp32(study: Study) -> None:
    results = load_results(study(*recipes()))
    contrasts, left_out = find_contrasts(results)
    assert [(contrast.family, contrast.label, contrast.changed_words) for contrast in contrasts] == [
        ("design", "Baseline FP8 − Baseline FP32", ""),
        ("variants", "Baseline FP8 (mxfp8) − Baseline FP8", "fp8 recipe mxfp8 against tensorwise"),
        ("variants", "Baseline FP8 (mxfp8) − Baseline FP32", "precision FP8 against FP32"),
        ("variants", "Baseline FP8 (rowwise) − Baseline FP8", "fp8 recipe rowwise against tensorwise"),
        ("variants", "Baseline FP8 (rowwise) − Baseline FP32", "precision FP8 against FP32"),
    ]
    assert left_out == [] and results.mismatches() == [] and "not comparable" not in prose.opening(results, "")
    assert contrasts[1].paired.n == 6 and contrasts[1].paired.sample.mean == pytest.approx(0.001)


def test_p_values_are_adjusted_within_each_family(study: Study) -> None:
    contrasts, _ = find_contrasts(load_results(study(*recipes())))
    p = [contrast.paired.p for contrast in contrasts if contrast.paired.p is not None]
    assert [contrast.adjusted_p for contrast in contrasts] == [p[0], *holm(p[1:])] and contrasts[1].adjusted_p == 4 * p[1]


def test_tables_and_the_json_name_the_factors_of_variants(study: Study) -> None:
    results = load_results(study(*recipes()))
    rows = {row[0]: row[1:] for row in tables.comparison(results).rows}
    assert rows["Differs from its base in"][1:] == ["–", "fp8 recipe", "fp8 recipe"]
    assert rows["Augmentation"] == ["basic"] * 4
    contrast_rows = [row[:2] for row in tables.contrast_table(results).rows]
    assert contrast_rows[1] == ["Baseline FP8 (mxfp8) − Baseline FP8", "variant: fp8 recipe"]
    assert tables.precision_table(results).rows[2][:4] == ["Baseline FP8 (mxfp8)", "6", "FP8", "FP8, mxfp8"]
    assert [contrast["family"] for contrast in summary(results)["contrasts"]] == ["design"] + ["variants"] * 4


def test_a_variant_of_fp32_is_compared_with_its_base_and_all_that_differs_is_named(study: Study) -> None:
    records = [make_record("BaseFP32"), changed("BaseFP32", "lr3", learning_rate=0.006)]
    records.append(changed("BaseFP32", "both", learning_rate=0.006, epochs=20))
    contrasts, left_out = find_contrasts(load_results(study(*records)))
    assert {contrast.label: contrast.changed_words for contrast in contrasts} == {
        "Baseline FP32 (both) − Baseline FP32": "epochs 20 against 12, learning rate 0.006 against 0.002",
        "Baseline FP32 (lr3) − Baseline FP32": "learning rate 0.006 against 0.002",
    }
    assert left_out == []


def test_a_variant_without_its_base_is_named(study: Study) -> None:
    results = load_results(study(make_record("BaseFP32"), fp8(0, "mxfp8", fp8_recipe="mxfp8")))
    contrasts, left_out = find_contrasts(results)
    assert [contrast.label for contrast in contrasts] == ["Baseline FP8 (mxfp8) − Baseline FP32"]
    text = "Baseline FP8 (mxfp8) is not compared with its base, Baseline FP8: this study holds no completed run of it."
    assert left_out == [text] and text.split(":")[0] in prose.comparisons(results).replace("\\", "")


def test_a_variant_on_other_images_is_compared_with_nothing(study: Study) -> None:
    other = changed("BaseFP32", "fashion", dataset="fashion_mnist")
    contrasts, left_out = find_contrasts(load_results(study(make_record("BaseFP32"), other)))
    assert contrasts == [] and "images are not the same (dataset differs)" in left_out[0]


def test_a_group_that_nothing_is_compared_with_is_named(study: Study) -> None:
    results = load_results(study(make_record("BaseFP32"), make_record("AugmBF16"), make_record("BaseFP16")))
    _, left_out = find_contrasts(results)
    assert len(left_out) == 1
    assert left_out[0].startswith("Augmented BF16 is compared with nothing: this study holds no run that the design compares")


def test_a_run_is_labelled_by_what_its_record_says_and_is_in_no_contrast_of_the_design(study: Study) -> None:
    wrong = make_record("BaseFP16")
    wrong.parameters["precision"] = "bf16"
    wrong.precision = Precision(requested="bf16", effective="bf16", backend="native")
    results = load_results(study(make_record("BaseFP32"), wrong))
    assert [group.label for group in results.groups] == ["Baseline FP32", "Baseline FP16 (as recorded: BF16)"]
    contrasts, left_out = find_contrasts(results)
    assert contrasts == [] and "BaseFP16-s0 is named Baseline FP16, but recorded with precision BF16" in left_out[0]
    assert left_out[0] in results.warnings() and "as recorded: BF16" in prose.opening(results, "")
    assert tables.core_comparison(results).columns == ["Metric", "Baseline FP32"]
    assert "BaseFP16" in results.missing_experiments
    assert "no completed run (Baseline FP16 (as recorded: BF16) has completed)" in prose.outcomes(results).replace("\\", "")


@pytest.mark.parametrize(
    ("parameters", "label"),
    [
        ({"augmentation": "extended"}, "as recorded: extended augmentation"),
        ({"weight_decay": 0.3}, "as recorded: weight decay 0.3"),
        ({"gradient_clip": 2.0, "label_smoothing": 0.1}, "as recorded: label smoothing 0.1, gradient clip 2.0"),
    ],
)
def test_every_factor_of_the_bundle_is_looked_at(study: Study, parameters: dict[str, Any], label: str) -> None:
    results = load_results(study(changed("BaseFP32", **parameters), make_record("AugmFP32"), make_record("BaseFP16")))
    assert results.groups[0].label == f"Baseline FP32 ({label})"
    contrasts, left_out = find_contrasts(results)
    assert contrasts == [] and "BaseFP32-s0 is named Baseline FP32" in left_out[0]


def test_a_variant_may_have_any_factor_and_its_factors_are_read_from_the_record(study: Study) -> None:
    tf32 = changed("BaseFP32", "bf16", precision="bf16")
    tf32.precision = Precision(requested="bf16", effective="bf16", backend="native")
    results = load_results(study(make_record("BaseFP32"), tf32))
    contrasts, _ = find_contrasts(results)
    assert [(contrast.label, contrast.changed_words) for contrast in contrasts] == [
        ("Baseline FP32 (bf16) − Baseline FP32", "precision BF16 against FP32")
    ]
    assert results.groups[1].precision == "bf16" and results.misnamed() == []


def test_the_files_of_the_design_have_the_bundles_of_the_catalogue(study: Study) -> None:
    for name in FOUR:
        record = make_record(name)
        record.parameters |= BUNDLES[record.parameters["augmentation"]]
        assert load_results(study(record, name=name)).misnamed() == []


def test_groups_of_one_experiment_have_labels_that_tell_them_apart(study: Study) -> None:
    records = [changed("BaseFP32", seed=s, dataset=d, epochs=e, learning_rate=lr)
               for s, (d, e, lr) in enumerate([("digits", 12, 0.1), ("digits", 12, 0.2), ("cifar10", 4, 0.1)])]  # fmt: skip
    labels = [group.label for group in load_results(study(*records)).groups]
    assert sorted(labels) == [
        "Baseline FP32 (dataset cifar10, learning rate 0.1)", "Baseline FP32 (dataset digits, learning rate 0.1)",
        "Baseline FP32 (dataset digits, learning rate 0.2)",
    ]  # fmt: skip
