"""On a device that is not the processor, a training step reads no value back and copies nothing over.

Tensors on the meta device have no values: whoever reads one (``.item()``, ``float()``, a branch on a tensor) gets an error, and
every path that is chosen by ``device.type != "cpu"`` is taken. So a step that passes here lets a GPU run ahead of the processor.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitfp8 import trainer as trainer_module
from vitfp8.data import load_data
from vitfp8.data.augment import to_device
from vitfp8.model import create_model
from vitfp8.params import Layer, RunParams, read_layer, validate
from vitfp8.precision import prepare
from vitfp8.trainer import ViTTrainer

META = torch.device("meta")


class Crossings(TorchDispatchMode):
    """Counts operations that take a tensor with values from the processor and give one on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note it when data crosses."""
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.numel() > 1}
        if "cpu" in devices and any(isinstance(leaf, Tensor) and leaf.device == META for leaf in tree_leaves(result)):
            self.seen.append(str(func))
        return result


class Reads(TorchDispatchMode):
    """Counts values of the device that the processor waits for, and gives zeros in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, or note that it reads."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].device == META:
            if func is torch.ops.aten._local_scalar_dense.default:
                self.seen["a number"] += 1
                return 0
            if func is torch.ops.aten._to_copy.default and torch.device(kwargs.get("device") or META).type == "cpu":
                self.seen["a tensor"] += 1
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


class FusedOnMeta(torch.optim.Adam):
    """What the fused optimizer is to a loss scaler: it takes scale and overflow as tensors, and applies them on the device."""

    _step_supports_amp_scaling = True

    def step(self, closure: Any = None) -> Any:
        """A step of the operations that all devices but the fused kernel have."""
        for name in ("grad_scale", "found_inf"):
            given = getattr(self, name, None)
            assert given is None or given.device == META
            setattr(self, name, None)
        return super().step(closure)


