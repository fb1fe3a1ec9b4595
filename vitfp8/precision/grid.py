"""The layers' arithmetic on a format's grid, in FP32 containers: one autograd function for each kind of layer.

Each function rounds exactly where a native tensor of the format would hold a value: operands of a product, its result, and the
same for gradients. Between two roundings everything is FP32, as it is inside a half-precision kernel (FP32 accumulation, GELU and
softmax in FP32). Written as whole functions, not as roundings around PyTorch's operators, because a rounding is a pass over
memory: here results are rounded in place, and a tensor that is known to be on the grid is not rounded again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfp8.precision import rounding
from vitfp8.precision.formats import round_to_format
from vitfp8.precision.rounding import CpuQuantizer

#: Formats that the machine can at least convert to: two conversions round faster than arithmetic does.
_CONVERTIBLE = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Grid:
    """Rounds FP32 tensors onto a format's grid; overflow goes to infinity, as a cast does.

    Args:
        format: a key of `vitfp8.precision.FORMATS`.
        low_results: whether results of products are in the format too, or stay FP32 (TF32).
    """

    def __init__(self, format: str, low_results: bool) -> None:
        self.format = format
        self.low_results = low_results
        self._dtype = _CONVERTIBLE.get(format)

    def holds(self, x: Tensor) -> bool:
        """Whether the values of `x` are known to be on the grid: `mark` was called, and it was not written to since."""
        return getattr(x, "_on_grid_of", None) == (self.format, _version(x))

    def operand(self, x: Tensor) -> Tensor:
        """`x` on the grid; `x` itself when it is known to be there."""
        if self.holds(x):
            return x
        if self._dtype is None:
            return round_to_format(x, self.format, saturate=False)
        if (routine := _routine(x)) is None:
            return x.to(self._dtype).float()
        return routine.round(x, self._dtype) if x.is_contiguous() else routine.round(x.contiguous(), self._dtype, in_place=True)

    def fresh_operand(self, fresh: Tensor) -> Tensor:
        """Round a tensor to the grid in place; the caller holds it alone."""
        if self._dtype is None:
            return round_to_format(fresh, self.format, saturate=False)
        if fresh.is_contiguous() and (routine := _routine(fresh)) is not None:
            return routine.round(fresh, self._dtype, in_place=True)
        return fresh.copy_(fresh.to(self._dtype))

    def result(self, fresh: Tensor) -> Tensor:
        """A fresh result of a product, rounded in place and marked where results are in the format."""
        return self.mark(self.fresh_operand(fresh)) if self.low_results else fresh

    def mark(self, x: Tensor) -> Tensor:
        """Remember on the tensor object that its values are on the grid; a view or a new tensor does not know it.

        The version that autograd counts is remembered with it: where gradients meet, autograd may add one into another in place.
        """
        if self.low_results:
            x._on_grid_of = (self.format, _version(x))  # type: ignore[attr-defined]
        return x


def _version(x: Tensor) -> int:
    """How often a tensor has been written into; tensors of inference mode do not count, nor does a compiler that traces."""
    return -1 if torch.compiler.is_compiling() or x.is_inference() else x._version


def _routine(x: Tensor) -> CpuQuantizer | None:
    """The compiled rounding, where it takes the tensor; it gives the same bits as two conversions."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return rounding.load()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid) -> Tensor:
    """A linear layer on the grid. ``[..., in] → [..., out]``; see `_Linear`."""
    return grid.mark(_Linear.apply(x, weight, bias, grid))


class _Linear(torch.autograd.Function):
    """Three products with operands on the grid and FP32 accumulation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid) -> Tensor:
        x, weight = grid.operand(x), grid.operand(weight)
        ctx.grid, ctx.has_bias = grid, bias is not None
        ctx.save_for_backward(x, weight)
        return grid.result(F.linear(x, weight, None if bias is None else grid.operand(bias)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grid: Grid = ctx.grid
        x, weight = ctx.saved_tensors
        gradient = grid.operand(gradients[0])
        rows = gradient.reshape(-1, gradient.shape[-1])
        input_gradient = grid.result(gradient @ weight) if ctx.needs_input_grad[0] else None
        weight_gradient = grid.result(rows.t() @ x.reshape(-1, x.shape[-1]))
        bias_gradient = grid.result(rows.sum(dim=0)) if ctx.has_bias else None
        return input_gradient, weight_gradient, bias_gradient, None


def gelu(x: Tensor, approximate: str, grid: Grid) -> Tensor:
    """GELU in FP32, rounded to its input's format. Same shape."""
    return grid.mark(_Gelu.apply(x, approximate, grid))


class _Gelu(torch.autograd.Function):
    """GELU follows its input: the result and the gradient are in the input's format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, approximate: str, grid: Grid) -> Tensor:
        ctx.save_for_backward(x)
        ctx.grid, ctx.approximate = grid, approximate
        return grid.result(F.gelu(x, approximate=approximate))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        fresh = torch.ops.aten.gelu_backward(gradients[0], x, approximate=ctx.approximate)
        return ctx.grid.result(fresh), None, None


def convolution(x: Tensor, layer: torch.nn.Conv2d, grid: Grid) -> Tensor:
    """A convolution (the patch embedding) on the grid. ``[B, C, H, W] → [B, D, H', W']``; see `_Round`."""
    operands = [_Round.apply(tensor, grid) for tensor in (x, layer.weight)]
    bias = None if layer.bias is None else _Round.apply(layer.bias, grid)
    y = F.conv2d(operands[0], operands[1], bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return _Result.apply(y, grid)


class _Round(torch.autograd.Function):
    """An operand: rounded forward; its gradient is a product's result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid) -> Tensor:
        ctx.grid = grid
        return grid.operand(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.grid.operand(gradients[0]) if ctx.grid.low_results else gradients[0], None


class _Result(torch.autograd.Function):
    """A result: rounded forward where results are in the format; its gradient is an operand of the backward products."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grid: Grid) -> Tensor:
        ctx.grid = grid
        return grid.operand(y) if grid.low_results else y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.grid.operand(gradients[0]), None
