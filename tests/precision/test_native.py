"""Native FP8: what of it runs on a processor is tested there, the rest on an NVIDIA GPU with FP8 products."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vitfp8.model import create_model
from vitfp8.params import Layer, read_layer, validate
from vitfp8.precision import prepare
from vitfp8.precision.capability import native_support
from vitfp8.precision.formats import sqnr
from vitfp8.precision.fp8_linear import FP8Linear
from vitfp8.precision.health import MEASURES, HealthSampler
from vitfp8.precision.recipes import recipe_named
from vitfp8.precision.torchao_layers import TORCHAO_RECIPES, convert_with_torchao

HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_FP8, reason="needs an NVIDIA GPU with FP8 products")]


class Two(nn.Module):
    """A layer that is converted and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 96)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(…, 64) to (…, 10)."""
        return self.head(self.inner(x).float())


def one_pass(layer: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, input gradient and weight gradient."""
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(gradient.to(out.dtype))
    assert x.grad is not None and isinstance(layer.weight, Tensor) and layer.weight.grad is not None
    return out.detach(), x.grad, layer.weight.grad


def passes(recipe: str, device: str) -> list[tuple[Tensor, Tensor]]:
    """(torchao's native result, our emulated one) of output and both gradients."""
    torch.manual_seed(3)
    linear = nn.Linear(64, 96, device=device)
    x, gradient = torch.randn(128, 64, device=device), torch.randn(128, 96, device=device)
    ours = FP8Linear.from_linear(copy.deepcopy(linear), recipe=recipe)
    theirs = nn.Sequential(copy.deepcopy(linear))
    convert_with_torchao(theirs, ["0"], recipe_named(recipe), torch.bfloat16)
    results = zip(one_pass(theirs[0], x, gradient), one_pass(ours, x, gradient), strict=True)
    return [(a.float(), b.float()) for a, b in results]


@pytest.mark.parametrize("recipe", TORCHAO_RECIPES)
def test_torchao_by_scaled_mm_agrees_with_emulation(recipe: str) -> None:
    for native, emulated in passes(recipe, "cpu"):
        # what is left is the order of the FP32 sums before the rounding to BF16
        assert sqnr(native, emulated) > 55


def test_conversion_takes_the_named_layers_and_turns_fast_accumulation_off() -> None:
    model = Two()
    names = set(model.state_dict())
    convert_with_torchao(model, ["inner"], recipe_named("tensorwise"), torch.bfloat16)
    assert type(model.inner).__name__ == "Float8Linear" and type(model.head) is nn.Linear
    assert set(model.state_dict()) == names
    config = model.inner.linear_mm_config
    products = (config.output, config.grad_input, config.grad_weight)  # type: ignore[union-attr]
    assert not any(product.use_fast_accum or product.emulate for product in products)


@pytest.mark.parametrize("recipe", TORCHAO_RECIPES)
def test_health_of_a_torchao_layer_equals_that_of_the_emulated_one(recipe: str) -> None:
    torch.manual_seed(0)
    native = Two()
    emulated = copy.deepcopy(native)
    convert_with_torchao(native, ["inner"], recipe_named(recipe), torch.bfloat16)
    emulated.set_submodule("inner", FP8Linear.from_linear(emulated.inner, recipe=recipe))
    x = torch.randn(32, 64, requires_grad=True)  # else nobody asks for the input gradient
    reports = []
    for model in (native, emulated):
        sampler = HealthSampler(model, 1, lambda device: None)
        with sampler.watching(0):
            model(x).square().mean().backward()
        reports.append(sampler.report())
    assert reports[0]["layers"] == reports[1]["layers"] == ["inner"]
    columns, expected = (report["samples"] for report in reports)
    assert columns["operand"] == expected["operand"] and len(columns["operand"]) == 3
    for name in MEASURES:
        assert columns[name][:2] == pytest.approx(expected[name][:2], rel=1e-3), name
        assert columns[name][2] == pytest.approx(expected[name][2], rel=0.05, abs=1e-2), name  # its gradient differs in rounding


def test_without_torchao_native_fp8_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("vitfp8.precision.capability.torchao_version", lambda: None)
    has, reason = native_support("tensorwise", "cuda", 64, 64, 64)
    assert not has and "pip install 'vitfp8[fp8]'" in reason
    assert native_support("delayed", "cuda", 64, 64, 64)[0]


def test_finer_scales_on_an_fp32_base_are_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert native_support("rowwise", "cuda", 64, 64, 64, base_format="fp32")[0] is False
    assert native_support("tensorwise", "cuda", 64, 64, 64, base_format="fp32")[0] is True


# ---------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.parametrize("recipe", [pytest.param(recipe, marks=gpu) for recipe in TORCHAO_RECIPES])
def test_on_a_gpu_native_products_agree_with_emulation(recipe: str) -> None:
    for native, emulated in passes(recipe, "cuda"):
        assert sqnr(native, emulated) > 40


@pytest.mark.parametrize("recipe", [pytest.param(recipe, marks=gpu) for recipe in (*TORCHAO_RECIPES, "delayed")])
def test_on_a_gpu_a_native_training_follows_the_emulated_one(recipe: str) -> None:
    file = Path(__file__).parents[2] / "params" / "BaseFP8.yaml"
    params = validate([read_layer(file), Layer("test", {"image_size": 32, "patch_size": 4, "batch_size": 64})])
    losses: dict[str, list[float]] = {}
    for backend in ("native", "emulated"):
        torch.manual_seed(0)
        model = create_model(params, 10).cuda()
        prepared = prepare(model, "fp8", device=torch.device("cuda"), backend=backend, fp8_recipe=recipe, rows=64 * 65)
        assert prepared.report["backend"] == backend
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        images = torch.randn(64, 3, 32, 32, device="cuda")
        labels = torch.arange(64, device="cuda") % 10
        losses[backend] = []
        for _ in range(10):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
            prepared.backward(loss)
            prepared.step(optimizer, model.parameters(), 1.0)
            optimizer.zero_grad()
            losses[backend].append(float(loss))
    assert losses["native"] == pytest.approx(losses["emulated"], rel=0.05)
