"""What many tests share: the four parameter files as layers, small runs, a project folder of one's own."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vitfp8.catalog import BUNDLES
from vitfp8.params import Layer, RunParams, read_layer, validate

if TYPE_CHECKING:  # torch is loaded by the tests that need it
    from vitfp8.experiment import PreparedRun

# A shell that starts a job in the background makes it ignore Ctrl-C, and children inherit that: tests that send it need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Let ``device: auto`` mean the processor, here and in kernels, unless ``-m gpu`` or ``-m mps`` asks for a GPU's tests."""
    if not re.search(r"(?<!not )\b(gpu|mps)\b", config.option.markexpr):
        os.environ.setdefault("VITFP8_DEVICE", "cpu")


TOP = Path(__file__).resolve().parent.parent
SMOKE = TOP / "params" / "presets" / "smoke.yaml"


@pytest.fixture
def smoke_params() -> Callable[..., RunParams]:
    """Parameters of an experiment under the smoke preset, with overrides."""

    def make(experiment: str = "BaseFP32", **overrides: object) -> RunParams:
        layers = [read_layer(TOP / "params" / f"{experiment}.yaml"), read_layer(SMOKE)]
        if not {"precision", "augmentation", *BUNDLES["basic"]}.isdisjoint(overrides):
            overrides = {"variant": "trial", **overrides}
        return validate([*layers, Layer("the test", {"threads": 1, "device": "cpu", **overrides})])

    return make


@pytest.fixture
def prepared(smoke_params: Callable[..., RunParams], tmp_path: Path) -> Callable[..., PreparedRun]:
    """An experiment under the smoke preset, ready to train, in a run folder of its own, with overrides."""
    from vitfp8.experiment import prepare_experiment

    def make(experiment: str = "BaseFP32", folder: str = "run", **overrides: object) -> PreparedRun:
        return prepare_experiment(smoke_params(experiment, run_folder=str(tmp_path / folder), **overrides))

    return make


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with copies of notebooks and parameter files, as a user's clone has them."""
    for name in ("notebooks", "params"):
        shutil.copytree(TOP / name, tmp_path / name)
    shutil.copy(TOP / "CITATION.cff", tmp_path / "CITATION.cff")
    monkeypatch.chdir(tmp_path)
    return tmp_path
