"""Quantising an operand: from its amax to a scale, and by the scale onto a format's grid.

Zero and non-finite amax
    One rule, Transformer Engine's: the scale is 1 (``history``: stays as it was); an MX block of zeros has scale byte 0.
    A tensor with an infinity thus keeps its finite values, the infinity saturates and NaN stays NaN. torchao instead
    clamps the amax to 1e-12, which gives a zero tensor the scale 4.48e14 and makes NaN of a tensor that holds an
    infinity. A scale beyond float32's range is float32's largest number (TE) or power of two.

What comes out
    Under one scale the *grid values* (exact in BF16 and FP32) and the scale apart: the product runs on the grid and is
    descaled once. Under power-of-two scales the *dequantised values*, grid value ÷ scale, which are exact in BF16 and
    FP32 as well, so that a plain product of them is the exact result and needs no descaling. (Exact down to 2⁻¹²⁶; what
    is smaller, a block whose amax is below about 1e-33, may be flushed by a processor's BF16 products.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitfp8.errors import InputError, suggest
from vitfp8.precision import rounding
from vitfp8.precision.formats import NumberFormat, round_in_range
from vitfp8.precision.recipes import SCALE_RULES, Cast

_EXPONENT_FIELD = 0x7F800000
_LARGEST_FLOAT = torch.finfo(torch.float32).max


# ------------------------------------------------------------------------------------------------ scales


def scale_from_amax(amax: Tensor, number_format: NumberFormat, rule: str, largest: Tensor | None = None) -> Tensor:
    """The scale that moves an amax to the top of a format.

    Args:
        amax: float32, any shape, not negative; may hold infinities and NaN.
        rule: ``amax`` or one of `POWER_OF_TWO_RULES`.
        largest: the format's largest number as a zero-dimensional tensor, where there is one on the device already.

    Returns:
        float32 scales of the same shape, positive and finite: 1 where the amax is zero or not finite, but 2¹²⁷ (E8M0 byte
        0) where an MX block is all zeros.
    """
    if rule in ("amax", "amax_pow2"):
        # few operations, since each is a launch on a GPU: an amax of 0 becomes the largest number, hence scale 1; an infinite or
        # unknown amax gives 0 or NaN, hence 1; a scale beyond float32 its largest number
        amax = torch.nn.functional.threshold(amax, 0.0, number_format.largest)
        scale = _quotient(number_format.largest if largest is None else largest, amax)
        scale = torch.nn.functional.threshold(scale.nan_to_num(nan=1.0, posinf=_LARGEST_FLOAT), 0.0, 1.0)
        return (scale.view(torch.int32) & _EXPONENT_FIELD).view(torch.float32) if rule == "amax_pow2" else scale
    if rule == "mx_floor":
        byte = ((amax.view(torch.int32) >> 23) - number_format.largest_exponent).clamp_min(0)
        scale = _power_of_two(254 - byte)
    elif rule == "mx_rceil":
        bits = _quotient(amax, number_format.largest).view(torch.int32)
        exponent, fraction = bits >> 23, bits & 0x7FFFFF
        # cvt.rp: up unless it is a power of two already; below float32's normal range 2⁻¹²⁷ is the only one left.
        byte = exponent + torch.where(exponent > 0, fraction > 0, fraction > 0x400000)
        scale = _power_of_two(254 - byte)
    else:
        raise InputError(f"scale rule {rule!r} does not follow from one amax; {suggest(rule, SCALE_RULES)}")
    return torch.where(torch.isfinite(amax), scale, 1.0)


def _quotient(numerator: Tensor | float, denominator: Tensor | float) -> Tensor:
    """A float32 division that is rounded once.

    PyTorch turns a division by or of a Python number into a multiplication with a rounded reciprocal on some devices, so
    both sides are tensors here. (torchao goes through float64, which gives the same bits.)
    """
    shape = numerator if isinstance(numerator, Tensor) else denominator
    assert isinstance(shape, Tensor)
    sides = [side if isinstance(side, Tensor) else torch.full_like(shape, side) for side in (numerator, denominator)]
    return sides[0] / sides[1]


def _power_of_two(exponent_field: Tensor) -> Tensor:
    return (exponent_field << 23).view(torch.float32)


def amax_of(tensor: Tensor) -> Tensor:
    """The largest magnitude of a tensor as a zero-dimensional float32 tensor; NaN if it holds one; 0 if it is empty."""
    if tensor.numel() == 0:
        return torch.zeros((), device=tensor.device)
    smallest, largest = torch.aminmax(tensor)
    return torch.maximum(-smallest, largest).float()


# ------------------------------------------------------------------------------------------------ delayed scaling


class AmaxHistory(torch.nn.Module):
    """The state of delayed scaling for one operand: the amaxes of the last training steps and the scale that follows.

    Two buffers, saved and loaded with the module's state: ``history`` (float32, the newest first, zeros before the first
    step) and ``scale`` (float32, zero-dimensional, 1 before the first step). A step is one training pass through the
    layer.

    An amax that is zero enters the history; one that is not finite does not, so that one overflow does not hold the scale for
    the length of the history (in Transformer Engine it does).
    """

    def __init__(self, length: int, number_format: NumberFormat, margin: int = 0) -> None:
        super().__init__()
        self.largest = number_format.largest / 2.0**margin
        self.history: Tensor
        self.scale: Tensor
        self.register_buffer("history", torch.zeros(length))
        self.register_buffer("scale", torch.ones(()))

    def reset(self) -> None:
        """Forget every step."""
        self.history.zero_()
        self.scale.fill_(1.0)

    @torch.no_grad()
    def update(self, amax: Tensor | float) -> None:
        """Take in the amax of the pass that has just used `scale`, and compute the scale of the next one.

        Args:
            amax: of the unscaled tensor: a tensor of one element on the buffers' device, or a float if that is a processor.
        """
        if isinstance(amax, float):
            if not math.isfinite(amax):
                return
            history = self.history.numpy()  # shares memory; a tenth of the time of the tensor operations below
            history[1:] = history[:-1]
            history[0] = amax
            most = float(history.max())
            if most > 0:
                self.scale.fill_(min(self.largest / most, _LARGEST_FLOAT))
            return
        update_histories([self], [amax], torch.full((1,), self.largest, device=self.history.device))


@torch.no_grad()
def update_histories(histories: Sequence[AmaxHistory], amaxes: Sequence[Tensor], largest: Tensor) -> None:
    """Take in the amaxes of several operands at once: a dozen operations whatever their number, and none is waited for.

    Args:
        amaxes: of the unscaled tensors, one element each; the histories are of equal length.
        largest: float32 [histories], their `AmaxHistory.largest`.
    """
    before = torch.stack([each.history for each in histories])
    amax = torch.cat([each.view(1) for each in amaxes]).view(-1, 1)
    # without a finite amax a history stays as it was, and so does the scale that follows from it
    history = torch.where(amax < math.inf, torch.cat((amax, before[:, :-1]), dim=1), before)
    most = history.amax(dim=1)
    scale = (largest / most).clamp_max(_LARGEST_FLOAT)
    scale = torch.where(most > 0, scale, torch.stack([each.scale for each in histories]))
    torch._foreach_copy_(
        [*(each.history for each in histories), *(each.scale for each in histories)], [*history.unbind(), *scale.unbind()]
    )


# ------------------------------------------------------------------------------------------------ quantising


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """An operand on a format's grid.

    Attributes:
        values: the operand, in a container where it is exact: grid values, or dequantised values where ``dequantized``.
        scale: what the tensor was multiplied with before rounding: a float or zero-dimensional tensor for one scale, else float32
            of shape [blocks down, blocks across].
        block: rows and columns of a block.
        dequantized: whether ``values`` are grid values ÷ scale already.
        amax: of the tensor before scaling, where it was found on the way (delayed scaling); a float or tensor.
    """

    values: Tensor
    scale: Tensor | float
    block: tuple[int, int]
    dequantized: bool
    amax: Tensor | float | None = field(default=None)

    def scale_of_each(self) -> Tensor:
        """The scale, in a shape that broadcasts against ``values``."""
        if not isinstance(self.scale, Tensor) or self.scale.ndim == 0:
            return torch.as_tensor(self.scale, dtype=torch.float32, device=self.values.device)
        return _spread(self.scale, self.block, self.values.shape)

    def grid(self) -> Tensor:
        """The grid values as float32."""
        values = self.values.float()
        return values * self.scale_of_each() if self.dequantized else values

    def dequantize(self) -> Tensor:
        """Grid values ÷ scale as float32: what the operand stands for."""
        values = self.values.float()
        return values if self.dequantized else values / self.scale_of_each()


def quantize(
    tensor: Tensor,
    cast: Cast,
    *,
    contracted: int = 1,
    container: torch.dtype = torch.float32,
    scale: Tensor | float | None = None,
) -> Quantized:
    """Quantise one operand.

    The same bits come from the compiled routine and from eager PyTorch, on every device.

    Args:
        tensor: matrix, float32 or bfloat16.
        contracted: the dimension that the product will sum over, 0 or 1; rows and pieces lie along it.
        container: dtype of the values: float32 or bfloat16.
        scale: the scale of delayed scaling, zero-dimensional or a float; needed when the rule is ``history``.

    Returns:
        The operand; −0 may have become +0, which no product can tell.
    """
    tensor = tensor.detach().contiguous()
    compiled = None if torch.compiler.is_compiling() or tensor.numel() == 0 else rounding.load()
    if compiled is not None and not compiled.takes(tensor, container):
        compiled = None
    shape = (tensor.shape[0], tensor.shape[1])
    number_format = cast.number_format
    if cast.power_of_two:
        block = cast.block(shape, contracted)
        if compiled is not None:
            values, scales = compiled.blocks(tensor, number_format, container, block, cast.rule)
        else:
            values, scales = _quantize_blocks(tensor, number_format, container, block, cast.rule)
        return Quantized(values=values, scale=scales, block=block, dequantized=True)
    if cast.rule == "history" and scale is None:
        raise InputError("delayed scaling quantises with the scale of its history; pass scale=AmaxHistory.scale")
    if compiled is not None:
        given = None if scale is None else float(scale)
        values, used, amax = compiled.one_scale(tensor, number_format, container, given)
        return Quantized(values=values, scale=used, block=shape, dequantized=False, amax=amax)
    largest = amax_of(tensor)
    factor = scale_from_amax(largest, number_format, "amax") if scale is None else scale
    values = round_in_range(_clamp(tensor.float() * factor, number_format), number_format)
    return Quantized(values=values.to(container), scale=factor, block=shape, dequantized=False, amax=largest)


def _quantize_blocks(
    tensor: Tensor, number_format: NumberFormat, container: torch.dtype, block: tuple[int, int], rule: str
) -> tuple[Tensor, Tensor]:
    """Eager PyTorch's way to (dequantised values, scales)."""
    x = tensor.float()
    scale = scale_from_amax(_block_amax(x, block), number_format, rule)
    factor = _spread(scale, block, x.shape)
    values = round_in_range(_clamp(x * factor, number_format), number_format).div_(factor)
    return values.to(container), scale


def _clamp(scaled: Tensor, number_format: NumberFormat) -> Tensor:
    """Saturate a fresh float32 tensor in place; NaN stays."""
    return scaled.clamp_(-number_format.largest, number_format.largest)


def _block_amax(x: Tensor, block: tuple[int, int]) -> Tensor:
    """The amax of each block, the last ones smaller: float32 of shape [blocks down, blocks across]."""
    rows, columns = x.shape
    down, across = -(-rows // block[0]), -(-columns // block[1])
    magnitude = x.abs()
    padding = (0, across * block[1] - columns, 0, down * block[0] - rows)
    if any(padding):
        magnitude = torch.nn.functional.pad(magnitude, padding)
    return magnitude.view(down, block[0], across, block[1]).amax(dim=(1, 3))


def _spread(scale: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """A scale for each element, in the smallest shape that broadcasts against ``shape``."""
    for dimension in (0, 1):
        if scale.shape[dimension] > 1:
            scale = scale.repeat_interleave(block[dimension], dim=dimension).narrow(dimension, 0, shape[dimension])
    return scale
