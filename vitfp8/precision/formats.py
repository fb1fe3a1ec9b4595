"""Number formats and rounding to them: what a stored value may be, bit for bit.

A low-precision format is a finite grid of numbers. Everything that this project says about precision rests on one
operation, *round a float32 tensor to the nearest point of a grid, ties to even*, and on counting what was lost while doing
so. Values stay in a float32 tensor: each point of each grid here is exact in float32, so the container changes nothing, and
a device without the dtype (MPS has no FP8) computes the same bits.

How the rounding works
    A float32 addition rounds its exact sum to the nearest representable number, ties to even. Adding ``p = 1.5·2^k`` to a value
    that is small beside it leaves no room for the bits below ``2^(k−23)``, so ``(x + p) − p`` is x rounded to a multiple of
    ``2^(k−23)`` by the processor's own rounding. With k chosen from the exponent of x the multiple is the step of the grid at x;
    below the smallest normal number the step stops shrinking, which is all that subnormal numbers are. The formats that share
    float32's exponent (BF16, TF32) are rounded in the integer domain instead, where ``p`` would overflow: half a step is added to
    the bit pattern and the low bits are cleared.

    Both ways are exact on every IEEE device as long as the compiler neither reassociates nor contracts; the tests compare
    them with the casts of torch, ``ml_dtypes`` and ``gfloat``, also under ``torch.compile``.

What happens beyond the largest number
    ``saturate=True`` (training, quantisation): everything that is not NaN becomes finite; infinities and finite values beyond the
    range become ± the largest number, as ``clamp`` followed by a cast gives them. An infinity is hidden by this, so use
    `round_and_count` where it matters. ``saturate=False`` (raw): what rounds beyond the largest number becomes an infinity
    where the format has one, NaN where it has none. FP16 training with loss scaling needs the raw mode: an overflow must show.

Sources: Micikevicius et al. 2022, *FP8 Formats for Deep Learning* (arXiv 2209.05433), Table 1; OCP *Microscaling Formats
(MX)* v1.0, section 5; IEEE 754-2019 for FP16; Noune et al. 2022 (arXiv 2206.02915) for the FNUZ formats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfp8.errors import InputError, suggest


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """One number format.

    Attributes:
        name: its key in `FORMATS`.
        label: what a table or figure calls it.
        bits: width of one stored number.
        exponent_bits: width of the exponent field; 0 for integers.
        mantissa_bits: explicit fraction bits; for integers, magnitude bits.
        bias: exponent bias; 0 for integers.
        largest: largest finite magnitude.
        smallest_normal: smallest magnitude with full relative precision.
        smallest_subnormal: smallest magnitude that is not zero; the step of the grid around zero.
        has_infinity: whether ±Inf have codes.
        has_nan: whether NaN has a code.
        has_negative_zero: whether −0 differs from +0.
        has_zero: whether 0 has a code (E8M0 has none).
        signed: whether negative numbers have codes.
        torch_name: name of the torch dtype, None where torch has none; see `dtype`.
    """

    name: str
    label: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float
    smallest_normal: float
    smallest_subnormal: float
    has_infinity: bool
    has_nan: bool
    has_negative_zero: bool
    has_zero: bool = True
    signed: bool = True
    torch_name: str | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """The torch dtype that stores this format, None where this torch has none."""
        return getattr(torch, self.torch_name, None) if self.torch_name else None

    @property
    def largest_exponent(self) -> int:
        """The exponent of the largest number: ``floor(log2(largest))`` (``emax`` of the OCP MX specification)."""
        return math.frexp(self.largest)[1] - 1

    @property
    def shift(self) -> float:
        """``1.5·2^(23−mantissa_bits)``: times the power of two below x, it is the p of ``(x + p) − p``."""
        return 1.5 * 2.0 ** (23 - self.mantissa_bits)


def _table(*formats: NumberFormat) -> dict[str, NumberFormat]:
    return {number_format.name: number_format for number_format in formats}


FORMATS: dict[str, NumberFormat] = _table(
    NumberFormat(
        name="e4m3", label="FP8 E4M3", bits=8, exponent_bits=4, mantissa_bits=3, bias=7,
        largest=448.0, smallest_normal=2.0**-6, smallest_subnormal=2.0**-9,
        has_infinity=False, has_nan=True, has_negative_zero=True, torch_name="float8_e4m3fn",
    ),
    NumberFormat(
        name="e5m2", label="FP8 E5M2", bits=8, exponent_bits=5, mantissa_bits=2, bias=15,
        largest=57344.0, smallest_normal=2.0**-14, smallest_subnormal=2.0**-16,
        has_infinity=True, has_nan=True, has_negative_zero=True, torch_name="float8_e5m2",
    ),
    NumberFormat(
        name="e4m3fnuz", label="FP8 E4M3 FNUZ", bits=8, exponent_bits=4, mantissa_bits=3, bias=8,
        largest=240.0, smallest_normal=2.0**-7, smallest_subnormal=2.0**-10,
        has_infinity=False, has_nan=True, has_negative_zero=False, torch_name="float8_e4m3fnuz",
    ),
    NumberFormat(
        name="e5m2fnuz", label="FP8 E5M2 FNUZ", bits=8, exponent_bits=5, mantissa_bits=2, bias=16,
        largest=57344.0, smallest_normal=2.0**-15, smallest_subnormal=2.0**-17,
        has_infinity=False, has_nan=True, has_negative_zero=False, torch_name="float8_e5m2fnuz",
    ),
    NumberFormat(
        name="fp16", label="FP16", bits=16, exponent_bits=5, mantissa_bits=10, bias=15,
        largest=65504.0, smallest_normal=2.0**-14, smallest_subnormal=2.0**-24,
        has_infinity=True, has_nan=True, has_negative_zero=True, torch_name="float16",
    ),
    NumberFormat(
        name="bf16", label="BF16", bits=16, exponent_bits=8, mantissa_bits=7, bias=127,
        largest=(2.0 - 2.0**-7) * 2.0**127, smallest_normal=2.0**-126, smallest_subnormal=2.0**-133,
        has_infinity=True, has_nan=True, has_negative_zero=True, torch_name="bfloat16",
    ),
    # A register format of NVIDIA's matrix units: stored in 32 bits, of which 19 are used. Rounded to nearest even here.
    NumberFormat(
        name="tf32", label="TF32", bits=19, exponent_bits=8, mantissa_bits=10, bias=127,
        largest=(2.0 - 2.0**-10) * 2.0**127, smallest_normal=2.0**-126, smallest_subnormal=2.0**-136,
        has_infinity=True, has_nan=True, has_negative_zero=True,
    ),
    # Powers of two for MX scales. Midpoints go up, as in torch's cast; see `encode_e8m0`.
    NumberFormat(
        name="e8m0", label="E8M0", bits=8, exponent_bits=8, mantissa_bits=0, bias=127,
        largest=2.0**127, smallest_normal=2.0**-127, smallest_subnormal=2.0**-127,
        has_infinity=False, has_nan=True, has_negative_zero=False, has_zero=False, signed=False, torch_name="float8_e8m0fnu",
    ),
    # For contrast: a uniform grid. Symmetric, so −128 is not used.
    NumberFormat(
        name="int8", label="INT8", bits=8, exponent_bits=0, mantissa_bits=7, bias=0,
        largest=127.0, smallest_normal=1.0, smallest_subnormal=1.0,
        has_infinity=False, has_nan=False, has_negative_zero=False, torch_name="int8",
    ),
)  # fmt: skip
"""Every number format by name."""

_EXPONENT_FIELD = 0x7F800000  # of a float32 bit pattern


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundingCounts:
    """What one rounding lost, as zero-dimensional int64 tensors on the tensor's device (so that counting waits for no device).

    Attributes:
        total: number of elements.
        underflow: not zero before, zero after.
        saturated: finite before, and rounded beyond the largest number: clipped to it, or made non-finite in raw mode.
        nonfinite: infinite or NaN before.
    """

    total: int
    underflow: Tensor
    saturated: Tensor
    nonfinite: Tensor

    def fractions(self) -> dict[str, float]:
        """``underflow`` and ``saturated`` as fractions of all elements, ``nonfinite`` as a count."""
        total = max(self.total, 1)
        return {
            "underflow": int(self.underflow) / total,
            "saturated": int(self.saturated) / total,
            "nonfinite": int(self.nonfinite),
        }


def format_named(name: str) -> NumberFormat:
    """The row of `FORMATS` called ``name``.

    Raises:
        InputError: the name is unknown; the message suggests one.
    """
    try:
        return FORMATS[name]
    except (KeyError, TypeError):
        raise InputError(f"number format {name!r} is unknown; {suggest(name, FORMATS)}") from None


def round_to_format(tensor: Tensor, name: str, saturate: bool = True) -> Tensor:
    """Round every element to the nearest number of a format, ties to even (E8M0: midpoints up).

    Args:
        tensor: any shape; float32, bfloat16 or float16 (the latter two are exact in float32 and rounded from there).
        name: a key of `FORMATS`.
        saturate: True: everything but NaN becomes finite, ±Inf and values beyond the range become ± the largest number.
            False: what rounds beyond the largest number becomes ±Inf, or NaN in a format without infinities.

    Returns:
        A float32 tensor of the same shape on the same device. NaN stays NaN (also for INT8, whose codes have none, so that it
        is not hidden); −0 stays −0 where the format has it. The result carries no gradient.

    Raises:
        InputError: the format is unknown, or the tensor is float64 (which a cast would round twice) or not floating point.
    """
    number_format = format_named(name)
    x = _as_float32(tensor)
    with torch.no_grad():
        if name == "e8m0":
            return _round_e8m0(x, saturate)
        raw = _round_raw(x, number_format)
        return _saturated(raw, x, number_format) if saturate else _signed_zero(raw, x, number_format)


def round_and_count(tensor: Tensor, name: str, saturate: bool = True) -> tuple[Tensor, RoundingCounts]:
    """`round_to_format`, together with the counts of what it lost.

    Args:
        tensor: as for `round_to_format`.
        name: a key of `FORMATS`.
        saturate: as for `round_to_format`; the counts are the same either way.

    Returns:
        The rounded tensor, and the counts; see `RoundingCounts`.
    """
    rounded = round_to_format(tensor, name, saturate)
    with torch.no_grad():
        x = _as_float32(tensor)
        finite = torch.isfinite(x)
        raw = rounded if not saturate else round_to_format(tensor, name, saturate=False)
        counts = RoundingCounts(
            total=x.numel(),
            underflow=((x != 0) & (rounded == 0)).sum(),
            saturated=(finite & ~torch.isfinite(raw)).sum(),
            nonfinite=(~finite).sum(),
        )
    return rounded, counts


def encode_e8m0(tensor: Tensor) -> Tensor:
    """The E8M0 byte of each element: the exponent of the nearest power of two plus 127, midpoints up, as torch's cast has it.

    Args:
        tensor: float32, any shape. The sign is dropped (a scale is positive); zero and what is below 2⁻¹²⁷ become byte 0, for the
            format has no zero; infinities, NaN, and what rounds beyond 2¹²⁷ become 0xFF.

    Returns:
        A uint8 tensor of the same shape. Source: OCP MX v1.0, section 5.4.1.
    """
    bits = _as_float32(tensor).view(torch.int32) & 0x7FFFFFFF
    exponent = bits >> 23
    # A float32 subnormal has no implicit one: 2⁻¹²⁷ itself has the half bit set and stays; all above it becomes 2⁻¹²⁶.
    goes_up = ((bits & 0x400000) != 0) & ((exponent > 0) | ((bits & 0x3FFFFF) > 0))
    return torch.where(exponent == 255, exponent, exponent + goes_up).to(torch.uint8)


def decode_e8m0(codes: Tensor) -> Tensor:
    """The float32 value of each E8M0 byte: ``2^(byte − 127)``, NaN for 0xFF.

    Args:
        codes: uint8, any shape.

    Returns:
        A float32 tensor of the same shape. Byte 0 is 2⁻¹²⁷, a float32 subnormal: a device that flushes subnormals reads it as 0.
    """
    exponent = codes.to(torch.int32)
    bits = torch.where(exponent == 0, 0x00400000, exponent << 23)
    return torch.where(exponent == 255, 0x7FC00000, bits).view(torch.float32)


def sqnr(reference: Tensor, approximation: Tensor) -> Tensor:
    """Signal to quantisation noise ratio in decibels: ``10·log10(Σ reference² / Σ (reference − approximation)²)``.

    Args:
        approximation: a tensor of the same shape.

    Returns:
        A zero-dimensional tensor on the same device: ``inf`` when both are equal, NaN when either holds a NaN.
    """
    dtype = torch.float64 if reference.device.type in ("cpu", "cuda") else torch.float32  # Apple's GPU has no float64
    signal = reference.detach().to(dtype)
    noise = signal - approximation.detach().to(dtype)
    return 20 * torch.log10(torch.linalg.vector_norm(signal) / torch.linalg.vector_norm(noise))


def _as_float32(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float32:
        return tensor.detach()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.detach().float()
    if tensor.dtype == torch.float64:
        raise InputError("rounding float64 to a low-precision format rounds twice; pass tensor.float()")
    raise InputError(f"only floating-point tensors are rounded to a format, not {tensor.dtype}; pass tensor.float()")


def _round_raw(x: Tensor, number_format: NumberFormat) -> Tensor:
    """Round float32 to the grid; beyond the largest number ±Inf, or NaN where the format has none. May lose the sign of zero."""
    if number_format.exponent_bits == 8:
        return _round_wide(x, number_format)
    if number_format.name == "fp16" and x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
        return x.half().float()
    # Beyond twice the largest power of two everything overflows alike; clamping there keeps p finite.
    bound = 2.0 ** (number_format.largest_exponent + 2)
    y = x.clamp(-bound, bound)
    z = round_in_range(y, number_format)
    overflow = z.abs() > number_format.largest
    beyond = torch.copysign(torch.full_like(z, torch.inf), z) if number_format.has_infinity else torch.full_like(z, torch.nan)
    return torch.where(overflow, beyond, z)


def round_in_range(y: Tensor, number_format: NumberFormat) -> Tensor:
    """Round float32 values already within ± four times the largest number to the grid continued without end.

    The kernel of the quantisers: no clamping, no special values; −0 becomes +0, NaN stays.

    Args:
        y: float32, any shape; not modified.
        number_format: a format with fewer than 8 exponent bits (integers included).
    """
    if number_format.exponent_bits == 0:
        shift = 1.5 * 2.0**23
        return (y + shift) - shift
    power = (y.view(torch.int32) & _EXPONENT_FIELD).view(torch.float32)
    p = power.clamp_min(number_format.smallest_normal).mul_(number_format.shift)
    return (y + p).sub_(p)


def _round_wide(x: Tensor, number_format: NumberFormat) -> Tensor:
    """Round to a format with float32's exponents: add half a step to the bit pattern; overflow carries into infinity."""
    if number_format.name == "bf16" and x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
        return x.bfloat16().float()
    dropped = 23 - number_format.mantissa_bits
    bits = x.view(torch.int32)
    half = (1 << (dropped - 1)) - 1
    rounded = (bits + (half + ((bits >> dropped) & 1))) & -(1 << dropped)
    return torch.where(torch.isnan(x), x, rounded.view(torch.float32))


def _saturated(raw: Tensor, x: Tensor, number_format: NumberFormat) -> Tensor:
    largest = number_format.largest
    if not number_format.has_infinity:
        # Raw rounding marked an overflow with NaN; a NaN of the input is the only one to keep.
        raw = torch.where(torch.isnan(raw) & ~torch.isnan(x), torch.copysign(torch.full_like(x, largest), x), raw)
    return _signed_zero(raw.clamp(-largest, largest), x, number_format)


def _signed_zero(rounded: Tensor, x: Tensor, number_format: NumberFormat) -> Tensor:
    return torch.copysign(rounded, x) if number_format.has_negative_zero else rounded


def _round_e8m0(x: Tensor, saturate: bool) -> Tensor:
    codes = encode_e8m0(x)
    if saturate:
        codes = torch.where((codes == 255) & ~torch.isnan(x), torch.full_like(codes, 254), codes)
    return decode_e8m0(codes)
