"""The smallest useful run on hardware: `pytest -m gpu` on an NVIDIA or AMD GPU, `pytest -m mps` on Apple's.

Two smoke epochs in every precision, stopped and continued, and repeated; overflow in FP16, TF32's switch, and compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vitfp8.catalog import FP8_RECIPES
from vitfp8.errors import InputError
from vitfp8.experiment import PreparedRun, check_experiment, who_multiplies
from vitfp8.precision import resolve_device
from vitfp8.record import RunJournal, RunRecord

Prepared = Callable[..., PreparedRun]


def _works(device: str) -> bool:
    """Whether a device is there and can hold a tensor: hosted Macs announce a GPU that cannot."""
    try:
        resolve_device(device)
        torch.zeros(1, device=device)
    except (InputError, RuntimeError):
        return False
    return True


DEVICES = [
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not _works("cuda"), reason="needs an NVIDIA or AMD GPU")]),
    pytest.param("mps", marks=[pytest.mark.mps, pytest.mark.skipif(not _works("mps"), reason="needs Apple's GPU")]),
]
PRECISIONS = [("BaseFP32", {}), ("BaseFP32", {"precision": "tf32"}), ("BaseBF16", {}), ("BaseFP16", {})]
PRECISIONS += [("BaseFP8", {"fp8_recipe": recipe}) for recipe in FP8_RECIPES if recipe != "mxfp8"]


def run(experiment: PreparedRun) -> RunRecord:
    """Train to the end and return the record."""
    with RunJournal(experiment.folder, experiment.record(), show=False) as journal:
        return experiment.run(journal)


def overrides_for(device: str, given: dict[str, Any]) -> dict[str, Any]:
    """A run on the device, of a model wide enough for its kernels."""
    return {"device": device, "threads": None, "epochs": 2, "embed_dim": 64, "num_heads": 2, "variant": "trial", **given}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("experiment", "given"), PRECISIONS, ids=lambda value: str(value))
def test_two_epochs_continue_after_a_stop_and_repeat(
    prepared: Prepared, device: str, experiment: str, given: dict[str, Any]
) -> None:
    overrides = overrides_for(device, given)
    whole = prepared(experiment, folder="whole", **overrides)
    backend = who_multiplies(whole.params)[1]
    record = run(whole)
    assert record.status == "completed" and record.metrics.test_acc is not None
    assert record.precision is not None and record.precision.backend == backend
    first, last = (row.train_loss for row in record.history)
    assert first is not None and last is not None and last < first < 3
    if device == "cuda":
        assert all(row.peak_allocated_bytes and row.peak_reserved_bytes for row in record.history)

    parts = prepared(experiment, folder="parts", **overrides)
    parts.trainer.train_epoch()
    parts.trainer._close_epoch()
    again = prepared(experiment, folder="parts", **overrides)
    assert again.trainer.epoch == 1
    again.trainer.train()
    losses = [[row["train_loss"] for row in history] for history in (whole.trainer.history, again.trainer.history)]
    # Apple's GPU promises no order of sums; on CUDA only algorithms run that repeat
    tolerance = {"cuda": 0.0, "mps": 1e-2}[device]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance, abs=0.0)
    if experiment != "BaseFP32" and given.get("fp8_recipe", "tensorwise") == "tensorwise":
        assert record.health["samples"]["step"]


@pytest.mark.parametrize("device", DEVICES)
def test_an_overflow_skips_the_step_and_halves_the_scale(prepared: Prepared, device: str) -> None:
    experiment = prepared("BaseFP16", **overrides_for(device, {"loss_scale": 2.0**40, "epochs": 1, "health_every": 0}))
    before = [parameter.detach().clone() for parameter in experiment.model.parameters()]
    images, labels, _ = next(iter(experiment.trainer.batches.epoch(0)))
    experiment.model.train()
    experiment.trainer.train_step(images, labels)
    assert experiment.precision.skipped_steps() == 1 and experiment.precision.loss_scale() == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(before, experiment.model.parameters(), strict=True))


@pytest.mark.parametrize("device", DEVICES[:1])
def test_tf32_rounds_and_fp32_does_not(prepared: Prepared, device: str) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("has no TF32 products")
    a = torch.full((256, 256), 1 + 2.0**-12, device=device)
    products = {}
    for precision in ("fp32", "tf32"):
        prepared("BaseFP32", folder=precision, **overrides_for(device, {"precision": precision}))
        products[precision] = (a @ torch.eye(256, device=device))[0, 0].item()
    assert products == {"fp32": 1 + 2.0**-12, "tf32": 1.0}


@pytest.mark.parametrize("device", DEVICES[:1])
@pytest.mark.parametrize("graphs", [False, True], ids=["", "cuda_graphs"])
@pytest.mark.parametrize("experiment", ["BaseFP32", "BaseBF16", "BaseFP16", "BaseFP8"])
def test_a_compiled_run_learns_what_an_eager_one_does(prepared: Prepared, device: str, experiment: str, graphs: bool) -> None:
    asked = overrides_for(device, {"torch_compile": True, "cuda_graphs": graphs})
    eager = prepared(experiment, folder="eager", **overrides_for(device, {"torch_compile": False}))
    if eager.precision.report["backend"] == "emulated":
        with pytest.raises(InputError, match="the compiler removes the rounding"):
            check_experiment(eager.params.model_copy(update={"torch_compile": True}))
        return
    compiled = run(prepared(experiment, folder="compiled", **asked))
    reference = run(eager)
    assert compiled.metrics.compile_seconds is not None and compiled.metrics.compile_seconds > 0
    assert compiled.precision is not None and compiled.precision.compiled is True
    assert compiled.history[-1].train_loss == pytest.approx(reference.history[-1].train_loss, rel=0.05)
