"""What is quantised and how: formats, scales, weights, and a linear layer that multiplies quantised operands.

A weight W of shape [out, in] becomes codes and scales: code = round(W · scale) on the format's grid, where scale moves the
largest magnitude that shares it to the format's largest number. ``tensor`` has one scale, ``channel`` one per row (output
channel), ``mx`` one for each 32 elements along ``in``, a power of two (rounded so that nothing saturates).

Weights alone: the dequantised weight, code ÷ scale, stands in the layer, whose own arithmetic rounds it as it would any weight
(so does a weight-only kernel, which widens the codes to the compute format). Weights and activations: the product is of codes,
accumulated in FP32, divided by the scales once, plus bias, and rounded to the layer's result format. Scales of activations come
from calibration, one per layer; those of MX blocks are computed as the block comes, as the format has it, and their dequantised
values, exact in FP32, are multiplied.

Sources: Nagel et al. 2021, *A White Paper on Neural Network Quantization* (arXiv 2106.08295), section 2; OCP *Microscaling
Formats (MX)* v1.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitfp8.catalog import QUANTIZED_FORMATS
from vitfp8.errors import InputError
from vitfp8.precision.formats import FORMATS, decode_e8m0, encode_e8m0, round_to_format
from vitfp8.precision.quantizer import scale_from_amax

#: Elements that share a scale in an MX block (OCP MX v1.0).
MX_BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class FormatAfterTraining:
    """A format of quantisation after training.

    Attributes:
        name: its key.
        largest: largest magnitude of a code.
        bits: that a code takes.
        dtype: torch's dtype of a code in an exported file; None where 8 bits do not hold it.
        integer: whether codes are whole numbers; else a row of `vitfp8.precision.FORMATS` of the same name.
        tensor_weights_only: whether it is defined for weights under one scale alone.
    """

    name: str
    largest: float
    bits: int = 8
    dtype: torch.dtype | None = None
    integer: bool = False
    tensor_weights_only: bool = False

    def round(self, scaled: Tensor) -> Tensor:
        """Round float32 to the grid, saturating; NaN stays. Same shape, float32."""
        if not self.integer:
            return round_to_format(scaled, self.name)
        return scaled.round().clamp(-self.largest, self.largest)  # torch rounds ties to even


_FORMAT_ROWS = (
    FormatAfterTraining(name="e4m3", largest=FORMATS["e4m3"].largest, dtype=torch.float8_e4m3fn),
    FormatAfterTraining(name="e5m2", largest=FORMATS["e5m2"].largest, dtype=torch.float8_e5m2),
    FormatAfterTraining(name="int8", largest=127.0, dtype=torch.int8, integer=True),
    # 481 levels, which take 9 bits; 240 is the largest number of E4M3 FNUZ, whose grid these whole numbers are not
    FormatAfterTraining(name="int_240", largest=240.0, bits=9, integer=True, tensor_weights_only=True),
)

#: Format of quantisation after training → its row. To add one: a row here, its name in `vitfp8.catalog`, its tests.
FORMATS_AFTER_TRAINING: Mapping[str, FormatAfterTraining] = MappingProxyType({row.name: row for row in _FORMAT_ROWS})
assert set(FORMATS_AFTER_TRAINING) == set(QUANTIZED_FORMATS), "vitfp8.catalog and vitfp8.ptq name different formats"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way to quantise: keys of `QUANTIZED_FORMATS`, `QUANTIZED_GRANULARITIES` and `QUANTIZED_OPERANDS`."""

    format: str
    granularity: str
    operands: str

    @property
    def row(self) -> FormatAfterTraining:
        """The row of its format."""
        return FORMATS_AFTER_TRAINING[self.format]

    @property
    def activations(self) -> bool:
        """Whether activations are quantised too."""
        return self.operands == "weights_activations"

    @property
    def activation_scales(self) -> str | None:
        """Where the scales of activations come from: ``calibrated``, ``computed`` or None."""
        if not self.activations:
            return None
        return "computed" if self.granularity == "mx" else "calibrated"


