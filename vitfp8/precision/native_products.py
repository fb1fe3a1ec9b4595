"""FP8 products on the hardware: operands stored in FP8 dtypes, multiplied by ``torch._scaled_mm``.

Layout
    ``_scaled_mm`` takes a row-major left and a column-major right operand: both have the dimension that the product sums over in
    consecutive memory. So every operand is stored as a matrix [outer, contracted], and an operand of two products is stored
    twice: under one scale the FP8 values are copied, else the tensor is quantised again from high precision, as recipes demand.
    All dimensions must be divisible by `divisor`: 16, or 32 in the MX recipes. Zeros fill what is missing; they alter no sum.

Scales
    The product is multiplied with the inverse scales: FP32, [1, 1] for one scale, else [outer, 1] and [1, outer]. MX inverse
    scales are E8M0 bytes in the order in which the tensor cores read them (`swizzled`).

Launches
    A GPU runs each operation below as a kernel, and in a small model a kernel is shorter than the time to launch it. So an amax
    is one reduction, a scale and its inverse are computed once for both products, a cast and a transposition are one copy where
    they can be, and the three histories of delayed scaling move on together (`benchmarks/launches.py` counts the launches).
    ``torch.compile`` fuses the rest: everything here is traced, the backward pass and delayed scaling's state included, and no
    value is read back.

Why delayed scaling's state moves at the end of the backward pass
    torch's compiler may compute a second time, in the backward pass, what the forward pass made from a buffer. If the forward
    pass had changed the buffer meanwhile, the gradients would be wrong without an error (seen with torch 2.14).

Why not ``torch.nn.functional.scaled_mm``
    It is public, but on the meta device it checks neither layout nor divisibility (torch 2.14), the compiler of torch 2.13 does
    not lower its swizzled scales, and torch counts no FLOPs for it. ``_scaled_mm`` has all three, and torchao calls it as well.
    One place calls it: `product`.

Not here
    ``blockwise`` (1×128 and 128×128). torch has no reference for it on a processor, checks no strides of its scales without a
    GPU, and its two functions ask for different layouts of the scales of 128×128 tiles. So it is emulated. Fast accumulation
    is off in all three products.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vitfp8.precision.quantizer import Quantized, scale_from_amax, update_histories
from vitfp8.precision.recipes import Cast, Recipe

if TYPE_CHECKING:
    from vitfp8.precision.fp8_linear import FP8Linear

#: The operands of a layer's products, in the order of `FP8Linear.largest`.
OPERANDS = ("activation", "weight", "gradient")


class Operand(NamedTuple):
    """An operand in FP8, ready for one product.

    Attributes:
        values: in the format's dtype, shape [outer, contracted], contiguous.
        inverse: 1 ÷ scale: float32 [1, 1] or [outer, 1], or E8M0 as `swizzled` gives it.
        scale: float32 [blocks down, blocks across] of the tensor as it was given.
    """

    values: Tensor
    inverse: Tensor
    scale: Tensor


def divisor(recipe: Recipe) -> int:
    """What in_features, out_features and rows must be divisible by."""
    return 32 if recipe.fprop[0].granularity == "1x32" else 16


def padded(tensor: Tensor, multiple: int) -> Tensor:
    """A matrix with rows and columns of zeros up to the next multiple; itself where nothing is missing. At least one block."""
    down, across = (max(-(-size // multiple), 1) * multiple - size for size in tensor.shape)
    return F.pad(tensor, (0, across, 0, down)) if down or across else tensor


def amax_of_blocks(tensor: Tensor, block: tuple[int, int]) -> Tensor:
    """The largest magnitude of each block, in one reduction; NaN where a block holds one.

    Args:
        tensor: contiguous matrix.
        block: rows and columns of a block, which divide the matrix.

    Returns:
        float32, shape [blocks down, 1, blocks across, 1].
    """
    blocks = tensor.view(tensor.shape[0] // block[0], block[0], tensor.shape[1] // block[1], block[1])
    return torch.linalg.vector_norm(blocks, ord=math.inf, dim=(1, 3), keepdim=True, dtype=torch.float32)


def store(tensor: Tensor, cast: Cast, contracted: int, largest: Tensor, scale: Tensor | None = None) -> Operand:
    """Quantise an operand of a product by the rules of `vitfp8.precision.quantizer`.

    Args:
        tensor: contiguous matrix, float32 or bfloat16.
        contracted: the dimension that the product sums over, 0 or 1.
        largest: the format's largest number as a zero-dimensional float32 tensor on the device.
        scale: the scale of delayed scaling, zero-dimensional; None: it follows from the tensor.
    """
    block = cast.block((tensor.shape[0], tensor.shape[1]), contracted)
    if scale is None:
        factor = scale_from_amax(amax_of_blocks(tensor, block), cast.number_format, cast.rule, largest)
    else:
        factor = scale.view(1, 1, 1, 1)
    blocks = tensor.view(factor.shape[0], block[0], factor.shape[2], block[1])
    top = cast.number_format.largest
    scaled = (blocks * factor).clamp_(-top, top).view(tensor.shape)
    dtype = cast.number_format.dtype
    assert dtype is not None
    values = (scaled if contracted == 1 else scaled.t()).to(dtype, memory_format=torch.contiguous_format)
    scales = factor.view(factor.shape[0], factor.shape[2])
    inverse = scales.reciprocal()
    if cast.granularity == "1x32":
        inverse = swizzled((inverse if contracted == 1 else inverse.t()).to(torch.float8_e8m0fnu))
    else:
        inverse = inverse.view(-1, 1)
    return Operand(values, inverse, scales)


def swizzled(scales: Tensor) -> Tensor:
    """MX scales in the order in which tensor cores read them (NVIDIA's layout of 1D block scales: tiles of 128 rows by 4).

    Args:
        scales: E8M0, shape [outer, blocks along the contracted dimension].

    Returns:
        E8M0, flat; tiles that are not full end in zeros.
    """
    down, across = -(-scales.shape[0] // 128), -(-scales.shape[1] // 4)
    padding = (0, across * 4 - scales.shape[1], 0, down * 128 - scales.shape[0])
    codes = F.pad(scales.view(torch.uint8), padding) if any(padding) else scales.view(torch.uint8)
    tiles = codes.view(down, 4, 32, across, 4).permute(0, 3, 2, 1, 4)
    return tiles.contiguous().view(torch.float8_e8m0fnu).flatten()


def product(a: Tensor, inverse_a: Tensor, b: Tensor, inverse_b: Tensor, dtype: torch.dtype) -> Tensor:
    """``a bᵀ``, descaled.

    Args:
        a: values of an `Operand`, [M, K].
        b: values of an `Operand`, [N, K].
        dtype: of the result: bfloat16, or float32 where both have one scale.

    Returns:
        Shape [M, N].
    """
    if inverse_a.shape[0] != a.shape[0] and inverse_b.shape[0] == b.shape[0]:
        inverse_a = inverse_a.expand(a.shape[0], 1).contiguous()  # one scale beside a scale for each row
    elif inverse_b.shape[0] != b.shape[0] and inverse_a.shape[0] == a.shape[0]:
        inverse_b = inverse_b.expand(b.shape[0], 1).contiguous()
    if inverse_b.ndim == 2:
        inverse_b = inverse_b.t()
    return torch._scaled_mm(a, b.t(), inverse_a, inverse_b, out_dtype=dtype, use_fast_accum=False)


def linear(x: Tensor, layer: FP8Linear) -> Tensor:
    """A layer's output: operands are stored, and multiplied by `_ThreeProducts`.

    Args:
        x: shape [tokens, in_features], in the base format.
        layer: the layer, its backend ``native``.

    Returns:
        Shape [tokens, out_features], in the base format.
    """
    recipe, multiple, tokens = layer.recipe, divisor(layer.recipe), x.shape[0]
    x, weight = padded(x.contiguous(), multiple), padded(layer.weight, multiple)
    bias: Tensor | None = layer.bias
    if bias is not None and len(bias) != len(weight):
        bias = F.pad(bias, (0, len(weight) - len(bias)))
    learns = torch.is_grad_enabled()
    needs_x, needs_weight, updates = learns and x.requires_grad, learns and weight.requires_grad, learns and layer.training
    weight_back: Operand | None = None
    x_back: Operand | None = None
    with torch.no_grad():
        stored_x = _quantized(layer, "activation", x, tokens, recipe.fprop[0], 1)
        stored_weight = _quantized(layer, "weight", weight, tokens, recipe.fprop[1], 1)
        # kept for the backward pass in the form in which it multiplies them, so that the input itself can be freed
        if needs_x:
            weight_back = _again(layer, "weight:dgrad", weight, tokens, stored_weight, recipe.fprop[1], recipe.dgrad[1])
        if needs_weight and recipe.wgrad is not None:
            x_back = _again(layer, "activation:wgrad", x, tokens, stored_x, recipe.fprop[0], recipe.wgrad[1])
        amaxes = [amax_of_blocks(each, (each.shape[0], each.shape[1])) for each in (x, weight) if updates and recipe.delayed]
    out = _ThreeProducts.apply(
        x, weight, bias, layer, tokens, needs_weight, *stored_x[:2], *stored_weight[:2],
        *_apart(weight_back, stored_weight), *_apart(x_back, stored_x), *(amaxes or (None, None)),
    )  # fmt: skip
    return out[:tokens, : layer.out_features]


def _apart(second: Operand | None, first: Operand) -> tuple[Tensor | None, Tensor | None]:
    """Values and inverse scales of an operand's second product; None for an inverse that the first has: it is traced once."""
    if second is None:
        return None, None
    return second.values, None if second.inverse is first.inverse else second.inverse


class _ThreeProducts(torch.autograd.Function):
    """fprop, dgrad and wgrad of one layer on the hardware, in the order of operations of `vitfp8.precision.fp8_linear`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: FP8Linear, tokens: int, needs_weight: bool,
        stored_x: Tensor, inverse_x: Tensor, stored_weight: Tensor, inverse_weight: Tensor,
        weight_back: Tensor | None, inverse_weight_back: Tensor | None, x_back: Tensor | None, inverse_x_back: Tensor | None,
        amax_x: Tensor | None, amax_weight: Tensor | None,
    ) -> Tensor:  # fmt: skip
        out = product(stored_x, inverse_x, stored_weight, inverse_weight, x.dtype)
        if bias is not None:
            out += bias.to(out.dtype)
        if needs_weight and layer.recipe.wgrad is None:
            x_back = x
        ctx.layer, ctx.tokens = layer, tokens
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        ctx.save_for_backward(
            weight_back, inverse_weight if inverse_weight_back is None else inverse_weight_back,
            x_back, inverse_x if inverse_x_back is None else inverse_x_back, amax_x, amax_weight,
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layer, tokens, recipe = ctx.layer, ctx.tokens, ctx.layer.recipe
        weight, inverse_weight, x, inverse_x, amax_x, amax_weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        grad_x = grad_weight = grad_bias = None
        with no_autocast(gradient.device.type):
            along_out: Operand | None = None
            if weight is not None:
                along_out = _quantized(layer, "gradient", gradient, tokens, recipe.dgrad[0], 1)
                grad_x = product(along_out.values, along_out.inverse, weight, inverse_weight, gradient.dtype)
            if x is not None and recipe.wgrad is None:
                grad_weight = (gradient.t() @ x).to(ctx.dtypes[0])
            elif x is not None:
                if along_out is None:
                    along_tokens = _quantized(layer, "gradient", gradient, tokens, recipe.wgrad[0], 0)
                else:
                    along_tokens = _again(
                        layer, "gradient:wgrad", gradient, tokens, along_out, recipe.dgrad[0], recipe.wgrad[0]
                    )  # fmt: skip
                grad_weight = product(along_tokens.values, along_tokens.inverse, x, inverse_x, gradient.dtype).to(ctx.dtypes[0])
            if ctx.needs_input_grad[2]:
                grad_bias = gradient.sum(0).to(ctx.dtypes[1])
            if amax_x is not None and (weight is not None or x is not None):
                amax_gradient = amax_of_blocks(gradient, (gradient.shape[0], gradient.shape[1]))
                update_histories(layer.histories(), (amax_x, amax_weight, amax_gradient), layer.largest)
        return grad_x, grad_weight, grad_bias, *[None] * 13


def _quantized(layer: FP8Linear, operand: str, tensor: Tensor, tokens: int, cast: Cast, contracted: int) -> Operand:
    """Store an operand, and tell the observer."""
    history, largest = layer.history_of(operand), layer.largest[OPERANDS.index(operand.split(":")[0])]
    stored = store(tensor, cast, contracted, largest, None if history is None else history.scale)
    if layer.observer is not None:
        _tell(layer, operand, tensor, tokens, cast, contracted, stored)
    return stored


def _again(layer: FP8Linear, operand: str, tensor: Tensor, tokens: int, first: Operand, before: Cast, cast: Cast) -> Operand:
    """An operand for its second product, which sums over dimension 0: copied under the same scale, else quantised again."""
    if cast == before and cast.orientation_free:
        return Operand(first.values.t().contiguous(), first.inverse, first.scale)
    return _quantized(layer, operand, tensor, tokens, cast, 0)


def _tell(layer: FP8Linear, operand: str, tensor: Tensor, tokens: int, cast: Cast, contracted: int, stored: Operand) -> None:
    """Show the observer an operand without its padding."""
    assert layer.observer is not None
    rows = layer.out_features if operand.startswith("weight") else tokens
    columns = layer.out_features if operand.startswith("gradient") else layer.in_features
    block = cast.block((tensor.shape[0], tensor.shape[1]), contracted)
    values = stored.values if contracted == 1 else stored.values.t()
    scale = stored.scale if stored.scale.numel() > 1 else stored.scale.view(())
    if scale.ndim:
        scale = scale[: -(-rows // block[0]), : -(-columns // block[1])]
    quantized = Quantized(values=values[:rows, :columns], scale=scale, block=block, dequantized=False)
    layer.observer(operand, tensor.detach()[:rows, :columns], quantized)


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast would cast operands that are to stay as they are; entering its context takes time, so only where it is on."""
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else nullcontext()
