"""Scaling recipes: the table, the scales, delayed scaling's state, and quantising with either implementation, bit for bit."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from vitfp8.errors import InputError
from vitfp8.precision import rounding
from vitfp8.precision.formats import FORMATS, encode_e8m0, round_to_format, sqnr
from vitfp8.precision.native_products import store
from vitfp8.precision.quantizer import AmaxHistory, amax_of, quantize, scale_from_amax
from vitfp8.precision.recipes import RECIPES, Cast, recipe_named

INF, NAN = float("inf"), float("nan")
E4M3, E5M2 = FORMATS["e4m3"], FORMATS["e5m2"]
EVERY_CAST = sorted({cast for recipe in RECIPES.values() for casts in recipe.casts.values() for cast in casts or ()}, key=repr)


@pytest.fixture(params=["compiled", "eager"])
def quantizer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations of the quantisers, one after the other."""
    if request.param == "eager":
        monkeypatch.setattr(rounding, "load", lambda: None)
    elif rounding.load() is None:
        pytest.skip("no C++ compiler on this machine")
    return request.param


def one_scale(values: Tensor | list[float], format: str = "e4m3", rule: str = "amax", **rest) -> tuple[Tensor, float]:
    quantized = quantize(torch.as_tensor(values).reshape(1, -1), Cast(format=format, granularity="tensor", rule=rule), **rest)
    return quantized.grid()[0], float(quantized.scale)


# ------------------------------------------------------------------------------------------------ the table


def test_the_recipes_are_those_promised() -> None:
    promised = {"tensorwise", "delayed", "rowwise", "rowwise_with_gw_hp", "blockwise", "mxfp8_floor", "mxfp8_rceil", "mxfp8"}
    assert set(RECIPES) == promised
    assert RECIPES["mxfp8"] is RECIPES["mxfp8_rceil"]
    assert all(recipe.source and recipe.label for recipe in RECIPES.values())


@pytest.mark.parametrize(
    ("recipe", "activation", "weight", "gradient"),
    [
        ("tensorwise", "e4m3 tensor amax", "e4m3 tensor amax", "e5m2 tensor amax"),
        ("delayed", "e4m3 tensor history", "e4m3 tensor history", "e5m2 tensor history"),
        ("rowwise", "e4m3 row amax_pow2", "e4m3 row amax_pow2", "e4m3 row amax_pow2"),
        ("blockwise", "e4m3 1x128 amax_pow2", "e4m3 128x128 amax_pow2", "e4m3 1x128 amax_pow2"),
        ("mxfp8", "e4m3 1x32 mx_rceil", "e4m3 1x32 mx_rceil", "e4m3 1x32 mx_rceil"),
    ],
)
def test_a_recipe_states_format_granularity_and_rule(recipe: str, activation: str, weight: str, gradient: str) -> None:
    def text(cast: Cast) -> str:
        return f"{cast.format} {cast.granularity} {cast.rule}"

    row = RECIPES[recipe]
    assert tuple(map(text, row.fprop)) == (activation, weight)
    assert tuple(map(text, row.dgrad)) == (gradient, weight)
    assert row.wgrad is not None
    assert tuple(map(text, row.wgrad)) == (gradient, activation)


def test_gw_hp_keeps_the_weight_gradient_out_of_fp8_and_the_input_gradients_weight_under_one_scale() -> None:
    row = RECIPES["rowwise_with_gw_hp"]
    assert row.wgrad is None
    assert row.dgrad[1] == Cast(format="e4m3", granularity="tensor", rule="amax_pow2")


def test_delayed_looks_back_1024_steps_with_margin_0() -> None:
    assert (RECIPES["delayed"].history_length, RECIPES["delayed"].margin) == (1024, 0)
    assert not any(recipe.delayed for name, recipe in RECIPES.items() if name != "delayed")


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="fp8_recipe 'tensorwize' is unknown; did you mean tensorwise"):
        recipe_named("tensorwize")
    with pytest.raises(InputError, match="granularity"):
        Cast(format="e4m3", granularity="1x64", rule="mx_floor")
    with pytest.raises(InputError, match="power-of-two"):
        Cast(format="e4m3", granularity="row", rule="amax")


def test_rows_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["tensorwise"].margin = 1  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------ scales


