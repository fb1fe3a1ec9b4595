"""FP8 training of linear layers: three products on the FP8 grid, everything else as it was.

What
    A linear layer spends its time in three matrix products. With x of shape (tokens, in), the weight W of shape (out, in) and the
    gradient g of shape (tokens, out):

        fprop   output          = x · Wᵀ       sums over in
        dgrad   input gradient  = g · W        sums over out
        wgrad   weight gradient = gᵀ · x       sums over tokens

    FP8 training quantises both operands of each product and multiplies what is left. Parameters stay in FP32 (the
    optimizer's master weights), and so do the weight gradients that it sees; bias, output and input gradient are in the
    *base format*, BF16 or FP32, which is what everything outside these products follows as well.

Which format where
    Activations and weights need precision and go to E4M3 (3 mantissa bits, largest 448). Gradients need range and go to E5M2
    (2 mantissa bits, largest 57344) under per-tensor scales; recipes with finer scales need no range and use E4M3 throughout.
    Recipes are rows of `vitfp8.precision.recipes.RECIPES`.

In which order
    1. The input is cast to the base format, as autocast would do it. The weight is quantised from its FP32 master.
    2. Each operand is scaled in FP32 and rounded to the grid, ties to even, saturating. An operand of two products is
       quantised once where its blocks are the same for both (per-tensor scales, 128×128 tiles), else twice, each time from high
       precision and along the dimension that the product sums over.
    3. The grid values are multiplied. A product of two FP8 values is exact in FP32, and every FP8 value is exact in BF16,
       so a BF16 product with FP32 accumulation is *the* FP8 product, and so is an FP32 or TF32 one: they differ in the
       order of summation only.
    4. The sum is descaled once. Per-tensor scales: by 1/(scaleₐ·scale_b), applied to the FP32 sum before its only
       rounding to the base format (``alpha`` of BLAS; it costs nothing). Power-of-two scales: before the product, since
       grid value ÷ power of two is exact in BF16 and FP32; the product then needs no descaling whatever the block shape,
       and its sum is the exact block-scaled sum.
    5. The bias is added in the base format (a second rounding, as torchao does it; its gradient is the column sum of g).
    6. The weight gradient is rounded to the base format like every product, then handed over as FP32.

    Dequantising under a scale that is not a power of two *before* the product would not do: operands would need more than FP8's
    bits, and BF16 or TF32 would round them again.

What this does not model
    Fast accumulation. An H100's FP8 units keep about 14 bits of the running sum unless it is promoted in between; the emulation
    accumulates in FP32, like ``use_fast_accum=False`` with promotion. The native backend here asks for that, too.

Backends
    ``emulated`` runs anywhere. Its products are BF16 or FP32 (`FP8Linear.product_dtype`), whichever the processor is fast
    at; both are exact on the grid. The quantisers are a compiled routine where there is a compiler
    (`vitfp8.precision.rounding`) and eager PyTorch elsewhere, with the same bits. ``native`` stores the operands in
    FP8 dtypes and calls ``torch._scaled_mm`` (`vitfp8.precision.native_products`): NVIDIA hardware with FP8
    products, and, except for MX, PyTorch's reference on a processor, by which the tests compare both. Native delayed
    scaling moves on at the end of the backward pass, emulated with each operand; then their state is the same. Ask
    `vitfp8.precision.capability.native_support` first.

What was decided against
    Caching the quantised weight between passes: the weights are 2 % of what a step quantises (ViT-Ti, batch 128), and a
    cache keyed by a tensor's version misses writes through ``.data``. A subclass of ``Tensor`` that carries its scale, as
    torchao has it: one ``autograd.Function`` says the same in a page.

Sources: Micikevicius et al. 2022 (arXiv 2209.05433); NVIDIA Transformer Engine; pytorch/ao ``torchao.float8``; DeepSeek-V3 (arXiv
2412.19437) for blocks; OCP Microscaling Formats v1.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitfp8.errors import InputError, suggest
from vitfp8.precision import native_products
from vitfp8.precision.capability import NATIVE_CAPABILITY, has_native_products
from vitfp8.precision.native_products import no_autocast
from vitfp8.precision.quantizer import AmaxHistory, Quantized, quantize
from vitfp8.precision.recipes import Cast, Recipe, recipe_named

Observer = Callable[[str, Tensor, Quantized], None]
"""Called with (operand, high-precision tensor, what it became).

