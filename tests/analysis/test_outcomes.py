"""FP8Test is a run like any other; what is noted of runs is shown; sentences are true of odd studies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.analysis.records import FOUR, diverged, imported, make_record, write_notebook
from vitfp8.analysis import study_tables as tables
from vitfp8.analysis import text as prose
from vitfp8.analysis.figures.of_study import draw_figure
from vitfp8.analysis.quantization import quantization_remark, study_remark
from vitfp8.analysis.results import load_results
from vitfp8.analysis.summary import summary, summary_text, write_report_files
from vitfp8.analysis.table import MISSING
from vitfp8.record import JOURNAL, EpochRow, Hardware, Metrics, QuantizationRow, RunRecord, remark_words, remarks_of

Study = Callable[..., Path]
WAYS = (("e4m3", -0.002), ("e5m2", -0.01), ("int8", 0.001), ("int_240", 0.02))


def quantized(seed: int = 0, **changes: Any) -> RunRecord:
    """A completed record of FP8Test; the published rounding, which takes 9 bits, looks best in it."""
    rows = [
        QuantizationRow(format=name, granularity="tensor", operands="weights", test_acc=0.96 + difference,
                        accuracy_difference=difference, mcnemar_p=0.3)
        for name, difference in WAYS
    ]  # fmt: skip
    values: dict[str, Any] = {
        "kind": "quantization", "quantization": rows, "history": [], "metrics": Metrics(), "parameters": {"seed": seed},
        "source": {"run": f"AugmFP16-s{seed}", "experiment": "AugmFP16", "variant": "", "test_acc": 0.96},
        "progress": {"epoch": 4, "epochs": 4, "unit": "measurement"},
    }  # fmt: skip
    return make_record("FP8Test", seed, **(values | changes))


def plain(text: str) -> str:
    """Markdown without its escapes."""
    return text.replace("\\", "")


OUTCOME = (
    "test accuracy of the trained model 96.00 % (n = 1), of 3 ways to 8 bits the best on the test set changes it by +0.10 "
    "points, to 96.10 % (INT8, tensor, weights), the worst by −1.00 points (FP8 E5M2, tensor, weights)."
)


def test_fp8test_is_counted_and_told_wherever_runs_are(study: Study) -> None:
    failed = quantized(1, status="failed", reason="the kernel died", quantization=[])
    results = load_results(study(make_record("AugmFP16"), quantized(), failed))
    assert results.run_count == 3 and results.count("completed") == 2
    opening = plain(prose.opening(results, ""))
    assert "holds 3 runs: 2 completed, 1 failed." in opening and f"FP8 test (post-training): {OUTCOME}" in opening
    assert f"*Outcome:* {OUTCOME}" in plain(prose.outcomes(results)) and "What does FP8Test show?" in prose.outcomes(results)
    assert "FP8Test-s0.ipynb" in [row[0] for row in tables.provenance_table(results).rows]
    text = summary_text(results)
    assert text.startswith("Study trial: 3 runs, 2 completed, 1 failed") and "FP8 test (post-training): FP8Test-s0" in text
    data = summary(results)
    assert data["runs"] == 3 and data["statuses"] == {"completed": 2, "failed": 1}
    assert [(row["kind"], row["experiment"], row["n"]) for row in data["experiments"]] == [
        ("run", "AugmFP16", 1), ("quantization", "FP8Test", 1),
    ]  # fmt: skip
    entry = data["experiments"][1]
    assert entry["metrics"]["best_way_accuracy_difference"]["values"] == [0.001]
    assert [way["format"] for way in entry["ways"]] == ["int8", "e4m3", "e5m2"] and entry["source"]["experiment"] == "AugmFP16"
    assert any("chosen by the test accuracy" in line for line in prose.limits(results).splitlines())


def test_a_study_of_fp8test_alone_says_nothing_false(study: Study, tmp_path: Path) -> None:
    results = load_results(study(quantized()))
    assert results.groups == [] and [len(cell) for cell in results.quantization_cells] == [1]
    opening = prose.opening(results, "")
    assert "holds one run: 1 completed." in opening and "None has completed" not in opening
    methods = prose.methods(results)
    assert methods.startswith("After training: trained models of Augmented FP16 were quantised") and "on Digits." in methods
    assert prose.excluded_remark(results).startswith("Every run of this study completed")
    assert "No training of this study has completed (no run)" in str(draw_figure(1, results))
    assert not isinstance(draw_figure(6, results), str)
    write_report_files(results, tmp_path / "report")
    assert "No run has completed" not in (tmp_path / "report" / "RESULTS_SUMMARY.txt").read_text()


def test_quantisations_are_averaged_over_seeds_alone(study: Study) -> None:
    other = quantized(1)
    other.source["experiment"] = "AugmFP32"
    variant = quantized(0, variant="base", source={"experiment": "BaseFP16", "test_acc": 0.95})
    folder = study(quantized(0), quantized(2), other, variant)
    write_notebook(quantized(2, started="2026-03-01T00:00:00+00:00"), folder / "again.ipynb")
    results = load_results(folder)
    cells = [list(cell) for cell in results.quantization_cells]
    assert sorted(cells) == [["FP8Test-s0", "again"], ["FP8Test-s1"], ["FP8Test~base-s0"]] and cells[-1] == ["FP8Test~base-s0"]
    assert [(row.run, row.reason) for row in results.excluded] == [
        ("FP8Test-s2", "the same seed and parameters as again, which is later and counts")
    ]
    assert "Figure and table leave out" in study_remark(results) and "FP8Test~base-s0" in plain(study_remark(results))
    assert prose.outcomes(results).count("ways to 8 bits") == 3


def test_one_way_without_a_test_is_told_as_such() -> None:
    row = QuantizationRow(format="e4m3", granularity="tensor", operands="weights", test_acc=0.9, accuracy_difference=-0.01)
    text = quantization_remark([quantized(0, quantization=[row])])
    assert "Augmented FP16 changes by −1.00 points (FP8 E4M3, tensor, weights; one run)." in plain(text) and "0 of 0" not in text


def listed(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> str:
    """What ``vitfp8 runs`` prints in the folder above ``executed``."""
    from vitfp8.cli import main

    monkeypatch.chdir(folder.parent.parent)
    done = CliRunner().invoke(main, ["runs", folder.name, *arguments])
    assert done.exit_code == 0, done.output
    return done.output if arguments else words(done.output)


def words(table: str) -> str:
    """A table of a terminal without its lines and folds."""
    return " ".join(re.findall(r"[^\s│┃━─┏┓┗┛┡┩└┘]+", table))


def noted(study: Study) -> Path:
    """A study in which one run was continued, tried before, noted, and replaced an earlier one."""
    record = make_record("BaseFP32", 1)
    record.continued = [{"time": "2026-01-01T00:00:30+00:00", "epoch": 5, "step": 3}]
    record.notes = [{"time": "2026-01-01T00:00:30+00:00", "text": "last.pt: is damaged; continued from previous.pt"}]
    folder = study(make_record("BaseFP32", 0), record, quantized())
    events = [
        {"time": "2025-12-31T00:00:00+00:00", "event": "failed", "reason": "the kernel died", "execution": "another"},
        {"time": "2026-02-01T00:00:00+00:00", "event": "note", "text": "the fan was replaced"},
    ]
    (folder / "BaseFP32-s1.log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    attempt = make_record("BaseFP32", 1, status="interrupted", reason="stopped by Ctrl-C")
    attempt.provenance["run_id"] = "a third"
    write_notebook(attempt, folder / "BaseFP32-s1" / "attempt-1.ipynb")
    for name in ("BaseFP32-s1@20260101-000000.ipynb", "AugmFP32-s0@20260101-000000.ipynb"):
        write_notebook(make_record(), folder / "superseded" / name)
    return folder


def test_everything_that_is_noted_of_a_run_is_read(study: Study) -> None:
    folder = noted(study)
    results = load_results(folder)
    assert list(results.remarks) == ["BaseFP32-s1"]
    assert [(remark.kind, remark.text) for remark in results.remarks["BaseFP32-s1"]] == [
        ("continued", "went on from a checkpoint after epoch 5 and 3 steps of the next"),
        ("attempt", "failed: the kernel died"),
        ("attempt", "interrupted: stopped by Ctrl-C (BaseFP32-s1/attempt-1.ipynb)"),
        ("superseded", "an earlier lab record is superseded/BaseFP32-s1@20260101-000000.ipynb"),
        ("note", "last.pt: is damaged; continued from previous.pt"),
        ("note", "the fan was replaced"),
    ]
    assert results.set_aside == {"AugmFP32-s0": ["AugmFP32-s0@20260101-000000.ipynb"]}


def test_notes_are_in_the_report(study: Study, tmp_path: Path) -> None:
    results = load_results(noted(study))
    rows = tables.notes_table(results).rows
    assert ["BaseFP32-s1", "2026-02-01", "note", "the fan was replaced"] in rows and len(rows) == 6
    assert tables.not_in_results(results).rows[-1][:3] == ["AugmFP32-s0", MISSING, "set aside"]
    assert "Of AugmFP32-s0 only earlier lab records are there" in plain(prose.excluded_remark(results))
    write_report_files(results, tmp_path)
    assert "the fan was replaced" in (tmp_path / "RESULTS_SUMMARY.txt").read_text()
    assert len(summary(results)["notes"]["BaseFP32-s1"]) == 6 and (tmp_path / "tables" / "notes.csv").is_file()


def test_one_note_of_several_runs_is_one_row(study: Study) -> None:
    records = [make_record("BaseFP32", seed, notes=[{"time": f"2026-01-0{seed + 1}", "text": "caveat"}]) for seed in range(2)]
    assert tables.notes_table(load_results(study(*records))).rows == [
        ["BaseFP32-s0, BaseFP32-s1", "2026-01-01 to 2026-01-02", "note", "caveat"]
    ]


def test_runs_and_watch_mark_what_is_noted_and_list_fp8test(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = noted(study)
    text = listed(monkeypatch, folder)
    marks = "continued, 2 earlier attempts, 1 earlier record set aside, 2 notes"
    assert marks in text and "96.10 % (+0.10)" in text and "4/4 measured" in text
    assert "AugmFP32-s0 has only earlier lab records" in text
    data = json.loads(listed(monkeypatch, folder, "--json"))
    runs = {row["run"]: row for row in data["runs"]}
    assert len(runs["BaseFP32-s1"]["remarks"]) == 6 and runs["BaseFP32-s1"]["continued"][0]["epoch"] == 5
    assert runs["FP8Test-s0"]["best_way"]["format"] == "int8" and runs["FP8Test-s0"]["kind"] == "quantization"
    assert data["set_aside"] == {"trial": {"AugmFP32-s0": ["AugmFP32-s0@20260101-000000.ipynb"]}}
    from vitfp8.cli import main

    assert marks in words(CliRunner().invoke(main, ["watch", "trial", "--once"]).output)


def test_a_continued_run_of_an_earlier_version_is_known_by_its_journal(tmp_path: Path) -> None:
    record = make_record("BaseFP32", 3)
    path = write_notebook(record, tmp_path / "BaseFP32-s3.ipynb")
    begins = [
        {"experiment": "BaseFP32", "provenance": {}, "progress": {"epoch": 0}},
        {
            "experiment": "BaseFP32",
            "provenance": {"run_id": "a"},
            "progress": {"epoch": 0},
            "started": "2026-01-01T00:00:00+00:00",
        },
        {
            "experiment": "BaseFP32",
            "provenance": {"run_id": "b"},
            "progress": {"epoch": 7},
            "started": "2026-01-02T00:00:00+00:00",
        },
    ]
    path.with_suffix("").mkdir()
    lines = [json.dumps({"time": "2026-01-01", "begin": begin}) for begin in begins]
    (path.with_suffix("") / JOURNAL).write_text("\n".join([*lines, "torn {"]))
    remarks = remarks_of(path, record)
    assert [(r.kind, r.time, r.text) for r in remarks] == [
        ("continued", "2026-01-02T00:00:00+00:00", "went on from a checkpoint after epoch 7")
    ]
    assert remark_words(remarks) == "continued" and remark_words(remarks * 2) == "continued 2 times"


# ---------------------------------------------------------------------------------------------------- sentences, odd studies


def test_a_single_run_is_not_compared_in_words(study: Study) -> None:
    results = load_results(study(make_record("BaseFP32")))
    assert prose.seeds_remark(results) == "There is a single run, which shows no spread."
    assert prose.comparisons(results) == "This study has no two experiments that could be compared."


def test_six_seeds_of_one_experiment_are_not_called_compared_in_pairs(study: Study) -> None:
    results = load_results(study(*(make_record("BaseFP32", seed) for seed in range(6))))
    assert prose.seeds_remark(results) == "There are 6 seeds a cell."


def test_the_number_of_pairs_decides_what_a_test_can_reach(study: Study) -> None:
    records = [make_record("BaseFP32", seed) for seed in range(6)] + [make_record("AugmFP32", seed) for seed in range(6)]
    records += [make_record("BaseBF16", seed) for seed in range(2)]
    text = prose.seeds_remark(load_results(study(*records)))
    assert text.startswith(
        "There are 2 to 6 seeds a cell; 1 of 2 comparisons has fewer than 6 pairs, with which no test can reach 0.05"
    )


def test_seeds_that_are_not_shared_make_no_pairs(study: Study) -> None:
    records = [make_record("BaseFP32", seed) for seed in range(6)] + [make_record("AugmFP32", seed) for seed in range(10, 16)]
    results = load_results(study(*records))
    assert prose.seeds_remark(results) == "There are 6 seeds a cell."
    text = prose.comparisons(results)
    assert text.startswith("No two experiments of this study are compared:") and "they share no seed" in text


def test_one_shared_seed_of_several_is_not_called_a_single_run(study: Study) -> None:
    records = [make_record("BaseFP32", seed) for seed in range(3)] + [make_record("AugmFP32", seed) for seed in range(2, 5)]
    text = prose.comparisons(load_results(study(*records)))
    assert "in the only seed that both have" in text and "single run per cell" not in text


def test_groups_without_a_test_accuracy_are_named_in_the_headline(study: Study) -> None:
    none = make_record("BaseFP16", metrics=Metrics(epochs=12), history=[EpochRow(epoch=1)])
    only = make_record("AugmFP32", metrics=Metrics(best_val_acc=0.9))
    text = plain(prose.headline(load_results(study(make_record("BaseFP32"), only, none))))
    assert "Best validation accuracy: Augmented FP32 90.00 % (n = 1)." in text
    assert "No test or validation accuracy is recorded of Baseline FP16." in text


def test_sizes_and_parameters_are_said_only_where_all_runs_agree(study: Study) -> None:
    other = make_record("AugmFP32", model={"parameters": 7}, data={"name": "digits", "sizes": {"train": 5, "test": 360}})
    text = prose.methods(load_results(study(make_record("BaseFP32"), other)))
    assert "Data: Digits." in text and "parameters" not in text and "1,200" not in text


def test_methods_of_imported_runs_claim_nothing_of_this_projects_training(study: Study) -> None:
    text = prose.methods(load_results(study(imported())))
    assert "AdamW" not in text and "Training: 12 epochs." in text and "which arithmetic ran" in text


def test_a_diverged_run_is_counted_beside_its_own_group_alone(study: Study) -> None:
    long = make_record("BaseFP16", 0, epochs=30)
    results = load_results(study(make_record("BaseFP16", 0), diverged("BaseFP16", 1)))
    assert results.diverged_beside(results.groups[0]) == 1
    results = load_results(study(long, diverged("BaseFP16", 1), name="long"))
    assert results.diverged_beside(results.groups[0]) == 0


def test_contrasts_between_machines_say_so(study: Study) -> None:
    other = make_record("BaseFP16")
    other.provenance["processor"] = "Another processor"
    results = load_results(study(make_record("BaseFP32"), other))
    assert "Baseline FP16 against Baseline FP32 (on different machines)" in prose.comparisons(results)


def test_only_what_is_there_is_explained_of_runs_outside_the_results(study: Study) -> None:
    alone = load_results(study(make_record("BaseFP32"), diverged("BaseFP16", 0)))
    assert "interrupted" not in prose.excluded_remark(alone) and "A diverged run is a result" in prose.excluded_remark(alone)
    failed = load_results(study(make_record("BaseFP32"), make_record("AugmFP32", status="failed"), name="failed"))
    assert "diverged" not in prose.excluded_remark(failed)


def test_a_variant_is_no_completed_run_of_its_experiment(study: Study) -> None:
    results = load_results(study(make_record("BaseFP32", variant="lr3")))
    assert results.missing_experiments == list(FOUR)
    assert "no completed run (Baseline FP32 (lr3) has completed)" in plain(prose.outcomes(results))


def test_data_without_a_digest_are_unknown_not_different(study: Study) -> None:
    old = make_record("BaseFP16", data={"name": "digits"}, hardware=Hardware())
    results = load_results(study(make_record("BaseFP32"), old))
    assert results.mismatches() == []
