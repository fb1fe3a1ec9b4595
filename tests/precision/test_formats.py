"""Rounding to a number format is bit for bit what independent implementations say, on every code, midpoint and special value."""

from __future__ import annotations

import dataclasses

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from vitfp8.errors import InputError
from vitfp8.precision.capability import compiler_for
from vitfp8.precision.formats import (
    FORMATS,
    decode_e8m0,
    encode_e8m0,
    format_named,
    round_and_count,
    round_to_format,
    sqnr,
)

EIGHT_BIT = ["e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz"]
FLOATS = [*EIGHT_BIT, "fp16", "bf16"]
ROUNDED = [*FLOATS, "tf32", "int8"]
ML_DTYPES = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
GFLOAT = {
    "e4m3": gfloat.formats.format_info_ocp_e4m3,
    "e5m2": gfloat.formats.format_info_ocp_e5m2,
    "fp16": gfloat.formats.format_info_binary16,
    "bf16": gfloat.formats.format_info_bfloat16,
}
INF = float("inf")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, the sign of zero included; NaN compared by class."""
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


def random_bit_patterns(count: int = 1_000_000) -> Tensor:
    generator = torch.Generator().manual_seed(20)
    return torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(torch.float32)


def values_in_range(name: str, count: int = 200_000) -> Tensor:
    """Values spread over every exponent that the format has, and one beyond each end."""
    row = FORMATS[name]
    generator = torch.Generator().manual_seed(7)
    low, high = np.log2(row.smallest_subnormal) - 2, np.log2(row.largest) + 1
    exponents = torch.rand(count, generator=generator, dtype=torch.float64) * (high - low) + low
    values = torch.randn(count, generator=generator, dtype=torch.float64).sign() * torch.exp2(exponents)
    return values.clamp(-3.4e38, 3.4e38).float()


def grid(name: str) -> Tensor:
    """Every non-negative finite number of a format, ascending (of the 16-bit ones too; torch decodes the codes)."""
    row = FORMATS[name]
    if name == "int8":
        return torch.arange(128.0)
    integer = torch.uint8 if row.bits == 8 else torch.int16
    codes = torch.arange(2 ** (row.bits - 1)).to(integer)
    values = codes.view(row.dtype).float()
    return values[values.isfinite()].sort().values


def midpoints_and_neighbours(name: str) -> Tensor:
    points = grid(name).double()
    middle = ((points[1:] + points[:-1]) / 2).float()
    above, below = torch.nextafter(middle, torch.tensor(INF)), torch.nextafter(middle, torch.tensor(-INF))
    positive = torch.cat([middle, above, below])
    return torch.cat([positive, -positive])


# ------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("name", FLOATS)
def test_table_agrees_with_torch_finfo(name: str) -> None:
    row = FORMATS[name]
    info = torch.finfo(row.dtype)
    assert (row.largest, row.smallest_normal, row.bits) == (info.max, info.smallest_normal, info.bits)
    assert row.smallest_subnormal == row.smallest_normal * 2.0**-row.mantissa_bits


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_table_agrees_with_the_codes(name: str) -> None:
    row = FORMATS[name]
    values = torch.arange(256).to(torch.uint8).view(row.dtype).float()
    finite = values[values.isfinite()]
    assert finite.max() == row.largest
    assert finite[finite > 0].min() == row.smallest_subnormal
    assert bool(values.isinf().any()) == row.has_infinity
    assert bool(values.isnan().any()) == row.has_nan
    assert bool((torch.signbit(values) & (values == 0)).any()) == row.has_negative_zero


@pytest.mark.parametrize("name", FLOATS)
def test_bias_follows_from_the_smallest_normal_number(name: str) -> None:
    assert FORMATS[name].smallest_normal == 2.0 ** (1 - FORMATS[name].bias)


def test_rows_are_named_by_their_key_and_frozen() -> None:
    assert all(key == row.name for key, row in FORMATS.items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        FORMATS["e4m3"].largest = 1.0  # type: ignore[misc]


def test_a_format_without_a_torch_dtype_has_none() -> None:
    assert FORMATS["tf32"].dtype is None
    assert FORMATS["e4m3"].dtype is torch.float8_e4m3fn


def test_unknown_format_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="e4m4.*did you mean e4m3"):
        format_named("e4m4")
    with pytest.raises(InputError, match="unknown"):
        round_to_format(torch.zeros(1), "posit")


# ------------------------------------------------------------------------------------------------ known values

VECTORS = {
    "e4m3": [
        (1.0625, 1.0), (1.1875, 1.25), (17, 16), (19, 20), (0.1, 0.1015625), (0.3, 0.3125), (np.pi, 3.25),
        (2**-9, 2**-9), (2**-10, 0), (3 * 2**-10, 2**-8), (5 * 2**-10, 2**-8), (7.5 * 2**-9, 2**-6),
        (2**-10 * (1 + 2**-20), 2**-9), (464, 448), (465, 448), (1e9, 448), (INF, 448), (-INF, -448),
    ],
    "e5m2": [
        (1.125, 1.0), (1.375, 1.5), (9, 8), (11, 12), (0.1, 0.09375), (np.pi, 3.0), (2**-16, 2**-16), (2**-17, 0),
        (3 * 2**-17, 2**-15), (61439, 57344), (61440, 57344), (INF, 57344),
    ],
    "bf16": [(257, 256), (259, 260), (1 + 2**-8, 1)],
    "fp16": [(65519.99, 65504), (65520, 65504), (2049, 2048), (2051, 2052)],
    "tf32": [(1 + 2**-11, 1), (1 + 3 * 2**-11, 1 + 2**-9), (1 + 2**-11 + 2**-20, 1 + 2**-10), (2**-137, 0)],
    "int8": [(0.5, 0), (1.5, 2), (2.5, 2), (126.5, 126), (127.5, 127), (-128, -127), (1e9, 127)],
}  # fmt: skip

RAW_VECTORS = {
    "e4m3": [(464, 448), (INF, np.nan), (1e9, np.nan), (np.nextafter(np.float32(464), np.float32(500)), np.nan)],
    "e5m2": [(61439, 57344), (61440, INF), (-61440, -INF), (INF, INF)],
    "e4m3fnuz": [(247.9, 240), (248, np.nan), (INF, np.nan)],
    "fp16": [
        (65519.99, 65504), (65520, INF), (-65520, -INF), (2**-25, 0), (2**-25 * (1 + 2**-20), 2**-24),
        (1.5 * 2**-24, 2**-23),
    ],
    "bf16": [(3.4e38, INF), (-3.4e38, -INF), (3.38e38, 3.3762391e38)],
    "int8": [(127.5, np.nan), (127.4, 127)],
}  # fmt: skip


def flattened(table: dict) -> list[tuple[str, float, float]]:
    return [(name, float(value), float(result)) for name, rows in table.items() for value, result in rows]


@pytest.mark.parametrize(("name", "value", "result"), flattened(VECTORS))
def test_known_value_saturating(name: str, value: float, result: float) -> None:
    assert round_to_format(torch.tensor([value]), name).item() == torch.tensor(result).item()


@pytest.mark.parametrize(("name", "value", "result"), flattened(RAW_VECTORS))
def test_known_value_raw(name: str, value: float, result: float) -> None:
    rounded = round_to_format(torch.tensor([value]), name, saturate=False)
    assert same_bits(rounded, torch.tensor([result]))


def test_published_fp8_error_of_one_tenth() -> None:
    assert round_to_format(torch.tensor(0.1), "e4m3").item() == 0.1015625


# ------------------------------------------------------------------------------------------------ oracles


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("values", [random_bit_patterns, values_in_range, midpoints_and_neighbours])
def test_saturating_equals_clamp_then_torch_cast(name: str, values) -> None:
    x = values() if values is random_bit_patterns else values(name)
    row = FORMATS[name]
    assert same_bits(round_to_format(x, name), x.clamp(-row.largest, row.largest).to(row.dtype).float())


@pytest.mark.parametrize("name", [*FLOATS, "e8m0"])
@pytest.mark.parametrize("values", [random_bit_patterns, values_in_range])
def test_raw_equals_ml_dtypes(name: str, values) -> None:
    x = values() if values is random_bit_patterns else values(name)
    if name == "e8m0":
        x = x[x > 0]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.numpy().astype(ML_DTYPES[name]).astype(np.float32)
    assert same_bits(round_to_format(x, name, saturate=False), torch.from_numpy(expected))


@pytest.mark.parametrize("name", GFLOAT)
def test_saturating_equals_gfloat(name: str) -> None:
    x = torch.cat([values_in_range(name, 300), midpoints_and_neighbours(name)[::101], torch.tensor([-0.0, INF])])
    expected = [gfloat.round_float(GFLOAT[name], value, sat=True) for value in x.double().tolist()]
    assert same_bits(round_to_format(x, name), torch.tensor(expected))


def test_int8_equals_gfloat_whose_integers_are_64_times_smaller() -> None:
    x = torch.linspace(-126.9, 126.9, 2001)
    grid_64th = [64 * gfloat.round_float(gfloat.formats.format_info_ocp_int8, value / 64) for value in x.double().tolist()]
    assert torch.equal(round_to_format(x, "int8"), torch.tensor(grid_64th))


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_arithmetic_equals_the_cast_that_processors_use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([random_bit_patterns(), midpoints_and_neighbours(name)])
    by_cast = round_to_format(x, name, saturate=False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert same_bits(round_to_format(x, name, saturate=False), by_cast)


def test_tf32_keeps_ten_bits_of_random_patterns() -> None:
    x = random_bit_patterns()
    rounded = round_to_format(x, "tf32", saturate=False)
    assert int((rounded.view(torch.int32) & 0x1FFF)[rounded.isfinite()].abs().max()) == 0
    scale = torch.exp2(torch.floor(torch.log2(x.abs().double())) - 10)
    normal = x.isfinite() & (x.abs() > 2.0**-126) & rounded.isfinite()
    assert bool(((rounded.double() - x.double()).abs() <= scale / 2)[normal].all())


# ------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("name", EIGHT_BIT)
@pytest.mark.parametrize("saturate", [True, False])
def test_every_code_round_trips(name: str, saturate: bool) -> None:
    row = FORMATS[name]
    values = torch.arange(256).to(torch.uint8).view(row.dtype).float()
    if saturate:
        values = values[~values.isinf()]
    assert same_bits(round_to_format(values, name, saturate), values)


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("saturate", [True, False])
def test_rounding_is_idempotent(name: str, saturate: bool) -> None:
    once = round_to_format(random_bit_patterns(200_000), name, saturate)
    assert same_bits(round_to_format(once, name, saturate), once)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_is_monotone(name: str) -> None:
    x = random_bit_patterns(200_000)
    ascending = x[~x.isnan()].sort().values
    rounded = round_to_format(ascending, name)
    assert bool((rounded[1:] >= rounded[:-1]).all())


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("saturate", [True, False])
def test_rounding_is_odd(name: str, saturate: bool) -> None:
    x = random_bit_patterns(200_000)
    plus, minus = round_to_format(x, name, saturate), round_to_format(-x, name, saturate)
    assert bool(((plus == -minus) | (plus.isnan() & minus.isnan())).all())


@pytest.mark.parametrize("name", ROUNDED)
def test_nan_stays_and_negative_zero_stays_where_the_format_has_it(name: str) -> None:
    rounded = round_to_format(torch.tensor([float("nan"), -0.0, -1e-45]), name)
    assert bool(rounded[0].isnan())
    assert torch.signbit(rounded[1]).item() == FORMATS[name].has_negative_zero
    assert rounded[1:].tolist() == [0.0, 0.0]


def test_shape_and_strides_do_not_matter() -> None:
    x = torch.randn(6, 10, 4)
    assert torch.equal(round_to_format(x.transpose(0, 2), "e4m3"), round_to_format(x, "e4m3").transpose(0, 2))
    assert round_to_format(torch.tensor(3.3), "e4m3").shape == ()
    assert round_to_format(torch.empty(0, 3), "e5m2").shape == (0, 3)


def test_sixteen_bit_input_is_rounded_from_its_exact_float32_value() -> None:
    x = torch.randn(1000)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = round_to_format(x.to(dtype), "e4m3")
        assert rounded.dtype == torch.float32
        assert torch.equal(rounded, round_to_format(x.to(dtype).float(), "e4m3"))


def test_float64_is_refused_because_it_would_be_rounded_twice() -> None:
    with pytest.raises(InputError, match="rounds twice"):
        round_to_format(torch.zeros(1, dtype=torch.float64), "e4m3")
    with pytest.raises(InputError, match="int64"):
        round_to_format(torch.zeros(1, dtype=torch.int64), "e4m3")


def test_the_input_is_left_alone_and_the_result_carries_no_gradient() -> None:
    x = torch.randn(50, requires_grad=True)
    before = x.detach().clone()
    rounded = round_to_format(x, "e4m3")
    assert torch.equal(x.detach(), before)
    assert not rounded.requires_grad


@pytest.mark.skipif(not compiler_for("cpu")[0], reason="torch.compile does not find what it needs here")
@pytest.mark.parametrize("name", ["e4m3", "bf16"])
def test_compiled_rounding_gives_the_same_bits(name: str) -> None:
    torch._dynamo.reset()
    x = torch.cat([random_bit_patterns(20_000), midpoints_and_neighbours("e4m3")])
    compiled = torch.compile(lambda tensor: round_to_format(tensor, name))
    assert same_bits(compiled(x), round_to_format(x, name))


# ------------------------------------------------------------------------------------------------ counts, E8M0, SQNR


def test_counts_tell_underflow_saturation_and_nonfinite_apart() -> None:
    x = torch.tensor([0.0, 2.0**-11, -(2.0**-10), 2.0**-9, 448.0, 464.0, 465.0, -1e9, INF, -INF, float("nan")])
    for saturate in (True, False):
        rounded, counts = round_and_count(x, "e4m3", saturate)
        assert same_bits(rounded, round_to_format(x, "e4m3", saturate))
        assert (counts.total, int(counts.underflow), int(counts.saturated), int(counts.nonfinite)) == (11, 2, 2, 3)
    assert counts.fractions() == {"underflow": 2 / 11, "saturated": 2 / 11, "nonfinite": 3}


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8", "e5m2fnuz"])
def test_counts_of_a_tensor_in_range_are_zero(name: str) -> None:
    counts = round_and_count(torch.tensor([1.0, -2.0, 0.0]), name)[1]
    assert counts.fractions() == {"underflow": 0.0, "saturated": 0.0, "nonfinite": 0}


@pytest.mark.parametrize(("value", "code"), [(1.0, 127), (1.25, 127), (1.5, 128), (3.0, 129), (0.75, 127), (0.0, 0), (INF, 255)])
def test_known_e8m0_code(value: float, code: int) -> None:
    assert encode_e8m0(torch.tensor([value])).item() == code


def test_e8m0_codes_equal_torch_on_random_bit_patterns() -> None:
    x = torch.cat([random_bit_patterns(), 2.0**-127 * torch.arange(0, 4, 2.0**-10)])
    assert torch.equal(encode_e8m0(x), x.to(torch.float8_e8m0fnu).view(torch.uint8))


def test_every_e8m0_code_round_trips() -> None:
    codes = torch.arange(256).to(torch.uint8)
    assert same_bits(decode_e8m0(codes), codes.view(torch.float8_e8m0fnu).float())
    assert torch.equal(encode_e8m0(decode_e8m0(codes)), codes)


def test_saturating_e8m0_stays_finite() -> None:
    assert round_to_format(torch.tensor([3e38, INF]), "e8m0").tolist() == [2.0**127, 2.0**127]
    assert round_to_format(torch.tensor([3e38, INF]), "e8m0", saturate=False).isnan().all()


@pytest.mark.parametrize(("name", "decibels"), [("e4m3", 31.5), ("e5m2", 25.6), ("bf16", 55.6), ("fp16", 73.7)])
def test_sqnr_of_a_cast_of_normal_numbers(name: str, decibels: float) -> None:
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    scale = 1.0 if name in ("bf16", "fp16") else FORMATS[name].largest / x.abs().max()
    assert sqnr(x, round_to_format(x * scale, name) / scale).item() == pytest.approx(decibels, abs=0.3)


def test_sqnr_is_a_power_ratio_in_decibels_and_infinite_when_equal() -> None:
    x = torch.tensor([3.0, 4.0])
    assert sqnr(x, x).item() == INF
    assert sqnr(x, x + torch.tensor([0.3, -0.4])).item() == pytest.approx(20.0, abs=1e-4)


# ------------------------------------------------------------------------------------------------ differences between stacks


def test_torch_saturates_e4m3_infinities_where_ml_dtypes_gives_nan() -> None:
    x = torch.tensor([INF, 465.0])
    assert x.to(torch.float8_e4m3fn).float().tolist() == [448.0, 448.0]
    assert np.isnan(x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)).all()
    assert round_to_format(x, "e4m3").tolist() == [448.0, 448.0]
    assert round_to_format(x, "e4m3", saturate=False).isnan().all()


def test_torch_does_not_saturate_e5m2_nor_the_fnuz_formats() -> None:
    assert torch.tensor([61440.0]).to(torch.float8_e5m2).float().item() == INF
    assert torch.tensor([1e9]).to(torch.float8_e4m3fnuz).float().isnan().all()
    assert round_to_format(torch.tensor([61440.0]), "e5m2").item() == 57344.0


def test_torch_gives_zero_and_negative_numbers_an_e8m0_code_where_ml_dtypes_gives_nan() -> None:
    x = torch.tensor([0.0, -1.0])
    assert encode_e8m0(x).tolist() == [0, 127]
    assert x.numpy().astype(ml_dtypes.float8_e8m0fnu).view(np.uint8).tolist() == [255, 255]


def test_rounding_float64_through_float32_differs_from_rounding_once() -> None:
    x = 1.0625 + 2.0**-40  # above the midpoint of 1 and 1.125; the midpoint itself in float32
    assert round_to_format(torch.tensor(x, dtype=torch.float32), "e4m3").item() == 1.0
    assert gfloat.round_float(GFLOAT["e4m3"], x) == 1.125
