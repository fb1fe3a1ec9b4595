"""What tables, sentences and the summary say of odd studies: repeats, imported runs, few seeds, what is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.analysis.records import FOUR, imported, make_record, write_notebook
from tests.analysis.test_outcomes import plain, quantized
from tests.analysis.test_variants import fp8
from vitfp8.analysis import study_tables as tables
from vitfp8.analysis import text as prose
from vitfp8.analysis.contrasts import find_contrasts
from vitfp8.analysis.live import follow_quantization
from vitfp8.analysis.quantization import quantization_remark, quantization_table
from vitfp8.analysis.results import load_results
from vitfp8.analysis.summary import summary, summary_text
from vitfp8.record import QuantizationRow, RunRecord, SensitivityRow

Study = Callable[..., Path]


def of_earlier_project(experiment: str) -> RunRecord:
    """An imported run of an experiment of the design: without a seed."""
    record = imported()
    return record.model_copy(update={"experiment": experiment, "parameters": make_record(experiment).parameters | {"seed": None}})


# ------------------------------------------------------------------------------------------------------------ repeats


@pytest.mark.parametrize("make", [make_record, quantized])
@pytest.mark.parametrize("months", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3)])
def test_of_many_repeats_of_a_seed_the_latest_counts_and_is_named(
    make: Callable[..., RunRecord], months: tuple[int, ...], study: Study
) -> None:
    folder = study(make_record("AugmFP16"))
    for name, month in zip("abcd", months, strict=True):
        write_notebook(make(started=f"2026-0{month}-01T00:00:00+00:00"), folder / f"{name}.ipynb")
    results = load_results(folder)
    latest = "abcd"[months.index(4)]
    reason = f"the same seed and parameters as {latest}, which is later and counts"
    assert {row.run: row.reason for row in results.excluded} == {name: reason for name in "abcd" if name != latest}


# ---------------------------------------------------------------------------------------------------------- sentences


def test_experiments_without_a_completed_run_are_named(study: Study) -> None:
    text = prose.excluded_remark(load_results(study(make_record("BaseFP32"), make_record("AugmFP16"))))
    assert text.endswith("Without a completed run: Augmented FP32 and Baseline FP16.")


def test_an_error_of_the_test_set_needs_its_size(study: Study) -> None:
    assert "The test set has" not in prose.limits(load_results(study(make_record(data={}))))


def test_the_gap_is_part_of_an_outcome_where_it_is_known(study: Study) -> None:
    known, unknown = make_record(), make_record("AugmFP32")
    unknown.metrics.generalization_gap = None
    text = plain(prose.outcomes(load_results(study(known, unknown))))
    assert text.count("generalisation gap 2.00 points") == 1 == text.count("generalisation gap")


def test_the_best_epoch_of_imported_runs_was_chosen_on_the_test_set(study: Study) -> None:
    record = imported()
    record.metrics.best_epoch = 11
    text = prose.curve_remark(load_results(study(record, make_record())))
    assert text.count("best accuracy on the test set (76.00 %) in epoch 11") == 1 and text.count("best validation accuracy") == 1


def test_a_run_that_stopped_says_how_far_it_came(study: Study) -> None:
    failed = make_record(status="failed", reason="out of memory", progress={"epoch": 5, "epochs": 12})
    unknown = make_record("AugmFP32", status="failed", history=[], progress={}, parameters={})
    rows = {row.run: row.epochs for row in load_results(study(failed, unknown)).excluded}
    assert rows == {"BaseFP32-s0": "5 of 12", "AugmFP32-s0": "? of ?"}


def test_a_variant_without_a_reference_names_the_reference_that_is_missing(study: Study) -> None:
    _, left_out = find_contrasts(load_results(study(fp8(0, "mxfp8", fp8_recipe="mxfp8"))))
    assert any("is not compared with Baseline FP32: this study holds no completed run of it" in line for line in left_out)


# ---------------------------------------------------------------------------------------------------- tables, summary


@pytest.mark.parametrize(("seeds", "told"), [(1, False), (5, False), (6, True)])
def test_the_csv_of_contrasts_holds_a_p_from_six_seeds_on(seeds: int, told: bool, study: Study) -> None:
    records = [make_record(name, seed) for name in FOUR[:2] for seed in range(seeds)]
    values = tables.contrast_table(load_results(study(*records))).values
    assert isinstance(values, pd.DataFrame) and len(values) == 1
    assert (values["sign_flip_p"].iloc[0] == 2 / 2**6) if told else pd.isna(values["sign_flip_p"].iloc[0])


def test_two_imported_runs_without_a_seed_are_compared_with_each_other(study: Study) -> None:
    table = tables.contrast_table(load_results(study(of_earlier_project("BaseFP32"), of_earlier_project("BaseFP16"))))
    assert [row[0] for row in table.rows] == ["Baseline FP16 (imported) − Baseline FP32 (imported)"]
    assert table.notes == [
        "Imported runs, among themselves: differences of best accuracy on the test set, which also chose the epoch, in points."
    ]


def test_memory_of_emulated_arithmetic_carries_a_dagger(four: Path) -> None:
    rows = {row[0]: row for row in tables.comparison(load_results(four)).rows}
    for label in ("Memory, mean (%)", "Memory, maximum (%)"):
        assert [cell.endswith("†") for cell in rows[label][1:]] == [False, False, True, True]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_json_has_an_interval_from_two_seeds_on(seeds: int, study: Study) -> None:
    found = summary(load_results(study(*(make_record(seed=seed) for seed in range(seeds)))))["experiments"][0]["metrics"]
    interval = found["test_acc"]["ci95"]
    assert interval is None if seeds == 1 else interval[0] < found["test_acc"]["mean"] < interval[1]


def test_the_summary_has_contrasts_and_remarks_where_there_are_any_and_says_what_is_backed_up(study: Study) -> None:
    both = summary_text(load_results(study(make_record("BaseFP32"), make_record("AugmFP32"), name="both")))
    assert "\nContrasts\n" in both and "95 % interval" in both and "\nRemarks\n" not in both
    other = summary_text(load_results(study(make_record("BaseFP32"), make_record("AugmFP16"), name="other")))
    assert "\nContrasts\n" not in other and "\nRemarks\n- " in other and " is compared with nothing: " in other
    assert "\nThe results are not backed up; `vitfp8 backup " in both and " PLACE` does it.\n" in both


# ------------------------------------------------------------------------------------------------ after training


def exported(**changes: Any) -> RunRecord:
    row = QuantizationRow(
        format="e4m3", granularity="tensor", operands="weights", test_acc=0.95, accuracy_difference=-0.01, mcnemar_p=0.3,
        logit_sqnr_db=23.4, export={"bytes": 1_234_000, "same_predictions": True} | changes,
    )  # fmt: skip
    return quantized(quantization=[row])


def test_the_table_of_quantisations_says_what_its_numbers_are() -> None:
    one, two, mixed = (
        quantization_table(records).notes
        for records in ([quantized()], [quantized(), quantized(1)], [quantized(), quantized(1, origin="imported")])
    )
    assert one[0].startswith("Differences in points to the source on the same test images (") and "McNemar" in one[0]
    assert [sum(note.startswith("Means over 2 runs") for note in notes) for notes in (one, two, mixed)] == [0, 1, 0]
    assert [sum(note.startswith("Imported: ") for note in notes) for notes in (one, two, mixed)] == [0, 0, 1]
    assert not any(note.startswith("Differences") for note in quantization_table([quantized(origin="imported")]).notes)


def test_the_table_of_quantisations_shows_decibels_and_whether_a_file_gave_the_same_model() -> None:
    rows = [quantization_table([exported(same_predictions=same)]).rows[0] for same in (True, False)]
    assert [row[7] for row in rows] == ["23.4"] * 2 and [row[10] for row in rows] == ["1.234", "1.234 (differs when loaded)"]


def test_the_layer_that_hurts_most_is_named() -> None:
    rows = [
        SensitivityRow(layer=f"blocks.{n}.mlp.fc1", format="e4m3", granularity="tensor", operands="weights", logit_sqnr_db=db)
        for n, db in enumerate((30.0, 12.3, 25.0))
    ]
    assert "Of 3 layers quantised alone to E4M3, blocks.1.mlp.fc1 moves the logits most (SQNR 12.3 dB" in plain(
        quantization_remark([quantized(sensitivity=rows)])
    )


def test_a_variant_that_was_quantised_is_named_as_one(study: Study) -> None:
    source = {"run": "AugmFP16~wide-s0", "experiment": "AugmFP16", "variant": "wide", "test_acc": 0.96}
    text = plain(prose.methods(load_results(study(make_record("AugmFP16"), quantized(source=source)))))
    assert "trained models of Augmented FP16 (wide) were quantised" in text


def test_measurements_are_counted_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    follow = follow_quantization(12)
    for row in exported().quantization * 2:
        follow(row)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1/12", "2/12"] and "logit SQNR 23.4 dB" in lines[0]
