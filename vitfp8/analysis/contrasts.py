"""The comparisons that a study allows, in two families.

The *design*: precision within a level of augmentation, and "Augm" within a precision; nothing but the factor may differ. The
*variants*: each against its own base, and against FP32 of the same augmentation; whatever differs is named. Runs are paired by
seed, and imported ones are compared with imported ones only. p-values are adjusted within a family.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vitfp8.analysis.factors import (
    BUNDLE_KEYS,
    DATA_KEYS,
    MACHINE_KEYS,
    PRECISION_KEYS,
    differing_keys,
    key_words,
    value_of,
    value_words,
)
from vitfp8.analysis.grouping import Group
from vitfp8.analysis.results import StudyResults
from vitfp8.analysis.statistics import LEAST_SEEDS_FOR_A_TEST, Paired, conclusion, holm, paired_difference
from vitfp8.catalog import EXPERIMENTS, label_of

#: The precision that others are compared with.
REFERENCE = "fp32"

#: Column of the primary endpoint: test accuracy with the last epoch's weights.
PRIMARY = "test_acc"

#: What stands in where no test accuracy is known (imported runs).
FALLBACK = "best_val_acc"

ENDPOINTS = {PRIMARY: "test accuracy with the last weights", FALLBACK: "best validation accuracy"}

#: The same of imported runs, which chose the best epoch on the test set.
IMPORTED_ENDPOINTS = {FALLBACK: "best accuracy on the test set, which also chose the epoch"}

#: Families of contrasts, in the order in which they are shown: p-values are adjusted within one.
FAMILIES = ("design", "variants")


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One comparison of two groups.

    Attributes:
        factor: ``precision`` or ``Augm``; of a variant ``variant``.
        first: the group whose value counts positive.
        second: what it is compared with.
        endpoint: the column compared, a key of `ENDPOINTS`.
        paired: differences by seed.
        adjusted_p: p adjusted for the number of contrasts of the family (Holm); None below six seeds.
        changed: parameters in which a variant differs from what it is compared with, beyond what a change of precision implies.
    """

    factor: str
    first: Group
    second: Group
    endpoint: str
    paired: Paired
    adjusted_p: float | None = None
    changed: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """One of `FAMILIES`."""
        return "variants" if self.factor == "variant" else "design"

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
        return conclusion(self.paired, adjusted_p=self.adjusted_p, single=self.first.n == self.second.n == 1)

    @property
    def changed_words(self) -> str:
        """What differs and where it ran, e.g. ``fp8 recipe mxfp8 against tensorwise``; empty where nothing has to be said."""
        first, second = self.first, self.second
        parts = [
            f"{key_words(key)} {value_words(key, value_of(first.parameters, first.stated, key))} against "
            f"{value_words(key, value_of(second.parameters, second.stated, key))}"
            for key in self.changed
        ]
        if self.factor == "variant" and first.precision != second.precision and "precision" not in self.changed:
            names = [value_words("precision", group.precision or "unknown") for group in (first, second)]
            parts.insert(0, f"precision {names[0]} against {names[1]}")
        if self.factor == "variant" and not parts:
            parts.append("no parameter differs")
        if first.machine != second.machine:
            parts.append("on different machines")
        return ", ".join(parts)


def _factor(first: Group, second: Group) -> str | None:
    """Which factor of the design a pair of groups contrasts; None for other pairs."""
    a, b = EXPERIMENTS.get(first.experiment), EXPERIMENTS.get(second.experiment)
    if a is None or b is None or first.origin != second.origin or not (first.of_design and second.of_design):
        return None
    if a.augmentation == b.augmentation and b.precision == REFERENCE and a.precision != REFERENCE:
        return "precision"
    if a.precision == b.precision and (a.augmentation, b.augmentation) == ("extended", "basic"):
        return "Augm"
    return None


def _paired(first: Group, second: Group) -> tuple[str, Paired] | None:
    """The endpoint that a pair of groups can be compared in, with its differences; None where they share no seed with one."""
    for endpoint in (PRIMARY, FALLBACK):
        paired = paired_difference(first.by_seed(endpoint), second.by_seed(endpoint))
        if paired is not None:
            return endpoint, paired
    return None


def _no_seed(first: Group, second: Group) -> str:
    """The sentence about two groups that cannot be paired."""
    return f"{first.label} is not compared with {second.label}: they share no seed with a known accuracy."


def find_contrasts(results: StudyResults) -> tuple[list[Contrast], list[str]]:
    """Every contrast that the study's runs allow.

    Args:
        results: the study.

    Returns:
        The contrasts, the design's first, and a sentence for each pair and each group that was left out.
    """
    design, left_out = _design_contrasts(results.groups)
    variants, without = _variant_contrasts(results.groups)
    found = [*_adjust(sorted(design, key=lambda contrast: contrast.factor != "precision")), *_adjust(variants)]
    named = [*results.misnamed(), *left_out, *without]
    return found, [*named, *_alone(results.groups, found, named)]


def _design_contrasts(groups: Sequence[Group]) -> tuple[list[Contrast], list[str]]:
    """The design's contrasts, and a sentence for each pair that was left out."""
    found: list[Contrast] = []
    left_out: list[str] = []
    for second in groups:
        for first in groups:
            factor = _factor(first, second)
            if factor is None:
                continue
            free = (*MACHINE_KEYS, *PRECISION_KEYS, *(BUNDLE_KEYS if factor == "Augm" else ()))
            if differing := differing_keys(first.parameters, second.parameters, free=free):
                keys = ", ".join(map(key_words, differing))
                left_out.append(f"{first.label} is not compared with {second.label}: they also differ in {keys}.")
            elif (pair := _paired(first, second)) is None:
                left_out.append(_no_seed(first, second))
            else:
                changed = tuple(differing_keys(first.parameters, second.parameters, free={*free} - {*MACHINE_KEYS}))
                found.append(
                    Contrast(factor=factor, first=first, second=second, endpoint=pair[0], paired=pair[1], changed=changed)
                )
    return found, left_out


