"""A precision is a row: what runs, what is said of it, and that emulation is what it claims to be."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitfp8.errors import InputError
from vitfp8.model import create_model
from vitfp8.params import RunParams
from vitfp8.precision import PRECISIONS, choose_backend, has_native_products, prepare
from vitfp8.precision.formats import round_to_format
from vitfp8.precision.layers import Arithmetic, replace_layers

CPU = torch.device("cpu")
Make = Callable[..., RunParams]


@pytest.fixture
def twins(smoke_params: Make) -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    """The same small model twice, with a batch."""
    torch.manual_seed(0)
    params = smoke_params(embed_dim=192, num_heads=3, depth=2)
    model = create_model(params, 10)
    images, labels = torch.randn(16, 1, 16, 16), torch.randint(0, 10, (16,))
    return model, copy.deepcopy(model), images, labels


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Signal to quantisation noise in dB."""
    return float(20 * torch.log10(reference.norm() / (reference - other).norm()))


def gradients(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
    """Unscaled gradients of one step."""
    (F.cross_entropy(model(images).float(), labels) * scale).backward()
    return {name: p.grad.float() / scale for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("format", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_emulated_training_step_agrees_with_native_dtype_within_summation_order(twins, format, dtype) -> None:
    native, emulated, images, labels = twins
    replace_layers(native, Arithmetic(format=format, dtype=dtype, on_grid=False, low_results=True))
    replace_layers(emulated, Arithmetic(format=format, dtype=torch.float32, on_grid=True, low_results=True))
    with torch.no_grad():
        plain, low = native(images).float(), emulated(images)
    assert torch.equal(low, round_to_format(low, format)), "logits are not on the format's grid"
    # far closer to each other than the format is to FP32 (fp16 73.7 dB and bf16 55.6 dB for a single cast)
    floor = 58 if format == "fp16" else 38
    assert sqnr(plain, low) > floor
    wanted, got = gradients(native, images, labels, 1024.0), gradients(emulated, images, labels, 1024.0)
    told = {name: gradient for name, gradient in wanted.items() if gradient.abs().max() > 1e-6}
    assert len(told) > 0.8 * len(wanted)
    for name, gradient in told.items():
        assert sqnr(gradient, got[name]) > floor - 14, name


def test_one_emulated_fp16_linear_layer_equals_native_half_but_for_the_order_of_sums() -> None:
    """Inner dimension 768: 99.8 % of the outputs are bitwise equal, the others are neighbours."""
    torch.manual_seed(0)
    layer, x = nn.Linear(768, 256), torch.randn(256, 768)
    emulated, native = copy.deepcopy(nn.Sequential(layer)), copy.deepcopy(nn.Sequential(layer))
    replace_layers(emulated, Arithmetic(format="fp16", dtype=torch.float32, on_grid=True, low_results=True))
    replace_layers(native, Arithmetic(format="fp16", dtype=torch.float16, on_grid=False, low_results=True))
    ours, theirs = emulated(x), native(x).float()
    assert (ours == theirs).float().mean() > 0.997
    assert ((ours - theirs).abs() <= 2.0**-10 * theirs.abs().clamp(min=2.0**-4)).all(), "one step of the grid at most"


def test_emulated_fp16_gradients_underflow_as_half_does() -> None:
    layer = nn.Sequential(nn.Linear(4, 4, bias=False))
    replace_layers(layer, Arithmetic(format="fp16", dtype=torch.float32, on_grid=True, low_results=True))
    x = torch.ones(1, 4, requires_grad=True)
    (layer(x).sum() * 1e-9).backward()
    assert torch.equal(x.grad, torch.zeros(1, 4)), "a gradient of 1e-9 is below half's smallest subnormal"


def test_tf32_rounds_operands_and_leaves_results_in_fp32() -> None:
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(64, 32, bias=False)), torch.randn(8, 64)
    weight = layer[0].weight.detach().clone()
    prepare(layer, "tf32", device=CPU)
    expected = F.linear(round_to_format(x, "tf32"), round_to_format(weight, "tf32"))
    assert torch.equal(layer(x), expected)


def test_fp32_prepared_gives_what_timm_gives(twins) -> None:
    plain, prepared, images, _ = twins
    report = prepare(prepared, "fp32", device=CPU).report
    with torch.no_grad():
        assert torch.allclose(plain(images), prepared(images), atol=2e-6)
    assert (report["requested"], report["effective"], report["backend"]) == ("fp32", "fp32", "native")


@pytest.mark.parametrize("requested", sorted(PRECISIONS))
def test_the_report_says_what_runs_and_lists_every_layer_with_its_reason(smoke_params: Make, requested: str) -> None:
    model = create_model(smoke_params(depth=2), 10)
    report = prepare(model, requested, device=CPU).report
    names = {row["name"] for row in report["layers"]}
    products = {f"blocks.{i}.{part}" for i in range(2) for part in ("attn", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert products | {"patch_embed.proj", "head", "norm", "blocks.0.norm1"} == names - {
        "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2"
    }  # fmt: skip
    if requested == "fp8":
        converted = {row["name"] for row in report["layers"] if row["converted"]}
        assert converted == {name for name in products if not name.endswith("attn")}, "the blocks' linear layers and no other"
        assert report["recipe"] == "tensorwise" and report["base"] == "bf16"
    for row in report["layers"]:
        assert row["converted"] == (row["format"] == PRECISIONS[requested].format)
        assert row["converted"] or row["reason"]
    assert report["backend"] in ("native", "emulated") and report["reason"] and report["evaluation"]
    assert set(report["switches"].values()) == {"ieee", False}


def test_the_backend_follows_the_machine_and_the_parameter() -> None:
    has, _ = has_native_products("fp16", CPU)
    assert choose_backend("fp16", CPU)[0] == ("native" if has else "emulated")
    assert choose_backend("fp32", CPU)[0] == "native"
    assert choose_backend("bf16", CPU, "emulated")[0] == "emulated"
    assert choose_backend("tf32", CPU)[0] == "emulated"
    for requested, backend, part in (("tf32", "native", "no TF32"), ("fp32", "emulated", "never emulated")):
        with pytest.raises(InputError, match=part):
            choose_backend(requested, CPU, backend)


def test_converting_keeps_parameters_names_and_optimizers(twins) -> None:
    model, other, _, _ = twins
    before = {name: id(p) for name, p in model.named_parameters()}
    prepare(model, "fp16", device=CPU)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert list(model.state_dict()) == list(other.state_dict())


def test_loss_scaling_halves_on_overflow_skips_the_step_and_doubles_again() -> None:
    """NUMERICS: growth interval 3, an Inf at step 5."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4))
    precision = prepare(model, "fp16", device=CPU, loss_scale=65536.0, loss_scale_interval=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scales = []
    for step in range(1, 9):
        before = [p.detach().clone() for p in model.parameters()]
        scales.append(precision.loss_scale())
        loss = model(torch.randn(2, 4)).float().square().mean()
        precision.backward(loss)
        if step == 5:
            model[0].weight.grad[0, 0] = float("inf")
        precision.step(optimizer, model.parameters(), max_norm=1.0)
        optimizer.zero_grad()
        unchanged = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert unchanged == (step == 5)
    scales.append(precision.loss_scale())
    assert scales[1:] == [65536, 65536, 131072, 131072, 65536, 65536, 65536, 131072]
    assert precision.skipped_steps() == 1


def test_a_collapsed_loss_scale_is_seen_and_state_survives_a_resume() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    precision = prepare(model, "fp16", device=CPU, loss_scale=1.5)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    assert not precision.collapsed()
    precision.backward(model(torch.ones(1, 2)).sum() * float("inf"))
    precision.step(optimizer, model.parameters(), None)
    assert precision.collapsed() and precision.loss_scale() == 0.75
    other = prepare(nn.Sequential(nn.Linear(2, 2)), "fp16", device=CPU)
    other.load_state_dict(precision.state_dict())
    assert (other.loss_scale(), other.skipped_steps()) == (0.75, 1)


def test_gradients_are_clipped_after_unscaling() -> None:
    for requested in ("fp32", "fp16"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8))
        precision = prepare(model, requested, device=CPU)
        precision.backward(3 * model(torch.ones(4, 8)).float().square().mean())
        norm = precision.step(torch.optim.SGD(model.parameters(), lr=0.0), model.parameters(), max_norm=0.5)
        clipped = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        assert norm > 0.5 and clipped == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("base", ["bf16", "fp32"])
@pytest.mark.parametrize("recipe", ["tensorwise", "delayed", "rowwise", "rowwise_with_gw_hp", "blockwise", "mxfp8"])
def test_fp8_trains_a_step_under_every_recipe_and_both_bases(twins, recipe: str, base: str) -> None:
    plain, model, images, labels = twins
    before = {name: id(p) for name, p in model.named_parameters()}
    precision = prepare(model, "fp8", device=CPU, fp8_recipe=recipe, base_precision=base)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    loss = F.cross_entropy(model(images).float(), labels)
    precision.backward(loss)
    wanted = F.cross_entropy(plain(images), labels)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=0.02)
    pairs = [(name, q.grad, p.grad) for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True)]
    told = [(name, sqnr(wanted, got)) for name, wanted, got in pairs if wanted.abs().max() > 1e-5]
    assert len(told) > 0.8 * len(pairs) and [(name, ratio) for name, ratio in told if not ratio > 8] == []
    assert precision.report["base_backend"] == choose_backend(base, CPU)[0]


def test_fp8_native_is_refused_where_the_device_lacks_it_before_anything_is_converted(twins) -> None:
    _, model, _, _ = twins
    with pytest.raises(InputError, match="backend: 'native'"):
        prepare(model, "fp8", device=CPU, backend="native")
    assert type(model.blocks[0].mlp.fc1) is nn.Linear
