"""Compiling a model: when it is done, that it alters no rounding, and that watching numeric health decides no number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from torch import Tensor, nn

from tests.analysis.records import make_record, write_notebook
from vitfp8 import compilation
from vitfp8 import experiment as experiment_module
from vitfp8.compilation import STUDY_RUNS_EAGERLY, Compilation, compile_model, decide_compilation
from vitfp8.errors import InputError
from vitfp8.experiment import PreparedRun, why_eager
from vitfp8.params import RunParams
from vitfp8.run.execute import execute
from vitfp8.run.plan import PlannedRun
from vitfp8.run.runner import study_variables

Make = Callable[..., RunParams]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "device", "backend", "told", "compiler", "on", "words"),
    [
        ("auto", CPU, "native", {}, True, False, "compiles on CUDA only"),
        ("auto", CUDA, "native", {}, True, True, "the device is CUDA"),
        ("auto", CUDA, "emulated", {}, True, False, "emulated here"),
        ("auto", CUDA, "native", {STUDY_RUNS_EAGERLY: "fp8 is emulated"}, True, False, "fp8 is emulated"),
        ("auto", CUDA, "native", {}, False, False, "no compiler"),
        (False, CUDA, "native", {}, True, False, "torch_compile is false"),
        (True, CUDA, "native", {STUDY_RUNS_EAGERLY: "fp8 is emulated"}, True, True, "torch_compile is true"),
        (True, CPU, "native", {}, True, True, "torch_compile is true"),
    ],
)
def test_what_is_compiled_and_why(
    smoke_params: Make,
    monkeypatch: pytest.MonkeyPatch,
    asked: bool | str,
    device: torch.device,
    backend: str,
    told: dict[str, str],
    compiler: bool,
    on: bool,
    words: str,
) -> None:
    monkeypatch.setattr(compilation, "compiler_for", lambda device: (compiler, "there is no compiler"))
    found = decide_compilation(smoke_params(torch_compile=asked), device, backend, "why", told)
    assert found.on is on and words in found.reason


def test_cuda_graphs_need_a_model_that_is_compiled_on_cuda(smoke_params: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "compiler_for", lambda device: (True, ""))
    with_graphs = smoke_params(cuda_graphs=True)
    assert decide_compilation(with_graphs, CUDA, "native", "", {}) == Compilation(
        True, "torch_compile is auto, and the device is CUDA", True
    )
    for params, device in ((with_graphs, CPU), (smoke_params(cuda_graphs=True, torch_compile=False), CUDA)):
        with pytest.raises(InputError, match="cuda_graphs: true: needs a model that is compiled on CUDA"):
            decide_compilation(params, device, "native", "", {})


def test_one_emulated_precision_makes_a_study_eager(smoke_params: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"fp32": "native", "bf16": "native", "fp8": "emulated"}
    monkeypatch.setattr(experiment_module, "who_multiplies", lambda params: ("cuda", answers[params.precision], ""))
    native = [smoke_params("BaseFP32"), smoke_params("BaseBF16")]
    assert why_eager(native) is None
    assert why_eager([*native, smoke_params("BaseFP8")]) == "fp8 of the same study is emulated here"
    assert why_eager([*native, smoke_params("BaseFP8", torch_compile=False)]) is None
    monkeypatch.setattr(experiment_module, "who_multiplies", lambda params: ("cpu", answers[params.precision], ""))
    assert why_eager([*native, smoke_params("BaseFP8")]) is None


def test_auto_and_false_are_one_identity(smoke_params: Make) -> None:
    auto, never, always = (smoke_params(torch_compile=value) for value in ("auto", False, True))
    assert auto.digest == never.digest == smoke_params().digest != always.digest
    assert auto.digest_under(1) == never.digest_under(1)
    assert "cuda_graphs" not in auto.identity() and smoke_params(cuda_graphs=True).digest != auto.digest


@pytest.mark.parametrize("value", ["yes", 1, "Auto", None])
def test_anything_but_auto_true_and_false_is_refused(smoke_params: Make, value: object) -> None:
    with pytest.raises(InputError, match="torch_compile.*auto, true or false"):
        smoke_params(torch_compile=value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_compiled_model_rounds_wherever_an_eager_one_does(dtype: torch.dtype) -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * x + x) * x

    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(compile_model(Chain(), Compilation(True))(x), Chain()(x))
    torch.compiler.reset()
    fused = torch.compile(Chain())(x)  # what the option is for: left alone, the compiler keeps more bits in between
    assert not torch.equal(fused, Chain()(x))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Models are traced and not built; the batches that each compiled model was called with."""
    shapes: list[torch.Size] = []

    def compile_(model: nn.Module, compilation: Compilation) -> Callable[[Tensor], Tensor]:
        network = torch.compile(model, backend="aot_eager", dynamic=False) if compilation.on else model

        def call(images: Tensor) -> Tensor:
            shapes.append(images.shape)
            return network(images)

        return call

    monkeypatch.setattr("vitfp8.trainer.compile_model", compile_)
    torch.compiler.reset()
    return shapes