@pytest.mark.parametrize(
    ("amax", "format", "rule", "scale"),
    [
        (1.0, "e4m3", "amax", 448.0),
        (1.0, "e4m3", "amax_pow2", 256.0),
        (3.0, "e4m3", "amax", 149.3333282470703),
        (3.0, "e4m3", "amax_pow2", 128.0),
        (1.0, "e5m2", "amax", 57344.0),
        (1.0, "e5m2", "amax_pow2", 32768.0),
        (448.0, "e4m3", "amax_pow2", 1.0),
        (1e-45, "e4m3", "amax", torch.finfo(torch.float32).max),
        (1e-45, "e4m3", "amax_pow2", 2.0**127),
    ],
)
def test_known_scale(amax: float, format: str, rule: str, scale: float, quantizer: str) -> None:
    assert scale_from_amax(torch.tensor(amax), FORMATS[format], rule).item() == scale
    assert one_scale([amax, -amax / 2], format, rule)[1] == scale


@pytest.mark.parametrize(
    ("amax", "format", "rule", "byte", "element"),
    [
        (1.0, "e4m3", "mx_floor", 119, 256),
        (500.0, "e4m3", "mx_floor", 127, 448),
        (448.0, "e4m3", "mx_rceil", 127, 448),
        (449.0, "e4m3", "mx_rceil", 128, 224),
        (1.76, "e4m3", "mx_rceil", 120, 224),
        (60000.0, "e5m2", "mx_floor", 127, 57344),
        (60000.0, "e5m2", "mx_rceil", 128, 28672),
        (0.0, "e4m3", "mx_floor", 0, 0),
        (0.0, "e4m3", "mx_rceil", 0, 0),
    ],
)
def test_known_mx_scale(amax: float, format: str, rule: str, byte: int, element: float, quantizer: str) -> None:
    quantized = quantize(torch.full((1, 32), amax), Cast(format=format, granularity="1x32", rule=rule))
    assert encode_e8m0(1 / quantized.scale).item() == byte
    assert quantized.grid()[0, 0].item() == element


@pytest.mark.parametrize("rule", ["mx_floor", "mx_rceil"])
def test_mx_scales_agree_with_the_definition_over_every_exponent(rule: str, quantizer: str) -> None:
    mantissas = torch.tensor([1.0, 1 + 2**-23, 1.5, 1.75, 1.75 + 2**-22, 2 - 2**-23], dtype=torch.float64)
    amaxes = (mantissas[:, None] * torch.exp2(torch.arange(-110.0, 120.0, dtype=torch.float64))).flatten().float()
    scale = quantize(amaxes.reshape(-1, 1), Cast(format="e4m3", granularity="1x32", rule=rule)).scale
    for value, used in zip(amaxes.tolist(), torch.as_tensor(scale).flatten().tolist(), strict=True):
        if rule == "mx_floor":
            expected = math.frexp(value)[1] - 1 - 8
        else:
            fraction, exponent = math.frexp(torch.tensor(value).div(torch.tensor(448.0)).item())
            expected = exponent - 1 if fraction == 0.5 else exponent
        assert used == 2.0**-expected


def test_torchao_rounds_a_few_mx_scales_differently_because_it_takes_a_float32_logarithm() -> None:
    amax = torch.tensor(448 * 2.0**60).nextafter(torch.tensor(INF))
    by_logarithm = torch.ceil(torch.log2(amax / 448)).item()
    assert by_logarithm == 60.0
    assert scale_from_amax(amax, E4M3, "mx_rceil").item() == 2.0**-61


@pytest.mark.parametrize("amax", [0.0, INF, NAN])
@pytest.mark.parametrize("rule", ["amax", "amax_pow2"])
def test_zero_and_non_finite_amaxes_get_scale_1(amax: float, rule: str, quantizer: str) -> None:
    assert scale_from_amax(torch.tensor(amax), E4M3, rule).item() == 1.0
    assert one_scale([amax, 0.0], "e4m3", rule)[1] == 1.0


def test_an_infinity_saturates_and_leaves_the_other_values_alone(quantizer: str) -> None:
    values, scale = one_scale([INF, -INF, NAN, 3.1, -0.3])
    assert scale == 1.0
    assert values.nan_to_num(-1.0).tolist() == [448.0, -448.0, -1.0, 3.0, -0.3125]


def test_a_non_finite_mx_block_gets_scale_1_and_its_neighbours_their_own(quantizer: str) -> None:
    x = torch.ones(1, 96)
    x[0, 40] = NAN
    scale = torch.as_tensor(quantize(x, RECIPES["mxfp8"].fprop[0]).scale)
    assert scale.tolist() == [[256.0, 1.0, 256.0]]


