"""What may be concluded from a few runs, against independent oracles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from vitfp8.analysis.statistics import (
    binomial_standard_error,
    conclusion,
    describe,
    holm,
    least_p,
    paired_difference,
    sign_flip_p,
    wilson_interval,
)


def test_interval_of_a_mean_is_students() -> None:
    values = [0.971, 0.968, 0.975, 0.970]
    sample = describe(values)
    assert sample is not None and sample.sd is not None
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (sample.low, sample.high) == (pytest.approx(low), pytest.approx(high))
    assert sample.sd == pytest.approx(np.std(values, ddof=1))


def test_one_value_has_no_spread_and_none_has_no_mean() -> None:
    sample = describe([0.5])
    assert sample is not None and (sample.sd, sample.low, sample.high) == (None, None, None)
    assert describe([]) is None


def test_sign_flip_p_is_that_of_every_flip() -> None:
    differences = [0.3, -0.1, 0.4, 0.2, 0.05]
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in itertools.product((1, -1), repeat=5)]
    expected = np.mean([total >= abs(sum(differences)) - 1e-12 for total in sums])
    assert sign_flip_p(differences) == expected


def test_sign_flip_p_agrees_with_scipy() -> None:
    differences = np.array([0.31, 0.12, -0.05, 0.22, 0.4, 0.18, -0.02])
    result = stats.permutation_test(
        (differences, np.zeros(7)), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf,
        vectorized=True,
    )  # fmt: skip
    assert sign_flip_p(list(differences)) == pytest.approx(result.pvalue)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 8])
def test_the_least_p_is_reached_when_all_differences_agree(n: int) -> None:
    assert sign_flip_p([0.1 + 0.01 * i for i in range(n)]) == pytest.approx(least_p(n)) == 2.0 ** (1 - n)


def test_many_seeds_take_random_flips_and_repeat() -> None:
    differences = list(np.random.default_rng(1).normal(0.5, 1, 24))
    assert sign_flip_p(differences) == sign_flip_p(differences)
    assert 0.0 < sign_flip_p(differences) < 0.2


def test_holm_steps_down_and_never_falls_back() -> None:
    # by hand: 0.001·5, 0.03·4, 0.03·3 → held at 0.12, 0.04·2 → held at 0.12, 0.2·1
    assert holm([0.04, 0.001, 0.03, 0.2, 0.03]) == pytest.approx([0.12, 0.005, 0.12, 0.2, 0.12])


@pytest.mark.parametrize("correct, images", [(353, 360), (360, 360), (0, 360), (9000, 10_000)])
def test_wilson_interval_agrees_with_scipy(correct: int, images: int) -> None:
    expected = stats.binomtest(correct, images).proportion_ci(method="wilson")
    assert wilson_interval(correct / images, images) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_ten_thousand_images_at_ninety_percent_have_a_standard_error_of_0_30_points() -> None:
    assert round(100 * binomial_standard_error(0.9, 10_000), 2) == 0.30


def test_pairs_are_made_by_seed() -> None:
    paired = paired_difference({0: 0.9, 1: 0.8, 5: 0.1}, {1: 0.7, 0: 0.85, 9: 0.2})
    assert paired is not None and paired.seeds == (0, 1)
    assert paired.differences == pytest.approx((0.05, 0.1))


def test_without_a_common_seed_there_is_no_difference() -> None:
    assert paired_difference({0: 0.9}, {1: 0.8}) is None
    assert paired_difference({None: 0.9}, {1: 0.8}) is None


def test_two_single_runs_without_a_seed_are_described() -> None:
    paired = paired_difference({None: 0.9}, {None: 0.8})
    assert paired is not None and paired.n == 1 and paired.p is None


def _said(differences: list[float]) -> str:
    paired = paired_difference(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    assert paired is not None
    return conclusion(paired)


JUDGING = ("better", "worse", "significant", "outperform", "best")


def test_one_seed_is_described_and_not_judged() -> None:
    assert _said([0.0123]) == "1.23 points higher in this single run per cell"
    assert _said([-0.02]) == "2.00 points lower in this single run per cell"
    assert not any(word in _said([0.0]) + _said([0.5]) for word in JUDGING)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_below_six_seeds_the_word_significant_is_refused(n: int) -> None:
    text = _said([0.05 + 0.001 * i for i in range(n)])
    assert not any(word in text for word in JUDGING)
    assert f"{least_p(n):.3g}" in text and "no test can decide" in text


def test_six_agreeing_seeds_may_be_called_significant() -> None:
    assert "; significant at 0.05 (sign-flip test, p = 0.0312)" in _said([0.05, 0.06, 0.04, 0.05, 0.07, 0.05])


def test_no_significance_is_not_called_equality() -> None:
    text = _said([0.05, -0.06, 0.04, -0.05, 0.07, -0.05])
    assert "not significant" in text and "does not show equality" in text


def test_an_adjusted_p_decides_where_there_are_several_contrasts() -> None:
    paired = paired_difference({i: 0.1 + i / 100 for i in range(6)}, dict.fromkeys(range(6), 0.0))
    assert paired is not None and paired.p == pytest.approx(1 / 32)
    assert "not significant" in conclusion(paired, adjusted_p=4 / 32)
    assert math.isclose(holm([1 / 32] * 4)[0], 4 / 32)
