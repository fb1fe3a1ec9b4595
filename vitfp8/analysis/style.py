"""How groups are drawn: each differs from the others in more than its colour."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from vitfp8.catalog import row_of

#: Styles for what the catalogue does not know, and for further groups of one experiment.
_SPARE_COLORS = ("#7f3c8d", "#525252", "#0072b2", "#b8860b", "#008080", "#d55e00")


_SPARE_LINES: tuple[Any, ...] = ((0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)), (0, (8, 2)), (0, (5, 1, 1, 1)))


_SPARE_MARKERS = ("P", "X", "v", "<", ">", "p", "*", "h")


_SPARE_HATCHES = ("\\\\", "++", "oo", "--", "||", "**")


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a group is drawn: each style differs in more than its colour."""

    color: str
    linestyle: Any
    marker: str
    hatch: str


class Styles:
    """Hands out styles: the catalogue's first, then spare ones, so that no two groups look alike."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._colors: dict[str, str] = {}
        self._spare = 0

    def take(self, experiment: str, *, of_design: bool = True) -> Style:
        """The next style for an experiment; its own one is for the experiment itself, not for variants and misnamed runs."""
        row = row_of(experiment)
        first = of_design and self._taken[experiment] == 0
        self._taken[experiment] += of_design
        if row is not None and first:
            return Style(color=row.color, linestyle=row.linestyle, marker=row.marker, hatch=row.hatch)
        color = row.color if row else self._colors.setdefault(experiment, _SPARE_COLORS[len(self._colors) % len(_SPARE_COLORS)])
        number, self._spare = self._spare, self._spare + 1
        return Style(
            color=color, linestyle=_SPARE_LINES[number % len(_SPARE_LINES)],
            marker=_SPARE_MARKERS[number % len(_SPARE_MARKERS)], hatch=_SPARE_HATCHES[number % len(_SPARE_HATCHES)],
        )  # fmt: skip