The operand is ``activation``, ``weight`` or ``gradient``, and ``activation:wgrad``, ``weight:dgrad`` or
``gradient:wgrad`` when a recipe quantises it again for its other product.
"""

BASE_FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""Base format → dtype of outputs and input gradients."""

BACKENDS = ("emulated", "native")


class FP8Linear(nn.Linear):
    """``nn.Linear`` whose three products run in FP8. Parameters and their names are those of ``nn.Linear``.

    Delayed scaling adds buffers (``activation_history.history`` and ``.scale``, and so on for ``weight`` and ``gradient``), which
    the state dict carries. Its scales move on in training passes only; in evaluation they are used as they are.

    Attributes:
        recipe: the row of the recipe table.
        base_format: ``bf16`` or ``fp32``.
        product_dtype: what multiplies: ``bf16``, ``fp32``, or ``fp8`` on the native backend. For the record.
        backend: ``emulated`` or ``native``.
        observer: None, or called with each operand as it is quantised; see `Observer`. It costs nothing while None.
        largest: of native layers: float32 [3], the largest numbers of activation's, weight's and gradient's formats.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        recipe: str = "tensorwise",
        base_format: str = "bf16",
        product_dtype: str = "auto",
        backend: str = "emulated",
    ) -> None:
        """As ``nn.Linear``; see `from_linear` for the rest."""
        super().__init__(in_features, out_features, bias, device, dtype)
        self.recipe: Recipe = recipe_named(recipe)
        self.base_format = base_format
        self.backend = backend
        self.observer: Observer | None = None
        _check_choice("base_precision", base_format, BASE_FORMATS)
        _check_choice("backend", backend, BACKENDS)
        if backend == "native" and self.recipe.name not in NATIVE_CAPABILITY:
            raise InputError(f"fp8_recipe {self.recipe.name} has no native path; use backend=emulated")
        if backend == "native" and base_format == "fp32" and not self.recipe.one_scale:
            raise InputError(f"fp8_recipe {self.recipe.name} gives BF16 results natively; use base_precision=bf16")
        self.product_dtype = "fp8" if backend == "native" else _product_dtype(product_dtype, base_format, self.weight.device)
        self._container = BASE_FORMATS.get(self.product_dtype, torch.float32)
        self.largest: Tensor
        if self.recipe.delayed:
            gradient, activation = self.recipe.dgrad[0], self.recipe.fprop[0]
            for operand, cast in (("activation", activation), ("weight", self.recipe.fprop[1]), ("gradient", gradient)):
                history = AmaxHistory(self.recipe.history_length, cast.number_format, self.recipe.margin)
                self.add_module(f"{operand}_history", history.to(device))
        self._put_largest(self.weight.device)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        recipe: str,
        base_format: str = "bf16",
        product_dtype: str = "auto",
        backend: str = "emulated",
    ) -> FP8Linear:
        """An FP8 layer that shares the parameters of a given one.

        Args:
            linear: with FP32 parameters.
            recipe: a key of `vitfp8.precision.recipes.RECIPES`.
            base_format: ``bf16`` or ``fp32``: format of output, bias addition and input gradient.
            product_dtype: ``auto`` (BF16 where base format and processor have it), ``bf16`` or ``fp32``: what multiplies the grid
                values. ``bf16`` needs the base format ``bf16``, since its results come in BF16.
            backend: ``emulated``, or ``native`` where `native_support` says so.

        Raises:
            InputError: an argument is unknown, or the combination cannot be had.
        """
        device = linear.weight.device
        with torch.device("meta"):
            layer = cls(
                linear.in_features, linear.out_features, linear.bias is not None,
                recipe=recipe, base_format=base_format, product_dtype="fp32", backend=backend,
            )  # fmt: skip
        layer.weight, layer.bias = linear.weight, linear.bias
        if backend == "emulated":
            layer.product_dtype = _product_dtype(product_dtype, base_format, device)
            layer._container = BASE_FORMATS[layer.product_dtype]
        for history in layer.histories():
            history.to_empty(device=device)
            history.reset()
        layer._put_largest(device)
        return layer.train(linear.training)

    def _put_largest(self, device: torch.device) -> None:
        """Keep the largest numbers of the operands' formats on the device, where native scales are computed."""
        if self.backend == "native":
            largest = [
                cast.number_format.largest / 2.0**self.recipe.margin for cast in (*self.recipe.fprop, self.recipe.dgrad[0])
            ]
            self.register_buffer("largest", torch.tensor(largest, device=device), persistent=False)

    def history_of(self, operand: str) -> AmaxHistory | None:
        """Delayed scaling's state for an operand; None in other recipes."""
        history = self._modules.get(f"{operand}_history")
        return history if isinstance(history, AmaxHistory) else None

    def histories(self) -> list[AmaxHistory]:
        """Delayed scaling's state for activation, weight and gradient; empty in other recipes."""
        return [module for module in self._modules.values() if isinstance(module, AmaxHistory)]

    def forward(self, input: Tensor) -> Tensor:
        """The layer.

        Args:
            input: floating point, shape (…, in_features).

        Returns:
            Shape (…, out_features), in the base format.
        """
        if self.backend == "emulated":
            return self._emulated(input)
        x = input.to(BASE_FORMATS[self.base_format])
        with no_autocast(x.device.type):
            out = native_products.linear(x.reshape(-1, self.in_features), self)
        return out.view(*x.shape[:-1], self.out_features)

    # Opaque to torch.compile, which would fuse what must be rounded one operation at a time, and cannot see the compiled
    # routine; the model around the layers is compiled all the same.
    @torch.compiler.disable
    def _emulated(self, input: Tensor) -> Tensor:
        """`forward` on a format's grid."""
        x = input.to(BASE_FORMATS[self.base_format])
        rows = x.reshape(-1, self.in_features)
        learns = torch.is_grad_enabled()
        with no_autocast(x.device.type):
            out = _ThreeProducts.apply(rows, self.weight, self.bias, self, learns)
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """The layer's shape and how it multiplies."""
        return (
            f"{super().extra_repr()}, recipe={self.recipe.name}, base_format={self.base_format}, "
            f"product_dtype={self.product_dtype}, backend={self.backend}"
        )

    def quantize_operand(self, operand: str, tensor: Tensor, cast: Cast, contracted: int, updates: bool) -> Quantized:
        """Quantise an operand of a product, move delayed scaling on, and tell the observer.

        Args:
            operand: as in `Observer`.
            tensor: matrix in high precision.
            contracted: the dimension that the product sums over.
        """
        history, container = self.history_of(operand), self._container
        if history is not None:
            # A copy, since the update below is in place and the scale is needed until the backward pass.
            scale = float(history.scale) if tensor.device.type == "cpu" else history.scale.clone()
            quantized = quantize(tensor, cast, contracted=contracted, container=container, scale=scale)
            if updates and quantized.amax is not None:
                history.update(quantized.amax)
        else:
            quantized = quantize(tensor, cast, contracted=contracted, container=container)
        if self.observer is not None:
            self.observer(operand, tensor.detach(), quantized)
        return quantized


