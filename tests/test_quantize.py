"""Quantisation after training: what a quantised weight is, what is measured, what is refused; and end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from torch import Tensor

from vitfp8 import load_quantization, load_runs, read_record
from vitfp8.analysis import load_results
from vitfp8.analysis import text as prose
from vitfp8.analysis.figures.of_study import draw_figure
from vitfp8.analysis.quantization import quantization_remark, quantization_table
from vitfp8.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from vitfp8.errors import InputError
from vitfp8.experiment import prepare_experiment
from vitfp8.files import file_digest
from vitfp8.model import create_model
from vitfp8.params import Layer, RunParams, read_layer, validate
from vitfp8.params.quantization import QuantizeParams
from vitfp8.precision import prepare
from vitfp8.ptq import (
    Scheme,
    block_layers,
    calibrate,
    check_quantization,
    load_quantized,
    prepare_quantization,
    quantize_weight,
    quantized,
    save_quantized,
)
from vitfp8.ptq.experiment import mcnemar
from vitfp8.record import RunJournal, RunRecord

TOP = Path(__file__).resolve().parent.parent
SMOKE = [TOP / "params" / "AugmFP16.yaml", TOP / "params" / "presets" / "smoke.yaml"]
ML_DTYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def scheme(format: str = "e4m3", granularity: str = "tensor", operands: str = "weights") -> Scheme:
    """A way to quantise."""
    return Scheme(format=format, granularity=granularity, operands=operands)


def a_weight() -> Tensor:
    """A weight whose rows differ in size, 40 columns wide (no multiple of 32)."""
    torch.manual_seed(0)
    return torch.randn(6, 40) * torch.logspace(-3, 1, 6)[:, None]


# ------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_fp8_codes_are_those_of_an_independent_oracle(format: str, granularity: str) -> None:
    weight = a_weight()
    found = quantize_weight(weight, scheme(format, granularity))
    w = weight.numpy()
    amax = np.abs(w).max() if granularity == "tensor" else np.abs(w).max(axis=1, keepdims=True)
    largest = np.float32(ml_dtypes.finfo(ML_DTYPES[format]).max)
    scale = (largest / amax).astype(np.float32)
    expected = np.clip(w * scale, -largest, largest).astype(ML_DTYPES[format])
    stored = found.codes.to({"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[format])
    assert np.array_equal(stored.view(torch.uint8).numpy(), expected.view(np.uint8)) and torch.equal(stored.float(), found.codes)
    assert np.allclose(found.dequantized().numpy(), expected.astype(np.float32) / scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("format", "largest"), [("int8", 127), ("int_240", 240)])
def test_integer_codes_are_rounded_to_even_and_reach_the_largest(format: str, largest: int) -> None:
    weight = a_weight()
    found = quantize_weight(weight, scheme(format))
    expected = np.rint(weight.numpy() * (np.float32(largest) / weight.abs().max().numpy()))
    assert np.array_equal(found.codes.numpy(), expected) and np.abs(expected).max() == largest


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "int8"])
def test_mx_blocks_have_power_of_two_scales_for_32_elements_and_saturate_nothing(format: str) -> None:
    weight = a_weight()
    found = quantize_weight(weight, scheme(format, "mx"))
    assert found.scale.shape == (6, 2)
    assert torch.equal(torch.frexp(found.scale)[0], torch.full((6, 2), 0.5))
    error = (found.dequantized() - weight).abs()
    amax = torch.stack([weight[:, :32].abs().amax(1), weight[:, 32:].abs().amax(1)], dim=1)
    half_step = {"e4m3": 2**-4, "e5m2": 2**-3, "int8": 2**-6}[format]
    assert (error[:, :32] <= half_step * amax[:, :1]).all() and (error[:, 32:] <= half_step * amax[:, 1:]).all()


@pytest.mark.parametrize("granularity", ["tensor", "channel", "mx"])
def test_a_weight_of_zeros_stays_zero(granularity: str) -> None:
    assert torch.equal(quantize_weight(torch.zeros(4, 64), scheme("e4m3", granularity)).dequantized(), torch.zeros(4, 64))


def test_finer_scales_lose_less_where_rows_differ_in_size() -> None:
    weight = a_weight()
    small = weight[0]
    errors = [(quantize_weight(weight, scheme("int8", g)).dequantized()[0] - small).norm() for g in ("tensor", "channel", "mx")]
    assert errors[0] > 10 * errors[1] and errors[0] > 10 * errors[2]


@pytest.mark.parametrize(
    ("format", "granularity", "size"),
    [("e4m3", "tensor", 244), ("int8", "channel", 264), ("e5m2", "mx", 252), ("int_240", "tensor", 484)],
)
def test_bytes_count_codes_and_scales(format: str, granularity: str, size: int) -> None:
    way = scheme(format, granularity)
    assert quantize_weight(a_weight(), way).bytes(way.row.bits) == size


# --------------------------------------------------------------------------------------------------------------- models


def tiny_model(precision: str = "fp16") -> tuple[torch.nn.Module, Tensor]:
    """A tiny model in a precision, and images."""
    params = validate([*map(read_layer, SMOKE), Layer("the test", {"variant": "trial", "precision": precision, "device": "cpu"})])
    torch.manual_seed(1)
    model = create_model(params, 10)
    prepare(model, precision, device=torch.device("cpu"))
    return model.eval(), torch.randn(8, 1, 16, 16)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("operands", ["weights", "weights_activations"])
def test_the_model_is_as_before_afterwards_bit_by_bit(precision: str, operands: str) -> None:
    model, images = tiny_model(precision)
    classes = [type(module) for module in model.modules()]
    before, logits = {k: v.clone() for k, v in model.state_dict().items()}, model(images)
    amax = calibrate(model, [images])
    with quantized(model, scheme("e5m2", "tensor", operands), amax):
        assert not torch.equal(model(images), logits)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images), logits)


def test_calibration_finds_the_largest_input_of_each_layer_over_all_batches() -> None:
    model, images = tiny_model("fp32")
    seen: list[Tensor] = []
    layer = block_layers(model)["blocks.0.mlp.fc2"]
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].abs().max()))
    amax = calibrate(model, images.split(3))
    hook.remove()
    assert list(amax) == ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
    assert amax["blocks.0.mlp.fc2"] == max(seen)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "mx"])
def test_the_product_of_quantised_operands_is_that_of_their_dequantised_values(granularity: str) -> None:
    model, _ = tiny_model("fp32")
    layer = block_layers(model)["blocks.0.mlp.fc1"]
    x = torch.randn(5, 32)
    way = scheme("e4m3", granularity, "weights_activations")
    with quantized(model, way, {"blocks.0.mlp.fc1": x.abs().max()}, only=["blocks.0.mlp.fc1"]) as weights:
        y = layer(x)
        weight = weights["blocks.0.mlp.fc1"].dequantized().double()
    alone = quantize_weight(x, scheme("e4m3", "tensor" if granularity != "mx" else "mx")).dequantized().double()
    assert torch.allclose(y.double(), alone @ weight.T + layer.bias.double(), rtol=1e-5, atol=1e-6)


def test_only_the_named_layer_is_quantised() -> None:
    model, images = tiny_model()
    with quantized(model, scheme("e4m3"), {}, only=["blocks.0.attn.proj"]) as weights:
        assert list(weights) == ["blocks.0.attn.proj"]


def test_mcnemar_is_that_of_statsmodels() -> None:
    torch.manual_seed(0)
    for share in (0.5, 0.9, 0.99):
        a, b = torch.rand(300) < share, torch.rand(300) < 0.9
        first, second, p = mcnemar(a, b)
        table = [[int((a & b).sum()), first], [second, int((~a & ~b).sum())]]
        assert p == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    assert mcnemar(a, a) == (0, 0, 1.0)
    assert mcnemar(torch.ones(6, dtype=torch.bool), torch.zeros(6, dtype=torch.bool))[2] == binomtest(6, 6).pvalue


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "int8"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "mx"])
def test_an_exported_model_has_8_bit_weights_and_loads_back_to_the_same_bits(
    tmp_path: Path, format: str, granularity: str
) -> None:
    model, images = tiny_model()
    way = scheme(format, granularity, "weights_activations")
    amax = calibrate(model, [images])
    with quantized(model, way, amax) as weights:
        logits = model(images)
    save_quantized(tmp_path / "x.safetensors", model, weights, way, amax, {})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        tensor = file.get_tensor("blocks.0.attn.qkv.weight")
        assert tensor.dtype == {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "int8": torch.int8}[format]
    torch.manual_seed(2)
    fresh = create_model(validate([*map(read_layer, SMOKE)]), 10)
    _, loaded, ranges = load_quantized(tmp_path / "x.safetensors", fresh)
    prepare(fresh, "fp16", device=torch.device("cpu"))
    with quantized(fresh.eval(), way, ranges, weights=loaded):
        assert torch.equal(fresh(images), logits)


def test_a_damaged_or_foreign_export_is_refused(tmp_path: Path) -> None:
    model, _ = tiny_model()
    way = scheme()
    path = tmp_path / "x.safetensors"
    with quantized(model, way, {}) as weights:
        pass
    save_quantized(path, model, weights, way, {}, {})
    wide = create_model(validate([*map(read_layer, SMOKE), Layer("the test", {"embed_dim": 64})]), 10)
    with pytest.raises(InputError, match="does not fit this model"):
        load_quantized(path, wide)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        load_quantized(path, model)


# ------------------------------------------------------------------------------------------------------- source and run


def train(folder: Path, **overrides: object) -> RunRecord:
    """A run of AugmFP16 on the smoke preset, in this process, in a run folder."""
    layers = [*map(read_layer, SMOKE), Layer("the test", {"device": "cpu", "run_folder": str(folder), **overrides})]
    experiment = prepare_experiment(validate(layers))
    with RunJournal(folder, experiment.record(), show=False) as journal:
        return experiment.run(journal)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with one completed run of AugmFP16."""
    study = tmp_path_factory.mktemp("study")
    assert train(study / "AugmFP16-s0").status == "completed"
    return study


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "study"))


