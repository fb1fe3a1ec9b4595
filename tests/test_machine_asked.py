"""What commands say of the machine before a run: Windows, devices, precisions, narrow FP8; and which machines are tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement

from tests.conftest import TOP
from vitfp8 import doctor, experiment
from vitfp8.cli import main
from vitfp8.errors import InputError
from vitfp8.params import RunParams, from_notebook
from vitfp8.params import notebook as notebook_parameters
from vitfp8.precision import capability
from vitfp8.run import estimates, preflight

Make = Callable[..., RunParams]


def test_windows_is_refused_by_commands_and_notebooks_in_one_line_that_names_wsl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook_parameters, "sys", SimpleNamespace(platform="win32"))
    done = CliRunner().invoke(main, ["runs"])
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1) and "WSL" in done.output
    with pytest.raises(InputError, match="Windows is not supported: install WSL"):
        from_notebook(["epochs = 2"])


def test_commands_and_parameters_need_nothing_that_windows_lacks() -> None:
    """Else the refusal would be a traceback."""
    code = (
        "import sys\nfor name in ('fcntl', 'resource', 'termios', 'pwd', 'grp'): sys.modules[name] = None\n"
        "import vitfp8.cli, vitfp8.params, vitfp8.params.quantization"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An NVIDIA GPU that this torch has no kernels for."""
    monkeypatch.delenv(capability.DEVICE_VARIABLE, raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("old_gpu")
def test_a_gpu_that_auto_passes_over_is_told_by_check_doctor_and_notebook(smoke_params: Make) -> None:
    (finding,) = [each for each in preflight.examine_machine([smoke_params(device="auto")]) if each.subject == "device"]
    assert finding.level == "warning" and finding.text.startswith("device: auto takes cpu, not cuda: compute capability 6.1")
    (check,) = [each for each in doctor.CHECKS if each.__name__ == "_precisions"]
    assert [line.text for line in check() if line.subject == "device"] == [finding.text]
    with pytest.warns(UserWarning, match="device: auto takes cpu, not cuda"):
        experiment.prepare_experiment(smoke_params(device="auto"))


def test_doctor_says_what_compiling_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability, "compiler_for", lambda device: (False, "needs a C++ compiler; install g++ or set CXX"))
    (check,) = [each for each in doctor.CHECKS if each.__name__ == "_compiler"]
    (line,) = [line for line in check() if line.subject == "torch.compile"]
    assert line.level == "note" and line.text.startswith("on ") and line.text.endswith("install g++ or set CXX")


def test_fp8_recipes_that_are_not_alike_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(experiment, "resolve_device", lambda name: torch.device("cuda"))
    said = [finding for finding in preflight.every_precision() if finding.subject == "FP8"]
    assert [(finding.level, "blockwise" in finding.text.split(":")[0]) for finding in said] == [("ok", False), ("note", True)]


@pytest.mark.parametrize(
    ("width", "compiled", "backend", "words"),
    [(192, False, "native", "192 wide, .*; without torch_compile"), (192, True, "native", "192 wide, [^;]*$"),
     (1024, False, "native", "BF16: without torch_compile"), (1024, True, "native", None), (192, False, "emulated", None)],
)  # fmt: skip
def test_narrow_layers_and_eager_steps_are_said_to_make_native_fp8_slow(
    smoke_params: Make, monkeypatch: pytest.MonkeyPatch, width: int, compiled: bool, backend: str, words: str | None
) -> None:
    monkeypatch.setattr(experiment, "who_multiplies", lambda params: ("cuda", backend, "as the test says"))
    run = smoke_params("BaseFP8", embed_dim=width, num_heads=4, torch_compile=compiled, health_every=0, variant="trial")
    said = [finding.text for finding in preflight._arithmetic([run]) if finding.subject == "speed"]
    if words is None:
        assert said == []
    else:
        (text,) = said
        assert re.search(words, text)


@pytest.mark.parametrize(("device", "images"), [("cuda", 64), ("cpu", 1)])
def test_an_estimate_measures_whole_batches_on_a_gpu_that_auto_found(
    smoke_params: Make, monkeypatch: pytest.MonkeyPatch, device: str, images: int
) -> None:
    asked: list[int] = []

    def stop(small: RunParams) -> Any:
        asked.append(small.batch_size)
        raise InputError("enough")

    monkeypatch.setattr(estimates, "_MEASURED_FLOPS", 1.0)
    monkeypatch.setattr(experiment, "who_multiplies", lambda params: (device, "native", ""))
    monkeypatch.setattr(experiment, "prepare_experiment", stop)
    with pytest.raises(InputError):
        estimates.measured_epoch_seconds(smoke_params(device="auto", batch_size=64))
    assert asked == [images]


