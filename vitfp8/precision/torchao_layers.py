"""Native FP8 through torchao: its float8 linear layers, with our layer list, our recipe names and exact accumulation.

torchao's layer quantises and multiplies on the hardware, and fuses both under ``torch.compile``. Two of its defaults are changed,
so that native and emulated runs are the same experiment: fast accumulation is off in all three products (see `fp8_linear`), and
layers are chosen by name, since torchao's automatic filter chooses by speed and rejects every layer of ViT-Tiny. Delayed scaling
is not among torchao's recipes any more; it runs natively by ``torch._scaled_mm``, which torchao calls as well.

What torchao decides otherwise at degenerate amaxes is listed in docs/precision.md.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from vitfp8.precision.recipes import Recipe

#: Recipes that torchao has under the same name and that mean the same there.
TORCHAO_RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")


def torchao_version() -> str | None:
    """The installed version of torchao; None when there is none."""
    return importlib.metadata.version("torchao") if importlib.util.find_spec("torchao") else None


def convert_with_torchao(model: nn.Module, names: Collection[str], recipe: Recipe, dtype: torch.dtype) -> None:
    """Put torchao's float8 layers, which share the parameters, in place of the named linear layers.

    Each gets an attribute ``recipe``, as `vitfp8.precision.fp8_linear.FP8Linear` has it.

    Args:
        model: converted in place.
        names: of the linear layers to convert.
        recipe: one of `TORCHAO_RECIPES`.
        dtype: of the base format: inputs are cast to it, as autocast would do it, and outputs come in it.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    from torchao.float8.config import Float8GemmConfig

    exact = Float8GemmConfig(use_fast_accum=False)
    config = dataclasses.replace(
        Float8LinearConfig.from_recipe_name(recipe.name),
        gemm_config_output=exact,
        gemm_config_grad_input=exact,
        gemm_config_grad_weight=exact,
    )
    chosen = set(names)
    convert_to_float8_training(model, module_filter_fn=lambda _module, name: name in chosen, config=config)
    for name in chosen:
        layer = model.get_submodule(name)
        layer.recipe = recipe  # type: ignore[assignment]
        layer.register_forward_pre_hook(_cast_to(dtype))


def _cast_to(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor, ...]]:
    """A hook that casts a layer's input."""

    def cast(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].to(dtype),)

    return cast
