"""Scaling recipes: which operand of which product goes to which format, under which scale.

FP8 has 256 codes, so a tensor must be moved into their range before it is rounded: quantised value = round(x · scale),
and the product of two quantised tensors is divided by both scales afterwards. A recipe says, for each of the three
products of a linear layer, the format of each operand, how many elements share a scale, and how the scale follows from
their largest magnitude (*amax*). `RECIPES` is the table, with a source for each row.

Granularity
    ``tensor``: one scale. ``row``: one for each vector along the contracted dimension. ``1x128`` and ``1x32``: one for
    each piece of 128 or 32 elements along the contracted dimension. ``128x128``: one for each tile. Whatever does not
    divide evenly ends in a smaller block, which is what zero padding would give. Rows and pieces follow the dimension
    that a product sums over, so an operand of two products is quantised twice, each time from high precision; a quantised
    tensor is never transposed.

Scale rule
    ``amax``: largest number ÷ amax. ``history``: largest number ÷ the largest amax of the last steps (delayed scaling), which is
    known before the tensor is, and so costs no pass over it. ``amax_pow2``: the former rounded down to a power of two, which
    makes scaling itself exact. ``mx_floor`` and ``mx_rceil``: the two ways to the E8M0 scale of the MX formats,
    2^(⌊log2 amax⌋ − emax) (OCP; saturates the largest elements) and amax ÷ largest rounded up to a power of two (cuBLAS, TE).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from vitfp8.errors import InputError, suggest
from vitfp8.precision.formats import FORMATS, NumberFormat

PRODUCTS = ("fprop", "dgrad", "wgrad")
"""The three products of a linear layer: output, input gradient, weight gradient."""

#: Rows and columns of a block whose columns lie along the contracted dimension; None: all of them.
GRANULARITIES: dict[str, tuple[int | None, int | None]] = {
    "tensor": (None, None),
    "row": (1, None),
    "1x128": (1, 128),
    "128x128": (128, 128),
    "1x32": (1, 32),
}

#: Scale rules whose scales are powers of two, so that a dequantised value is exact.
POWER_OF_TWO_RULES = ("amax_pow2", "mx_floor", "mx_rceil")

SCALE_RULES = ("amax", "history", *POWER_OF_TWO_RULES)


@dataclass(frozen=True, kw_only=True)
class Cast:
    """How one operand of one product is quantised.

    Attributes:
        format: a key of `vitfp8.precision.formats.FORMATS`.
        granularity: a key of `GRANULARITIES`.
        rule: one of `SCALE_RULES`.
    """

    format: str
    granularity: str
    rule: str

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"format {self.format!r} is unknown; {suggest(self.format, FORMATS)}")
        if self.granularity not in GRANULARITIES:
            raise InputError(f"granularity {self.granularity!r} is unknown; {suggest(self.granularity, GRANULARITIES)}")
        if self.rule not in SCALE_RULES:
            raise InputError(f"scale rule {self.rule!r} is unknown; {suggest(self.rule, SCALE_RULES)}")
        if self.granularity != "tensor" and self.rule not in POWER_OF_TWO_RULES:
            raise InputError(f"granularity {self.granularity} needs a power-of-two scale rule, not {self.rule!r}")

    @property
    def number_format(self) -> NumberFormat:
        """The row of the format table."""
        return FORMATS[self.format]

    @property
    def power_of_two(self) -> bool:
        """Whether its scales are powers of two."""
        return self.rule in POWER_OF_TWO_RULES

    @property
    def orientation_free(self) -> bool:
        """Whether the blocks are the same whichever dimension is contracted."""
        rows, columns = GRANULARITIES[self.granularity]
        return rows == columns

    def block(self, shape: tuple[int, int], contracted: int) -> tuple[int, int]:
        """Rows and columns of a block of a matrix.

        Args:
            shape: of the matrix.
            contracted: the dimension that the product sums over, 0 or 1.
        """
        across, along = GRANULARITIES[self.granularity]
        sizes = (across, along) if contracted == 1 else (along, across)
        rows, columns = (max(1, min(size or length, length)) for size, length in zip(sizes, shape, strict=True))
        return rows, columns


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One scaling recipe. A product is None where its operands stay in high precision.

    Attributes:
        name: its key in `RECIPES` (an alias leads to the same object).
        label: what a table or figure calls it.
        fprop: casts of (activation, weight).
        dgrad: casts of (gradient, weight).
        wgrad: casts of (gradient, activation), or None.
        history_length: steps that delayed scaling looks back; 0 elsewhere.
        margin: delayed scaling divides by 2^margin.
        at_zero_amax: what the scale is when all elements are zero.
        at_nonfinite_amax: what the scale is when an element is infinite or NaN.
        source: where the recipe comes from, and what it is good for.
    """

    name: str
    label: str
    fprop: tuple[Cast, Cast]
    dgrad: tuple[Cast, Cast]
    wgrad: tuple[Cast, Cast] | None
    history_length: int = 0
    margin: int = 0
    at_zero_amax: str = "scale 1"
    at_nonfinite_amax: str = "scale 1"
    source: str = ""

    @property
    def one_scale(self) -> bool:
        """Whether every operand has one scale that is not a power of two: products run on the grid, and are descaled after."""
        return not self.fprop[0].power_of_two

    @property
    def delayed(self) -> bool:
        """Whether scales come from a history of amaxes, which is state."""
        return self.history_length > 0

    @property
    def casts(self) -> dict[str, tuple[Cast, Cast] | None]:
        """The casts by product, in the order of `PRODUCTS`."""
        return {"fprop": self.fprop, "dgrad": self.dgrad, "wgrad": self.wgrad}


