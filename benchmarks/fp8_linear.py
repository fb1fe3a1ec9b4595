"""Times the linear layers of ViT-Ti in emulated FP8 against FP32, BF16 and torchao's emulate mode.

Protocol: the four linear layers of one block of ViT-Ti (width 192, MLP ratio 4) at batch 128 and 65 tokens,
forward and backward, BF16 activations (FP32 for the FP32 rows), FP32 parameters. Each variant is warmed up
untimed (compilation falls in here), then all variants take turns, one timed pass each, for as many repeats as
asked; medians and their ratio to FP32 are printed with versions and machine. Ratios above 1 are faster than
FP32. The MLP's and attention's other operations are left out on purpose: this file is about the products and
their quantisers.

    python benchmarks/fp8_linear.py [--repeats 15] [--threads 2] [--batch 128] [--tokens 65] [--no-compile]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitfp8.precision import rounding
from vitfp8.precision.fp8_linear import FP8Linear

SHAPES = ((192, 576), (192, 192), (192, 768), (768, 192))
"""(in, out) of qkv, proj, fc1 and fc2."""


class Bf16Linear(nn.Linear):
    """A linear layer as CUDA's BF16 autocast runs it: FP32 parameters, BF16 operands and result."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) to (…, out) in BF16."""
        bias = None if self.bias is None else self.bias.bfloat16()
        return nn.functional.linear(input, self.weight.bfloat16(), bias)


def passes(layers: list[nn.Module], inputs: list[Tensor], gradients: list[Tensor]) -> Callable[[], None]:
    """One forward and backward pass through each layer, as a function to time."""

    def step() -> None:
        for layer, x, gradient in zip(layers, inputs, gradients, strict=True):
            x.grad = None
            for parameter in layer.parameters():
                parameter.grad = None
            layer(x).backward(gradient)

    return step


def variants(rows: int, compiled: bool) -> dict[str, Callable[[], None]]:
    """Everything that is timed, by name."""
    linears = [nn.Linear(k, n) for k, n in SHAPES]
    inputs = {t: [torch.randn(rows, k, dtype=t).requires_grad_() for k, _ in SHAPES] for t in (torch.float32, torch.bfloat16)}
    gradients = {t: [torch.randn(rows, n, dtype=t) for _, n in SHAPES] for t in (torch.float32, torch.bfloat16)}

    def timed(layers: list[nn.Module], dtype: torch.dtype = torch.bfloat16) -> Callable[[], None]:
        return passes(layers, inputs[dtype], gradients[dtype])

    def bf16(linear: nn.Linear) -> nn.Module:
        layer = Bf16Linear(linear.in_features, linear.out_features)
        layer.load_state_dict(linear.state_dict())
        return layer

    table = {
        "FP32 nn.Linear": timed(list(linears), torch.float32),
        "BF16 nn.Linear": timed([bf16(linear) for linear in linears]),
    }
    for recipe in ("tensorwise", "delayed", "rowwise", "rowwise_with_gw_hp", "blockwise", "mxfp8_floor", "mxfp8_rceil"):
        table[f"FP8 {recipe}"] = timed([FP8Linear.from_linear(linear, recipe=recipe) for linear in linears])
    table["FP8 tensorwise, FP32 base"] = timed(
        [FP8Linear.from_linear(linear, recipe="tensorwise", base_format="fp32") for linear in linears], torch.float32
    )
    table["FP8 tensorwise, FP32 products"] = timed(
        [FP8Linear.from_linear(linear, recipe="tensorwise", product_dtype="fp32") for linear in linears]
    )
    try:
        from torchao.float8.config import Float8LinearConfig
        from torchao.float8.float8_linear import Float8Linear
    except ImportError:
        print("torchao is not installed: its rows are left out")
        return table
    for recipe in ("tensorwise", "rowwise"):
        config = dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), emulate=True)
        layers: list[nn.Module] = [Float8Linear.from_float(linear, config=config) for linear in linears]
        table[f"torchao {recipe}"] = timed(layers)
        if compiled:
            table[f"torchao {recipe}, compiled"] = timed([torch.compile(layer) for layer in layers])  # type: ignore[misc]
    return table


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=65)
    parser.add_argument("--no-compile", action="store_true", help="leave out torchao under torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    routine = rounding.load()
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {options.threads} threads")
    quantizer = routine.description if routine else "eager PyTorch"
    print(f"capability {torch.backends.cpu.get_cpu_capability()}; quantiser: {quantizer}")
    rows = options.batch * options.tokens
    print(f"{rows} rows; forward and backward of {', '.join(f'{k}→{n}' for k, n in SHAPES)}; {options.repeats} repeats")

    table = variants(rows, not options.no_compile)
    for step in table.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(options.repeats):
        for name, step in table.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    reference = median["FP32 nn.Linear"]
    print(f"\n{'variant':32} {'median ms':>10} {'least ms':>10} {'× FP32':>8}")
    for name, value in median.items():
        print(f"{name:32} {value * 1e3:10.2f} {min(seconds[name]) * 1e3:10.2f} {reference / value:8.2f}")


if __name__ == "__main__":
    main()
