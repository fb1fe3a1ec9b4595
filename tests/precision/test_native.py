"""Native FP8: PyTorch's reference products on a processor, shapes and layouts without a device, graphs as the compiler sees them.

What a GPU computes is tested on one only: the tests at the end.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.launches import launches
from vitfp8.model import create_model
from vitfp8.params import Layer, read_layer, validate
from vitfp8.precision import native_products, prepare
from vitfp8.precision import preparation as policy
from vitfp8.precision.capability import NATIVE_CAPABILITY, native_support
from vitfp8.precision.formats import sqnr
from vitfp8.precision.fp8_linear import FP8Linear
from vitfp8.precision.health import MEASURES, HealthSampler
from vitfp8.precision.quantizer import quantize
from vitfp8.precision.recipes import RECIPES

META = torch.device("meta")
PARAMS = Path(__file__).parents[2] / "params" / "BaseFP8.yaml"

#: Recipes that PyTorch's reference on a processor takes.
REFERENCE = ("tensorwise", "delayed", "rowwise", "rowwise_with_gw_hp")
TORCHAO = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
HAS_MX = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (10, 0)
gpu = [pytest.mark.gpu, pytest.mark.skipif(not HAS_FP8, reason="needs an NVIDIA GPU with FP8 products")]
gpu_with_mx = [pytest.mark.gpu, pytest.mark.skipif(not HAS_MX, reason="needs an NVIDIA GPU with MX products")]
ON_A_GPU = [pytest.param(recipe, marks=gpu) for recipe in REFERENCE] + [pytest.param("mxfp8", marks=gpu_with_mx)]


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with FP8 products, as far as the choice of a backend can tell."""
    monkeypatch.setattr(policy, "native_support", lambda recipe, device, base_format: (True, "patched"))
    monkeypatch.setattr(policy, "has_native_products", lambda format, device: (True, "patched"))


@dataclasses.dataclass
class Pass:
    """Output and gradients of one pass."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.output, self.grad_input, self.grad_weight, self.grad_bias))


def one_pass(layer: nn.Module, x: Tensor, gradient: Tensor) -> Pass:
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    out.backward(gradient.to(out.dtype))
    assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    assert x.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
    return Pass(out.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone())


def native(linear: nn.Linear, recipe: str, base_format: str = "bf16") -> FP8Linear:
    return FP8Linear.from_linear(copy.deepcopy(linear), recipe=recipe, base_format=base_format, backend="native")


def data(tokens: int, n_in: int, n_out: int, device: str = "cpu") -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(3)
    x, gradient = torch.randn(tokens, n_in, device=device), torch.randn(tokens, n_out, device=device)
    return nn.Linear(n_in, n_out, device=device), x, gradient


def a_model(device: torch.device = META, **changes: object) -> nn.Module:
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 2, "batch_size": 16}
    params = validate([read_layer(PARAMS), Layer("test", {"variant": "trial", **sizes, **changes})])
    with device:
        return create_model(params, 10).train()


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("shape", [(128, 64, 96), (131, 40, 56), (7, 33, 17)])
@pytest.mark.parametrize("recipe", REFERENCE)
def test_native_products_are_those_of_emulation_but_for_the_order_of_sums(recipe: str, shape: tuple[int, int, int]) -> None:
    linear, x, gradient = data(*shape)
    for base in ("bf16", "fp32") if RECIPES[recipe].one_scale else ("bf16",):
        ours = native(linear, recipe, base)
        emulated = FP8Linear.from_linear(copy.deepcopy(linear), recipe=recipe, base_format=base)
        for factor in (1.0, 3.0):  # delayed scaling: the second pass uses what the first one saw
            for a, b in zip(one_pass(ours, factor * x, gradient), one_pass(emulated, factor * x, gradient), strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                assert (a - b).norm() / b.norm() < (1e-6 if base == "fp32" else 1e-3)
        assert ours.state_dict().keys() == emulated.state_dict().keys()
        assert all(torch.equal(value, emulated.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("recipe", REFERENCE)
def test_padding_changes_no_bit(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On numbers whose sums are exact in any order, and PyTorch's reference, which needs no padding."""
    linear, x, gradient = data(37, 40, 24)
    with torch.no_grad():
        linear.weight.copy_((8 * linear.weight).round())
        linear.bias.zero_()
    x, gradient = x.round(), gradient.round()
    with_zeros = one_pass(native(linear, recipe), x, gradient)
    monkeypatch.setattr(native_products, "padded", lambda tensor, multiple: tensor)
    without = one_pass(native(linear, recipe), x, gradient)
    assert all(torch.equal(a, b) for a, b in zip(with_zeros, without, strict=True))


