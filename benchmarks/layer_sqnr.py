"""What each FP8 recipe loses of a linear layer's three products, in decibels; nothing is timed.

Protocol: a linear layer 192 → 576 with PyTorch's initialisation under seed 0, 520 tokens and output gradients from N(0, 1), base
FP32, one thread. The signal to quantisation noise ratio is 10 log₁₀(Σ exact² ÷ Σ (exact − FP8)²), exact being the same layer in
FP32. The table of docs/precision.md is what this prints.

    python benchmarks/layer_sqnr.py
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitfp8.precision.formats import sqnr
from vitfp8.precision.fp8_linear import FP8Linear

#: In the order of the table of recipes.
RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp", "blockwise", "mxfp8_floor", "mxfp8_rceil")


def products(layer: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, input gradient and weight gradient of one pass."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    output = layer(x)
    output.backward(gradient)
    weight = layer.weight
    assert isinstance(weight, Tensor) and x.grad is not None and weight.grad is not None
    return output.detach(), x.grad, weight.grad.clone()


def main() -> None:
    """Print the table in Markdown."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    linear, x, gradient = nn.Linear(192, 576), torch.randn(520, 192), torch.randn(520, 576)
    exact = products(linear, x, gradient)
    print("| recipe | output | input gradient | weight gradient |\n|---|---|---|---|")
    for recipe in RECIPES:
        rounded = products(FP8Linear.from_linear(linear, recipe=recipe, base_format="fp32"), x, gradient)
        ratios = [sqnr(one, other).item() for one, other in zip(exact, rounded, strict=True)]
        print(f"| `{recipe}` | " + " | ".join("exact" if math.isinf(ratio) else f"{ratio:.2f}" for ratio in ratios) + " |")


if __name__ == "__main__":
    main()
