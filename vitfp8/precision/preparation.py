"""What a precision is (one row), whether the machine has it, and the one verb that gives it to a model: `prepare`.

No other room names a dtype. The trainer gets a `PreparedPrecision`, calls `backward` and `step`, and stores its
`report` in the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitfp8.catalog import PRECISIONS as PRECISION_NAMES
from vitfp8.errors import InputError
from vitfp8.precision.capability import has_native_products, native_support, set_tf32
from vitfp8.precision.fp8_linear import FP8Linear
from vitfp8.precision.health import HealthSampler
from vitfp8.precision.layers import Arithmetic, attention_kernel, replace_layers
from vitfp8.precision.native_products import divisor
from vitfp8.precision.recipes import Recipe, recipe_named
from vitfp8.precision.rows import layer_rows, products_of

#: Below this loss scale FP16 training has collapsed: gradients overflow although they are not scaled up at all.
SMALLEST_LOSS_SCALE = 1.0


@dataclass(frozen=True, kw_only=True)
class PrecisionRow:
    """One precision.

    Attributes:
        name: as parameter files call it.
        format: format of the operands of products.
        dtype: the dtype that holds it natively.
        low_results: whether products give results in the format (FP16, BF16) or FP32 (TF32, FP32).
        tf32: what the TF32 switches are set to.
        loss_scaling: whether gradients need dynamic loss scaling.
        scaled: whether operands are scaled into an 8-bit format by a recipe; the rest of the model follows a base precision.
    """

    name: str
    format: str
    dtype: torch.dtype
    low_results: bool = True
    tf32: bool = False
    loss_scaling: bool = False
    scaled: bool = False


_ROWS = (
    PrecisionRow(name="fp32", format="fp32", dtype=torch.float32, low_results=False),
    PrecisionRow(name="tf32", format="tf32", dtype=torch.float32, low_results=False, tf32=True),
    PrecisionRow(name="bf16", format="bf16", dtype=torch.bfloat16),
    PrecisionRow(name="fp16", format="fp16", dtype=torch.float16, loss_scaling=True),
    PrecisionRow(name="fp8", format="fp8", dtype=torch.float8_e4m3fn, scaled=True),
)

#: Precision → its row. A new precision is a row here, its name in `vitfp8.catalog`, and its tests.
PRECISIONS: Mapping[str, PrecisionRow] = {row.name: row for row in _ROWS}
assert set(PRECISIONS) == set(PRECISION_NAMES), "vitfp8.catalog and vitfp8.precision name different precisions"


def choose_backend(
    requested: str,
    device: torch.device,
    backend: str = "auto",
    *,
    recipe: str = "tensorwise",
    base: str = "bf16",
) -> tuple[str, str]:
    """``native`` or ``emulated``, and the reason; refuses what the parameters do not allow.

    Args:
        requested: a key of `PRECISIONS`.
        backend: ``auto``, ``native`` or ``emulated``.
        recipe: how FP8 scales its operands.
        base: what everything outside the FP8 products follows.

    Raises:
        InputError: native products were demanded and the device has none, or emulation makes no sense.
    """
    row = PRECISIONS[requested]
    if row.scaled:
        has, reason = native_support(recipe, device, base_format=base)
    else:
        has, reason = has_native_products(row.format, device)
    if backend == "emulated":
        if row.format == "fp32":
            raise InputError("backend: 'emulated': FP32 is never emulated; take backend: auto")
        return "emulated", "as the parameters ask"
    if has:
        return "native", reason
    if backend == "native":
        raise InputError(f"backend: 'native': {reason}, so {requested} cannot be native on {device.type}; take backend: auto")
    return "emulated", reason


# --------------------------------------------------------------------------------------------------------- preparing


@dataclass(kw_only=True)
class PreparedPrecision:
    """A model's effective precision, and the two verbs that a training step needs.

    Attributes:
        report: what the record states: requested, effective, backend, reason, product_dtype, evaluation, loss_scaling,
            switches, layers.
        scaler: the dynamic loss scaler; None where none is needed.
        health: samples what the converted layers lose.
    """

    report: dict[str, Any]
    scaler: torch.amp.GradScaler | None
    health: HealthSampler = field(init=False)
    _skipped: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._skipped = torch.zeros((), dtype=torch.int64)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a scalar loss, scaled where the precision needs it."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
        """Unscale, clip, step; with overflowed gradients the step is skipped and the scale halved.

        Args:
            max_norm: largest gradient norm; None: the norm is only measured.

        Returns:
            The gradient norm before clipping, a scalar on the device (not finite when the step was skipped).
        """
        if self.scaler:
            self.scaler.unscale_(optimizer)
        parameters = list(parameters)
        norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        if self.scaler is None:
            optimizer.step()
        else:
            before = self._scale_on(norm.device)
            self.scaler.step(optimizer)
            self.scaler.update()
            # counted on the device: reading the scale would make the processor wait for the GPU
            self._skipped = self._skipped.to(norm.device) + (self._scale_on(norm.device) < before)
        return norm

    def _scale_on(self, device: torch.device) -> Tensor:
        """The loss scale as a scalar tensor on the device."""
        assert self.scaler is not None
        scaled = self.scaler.scale(torch.ones((), device=device))
        assert isinstance(scaled, Tensor)
        return scaled.clone()

    def loss_scale_on(self, device: torch.device) -> Tensor | None:
        """The loss scale as a scalar tensor on a device, without waiting for it; None without loss scaling."""
        return self._scale_on(device) if self.scaler else None

    def loss_scale_tensor(self) -> Tensor | None:
        """The loss scale as a scalar tensor, without waiting for the device; None without loss scaling."""
        return self.loss_scale_on(self._skipped.device)

    def loss_scale(self) -> float | None:
        """The loss scale; None without loss scaling. Waits for the device."""
        return float(self.scaler.get_scale()) if self.scaler else None

    def skipped_steps(self) -> int | None:
        """Steps skipped so far because a gradient overflowed; None without loss scaling. Waits for the device."""
        return int(self._skipped) if self.scaler else None

    def collapsed(self) -> bool:
        """Whether the loss scale has fallen so low that training cannot go on."""
        scale = self.loss_scale()
        return scale is not None and scale < SMALLEST_LOSS_SCALE

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        scaler = self.scaler.state_dict() if self.scaler else {}
        return {"scaler": scaler, "skipped": int(self._skipped), "health": self.health.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self._skipped = torch.tensor(state["skipped"], dtype=torch.int64)
        self.health.load_state_dict(state["health"])


def _fp8_candidates(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that FP8 converts: the linear layers of the blocks. Embedding and head stay in high precision, as published."""
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear and name.startswith("blocks.")}