@pytest.mark.parametrize("value", [0.0, 1e-20, float("inf"), float("nan")])
@pytest.mark.parametrize("recipe", REFERENCE)
def test_degenerate_amaxes_are_those_of_emulation(recipe: str, value: float) -> None:
    linear, x, _ = data(32, 64, 32)
    x = torch.zeros_like(x) if value == 0 else x * 1e-20 if value == 1e-20 else x.clone()
    if value not in (0.0, 1e-20):
        x[3, 5] = value
    ours, emulated = native(linear, recipe)(x), FP8Linear.from_linear(linear, recipe=recipe)(x)
    assert torch.equal(ours.isnan(), emulated.isnan())
    assert torch.allclose(ours.float().nan_to_num(), emulated.float().nan_to_num(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("recipe", REFERENCE)
def test_an_empty_batch_passes_through(recipe: str) -> None:
    linear, x, _ = data(16, 64, 32)
    out = native(linear, recipe)(x[:0].requires_grad_())
    assert out.shape == (0, 32)
    out.sum().backward()


def torchao_layer(linear: nn.Linear, recipe: str) -> nn.Module:
    """torchao's float8 layer with PyTorch's products and without fast accumulation."""
    config = pytest.importorskip("torchao.float8.config")
    exact = config.Float8GemmConfig(use_fast_accum=False)
    products = dict.fromkeys(("gemm_config_output", "gemm_config_grad_input", "gemm_config_grad_weight"), exact)
    row = dataclasses.replace(config.Float8LinearConfig.from_recipe_name(recipe), **products)
    return pytest.importorskip("torchao.float8.float8_linear").Float8Linear.from_float(copy.deepcopy(linear), config=row)


@pytest.mark.parametrize("recipe", TORCHAO)
def test_torchao_multiplies_to_the_same_results(recipe: str) -> None:
    linear, x, gradient = data(128, 64, 96)
    x, gradient = x.bfloat16(), gradient.bfloat16()
    for ours, theirs in zip(
        one_pass(native(linear, recipe), x, gradient), one_pass(torchao_layer(linear, recipe), x, gradient), strict=True
    ):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_torchao_decides_otherwise_where_an_amax_is_not_finite_and_where_it_is_tiny() -> None:
    linear, x, _ = data(32, 64, 32)
    x[0, 0] = float("inf")
    assert torchao_layer(linear, "tensorwise")(x.bfloat16()).isnan().any()
    assert native(linear, "tensorwise")(x).isfinite().all()
    linear.bias.data.zero_()
    x = torch.full((32, 64), 1e-20)
    assert not torchao_layer(linear, "tensorwise")(x.bfloat16()).any()
    assert native(linear, "tensorwise")(x).any()


@pytest.mark.parametrize("recipe", ["mxfp8_floor", "mxfp8_rceil"])
@pytest.mark.parametrize("contracted", [0, 1])
def test_mx_operands_are_those_of_emulation_and_their_scales_lie_as_torchao_lays_them(recipe: str, contracted: int) -> None:
    to_blocked = pytest.importorskip("torchao.prototype.mx_formats.utils").to_blocked
    x = torch.randn(160, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 160)[:, None]
    x[32:64, :32] = 0
    cast = RECIPES[recipe].fprop[0]
    ours = native_products.store(x, cast, contracted, torch.tensor(448.0))
    emulated = quantize(x, cast, contracted=contracted)
    grid = emulated.grid() if contracted else emulated.grid().t()
    assert torch.equal(ours.values.float(), grid) and ours.values.is_contiguous()
    assert isinstance(emulated.scale, Tensor)
    scale = emulated.scale if contracted else emulated.scale.t()
    codes = scale.reciprocal().to(torch.float8_e8m0fnu)
    assert torch.equal(codes.float(), scale.reciprocal())
    assert torch.equal(ours.inverse.view(torch.uint8), to_blocked(codes).flatten().view(torch.uint8))


# ------------------------------------------------------------------------------------------------ shapes and layouts


@pytest.mark.parametrize("shape", [(19_700, 192, 576), (65, 192, 10), (7, 33, 17)])
@pytest.mark.parametrize("recipe", NATIVE_CAPABILITY)
def test_products_have_the_layout_that_a_gpu_wants(recipe: str, shape: tuple[int, int, int]) -> None:
    """Without values PyTorch checks layout, scales and divisibility: on the meta device, and of a GPU's fake tensors."""
    tokens, n_in, n_out = shape
    with META:
        results = one_pass(native(nn.Linear(n_in, n_out), recipe), torch.empty(tokens, n_in), torch.empty(tokens, n_out))
    assert [tuple(each.shape) for each in results] == [(tokens, n_out), (tokens, n_in), (n_out, n_in), (n_out,)]
    with FakeTensorMode(), torch.no_grad():
        out = FP8Linear(n_in, n_out, device="cuda", recipe=recipe, backend="native")(torch.empty(tokens, n_in, device="cuda"))
    assert out.device.type == "cuda" and out.shape == (tokens, n_out) and out.dtype == torch.bfloat16


def test_a_layout_that_a_gpu_refuses_would_be_found() -> None:
    a, b, one = (torch.empty(size, device=META) for size in ((32, 32), (32, 32), ()))
    a, b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match="col_major"):
        torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="divisible by 16"):
        native_products.product(a[:, :17].contiguous(), one.view(1, 1), b[:, :17].contiguous(), one.view(1, 1), torch.bfloat16)


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("recipe", ["tensorwise", "mxfp8"])
def test_a_batch_of_100_at_224_pixels_runs_natively_and_its_padding_is_told(recipe: str) -> None:
    model = a_model(image_size=224, patch_size=16)
    prepared = prepare(model, "fp8", device=META, backend="native", fp8_recipe=recipe, rows=100 * 197)
    report = prepared.report
    assert (report["backend"], report["product_dtype"]) == ("native", "fp8")
    assert report["reason"] == "patched; without fast accumulation; 19700 rows are padded to 19712"
    prepared.backward(model(torch.empty(100, 3, 224, 224, device=META)).float().mean())
    assert all(isinstance(layer, FP8Linear) and layer.backend == "native" for layer in prepared.health.layers.values())
    assert len(prepared.health.layers) == 4
    assert (
        prepare(a_model(), "fp8", device=META, fp8_recipe=recipe, rows=64).report["reason"]
        == "patched; without fast accumulation"
    )


