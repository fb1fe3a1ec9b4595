"""Commands on single runs: how a run is found; note, diff, export, doctor; and the trained model loaded back."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import vitfp8
from tests.analysis.records import diverged, imported, make_record, write_notebook, write_study
from vitfp8 import doctor
from vitfp8.cli import main
from vitfp8.data import eval_batches, load_data
from vitfp8.errors import InputError
from vitfp8.experiment import prepare_experiment
from vitfp8.legacy import import_results
from vitfp8.params import Layer, RunParams, read_layer, validate
from vitfp8.record import EpochRow, Hardware, Precision, QuantizationRow, RunJournal, RunRecord, find_run, read_record
from vitfp8.verify.checks import find_notebooks
from vitfp8.verify.compare import compare

TOP = Path(__file__).resolve().parent.parent


def command(*arguments: object, check: int = 0) -> Result:
    """Call the command line in this process."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == check, done.output
    return done


def refusal(*arguments: object) -> str:
    """The one line with which the command line refuses."""
    output = command(*arguments, check=2).output
    assert len(output.strip().splitlines()) == 1, output
    return output


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a study of three runs."""
    monkeypatch.chdir(tmp_path)
    records = [make_record("BaseFP32", 0), make_record("BaseFP32", 1), make_record("BaseFP16", 0)]
    write_study(tmp_path / "executed" / "digits", records)
    return tmp_path


# ----------------------------------------------------------------------------------------------------- which run is meant


def test_a_run_is_its_notebook_its_run_folder_or_study_and_run(lab: Path) -> None:
    notebook = Path("executed/digits/BaseFP32-s0.ipynb")
    for name in (notebook, "executed/digits/BaseFP32-s0", "executed/digits/BaseFP32-s0/", "digits/BaseFP32-s0", lab / notebook):
        assert find_run(name).resolve() == notebook.resolve()
    assert find_notebooks("digits/BaseFP32-s0") == [notebook]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("BaseFP32-s0", "did you mean digits/BaseFP32-s0?"),
        ("digit/BaseFP16-s0", "did you mean digits/BaseFP16-s0?"),
        ("executed/digits/BaseFP16-s1.ipynb", "no such notebook; did you mean digits/BaseFP16-s0?"),
        ("digits", "without a run's journal"),
        ("nowhere", "`vitfp8 runs` lists what there is"),
        ("", "`vitfp8 runs` lists what there is"),
        ("x" * 5000, "lists what there is"),
    ],
)
@pytest.mark.parametrize("verb", [("note", "TEXT"), ("diff", "digits/BaseFP32-s0")], ids=lambda verb: verb[0])
def test_a_run_that_is_not_there_is_refused_with_the_nearest_one(lab: Path, verb: tuple[str, str], name: str, words: str) -> None:
    if name == "digits":
        (lab / "digits").mkdir()
    assert words in refusal(verb[0], name, verb[1])
    assert not list(lab.rglob("*.jsonl"))


# ------------------------------------------------------------------------------------------------------------------ note


def test_a_note_is_dated_appended_and_merged_and_the_notebook_stays_as_executed(lab: Path) -> None:
    notebook = lab / "executed/digits/BaseFP32-s0.ipynb"
    before = notebook.read_bytes()
    command("note", "digits/BaseFP32-s0", "the fan was loud: 40 °C")
    command("note", notebook, "  a second one\nwith two lines ")
    assert notebook.read_bytes() == before
    notes = read_record(notebook).notes
    assert [note["text"] for note in notes] == ["the fan was loud: 40 °C", "a second one\nwith two lines"]
    assert all(note["time"].endswith("+00:00") for note in notes)
    assert read_record(notebook).status == "completed"


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), (" \n", "is empty"), ("x" * 4001, "4001 characters")])
def test_a_note_that_says_nothing_or_too_much_is_refused_and_nothing_is_written(lab: Path, text: str, words: str) -> None:
    assert words in refusal("note", "digits/BaseFP32-s0", text)
    assert not list(lab.rglob("*.jsonl"))


def test_a_note_on_what_is_no_run_or_cannot_be_written_is_refused(lab: Path) -> None:
    analysis = lab / "executed/digits/analysis.ipynb"
    analysis.write_text(json.dumps({"cells": [], "metadata": {"vitfp8": {"kind": "analysis"}}}))
    assert "not a run" in refusal("note", analysis, "x")
    (lab / "executed/digits/BaseFP32-s0.log.jsonl").mkdir()
    assert "cannot be written" in refusal("note", "digits/BaseFP32-s0", "x")


# ------------------------------------------------------------------------------------------------------------------ diff


def test_a_diff_shows_what_differs_and_sums_up_what_is_the_same(lab: Path) -> None:
    output = command("diff", "digits/BaseFP32-s0", "digits/BaseFP32-s1").output
    one, other = (read_record(lab / f"executed/digits/BaseFP32-s{seed}.ipynb") for seed in (0, 1))
    assert "seed" in output and "weight_decay" not in output
    assert f"{100 * one.metrics.test_acc:.2f} %" in output and "-0.20 points" in output
    assert "history: first differs in epoch 1" in output
    assert "deterministic digests: not both records have one" in output
    assert output.splitlines()[-1].startswith("the same: parameters that decide numbers (")
    assert other.metrics.test_acc < one.metrics.test_acc  # hence the minus: the second less the first


def test_a_run_and_itself_differ_in_nothing() -> None:
    record = make_record(deterministic={"digest": "a" * 64}, predictions={"labels": [1, 2], "last": [1, 1]})
    found = compare(record, record.model_copy(deep=True))
    assert not any(section.different for section in found.sections)
    assert (found.first_different_epoch, found.epochs_compared, found.deterministic) == (None, 12, "equal")
    assert found.predictions == {"last": (0, 2)}


def test_the_first_epoch_that_differs_is_the_first_in_columns_that_a_repeat_reproduces() -> None:
    one, other = make_record(), make_record()
    other.history[1].epoch_seconds = 99.0  # time
    other.history[4].val_loss = 5.0
    other.history[6].val_loss = 5.0
    other.history[4].grad_norm = math.nan
    found = compare(one, other)
    assert found.first_different_epoch == 5
    assert [(each.name, each.other) for each in found.history[:1]] == [("val_loss", 5.0)]
    one.history[4].val_loss, one.history[4].grad_norm = 5.0, math.nan  # NaN equals itself
    assert compare(one, other).first_different_epoch == 7


def test_predictions_are_counted_on_the_same_images_only() -> None:
    one = make_record(predictions={"labels": [0, 1, 2], "last": [0, 1, 1], "best": [0, 0, 0]})
    other = make_record(predictions={"labels": [0, 1, 2], "last": [0, 2, 2], "best": [0, 0, 0]})
    assert compare(one, other).predictions == {"last": (2, 3), "best": (0, 3)}
    other.data["digest"] = "another"
    assert compare(one, other).predictions == {"last": None, "best": None}


def outcome(one: RunRecord, other: RunRecord) -> dict[str, Any]:
    """Figure → its change."""
    section = next(section for section in compare(one, other).sections if section.name == "outcome")
    return {each.name: each.change for each in section.different}


def test_times_of_emulated_arithmetic_and_figures_of_imported_runs_have_no_difference() -> None:
    one, other = make_record(), make_record(seed=1)
    other.metrics.train_seconds = 50.0
    assert outcome(one, other)["train_seconds"] == pytest.approx(50 - 2.1 * 12)
    other.precision = Precision(requested="fp16", effective="fp16", backend="emulated")
    assert outcome(one, other)["train_seconds"] is None
    assert outcome(one, other)["test_acc"] == pytest.approx(-0.002)
    changes = outcome(one, imported())
    assert changes["best_val_acc"] is None and set(changes.values()) == {None}


def test_parameters_are_split_by_whether_they_decide_numbers_and_neutral_values_are_those_of_older_records() -> None:
    one, other = make_record(), make_record()
    one.parameters |= {"torch_compile": False, "workers": 0}
    other.parameters |= {"workers": 4, "batch_size": 32}
    sections = {section.name: [each.name for each in section.different] for section in compare(one, other).sections}
    assert sections["parameters that decide numbers"] == ["batch_size"]
    assert sections["other parameters"] == ["workers"]
    one.parameters["torch_compile"] = True
    section = compare(one, other).sections[0]
    assert ("torch_compile", True, False) in [(each.name, each.one, each.other) for each in section.different]


def test_a_diff_as_json_holds_nothing_that_json_has_no_word_for(lab: Path) -> None:
    record = diverged()
    write_notebook(record, lab / "executed/digits" / f"{record.run_name}.ipynb")
    found = json.loads(command("diff", "digits/BaseFP16-s0", "digits/BaseFP16-s1", "--json").output)
    assert [run["status"] for run in found["runs"]] == ["completed", "diverged"]
    names = [each["name"] for section in found["sections"] for each in section["different"]]
    assert "status" in names and "reason" in names and found["deterministic"] == "unknown"


# ---------------------------------------------------------------------------------------------------------------- export


def measured(**changes: Any) -> RunRecord:
    """A run with a GPU and a thermal pressure."""
    record = make_record("BaseFP16", 3, gpu=True, **changes)
    record.hardware.samples["thermal_pressure"] = ["nominal"] * 19 + ["heavy"]
    return record


def test_what_is_exported_is_read_back_with_the_same_figures(lab: Path) -> None:
    ours = measured()
    notebook = write_notebook(ours, lab / "executed/gpu" / f"{ours.run_name}.ipynb")
    output = command("export", notebook, "--to", "json", "--output", "old").output
    names = {path.name for path in (lab / "old/BaseFP16-s3/metrics").iterdir()}
    assert names == {"final_metrics.json", "hardware_stats.json", "timing_report.json", "gpu_stats.csv"}
    assert "vitfp8 import old --study NAME --as BaseFP16-s3=BaseFP16" in output
    back = import_results("old", study="back", renaming=["BaseFP16-s3=BaseFP16"]).planned[0].run.record
    assert back.status == "completed"
    for there, here in zip(ours.history, back.history, strict=True):
        for column in ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "epoch_seconds", "learning_rate"):
            assert getattr(there, column) == getattr(here, column)
    for figure in ("epochs", "best_epoch", "best_val_acc", "final_val_acc", "final_val_loss"):
        assert getattr(ours.metrics, figure) == getattr(back.metrics, figure)
    samples = back.hardware.samples
    assert samples["seconds"] == ours.hardware.samples["seconds"]
    assert samples["cpu_percent"] == ours.hardware.samples["cpu_percent"]
    assert samples["thermal_pressure"] == ours.hardware.samples["thermal_pressure"]
    assert samples["gpu_power_watts"][0] is None  # not measured, and not 0
    assert samples["gpu_power_watts"][1:] == pytest.approx(ours.hardware.samples["gpu_power_watts"][1:], rel=1e-12)
    assert samples["gpu_utilization_percent"] == ours.hardware.samples["gpu_utilization_percent"]


def test_each_exported_file_says_of_which_run_it_is_and_what_its_lists_mean(lab: Path) -> None:
    command("export", "digits")
    for run in ("BaseFP32-s0", "BaseFP32-s1", "BaseFP16-s0"):
        for path in (lab / "exports/digits" / run / "metrics").iterdir():
            about = json.loads(path.read_text())["vitfp8"]
            assert about["run"] == f"digits/{run}" and "validation split" in about["meaning"]
    record = read_record(lab / "executed/digits/BaseFP32-s1.ipynb")
    final = json.loads((lab / "exports/digits/BaseFP32-s1/metrics/final_metrics.json").read_text())
    assert (final["vitfp8"]["seed"], final["vitfp8"]["test_acc"]) == (1, record.metrics.test_acc)
    timing = json.loads((lab / "exports/digits/BaseFP32-s1/metrics/timing_report.json").read_text())
    assert timing["total_seconds"] == record.metrics.train_seconds
    output = command("export", "executed/digits").output  # again: an earlier export is replaced
    assert (
        import_results("exports/digits", study="back", renaming=output.replace("--as", " ").split("NAME")[1].split()).failed == []
    )


def test_a_run_that_went_on_leaves_no_earlier_export_and_no_status_is_better_than_it_was(lab: Path) -> None:
    place = lab / "executed/digits/BaseFP32-s0.ipynb"
    write_notebook(make_record(status="interrupted", reason="Ctrl-C"), place)
    command("export", "digits/BaseFP32-s0", "--output", "old")
    metrics = lab / "old/BaseFP32-s0/metrics"
    assert (metrics / "interrupted_metrics.json").exists() and not (metrics / "final_metrics.json").exists()
    back = import_results("old", study="back", renaming=["BaseFP32-s0=BaseFP32"], dry_run=True).planned[0].run.record
    assert back.status == "interrupted"
    write_notebook(make_record(), place)
    command("export", "digits/BaseFP32-s0", "--output", "old")
    assert (metrics / "final_metrics.json").exists() and not (metrics / "interrupted_metrics.json").exists()


def test_what_has_no_files_in_the_old_layout_is_left_with_a_line(lab: Path) -> None:
    folder = lab / "executed/digits"
    record = make_record("FP8Test", kind="quantization", history=[], quantization=[
        QuantizationRow(format="e4m3", granularity="tensor", operands="weights", test_acc=0.9)
    ])  # fmt: skip
    write_notebook(record, folder / "FP8Test-s0.ipynb")
    write_notebook(make_record("AugmFP32", status="failed", history=[]), folder / "AugmFP32-s0.ipynb")
    output = command("export", "digits", "--output", "old").output
    assert "is a quantisation" in output and "no finished epoch" in output
    assert {path.name for path in (lab / "old").iterdir()} == {"BaseFP32-s0", "BaseFP32-s1", "BaseFP16-s0"}
    assert "is a quantisation" in refusal("export", "digits/FP8Test-s0")


def test_an_export_replaces_only_what_an_export_wrote(lab: Path) -> None:
    theirs = lab / "old/BaseFP32-s1/metrics/final_metrics.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text('{"val_acc": [0.5]}')
    assert "not written by an export" in refusal("export", "digits", "--output", "old")
    assert theirs.read_text() == '{"val_acc": [0.5]}' and [p.name for p in (lab / "old").iterdir()] == ["BaseFP32-s1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits", "--to", "mlflow"), "'mlflow': is not there yet; take json"),
        (("digits", "--to", "csv"), "'csv': is unknown; there are: json"),
        (("digit",), "did you mean digits?"),
        (("digits/BaseFP32-s7",), "did you mean digits/BaseFP32-s"),
        (("digits", "--output", "executed/digits/BaseFP32-s0.ipynb"), "cannot be written"),
    ],
)
def test_an_export_that_cannot_be_is_refused_and_writes_nothing(lab: Path, arguments: tuple[str, ...], words: str) -> None:
    before = sorted(lab.rglob("*"))
    assert words in refusal("export", *arguments)
    assert sorted(lab.rglob("*")) == before


def test_a_diverged_run_exports_its_nan_as_the_old_files_had_it(lab: Path) -> None:
    history = [EpochRow(epoch=1, train_loss=2.0, val_acc=0.3), EpochRow(epoch=2, train_loss=math.nan, val_acc=0.1)]
    record = make_record("BaseFP16", 5, status="diverged", reason="the loss is not finite", history=history, hardware=Hardware())
    write_notebook(record, lab / "executed/digits/BaseFP16-s5.ipynb")
    command("export", "digits/BaseFP16-s5", "--output", "old")
    back = import_results("old", study="back", renaming=["BaseFP16-s5=BaseFP16"], dry_run=True).planned[0].run.record
    assert (back.status, back.history[0].train_loss, back.history[1].train_loss) == ("diverged", 2.0, None)


# ------------------------------------------------------------------------------------------------------------ load_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with two runs that were trained: FP32, and FP8 whose recipe keeps scales beside the weights."""
    top = tmp_path_factory.mktemp("trained")
    for experiment, over in (("BaseFP32", {}), ("BaseFP8", {"fp8_recipe": "delayed"})):
        notebook = top / "executed/smoke" / f"{experiment}-s0.ipynb"
        layers = [read_layer(TOP / "params" / f"{experiment}.yaml"), read_layer(TOP / "params/presets/smoke.yaml")]
        own = {"threads": 1, "device": "cpu", "run_folder": str(notebook.with_suffix("")), **over}
        experiment_ready = prepare_experiment(validate([*layers, Layer("the test", own)]))
        with RunJournal(notebook.with_suffix(""), experiment_ready.record(), show=False) as journal:
            write_notebook(experiment_ready.run(journal), notebook)
    return top


