"""What a format or recipe does to one layer and one image: the tensors of a layer, their errors, the model's outputs.

    tensors = layer_tensors(model, "blocks.0.mlp.fc1", images, labels)
    format_errors(tensors, ["e4m3", "fp16"]); recipe_errors(tensors, ["tensorwise"], earlier=tensors)

For looking at, by a researcher in a notebook: everything here works on a model in FP32 and leaves it as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitfp8.errors import InputError, suggest
from vitfp8.precision.formats import format_named, round_to_format, sqnr
from vitfp8.precision.health import MEASURES, OPERANDS, measure
from vitfp8.precision.preparation import PRECISIONS, prepare
from vitfp8.precision.quantizer import amax_of, quantize, scale_from_amax
from vitfp8.precision.recipes import Cast, recipe_named

#: Product of a linear layer → its operands with the dimension that it sums over, of matrices shaped as `layer_tensors` says.
_OPERANDS_OF: Mapping[str, tuple[tuple[str, int], tuple[str, int]]] = {
    "fprop": (("activation", 1), ("weight", 1)),
    "dgrad": (("gradient", 1), ("weight", 0)),
    "wgrad": (("gradient", 0), ("activation", 0)),
}


#: The precision whose operands a recipe scales.
_SCALED = next(row.name for row in PRECISIONS.values() if row.scaled)


def grid_points(name: str) -> np.ndarray:
    """Every finite number of a format that is not negative, ascending, float64.

    Args:
        name: a key of `vitfp8.precision.FORMATS`; of 16-bit formats there are about 32,000.

    Raises:
        InputError: the format is unknown, or has too many numbers to list (TF32).
    """
    row = format_named(name)
    if row.bits > 16:
        raise InputError(f"number format {name!r} has too many numbers to list; take one of at most 16 bits")
    if row.exponent_bits == 0:
        return np.arange(row.largest + 1)
    significands = 1 + np.arange(2**row.mantissa_bits) / 2**row.mantissa_bits
    exponents = np.arange(round(np.log2(row.smallest_normal)), row.largest_exponent + 1)
    normal = np.ldexp(significands[None, :], exponents[:, None]).ravel()
    subnormal = np.arange(2**row.mantissa_bits) * row.smallest_subnormal if row.has_zero else np.empty(0)
    return np.concatenate([subnormal, normal[normal <= row.largest]])


def train_briefly(model: nn.Module, batches: Iterable[tuple[Tensor, ...]], learning_rate: float) -> list[float]:
    """A few FP32 steps of AdamW, so that a fresh model has gradients of a model that learns; no experiment.

    Args:
        model: changed in place.
        batches: images ``[B, C, S, S]`` and labels ``[B]``; what follows them is passed over.

    Returns:
        The loss of each step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for images, labels, *_ in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def layer_tensors(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The three tensors that a linear layer multiplies in a training step, in FP32.

    Args:
        model: in FP32; its gradients are as before afterwards.
        layer: dotted name of a linear layer, e.g. ``blocks.0.mlp.fc1``.
        images: ``[B, C, S, S]``.
        labels: ``[B]``; the loss is the mean cross-entropy.

    Returns:
        ``activation`` ``[tokens, in]``, ``weight`` ``[out, in]``, ``gradient`` of the loss with respect to the output
        ``[tokens, out]``; the images' tokens one after the other.

    Raises:
        InputError: the model has no linear layer of that name.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if layer not in linears:
        raise InputError(f"layer: {layer!r}: the model has no such linear layer; {suggest(layer, linears)}")
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["activation"], seen["output"] = inputs[0].detach(), output

    handle = linears[layer].register_forward_hook(keep)
    try:
        loss = F.cross_entropy(model(images), labels)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(loss, seen["output"])
    tensors = {"activation": seen["activation"], "weight": linears[layer].weight.detach(), "gradient": gradient}
    return {name: tensor.reshape(-1, tensor.shape[-1]).clone() for name, tensor in tensors.items()}


def _row(values: Tensor, **where: str) -> dict[str, Any]:
    """One row of a table of errors."""
    return where | dict(zip(MEASURES, values.tolist(), strict=True))


def format_errors(tensors: Mapping[str, Tensor], formats: Sequence[str]) -> list[dict[str, Any]]:
    """What rounding to each format loses of each tensor, unscaled, and scaled so that the amax is the format's largest.

    Args:
        tensors: from `layer_tensors`.
        formats: keys of `vitfp8.precision.FORMATS`.

    Returns:
        Rows with ``format``, ``scaling`` (``unscaled`` or ``scaled``), ``operand``, and `vitfp8.precision.health.MEASURES`.

    Raises:
        InputError: a format is unknown.
    """
    rows = []
    for name in formats:
        number_format = format_named(name)
        for operand in OPERANDS:
            fitting = scale_from_amax(amax_of(tensors[operand]), number_format, "amax")
            for scaling, scale in (("unscaled", torch.ones_like(fitting)), ("scaled", fitting)):
                rows.append(_row(measure(tensors[operand], name, scale), format=name, scaling=scaling, operand=operand))
    return rows


def recipe_errors(
    tensors: Mapping[str, Tensor], recipes: Sequence[str], *, earlier: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """What quantisation by each recipe loses of each operand of the three products.

    Args:
        tensors: from `layer_tensors`.
        recipes: keys of `vitfp8.precision.recipes.RECIPES`.
        earlier: the tensors of the step before, whose amaxes are the history of delayed scaling.

    Returns:
        Rows with ``recipe``, ``product``, ``operand``, ``format``, ``granularity``, and `vitfp8.precision.health.MEASURES`; none
        for a product that stays in high precision.

    Raises:
        InputError: a recipe is unknown.
    """
    rows = []
    for name in recipes:
        for product, casts in recipe_named(name).casts.items():
            if casts is None:
                continue
            for (operand, contracted), cast in zip(_OPERANDS_OF[product], casts, strict=True):
                given = _scale_of(cast, earlier[operand])
                scale = quantize(tensors[operand], cast, contracted=contracted, scale=given).scale_of_each()
                where = {"recipe": name, "product": product, "operand": operand}
                where |= {"format": cast.format, "granularity": cast.granularity}
                rows.append(_row(measure(tensors[operand], cast.format, scale), **where))
    return rows


def _scale_of(cast: Cast, earlier: Tensor) -> Tensor | None:
    """The scale that delayed scaling has from the step before; None for other rules, which need none."""
    return scale_from_amax(amax_of(earlier), cast.number_format, "amax") if cast.rule == "history" else None


def images_in_formats(image: Tensor, formats: Sequence[str]) -> dict[str, Tensor]:
    """An image rounded to each format, its largest element scaled to the format's largest.

    Args:
        image: any shape, float32.
        formats: keys of `vitfp8.precision.FORMATS`.

    Raises:
        InputError: a format is unknown.
    """
    scales = {name: scale_from_amax(amax_of(image), format_named(name), "amax") for name in formats}
    return {name: round_to_format(image * scale, name) / scale for name, scale in scales.items()}


def logits_under(
    model: nn.Module, images: Tensor, names: Sequence[str], *, calibration: Tensor, device: torch.device | None = None
) -> dict[str, Tensor]:
    """The model's outputs under precisions and FP8 recipes, each given to a copy of the model.

    Args:
        model: in FP32.
        images: ``[B, C, S, S]``.
        names: precisions, and names of recipes for FP8 with base precision FP32, so that FP8 alone differs.
        device: where model and images are; None: where the images are.

    Returns:
        Name → logits ``[B, classes]``, FP32; ``fp32`` is always among them.

    Raises:
        InputError: a name is unknown.
    """
    logits = {}
    for name in dict.fromkeys(("fp32", *names)):
        copied = copy.deepcopy(model).train()
        precision, recipe = (name, "tensorwise") if name in PRECISIONS else (_SCALED, name)
        prepare(copied, precision, device=device or images.device, fp8_recipe=recipe, base_precision="fp32")
        if PRECISIONS[precision].scaled and recipe_named(recipe).delayed:
            copied(calibration)
        with torch.no_grad():
            logits[name] = copied.eval()(images).float()
    return logits


def logit_errors(logits: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """How far outputs are from those in FP32.

    Args:
        logits: from `logits_under`.

    Returns:
        Rows with ``name``, ``sqnr_db``, ``largest_change`` of a class probability, and ``changed``, the fraction of predictions
        that differ.
    """
    exact = logits["fp32"]
    rows = []
    for name, found in logits.items():
        change = (found.softmax(dim=-1) - exact.softmax(dim=-1)).abs().max()
        changed = (found.argmax(dim=-1) != exact.argmax(dim=-1)).float().mean()
        rows.append(
            {"name": name, "sqnr_db": float(sqnr(exact, found)), "largest_change": float(change), "changed": float(changed)}
        )
    return rows


def validation_image(batches: Iterable[tuple[Tensor, Tensor]], index: int) -> tuple[Tensor, int]:
    """One image of a split and its class.

    Args:
        batches: images ``[B, C, S, S]`` and labels ``[B]``, in order.
        index: number of the image, from 0.

    Returns:
        The image ``[C, S, S]`` and the number of its class.

    Raises:
        InputError: there are not so many.
    """
    passed = 0
    for images, labels in batches:
        if 0 <= index - passed < len(images):
            return images[index - passed], int(labels[index - passed])
        passed += len(images)
    raise InputError(f"image_index: {index!r}: there are {passed} images; take 0 to {passed - 1}")