class _ThreeProducts(torch.autograd.Function):
    """fprop, dgrad and wgrad of one emulated layer; see the module docstring for the order of operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: FP8Linear, learns: bool) -> Tensor:
        recipe = layer.recipe
        # Under no_grad an input still says that it requires a gradient.
        needs_x, needs_weight = (learns and needs for needs in ctx.needs_input_grad[:2])
        updates = learns and layer.training
        activation = layer.quantize_operand("activation", x, recipe.fprop[0], 1, updates)
        weight_out = layer.quantize_operand("weight", weight, recipe.fprop[1], 1, updates)
        out = _product(activation, weight_out, (False, True), layer)
        if bias is not None:
            out += bias.to(out.dtype)

        # Kept for the backward pass: operands in the form in which it multiplies them, so that the input itself can be freed.
        weight_back: Quantized | None = None
        activation_back: Quantized | Tensor | None = None
        if needs_x:
            weight_back = _again(layer, "weight:dgrad", weight, weight_out, recipe.fprop[1], recipe.dgrad[1])
        if needs_weight:
            activation_back = x
            if recipe.wgrad is not None:
                activation_back = _again(layer, "activation:wgrad", x, activation, recipe.fprop[0], recipe.wgrad[1])
        ctx.layer = layer
        _save(ctx, weight_back, activation_back)
        ctx.dtypes = (weight.dtype, bias.dtype if bias is not None else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        layer: FP8Linear = ctx.layer
        recipe = layer.recipe
        weight, activation = _saved(ctx)
        gradient = gradient.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_bias = None
        with no_autocast(gradient.device.type):
            along_out: Quantized | None = None
            if needs_x:
                along_out = layer.quantize_operand("gradient", gradient, recipe.dgrad[0], 1, True)
                grad_x = _product(along_out, weight, (False, False), layer)
            if needs_weight:
                along_tokens: Quantized | Tensor
                if recipe.wgrad is None:
                    along_tokens = gradient
                elif along_out is None:
                    along_tokens = layer.quantize_operand("gradient", gradient, recipe.wgrad[0], 0, True)
                else:
                    along_tokens = _again(layer, "gradient:wgrad", gradient, along_out, recipe.dgrad[0], recipe.wgrad[0])
                grad_weight = _product(along_tokens, activation, (True, False), layer).to(ctx.dtypes[0])
            if needs_bias:
                grad_bias = gradient.sum(0).to(ctx.dtypes[1])
        return grad_x, grad_weight, grad_bias, None, None


def _save(ctx: Any, *operands: Quantized | Tensor | None) -> None:
    """Keep operands where autograd can see their tensors, so that checkpointing and offloading can take hold of them."""
    tensors: list[Tensor | None] = []
    ctx.quantized = []
    for operand in operands:
        if isinstance(operand, Quantized):
            scale = operand.scale if isinstance(operand.scale, Tensor) else None
            tensors += [operand.values, scale]
            ctx.quantized.append((operand.block, operand.dequantized, None if scale is not None else operand.scale))
        else:
            tensors += [operand, None]
            ctx.quantized.append(None)
    ctx.save_for_backward(*tensors)


def _saved(ctx: Any) -> list[Any]:
    """What `_save` kept."""
    tensors = ctx.saved_tensors
    operands: list[Any] = []
    for values, scale, quantized in zip(tensors[::2], tensors[1::2], ctx.quantized, strict=True):
        if quantized is None:
            operands.append(values)
        else:
            block, dequantized, number = quantized
            kept = number if scale is None else scale
            operands.append(Quantized(values=values, scale=kept, block=block, dequantized=dequantized))
    return operands


def _again(layer: FP8Linear, operand: str, tensor: Tensor, first: Quantized, before: Cast, cast: Cast) -> Quantized:
    """An operand for its second product: as it is where the blocks are the same, else quantised along the other dimension."""
    if cast == before and cast.orientation_free:
        return first
    return layer.quantize_operand(operand, tensor, cast, 0, False)


def _product(a: Quantized | Tensor, b: Quantized | Tensor, transposed: tuple[bool, bool], layer: FP8Linear) -> Tensor:
    """One emulated product, descaled, in the base format.

    Args:
        a: left operand; a tensor if it stays in high precision.
    """
    base = BASE_FORMATS[layer.base_format]
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        left, right = (m.t() if flip else m for m, flip in zip((a, b), transposed, strict=True))
        return (left.to(layer._container) @ right.to(layer._container)).to(base)
    left, right = (m.values.t() if flip else m.values for m, flip in zip((a, b), transposed, strict=True))
    if a.dequantized:
        return (left @ right).to(base)
    if left.device.type == "cpu":
        descale = 1.0 / (float(a.scale) * float(b.scale))
        return torch.addmm(left.new_zeros(()), left, right, beta=0, alpha=descale).to(base)
    # Elsewhere alpha would make the processor wait for the scales; so the sum comes out in FP32 and is descaled there.
    wide_sum = torch.mm(left, right, out_dtype=torch.float32) if left.dtype != torch.float32 else left @ right
    return wide_sum.div_(a.scale).div_(b.scale).to(base)


def _check_choice(key: str, value: str, known: Any) -> None:
    if value not in known:
        raise InputError(f"{key} {value!r} is unknown; {suggest(value, known)}")


def _product_dtype(wanted: str, base_format: str, device: torch.device) -> str:
    """What multiplies grid values on a device: ``bf16`` or ``fp32``."""
    _check_choice("product_dtype", wanted, ("auto", *BASE_FORMATS))
    if wanted == "bf16" and base_format != "bf16":
        raise InputError("product_dtype bf16 rounds results to BF16; it needs base_precision=bf16")
    if wanted != "auto":
        return wanted
    if base_format != "bf16" or device.type not in ("cpu", "cuda"):
        return "fp32"
    return "bf16" if has_native_products("bf16", device)[0] else "fp32"