def test_sizes_decide_nothing_and_the_recipe_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    capability = {"has": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability["has"])
    assert {recipe for recipe in RECIPES if native_support(recipe, "cuda")[0]} == set(REFERENCE)
    assert native_support("rowwise", "cuda", base_format="fp32")[0] is False
    assert native_support("tensorwise", "cuda", base_format="fp32")[0] is True
    capability["has"] = (10, 0)
    assert {recipe for recipe in RECIPES if not native_support(recipe, "cuda")[0]} == {"blockwise"}


# ------------------------------------------------------------------------------------------------ one graph


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize(
    ("precision", "recipe"),
    [("fp32", ""), ("bf16", ""), ("fp16", ""), ("fp8", "tensorwise"), ("fp8", "rowwise"), ("fp8", "delayed")]
    + [("fp8", "rowwise_with_gw_hp"), ("fp8", "mxfp8")],
)
def test_a_native_model_is_one_graph(precision: str, recipe: str) -> None:
    torch._dynamo.reset()
    model = a_model()
    prepare(model, precision, device=META, backend="native", fp8_recipe=recipe or "tensorwise")
    explained = torch._dynamo.explain(model)(torch.empty(16, 3, 16, 16, device=META))
    assert (explained.graph_break_count, explained.graph_count) == (0, 1), explained.break_reasons


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "delayed"])
def test_a_traced_training_has_the_bits_of_an_eager_one(recipe: str) -> None:
    torch._dynamo.reset()
    linear, x, _ = data(50, 32, 48)
    eager = nn.Sequential(native(linear, recipe), nn.ReLU(), native(nn.Linear(48, 16), recipe))
    traced = copy.deepcopy(eager)
    networks = ((eager, eager), (traced, torch.compile(traced, backend="aot_eager", fullgraph=True)))
    for factor in (1.0, 3.0, 0.5):
        passes = []
        for model, network in networks:
            inputs = (factor * x).requires_grad_()
            model.zero_grad()
            out = network(inputs)
            out.float().square().mean().backward()
            passes.append([out.detach(), inputs.grad, *(parameter.grad for parameter in model.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))  # type: ignore[arg-type]
        assert all(torch.equal(value, traced.state_dict()[name]) for name, value in eager.state_dict().items())


def test_native_delayed_scaling_moves_on_after_forward_and_backward_pass() -> None:
    linear, x, gradient = data(32, 64, 32)
    layer = native(linear, "delayed")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(x.requires_grad_())
    layer.eval()
    one_pass(layer, x.detach(), gradient)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    one_pass(layer.train(), x.detach(), gradient)
    assert [history.history[0].item() for history in layer.histories()] == [
        pytest.approx(tensor.abs().max().item()) for tensor in (x.bfloat16(), linear.weight, gradient.bfloat16())
    ]


# ------------------------------------------------------------------------------------------------ launches and health


@pytest.mark.parametrize(
    ("precision", "recipe", "most"),
    [("fp32", "", 78), ("bf16", "", 136), ("fp16", "", 138), ("fp8", "tensorwise", 376), ("fp8", "delayed", 376),
     ("fp8", "rowwise", 616)],
)  # fmt: skip
def test_a_step_launches_no_more_than_it_did(precision: str, recipe: str, most: int) -> None:
    """Of two blocks, forward and backward; `vitfp8 bench launches` counts twelve."""
    assert launches(precision, recipe, depth=2).total() <= most


@pytest.mark.parametrize("recipe", REFERENCE)
def test_health_of_a_native_layer_equals_that_of_the_emulated_one(recipe: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 24)
    x = torch.randn(33, 40, requires_grad=True)  # padded: to 48 rows of 48
    reports = []
    for backend in ("native", "emulated"):
        model = nn.Sequential(FP8Linear.from_linear(copy.deepcopy(linear), recipe=recipe, backend=backend))
        sampler = HealthSampler(model, 1, lambda device: None)
        with sampler.watching(0):
            model(x).square().mean().backward()
        reports.append(sampler.report()["samples"])
    assert reports[0]["operand"] == reports[1]["operand"] and len(reports[0]["operand"]) == 3
    for name in MEASURES:
        assert reports[0][name][:2] == reports[1][name][:2], name
        assert reports[0][name][2] == pytest.approx(reports[1][name][2], rel=0.05, abs=1e-2), (
            name
        )  # its gradient differs in rounding


@pytest.mark.parametrize("recipe", [*REFERENCE])
def test_the_observer_of_a_native_layer_sees_what_that_of_an_emulated_one_sees(recipe: str) -> None:
    linear, x, gradient = data(33, 40, 24)
    seen: list[dict[str, tuple[Tensor, Tensor, Tensor]]] = []
    for backend in ("native", "emulated"):
        layer = FP8Linear.from_linear(linear, recipe=recipe, backend=backend)
        operands: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        layer.observer = lambda name, tensor, q, operands=operands: operands.update({name: (tensor, q.grid(), q.dequantize())})
        one_pass(layer, x, gradient)
        seen.append(operands)
    assert list(seen[0]) == list(seen[1])
    for name, tensors in seen[0].items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, seen[1][name], strict=True)), name


