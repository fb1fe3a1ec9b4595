"""Softmax attention written out, forward and backward, in every precision: for processors, whose fused kernel's backward is slow.

One function for two ways of holding a format: on its grid in FP32 containers (`vitfp8.precision.grid.Grid`), or in the dtype
itself (`Native`). Both have the same verbs, and so native BF16 and emulated BF16 differ by the order of sums only. Backward is
written out too, because autograd would copy each of query, key and value several times on the way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitfp8.precision.grid import Grid


class Native:
    """The verbs of a `Grid` where the dtype itself holds the values: a cast is the rounding, and results are in the format.

    Args:
        dtype: the dtype of operands and results.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def operand(self, x: Tensor) -> Tensor:
        """`x` in the format; `x` itself when it is."""
        return x.to(self.dtype)

    fresh_operand = operand

    def result(self, fresh: Tensor) -> Tensor:
        """A product's result, which is in the format."""
        return fresh

    def mark(self, x: Tensor) -> Tensor:
        """Nothing to remember: the dtype says it."""
        return x


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float, grid: Grid | Native) -> Tensor:
    """Softmax attention with both products in the format and softmax in FP32.

    Query, key, value and the result are ``[B, H, N, D]``. Query is multiplied by `scale` first, and rounded.
    """
    return _Attention.apply(query, key, value, scale, grid)


def packed_attention(qkv: Tensor, heads: int, scale: float, grid: Grid | Native) -> Tensor:
    """`attention` of the output of the layer that makes query, key and value: ``[B, N, 3·H·D] → [B, N, H·D]``.

    Splitting and joining the heads belongs to the function, so that what is on the grid when it comes and when it leaves is known
    to be, forward and backward; and gradients of the three are written where the layer before wants them.
    """
    return grid.mark(_PackedAttention.apply(qkv, heads, scale, grid))


def _attend(ctx: Any, query: Tensor, key: Tensor, value: Tensor, grid: Grid | Native) -> Tensor:
    """Both products forward, of contiguous operands on the grid; saves what `_attend_backward` needs."""
    scores = grid.result(query @ key.transpose(-2, -1))
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32)
    ctx.save_for_backward(query, key, value, probabilities)
    return grid.result(grid.operand(probabilities) @ value)


def _attend_backward(ctx: Any, gradient: Tensor, scale: float, grid: Grid | Native) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query (before it was scaled), key and value."""
    query, key, value, probabilities = ctx.saved_tensors
    value_gradient = grid.result(grid.operand(probabilities).transpose(-2, -1) @ gradient)
    toward = grid.result(gradient @ value.transpose(-2, -1))
    scores = torch.ops.aten._softmax_backward_data(toward.float(), probabilities, -1, torch.float32)
    scores = grid.fresh_operand(scores)
    query_gradient = grid.result(grid.result(scores @ key).mul_(scale))
    key_gradient = grid.result(scores.transpose(-2, -1) @ query)
    return query_gradient, key_gradient, value_gradient


class _Attention(torch.autograd.Function):
    """``softmax(round(scale·q) kᵀ) v``: operands and results of both products on the grid, softmax in FP32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, grid: Grid | Native) -> Tensor:
        ctx.grid, ctx.scale = grid, scale
        query = grid.fresh_operand(grid.operand(query) * scale)
        return _attend(ctx, query, grid.operand(key), grid.operand(value), grid)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_attend_backward(ctx, ctx.grid.operand(gradients[0]), ctx.scale, ctx.grid), None, None


class _PackedAttention(torch.autograd.Function):
    """`_Attention` with the heads split before it and joined after it."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, scale: float, grid: Grid | Native) -> Tensor:
        batch, tokens, width = qkv.shape
        ctx.grid, ctx.scale, ctx.shape = grid, scale, (batch, tokens, 3, heads, width // (3 * heads))
        query, key, value = grid.operand(qkv).view(ctx.shape).permute(2, 0, 3, 1, 4).unbind(0)
        query = grid.fresh_operand(torch.mul(query, scale, out=query.new_empty(query.shape)))
        attended = _attend(ctx, query, key.contiguous(), value.contiguous(), grid)
        return attended.transpose(1, 2).reshape(batch, tokens, width // 3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grid: Grid | Native = ctx.grid
        batch, tokens, _, heads, size = ctx.shape
        gradient = grid.operand(gradients[0]).reshape(batch, tokens, heads, size).transpose(1, 2).contiguous()
        packed = gradient.new_empty(ctx.shape)
        for place, part in zip(
            packed.permute(2, 0, 3, 1, 4).unbind(0), _attend_backward(ctx, gradient, ctx.scale, grid), strict=True
        ):
            place.copy_(part)
        return grid.mark(packed.view(batch, tokens, -1)), None, None, None
