"""Each operation against torchvision's with the same drawn parameters, and the bits that the operations promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from vitfp8.data import operations
from vitfp8.data.operations import (
    Normalize,
    RandomErasing,
    Resample,
    Setting,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    erasing_noise,
    resample,
    resampling_weights,
    rotate,
)

CPU = torch.device("cpu")


def setting(side: int = 32, channels: int = 3, flip: bool = True) -> Setting:
    mean, std = ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)) if channels == 3 else ((0.3,), (0.4,))
    return Setting(side=side, channels=channels, mean=mean, std=std, flip_keeps_class=flip, device=CPU)


def noisy_bytes(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """White noise: the hardest images, every neighbour differs."""
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def levels(count: int = 4, channels: int = 3, side: int = 24) -> Tensor:
    """Float levels 0…255, with black, white, grey and saturated pixels among them."""
    images = noisy_bytes(count, channels, side).float()
    images[:, :, :2] = 0
    images[:, :, 2:4] = 255
    images[:, :, 4:6] = 128
    images[:, 0, 6:8] = 255
    images[:, 1:, 6:8] = 0
    return images


def window(count: int, side: int, top: int = 0, left: int = 0, flip: bool = False) -> tuple[Tensor, Tensor]:
    columns = torch.arange(side) + left
    rows = torch.arange(side) + top
    return rows.expand(count, -1), (columns.flip(0) if flip else columns).expand(count, -1)


# --- resizing, cropping, flipping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [(32, 224), (8, 16), (28, 28), (28, 32), (32, 24), (100, 17), (17, 100)])
def test_resampling_weights_are_bilinear_multiples_of_a_256th_that_sum_to_one(source: int, target: int) -> None:
    weights = resampling_weights(source, target)
    assert torch.equal(weights * 256, (weights * 256).round())
    assert torch.equal(weights.sum(1), torch.ones(target))
    assert weights.min() >= 0
    exact = torch.nn.functional.interpolate(
        torch.eye(source, dtype=torch.float64)[None, None], size=(target, source), mode="bilinear", antialias=True
    )[0, 0]
    assert (weights - exact).abs().max() < 1 / 256 if target >= source else 4 / 256


@pytest.mark.parametrize(("source", "target"), [(32, 224), (8, 16), (28, 32), (32, 24), (48, 17)])
def test_resizing_equals_torchvisions_within_two_levels(source: int, target: int) -> None:
    # Each pass may be off by half a level for its weights, the rounding between them by another half: at most 1.5 when enlarging;
    # when shrinking more weights are rounded, but each meets a smaller share of the contrast.
    images = noisy_bytes(3, 3, source)
    ours = resample(images, *window(3, target), padding=0)
    exact = tv.resize(images.float(), [target, target], antialias=True)
    assert (ours - exact).abs().max() <= 2
    assert (ours - exact).abs().mean() <= 0.5


def test_resizing_equals_pillows_within_two_levels() -> None:
    images = noisy_bytes(1, 3, 32)
    pillow = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BILINEAR)
    ours = resample(images, *window(1, 224), padding=0)[0].permute(1, 2, 0)
    difference = (ours - torch.from_numpy(np.asarray(pillow).astype(np.float32))).abs()
    assert difference.max() <= 2 and difference.mean() <= 0.5


@pytest.mark.parametrize(("source", "target"), [(32, 224), (8, 16), (48, 17)])
def test_resizing_equals_integer_arithmetic_to_the_last_bit(source: int, target: int) -> None:
    images = noisy_bytes(2, 3, source)
    whole = (resampling_weights(source, target) * 256).to(torch.int64)
    lines = torch.einsum("bchw,sw->bchs", images.long(), whole)
    lines = (lines.double() / 256).round().long()
    expected = torch.einsum("bchs,th->bcts", lines, whole).double() / 256
    assert torch.equal(resample(images, *window(2, target), padding=0).double(), expected)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_resizing_keeps_its_bits_where_products_may_be_tf32_or_bf16(precision: str) -> None:
    images = noisy_bytes(8, 3, 32)
    expected = resample(images, *window(8, 64), padding=0)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(resample(images, *window(8, 64), padding=0), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("source", [16, 32])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("top", "left"), [(0, 0), (8, 1), (4, 4), (3, 7)])
def test_crop_and_flip_are_torchvisions_pad_crop_and_flip(source: int, flip: bool, top: int, left: int) -> None:
    images = noisy_bytes(2, 3, source)
    resized = resample(images, *window(2, 32), padding=0)
    expected = tv.crop(tv.pad(resized, [4]), top, left, 32, 32)
    expected = tv.horizontal_flip(expected) if flip else expected
    assert torch.equal(resample(images, *window(2, 32, top, left, flip), padding=4), expected)


def test_resample_applies_the_windows_it_drew() -> None:
    operation, images = Resample(crop_padding=1 / 8, flip=0.5), noisy_bytes(1, 3, 32)
    drawn = {"crop_top": torch.tensor([2.0]), "crop_left": torch.tensor([5.0]), "flipped": torch.tensor([1.0])}
    expected = tv.horizontal_flip(tv.crop(tv.pad(images, [4]), 2, 5, 32, 32)).float()
    assert torch.equal(operation.apply(images, drawn, setting()), expected)


def test_crop_padding_is_28_at_224_and_an_eighth_elsewhere() -> None:
    operation = Resample(crop_padding=1 / 8)
    assert [operation.padding(side) for side in (224, 32, 28, 16)] == [28, 4, 3, 2]


# --- colour -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.0, 1.2])
@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        # one rounding a step in each
        (adjust_brightness, tv.adjust_brightness, 1e-4),
        (adjust_saturation, tv.adjust_saturation, 1e-3),
        # our mean is that of whole levels: half a level at worst, times |1 − factor| ≤ 0.2
        (adjust_contrast, tv.adjust_contrast, 0.1),
    ],
)
def test_colour_factors_equal_torchvisions(ours, theirs, tolerance: float, factor: float) -> None:
    images = levels()
    expected = theirs(images / 255, factor) * 255
    got = ours(images.clone(), torch.full((len(images),), factor))
    assert (got - expected).abs().max() <= tolerance


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_contrast_of_grey_images_equals_torchvisions(factor: float) -> None:
    images = levels(channels=1)
    expected = tv.adjust_contrast(images / 255, factor) * 255
    assert (adjust_contrast(images.clone(), torch.full((4,), factor)) - expected).abs().max() <= 0.1


@pytest.mark.parametrize("shift", [-1 / 6, -0.1, -0.03, 0.0, 0.07, 0.1, 1 / 6])
def test_hue_equals_torchvisions(shift: float) -> None:
    images = levels()
    expected = tv.adjust_hue(images / 255, shift) * 255
    # both go through a hue of about 1e-7 relative precision, times 6·255
    assert (adjust_hue(images.clone(), torch.full((4,), shift)) - expected).abs().max() <= 2e-3


def test_factors_are_each_images_own() -> None:
    images = levels()
    factors = torch.tensor([0.8, 0.9, 1.1, 1.2])
    together = adjust_hue(adjust_contrast(images.clone(), factors), factors - 1)
    for number, factor in enumerate(factors):
        alone = images[number : number + 1].clone()
        assert torch.equal(together[number : number + 1], adjust_hue(adjust_contrast(alone, factor[None]), factor[None] - 1))


# --- rotation -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 17, 32, 224])
@pytest.mark.parametrize("angle", [-15.0, -7.3, 0.0, 3.1, 15.0])
def test_rotation_equals_torchvisions_bilinear_with_black_corners(side: int, angle: float) -> None:
    images = noisy_bytes(1, 3, side).float()
    radians = torch.tensor([angle], dtype=torch.float64).deg2rad()
    ours = rotate(images, radians.cos().float(), radians.sin().float())
    theirs = tv.rotate(images, angle, interpolation=tv.InterpolationMode.BILINEAR)
    # coordinates up to 224 have an error of about 224·2⁻²³ pixels, met by a contrast of up to 255 levels a pixel
    assert (ours - theirs).abs().max() <= 0.05


def test_rotation_by_nothing_changes_nothing() -> None:
    images = levels()
    torch.testing.assert_close(rotate(images, torch.ones(4), torch.zeros(4)), images, rtol=0, atol=1e-2)


# --- normalising and erasing --------------------------------------------------------------------------------------------------


def test_normalising_equals_torchvisions() -> None:
    images, here = levels(), setting()
    expected = tv.normalize(images / 255, list(here.mean), list(here.std))
    torch.testing.assert_close(Normalize().apply(images.clone(), {}, here), expected, rtol=0, atol=2e-6)


def test_erasing_replaces_exactly_the_rectangle_by_its_noise() -> None:
    here = setting(side=24)
    operation = RandomErasing(probability=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3))
    images = torch.randn(2, 3, 24, 24)
    drawn = {
        name: torch.tensor(values, dtype=torch.float32)
        for name, values in {"top": [3, 0], "bottom": [10, 0], "left": [20, 5], "right": [24, 5], "noise_place": [7, 9]}.items()
    }
    noise = erasing_noise(drawn["noise_place"], 3, 24)
    expected = tv.erase(images[:1], 3, 20, 7, 4, noise[:1, :, 3:10, 20:24])
    got = operation.apply(images.clone(), drawn, here)
    assert torch.equal(got[:1], expected)
    assert torch.equal(got[1], images[1])


def test_erasing_noise_differs_between_places_channels_and_pixels() -> None:
    noise = erasing_noise(torch.tensor([0, 1, operations.NOISE_PLACES - 1]), 3, 16)
    assert noise.shape == (3, 3, 16, 16)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0, 0], noise[0, 1])
    assert noise.unique().numel() > 1000