def test_amax_sees_negative_values_and_nan() -> None:
    assert amax_of(torch.tensor([1.0, -3.0])).item() == 3.0
    assert amax_of(torch.tensor([1.0, NAN])).isnan()
    assert amax_of(torch.empty(0, 4)).item() == 0.0


# ------------------------------------------------------------------------------------------------ delayed scaling


@pytest.mark.parametrize("as_tensor", [True, False])
def test_scales_of_a_history_of_three(as_tensor: bool) -> None:
    history = AmaxHistory(3, E4M3)
    used = []
    for amax in (2.0, 4.0, 1.0, 0.5, 0.5, 0.5):
        used.append(history.scale.item())
        history.update(torch.tensor(amax) if as_tensor else amax)
    assert used == [1, 224, 112, 112, 112, 448]


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("amax", [INF, NAN])
def test_a_non_finite_amax_leaves_history_and_scale_unchanged(amax: float, as_tensor: bool) -> None:
    history = AmaxHistory(4, E4M3)
    history.update(2.0)
    before = {name: value.clone() for name, value in history.state_dict().items()}
    history.update(torch.tensor(amax) if as_tensor else amax)
    assert all(torch.equal(value, before[name]) for name, value in history.state_dict().items())


@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_zero_amax_leaves_the_scale_unchanged_until_the_others_are_forgotten(as_tensor: bool) -> None:
    history = AmaxHistory(2, E4M3)
    scales = []
    for amax in (0.0, 2.0, 0.0, 0.0, 0.0):
        history.update(torch.tensor(amax) if as_tensor else amax)
        scales.append(history.scale.item())
    assert scales == [1.0, 224.0, 224.0, 224.0, 224.0]


def test_margin_divides_by_a_power_of_two() -> None:
    history = AmaxHistory(2, E5M2, margin=1)
    history.update(1.0)
    assert history.scale.item() == 28672.0


def test_tensor_and_number_updates_give_the_same_bits() -> None:
    by_number, by_tensor = AmaxHistory(7, E4M3), AmaxHistory(7, E4M3)
    for amax in torch.rand(50, generator=torch.Generator().manual_seed(3)):
        by_number.update(amax.item())
        by_tensor.update(amax)
        assert torch.equal(by_number.scale, by_tensor.scale)
    assert torch.equal(by_number.history, by_tensor.history)


def test_a_saved_history_resumes_where_it_was() -> None:
    history, resumed = AmaxHistory(5, E4M3), AmaxHistory(5, E4M3)
    for amax in (3.0, 1.0, 2.0):
        history.update(amax)
    resumed.load_state_dict(history.state_dict())
    for amax in (0.5, 0.25, 0.125, 0.1):
        history.update(amax)
        resumed.update(amax)
        assert resumed.scale.item() == history.scale.item()


def test_a_delayed_cast_without_its_scale_is_refused() -> None:
    with pytest.raises(InputError, match="history"):
        quantize(torch.ones(2, 2), RECIPES["delayed"].fprop[0])


def test_a_delayed_cast_saturates_what_the_history_did_not_expect_and_reports_the_true_amax(quantizer: str) -> None:
    quantized = quantize(torch.tensor([[4.0, -1.0]]), RECIPES["delayed"].fprop[0], scale=torch.tensor(224.0))
    assert quantized.values.tolist() == [[448.0, -224.0]]
    assert float(quantized.amax) == 4.0  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ quantising


