"""Quantisations after training, grouped as trainings are: what was quantised, in which ways, and which of them cost most.

Differences are to the source on the same test images. Which way is the best one is seen on the test set too, so that its accuracy
is that of a choice made there.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vitfp8.analysis.grouping import group_label
from vitfp8.analysis.results import StudyResults
from vitfp8.analysis.values import finite_values
from vitfp8.catalog import QUANTIZED_FORMATS, QUANTIZED_GRANULARITIES, QUANTIZED_OPERANDS
from vitfp8.record import NOT_8_BITS, QuantizationRow, RunRecord

#: Format that is not an 8-bit format: it is marked wherever it stands.
PUBLISHED = NOT_8_BITS


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to quantise over the runs of a study.

    Attributes:
        format, granularity, operands: see `vitfp8.record.QuantizationRow`.
        rows: one a run.
        imported: whether they come from an earlier project; such rows are never averaged with others.
    """

    format: str
    granularity: str
    operands: str
    rows: Sequence[QuantizationRow]
    imported: bool = False

    @property
    def label(self) -> str:
        """What figures and tables call its format."""
        return format_label(self.format) + (" (imported)" if self.imported else "")

    def values(self, key: str) -> list[float]:
        """The finite values of a field, a run each.

        Args:
            key: of `vitfp8.record.QuantizationRow`.
        """
        return finite_values(getattr(row, key) for row in self.rows)

    def mean(self, key: str) -> float | None:
        """Their mean; None where there is none.

        Args:
            key: of `vitfp8.record.QuantizationRow`.
        """
        values = self.values(key)
        return statistics.fmean(values) if values else None


def ways(records: Sequence[RunRecord]) -> list[Way]:
    """The ways to quantise that some records hold, in the catalogue's order.

    Args:
        records: of completed quantisations.
    """
    found: dict[tuple[str, str, str, bool], list[QuantizationRow]] = {}
    for record in records:
        for row in record.quantization:
            found.setdefault((row.format, row.granularity, row.operands, record.origin == "imported"), []).append(row)
    orders = [list(QUANTIZED_FORMATS), list(QUANTIZED_GRANULARITIES), list(QUANTIZED_OPERANDS)]

    def order(key: tuple[str, str, str, bool]) -> tuple[int, ...]:
        places = (
            names.index(value) if value in names else len(names)
            for names, value in zip((orders[2], orders[0], orders[1]), (key[2], key[0], key[1]), strict=True)
        )
        return (int(key[3]), *places)

    return [
        Way(format=key[0], granularity=key[1], operands=key[2], rows=found[key], imported=key[3])
        for key in sorted(found, key=order)
    ]


def format_label(name: str) -> str:
    """What figures and tables call a format.

    Args:
        name: a key of `QUANTIZED_FORMATS`.
    """
    return "INT ±240" if name == PUBLISHED else QUANTIZED_FORMATS.get(name, name)


@dataclass(frozen=True, kw_only=True)
class QuantizedGroup:
    """Completed quantisations that differ in their seed alone.

    Attributes:
        label: what tables and sentences call it.
        runs: run → its record, at least one.
    """

    label: str
    runs: Mapping[str, RunRecord]

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def records(self) -> list[RunRecord]:
        """The records, in the order of the seeds."""
        return list(self.runs.values())

    @property
    def first(self) -> RunRecord:
        """The record of the first seed."""
        return self.records[0]

    @cached_property
    def judged(self) -> list[tuple[Way, float]]:
        """The ways to quantise to 8 bits with their mean difference of accuracy to the source, the best first."""
        known = [(way, value) for way in ways(self.records) if (value := way.mean("accuracy_difference")) is not None]
        return sorted((pair for pair in known if pair[0].format != PUBLISHED), key=lambda pair: -pair[1])

    @property
    def source_values(self) -> list[float]:
        """Test accuracies of the sources, a run each where it is known."""
        return finite_values(record.source.get("test_acc") for record in self.records)


def quantized_groups(results: StudyResults) -> list[QuantizedGroup]:
    """The completed quantisations of a study, the experiment itself first, imported ones last.

    Args:
        results: the study.
    """
    cells = results.quantization_cells
    firsts = [next(iter(cell.values())) for cell in cells]
    labels = [group_label(record.experiment, record.variant, record.origin) for record in firsts]
    return [
        QuantizedGroup(label=label if labels.count(label) == 1 else f"{label}, {', '.join(cell)}", runs=cell)
        for label, cell in zip(labels, cells, strict=True)
    ]


def way_words(way: Way) -> str:
    """A way to quantise in words, e.g. ``FP8 E4M3, channel, weights``.

    Args:
        way: which.
    """
    return f"{format_label(way.format)}, {way.granularity}, {QUANTIZED_OPERANDS.get(way.operands, way.operands)}"