def native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """BF16 is native on this processor, whatever it has: torch multiplies in it anywhere, only slowly."""
    for place in ("preparation", "capability"):
        monkeypatch.setattr(f"vitfp8.precision.{place}.has_native_products", lambda format, device: (True, "as the test says"))


def test_health_decides_no_bit_of_a_compiled_training(
    prepared: Callable[..., PreparedRun], traced: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    native_bf16(monkeypatch)
    weights, reports = [], []
    for every in (0, 3):
        experiment = prepared(
            "BaseBF16", folder=f"every{every}", epochs=1, depth=1, torch_compile=True, health_every=every, batch_size=256
        )
        experiment.trainer.train()
        weights.append(experiment.model.state_dict())
        reports.append(experiment.trainer.health_report())
        assert experiment.precision.report["compiled"] is True
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert "samples" not in reports[0]
    steps = len(prepared("BaseBF16", folder="count", epochs=1, depth=1, batch_size=256).trainer.batches)
    assert sorted(set(reports[1]["samples"]["step"])) == [step + 1 for step in range(0, steps, 3)]
    assert set(reports[1]["samples"]["operand"]) == {0, 1, 2}


def test_a_compiled_model_sees_one_batch_size_and_compiling_leaves_no_trace(
    prepared: Callable[..., PreparedRun], traced: list[torch.Size]
) -> None:
    eager = prepared(folder="eager", epochs=1, depth=1, batch_size=100)
    eager.trainer.train()
    seen = set(traced)
    traced.clear()
    compiled = prepared(folder="compiled", epochs=1, depth=1, batch_size=100, torch_compile=True)
    compiled.trainer.train()
    assert len(seen) > 1 and {shape[0] for shape in traced} == {100}
    assert compiled.trainer.compile_seconds is not None and compiled.trainer.compile_seconds > 0
    assert eager.trainer.compile_seconds is None
    for key in ("train_loss", "val_acc", "clean_train_loss"):
        assert compiled.trainer.history[0][key] == pytest.approx(eager.trainer.history[0][key], rel=1e-5)


@pytest.mark.parametrize("experiment", ["BaseFP32", "AugmFP32"])
def test_everything_is_compiled_before_the_first_epoch(
    prepared: Callable[..., PreparedRun], monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def trace(model: nn.Module, compilation: Compilation) -> Callable[[Tensor], Tensor]:
        return torch.compile(model, backend=backend, dynamic=False)

    monkeypatch.setattr("vitfp8.trainer.compile_model", trace)
    torch.compiler.reset()
    trainer = prepared(experiment, epochs=1, depth=1, torch_compile=True).trainer
    trainer._compile_ahead()
    assert len(graphs) == 2, "training and evaluation, each in one graph"
    trainer.train()
    trainer.validate("test")
    assert len(graphs) == 2


def test_a_record_says_what_ran(prepared: Callable[..., PreparedRun]) -> None:
    precision = prepared(torch_compile="auto", device="cpu").record().precision
    assert precision is not None
    assert (precision.compiled, precision.cuda_graphs, precision.attention) == (False, False, "written out")
    assert precision.compile_reason == "torch_compile is auto, which compiles on CUDA only"


def test_the_kernels_of_a_study_are_told_that_one_precision_is_emulated(
    smoke_params: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(*experiments: str) -> list[PlannedRun]:
        runs = [smoke_params(name, device="auto") for name in experiments]
        return [
            PlannedRun(params=p, injected={}, notebook=tmp_path, output=tmp_path / f"{p.run_name}.ipynb", action="run", why="")
            for p in runs
        ]

    native, mixed = planned("BaseFP32"), planned("BaseFP32", "BaseFP8")
    assert study_variables(mixed) == {}, "on a processor nothing is compiled unless it is asked for"
    monkeypatch.setattr(experiment_module, "resolve_device", lambda name: CUDA)
    monkeypatch.setattr(
        experiment_module, "who_multiplies", lambda p: ("cuda", "emulated" if p.precision == "fp8" else "native", "")
    )
    assert study_variables(native) == {}
    new = [dataclasses.replace(run, output=tmp_path / "new" / run.output.name) for run in native]
    assert study_variables(new) == {}, "a study that has no folder yet"
    assert study_variables(mixed) == {STUDY_RUNS_EAGERLY: "fp8 of the same study is emulated here"}
    earlier = make_record("BaseFP8")
    assert earlier.precision is not None
    earlier.precision.backend, earlier.precision.requested = "emulated", "fp8"
    earlier.provenance["device_type"] = "cuda"
    write_notebook(earlier, tmp_path / "BaseFP8-s7.ipynb")
    assert study_variables(native) == {STUDY_RUNS_EAGERLY: "fp8 of the same study was emulated"}


def test_a_kernel_sees_what_it_is_told(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell(f"import os; print(os.environ[{STUDY_RUNS_EAGERLY!r}])")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "cell.ipynb")
    execute(tmp_path / "cell.ipynb", tmp_path / "out.ipynb", {}, variables={STUDY_RUNS_EAGERLY: "because"})
    outputs = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs
    assert [output["text"] for output in outputs] == ["because\n"]
