"""The layers of a Vision Transformer with their products in a low format, by CUDA autocast's rules on every device.

Autocast's rules (PyTorch's "CUDA ops that can autocast to float16"): linear layers, convolutions and attention products take low
operands and give low results; layer norm, softmax and the loss are FP32; GELU and adds follow their inputs. CPU autocast has
other rules, so the rules are written out here once, as the verbs of `Arithmetic`, and the layers below use them:

``linear``, ``convolution``
    take operands of any dtype, cast them (native) or round them onto the grid (emulated), and give a result in the format.
``gelu``
    follows its input.
``attention``
    both products in the format, softmax in FP32.

Emulated, every tensor stays in an FP32 container (`vitfp8.precision.grid`) and is rounded wherever a native tensor of the
format would hold it, so that emulated FP16 differs from native half only by the order of sums.
"""

from __future__ import annotations

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from vitfp8.precision import attention
from vitfp8.precision import grid as emulated


class Arithmetic:
    """How products are computed: in a dtype of the machine, or on a format's grid in FP32 containers.

    Args:
        format: the operands' format, e.g. ``fp16``; a key of `vitfp8.precision.FORMATS`, or ``fp32``.
        dtype: the dtype of operands on the device; ``torch.float32`` when emulated.
        on_grid: whether products are emulated: operands are rounded onto the grid.
        low_results: whether products give results in the format too (FP16, BF16) or in FP32 (TF32).
    """

    def __init__(self, *, format: str, dtype: torch.dtype, on_grid: bool, low_results: bool) -> None:
        self.format = format
        self.dtype = dtype
        self.low_results = low_results
        self.grid = emulated.Grid(format, low_results) if on_grid else None
        self.held = self.grid or attention.Native(dtype)

    @property
    def is_fp32(self) -> bool:
        """Whether nothing is rounded or cast."""
        return self.grid is None and self.dtype == torch.float32

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x weightᵀ + bias``. ``[..., in] → [..., out]``, in the result format."""
        if self.grid:
            return emulated.linear(x, weight, bias, self.grid)
        return F.linear(x.to(self.dtype), weight.to(self.dtype), None if bias is None else bias.to(self.dtype))

    def convolution(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        """The layer's convolution of `x`. ``[B, C, H, W] → [B, D, H', W']``, in the result format."""
        if self.grid:
            return emulated.convolution(x, layer, self.grid)
        bias = None if layer.bias is None else layer.bias.to(self.dtype)
        return layer._conv_forward(x.to(self.dtype), layer.weight.to(self.dtype), bias)

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """GELU of `x` in its own format; same shape."""
        return emulated.gelu(x, approximate, self.grid) if self.grid else F.gelu(x, approximate=approximate)

    def writes_attention_out(self, device: torch.device, dropout: float) -> bool:
        """Whether attention is `vitfp8.precision.attention`: emulated formats everywhere, and every precision on a processor."""
        return not dropout and (self.grid is not None or device.type == "cpu")

    def attention(self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float) -> Tensor:
        """Softmax attention. ``[B, H, N, D]`` each, result the same."""
        if self.writes_attention_out(query.device, dropout):
            return attention.attention(query, key, value, scale, self.held)
        if self.grid:
            raise NotImplementedError("attention dropout is not emulated")
        query, key, value = query.to(self.dtype), key.to(self.dtype), value.to(self.dtype)
        if query.device.type != "cpu":
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        scores = (query * scale) @ key.transpose(-2, -1)
        return F.dropout(scores.float().softmax(dim=-1), dropout).to(self.dtype) @ value


class LowPrecisionLinear(nn.Linear):
    """A linear layer whose three products have their operands in the arithmetic's format. ``[..., in] → [..., out]``."""

    arithmetic: Arithmetic

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in the arithmetic's result format."""
        return self.arithmetic.linear(x, self.weight, self.bias)


class LowPrecisionConv2d(nn.Conv2d):
    """A convolution (the patch embedding) with operands in the arithmetic's format. ``[B, C, H, W] → [B, D, H/p, W/p]``."""

    arithmetic: Arithmetic

    def forward(self, x: Tensor) -> Tensor:
        """The convolution's output, in the arithmetic's result format."""
        return self.arithmetic.convolution(x, self)


class LowPrecisionGELU(nn.GELU):
    """GELU, computed in FP32 and rounded to its input's format, as half and BF16 kernels do."""

    arithmetic: Arithmetic

    def forward(self, x: Tensor) -> Tensor:
        """GELU of `x`; same shape and format."""
        return self.arithmetic.gelu(x, self.approximate)


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
        batch, tokens, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        dropout = self.attn_drop.p if self.training else 0.0
        packed = self.qkv(x)
        written_out = self.arithmetic.writes_attention_out(x.device, dropout)
        if written_out and isinstance(self.q_norm, nn.Identity) and isinstance(self.k_norm, nn.Identity):
            y = attention.packed_attention(packed, self.num_heads, self.scale, self.arithmetic.held)
        else:
            qkv = packed.reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            query, key, value = qkv.unbind(0)
            y = self.arithmetic.attention(self.q_norm(query), self.k_norm(key), value, self.scale, dropout)
            y = y.transpose(1, 2).reshape(batch, tokens, self.attn_dim)
        y = self.norm(y)
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


def attention_kernel(model: nn.Module, arithmetic: Arithmetic, device: torch.device) -> str | None:
    """What computes attention, for the record: ``written out`` (see `vitfp8.precision.attention`), or the kernel torch chooses.

    Asked with the switches as they are now: determinism excludes some kernels.

    Returns:
        In lower case, e.g. ``flash_attention``; None where the model has no such attention or torch does not say.
    """
    layer = next((module for module in model.modules() if isinstance(module, PreciseAttention)), None)
    if layer is None:
        return None
    if arithmetic.writes_attention_out(device, layer.attn_drop.p):
        return "written out"
    if device.type != "cuda":
        return None
    shape = (1, layer.num_heads, 16, layer.head_dim)
    query, key, value = (torch.zeros(shape, dtype=arithmetic.dtype, device=device, requires_grad=True) for _ in range(3))
    return SDPBackend(torch._fused_sdp_choice(query, key, value)).name.lower()
