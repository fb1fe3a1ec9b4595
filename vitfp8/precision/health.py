"""Numeric health: what the operands of each converted layer lose, sampled on chosen steps.

For each converted linear layer and each operand (activation, weight, gradient): fraction that underflows (not zero before, zero
after), fraction that saturates, count of non-finite values, amax, SQNR in dB, and the scale, as Transformer Engine's debug
statistics define them. On steps that are not sampled nothing is attached and nothing is paid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vitfp8.precision.formats import round_and_count, sqnr
from vitfp8.precision.fp8_linear import FP8Linear, Observer
from vitfp8.precision.layers import LowPrecisionLinear
from vitfp8.precision.quantizer import Quantized

OPERANDS = ("activation", "weight", "gradient")

#: What is measured of an operand, in the order of a sample's values.
MEASURES = ("underflow", "saturated", "nonfinite", "amax", "sqnr_db", "scale")

#: Elements of an operand on which its fractions and its SQNR are measured, about.
ELEMENTS_MEASURED = 2**19

#: Samples of a layer's operand that are kept; beyond it every second one is dropped, so that a long run's record stays small.
LARGEST_SERIES = 256


def measure(tensor: Tensor, format: str, scale: Tensor | float = 1.0, *, saturate: bool = True) -> Tensor:
    """What an operand loses when it goes onto a format's grid.

    Amax and the count of non-finite values are those of the whole operand. Fractions and SQNR of a large one are measured on
    every k-th row, about `ELEMENTS_MEASURED` elements: all of them would cost more than health may. (Were elements independent, a
    fraction of 1 % would be known to within 0.03 points, two standard errors.)

    Args:
        tensor: the operand in high precision, any shape.
        format: a key of `vitfp8.precision.FORMATS`.
        scale: what it is multiplied with before it is rounded; broadcasts against the tensor.
        saturate: whether the cast saturates (FP8) or overflows to infinity (FP16).

    Returns:
        The values of `MEASURES`, shape [6], float32 on the tensor's device; the scale is the median of its blocks.
    """
    whole = tensor.detach()
    low, high = torch.aminmax(whole)
    amax = torch.maximum(-low, high).float()
    # on a processor a look at amax saves several passes and their memory; elsewhere a look would be waited for
    sound = whole.device.type == "cpu" and bool(amax.isfinite())
    nonfinite = torch.zeros(()) if sound else (~whole.isfinite()).sum()
    stride = -(-whole.numel() // ELEMENTS_MEASURED)
    if stride > 1 and whole.ndim and len(whole) > stride:
        if isinstance(scale, Tensor) and scale.ndim == whole.ndim and len(scale) == len(whole):
            scale = scale[::stride]
        whole = whole[::stride]
    x = whole.float()
    rounded, counts = round_and_count(x * scale, format, saturate)
    finite = torch.where(rounded.isfinite(), rounded, torch.zeros_like(rounded)) / scale
    # made on the device: a number that is copied there one by one makes a sampled step wait
    scales = (
        scale.detach().float().flatten().median()
        if isinstance(scale, Tensor)
        else torch.full((), float(scale), device=whole.device)
    )
    total = max(counts.total, 1)
    values = (counts.underflow / total, counts.saturated / total, nonfinite, amax, sqnr(x, finite), scales)
    return torch.stack([value.to(x.device, torch.float32) for value in values])


class HealthSampler:
    """Samples the operands of a prepared model's linear layers.

    Args:
        model: the model, its precision prepared.
        every: steps between samples; 0: never.
        gradient_scale: gives the loss scale as a scalar tensor on a device, which gradients carry while they are sampled.
    """

    def __init__(self, model: nn.Module, every: int, gradient_scale: Callable[[torch.device], Tensor | None]) -> None:
        self.every = every
        self.layers: dict[str, nn.Module] = {
            name: module for name, module in model.named_modules() if isinstance(module, FP8Linear)
        } or {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, LowPrecisionLinear) and not module.arithmetic.is_fp32
        }
        self._names = list(self.layers)
        self._gradient_scale = gradient_scale
        self._stride = 1
        self._samples: list[tuple[int, int, int, Tensor | tuple[float, ...]]] = []

    def is_due(self, step: int) -> bool:
        """Whether a step is to be sampled.

        Args:
            step: of the whole training, from 0.
        """
        return bool(self.every and self.layers) and step % (self.every * self._stride) == 0

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Sample what happens inside, if `step` is to be sampled.

        Args:
            step: of the whole training, from 0.
        """
        if not self.is_due(step):
            yield
            return
        handles: list[Any] = []
        for index, layer in enumerate(self.layers.values()):
            if isinstance(layer, FP8Linear):
                layer.observer = self._fp8_observer(step, index, layer)
            else:
                handles.append(layer.register_forward_hook(self._forward_hook(step, index)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for layer in self.layers.values():
                if isinstance(layer, FP8Linear):
                    layer.observer = None
            self._thin()

    def _fp8_observer(self, step: int, index: int, layer: FP8Linear) -> Observer:
        """Called by the layer with each operand as it is quantised; operands that are quantised again count once."""
        recipe = layer.recipe
        casts = {"activation": recipe.fprop[0], "weight": recipe.fprop[1], "gradient": recipe.dgrad[0]}

        def observe(operand: str, tensor: Tensor, quantized: Quantized) -> None:
            if operand in casts:
                self._keep(step, index, operand, measure(tensor, casts[operand].format, quantized.scale_of_each()))

        return observe

    def _forward_hook(self, step: int, index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """Measures activation and weight in the forward pass, and the gradient when it comes back."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(module, LowPrecisionLinear)
            format = module.arithmetic.format
            self._keep(step, index, "activation", measure(inputs[0], format, saturate=False))
            self._keep(step, index, "weight", measure(module.weight, format, saturate=False))
            if output.requires_grad:
                output.register_hook(lambda gradient: self._keep_gradient(step, index, format, gradient))

        return hook

    def _keep_gradient(self, step: int, index: int, format: str, gradient: Tensor) -> None:
        """Measure a gradient as it reaches a layer; it carries the loss scale already."""
        values = measure(gradient, format, saturate=False)
        scale = self._gradient_scale(gradient.device)
        if scale is not None:
            values[MEASURES.index("scale")] = scale
        self._keep(step, index, "gradient", values)

    def _keep(self, step: int, index: int, operand: str, values: Tensor) -> None:
        """Keep a sample on the device, where reading it would make the processor wait.

        A processor's are kept as numbers: small tensors that live on between large ones that do not would keep freed memory from
        being joined, and the next steps from using it.
        """
        kept = tuple(values.tolist()) if values.device.type == "cpu" else values
        self._samples.append((step, index, OPERANDS.index(operand), kept))

    def _thin(self) -> None:
        """Drop every second sampled step when a series has become too long."""
        steps = sorted({step for step, *_ in self._samples})
        if len(steps) > LARGEST_SERIES:
            self._stride *= 2
            self._samples = [sample for sample in self._samples if sample[0] % (self.every * self._stride) == 0]

    def _values(self) -> Tensor:
        """The samples' values, [samples, 6] on the processor."""
        values = [v.cpu() if isinstance(v, Tensor) else torch.tensor(v) for *_, v in self._samples]
        return torch.stack(values) if values else torch.empty(0, len(MEASURES))

    def report(self) -> dict[str, Any]:
        """The samples as the record keeps them: names, and columns of equal length. Micro-batches of a step are separate rows."""
        if not self._samples:
            return {}
        values = self._values().tolist()
        columns: dict[str, list[Any]] = {
            "step": [sample[0] + 1 for sample in self._samples],
            "layer": [sample[1] for sample in self._samples],
            "operand": [sample[2] for sample in self._samples],
        }
        for position, name in enumerate(MEASURES):
            columns[name] = [float(f"{row[position]:.6g}") for row in values]
        return {"every": self.every * self._stride, "layers": self._names, "operands": list(OPERANDS), "samples": columns}

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        rows = [(step, layer, operand) for step, layer, operand, _ in self._samples]
        return {"stride": self._stride, "rows": rows, "values": self._values()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._stride = state["stride"]
        self._samples = [(*row, tuple(values.tolist())) for row, values in zip(state["rows"], state["values"], strict=True)]