def a_model(**changes: object) -> tuple[torch.nn.Module, RunParams]:
    """A small Vision Transformer without values."""
    sizes = {"variant": "trial", "image_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2, "batch_size": 16}
    params = validate([read_layer(Path(__file__).parents[2] / "params" / "BaseFP8.yaml"), Layer("test", {**sizes, **changes})])
    assert isinstance(params, RunParams)
    with META:
        return create_model(params, 10).train(), params


RECIPE_NAMES = ("tensorwise", "delayed", "rowwise", "rowwise_with_gw_hp", "blockwise", "mxfp8_floor", "mxfp8_rceil")
CASES = [(name, "tensorwise") for name in ("fp32", "tf32", "bf16", "fp16")] + [("fp8", recipe) for recipe in RECIPE_NAMES]


@pytest.mark.parametrize("sampled", [False, True], ids=["", "health"])
@pytest.mark.parametrize(("precision", "recipe"), CASES)
def test_a_training_step_never_waits_for_the_device(precision: str, recipe: str, sampled: bool) -> None:
    model, _ = a_model()
    prepared = prepare(model, precision, device=META, fp8_recipe=recipe, rows=16 * 17, health_every=1 if sampled else 0)
    optimizer = FusedOnMeta(model.parameters(), lr=1e-3, foreach=True)
    images, labels = torch.empty(16, 3, 16, 16, device=META), torch.empty(16, dtype=torch.int64, device=META)
    for step in range(2):
        with Crossings() as crossings, prepared.health.watching(step):
            logits = model(images).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
            prepared.backward(loss / len(images))
            correct = (logits.argmax(dim=1) == labels).sum()
            norm = prepared.step(optimizer, model.parameters(), 1.0)
        optimizer.zero_grad(set_to_none=True)
        assert {loss.device, correct.device, norm.device} == {META}
        assert crossings.seen == []


def test_a_value_that_is_read_would_be_found() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.empty((), device=META).item()


def test_a_loss_scaler_waits_where_the_optimizer_is_not_fused() -> None:
    model, _ = a_model()
    prepared = prepare(model, "fp16", device=META, rows=16 * 17, health_every=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    prepared.backward(model(torch.empty(16, 3, 16, 16, device=META)).float().mean())
    with pytest.raises(RuntimeError, match="meta"):
        prepared.step(optimizer, model.parameters(), 1.0)


def a_trainer(
    precision: str, augmentation: str, monkeypatch: pytest.MonkeyPatch, *, batch_size: int = 24, health_every: int = 10
) -> ViTTrainer:
    """A trainer of a small model on digits, all of it without values."""
    model, params = a_model(
        dataset="digits",
        image_size=8,
        patch_size=4,
        in_channels=1,
        precision=precision,
        augmentation=augmentation,
        label_smoothing=0.1,
        batch_size=batch_size,
        checkpoint_minutes=None,
    )
    data = load_data(dataset="digits", image_size=8, device=META)
    prepared = prepare(model, precision, device=META, rows=batch_size * 5, health_every=health_every)
    # the optimizer's kernels for meta tensors are those of every device but the fused one
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, fused: fused and FusedOnMeta(groups, lr=lr, foreach=True))
    return ViTTrainer(params, data, model, prepared, device=META)


#: Precision → reads when an epoch is closed. Tensors: loss, prediction and label of two splits; norms, losses and correct images
#: of all steps, twice (the row, the checkpoint). Loss scaling adds the scales of all steps, twice, the scale, the skipped steps,
#: and what the scaler itself keeps as numbers.
CLOSING = {
    "fp32": {"a tensor": 12},
    "fp16": {"a tensor": 14, "a number": 5},
    "fp8": {"a tensor": 12},
}


@pytest.mark.parametrize("precision", CLOSING)
def test_closing_an_epoch_reads_as_often_whatever_the_number_of_steps(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ViTTrainer, "_look_at_losses", lambda self, first: None)
    seen = []
    for batch_size in (200, 400):
        trainer = a_trainer(precision, "basic", monkeypatch, batch_size=batch_size, health_every=0)
        trainer.train_epoch()
        with Reads() as reads:
            row = trainer._close_epoch()
        assert row["epoch"] == 1 and trainer.history == [row]
        seen.append(dict(reads.seen))
    assert seen == [CLOSING[precision]] * 2


@pytest.mark.parametrize(
    ("precision", "augmentation"), [("fp32", "basic"), ("bf16", "extended"), ("fp16", "basic"), ("fp8", "extended")]
)
def test_an_epoch_sends_two_small_tables_a_step_and_looks_every_fifty_steps(
    precision: str, augmentation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = a_trainer(precision, augmentation, monkeypatch)
    looks: list[int] = []
    monkeypatch.setattr(ViTTrainer, "_look_at_losses", lambda self, first: looks.append(first))
    sent: list[int] = []

    def counted(tensor: Tensor, device: torch.device) -> Tensor:
        sent.append(tensor.nbytes)
        return to_device(tensor, device)

    monkeypatch.setattr("vitfp8.data.datasets.to_device", counted)
    monkeypatch.setattr("vitfp8.data.augment.to_device", counted)
    next(trainer.batches.epoch(0))  # what is kept on the device for all steps goes there once
    sent.clear()
    with Crossings() as crossings:
        trainer.train_epoch()
    steps = len(trainer.batches)
    assert steps > trainer_module._STEPS_BETWEEN_LOOKS and len(trainer.sums.losses) == steps
    assert looks == list(range(0, steps, trainer_module._STEPS_BETWEEN_LOOKS))
    # the images' numbers and what is drawn for each: a few hundred bytes an image, whatever the images' size
    assert len(sent) == 2 * steps and max(sent) <= 24 * 400
    assert Counter(crossings.seen).total() == len(sent), Counter(crossings.seen)
    assert all(tensor.device == META for tensor in trainer.sums.losses + trainer.sums.correct + trainer.sums.norms)


def test_what_is_sent_to_a_gpu_is_pinned_and_not_waited_for() -> None:
    tensor = MagicMock()
    sent = to_device(tensor, torch.device("cuda"))
    tensor.pin_memory.return_value.to.assert_called_once_with(torch.device("cuda"), non_blocking=True)
    assert sent is tensor.pin_memory.return_value.to.return_value
