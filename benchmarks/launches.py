"""Counts the operations that a training step launches on a GPU, for each precision; needs no GPU.

Protocol: forward pass, loss and backward pass of one batch on the meta device, where tensors have no values and every path is
taken that a GPU takes; products count as native. Each operation that PyTorch dispatches is one launch, views are none. Attention
is one operation forward and one backward, as a fused kernel is. Optimizer and gradient clipping, about a dozen launches in
every precision, are left out, and so is what a compiler fuses. The second step is counted.

    python benchmarks/launches.py [--image-size 32] [--patch-size 4] [--batch 128]
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitfp8.model import create_model
from vitfp8.params import Layer, RunParams, read_layer, validate
from vitfp8.precision import preparation as policy

META = torch.device("meta")

#: What is counted: precision and recipe.
ROWS = (
    ("fp32", ""), ("bf16", ""), ("fp16", ""), ("fp8", "tensorwise"), ("fp8", "delayed"), ("fp8", "rowwise"),
    ("fp8", "rowwise_with_gw_hp"), ("fp8", "mxfp8"),
)  # fmt: skip

#: Operations that only look at memory, although PyTorch does not call them views.
_VIEWS = ("_unsafe_view", "detach", "alias")


class Launches(TorchDispatchMode):
    """Counts operations that are no views, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _VIEWS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


class FusedAttention(TorchFunctionMode):
    """Gives attention the fused kernel that a GPU has; the meta device would write it out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, attention by the memory-efficient kernel."""
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args[:3], None, True)[0]
        return func(*args, **(kwargs or {}))


def launches(precision: str, recipe: str = "", **changes: int) -> Counter[str]:
    """Operation → how often a step of ViT-Ti launches it.

    Args:
        precision: a key of `vitfp8.precision.preparation.PRECISIONS`.
        recipe: of FP8.
        changes: run parameters that differ: ``image_size``, ``patch_size``, ``batch_size``, ``depth`` and so on.
    """
    sizes = {"image_size": 32, "patch_size": 4, "batch_size": 128, **changes}
    params = validate(
        [read_layer(Path(__file__).parents[1] / "params" / "BaseFP8.yaml"), Layer("benchmark", {"variant": "launches", **sizes})]
    )
    assert isinstance(params, RunParams)
    with META:
        model = create_model(params, 10).train()
    native = (True, "counted as native")
    with (
        patch.object(policy, "native_support", lambda *_, **__: native),
        patch.object(policy, "has_native_products", lambda *_: native),
    ):
        prepared = policy.prepare(model, precision, device=META, backend="native", fp8_recipe=recipe or "tensorwise")
    images = torch.empty(sizes["batch_size"], 3, sizes["image_size"], sizes["image_size"], device=META)
    labels = torch.empty(sizes["batch_size"], dtype=torch.int64, device=META)
    for _ in range(2):
        with Launches() as counted, FusedAttention():
            prepared.backward(F.cross_entropy(model(images).float(), labels))
        model.zero_grad()
    return counted.seen


def main() -> None:
    """Count and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--operations", action="store_true", help="name the ten most frequent operations, too")
    options = parser.parse_args()
    print(f"torch {torch.__version__}; ViT-Ti, patch {options.patch_size} at {options.image_size} pixels, batch {options.batch}")
    print(f"{'precision':24} {'launches':>8} {'÷ FP32':>7}")
    reference = 0
    for precision, recipe in ROWS:
        changes = {"image_size": options.image_size, "patch_size": options.patch_size, "batch_size": options.batch}
        seen = launches(precision, recipe, **changes)
        reference = reference or seen.total()
        print(f"{f'{precision} {recipe}':24} {seen.total():8} {seen.total() / reference:7.2f}", flush=True)
        if options.operations:
            print("    " + ", ".join(f"{name} {count}" for name, count in seen.most_common(10)))


if __name__ == "__main__":
    main()