def _recipe(
    name: str,
    label: str,
    source: str,
    *,
    activation: Cast,
    weight: Cast,
    gradient: Cast,
    dgrad_weight: Cast | None = None,
    wgrad: bool = True,
    **rest: object,
) -> Recipe:
    return Recipe(
        name=name,
        label=label,
        source=source,
        fprop=(activation, weight),
        dgrad=(gradient, dgrad_weight or weight),
        wgrad=(gradient, activation) if wgrad else None,
        **rest,  # type: ignore[arg-type]
    )


def _cast(format: str, granularity: str, rule: str) -> Cast:
    return Cast(format=format, granularity=granularity, rule=rule)


_ROW, _BLOCK, _TILE = (_cast("e4m3", granularity, "amax_pow2") for granularity in ("row", "1x128", "128x128"))
_MX_FLOOR, _MX_RCEIL = (_cast("e4m3", "1x32", rule) for rule in ("mx_floor", "mx_rceil"))

_ROWS = (
    _recipe(
        "tensorwise",
        "tensorwise (current) scaling",
        "torchao 'tensorwise' = Transformer Engine Float8CurrentScaling. The fastest on hardware; one outlier costs all.",
        activation=_cast("e4m3", "tensor", "amax"),
        weight=_cast("e4m3", "tensor", "amax"),
        gradient=_cast("e5m2", "tensor", "amax"),
    ),
    _recipe(
        "delayed",
        "delayed scaling",
        "Transformer Engine DelayedScaling (HYBRID, margin 0, amax_compute_algo 'max'); Micikevicius et al. 2022. Saves the pass "
        "over the tensor that finds its amax; a sudden growth saturates until the next step.",
        activation=_cast("e4m3", "tensor", "history"),
        weight=_cast("e4m3", "tensor", "history"),
        gradient=_cast("e5m2", "tensor", "history"),
        history_length=1024,
        at_zero_amax="unchanged",
        at_nonfinite_amax="unchanged",
    ),
    _recipe(
        "rowwise",
        "rowwise scaling",
        "torchao 'rowwise': E4M3 throughout, a scale for each token and output channel.",
        activation=_ROW,
        weight=_ROW,
        gradient=_ROW,
    ),
    _recipe(
        "rowwise_with_gw_hp",
        "rowwise scaling, weight gradient in high precision",
        "torchao 'rowwise_with_gw_hp': the most accurate of torchao's three; dgrad's weight under one scale.",
        activation=_ROW,
        weight=_ROW,
        gradient=_ROW,
        dgrad_weight=_cast("e4m3", "tensor", "amax_pow2"),
        wgrad=False,
    ),
    _recipe(
        "blockwise",
        "blockwise scaling, 1×128 and 128×128",
        "DeepSeek-V3 (arXiv 2412.19437), section 3.3; Transformer Engine Float8BlockScaling with power-of-two scales.",
        activation=_BLOCK,
        weight=_TILE,
        gradient=_BLOCK,
    ),
    _recipe(
        "mxfp8_floor",
        "MXFP8, scale rounded down (OCP)",
        "OCP Microscaling Formats v1.0, section 6.3; torchao ScaleCalculationMode.FLOOR. Saturates the largest elements.",
        activation=_MX_FLOOR,
        weight=_MX_FLOOR,
        gradient=_MX_FLOOR,
        at_zero_amax="byte 0",
    ),
    _recipe(
        "mxfp8_rceil",
        "MXFP8, scale rounded up (cuBLAS)",
        "cuBLAS 1D block scaling; Transformer Engine MXFP8BlockScaling; torchao ScaleCalculationMode.RCEIL. Saturates nothing.",
        activation=_MX_RCEIL,
        weight=_MX_RCEIL,
        gradient=_MX_RCEIL,
        at_zero_amax="byte 0",
    ),
)

_BY_NAME = {recipe.name: recipe for recipe in _ROWS}

RECIPES: MappingProxyType[str, Recipe] = MappingProxyType({**_BY_NAME, "mxfp8": _BY_NAME["mxfp8_rceil"]})
"""Recipe by name. ``mxfp8`` is an alias of ``mxfp8_rceil``, what hardware does."""


def recipe_named(name: str) -> Recipe:
    """The row of `RECIPES` called ``name``.

    Raises:
        InputError: the name is unknown; the message suggests one.
    """
    try:
        return RECIPES[name]
    except (KeyError, TypeError):
        raise InputError(f"fp8_recipe {name!r} is unknown; {suggest(name, RECIPES)}") from None
