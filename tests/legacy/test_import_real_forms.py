"""Import of files as the earlier project really wrote them: clock times, thermal levels, timing reports, both FP8 tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.legacy import old_results as old
from vitfp8 import load_quantization, read_record
from vitfp8.analysis import load_results
from vitfp8.analysis.quantization import quantization_table
from vitfp8.legacy import import_results
from vitfp8.legacy.hardware import hardware_of
from vitfp8.legacy.names import OLD_NAMES
from vitfp8.legacy.notebook import origin_table
from vitfp8.legacy.reader import NotTakenError, read_gpu, read_load
from vitfp8.legacy.source import SourceTree, read_tree
from vitfp8.record import Hardware, RunRecord


def source_of(here: Path, name: str, content: object) -> SourceTree:
    """A tree with one file."""
    old.write(here / "source" / name, content)
    return read_tree(here / "source")


def gpu_of(here: Path, *times: str) -> tuple[Hardware, list[str]]:
    """What becomes of a GPU file alone, and what the note says of it."""
    tree = source_of(here, "gpu_stats.csv", old.clock(*times))
    series = read_gpu(tree, tree.files["gpu_stats.csv"])
    return hardware_of([series]), series.notes


def levels_of(here: Path, numbers: list[Any]) -> tuple[dict[str, Any], list[Any], str]:
    """Summary and samples of a hardware file with these thermal levels, and what the note says of it."""
    tree = source_of(here, "hardware_stats.json", old.levels(numbers))
    series = read_load(tree, tree.files["hardware_stats.json"])
    hardware = hardware_of([series])
    return hardware.summary, hardware.samples["thermal_pressure"], " ".join(series.notes)


def record_of(name: str = "BaseFP32-imported", study: str = "imported") -> RunRecord:
    """An imported record, read back."""
    return read_record(f"executed/{study}/{name}.ipynb")


# ------------------------------------------------------------------------------------------------------------- hardware


def test_times_of_day_become_seconds_past_midnight_too(here: Path) -> None:
    hardware, remarks = gpu_of(here, "23:59:57", "23:59:58", "23:59:59", "00:00:00", "00:00:01")
    assert remarks == []
    assert hardware.samples["seconds"] == [0, 1, 2, 3, 4] and hardware.samples["gpu_power_watts"] == [14.0] * 5
    assert hardware.summary["energy_joules"] == pytest.approx((14 + 3) * 4) and hardware.summary["seconds"] == 4


def test_a_laptop_that_slept_over_midnight_loses_no_order_and_adds_no_energy_for_the_gap(here: Path) -> None:
    hardware, _ = gpu_of(here, "20:00:00", "20:00:01", "20:00:02", "10:00:00", "10:00:01", "10:00:02")
    assert hardware.samples["seconds"] == [0, 1, 2, 50400, 50401, 50402]
    assert hardware.summary["energy_joules"] == pytest.approx((14 + 3) * 4)


def test_two_midnights_are_two_days(here: Path) -> None:
    hardware, _ = gpu_of(here, "23:00:00", "05:00:00", "23:00:00", "05:00:00")
    assert hardware.samples["seconds"] == [0, 6 * 3600, 24 * 3600, 30 * 3600]


def test_a_clock_that_is_set_back_is_not_a_midnight_and_is_said(here: Path) -> None:
    hardware, remarks = gpu_of(here, "02:59:58", "02:59:59", "02:00:00", "02:00:01")
    assert hardware.samples["seconds"] == [0, 1, 2] and hardware.summary["energy_joules"] == pytest.approx((14 + 3) * 2)
    assert "goes back by 3599 s" in " ".join(remarks)


@pytest.mark.parametrize("time", ["24:00:00", "12:60:00", "12:00", "noon", "1:2:3:4"])
def test_nothing_is_taken_from_a_file_with_something_else_than_times_of_day(here: Path, time: str) -> None:
    with pytest.raises(NotTakenError, match="timestamp, line 3: .* is not a time of day"):
        gpu_of(here, "10:00:00", time, "10:00:02")


def test_thermal_levels_stay_numbers_and_any_above_0_is_throttled(here: Path) -> None:
    summary, samples, remarks = levels_of(here, [0, 0, 33, 0])
    assert samples == [0, 0, 33, 0] and (summary["thermal_pressure_max"], summary["throttled"]) == (33, True)
    assert remarks == ""


def test_zeros_alone_are_not_throttled_and_the_record_says_what_else_a_zero_can_mean(here: Path) -> None:
    summary, samples, remarks = levels_of(here, [0, 0, 0])
    assert samples == [0, 0, 0] and (summary["thermal_pressure_max"], summary["throttled"]) == (0, False)
    assert "also wrote where it could read no level" in remarks


@pytest.mark.parametrize("number", [0.5, -1, True, "hot"])
def test_nothing_is_taken_from_a_file_with_something_else_than_levels(here: Path, number: Any) -> None:
    with pytest.raises(NotTakenError, match="thermal_pressure, value 1"):
        levels_of(here, [number, 3])


# --------------------------------------------------------------------------------------------------------- what is stated


def test_what_the_timing_report_states_is_in_the_record_and_no_sentence_denies_it(here: Path) -> None:
    folder = old.run(here / "old", "BaseFP32", layout=2)
    best = max(old.metrics()["val_acc"])
    old.write(folder / "timing_report.json", old.timing(best=best))
    old.write(folder / "gpu_stats.csv", old.clock("10:00:00", "10:00:01"))
    import_results(here / "old")
    record = record_of()
    assert record.status == "completed" and record.reason is None
    assert record.provenance["imported"]["timing_report"] == old.timing(best=best)
    assert (record.parameters["epochs"], record.progress) == (12, {"epoch": 12, "epochs": 12})
    said = old.said_of(record)
    stated = "precision fp32, augmentation basic, 12 planned epochs, the configuration configs/BaseFP32.yaml"
    assert f"timing_report.json states {stated}" in said
    assert "No file of the folder states them" not in said and "no file states" not in said and "history counts" not in said
    rows = dict(origin_table(record).rows)
    assert rows["timing_report.json: config_file"] == "configs/BaseFP32.yaml" and rows["Epochs"] == "12"


def test_without_a_timing_report_the_record_says_that_the_plan_is_unknown(here: Path) -> None:
    (old.run(here / "old", "BaseFP32", layout=2) / "timing_report.json").unlink()
    import_results(here / "old")
    record = record_of()
    assert "how many epochs were planned, no file states" in old.said_of(record)
    assert "Precision, augmentation and bundle are what the name stands for" in old.said_of(record)


@pytest.mark.parametrize(
    ("name", "stated", "hint"),
    [
        ("AugmFP16", {"precision": "fp16", "augmentation": "basic"}, "one of BaseFP16, BaseFP16_OLD_ARCHIVE"),
        ("BaseFP32", {"precision": "fp16", "augmentation": "extended"}, "--as BaseFP32=AugmFP16"),
        ("verification_run_fp32", {"augmentation": "extended"}, "--as verification_run_fp32=AugmFP32"),
        ("mine", {"precision": "bf16"}, "no experiment of the earlier project had that"),
    ],
)
def test_a_folder_whose_files_contradict_its_name_waits_and_the_hint_is_what_they_state(
    here: Path, name: str, stated: dict[str, str], hint: str
) -> None:
    old.run(here / "old", "exp2_regularized", layout=2)
    old.write(old.run(here / "old", name, layout=2) / "timing_report.json", old.timing(**stated))
    (left,) = import_results(here / "old", dry_run=True).imports.left
    assert left.startswith(f"{name}: is not") and hint in left


def test_the_hint_for_a_folder_that_says_nothing_names_no_experiment_in_particular(here: Path) -> None:
    old.run(here / "old", "exp1_baseline")
    old.run(here / "old", "my_fp16_run")
    (left,) = import_results(here / "old", dry_run=True).imports.left
    assert "--as my_fp16_run=NAME, where NAME is one of BaseFP32, AugmFP32, BaseFP16, AugmFP16, FP8Test" in left


def test_a_configuration_in_the_folder_states_the_plan_as_well(here: Path) -> None:
    folder = old.run(here / "old", "BaseFP32", layout=2)
    (folder / "timing_report.json").unlink()
    old.write(folder.parent / "BaseFP32.yaml", "data: {augmentation: basic}\ntraining: {precision: fp32, num_epochs: 50}\n")
    import_results(here / "old")
    record = record_of()
    assert record.status == "failed" and "after 12 of 50 planned epochs" in str(record.reason)
    assert record.progress == {"epoch": 12, "epochs": 50}
    assert "BaseFP32/BaseFP32.yaml states precision fp32, augmentation basic, 50 planned epochs." in old.said_of(record)


def test_parameters_that_changed_within_the_earlier_project_are_not_known(here: Path) -> None:
    for name in ("baseline_fp32", "exp2_regularized"):
        old.write(old.run(here / "old", name) / "timing_report.json", {"num_epochs": 20})
    import_results(here / "old")
    base, augm = record_of(), record_of("AugmFP32-imported")
    assert "batch_size" not in base.parameters and "batch size" not in old.said_of(base)
    assert augm.parameters["batch_size"] == 128 and augm.parameters["warmup_fraction"] == 5 / 20


# ---------------------------------------------------------------------------------------------------------------- names


def test_the_names_that_the_renaming_of_the_earlier_project_made_are_known() -> None:
    assert OLD_NAMES["experiment3_fp16_OLD_ARCHIVE"] == "BaseFP16_OLD_ARCHIVE"
    assert all(OLD_NAMES[name] == name for name in ("BaseFP32", "AugmFP32", "AugmFP16", "FP8Test"))


def test_a_renamed_archive_is_imported_as_what_it_is(here: Path) -> None:
    old.run(here / "old", "experiment3_fp16_OLD_ARCHIVE")
    result = import_results(here / "old")
    assert result.imports.left == [] and record_of("BaseFP16_OLD_ARCHIVE-imported").parameters["augmentation"] == "basic"


# --------------------------------------------------------------------------------------------------------------- status


@pytest.mark.parametrize(
    ("planned", "interrupted", "timing", "status", "said"),
    [
        (12, None, True, "completed", None),
        (50, 12, True, "interrupted", "after 12 of 50 planned epochs"),  # Ctrl-C: the trainer wrote all three files
        (50, None, True, "interrupted", "after 12 of 50 planned epochs"),
        (50, 5, True, "interrupted", "after 12 of 50 planned epochs"),
        (12, 5, True, "completed", None),  # an earlier try in the same folder was interrupted
        (None, 12, False, "interrupted", "how many epochs were planned, no file states"),
        (None, 5, False, "completed", None),
        (None, None, False, "completed", None),
    ],
)
def test_status_comes_from_the_planned_epochs_and_those_that_are_there(
    here: Path, planned: int | None, interrupted: int | None, timing: bool, status: str, said: str | None
) -> None:
    folder = old.run(here / "old", "BaseFP32", layout=2)
    (folder / "timing_report.json").unlink()
    if timing and planned:
        old.write(folder / "timing_report.json", old.timing(planned))
    if interrupted:
        lists = {key: values[:interrupted] for key, values in old.metrics().items()}
        old.write(folder / "interrupted_metrics.json", lists)
    import_results(here / "old")
    record = record_of()
    assert (record.status, len(record.history)) == (status, 12)
    assert record.reason is None if said is None else said in str(record.reason)
    assert record.progress.get("epochs") == (planned or (12 if status == "completed" else None))
    listed = load_results("executed/imported")
    assert [row.status for row in listed.excluded] == ([] if status == "completed" else [status])


def test_a_checkpoint_beyond_the_history_is_no_completed_run(here: Path) -> None:
    folder = old.run(here / "old", "exp1_baseline")
    (folder / "timing_report.json").unlink()
    old.checkpoint(folder / "checkpoint_epoch_20.pt", 20, 0.7)
    import_results(here / "old")
    record = record_of()
    assert record.status == "interrupted" and "a checkpoint is of epoch 20" in str(record.reason)


# -------------------------------------------------------------------------------------------------------------- FP8 tests


def test_the_later_fp8_test_says_which_model_was_quantised(here: Path) -> None:
    old.write(here / "old/FP8Test/metrics/fp8_quantization_results.json", old.second_fp8_test())
    import_results(here / "old")
    record = record_of("FP8Test-imported")
    assert record.source["experiment"] == "AugmFP16" and record.source["path"] == "results/AugmFP16/checkpoints/best_model.pt"
    said = old.said_of(record)
    assert "Quantised: results/AugmFP16/checkpoints/best_model.pt" in said and "does not say" not in said
    assert "degradation" not in said and "whole numbers up to ±240" in said
    assert "Means of batch means were taken, not means over images" not in said and "correct images ÷ images" in said
    assert ["Quantised", "results/AugmFP16/checkpoints/best_model.pt"] in origin_table(record).rows
    (row,) = load_quantization("executed/imported").to_dict("records")
    assert (row["source_experiment"], row["format"], row["test_acc"]) == ("AugmFP16", "int_240", 0.8321)


def test_the_first_fp8_test_is_in_percent_and_rounded_to_nine_levels(here: Path) -> None:
    old.write(here / "old/checkpoints/exp4_fp8_test/fp8_test_results.json", old.first_fp8_test())
    import_results(here / "old")
    record = record_of("FP8Test-imported")
    (row,) = record.quantization
    assert (row.format, row.test_acc) == ("int_4", pytest.approx(0.315)) and record.source["test_acc"] == pytest.approx(0.8329)
    assert row.accuracy_difference == pytest.approx(-0.5179)
    assert "whole numbers up to ±4:" in old.said_of(record) and "±240" not in old.said_of(record)
    assert "does not say; it calls it original_fp16" in old.said_of(record) and "degradation" not in old.said_of(record)
    assert [cells[0] for cells in quantization_table([record]).rows] == ["int_4 (imported)"]