def parameters(study: Path, **overrides: object) -> QuantizeParams:
    """Parameters of FP8Test in a study's folder."""
    own = {"device": "cpu", "threads": 1, "monitor_interval": 0.2, "run_folder": str(study / "FP8Test-s0")}
    return validate([read_layer(TOP / "params" / "FP8Test.yaml"), Layer("the test", own | overrides)], QuantizeParams)


def change_record(study: Path, **fields: object) -> None:
    """Set fields of the source's record, as its journal would."""
    with (study / "AugmFP16-s0" / "journal.jsonl").open("a") as file:
        file.write(json.dumps({"set": fields}) + "\n")


def test_a_run_measures_every_way_and_every_layer_and_repeats_bit_by_bit(study: Path) -> None:
    digests = []
    for _ in range(2):
        shutil.rmtree(study / "FP8Test-s0", ignore_errors=True)  # a finished run is not run into
        quantization = prepare_quantization(parameters(study))
        with RunJournal(quantization.folder, quantization.record(), show=False) as journal:
            record = quantization.run(journal)
        digests.append(record.deterministic["digest"])
    assert record.status == "completed" and record.kind == "quantization" and digests[0] == digests[1]
    assert len(record.quantization) == 3 * 3 * 2 + 1 == len({(r.format, r.granularity, r.operands) for r in record.quantization})
    assert len(record.sensitivity) == 4 * 4 and record.progress["epoch"] == record.progress["epochs"] == 35
    source = read_record(study / "AugmFP16-s0.ipynb")
    assert record.source["test_acc"] == source.metrics.best_test_acc and record.source["recorded_predictions_repeated"] == 1.0
    assert record.source["checkpoint_sha256"] == file_digest(study / "AugmFP16-s0" / "checkpoints" / "best.pt")
    labels, before = (np.array(record.predictions[key]) for key in ("labels", "source"))
    for row in record.quantization:
        after = np.array(row.predictions)
        assert row.test_acc == (after == labels).mean()
        assert row.accuracy_difference == row.test_acc - record.source["test_acc"]
        assert row.changed_predictions == (after != before).mean()
        assert row.only_source_correct == ((before == labels) & (after != labels)).sum()
        assert row.logit_sqnr_db is not None and row.logit_sqnr_db > 15 and row.nonfinite_logits == 0
        if row.format == "int_240":
            assert (row.weight_bits, row.export, row.operands) == (9, None, "weights")
        else:
            assert row.export is not None and row.export["same_predictions"] is True
            file = study / "FP8Test-s0" / row.export["file"]
            assert file.stat().st_size == row.export["bytes"] and file_digest(file) == row.export["sha256"]
            assert row.weight_bytes < 0.6 * row.source_weight_bytes  # type: ignore[operator]
    again = RunRecord.from_payload(json.loads(json.dumps(record.to_payload())))
    assert again.quantization == record.quantization and again.sensitivity == record.sensitivity


