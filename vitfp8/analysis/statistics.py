"""What may be concluded from runs, and in which words.

Every change of precision is also a reseed: a one-bit change of the initial weights leads to another network. So experiments are
compared over paired seeds, and the words follow the number of seeds: one seed is described, a few are given with an interval, and
the word "significant" needs a test that could have said otherwise. The least two-sided p of a sign-flip test over n seeds is
2^(1−n): below six seeds nothing can reach 0.05.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Fewest paired seeds with which a sign-flip test can reach 0.05.
LEAST_SEEDS_FOR_A_TEST = 6

#: Level of tests; intervals have the confidence 1 − ALPHA.
ALPHA = 0.05

_EXACT_UP_TO = 16
_RANDOM_FLIPS = 100_000


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Mean and spread of a few values.

    Attributes:
        n: how many.
        mean: arithmetic mean.
        sd: standard deviation with n − 1; None for one value.
        low: lower end of the 95 % confidence interval of the mean, from Student's t; None for one value.
        high: its upper end.
        minimum: least value.
        maximum: greatest value.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    minimum: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Differences of two experiments, seed by seed.

    Attributes:
        seeds: those that both have; (None,) for one run each without a seed.
        differences: first minus second, in the order of the seeds.
        sample: their mean and spread.
        p: two-sided p of the exact sign-flip test; None below two seeds.
        least_p: the smallest p that this number of seeds could give.
    """

    seeds: tuple[int | None, ...]
    differences: tuple[float, ...]
    sample: Sample
    p: float | None
    least_p: float

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.differences)


def describe(values: Sequence[float]) -> Sample | None:
    """Mean, standard deviation and t-based confidence interval; None without a value.

    Args:
        values: finite numbers.
    """
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    sd = low = high = None
    if n > 1:
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * sd / math.sqrt(n)
        low, high = mean - half, mean + half
    return Sample(n=n, mean=mean, sd=sd, low=low, high=high, minimum=min(values), maximum=max(values))


def least_p(n: int) -> float:
    """The smallest two-sided p of a sign-flip test over n pairs: 2^(1−n).

    Args:
        n: number of pairs, at least 1.
    """
    return 2.0 ** (1 - n)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of Fisher's sign-flip permutation test that the differences are symmetric around zero.

    All 2^n flips are counted up to n = 16; beyond, 100,000 random ones with a fixed seed, the observed one included.

    Args:
        differences: paired differences, at least one.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if n == 0:
        raise ValueError("a test needs at least one difference")
    observed = abs(values.sum())
    tolerance = 1e-12 * np.abs(values).sum()  # sums in another order are still equal
    if n <= _EXACT_UP_TO:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        return float(np.mean(np.abs(signs @ values) >= observed - tolerance))
    signs = np.random.default_rng(0).choice((1.0, -1.0), size=(_RANDOM_FLIPS, n))
    hits = int(np.sum(np.abs(signs @ values) >= observed - tolerance))
    return (hits + 1) / (_RANDOM_FLIPS + 1)


def paired_difference(first: Mapping[int | None, float], second: Mapping[int | None, float]) -> Paired | None:
    """Differences over the seeds that both have; None when they share none.

    Args:
        first: seed → value; None for an only run without a seed.
        second: the same for the other experiment.
    """
    seeds: list[int | None] = [*sorted(seed for seed in first.keys() & second.keys() if seed is not None)]
    if not seeds and len(first) == len(second) == 1 and None in first and None in second:
        seeds = [None]
    differences = tuple(first[seed] - second[seed] for seed in seeds)
    sample = describe(differences)
    if sample is None:
        return None
    p = sign_flip_p(differences) if len(differences) > 1 else None
    return Paired(seeds=tuple(seeds), differences=differences, sample=sample, p=p, least_p=least_p(len(differences)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given.

    Args:
        p_values: of the tests of one family.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def binomial_standard_error(accuracy: float, images: int) -> float:
    """Standard error of an accuracy from the finite number of test images: sqrt(a (1 − a) / n).

    Args:
        accuracy: a fraction.
        images: number of test images.
    """
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / images)


def wilson_interval(accuracy: float, images: int) -> tuple[float, float]:
    """95 % interval of an accuracy from the finite number of test images (Wilson 1927); holds near 0 and 1 too.

    Args:
        accuracy: a fraction.
        images: number of test images.
    """
    z = float(stats.norm.ppf(1 - ALPHA / 2))
    centre = (accuracy + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(accuracy * (1 - accuracy) / images + z**2 / (4 * images**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def conclusion(paired: Paired, *, adjusted_p: float | None = None, single: bool = True) -> str:
    """What a paired difference of accuracies allows to say, as the end of a sentence.

    Args:
        paired: differences of fractions.
        adjusted_p: p adjusted for the number of contrasts; None: the test's own.
        single: of one pair, whether either side has no other run.
    """
    mean = 100 * paired.sample.mean
    if paired.n == 1:
        where = "in this single run per cell" if single else "in the only seed that both have"
        if abs(mean) < 0.005:
            return f"the same to two decimals {where}"
        direction = "higher" if mean > 0 else "lower"
        return f"{abs(mean):.2f} points {direction} {where}"
    assert paired.sample.low is not None and paired.sample.high is not None and paired.p is not None
    interval = f"95 % confidence interval {100 * paired.sample.low:+.2f} to {100 * paired.sample.high:+.2f}"
    text = f"{mean:+.2f} points in the mean over {paired.n} paired seeds ({interval})".replace("-", "−")
    if paired.n < LEAST_SEEDS_FOR_A_TEST:
        return f"{text}; the least p that {paired.n} seeds can give is {paired.least_p:.3g}, so that no test can decide"
    p = paired.p if adjusted_p is None else adjusted_p
    adjusted = "" if adjusted_p is None else ", adjusted for the number of contrasts in its family"
    if p <= ALPHA:
        return f"{text}; significant at {ALPHA:g} (sign-flip test, p = {p:.3g}{adjusted})"
    return f"{text}; not significant at {ALPHA:g} (sign-flip test, p = {p:.3g}{adjusted}), which does not show equality"
