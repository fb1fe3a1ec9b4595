"""Counter-based draws: the hash, its numbers' distribution, orders that only their coordinates decide."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vitfp8.data.draws import DRAWS, Draw, counter_hash, epoch_order, fixed_noise, fixed_order, image_draws, uniform

MASK = (1 << 64) - 1


def splitmix64(state: int, number: int) -> int:
    """Output number ``number`` of SplitMix64 in Python's integers (the published reference code)."""
    word = (state + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def test_hash_of_one_counter_is_splitmix64s_published_sequence() -> None:
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert counter_hash(np.arange(3)).tolist() == expected


def test_hash_chains_its_counters_modulo_two_to_the_64() -> None:
    counters = (2**63 + 5, 49, 59_999, 41)
    expected = 0
    for counter in counters:
        expected = splitmix64(expected, counter)
    assert counter_hash(*counters).item() == expected
    assert counter_hash(-1).item() == splitmix64(0, MASK)


@pytest.mark.parametrize("row", [Draw.CROP_TOP, Draw.FLIP, Draw.HUE, Draw.ERASING_AREA, DRAWS - 1])
def test_draws_are_uniform_over_images(row: int) -> None:
    numbers = image_draws(7, 3, np.arange(20_000))[row]
    assert numbers.min() >= 0 and numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4


def test_draws_of_neighbouring_coordinates_are_uncorrelated() -> None:
    images = np.arange(20_000)
    base = image_draws(0, 0, images)
    others = [base[1:], image_draws(0, 1, images)[:-1], image_draws(1, 0, images)[:-1], image_draws(0, 0, images + 1)[:-1]]
    for other in others:
        correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(base[:-1], other, strict=True)]
        assert np.abs(correlation).max() < 5 / np.sqrt(len(images))


def test_draws_of_an_image_do_not_depend_on_its_batch() -> None:
    together = image_draws(1, 2, np.array([5, 9, 5_000_000_000]))
    for column, image in enumerate([5, 9, 5_000_000_000]):
        np.testing.assert_array_equal(together[:, column], image_draws(1, 2, np.array([image]))[:, 0])


def test_epoch_order_is_a_permutation_that_seed_and_epoch_change() -> None:
    images = np.arange(100, 1100)
    order = epoch_order(0, 0, images)
    np.testing.assert_array_equal(np.sort(order), images)
    np.testing.assert_array_equal(order, epoch_order(0, 0, images))
    assert (order != epoch_order(0, 1, images)).any() and (order != epoch_order(1, 0, images)).any()


def test_epoch_order_of_a_part_is_the_whole_order_restricted_to_it() -> None:
    whole = epoch_order(3, 1, np.arange(1000))
    np.testing.assert_array_equal(whole[whole % 2 == 0], epoch_order(3, 1, np.arange(0, 1000, 2)))


def test_fixed_order_is_what_it_always_was() -> None:
    assert fixed_order(np.arange(8)).tolist() == FIXED_ORDER


def test_fixed_noise_is_standard_normal() -> None:
    noise = fixed_noise(2**17)
    assert noise.dtype == np.float32
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    assert abs(noise.mean()) < 0.015 and abs(noise.std() - 1) < 0.01


def test_uniform_numbers_are_below_one_even_for_the_largest_hash() -> None:
    assert ((MASK >> 11) * 2.0**-53) < 1
    assert uniform(0, 1).dtype == np.float64


FIXED_ORDER = [5, 6, 0, 2, 4, 3, 7, 1]
