"""On a device that is not the processor, a training step reads no value back and copies nothing over.

Tensors on the meta device have no values: whoever reads one (``.item()``, ``float()``, a branch on a tensor) gets an error, and
every path that is chosen by ``device.type != "cpu"`` is taken. So a step that passes here lets a GPU run ahead of the processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitfp8.model import create_model
from vitfp8.params import Layer, RunParams, read_layer, validate
from vitfp8.precision import prepare

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


def a_model(**changes: object) -> tuple[torch.nn.Module, RunParams]:
    """A small Vision Transformer without values."""
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2, "batch_size": 16}
    params = validate([read_layer(Path(__file__).parents[2] / "params" / "BaseFP8.yaml"), Layer("test", {**sizes, **changes})])
    assert isinstance(params, RunParams)
    with META:
        return create_model(params, 10).train(), params


RECIPE_NAMES = ("tensorwise", "delayed", "rowwise", "rowwise_with_gw_hp", "blockwise", "mxfp8_floor", "mxfp8_rceil")
CASES = [(name, "tensorwise") for name in ("fp32", "tf32", "bf16")] + [("fp8", recipe) for recipe in RECIPE_NAMES]


@pytest.mark.parametrize("sampled", [False, True], ids=["", "health"])
@pytest.mark.parametrize(("precision", "recipe"), CASES)
def test_a_training_step_never_waits_for_the_device(precision: str, recipe: str, sampled: bool) -> None:
    model, _ = a_model()
    prepared = prepare(model, precision, device=META, fp8_recipe=recipe, rows=16 * 17, health_every=1 if sampled else 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True, capturable=False)
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