@pytest.mark.parametrize(
    ("emulated", "compiler", "level", "words"),
    [
        ("", True, "ok", "2 runs will be compiled (gcc)"),
        (
            "fp8",
            True,
            "note",
            "2 runs will not be compiled: fp8 of the same study is emulated here, and times must be comparable",
        ),
        ("", False, "note", "2 runs will not be compiled: Triton is missing"),
    ],
)
def test_what_auto_comes_to_on_cuda_is_said_before_a_batch(
    smoke_params: Callable[..., RunParams],
    monkeypatch: pytest.MonkeyPatch,
    emulated: str,
    compiler: bool,
    level: str,
    words: str,
) -> None:
    def who(params: RunParams) -> tuple[str, str, str]:
        return "cuda", "emulated" if params.precision == emulated else "native", ""

    monkeypatch.setattr(experiment, "who_multiplies", who)
    monkeypatch.setattr("vitfp8.precision.compiler_for", lambda device: (compiler, "gcc" if compiler else "Triton is missing"))
    runs = [smoke_params("BaseFP32"), smoke_params("BaseFP8")]
    (found,) = preflight._compilation(runs)
    assert (found.level, found.subject, found.text) == (level, "compile", words)
    (with_graphs,) = preflight._compilation([run.model_copy(update={"cuda_graphs": True}) for run in runs])
    assert with_graphs.level == ("ok" if level == "ok" else "refusal")
    monkeypatch.setattr(experiment, "who_multiplies", lambda params: ("cpu", "native", ""))
    assert preflight._compilation(runs) == []


# -------------------------------------------------------------------------------------------------- versions and machines


def floors() -> dict[str, str]:
    """Oldest versions of torch and torchvision that the package accepts."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {Requirement(item).name: Requirement(item) for item in project["dependencies"]}
    return {name: next(iter(wanted[name].specifier)).version for name in ("torch", "torchvision")}


def test_torch_is_one_whose_optimizer_skips_overflowed_steps_on_apple_gpus() -> None:
    assert floors() == {"torch": "2.13", "torchvision": "0.28"}


def test_the_workflow_runs_on_every_kind_of_machine_with_the_newest_and_the_oldest_torch() -> None:
    job = yaml.safe_load((TOP / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]["tests"]
    rows = job["strategy"]["matrix"]["include"]
    machines = {"ubuntu-latest", "ubuntu-24.04-arm", "macos-latest"}
    assert {(row["os"], row["torch"]) for row in rows} == {(os, torch) for os in machines for torch in ("newest", "oldest")}
    assert {row["python"] for row in rows} == {"3.11", "3.13"}
    for kind in ("newest", "oldest"):
        assert {row["python"] for row in rows if row["torch"] == kind} == {"3.11", "3.13"}
    assert job["env"]["PIP_CONSTRAINT"].endswith("constraints/${{ matrix.torch }}.txt") and job["steps"][-1]["run"] == ".ci/run"
    folder = TOP / ".github" / "constraints"
    oldest = [Requirement(line) for line in (folder / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    assert {each.name: str(each.specifier) for each in oldest} == {name: f"=={floor}.*" for name, floor in floors().items()}
    assert [line for line in (folder / "newest.txt").read_text().splitlines() if not line.startswith("#")] == []


@pytest.mark.parametrize("has_poppler", [True, False])
def test_checks_on_a_mac_install_what_brew_has_and_go_on(tmp_path: Path, has_poppler: bool) -> None:
    """A machine with Homebrew and without apt-get, of which every program only says that it was called."""
    for name in ("brew", "make", *(["pdftotext"] if has_poppler else [])):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = subprocess.run(["bash", TOP / ".ci" / "run"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    brewed = [] if has_poppler else ["brew install --quiet poppler"]
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, [*brewed, "make lint", "make test"], "")


def test_auto_means_what_the_suite_says() -> None:
    assert capability.resolve_device("auto").type == os.environ["VITFP8_DEVICE"]