def test_a_table_of_quantisations_has_a_row_a_way_and_the_table_of_runs_has_none(study: Path) -> None:
    quantization = prepare_quantization(parameters(study, formats=["e4m3"], export=False, sensitivity=False))
    with RunJournal(quantization.folder, quantization.record(), show=False) as journal:
        quantization.run(journal)
    frame = load_quantization(study)
    assert len(frame) == 6 and set(frame["format"]) == {"e4m3"} and set(frame["status"]) == {"completed"}
    assert set(frame["source_experiment"]) == {"AugmFP16"} and frame["mcnemar_p"].between(0, 1).all()
    assert list(load_runs(study)["experiment"]) == ["AugmFP16"]


REFUSED: list[tuple[dict[str, object], str]] = [
    (
        {"status": "diverged", "reason": "the loss is not finite"},
        "is diverged, not completed (the loss is not finite); a diverged",
    ),
    (
        {"status": "interrupted"},
        "is interrupted, not completed; finish it first: `vitfp8 run AugmFP16 --study study --preset PRESET`",
    ),
    ({"status": "running"}, "is interrupted, not completed"),  # nobody holds its lock
    ({"status": "failed"}, "is failed, not completed; run it first"),
    ({"experiment": "BaseFP32"}, "is a run of BaseFP32, not of AugmFP16"),
    ({"seed": 4}, "has the seed 4, not 0"),
    ({"checkpoints": {}}, "names no weights"),
]


