"""The FP8 linear layer: its three products against independent references, its shapes, state and refusals."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from vitfp8.errors import InputError
from vitfp8.precision import rounding
from vitfp8.precision.capability import compiler_for, native_support
from vitfp8.precision.formats import FORMATS, sqnr
from vitfp8.precision.fp8_linear import FP8Linear
from vitfp8.precision.quantizer import quantize
from vitfp8.precision.recipes import RECIPES

NAMES = [name for name in RECIPES if name != "mxfp8"]
INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass
class Pass:
    """Output and gradients of one forward and backward pass."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor | None


def one_pass(layer: nn.Module, x: Tensor, gradient: Tensor) -> Pass:
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    output = layer(x)
    output.backward(gradient.to(output.dtype))
    bias = layer.bias
    return Pass(output.detach(), x.grad, layer.weight.grad.clone(), None if bias is None else bias.grad.clone())  # type: ignore[union-attr, arg-type, operator]


def layer_and_data(tokens: int = 520, n_in: int = 192, n_out: int = 576, bias: bool = True) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(n_in, n_out, bias), torch.randn(tokens, n_in), torch.randn(tokens, n_out)


def fp8(linear: nn.Linear, recipe: str, base_format: str = "fp32", **rest) -> FP8Linear:
    return FP8Linear.from_linear(linear, recipe=recipe, base_format=base_format, **rest)


# ------------------------------------------------------------------------------------------------ accuracy

SQNRS = [
    ("tensorwise", 28.7, 24.7, 24.7),
    ("rowwise", 28.6, 28.5, 28.5),
    ("rowwise_with_gw_hp", 28.6, 28.5, INF),
    ("blockwise", 28.6, 28.5, 28.5),
    ("mxfp8_rceil", 28.6, 28.5, 28.5),
    ("mxfp8_floor", 28.1, 28.0, 27.6),
]


@pytest.mark.parametrize(("recipe", "output", "grad_input", "grad_weight"), SQNRS)
@pytest.mark.parametrize("base_format", ["fp32", "bf16"])
def test_sqnr_of_the_three_products(recipe: str, output: float, grad_input: float, grad_weight: float, base_format: str) -> None:
    linear, x, gradient = layer_and_data()
    exact, ours = one_pass(linear, x, gradient), one_pass(fp8(linear, recipe, base_format), x, gradient)
    assert sqnr(exact.output, ours.output).item() == pytest.approx(output, abs=0.5)
    assert sqnr(exact.grad_input, ours.grad_input).item() == pytest.approx(grad_input, abs=0.5)
    if base_format == "bf16" and recipe == "rowwise_with_gw_hp":
        grad_weight = 50.8  # BF16's own
    assert sqnr(exact.grad_weight, ours.grad_weight).item() == pytest.approx(grad_weight, abs=0.5)


def test_delayed_scaling_on_steady_data_is_as_accurate_as_tensorwise() -> None:
    linear, x, gradient = layer_and_data()
    layer = fp8(linear, "delayed")
    one_pass(layer, x, gradient)
    delayed, current = one_pass(layer, x, gradient), one_pass(fp8(linear, "tensorwise"), x, gradient)
    assert torch.equal(delayed.output, current.output)
    assert torch.equal(delayed.grad_weight, current.grad_weight)


def test_high_precision_weight_gradient_is_exact() -> None:
    linear, x, gradient = layer_and_data()
    ours = one_pass(fp8(linear, "rowwise_with_gw_hp"), x, gradient)
    assert torch.equal(ours.grad_weight, gradient.t() @ x)