def schemes(formats: Iterable[str], granularities: Sequence[str], operands: Sequence[str]) -> list[Scheme]:
    """Every combination; a format that is defined for weights under one scale alone has one.

    Args:
        formats: keys of `FORMATS_AFTER_TRAINING`.
        granularities: ``tensor``, ``channel``, ``mx``.
        operands: ``weights``, ``weights_activations``.
    """
    found = []
    for name in formats:
        if FORMATS_AFTER_TRAINING[name].tensor_weights_only:
            found.append(Scheme(format=name, granularity="tensor", operands="weights"))
        else:
            found += [Scheme(format=name, granularity=g, operands=o) for g in granularities for o in operands]
    return found


# ------------------------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedWeight:
    """A weight as codes and scales.

    Attributes:
        codes: [out, in], the values of the codes as float32, on any device: Apple's GPU has no FP8 types. `save_quantized` stores
            them in the format's own.
        scale: what the weight was multiplied with before rounding: float32 of shape [1, 1], [out, 1] or [out, blocks of 32].
        granularity: ``tensor``, ``channel`` or ``mx``.
    """

    codes: Tensor
    scale: Tensor
    granularity: str

    def dequantized(self) -> Tensor:
        """Code ÷ scale, float32 [out, in]."""
        return self.codes / spread(self.scale, self.codes.shape[-1], self.granularity)

    def bytes(self, bits: int) -> int:
        """What codes and scales take: a byte for the exponent of an MX block's scale, four for another scale.

        Args:
            bits: of a code; those of 9 bits lie in two bytes.
        """
        return self.codes.numel() * -(-bits // 8) + self.scale.numel() * (1 if self.granularity == "mx" else 4)


def _amax(x: Tensor, granularity: str) -> Tensor:
    """The largest magnitude of whatever shares a scale, along the last dimension. ``[..., in] → [..., 1]`` or blocks."""
    if granularity == "tensor":
        return x.abs().amax().reshape([1] * x.ndim)
    if granularity == "channel":
        return x.abs().amax(dim=-1, keepdim=True)
    padded = F.pad(x.abs(), (0, -x.shape[-1] % MX_BLOCK))
    return padded.unflatten(-1, (-1, MX_BLOCK)).amax(dim=-1)


def spread(scale: Tensor, length: int, granularity: str) -> Tensor:
    """A scale for each element, or what broadcasts to it.

    Args:
        scale: one scale, or one for each block along the last dimension.
        length: of the last dimension of what is scaled.
        granularity: ``mx`` has blocks.
    """
    return scale.repeat_interleave(MX_BLOCK, dim=-1)[..., :length] if granularity == "mx" else scale


def scale_of(amax: Tensor, row: FormatAfterTraining, granularity: str) -> Tensor:
    """The scale that moves an amax to the top of a format; 1 where the amax is zero or not finite.

    Args:
        amax: float32, not negative.
        granularity: ``mx``: a power of two, so that nothing saturates; else their quotient.
    """
    if granularity == "mx":
        return scale_from_amax(amax, FORMATS[row.name], "mx_rceil")
    scale = torch.full_like(amax, row.largest) / amax
    return torch.where(torch.isfinite(amax) & (amax > 0), scale.clamp_max(torch.finfo(torch.float32).max), 1.0)


def quantize_weight(weight: Tensor, scheme: Scheme) -> QuantizedWeight:
    """Quantise a linear layer's weight.

    Args:
        weight: [out, in], float32.
    """
    w = weight.detach().float()
    scale = scale_of(_amax(w, scheme.granularity), scheme.row, scheme.granularity)
    codes = scheme.row.round(w * spread(scale, w.shape[-1], scheme.granularity))
    return QuantizedWeight(codes=codes, scale=scale, granularity=scheme.granularity)


def scale_bytes(scale: Tensor) -> Tensor:
    """MX scales as they are stored: the E8M0 byte of the factor that dequantises, 1 ÷ scale. uint8, same shape."""
    return encode_e8m0(1 / scale)


def scale_from_bytes(codes: Tensor) -> Tensor:
    """The inverse of `scale_bytes`."""
    return 1 / decode_e8m0(codes)


# --------------------------------------------------------------------------------------------------------------- layers


def block_layers(model: VisionTransformer) -> dict[str, nn.Linear]:
    """The linear layers of a Vision Transformer's blocks by name; patch embedding and head stay as they are.

    Raises:
        InputError: it has none.
    """
    found = {name: m for name, m in model.named_modules() if name.startswith("blocks.") and isinstance(m, nn.Linear)}
    if not found:
        raise InputError("model: has no linear layer in its blocks, so that there is nothing to quantise")
    return found


class QuantizedLinear(nn.Linear):
    """A linear layer whose product is of quantised activations and weights. ``[..., in] → [..., out]``.

    It takes the place of a layer of another class for a while; `quantized` gives and takes its attributes.
    """

    quantized_weight: QuantizedWeight
    scheme: Scheme
    input_scale: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in the result format of the layer that it was."""
        row, granularity = self.scheme.row, self.scheme.granularity
        operand = x.float()
        bias = None if self.bias is None else self.bias.float()
        if granularity == "mx":
            scale = scale_of(_amax(operand, "mx"), row, "mx")
            factor = spread(scale, operand.shape[-1], "mx")
            y = F.linear(row.round(operand * factor) / factor, self.quantized_weight.dequantized(), bias)
        else:
            assert self.input_scale is not None
            y = F.linear(row.round(operand * self.input_scale), self.quantized_weight.codes)
            y = y / (self.input_scale * self.quantized_weight.scale.reshape(-1))
            y = y if bias is None else y + bias
        return self._as_result(y, x)

    def _as_result(self, y: Tensor, x: Tensor) -> Tensor:
        """Round a fresh FP32 result as the layer's own arithmetic does."""
        arithmetic: Any = getattr(self, "arithmetic", None)
        if arithmetic is None:
            return y.to(x.dtype)
        if arithmetic.grid:
            return arithmetic.grid.mark(arithmetic.grid.result(y))
        return y.to(arithmetic.dtype) if arithmetic.low_results else y


@torch.no_grad()
def calibrate(model: VisionTransformer, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The largest magnitude of the input of each layer of the blocks, over some images.

    Args:
        batches: images, float32 [B, C, S, S] each.

    Returns:
        Layer → amax, float32, zero-dimensional.
    """
    amax: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen = inputs[0].detach().abs().amax().float()
            amax[name] = torch.maximum(amax[name], seen) if name in amax else seen

        return look

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in block_layers(model).items()]
    try:
        for images in batches:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return amax


@contextmanager
def quantized(
    model: VisionTransformer,
    scheme: Scheme,
    amax: Mapping[str, Tensor],
    *,
    only: Sequence[str] | None = None,
    weights: Mapping[str, QuantizedWeight] | None = None,
) -> Iterator[dict[str, QuantizedWeight]]:
    """Quantise layers of a model for as long as the context lasts; afterwards the model is as before, bit by bit.

    Args:
        model: changed in place meanwhile.
        amax: from `calibrate`; needed where scales of activations are calibrated.
        only: which layers; None: all of the blocks.
        weights: quantised already, as loaded from a file; None: quantised here.

    Yields:
        Layer → its quantised weight.
    """
    layers = {name: layer for name, layer in block_layers(model).items() if only is None or name in only}
    codes = {name: weights[name] if weights else quantize_weight(layer.weight, scheme) for name, layer in layers.items()}
    before = {name: (layer.__class__, layer.weight.data) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            if not scheme.activations:
                layer.weight.data = codes[name].dequantized()
                continue
            layer.quantized_weight, layer.scheme = codes[name], scheme  # type: ignore[assignment]
            calibrated = scheme.activation_scales == "calibrated"
            layer.input_scale = scale_of(amax[name], scheme.row, "tensor") if calibrated else None  # type: ignore[assignment]
            layer.__class__ = QuantizedLinear
        yield codes
    finally:
        for name, layer in layers.items():
            layer.__class__, layer.weight.data = before[name]
            for attribute in ("quantized_weight", "scheme", "input_scale"):
                layer.__dict__.pop(attribute, None)
