"""The comparisons that the design asks for: precision within a level of augmentation, and "Augm" within a precision.

A contrast pairs runs by seed and lets nothing differ but its factor. Imported runs are contrasted with imported ones only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitfp8.analysis.metrics import BUNDLE_KEYS, MACHINE_KEYS, PRECISION_KEYS, Group, StudyResults
from vitfp8.analysis.statistics import LEAST_SEEDS_FOR_A_TEST, Paired, conclusion, holm, paired_difference
from vitfp8.catalog import EXPERIMENTS

#: The precision that others are compared with.
REFERENCE = "fp32"

#: Column of the primary endpoint: test accuracy with the last epoch's weights.
PRIMARY = "test_acc"

#: What stands in where no test accuracy is known (imported runs).
FALLBACK = "best_val_acc"

ENDPOINTS = {PRIMARY: "test accuracy with the last weights", FALLBACK: "best validation accuracy"}

#: The same of imported runs, which chose the best epoch on the test set.
IMPORTED_ENDPOINTS = {FALLBACK: "best accuracy on the test set, which also chose the epoch"}


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One comparison of two groups.

    Attributes:
        factor: ``precision`` or ``Augm``.
        first: the group whose value counts positive.
        second: what it is compared with.
        endpoint: the column compared, a key of `ENDPOINTS`.
        paired: differences by seed.
        adjusted_p: p adjusted for the number of contrasts (Holm); None below six seeds.
    """

    factor: str
    first: Group
    second: Group
    endpoint: str
    paired: Paired
    adjusted_p: float | None = None

    @property
    def label(self) -> str:
        """``first − second``."""
        return f"{self.first.label} − {self.second.label}"

    @property
    def endpoint_words(self) -> str:
        """What is compared, in words."""
        imported = IMPORTED_ENDPOINTS if self.first.imported else {}
        return imported.get(self.endpoint, ENDPOINTS[self.endpoint])

    @property
    def conclusion(self) -> str:
        """What the difference allows to say."""
        return conclusion(self.paired, adjusted_p=self.adjusted_p)


def _factor(first: Group, second: Group) -> str | None:
    """Which factor of the design a pair of groups contrasts; None for other pairs."""
    a, b = EXPERIMENTS.get(first.experiment), EXPERIMENTS.get(second.experiment)
    if a is None or b is None or first.origin != second.origin or first.variant != second.variant:
        return None
    if a.augmentation == b.augmentation and b.precision == REFERENCE and a.precision != REFERENCE:
        return "precision"
    if a.precision == b.precision and (a.augmentation, b.augmentation) == ("extended", "basic"):
        return "Augm"
    return None


def _differing(first: Group, second: Group, factor: str) -> list[str]:
    """Parameters that differ although the factor does not ask for it."""
    free = {"experiment", *MACHINE_KEYS, *PRECISION_KEYS, *(BUNDLE_KEYS if factor == "Augm" else ())}
    keys = sorted(first.parameters.keys() | second.parameters.keys())
    return [key for key in keys if key not in free and first.parameters.get(key) != second.parameters.get(key)]


def find_contrasts(results: StudyResults) -> tuple[list[Contrast], list[str]]:
    """Every contrast that the study's runs allow.

    Args:
        results: the study.

    Returns:
        The contrasts, and a sentence for each pair of groups that was left out.
    """
    found: list[Contrast] = []
    left_out: list[str] = []
    for second in results.groups:
        for first in results.groups:
            factor = _factor(first, second)
            if factor is None:
                continue
            differing = _differing(first, second, factor)
            if differing:
                keys = ", ".join(key.replace("_", " ") for key in differing)
                left_out.append(f"{first.label} is not compared with {second.label}: they also differ in {keys}.")
                continue
            for endpoint in (PRIMARY, FALLBACK):
                paired = paired_difference(first.by_seed(endpoint), second.by_seed(endpoint))
                if paired is not None:
                    found.append(Contrast(factor=factor, first=first, second=second, endpoint=endpoint, paired=paired))
                    break
            else:
                left_out.append(f"{first.label} is not compared with {second.label}: they share no seed with a known accuracy.")
    return _adjust(found), left_out


def _adjust(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts in the design's order (precision first), p-values adjusted for those that have a test."""
    ordered = sorted(contrasts, key=lambda contrast: contrast.factor != "precision")
    tested = [c for c in ordered if c.paired.n >= LEAST_SEEDS_FOR_A_TEST and c.paired.p is not None]
    adjusted = iter(holm([c.paired.p for c in tested if c.paired.p is not None]))
    return [
        Contrast(**{**vars(c), "adjusted_p": next(adjusted)}) if c in tested else c
        for c in ordered
    ]  # fmt: skip