@pytest.mark.parametrize("base_format", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", NAMES)
def test_bias_gradient_is_the_sum_over_tokens(recipe: str, base_format: str) -> None:
    linear, x, gradient = layer_and_data(tokens=64)
    ours = one_pass(fp8(linear, recipe, base_format), x, gradient)
    assert ours.grad_bias is not None
    assert torch.allclose(ours.grad_bias, gradient.sum(0), rtol=0.02, atol=0.1)
    assert ours.grad_bias.dtype == torch.float32


# ------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed"])
def test_tensorwise_products_equal_scaled_mm(recipe: str) -> None:
    """PyTorch's own FP8 product of FP8 tensors is the oracle: fprop, dgrad and wgrad agree within summation order."""
    linear, x, gradient = layer_and_data(bias=False)
    layer = fp8(linear, recipe)
    if recipe == "delayed":
        one_pass(layer, x, gradient)
    ours = one_pass(layer, x, gradient)

    def stored(tensor: Tensor, name: str) -> tuple[Tensor, Tensor]:
        scale = FORMATS[name].largest / tensor.abs().max()
        return (tensor * scale).to(FORMATS[name].dtype), scale.reciprocal()

    (qx, sx), (qw, sw), (qg, sg) = stored(x, "e4m3"), stored(linear.weight.detach(), "e4m3"), stored(gradient, "e5m2")

    def product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
        return torch._scaled_mm(a.contiguous(), b.t().contiguous().t(), scale_a, scale_b, out_dtype=torch.float32)

    def error(ours: Tensor, reference: Tensor) -> float:
        return ((ours - reference).norm() / reference.norm()).item()

    assert error(ours.output, product(qx, qw.t(), sx, sw)) < 1e-6
    assert error(ours.grad_input, product(qg, qw, sg, sw)) < 1e-6
    assert error(ours.grad_weight, product(qg.t(), qx, sg, sx)) < 1e-6


@pytest.mark.parametrize("base_format", ["fp32", "bf16"])
def test_native_backend_equals_the_emulation_where_a_cpu_can_run_it(base_format: str) -> None:
    linear, x, gradient = layer_and_data()
    for recipe in ("tensorwise", "delayed"):
        native = one_pass(fp8(linear, recipe, base_format, backend="native"), x, gradient)
        emulated = one_pass(fp8(linear, recipe, base_format), x, gradient)
        for name in ("output", "grad_input", "grad_weight", "grad_bias"):
            a, b = getattr(native, name).float(), getattr(emulated, name).float()
            assert ((a - b).norm() / b.norm()).item() < (1e-6 if base_format == "fp32" else 1e-3), name


@pytest.mark.parametrize("recipe", NAMES)
def test_products_are_those_of_the_dequantised_operands_in_float64(recipe: str) -> None:
    linear, x, gradient = layer_and_data(tokens=100, n_in=70, n_out=200, bias=False)
    ours = one_pass(fp8(linear, recipe), x, gradient)
    row = RECIPES[recipe]

    def exact(tensor: Tensor, cast, contracted: int) -> Tensor:
        quantized = quantize(tensor.detach(), cast, contracted=contracted, scale=1.0 if row.delayed else None)
        return quantized.grid().double() / quantized.scale_of_each().double()

    expected = {
        "output": exact(x, row.fprop[0], 1) @ exact(linear.weight, row.fprop[1], 1).t(),
        "grad_input": exact(gradient, row.dgrad[0], 1) @ exact(linear.weight, row.dgrad[1], 0),
    }
    if row.wgrad is not None:
        expected["grad_weight"] = exact(gradient, row.wgrad[0], 0).t() @ exact(x, row.wgrad[1], 0)
    for name, reference in expected.items():
        error = (getattr(ours, name).double() - reference).norm() / reference.norm()
        assert error.item() < 1e-6, name


@pytest.mark.parametrize("recipe", NAMES)
def test_bf16_and_fp32_products_of_grid_values_agree_up_to_one_rounding(recipe: str) -> None:
    """Both are exact on the grid, so they differ in summation order only: nearly every BF16 result is the same."""
    linear, x, gradient = layer_and_data(bias=False)
    narrow, wide = (
        one_pass(fp8(linear, recipe, "bf16", product_dtype=product_dtype), x, gradient) for product_dtype in ("bf16", "fp32")
    )
    for name in ("output", "grad_input", "grad_weight"):
        a, b = getattr(narrow, name), getattr(wide, name)
        assert (a == b).float().mean() > 0.999, name
        assert torch.allclose(a.float(), b.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("base_format", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", NAMES)
def test_compiled_and_eager_quantisers_train_to_the_same_bits(
    recipe: str, base_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rounding.load() is None:
        pytest.skip("no C++ compiler on this machine")
    linear, x, gradient = layer_and_data(tokens=150, n_in=64, n_out=40)
    layers = [fp8(copy.deepcopy(linear), recipe, base_format) for _ in range(2)]
    for _ in range(2):
        compiled = one_pass(layers[0], x, gradient)
        with monkeypatch.context() as patch:
            patch.setattr(rounding, "load", lambda: None)
            eager = one_pass(layers[1], x, gradient)
        for name in ("output", "grad_input", "grad_weight", "grad_bias"):
            assert torch.equal(getattr(compiled, name), getattr(eager, name)), name
    for name, value in layers[0].state_dict().items():
        assert torch.equal(value, layers[1].state_dict()[name]), name


# ------------------------------------------------------------------------------------------------ torchao


def torchao_layer(linear: nn.Linear, recipe: str) -> nn.Module:
    config = pytest.importorskip("torchao.float8.config").Float8LinearConfig
    float8 = pytest.importorskip("torchao.float8.float8_linear").Float8Linear
    return float8.from_float(copy.deepcopy(linear), config=dataclasses.replace(config.from_recipe_name(recipe), emulate=True))


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
@pytest.mark.parametrize("base_format", ["fp32", "bf16"])
def test_a_pass_agrees_with_torchao_emulation(recipe: str, base_format: str) -> None:
    linear, x, gradient = layer_and_data()
    if base_format == "bf16":
        x, gradient = x.bfloat16(), gradient.bfloat16()
    theirs = one_pass(torchao_layer(linear, recipe), x, gradient)
    ours = one_pass(fp8(linear, recipe, base_format), x, gradient)
    for name in ("output", "grad_input", "grad_weight", "grad_bias"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.dtype == b.dtype, name
        # FP32: summation order, and torchao's inexact dequantised operands. BF16: hence one rounding in thousands.
        if base_format == "fp32":
            assert ((a - b).norm() / b.norm()).item() < 1e-6, name
        else:
            assert (a == b).float().mean() > 0.999, name


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_a_short_training_has_torchao_loss_curve(recipe: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))
    x, target = torch.randn(256, 32), torch.randint(16, (256,))

    def losses(convert) -> Tensor:
        net = copy.deepcopy(model)
        for index in (0, 2, 4):
            net[index] = convert(net[index])
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        curve = []
        for _ in range(60):
            loss = nn.functional.cross_entropy(net(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.detach())
        return torch.stack(curve)

    ours = losses(lambda layer: fp8(layer, recipe))
    theirs = losses(lambda layer: torchao_layer(layer, recipe))
    exact = losses(lambda layer: layer)
    assert ours[-1] < 0.5 * ours[0]
    # Two trainings in FP8 are much closer to each other than either is to FP32.
    assert (ours - theirs).abs().max() < 0.02
    assert (ours - theirs).abs().mean() < 0.2 * (ours - exact).abs().mean() + 1e-4


def test_torchao_makes_nan_of_a_layer_whose_input_holds_an_infinity_and_we_saturate() -> None:
    linear, x, _ = layer_and_data(tokens=4)
    x[0, 0] = INF
    assert torchao_layer(linear, "tensorwise")(x).isnan().any()
    assert fp8(linear, "tensorwise")(x).isfinite().all()


# ------------------------------------------------------------------------------------------------ shapes and special values


@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize("shape", [(5, 7, 33), (3, 33), (33,), (2, 3, 4, 33), (1, 1, 33)])
@pytest.mark.parametrize("bias", [True, False])
def test_any_number_of_leading_dimensions_and_odd_sizes(recipe: str, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(33, 17, bias)
    x = torch.randn(shape, requires_grad=True)
    output = fp8(linear, recipe)(x)
    assert output.shape == (*shape[:-1], 17)
    output.sum().backward()  # an expanded gradient
    assert x.grad is not None
    assert x.grad.shape == shape
    assert linear.weight.grad is not None
    assert linear.weight.grad.shape == (17, 33)


@pytest.mark.parametrize("recipe", NAMES)
def test_three_dimensions_are_rows_of_two(recipe: str) -> None:
    linear, x, gradient = layer_and_data(tokens=60, n_in=64, n_out=48)
    flat = one_pass(fp8(linear, recipe), x, gradient)
    deep = one_pass(fp8(linear, recipe), x.view(4, 15, 64), gradient.view(4, 15, 48))
    assert torch.equal(deep.output.view(60, 48), flat.output)
    assert torch.equal(deep.grad_input.view(60, 64), flat.grad_input)
    assert torch.equal(deep.grad_weight, flat.grad_weight)


@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize("base_format", ["fp32", "bf16"])
def test_dtypes_follow_the_base_format_and_parameters_stay_fp32(recipe: str, base_format: str) -> None:
    linear, x, gradient = layer_and_data(tokens=32)
    layer = fp8(linear, recipe, base_format)
    ours = one_pass(layer, x, gradient)
    assert ours.output.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[base_format]
    assert ours.grad_input.dtype == torch.float32  # of the input that was given
    assert ours.grad_weight.dtype == layer.weight.dtype == torch.float32


@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize(("needs_input", "needs_weight"), [(False, True), (True, False), (False, False)])
def test_gradients_that_are_not_needed_are_not_computed(recipe: str, needs_input: bool, needs_weight: bool) -> None:
    linear, x, gradient = layer_and_data(tokens=48, n_in=64, n_out=48)
    everything = one_pass(fp8(linear, recipe), x, gradient)
    layer = fp8(linear, recipe)
    layer.weight.requires_grad_(needs_weight)
    linear.weight.grad = None
    x = x.requires_grad_(needs_input)
    layer(x).backward(gradient)
    assert (x.grad is not None, layer.weight.grad is not None) == (needs_input, needs_weight)
    if needs_input:
        assert torch.equal(x.grad, everything.grad_input)  # type: ignore[arg-type]
    if needs_weight:
        assert torch.equal(layer.weight.grad, everything.grad_weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", NAMES)
def test_zero_input_and_zero_gradient_give_zeros_and_the_bias(recipe: str) -> None:
    linear, _, _ = layer_and_data(tokens=1)
    ours = one_pass(fp8(linear, recipe), torch.zeros(8, 192), torch.zeros(8, 576))
    assert linear.bias is not None
    assert torch.equal(ours.output, linear.bias.detach().expand(8, -1))
    assert not ours.grad_input.any()
    assert not ours.grad_weight.any()


@pytest.mark.parametrize("recipe", NAMES)
def test_an_empty_batch_passes_through(recipe: str) -> None:
    linear, x, _ = layer_and_data(tokens=1)
    output = fp8(linear, recipe)(x[:0])
    assert output.shape == (0, 576)
    output.sum().backward()


@pytest.mark.parametrize("recipe", NAMES)
def test_nan_in_the_input_reaches_the_output_of_its_row(recipe: str) -> None:
    linear, x, _ = layer_and_data(tokens=4)
    x[2, 5] = NAN
    assert fp8(linear, recipe)(x).isnan().any(dim=1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("recipe", NAMES)
def test_gradients_point_where_high_precision_gradients_point(recipe: str) -> None:
    """A sanity check in the place of gradcheck, which a piecewise constant function cannot pass."""
    linear, x, _ = layer_and_data(tokens=64, n_in=96, n_out=48)
    target = torch.randn(64, 48)
    layer = fp8(linear, recipe)

    def gradient(module: nn.Module) -> Tensor:
        module.zero_grad()
        (module(x) - target).square().mean().backward()
        return module.weight.grad.flatten().clone()  # type: ignore[union-attr, operator, return-value]

    exact = gradient(linear)
    for _ in range(2):  # delayed scaling needs one pass to find its scales
        ours = gradient(layer)
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=0) > 0.99


# ------------------------------------------------------------------------------------------------ a module among modules


@pytest.mark.parametrize("recipe", NAMES)
def test_parameters_are_shared_and_keep_their_names(recipe: str) -> None:
    linear, _, _ = layer_and_data(tokens=1)
    layer = fp8(linear, recipe)
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    buffers = {name for name in layer.state_dict() if name not in ("weight", "bias")}
    histories = {f"{operand}_history.{what}" for operand in ("activation", "weight", "gradient") for what in ("history", "scale")}
    assert buffers == (histories if recipe == "delayed" else set())


def test_layers_can_be_built_like_nn_linear() -> None:
    layer = FP8Linear(8, 4, recipe="delayed", base_format="fp32")
    assert layer(torch.randn(3, 8)).shape == (3, 4)
    assert "recipe=delayed" in repr(layer)


def test_delayed_scaling_resumes_bit_for_bit() -> None:
    linear, x, gradient = layer_and_data(tokens=64, n_in=48, n_out=32)
    straight = fp8(copy.deepcopy(linear), "delayed")
    for factor in (1.0, 3.0):
        one_pass(straight, factor * x, factor * gradient)
    resumed = fp8(copy.deepcopy(linear), "delayed")
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for factor in (0.5, 2.0, 0.1):
        a, b = (one_pass(layer, factor * x, factor * gradient) for layer in (straight, resumed))
        assert torch.equal(a.output, b.output)
        assert torch.equal(a.grad_input, b.grad_input)
        assert torch.equal(a.grad_weight, b.grad_weight)


def test_delayed_scaling_stands_still_in_evaluation() -> None:
    linear, x, gradient = layer_and_data(tokens=16)
    layer = fp8(linear, "delayed")
    one_pass(layer, x, gradient)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.eval()
    layer(100 * x)
    layer.train()
    with torch.no_grad():
        layer(100 * x)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_delayed_scaling_learns_each_operand_once_a_pass() -> None:
    linear, x, gradient = layer_and_data(tokens=16)
    layer = fp8(linear, "delayed")
    one_pass(layer, x, gradient)
    for operand, tensor, largest in (("activation", x, 448.0), ("weight", linear.weight, 448.0), ("gradient", gradient, 57344.0)):
        history = getattr(layer, f"{operand}_history")
        assert history.history[:2].tolist() == [tensor.abs().max().item(), 0.0]
        assert history.scale.item() == (torch.tensor(largest) / tensor.abs().max()).item()


def test_evaluation_under_no_grad_gives_the_same_output() -> None:
    linear, x, _ = layer_and_data(tokens=32)
    for recipe in NAMES:
        layer = fp8(linear, recipe).eval()
        with torch.no_grad():
            assert torch.equal(layer(x), layer(x.clone().requires_grad_()).detach())


def test_the_observer_sees_each_operand_and_what_it_became() -> None:
    linear, x, gradient = layer_and_data(tokens=48, n_in=64, n_out=96)
    second = {"activation:wgrad", "weight:dgrad", "gradient:wgrad"}
    again = {
        "tensorwise": set(), "delayed": set(), "rowwise": second, "rowwise_with_gw_hp": {"weight:dgrad"},
        "blockwise": {"activation:wgrad", "gradient:wgrad"}, "mxfp8_floor": second, "mxfp8_rceil": second,
    }  # fmt: skip
    for recipe in NAMES:
        layer = fp8(linear, recipe)
        silent = one_pass(layer, x, gradient)
        layer = fp8(linear, recipe)
        seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        layer.observer = lambda name, tensor, q, seen=seen: seen.update({name: (tensor, q.grid(), q.scale_of_each())})
        assert torch.equal(one_pass(layer, x, gradient).grad_weight, silent.grad_weight)
        assert set(seen) == {"activation", "weight", "gradient"} | again[recipe]
        for operand, (tensor, grid, scale) in seen.items():
            source = {"activation": x, "weight": linear.weight, "gradient": gradient}[operand.split(":")[0]]
            assert torch.equal(tensor, source)
            format = FORMATS["e5m2" if operand.startswith("gradient") and RECIPES[recipe].one_scale else "e4m3"]
            assert torch.equal(grid, (tensor * scale).clamp(-format.largest, format.largest).to(format.dtype).float())


def test_saved_tensor_hooks_see_what_the_backward_pass_needs() -> None:
    linear, x, gradient = layer_and_data(tokens=32)
    for recipe in NAMES:
        expected = one_pass(fp8(linear, recipe), x, gradient)
        packed = []

        def pack(tensor: Tensor, packed=packed) -> Tensor:
            packed.append(tensor)
            return tensor.clone()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ours = one_pass(fp8(linear, recipe), x, gradient)
        assert len(packed) >= 2
        assert torch.equal(ours.grad_weight, expected.grad_weight)


def test_checkpointing_recomputes_the_same_gradients() -> None:
    linear, x, gradient = layer_and_data(tokens=32)
    layer = fp8(linear, "rowwise")
    expected = one_pass(layer, x, gradient)
    x = x.requires_grad_()
    layer.zero_grad()
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).backward(gradient)
    assert torch.equal(layer.weight.grad, expected.grad_weight)  # type: ignore[arg-type]


def test_autocast_around_the_layer_changes_nothing() -> None:
    linear, x, gradient = layer_and_data(tokens=32)
    for recipe in ("tensorwise", "rowwise_with_gw_hp"):
        expected = one_pass(fp8(linear, recipe), x, gradient)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ours = one_pass(fp8(linear, recipe), x, gradient)
        assert torch.equal(ours.output, expected.output)
        assert torch.equal(ours.grad_weight, expected.grad_weight)


@pytest.mark.skipif(not compiler_for("cpu")[0], reason="torch.compile does not find what it needs here")
def test_a_model_with_fp8_layers_runs_under_torch_compile_with_the_same_bits() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(fp8(nn.Linear(32, 48), "tensorwise"), nn.ReLU(), fp8(nn.Linear(48, 16), "mxfp8"))
    x = torch.randn(64, 32)
    eager = model(x)
    eager.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    compiled = torch.compile(model)(x)
    compiled.square().sum().backward()
    assert torch.equal(compiled, eager)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ refusals


def test_the_product_dtype_is_chosen_by_what_the_processor_has_and_can_be_fixed() -> None:
    linear, _, _ = layer_and_data(tokens=1)
    assert fp8(linear, "tensorwise", "fp32").product_dtype == "fp32"
    assert fp8(linear, "tensorwise", "bf16", product_dtype="bf16").product_dtype == "bf16"
    assert fp8(linear, "tensorwise", "bf16", product_dtype="fp32").product_dtype == "fp32"
    assert fp8(linear, "tensorwise", "bf16").product_dtype in ("bf16", "fp32")
    assert fp8(linear, "tensorwise", "bf16", backend="native").product_dtype == "fp8"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "tensorwyse"}, "fp8_recipe 'tensorwyse'.*tensorwise"),
        ({"recipe": "tensorwise", "base_format": "fp16"}, "base_precision 'fp16'"),
        ({"recipe": "tensorwise", "product_dtype": "fp64"}, "product_dtype 'fp64'"),
        ({"recipe": "tensorwise", "backend": "simulated"}, "backend 'simulated'"),
        ({"recipe": "tensorwise", "base_format": "fp32", "product_dtype": "bf16"}, "needs base_precision=bf16"),
        ({"recipe": "blockwise", "backend": "native"}, "no native path"),
        ({"recipe": "rowwise", "backend": "native", "base_format": "fp32"}, "use base_precision=bf16"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        FP8Linear.from_linear(nn.Linear(4, 4), **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


def test_native_support_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert native_support("tensorwise", "cpu") == (False, "cpu has no FP8 products")
    assert native_support("tensorwise", "mps")[0] is False
    with pytest.raises(InputError):
        native_support("nothing", "cpu")
    monkeypatch.setattr(torch.version, "hip", None)
    capability = {"has": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability["has"])
    assert native_support("tensorwise", "cuda")[0] is True
    assert "blockwise" in native_support("blockwise", "cuda")[1]
    assert native_support("mxfp8", "cuda") == (False, "compute capability 9.0; mxfp8_rceil needs 10.0")
    capability["has"] = (8, 0)
    assert native_support("tensorwise", "cuda") == (False, "compute capability 8.0; tensorwise needs 8.9")