def _convert_to_fp8(model: nn.Module, recipe: Recipe, base: str, backend: str) -> str:
    """Put FP8 layers, which share the parameters, in place of the candidates; returns the dtype that multiplies."""
    product_dtype = ""
    for name, linear in _fp8_candidates(model).items():
        layer = FP8Linear.from_linear(linear, recipe=recipe.name, base_format=base, backend=backend)
        model.set_submodule(name, layer)
        product_dtype = layer.product_dtype
    return product_dtype


def _arithmetic(requested: str, device: torch.device, backend: str, base_precision: str) -> Arithmetic:
    """How everything but FP8 products is computed."""
    row = PRECISIONS[requested]
    base, asked = (PRECISIONS[base_precision], "auto") if row.scaled else (row, backend)
    emulated = choose_backend(base.name, device, asked)[0] == "emulated"
    dtype = torch.float32 if emulated else base.dtype
    return Arithmetic(format=base.format, dtype=dtype, on_grid=emulated, low_results=base.low_results)


def check_layers(model: nn.Module, requested: str, *, device: torch.device, backend: str, base_precision: str) -> None:
    """Refuse a model that does not compute in a precision: a layer that is not known may not take the format before it.

    Args:
        requested: a key of `PRECISIONS`.
        backend: see `choose_backend`.
        base_precision: see `prepare`.

    Raises:
        InputError: one line with a way out.
    """
    products_of(model, _arithmetic(requested, device, backend, base_precision))


def prepare(
    model: nn.Module,
    requested: str,
    *,
    device: torch.device,
    backend: str = "auto",
    loss_scale: float = 2.0**16,
    loss_scale_interval: int = 2000,
    fp8_recipe: str = "tensorwise",
    base_precision: str = "bf16",
    rows: int = 16,
    health_every: int = 0,
) -> PreparedPrecision:
    """Give a model a precision, in place, and say what really runs.

    Args:
        model: a timm Vision Transformer on `device`, in FP32.
        requested: a key of `PRECISIONS`.
        backend: ``auto``, ``native`` or ``emulated``; see `choose_backend`.
        loss_scale: the first loss scale, where the precision needs one.
        loss_scale_interval: good steps until it is doubled.
        fp8_recipe: how FP8 scales its operands; see `vitfp8.precision.recipes`.
        base_precision: what everything outside the FP8 products follows.
        rows: batch × tokens of a step; the report says where native FP8 products pad them.
        health_every: steps between samples of numeric health; 0: never.

    Returns:
        What the trainer needs and the record states.

    Raises:
        InputError: the device cannot do what the parameters demand.
    """
    row = PRECISIONS[requested]
    report: dict[str, Any] = {"requested": requested, "effective": row.format}
    chosen, reason = choose_backend(requested, device, backend, recipe=fp8_recipe, base=base_precision)
    report |= {"backend": chosen, "reason": reason}
    base = PRECISIONS[base_precision] if row.scaled else row
    arithmetic = _arithmetic(requested, device, backend, base_precision)
    base_emulated = arithmetic.grid is not None
    switches = set_tf32(base.tf32 and not base_emulated)
    products = products_of(model, arithmetic)
    product_dtype = str(arithmetic.dtype).removeprefix("torch.")
    if row.scaled:
        recipe = recipe_named(fp8_recipe)
        report |= {"recipe": recipe.name, "base": base.format, "base_backend": "emulated" if base_emulated else "native"}
        product_dtype = _convert_to_fp8(model, recipe, base.format, chosen)
        if chosen == "native":
            missing = -rows % divisor(recipe)
            padding = f"; {rows} rows are padded to {rows + missing}" if missing else ""
            report["reason"] = f"{reason}; without fast accumulation{padding}"
    replace_layers(model, arithmetic)
    report |= {
        "product_dtype": product_dtype,
        "evaluation": f"{row.format}, as in training",
        "loss_scaling": "dynamic" if row.loss_scaling else None,
        "switches": switches,
        "attention": attention_kernel(model, arithmetic, device),
        "layers": layer_rows(model, row.format, arithmetic, products),
    }
    scaler = None
    if row.loss_scaling:
        scaler = torch.amp.GradScaler(device.type, init_scale=loss_scale, growth_interval=loss_scale_interval)
    prepared = PreparedPrecision(report=report, scaler=scaler)
    prepared.health = HealthSampler(model, health_every, prepared.loss_scale_on)
    return prepared
