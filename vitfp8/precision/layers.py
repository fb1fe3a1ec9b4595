"""The layers of a Vision Transformer with their products in a low format, by CUDA autocast's rules on every device.

Autocast's rules (PyTorch's "CUDA ops that can autocast to float16"): linear layers, convolutions and attention products take low
operands and give low results; layer norm, softmax and the loss are FP32; GELU and adds follow their inputs. CPU autocast has
other rules, so the rules are written out here once, as three verbs of `Arithmetic`, and the layers below use them:

``operand``
    a tensor becomes an operand of a product: cast to the format (native), or rounded onto its grid (emulated).
``product``
    a product's result: already in the format (native), or rounded onto its grid (emulated). Its gradient is the left operand of
    both backward products, so it is rounded too.
``elementwise``
    the result of a function that follows its input, such as GELU.

Emulated, every tensor stays in an FP32 container and autograd rounds gradients where a native tensor of the format would hold
them, so that emulated FP16 differs from native half only by the order of sums. Native, the same layers run with real casts.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from vitfp8.precision.formats import round_to_format


class _RoundOperand(torch.autograd.Function):
    """Round forward; round the gradient too where results of products are in the format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, round_gradient: bool) -> Tensor:
        ctx.name = name if round_gradient else None
        return round_to_format(x, name, saturate=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (round_to_format(gradient, ctx.name, saturate=False) if ctx.name else gradient), None, None


class _RoundGradient(torch.autograd.Function):
    """Leave the value; round the gradient, which is an operand of the backward products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return round_to_format(gradients[0], ctx.name, saturate=False), None


class Arithmetic:
    """How products are computed: in a dtype of the machine, or on a format's grid in FP32 containers.

    Args:
        format: the operands' format, e.g. ``fp16``; a key of `vitfp8.precision.FORMATS`, or ``fp32``.
        dtype: the dtype of operands on the device; ``torch.float32`` when emulated.
        emulated: whether operands are rounded onto the grid.
        low_results: whether products give results in the format too (FP16, BF16) or in FP32 (TF32).
    """

    def __init__(self, *, format: str, dtype: torch.dtype, emulated: bool, low_results: bool) -> None:
        self.format = format
        self.dtype = dtype
        self.emulated = emulated
        self.low_results = low_results

    @property
    def is_fp32(self) -> bool:
        """Whether nothing is to be rounded or cast."""
        return not self.emulated and self.dtype == torch.float32

    def operand(self, x: Tensor) -> Tensor:
        """`x` as an operand of a product; any shape, same shape."""
        if self.emulated:
            return _RoundOperand.apply(x, self.format, self.low_results)
        return x.to(self.dtype)

    def product(self, y: Tensor) -> Tensor:
        """`y`, the result of a product of operands; any shape, same shape."""
        if not self.emulated:
            return y
        return _RoundOperand.apply(y, self.format, True) if self.low_results else _RoundGradient.apply(y, self.format)

    def elementwise(self, y: Tensor) -> Tensor:
        """`y`, the result of a function that follows its input's dtype."""
        return _RoundOperand.apply(y, self.format, True) if self.emulated and self.low_results else y


class LowPrecisionLinear(nn.Linear):
    """A linear layer whose three products have their operands in the arithmetic's format. ``[..., in] → [..., out]``."""

    arithmetic: Arithmetic

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in the arithmetic's result format."""
        a = self.arithmetic
        bias = a.operand(self.bias) if self.bias is not None else None
        return a.product(F.linear(a.operand(x), a.operand(self.weight), bias))


class LowPrecisionConv2d(nn.Conv2d):
    """A convolution (the patch embedding) with operands in the arithmetic's format. ``[B, C, H, W] → [B, D, H/p, W/p]``."""

    arithmetic: Arithmetic

    def forward(self, x: Tensor) -> Tensor:
        """The convolution's output, in the arithmetic's result format."""
        a = self.arithmetic
        bias = a.operand(self.bias) if self.bias is not None else None
        return a.product(self._conv_forward(a.operand(x), a.operand(self.weight), bias))


class LowPrecisionGELU(nn.GELU):
    """GELU, computed in FP32 and rounded to its input's format, as half and BF16 kernels do."""

    arithmetic: Arithmetic

    def forward(self, x: Tensor) -> Tensor:
        """GELU of `x`; same shape and format."""
        return self.arithmetic.elementwise(F.gelu(x, approximate=self.approximate))


class PreciseAttention(Attention):
    """timm's self-attention with its two products in the arithmetic's format and softmax in FP32. ``[B, N, D] → [B, N, D]``.

    On a CPU the products are written out in every precision: there the fused kernel's backward is the slower one. On other
    devices the fused kernel runs, which keeps the scores in FP32 inside.
    """

    arithmetic: Arithmetic

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend; masks are not used by Vision Transformers and refused."""
        if attn_mask is not None or is_causal:
            raise NotImplementedError("attention masks are not supported here")
        a = self.arithmetic
        batch, tokens, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query, key = a.operand(self.q_norm(query)), a.operand(self.k_norm(key))
        value = a.operand(value)
        dropout = self.attn_drop.p if self.training else 0.0
        if x.device.type == "cpu" or a.emulated:
            query = a.elementwise(query * self.scale)
            scores = a.product(query @ key.transpose(-2, -1))
            attention = F.dropout(scores.float().softmax(dim=-1), dropout)
            y = a.product(a.operand(attention) @ value)
        else:
            y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        y = self.norm(y.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
        if gate is not None:
            y = y * gate
        return self.proj_drop(self.proj(y))


#: Type of a layer → the type that takes its place. Only these have products or follow their inputs.
REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LowPrecisionLinear,
    nn.Conv2d: LowPrecisionConv2d,
    nn.GELU: LowPrecisionGELU,
    Attention: PreciseAttention,
}


def replace_layers(model: nn.Module, arithmetic: Arithmetic, *, only: set[type[nn.Module]] | None = None) -> list[str]:
    """Give every layer of a known type its low-precision counterpart, in place.

    The object, its parameters and their names stay: only its class changes, so optimizers and checkpoints notice nothing.

    Args:
        model: the model; changed in place.
        arithmetic: shared by all replaced layers.
        only: types to replace; None for all of `REPLACEMENTS`.

    Returns:
        The names of the replaced layers.
    """
    replaced = []
    for name, module in model.named_modules():
        target = REPLACEMENTS.get(type(module))
        if target is None or (only is not None and type(module) not in only):
            continue
        module.__class__ = target
        module.arithmetic = arithmetic
        replaced.append(name)
    return replaced
