"""What the record says of a model's layers: which of them multiply, and in what format. Seen, not told from their classes.

timm's models have products in many classes, and a class that is not in `REPLACEMENTS` keeps its own arithmetic. So a copy of the
model without memory (on the meta device) computes one image, and every product is put down to the innermost module that runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitfp8.errors import InputError
from vitfp8.precision.layers import Arithmetic, PreciseAttention, replace_layers
from vitfp8.precision.recipes import Recipe

#: What torch calls its products.
_PRODUCTS = frozenset(
    ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear", "convolution", "_convolution",
     "convolution_overrideable")
)  # fmt: skip

#: Name of a module → dtypes of the operands of its own products.
Products = Mapping[str, frozenset[torch.dtype]]


class _Seen(TorchDispatchMode):
    """Puts every product down to the module that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.products: dict[str, frozenset[torch.dtype]] = {}
        self.in_attention = False

    def ended(self, *_: Any) -> None:
        """A module's forward is done."""
        self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _PRODUCTS:
            self.add(args)
        return func(*args, **(kwargs or {}))

    def add(self, operands: Iterable[Any]) -> None:
        """A product of these operands, in the module that is running."""
        dtypes = {operand.dtype for operand in operands if isinstance(operand, torch.Tensor)}
        if len(dtypes) > 1:  # a device would refuse it; without one torch does not look
            raise TypeError(f"a product of {' and '.join(sorted(str(dtype).removeprefix('torch.') for dtype in dtypes))}")
        if not self.in_attention:
            self.products[self.running[-1]] = self.products.get(self.running[-1], frozenset()) | dtypes


class _Attention(TorchFunctionMode):
    """Takes torch's attention for one product: without a device it is written out, and then in FP32 whatever it is given."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.seen.add(args[:3])
        self.seen.in_attention = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.seen.in_attention = False


def products_of(model: nn.Module, arithmetic: Arithmetic) -> Products | None:
    """The modules of a model that multiply; where products are native, with the arithmetic's dtypes. Changes nothing.

    Returns:
        The products; None for another kind of model, whose input is not known.

    Raises:
        InputError: the model does not compute, or a layer that is not known does not take the format of those before it.
    """
    if not isinstance(model, VisionTransformer):
        return None
    stored = [*model.parameters(), *model.buffers()]
    empty = copy.deepcopy(model, {id(each): _on_meta(each) for each in stored}).eval()
    if arithmetic.grid is None:
        replace_layers(empty, arithmetic)
    seen = _Seen()
    for name, module in empty.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: seen.running.append(name))
        module.register_forward_hook(seen.ended)
    channels = next(module.in_channels for module in empty.modules() if isinstance(module, nn.Conv2d))
    image = torch.empty(1, channels, *empty.patch_embed.img_size, device="meta")
    try:
        with torch.no_grad(), _Attention(seen), seen:
            empty(image)
    except Exception as error:  # whatever a model's code raises
        where = seen.running[-1] if seen.running else ""
        layer = f"{where} ({type(empty.get_submodule(where)).__name__})" if where else type(model).__name__
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"model: does not compute in {arithmetic.format.upper()}: {layer}: {why}; take a model of plain layers such as "
            "vit_tiny_patch16_224, or precision: fp32"
        ) from None
    return seen.products


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor without memory."""
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def layer_rows(model: nn.Module, format: str, arithmetic: Arithmetic, products: Products | None) -> list[dict[str, Any]]:
    """One row for each layer that multiplies or is a layer norm: name, type, format, converted, reason.

    Args:
        products: from `products_of`, before the conversion.
    """
    rows = []
    for name, module in model.named_modules():
        reason: str | None = None
        if isinstance(module, nn.LayerNorm):
            kind, has, reason = "LayerNorm", "fp32", "norms stay in FP32, as under CUDA autocast"
        elif products is not None and name not in products:
            continue
        elif isinstance(getattr(module, "recipe", None), Recipe):
            kind, has = "Linear", format
        elif isinstance(getattr(module, "arithmetic", None), Arithmetic):
            has = arithmetic.format
            if isinstance(module, PreciseAttention):
                kind, reason = "attention products", "attention products stay in high precision"
            elif isinstance(module, nn.Linear):
                is_head = name in ("head", "head_dist")
                kind = "Linear"
                reason = (
                    f"{'the classifier head stays' if is_head else 'linear layers outside the blocks stay'} in high precision"
                )
            elif isinstance(module, nn.Conv2d):
                is_patches = name == "patch_embed.proj"
                kind = "Conv2d"
                reason = f"{'the patch embedding stays' if is_patches else 'convolutions stay'} in high precision"
            else:
                continue
        elif products is not None or isinstance(module, (nn.Linear, nn.Conv2d)):
            own = products[name] if products else frozenset({torch.float32})
            kind, has, reason = type(module).__name__, _own_format(own, arithmetic), "its class is not known here"
        else:
            continue
        converted = has == format
        rows.append({"name": name, "type": kind, "format": has, "converted": converted, "reason": None if converted else reason})
    return rows


def _own_format(dtypes: frozenset[torch.dtype], arithmetic: Arithmetic) -> str:
    """The format of the products of a layer that was not replaced: emulation does not reach it, a native dtype may."""
    if arithmetic.grid is not None:
        return "fp32"
    names = {arithmetic.format if dtype == arithmetic.dtype else "fp32" for dtype in dtypes}
    return "/".join(sorted(names))
