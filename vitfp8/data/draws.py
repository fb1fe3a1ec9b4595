"""Random numbers as a function of a counter: the same (seed, epoch, image, draw) always gives the same number.

A generator with a state makes an image's augmentation depend on everything that was drawn before it: on the batch size, the
number of workers, the step at which a run was resumed. Here nothing is remembered. Each number is a hash of its coordinates, so
that any batch, worker or rank can draw any image's numbers at any time, and two of them never repeat each other. The hash is
integer arithmetic modulo 2⁶⁴ and therefore the same on every machine. No torch.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_WORD = (1 << 64) - 1

#: Tries that random erasing has to find a rectangle that fits, as in torchvision.
ERASING_TRIES = 10


class Draw(IntEnum):
    """What a number is drawn for. The values are part of a run's identity: add new ones, never renumber."""

    ORDER = 0
    CROP_TOP = 1
    CROP_LEFT = 2
    FLIP = 3
    BRIGHTNESS = 4
    CONTRAST = 5
    SATURATION = 6
    HUE = 7
    ROTATION = 8
    ERASING = 9
    ERASING_TOP = 10
    ERASING_LEFT = 11
    ERASING_NOISE = 12
    ERASING_AREA = 16  # and the following ERASING_TRIES
    ERASING_RATIO = 32  # and the following ERASING_TRIES


#: Length of the first axis of `image_draws`.
DRAWS = Draw.ERASING_RATIO + ERASING_TRIES

# First words of the counters that belong to no run, so that they can never meet a seed's numbers: (this, purpose, …).
_FIXED = 0x5649_5446_5038  # "VITFP8"
SPLIT_PURPOSE, NOISE_PURPOSE = 1, 2


def _mix(word: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014, variant 13 of Stafford's), a bijection of 64-bit words."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def counter_hash(*counters: int | np.ndarray) -> np.ndarray:
    """Hash of a tuple of integers: for each word in turn, SplitMix64's output number ``word`` from the state so far.

    Args:
        counters: integers or integer arrays that broadcast with each other; taken modulo 2⁶⁴.

    Returns:
        uint64 array of the broadcast shape, at least one-dimensional.
    """
    state = np.zeros(1, dtype=np.uint64)
    for counter in counters:
        if isinstance(counter, np.ndarray):
            word = counter.astype(np.int64, copy=False).view(np.uint64) if counter.dtype != np.uint64 else counter
        else:
            word = np.array([int(counter) & _WORD], dtype=np.uint64)
        state = _mix(state + (word + np.uint64(1)) * _GOLDEN_GAMMA)
    return state


def uniform(*counters: int | np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), float64, each a multiple of 2⁻⁵³, from `counter_hash` of the same arguments."""
    return (counter_hash(*counters) >> np.uint64(11)) * 2.0**-53


def image_draws(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Every number that an image's augmentation may use in an epoch.

    Args:
        epoch: counted from 0.
        indices: int64 [B], the images' numbers in the data set.

    Returns:
        float64 [`DRAWS`, B] in [0, 1); the rows are `Draw`'s.
    """
    return uniform(seed, epoch, np.asarray(indices, dtype=np.int64)[None, :], np.arange(DRAWS)[:, None])


def epoch_order(seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """A permutation of the images: sorted by each image's own hash.

    Args:
        epoch: counted from 0.
        indices: int64 [N], the images' numbers in the data set.

    Returns:
        int64 [N].
    """
    indices = np.asarray(indices, dtype=np.int64)
    return indices[np.argsort(counter_hash(seed, epoch, indices, int(Draw.ORDER)), kind="stable")]


def fixed_order(indices: np.ndarray) -> np.ndarray:
    """A permutation that no seed changes, for splits; int64 [N] to int64 [N]."""
    indices = np.asarray(indices, dtype=np.int64)
    return indices[np.argsort(counter_hash(_FIXED, SPLIT_PURPOSE, indices), kind="stable")]


def fixed_noise(count: int) -> np.ndarray:
    """Standard normal noise that no seed changes (Box and Muller 1958), float32 [count].

    Rounded to multiples of 2⁻¹², which hides the last bits in which libraries' logarithm and cosine differ.
    """
    index = np.arange(count, dtype=np.int64)
    radius = np.sqrt(-2.0 * np.log1p(-uniform(_FIXED, NOISE_PURPOSE, index, 0)))
    normal = radius * np.cos(2.0 * np.pi * uniform(_FIXED, NOISE_PURPOSE, index, 1))
    return (np.rint(normal * 4096.0) / 4096.0).astype(np.float32)