@pytest.mark.parametrize(("fields", "part"), REFUSED, ids=[part[:24] for _, part in REFUSED])
def test_a_source_that_is_none_is_refused_in_one_line(study: Path, fields: dict[str, object], part: str) -> None:
    change_record(study, **fields)
    for refuse in (check_quantization, prepare_quantization):
        with pytest.raises(InputError) as caught:
            refuse(parameters(study))
        assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_source_is_refused_with_the_command_that_makes_it(study: Path) -> None:
    shutil.rmtree(study / "AugmFP16-s0")
    with pytest.raises(
        InputError, match="no such run of AugmFP16; run it first: `vitfp8 run AugmFP16 --study study --preset PRESET`"
    ):
        check_quantization(parameters(study))
    with pytest.raises(InputError, match="no study is known"):
        check_quantization(parameters(study, run_folder=None))


def test_weights_with_a_wrong_digest_are_refused(study: Path) -> None:
    path = study / "AugmFP16-s0" / "checkpoints" / "best.pt"
    state = load_checkpoint(path)
    state["model"]["head.bias"] += 1
    del state["version"]
    save_checkpoint(state, path)
    with pytest.raises(CheckpointError, match="is not the file that the record of AugmFP16-s0.ipynb names"):
        check_quantization(parameters(study))
    path.unlink()
    change_record(study, run_folder=None)  # the copied record names the folder that it was copied from
    with pytest.raises(InputError, match="best.pt is not there"):
        check_quantization(parameters(study))


