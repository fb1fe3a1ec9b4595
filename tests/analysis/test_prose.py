"""Generated sentences: their numbers, and what they refuse to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.analysis.records import FOUR, HOSTILE, diverged, make_record
from vitfp8.analysis import text as prose
from vitfp8.analysis.results import load_results
from vitfp8.catalog import AUGM_BUNDLE

Study = Callable[..., Path]
ALL = (
    prose.headline, prose.methods, prose.outcomes, prose.comparisons, prose.curve_remark, prose.time_remark,
    prose.excluded_remark, prose.limits, prose.arithmetic, prose.seeds_remark,
)  # fmt: skip


def test_one_run_per_cell_is_never_called_better_or_worse(four: Path) -> None:
    results = load_results(four)
    text = " ".join(function(results) for function in ALL)
    for word in ("better", "worse", "outperform", "superior", "significantly", "improve"):
        assert word not in text
    assert "in this single run per cell" in text and "not judged" in text


def test_three_seeds_give_an_interval_and_refuse_a_test(rich: Path) -> None:
    text = prose.comparisons(load_results(rich))
    assert "95 % confidence interval" in text and "no test can decide" in text and "; significant" not in text


def test_the_bundle_is_spelt_out_where_the_factor_is_named(four: Path) -> None:
    results = load_results(four)
    assert AUGM_BUNDLE in prose.comparisons(results) and AUGM_BUNDLE in prose.methods(results)


def test_question_and_expectation_stand_beside_the_outcome(four: Path) -> None:
    text = prose.outcomes(load_results(four))
    accuracy = 100 * make_record().metrics.test_acc  # type: ignore[operator]
    assert "*Question:* What does BaseFP32 show?" in text and "*Expected:* No difference" in text
    assert f"*Outcome:* test accuracy {accuracy:.2f} % (n = 1)" in text


def test_missing_experiments_and_diverged_runs_are_named(study: Study) -> None:
    text = prose.outcomes(load_results(study(make_record("BaseFP32"), diverged("BaseFP16", 0))))
    assert "no completed run (BaseFP16\\-s0 diverged)" in text.replace("BaseFP16-s0", "BaseFP16\\-s0")
    assert text.count("it was not run in this study") == 2


def test_only_native_times_are_put_beside_each_other(four: Path) -> None:
    text = prose.time_remark(load_results(four))
    assert "native arithmetic took on CPU, Test processor, in the median (and quartiles): Baseline FP32 2.07 s (" in text
    assert "Baseline FP16 and Augmented FP16 are those of an emulation" in text


def test_the_test_sets_size_bounds_an_accuracy(four: Path) -> None:
    text = prose.limits(load_results(four))
    assert "360 images" in text and "standard error" in text


def test_methods_state_data_model_and_training_from_the_records(four: Path) -> None:
    text = prose.methods(load_results(four))
    assert "Digits (1,200 for training, 133 for validation and 360 for test)" in text
    assert "`vit_tiny_patch16_224` with images of 16×16 and 104,010 parameters" in text
    assert "12 epochs" in text and "emulated" in text


def test_a_mismatch_is_said_at_the_very_beginning(study: Study) -> None:
    results = load_results(study(make_record("BaseFP32"), make_record("AugmFP32", epochs=3)))
    assert "**Note.** These runs are not comparable throughout, epochs differs" in prose.opening(results, "")


@pytest.mark.parametrize("function", ALL)
def test_every_sentence_survives_an_empty_study(study: Study, function: Callable[..., str]) -> None:
    assert isinstance(function(load_results(study(diverged("BaseFP32", 0)))), str)


def test_hostile_texts_are_words_in_every_sentence(study: Study) -> None:
    from tests.analysis.records import write_notebook
    from vitfp8.reporting.pandoc import read_markdown

    failed = make_record("AugmFP32", 1, status="failed", reason=HOSTILE)
    folder = study(make_record("BaseFP32", question=HOSTILE, expectation=HOSTILE), failed)
    record = make_record("BaseFP16", variant=HOSTILE, model={"name": HOSTILE, "parameters": 7})
    record.parameters["model"] = HOSTILE
    record.provenance["processor"] = HOSTILE
    write_notebook(record, folder / "hostile.ipynb")
    results = load_results(folder)
    for text in [prose.opening(results, HOSTILE, HOSTILE), *(function(results) for function in ALL)]:
        assert "<script" not in text and "$~" not in text
        kinds = {node["t"] for block in read_markdown(text) for node in _nodes(block)}
        assert not kinds & {"RawInline", "RawBlock", "Math", "Link", "Image", "Cite"}


def _nodes(tree: object) -> list[dict[str, object]]:
    if isinstance(tree, list):
        return [node for item in tree for node in _nodes(item)]
    if isinstance(tree, dict):
        return ([tree] if "t" in tree else []) + [node for value in tree.values() for node in _nodes(value)]
    return []


def test_six_seeds_are_compared_in_pairs(study: Study) -> None:
    results = load_results(study(*(make_record(name, seed) for name in FOUR[:2] for seed in range(6))))
    assert "6 seeds a cell, compared in pairs" in prose.seeds_remark(results)
    assert "sign-flip test, p = 0.0312" in prose.comparisons(results)
