"""Times are guarded against a busy machine: medians beside totals, and disturbed runs out of every comparison of time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.records import make_record
from vitfp8.analysis import study_tables as tables
from vitfp8.analysis import text as prose
from vitfp8.analysis.contrasts import find_contrasts
from vitfp8.analysis.disturbance import disturbed, others_share
from vitfp8.analysis.figures.of_study import draw_figure
from vitfp8.analysis.results import load_results
from vitfp8.analysis.summary import summary
from vitfp8.experiment import summarize
from vitfp8.record import EpochRow, RunRecord, quartiles
from vitfp8.verify.figures import wrong_figures

Study = Callable[..., Path]


def loaded(machine: float, process: float, *, seed: int = 0, experiment: str = "BaseFP32", **provenance: Any) -> RunRecord:
    """A run on two processors with a constant load: of the machine in %, of the process in % of one processor."""
    record = make_record(experiment, seed)
    record.provenance |= {"logical_cores": 2} | provenance
    record.hardware.samples = {
        "seconds": [1.0 * i for i in range(20)], "cpu_percent": [None] + [machine] * 19,
        "process_cpu_percent": [None] + [process] * 19,
    }  # fmt: skip
    return record


def slow(record: RunRecord, factor: float) -> RunRecord:
    """The same run, slower."""
    for row in record.history:
        row.epoch_seconds = factor * (row.epoch_seconds or 0)
    record.metrics.train_seconds = factor * (record.metrics.train_seconds or 0)
    record.metrics.epoch_seconds_mean = factor * (record.metrics.epoch_seconds_mean or 0)
    return record


@pytest.mark.parametrize(
    ("machine", "process", "expected"),
    [
        (100.0, 92.0, True),  # 46 % of the machine is the run's, 54 % others'
        (100.0, 199.0, False),
        (52.0, 100.0, False),  # a core is free, and nobody takes the other
        (95.0, 100.0, True),
        (40.0, 20.0, False),  # others are busy, but more than half the machine is idle
        (60.0, 98.0, True),
        (58.0, 100.0, False),
    ],
)
def test_a_run_is_disturbed_when_others_take_a_tenth_of_a_busy_machine(machine: float, process: float, expected: bool) -> None:
    assert disturbed(loaded(machine, process)) is expected


def test_what_was_not_measured_is_unknown() -> None:
    record = loaded(100, 50)
    del record.hardware.samples["process_cpu_percent"]
    few = loaded(100, 50)
    few.hardware.samples = {key: column[:3] for key, column in few.hardware.samples.items()}
    nowhere = loaded(100, 50)
    del nowhere.provenance["logical_cores"]
    assert [disturbed(r) for r in (make_record(), record, few, nowhere)] == [None] * 4
    assert others_share(nowhere) is None


def test_where_only_cores_are_known_the_answer_must_hold_with_and_without_two_threads_a_core() -> None:
    def old(machine: float, process: float) -> RunRecord:
        record = loaded(machine, process, cores=2)
        del record.provenance["logical_cores"]
        return record

    assert disturbed(old(100, 50)) is True and disturbed(old(52, 100)) is None and disturbed(old(20, 20)) is False


def test_only_samples_within_the_training_count() -> None:
    record = loaded(52, 100)
    record.metrics.train_seconds = 10.0
    record.hardware.samples["cpu_percent"][11:] = [100.0] * 9
    assert disturbed(record) is False
    record.metrics.train_seconds = 19.0
    assert disturbed(record) is True


def test_processes_that_read_images_are_the_runs_own() -> None:
    record = loaded(100, 100)
    record.parameters["workers"] = 1
    assert disturbed(record) is False


def test_a_disturbed_run_is_in_no_mean_of_time_and_in_every_accuracy(study: Study) -> None:
    calm, busy = loaded(52, 100), slow(loaded(100, 92, seed=1), 3)
    others = [loaded(52, 100, seed=seed, experiment="BaseBF16") for seed in range(2)]
    results = load_results(study(calm, busy, *others))
    group = results.groups[0]
    rows = {row[0]: row[1] for row in tables.comparison(results).rows}
    assert (group.n, group.disturbed, group.marks) == (2, 1, "")
    assert rows["Total time (s)"] == f"{calm.metrics.train_seconds:.1f} (n = 1)"
    assert rows["Others took the processor"] == "1 of 2 runs"
    assert "(n" not in rows["Test accuracy, last weights (%)"]
    assert find_contrasts(results)[0][0].paired.n == 2
    text = prose.time_remark(results)
    assert "Baseline FP32 2.07 s (2.04 to 2.10)" in text or "Baseline FP32 2.07 s (2.04 to 2.09)" in text
    assert "Others took the processor while BaseFP32" in text and "54 % of the processors" in text.replace("\\", "")
    assert any("leave out one run" in note for note in tables.comparison(results).notes)
    first = summary(results)["experiments"][0]
    assert first["metrics"]["train_seconds"]["n"] == 1 and first["metrics"]["test_acc"]["n"] == 2
    assert first["disturbed"] == [False, True] and first["timings_comparable"] is True


def test_where_every_run_was_disturbed_times_are_marked_and_not_compared(study: Study) -> None:
    results = load_results(study(slow(loaded(100, 92), 3), loaded(52, 100, experiment="AugmFP32")))
    rows = {row[0]: row[1:] for row in tables.comparison(results).rows}
    for label in (
        "Total time (s)",
        "Time an epoch, ± over epochs (s)",
        "Time an epoch, median (quartiles) (s)",
        "Images a second",
    ):
        assert rows[label][0].endswith(" ‡") and "‡" not in rows[label][1]
    assert "‡" not in rows["Test accuracy, last weights (%)"][0]
    table = tables.comparison(results)
    assert any(note.startswith("‡ others took the processor during every run") for note in table.notes)
    assert r"\ddag{}" in table.to_latex()
    text = prose.time_remark(results)
    assert "Augmented FP32 2.07 s" in text and "Baseline FP32 6" not in text
    assert summary(results)["experiments"][0]["timings_comparable"] is False
    assert not isinstance(draw_figure(4, results), str)


def test_medians_and_quartiles_stand_beside_the_totals(study: Study) -> None:
    record = make_record()
    for row, seconds in zip(record.history, [9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 99.0], strict=True):
        row.epoch_seconds = seconds
    group = load_results(study(record)).groups[0]
    assert group.epoch_quartiles() == (3.5, 6.0, 8.5)  # the first epoch, which is slower, is left out
    rows = {row[0]: row[1] for row in tables.comparison(load_results(study(record))).rows}
    assert rows["Time an epoch, median (quartiles) (s)"] == "6.00 (3.50–8.50)"
    assert group.values("epoch_seconds_median") == [6.0] and group.values("epoch_seconds_q3") == [8.5]


def test_a_record_carries_its_quartiles_and_verify_computes_them_again() -> None:
    seconds = [9.0, 1.0, 2.0, 3.0, 5.0]
    rows = [
        EpochRow(epoch=i, train_loss=1, train_acc=0.5, clean_train_loss=1, clean_train_acc=0.5, val_loss=1, val_acc=0.5,
                 learning_rate=0.1, epoch_seconds=s, train_seconds=s, images_per_second=10)
        for i, s in enumerate(seconds, 1)
    ]  # fmt: skip
    metrics = summarize([row.model_dump() for row in rows], best_epoch=1, best_val_acc=0.5)
    assert (metrics.epoch_seconds_q1, metrics.epoch_seconds_median, metrics.epoch_seconds_q3) == (1.75, 2.5, 3.5)
    record = RunRecord(experiment="BaseFP32", seed=0, history=rows, metrics=metrics, progress={"epoch": 5})
    assert list(wrong_figures(record)) == []
    record.metrics.epoch_seconds_q3 = 3.6
    assert "metrics.epoch_seconds_q3" in next(wrong_figures(record))
    record.metrics.epoch_seconds_q1 = record.metrics.epoch_seconds_median = record.metrics.epoch_seconds_q3 = None
    assert list(wrong_figures(record)) == []  # as records of earlier versions are


def test_quartiles_of_one_value_are_that_value() -> None:
    assert quartiles([2.0]) == (2.0, 2.0, 2.0) and quartiles([1.0, 3.0]) == (1.5, 2.0, 2.5)


def test_times_of_other_workloads_do_not_stand_beside_each_other(study: Study) -> None:
    other = make_record("AugmFP32")
    other.parameters["batch_size"] = 128
    text = prose.time_remark(load_results(study(make_record("BaseFP32"), other)))
    assert "Baseline FP32 2.07 s (2.04 to 2.09)." in text or "Baseline FP32 2.07 s (2.04 to 2.10)." in text
    assert "with other data, model, batches, threads or compilation, not to be compared with those" in text


def test_times_of_compiled_and_eager_runs_are_not_side_by_side(study: Study) -> None:
    def of(experiment: str, seed: int, compiled: bool | None) -> RunRecord:
        record = make_record(experiment, seed)
        assert record.precision is not None
        record.precision.compiled = compiled
        return record

    runs = [of("BaseFP32", 0, True), of("BaseFP32", 1, False), of("BaseFP32", 2, None), of("AugmFP32", 0, False)]
    results = load_results(study(*runs))
    assert sorted((g.experiment, g.compiled, g.n) for g in results.groups) == [
        ("AugmFP32", False, 1), ("BaseFP32", False, 2), ("BaseFP32", True, 1),
    ]  # fmt: skip
    said = sorted(prose.time_remark(results).split("An epoch in native arithmetic took on ")[1:], key=lambda s: "compiled," in s)
    assert ["compiled, in the median" in sentence for sentence in said] == [False, True]
    assert ["Augmented FP32" in sentence for sentence in said] == [True, False]