@pytest.mark.parametrize("same_parameters", [False, True])
def test_another_models_weights_are_refused(study: Path, tmp_path: Path, same_parameters: bool) -> None:
    train(tmp_path / "other", embed_dim=64)
    path = study / "AugmFP16-s0" / "checkpoints" / "best.pt"
    state = load_checkpoint(tmp_path / "other" / "checkpoints" / "best.pt")
    if same_parameters:
        state["parameters"] = read_record(study / "AugmFP16-s0.ipynb").parameters_digest
    del state["version"]
    change_record(study, checkpoints={"best": save_checkpoint(state, path)})
    with pytest.raises(CheckpointError, match="of another model" if same_parameters else "other parameters"):
        prepare_quantization(parameters(study))


def test_other_data_than_in_training_are_refused(study: Path) -> None:
    change_record(study, data={"digest": "0" * 64})
    with pytest.raises(InputError, match="is not the one that AugmFP16-s0.ipynb was trained on"):
        prepare_quantization(parameters(study))


# ----------------------------------------------------------------------------------------------------------- parameters


def test_the_parameter_file_is_complete_and_refusals_name_a_way_out() -> None:
    layer = read_layer(TOP / "params" / "FP8Test.yaml")
    assert set(layer.values) == set(QuantizeParams.model_fields)
    refused: list[tuple[dict[str, object], str]] = [
        ({"formats": ["e4m4"]}, "did you mean e4m3?"),
        ({"formats": ["e4m3", "e4m3"]}, "named twice"),
        ({"granularities": []}, "at least 1"),
        ({"operands": "weights"}, "list"),
        ({"calibration_images": 0}, "greater than"),
        ({"source_experiment": "FP8Test"}, "AugmFP16"),
        ({"experiment": "AugmFP16"}, "FP8Test"),
        ({"format": "e4m3"}, "did you mean formats?"),
        ({"device": "gpu"}, "cpu"),
    ]
    for values, part in refused:
        with pytest.raises(InputError) as caught:
            validate([layer, Layer("-p", values)], QuantizeParams)
        assert part in str(caught.value) and str(caught.value).startswith("-p: ")
    with pytest.raises(InputError, match="does not state formats.*params/FP8Test.yaml"):
        validate([Layer("x.yaml", {k: v for k, v in layer.values.items() if k != "formats"})], QuantizeParams)


def test_the_class_of_a_training_refuses_the_experiment() -> None:
    with pytest.raises(InputError, match="FP8Test"):
        validate([*map(read_layer, SMOKE), Layer("-p", {"experiment": "FP8Test"})], RunParams)


# ----------------------------------------------------------------------------------------------------------- end to end