# ------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.parametrize("recipe", ON_A_GPU)
def test_on_a_gpu_native_products_agree_with_emulation(recipe: str) -> None:
    linear, x, gradient = data(131, 64, 96, "cuda")
    emulated = one_pass(FP8Linear.from_linear(copy.deepcopy(linear), recipe=recipe), x, gradient)
    for a, b in zip(one_pass(native(linear, recipe), x, gradient), emulated, strict=True):
        assert sqnr(b.float(), a.float()) > 40


@pytest.mark.parametrize("recipe", ON_A_GPU)
def test_on_a_gpu_a_native_training_follows_the_emulated_one(recipe: str) -> None:
    device = torch.device("cuda")
    losses: dict[str, list[float]] = {}
    for backend in ("native", "emulated"):
        torch.manual_seed(0)
        model = a_model(device, image_size=32, depth=12, embed_dim=192, num_heads=3)
        prepared = prepare(model, "fp8", device=device, backend=backend, fp8_recipe=recipe, rows=64 * 65)
        assert prepared.report["backend"] == backend
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        images = torch.randn(64, 3, 32, 32, device=device)
        labels = torch.arange(64, device=device) % 10
        losses[backend] = []
        for _ in range(10):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
            prepared.backward(loss)
            prepared.step(optimizer, model.parameters(), 1.0)
            optimizer.zero_grad()
            losses[backend].append(float(loss))
    assert losses["native"] == pytest.approx(losses["emulated"], rel=0.05)
