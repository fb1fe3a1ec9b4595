"""Every layer that multiplies has a row, and the row is true: held to the operands of real products, put down to modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vitfp8.errors import InputError
from vitfp8.model import check_model
from vitfp8.params import RunParams
from vitfp8.precision import has_native_products, prepare
from vitfp8.precision.layers import Arithmetic
from vitfp8.precision.rows import products_of

CPU = torch.device("cpu")
SMALL = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2}

#: timm's models with products in classes of many kinds.
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "vit_small_patch16_36x1_224": SMALL,
    "vit_small_patch14_reg4_dinov2": SMALL | {"img_size": 28},
    "vit_giant_patch14_dinov2": SMALL | {"img_size": 28},  # gated MLP
    "vit_dwee_patch16_reg1_gap_256": SMALL,  # DiffAttention
    "test_vit3": {"img_size": 32},  # AttentionPoolLatent
    "vit_base_patch16_siglip_224": SMALL,
    "vit_tiny_r_s16_p8_224": SMALL | {"img_size": 64},  # StdConv2d
    "vit_base_patch16_xp_224": SMALL,  # ParallelScalingBlock
    "vit_small_patch16_18x2_224": SMALL,  # ParallelThingsBlock
}


class Operands(TorchDispatchMode):
    """The operands of every product, with the innermost module that was called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.seen: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.calls.append(name))
            module.register_forward_hook(lambda *_: self.left())

    def left(self) -> None:
        """A module returns."""
        self.calls.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name in ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn_convolution") or "dot_product" in name:
            self.seen.setdefault(self.calls[-1], []).extend(a.clone() for a in args if isinstance(a, Tensor) and a.dim() > 1)
        result = func(*args, **(kwargs or {}))
        if "dot_product" in name:  # the fused kernel keeps the operands of its second product to itself: its result tells
            self.seen[self.calls[-1]].append(result[0].clone())
        return result


def on_grid(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether every value is one of the format's."""
    return bool((tensor == tensor.to(dtype).float()).all())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_each_layer_that_multiplies_has_a_row_that_is_true(name: str, precision: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **MODELS[name]).eval()
    for parameter in model.parameters():  # zeros, as some are at first, are on every grid
        nn.init.normal_(parameter, std=0.1)
    rows = {row["name"]: row for row in prepare(model, precision, device=CPU, backend="emulated").report["layers"]}
    size = model.patch_embed.img_size[0]
    with torch.no_grad(), Operands(model) as operands:
        model(torch.randn(2, 3, size, size))
    assert set(operands.seen) <= set(rows), "a module multiplies and has no row"
    assert {each for each, row in rows.items() if row["type"] != "LayerNorm"} == set(operands.seen)
    for layer, tensors in operands.seen.items():
        row = rows[layer]
        assert row["converted"] == all(on_grid(tensor, dtype) for tensor in tensors), (layer, row)
        assert row["format"] == (precision if row["converted"] else "fp32"), (layer, row)
        assert row["converted"] or row["reason"] == "its class is not known here", (layer, row)


def test_in_fp8_only_the_head_is_called_the_head_and_unknown_layers_are_said_to_be_unknown() -> None:
    model = timm.create_model("test_vit3", num_classes=10, img_size=32)
    rows = {row["name"]: row for row in prepare(model, "fp8", device=CPU, backend="emulated").report["layers"]}
    assert [name for name, row in rows.items() if row["reason"] == "the classifier head stays in high precision"] == ["head"]
    assert rows["attn_pool.q"]["reason"] == "linear layers outside the blocks stay in high precision"
    assert rows["attn_pool"] == {
        "name": "attn_pool", "type": "AttentionPoolLatent", "converted": False, "reason": "its class is not known here",
        "format": "bf16" if has_native_products("bf16", CPU)[0] else "fp32",  # the base format, where it is native
    }  # fmt: skip
    assert rows["blocks.0.mlp.fc1"]["format"] == "fp8" and rows["blocks.0.mlp.fc1"]["converted"]


class OwnLinear(nn.Linear):
    """A linear layer of a class that is not known."""


def test_natively_an_unknown_layer_has_the_format_that_reaches_it_or_the_model_is_refused() -> None:
    native = Arithmetic(format="bf16", dtype=torch.bfloat16, on_grid=False, low_results=True)
    pooled = products_of(timm.create_model("test_vit3", img_size=32), native)
    assert pooled is not None and pooled["attn_pool"] == {torch.bfloat16}
    model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    model.blocks[0].mlp.fc2.__class__ = OwnLinear  # behind a layer that gives BF16
    with pytest.raises(InputError, match=r"BF16: blocks\.0\.mlp\.fc2 \(OwnLinear\).*take a model") as refused:
        products_of(model, native)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["vit_base_patch16_xp_224", "vit_small_patch16_18x2_224", "vit_base_mci_224"])
def test_models_of_other_blocks_are_refused_on_one_line(name: str, smoke_params: Callable[..., RunParams]) -> None:
    sizes = {"image_size": 224, "patch_size": None, "embed_dim": None, "depth": 2, "num_heads": None}
    with pytest.raises(InputError, match="model: .*take a model such as vit_tiny_patch16_224|takes these sizes") as refused:
        check_model(smoke_params(model=name, **sizes), 10)
    assert "\n" not in str(refused.value)