def spread_matrix(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Values over forty powers of two, a row of zeros, a column of zeros."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.exp2(torch.randint(-20, 20, x.shape, generator=generator).float())
    x[0], x[:, -1] = 0, 0
    return x.to(dtype)


@pytest.mark.parametrize("shape", [(64, 192), (300, 200), (1, 7), (257, 33), (130, 129)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("special", [None, INF, NAN])
def test_compiled_and_eager_quantisers_give_the_same_bits(
    shape: tuple[int, int], dtype: torch.dtype, special: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rounding.load() is None:
        pytest.skip("no C++ compiler on this machine")
    x = spread_matrix(*shape, dtype)
    if special is not None:
        x[-1, 0] = special
    for cast in EVERY_CAST:
        for contracted in (0, 1):
            for container in (torch.float32, torch.bfloat16):
                arguments = {"contracted": contracted, "container": container, "scale": 0.37 if cast.rule == "history" else None}
                compiled = quantize(x, cast, **arguments)  # type: ignore[arg-type]
                with monkeypatch.context() as patch:
                    patch.setattr(rounding, "load", lambda: None)
                    eager = quantize(x, cast, **arguments)  # type: ignore[arg-type]
                assert compiled.block == eager.block
                assert torch.equal(torch.as_tensor(compiled.scale), torch.as_tensor(eager.scale))
                assert torch.equal(compiled.values.isnan(), eager.values.isnan())
                assert torch.equal(compiled.values.nan_to_num(-7.0), eager.values.nan_to_num(-7.0))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_does_not_change_the_bits(threads: int, quantizer: str) -> None:
    x = spread_matrix(700, 96, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            results.append(
                [quantize(x, cast, contracted=0, scale=2.0 if cast.rule == "history" else None) for cast in EVERY_CAST]
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a.values, b.values) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("cast", EVERY_CAST, ids=lambda cast: f"{cast.format}-{cast.granularity}-{cast.rule}")
@pytest.mark.parametrize("contracted", [0, 1])
def test_every_block_is_scaled_and_rounded_by_its_own_amax(cast: Cast, contracted: int, quantizer: str) -> None:
    """Against a plain loop over blocks with `round_to_format`: 200 and 70 are divisible by neither 128 nor 32."""
    x = spread_matrix(200, 70, torch.float32)
    given = 1.7 if cast.rule == "history" else None
    quantized = quantize(x, cast, contracted=contracted, scale=given)
    down, across = cast.block((200, 70), contracted)
    grid = quantized.grid()
    for top in range(0, 200, down):
        for left in range(0, 70, across):
            tile = x[top : top + down, left : left + across]
            scale = torch.tensor(given) if given else scale_from_amax(tile.abs().max(), cast.number_format, cast.rule)
            assert torch.equal(grid[top : top + down, left : left + across], round_to_format(tile * scale, cast.format))


@pytest.mark.parametrize("cast", EVERY_CAST, ids=lambda cast: f"{cast.format}-{cast.granularity}-{cast.rule}")
def test_a_bfloat16_container_holds_the_values_exactly(cast: Cast, quantizer: str) -> None:
    x = spread_matrix(64, 70, torch.float32)
    wide, narrow = (
        quantize(x, cast, container=container, scale=3.0 if cast.rule == "history" else None)
        for container in (torch.float32, torch.bfloat16)
    )
    assert narrow.values.dtype == torch.bfloat16
    assert torch.equal(wide.values, narrow.values.float())


def test_blocks_follow_the_contracted_dimension() -> None:
    shapes = {
        ("row", 1): (1, 200), ("row", 0): (300, 1), ("1x128", 1): (1, 128), ("1x128", 0): (128, 1),
        ("128x128", 0): (128, 128), ("128x128", 1): (128, 128), ("1x32", 1): (1, 32), ("1x32", 0): (32, 1),
        ("tensor", 0): (300, 200),
    }  # fmt: skip
    for (granularity, contracted), block in shapes.items():
        cast = Cast(format="e4m3", granularity=granularity, rule="amax_pow2")
        assert cast.block((300, 200), contracted) == block


def test_a_native_operand_holds_the_same_grid_values() -> None:
    x = spread_matrix(64, 64, torch.float32)
    for cast in EVERY_CAST:
        scale = torch.tensor(3.0) if cast.rule == "history" else None
        for contracted in (0, 1):
            native = store(x, cast, contracted, torch.tensor(cast.number_format.largest), scale)
            emulated = quantize(x, cast, contracted=contracted, scale=scale)
            assert native.values.dtype == cast.number_format.dtype
            assert torch.equal(native.values.float(), emulated.grid() if contracted else emulated.grid().t())
            assert torch.equal(native.scale, torch.as_tensor(emulated.scale).view(native.scale.shape))


def test_the_input_is_left_alone_and_need_not_be_contiguous(quantizer: str) -> None:
    x = torch.randn(50, 40)
    before = x.clone()
    for cast in EVERY_CAST:
        given = 3.0 if cast.rule == "history" else None
        transposed = quantize(x.t(), cast, scale=given)
        assert torch.equal(transposed.values, quantize(x.t().contiguous(), cast, scale=given).values)
    assert torch.equal(x, before)


def test_an_empty_operand_stays_empty(quantizer: str) -> None:
    assert quantize(torch.empty(0, 5), RECIPES["tensorwise"].fprop[0]).values.shape == (0, 5)


@pytest.mark.parametrize(
    ("format", "granularity", "rule", "decibels"),
    [
        ("e4m3", "tensor", "amax", 31.5),
        ("e5m2", "tensor", "amax", 25.6),
        ("e4m3", "1x32", "mx_floor", 30.6),
        ("e4m3", "1x32", "mx_rceil", 31.5),
    ],
)
def test_sqnr_of_a_cast_of_normal_numbers(format: str, granularity: str, rule: str, decibels: float, quantizer: str) -> None:
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    quantized = quantize(x, Cast(format=format, granularity=granularity, rule=rule))
    assert sqnr(x, quantized.dequantize()).item() == pytest.approx(decibels, abs=0.3)


@pytest.mark.parametrize(("format", "fraction"), [("e4m3", 2.18e-6), ("e5m2", 1.33e-10)])
def test_one_scale_flushes_what_is_far_below_the_amax(format: str, fraction: float, quantizer: str) -> None:
    values, _ = one_scale([1.0, fraction * 0.99, fraction * 1.01], format)
    assert values[1] == 0
    assert values[2] > 0


# ------------------------------------------------------------------------------------------------ oracles


@pytest.mark.parametrize("mode", ["floor", "rceil"])
def test_mx_quantisation_equals_torchao(mode: str) -> None:
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    x = spread_matrix(64, 96, torch.float32)
    mode_of_torchao = getattr(mx.ScaleCalculationMode, mode.upper())
    bytes_, elements = mx.to_mx(x, torch.float8_e4m3fn, 32, mode_of_torchao)
    quantized = quantize(x, RECIPES[f"mxfp8_{mode}"].fprop[0])
    assert torch.equal(encode_e8m0(1 / torch.as_tensor(quantized.scale)), bytes_.view(torch.uint8).reshape(64, 3))
    assert torch.equal(quantized.grid(), elements.float())


@pytest.mark.parametrize("granularity", ["tensor", "row"])
def test_scales_equal_torchao(granularity: str) -> None:
    float8 = pytest.importorskip("torchao.float8.float8_utils")
    config = pytest.importorskip("torchao.float8.config")
    x = torch.randn(200, 70) * torch.exp2(torch.randint(-20, 20, (200, 1)).float())
    kind = config.ScalingGranularity.TENSORWISE if granularity == "tensor" else config.ScalingGranularity.AXISWISE
    dimension = None if granularity == "tensor" else 1
    expected = float8.tensor_to_scale(x, torch.float8_e4m3fn, False, None, kind, dimension, granularity == "row")
    cast = RECIPES["tensorwise" if granularity == "tensor" else "rowwise"].fprop[0]
    scale = torch.as_tensor(quantize(x, cast).scale)
    assert torch.equal(scale.reshape(expected.shape), expected)


def test_torchao_scales_a_zero_tensor_by_448e12() -> None:
    float8 = pytest.importorskip("torchao.float8.float8_utils")
    assert float8.amax_to_scale(torch.tensor(0.0), torch.float8_e4m3fn).item() == pytest.approx(4.48e14)
    assert scale_from_amax(torch.tensor(0.0), E4M3, "amax").item() == 1.0


# ------------------------------------------------------------------------------------------------ the compiled routine


@pytest.mark.parametrize("why", ["switched off", "no compiler", "a compiler that fails"])
def test_without_a_compiled_routine_nothing_is_loaded_and_nothing_raised(
    why: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if why == "switched off":
        monkeypatch.setenv(rounding.SWITCH, "0")
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    if why == "a compiler that fails":
        compiler = tmp_path / "g++"
        compiler.write_text("#!/bin/sh\necho version; case $1 in --version) exit 0;; *) exit 1;; esac\n")
        compiler.chmod(0o755)
    assert rounding.load.__wrapped__() is None
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_the_compiled_routine_is_kept_and_used_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    if rounding.load() is None:
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert rounding.load.__wrapped__() is not None
    kept = [path.stat() for path in tmp_path.rglob("*.so")]
    assert len(kept) == 1
    assert rounding.load.__wrapped__() is not None
    assert [path.stat().st_mtime_ns for path in tmp_path.rglob("*.so")] == [kept[0].st_mtime_ns]


def test_a_cache_folder_that_cannot_be_made_is_replaced(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = rounding._cache_folder()
    assert folder.is_dir()
    assert tmp_path not in folder.parents