def vitfp8(*arguments: str, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Call the command line in the current folder."""
    done = subprocess.run([sys.executable, "-m", "vitfp8", *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == check, done.stdout + done.stderr
    return done


def test_fp8test_after_its_source_in_one_command_is_a_lab_record_and_in_the_report(project: Path) -> None:
    planned = vitfp8("run", "FP8Test", "AugmFP16", "--preset", "smoke", "--seeds", "2", "--dry-run").stdout
    names = ["AugmFP16-s0.ipynb", "FP8Test-s0.ipynb", "AugmFP16-s1.ipynb", "FP8Test-s1.ipynb"]
    assert sorted(names, key=planned.index) == names
    vitfp8("run", "FP8Test", "AugmFP16", "--preset", "smoke")
    folder = project / "executed" / "smoke"
    record = read_record(folder / "FP8Test-s0.ipynb")
    assert record.status == "completed" and len(record.quantization) == 19 and len(record.sensitivity) == 16
    assert record.parameters_digest == read_record(folder / "FP8Test-s0.ipynb").parameters_digest
    assert vitfp8("run", "FP8Test", "--preset", "smoke").stdout.count("same parameters and code") == 1
    vitfp8("report", "smoke", "--to", "html")
    report = (project / "report" / "smoke" / "report.html").read_text()
    assert "McNemar" in report and "INT ±240" in report and "Quantised after training to 8 bits" in report
    assert (project / "report" / "smoke" / "figures" / "06_fp8_quantization.pdf").is_file()
    assert (project / "report" / "smoke" / "tables" / "quantization.csv").is_file()
    command = [sys.executable, "-m", "papermill", "notebooks/quantize.ipynb", "out.ipynb", "-f", "params/FP8Test.yaml"]
    command += [
        "-p",
        "source_run",
        "executed/smoke/AugmFP16-s0.ipynb",
        "-p",
        "threads",
        "1",
        "--no-progress-bar",
        "-k",
        "python3",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    plain = read_record(project / "out.ipynb")
    assert plain.status == "completed" and [row.test_acc for row in plain.quantization] == [
        r.test_acc for r in record.quantization
    ]


NO_SOURCE: list[tuple[tuple[str, ...], str]] = [
    (("FP8Test",), "run it first: `vitfp8 run AugmFP16 --preset smoke`"),
    (("FP8Test", "--study", "mine"), "`vitfp8 run AugmFP16 --preset smoke --study mine`"),
    (("FP8Test", "--seeds", "2"), "`vitfp8 run AugmFP16 --preset smoke`"),
    (("FP8Test", "-p", "epochs", "3"), "unknown parameter 'epochs' of FP8Test"),
    (("AugmFP16", "FP8Test", "-p", "epoch", "3"), "did you mean epochs?"),
    (("AugmFP16", "-p", "formats", "[e4m3]"), "unknown parameter 'formats' of AugmFP16"),
    (("AugmFP16", "FP8Test", "-p", "formats", "[e4m4]"), "did you mean e4m3?"),
]


@pytest.mark.parametrize(("arguments", "part"), NO_SOURCE, ids=[" ".join(a) for a, _ in NO_SOURCE])
def test_bad_input_is_one_line_exit_2_and_nothing_written(project: Path, arguments: tuple[str, ...], part: str) -> None:
    before = sorted(project.rglob("*"))
    done = vitfp8("run", *arguments, "--preset", "smoke", check=2)
    assert part in done.stderr and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert sorted(project.rglob("*")) == before


def test_parameters_of_a_training_are_laid_over_trainings_alone(project: Path) -> None:
    from vitfp8.run.plan import plan_batch
    from vitfp8.run.study_file import Study

    assignments = [("epochs", "1"), ("formats", "[int8]"), ("threads", "1")]
    training, test = plan_batch("x", Study(preset="smoke"), experiments=["AugmFP16", "FP8Test"], assignments=assignments)
    assert isinstance(training.params, RunParams) and training.params.epochs == 1
    assert isinstance(test.params, QuantizeParams) and test.params.formats == ["int8"] and test.params.monitor_interval == 0.2
    assert test.source_planned and test.params.threads == training.params.threads == 1


def test_a_quantisation_that_did_not_complete_is_listed_and_in_no_result(study: Path) -> None:
    params = parameters(study)
    record = RunRecord(kind="quantization", experiment="FP8Test", seed=0, status="failed", reason="the kernel died")
    with RunJournal(Path(str(params.run_folder)), record, show=False):
        pass
    results = load_results(study)
    assert results.quantized == [] and [group.experiment for group in results.groups] == ["AugmFP16"]
    assert [(row.run, row.status, row.reason) for row in results.excluded] == [("FP8Test-s0", "failed", "the kernel died")]
    assert "FP8Test-s0 failed" in str(draw_figure(6, results)) and quantization_remark(results.quantized) == ""
    assert "no completed run (FP8Test-s0 failed)" in prose.outcomes(results).replace("\\", "")
    assert quantization_table(results.quantized).rows == []