def _variant_contrasts(groups: Sequence[Group]) -> tuple[list[Contrast], list[str]]:
    """Every variant against its base and against FP32 of its augmentation, and a sentence for each that was left out."""
    found: list[Contrast] = []
    left_out: list[str] = []
    for variant in groups:
        if not variant.variant:
            continue
        base = [g for g in _cells(groups, variant.origin) if g.experiment == variant.experiment]
        name = f"its base, {label_of(variant.experiment)}"
        pairs: list[tuple[str, list[Group], Iterable[str]]] = [(name, base, ())]
        augmentation = variant.parameters.get("augmentation")
        if variant.precision not in (None, REFERENCE):
            reference = [g for g in _cells(groups, variant.origin) if _is_reference(g, augmentation)]
            if not reference or reference[0].experiment != variant.experiment:
                known = next((row.label for row in EXPERIMENTS.values() if _is_row(row.name, augmentation)), None)
                pairs.append((known or "FP32 of the same augmentation", reference, PRECISION_KEYS))
        for name, candidates, free in pairs:
            contrast = _closest(variant, name, candidates, free)
            if isinstance(contrast, str):
                left_out.append(contrast)
            else:
                found.append(contrast)
    return found, left_out


def _cells(groups: Sequence[Group], origin: str) -> list[Group]:
    """The cells of the design of one origin."""
    return [group for group in groups if group.of_design and group.origin == origin]


def _is_row(experiment: str, augmentation: object) -> bool:
    """Whether an experiment is FP32 with this augmentation, by the catalogue."""
    row = EXPERIMENTS.get(experiment)
    return row is not None and row.precision == REFERENCE and row.augmentation == augmentation


def _is_reference(group: Group, augmentation: object) -> bool:
    """Whether a cell of the design is FP32 with this augmentation."""
    return _is_row(group.experiment, augmentation)


def _closest(variant: Group, name: str, candidates: Sequence[Group], free: Iterable[str]) -> Contrast | str:
    """A variant against that of several groups which is most like it, or a sentence that says why there is no contrast."""
    if not candidates:
        return f"{variant.label} is not compared with {name}: this study holds no completed run of it."

    def unlike(other: Group) -> tuple[bool, bool, int, bool]:
        differing = _changed(variant, other, free)
        pair = _paired(variant, other)
        return bool({*DATA_KEYS} & {*differing}), pair is None, len(differing), variant.machine != other.machine

    other = min(candidates, key=unlike)
    changed = _changed(variant, other, free)
    if images := [key_words(key) for key in changed if key in DATA_KEYS]:
        return f"{variant.label} is not compared with {other.label}: their images are not the same ({', '.join(images)} differs)."
    pair = _paired(variant, other)
    if pair is None:
        return _no_seed(variant, other)
    return Contrast(factor="variant", first=variant, second=other, endpoint=pair[0], paired=pair[1], changed=changed)


def _changed(variant: Group, other: Group, free: Iterable[str]) -> tuple[str, ...]:
    """What a variant changes, beyond what a change of precision implies; a value that one side does not use is no change."""
    implied = PRECISION_KEYS if variant.precision != other.precision else ()
    keys = differing_keys(variant.parameters, other.parameters, free=(*free, *implied))
    sides = [(group.parameters, group.stated) for group in (variant, other)]
    return tuple(key for key in keys if len({repr(value_of(*side, key)) for side in sides}) > 1)


def _alone(groups: Sequence[Group], found: Sequence[Contrast], left_out: Sequence[str]) -> list[str]:
    """A sentence for each group of which nothing has been said: it stands in no contrast, and no pair of it was left out."""
    if len(groups) < 2:
        return []
    compared = {group.label for contrast in found for group in (contrast.first, contrast.second)}
    silent = [group for group in groups if group.label not in compared and not group.departures]
    silent = [group for group in silent if not any(_names(text, group.label) for text in left_out)]
    return [f"{group.label} is compared with nothing: {_why_alone(group)}." for group in silent]


def _names(sentence: str, label: str) -> bool:
    """Whether a sentence that leaves a pair out is about a group."""
    return sentence.startswith(f"{label} is not compared") or f" is not compared with {label}: " in sentence


def _why_alone(group: Group) -> str:
    """Why a group stands in no contrast."""
    row = EXPERIMENTS.get(group.experiment)
    if row is None:
        return "the design does not know it"
    partners = [
        other.label
        for other in EXPERIMENTS.values()
        if other.name != row.name and other.parameters == row.parameters
        and ((other.augmentation == row.augmentation and REFERENCE in (other.precision, row.precision))
             or other.precision == row.precision)
    ]  # fmt: skip
    imported = "imported " if group.imported else ""
    return f"this study holds no {imported}run that the design compares it with ({', '.join(partners)})"


def _adjust(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """One family, p-values adjusted for the number of those contrasts that have a test."""
    tested = [c for c in contrasts if c.paired.n >= LEAST_SEEDS_FOR_A_TEST and c.paired.p is not None]
    adjusted = iter(holm([c.paired.p for c in tested if c.paired.p is not None]))
    return [replace(c, adjusted_p=next(adjusted)) if c in tested else c for c in contrasts]