@pytest.fixture
def copied(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may damage; the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predictions(model: torch.nn.Module) -> list[int]:
    """Classes of the test images."""
    data = load_data(dataset="digits", image_size=16)
    with torch.no_grad():
        return [int(one) for images, _ in eval_batches(data, "test", 64) for one in model(images).argmax(dim=1)]


def test_the_model_that_is_loaded_back_predicts_what_the_record_says(copied: Path) -> None:
    record = read_record("executed/smoke/BaseFP32-s0.ipynb")
    state = torch.get_rng_state()
    for weights in ("last", "best"):
        model = vitfp8.load_model("smoke/BaseFP32-s0", weights=weights)  # type: ignore[arg-type]
        assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
        assert predictions(model) == record.predictions[weights]
    assert torch.equal(torch.get_rng_state(), state)
    saved = torch.load("executed/smoke/BaseFP32-s0/checkpoints/last.pt", weights_only=True)["model"]
    loaded = vitfp8.load_model("executed/smoke/BaseFP32-s0").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.items()) and saved.keys() == loaded.keys()


def test_a_model_that_was_trained_in_fp8_is_plain_fp32_without_its_recipes_scales(copied: Path) -> None:
    model = vitfp8.load_model("smoke/BaseFP8-s0")
    assert {type(m).__name__ for m in model.modules() if isinstance(m, torch.nn.Linear)} == {"Linear"}
    saved = torch.load("executed/smoke/BaseFP8-s0/checkpoints/last.pt", weights_only=True)["model"]
    assert len(saved) > len(model.state_dict())
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


