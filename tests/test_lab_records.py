"""Lab records that were committed when their code was the present one: every later version reads, reports and repeats them.

`lab_records/smoke` has each precision, a variant, a quantisation, and runs that diverged, failed and were interrupted;
`lab_records/before_fp8` has two from before the parameters `fp8_recipe`, `base_precision` and `torch_compile` existed. They are
never edited: a later form of records gets a folder of its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from vitfp8 import load_history, load_quantization, load_runs, read_record
from vitfp8.analysis.results import load_results
from vitfp8.cli import main
from vitfp8.experiment import prepare_experiment
from vitfp8.params import Layer, RunParams, field_notes, validate
from vitfp8.record import RunJournal, digest_of
from vitfp8.verify.checks import verify

HERE = Path(__file__).parent / "lab_records"
SMOKE = HERE / "smoke"
NOTEBOOKS = sorted(HERE.glob("*/*.ipynb"))

#: Run → status, epochs done, a part of the reason.
STATES = {
    "AugmFP16-s0": ("completed", 2, ""),
    "BaseBF16-s0": ("completed", 2, ""),
    "BaseFP16-s0": ("completed", 2, ""),
    "BaseFP16-s1": ("diverged", 1, "the loss is not finite at step 25 (epoch 2, step 5 of it)"),
    "BaseFP32-s0": ("completed", 2, ""),
    "BaseFP32-s2": ("interrupted", 272, "stopped by SIG"),
    "BaseFP32-s3": ("failed", 8, "the kernel died without a word"),
    "BaseFP8-s0": ("completed", 2, ""),
    "BaseFP8~mxfp8-s0": ("completed", 2, ""),
}


def test_the_records_say_how_each_run_ended() -> None:
    runs = load_runs(SMOKE).set_index("run")
    assert set(runs.index) == set(STATES) and runs.attrs["problems"] == []
    for run, (status, epochs, reason) in STATES.items():
        row = runs.loc[run]
        assert (row["status"], row["epochs_done"]) == (status, epochs), run
        assert str(row["reason"] or "").startswith(reason), run
    assert set(load_runs(HERE / "before_fp8")["status"]) == {"completed"}


def test_histories_and_quantisations_are_tables() -> None:
    history = load_history(SMOKE)
    assert history.groupby("run").size().to_dict() == {run: epochs for run, (_, epochs, _) in STATES.items()}
    ways = load_quantization(SMOKE)
    assert set(ways["run"]) == {"FP8Test-s0"} and len(ways) == 19 and ways["test_acc"].between(0, 1).all()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_digests_in_each_record_are_those_of_what_they_cover(path: Path) -> None:
    record = read_record(path)
    assert record.identity_rule == 1
    if record.status in ("completed", "diverged"):
        assert record.deterministic["digest"] == digest_of(record.deterministic_part())
    assert [check for check in verify([path]) if check.level == "FAILED"] == []


def test_two_records_of_one_run_before_and_after_later_parameters_have_the_same_digest() -> None:
    for run in ("BaseFP32-s0", "BaseFP16-s0"):
        before, after = read_record(HERE / "before_fp8" / f"{run}.ipynb"), read_record(SMOKE / f"{run}.ipynb")
        assert "fp8_recipe" not in before.parameters and "fp8_recipe" in after.parameters
        assert before.parameters_digest == after.parameters_digest
        assert before.deterministic["digest"] == after.deterministic["digest"]


def test_the_analysis_groups_what_completed_and_names_the_rest() -> None:
    results = load_results(SMOKE)
    assert [(group.experiment, group.variant) for group in results.groups] == [
        ("BaseFP32", ""), ("BaseFP16", ""), ("AugmFP16", ""), ("BaseBF16", ""), ("BaseFP8", ""), ("BaseFP8", "mxfp8"),
    ]  # fmt: skip
    assert {(one.run, one.status) for one in results.excluded} == {
        (run, status) for run, (status, _, _) in STATES.items() if status != "completed"
    }
    assert len(results.quantized) == 1


def test_a_report_is_made_of_them(project: Path) -> None:
    shutil.copytree(SMOKE, project / "executed" / "smoke")
    made = CliRunner().invoke(main, ["report", "smoke", "--to", "html"])
    assert made.exit_code == 0, made.output
    summary = json.loads((project / "report" / "smoke" / "all_experiments_summary.json").read_text())
    assert summary["study"] == "smoke"
    assert "BaseFP16-s1" in (project / "report" / "smoke" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("run", ["BaseFP32-s0", "BaseBF16-s0", "BaseFP16-s0", "BaseFP8-s0", "BaseFP8~mxfp8-s0"])
def test_the_present_code_repeats_each_precision(run: str, tmp_path: Path) -> None:
    record = read_record(SMOKE / f"{run}.ipynb")
    later = {key: note.neutral for key, note in field_notes(RunParams).items() if note.neutral is not ...}
    own = {"run_folder": str(tmp_path / run), "device": "cpu"}
    params = validate([Layer("later", later), Layer("the record", record.parameters), Layer("the test", own)])
    experiment = prepare_experiment(params)
    with RunJournal(experiment.folder, experiment.record(), show=False) as journal:
        repeat = experiment.run(journal)
    there, here = record.provenance, repeat.provenance
    same_bits = (
        there["instruction_set"] == here["instruction_set"]
        and there["versions"]["torch"] == here["versions"]["torch"] == torch.__version__.split("+")[0]
        and record.precision is not None
        and repeat.precision is not None
        and record.precision.product_dtype == repeat.precision.product_dtype
    )
    if same_bits:
        assert repeat.predictions == record.predictions
        assert [(row.train_loss, row.val_loss, row.grad_norm) for row in repeat.history] == [
            (row.train_loss, row.val_loss, row.grad_norm) for row in record.history
        ]
    for one, other in zip(repeat.history, record.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=5e-3)
        assert one.val_loss == pytest.approx(other.val_loss, rel=5e-3)