def replaced(**changes: Any) -> Callable[[Path], None]:
    """A change of the record in the notebook."""

    def change(notebook: Path) -> None:
        write_notebook(read_record(notebook).model_copy(update=changes), notebook)

    return change


def altered(notebook: Path) -> None:
    """One byte of the weights is another."""
    path = notebook.with_suffix("") / "checkpoints/last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def exchanged(notebook: Path) -> None:
    """The weights of another moment, sound in themselves."""
    folder = notebook.with_suffix("") / "checkpoints"
    for ending in ("", ".sha256"):
        shutil.copy(folder / f"best.pt{ending}", folder / f"last.pt{ending}")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda notebook: shutil.rmtree(notebook.with_suffix("") / "checkpoints"), "is not there; copy the run's folder"),
        (altered, "is not the file that the record of BaseFP32-s0.ipynb names"),
        (exchanged, "is not the file that the record of BaseFP32-s0.ipynb names"),
        (replaced(origin="imported"), "is imported from an earlier project"),
        (replaced(kind="quantization"), "is a quantisation, which trains no model"),
        (replaced(status="interrupted"), "is interrupted, not completed"),
        (replaced(status="diverged"), "is diverged, not completed"),
        (replaced(checkpoints={}), "names no last weights"),
        (replaced(parameters_digest="0" * 64), "belongs to a run with other parameters"),
    ],
)
def test_what_has_no_trained_weights_of_that_run_is_refused_in_one_line(
    copied: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(copied / "executed/smoke/BaseFP32-s0.ipynb")
    with pytest.raises(InputError) as error:
        vitfp8.load_model("smoke/BaseFP32-s0")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_weights_and_device_that_are_unknown_are_refused(copied: Path) -> None:
    with pytest.raises(InputError, match="neither 'last' nor 'best'"):
        vitfp8.load_model("smoke/BaseFP32-s0", weights="epoch_1")  # type: ignore[arg-type]
    for device in ("gpu", "meta", torch.device("meta")):
        with pytest.raises(InputError, match=f"device: '{device}': is unknown"):
            vitfp8.load_model("smoke/BaseFP32-s0", device=device)
    with pytest.raises(InputError, match="did you mean smoke/BaseFP32-s0?"):
        vitfp8.load_model("smoke/BaseFP32-s9")


# ---------------------------------------------------------------------------------------------------------------- doctor


def lines(check: Callable[[], Any]) -> dict[str, doctor.Line]:
    """Subject → line of one check."""
    return {line.subject: line for line in check()}


CHECK = {check.__name__.strip("_"): check for check in doctor.CHECKS}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose PATH is empty, in an empty working directory."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_programs_that_are_not_on_the_path_are_named_with_what_installs_them(bare: Path) -> None:
    compiler = lines(CHECK["compiler"])["C++ compiler"]
    assert (compiler.level, compiler.needed) == ("missing", False) and compiler.command
    git = lines(CHECK["git"])["git"]
    assert (git.level, git.needed) == ("missing", False) and git.command and "install git" in git.command
    report = lines(CHECK["report"])
    assert report["TeX"].level == "note" and report["TeX"].command and not report["TeX"].needed  # typst makes the PDF


def test_a_machine_with_neither_tex_nor_typst_cannot_make_the_report(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_typst", lambda: False)
    typst = lines(CHECK["report"])["typst"]
    assert (typst.level, typst.needed, typst.command) == ("missing", True, "pip install typst")


@pytest.mark.parametrize(
    ("module", "check", "subject", "command", "needed"),
    [
        ("torch", "torch", "torch", "pip install torch", True),
        ("timm", "torch", "timm", "pip install timm", True),
        ("pandas", "modules", "pandas", "pip install pandas", True),
        ("sklearn", "modules", "scikit-learn", "pip install scikit-learn", True),
        ("wakepy", "awake", "wakepy", "pip install 'vitfp8[awake]'", False),
        ("ipykernel", "kernel", "kernel", "pip install papermill ipykernel", True),
    ],
)
def test_a_module_that_is_missing_is_named_with_its_feature_and_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, module: str, check: str, subject: str, command: str, needed: bool
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = lines(CHECK[check])[subject]
    assert line.level in ("missing", "note") and line.command == command and line.feature
    assert line.needed == needed and (line.level == "missing" or not needed)
    assert doctor.can_do_the_basic_study([line]) != needed


def test_without_torch_the_list_goes_on_and_says_what_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "cannot be told" in lines(CHECK["precisions"])["arithmetic"].text
    assert lines(CHECK["machine"])["disk"].level in ("ok", "warning")


def test_every_precision_says_who_multiplies_and_why() -> None:
    found = lines(CHECK["precisions"])
    assert set(found) == {"FP32", "TF32", "BF16", "FP16", "FP8"} and "native" in found["FP32"].text
    assert all(" on " in line.text and ":" in line.text for line in found.values())


def test_a_mac_without_rights_and_packages_is_told_how_to_get_power_readings(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", None)
    found = lines(CHECK["power_readings"])
    assert (found["zeus-apple-silicon"].level, found["zeus-apple-silicon"].command) == ("missing", "pip install 'vitfp8[apple]'")
    assert (found["powermetrics"].level, found["powermetrics"].command) == ("missing", "sudo -v")
    assert not any(line.needed for line in found.values())


def test_energy_counters_that_only_root_may_read_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitfp8.monitor.machine import RAPLProbe
    from vitfp8.monitor.probes import UnavailableError

    def forbidden(self: RAPLProbe) -> None:
        raise UnavailableError("energy_uj may be read by root only")

    monkeypatch.setattr(RAPLProbe, "open", forbidden)
    monkeypatch.setattr(doctor, "_has_rapl", lambda: True)
    monkeypatch.setattr(doctor, "sys", SimpleNamespace(platform="linux"))
    line = lines(CHECK["power_readings"])["RAPL"]
    assert line.level == "missing" and "chmod" in (line.command or "") and "root only" in line.text


def test_a_data_set_that_is_not_there_says_where_it_was_looked_for(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines(CHECK["data"])
    assert found["digits"].level == "ok" and found["cifar10"].level == "missing" and not found["cifar10"].needed
    assert "data" in found["cifar10"].text and "download" in (found["cifar10"].command or "")
    (bare / "data/cifar-10-batches-py").mkdir(parents=True)
    (bare / "data/cifar-10-batches-py/data_batch_1").write_bytes(b"")
    assert "lacks" in lines(CHECK["data"])["cifar10"].text


def test_a_place_that_cannot_be_written_and_a_terminal_that_cannot_draw_are_told(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "executed").write_text("a file")
    found = lines(CHECK["places"])
    assert (found["executed/"].level, found["executed/"].needed, found["report/"].level) == ("missing", True, "ok")
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare / "executed" / "cache"))
    assert lines(CHECK["places"])["cache"].level == "warning"

    class Ascii:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Ascii())
    assert lines(CHECK["terminal"])["terminal"].level == "warning"


def test_templates_that_are_not_found_are_needed(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitfp8.run.locate.places", lambda: [bare])
    line = lines(CHECK["files"])["notebooks, params"]
    assert (line.level, line.needed) == ("missing", True) and line.command


def test_a_kernel_that_does_not_start_is_told_and_one_that_starts_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(CHECK["kernel"])["kernel"].level == "ok"

    def late(*arguments: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(subprocess, "run", late)
    line = lines(CHECK["kernel"])["kernel"]
    assert (line.level, line.needed) == ("missing", True) and "within" in line.text
    monkeypatch.setattr(
        subprocess, "run", lambda *a, **o: subprocess.CompletedProcess(a, 1, "", "Traceback\nOSError: no sockets here\n")
    )
    assert "no sockets here" in lines(CHECK["kernel"])["kernel"].text


def test_the_exit_status_is_that_of_the_basic_study_and_a_check_that_fails_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("unforeseen")

    fine = [doctor.Line("ok", "a", "b", "c"), doctor.Line("missing", "wakepy", "awake", "none", "pip install x")]
    monkeypatch.setattr(doctor, "CHECKS", (broken, lambda: iter(fine)))
    output = command("doctor").output
    assert "unforeseen" in output and "pip install x" in output and "nothing is missing" in output
    found = json.loads(command("doctor", "--json").output)
    assert found["basic_study"] is True and [line["level"] for line in found["lines"]] == ["warning", "ok", "missing"]
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([doctor.Line("missing", "torch", "training", "none", "x", True)]),))
    assert "MISSING" in command("doctor", check=1).output
    assert json.loads(command("doctor", "--json", check=1).output)["basic_study"] is False


def test_parameters_of_a_record_that_was_made_before_a_refusal_are_still_read() -> None:
    from vitfp8.ptq.trained_model import recorded_parameters

    layers = [read_layer(TOP / "params/BaseFP32.yaml"), read_layer(TOP / "params/presets/smoke.yaml")]
    record = make_record(parameters={**validate(layers).model_dump(), "workers": 4, "data_dir": "/data"})
    params = recorded_parameters(Path("x.ipynb"), record)
    assert isinstance(params, RunParams) and (params.workers, params.data_dir) == (0, None)
