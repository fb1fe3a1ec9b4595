"""The table of augmentation levels: its names, the distribution of its draws, and the same bits in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomErasing as TorchvisionErasing

from vitfp8.catalog import AUGMENTATION_LEVELS, DATASETS
from vitfp8.data import AUGMENTATIONS, Augmentation, augment
from vitfp8.data.operations import ColorJitter, Normalize, RandomErasing, Resample, Rotation, Setting

CPU = torch.device("cpu")
IMAGES = np.arange(20_000)


def augmentation(level: str = "extended", *, side: int = 32, channels: int = 3, flip: bool = True) -> Augmentation:
    mean, std = ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)) if channels == 3 else ((0.3,), (0.4,))
    setting = Setting(side=side, channels=channels, mean=mean, std=std, flip_keeps_class=flip, device=CPU)
    return Augmentation(level=level, setting=setting)


def draws(level: str = "extended", **kwargs) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in augmentation(level, **kwargs).draw(0, 0, IMAGES).items()}


def test_table_has_the_catalogues_levels() -> None:
    assert list(AUGMENTATIONS) == list(AUGMENTATION_LEVELS)


def test_extended_has_the_parameters_of_the_study() -> None:
    assert AUGMENTATIONS["extended"] == (
        Resample(crop_padding=1 / 8, flip=0.5),
        ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
        Rotation(degrees=15.0),
        Normalize(),
        RandomErasing(probability=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)),
    )
    assert AUGMENTATIONS["basic"] == (AUGMENTATIONS["extended"][0], Normalize())


# --- distribution of the draws ------------------------------------------------------------------------------------------------


def test_crop_windows_are_uniform_over_all_places_including_both_ends() -> None:
    for name in ("crop_top", "crop_left"):
        places, counts = np.unique(draws(side=32)[name], return_counts=True)
        assert places.tolist() == list(range(9))
        assert stats.chisquare(counts).pvalue > 1e-4


def test_half_of_the_images_are_flipped_where_a_flip_keeps_the_class() -> None:
    assert abs(draws()["flipped"].mean() - 0.5) < 0.02


def test_digits_are_never_flipped() -> None:
    assert not DATASETS["digits"].flip_keeps_class
    for level in AUGMENTATIONS:
        assert not draws(level, side=16, channels=1, flip=DATASETS["digits"].flip_keeps_class)["flipped"].any()


@pytest.mark.parametrize(
    ("name", "low", "high"), [("brightness", 0.8, 1.2), ("contrast", 0.8, 1.2), ("saturation", 0.8, 1.2), ("hue", -0.1, 0.1)]
)
def test_colour_jitter_is_uniform_in_its_range(name: str, low: float, high: float) -> None:
    assert stats.kstest(draws()[name], "uniform", args=(low, high - low)).pvalue > 1e-4


def test_angles_are_uniform_within_fifteen_degrees() -> None:
    drawn = draws()
    angles = np.rad2deg(np.arctan2(drawn["sine"], drawn["cosine"]))
    assert stats.kstest(angles, "uniform", args=(-15, 30)).pvalue > 1e-4


def test_half_of_the_images_are_erased_in() -> None:
    drawn = draws(side=224)
    assert abs((drawn["bottom"] > drawn["top"]).mean() - 0.5) < 0.02


@pytest.mark.parametrize("side", [16, 224])
def test_erased_rectangles_are_distributed_as_torchvisions(side: int) -> None:
    drawn = draws(side=side)
    erased = drawn["bottom"] > drawn["top"]
    ours = {
        "top": drawn["top"], "left": drawn["left"],
        "height": drawn["bottom"] - drawn["top"], "width": drawn["right"] - drawn["left"],
    }  # fmt: skip
    image = torch.zeros(1, side, side)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [TorchvisionErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(3000)]
    for name, column in zip(("top", "left", "height", "width"), np.array(theirs).T, strict=True):
        assert stats.ks_2samp(ours[name][erased], column).pvalue > 1e-4, name
    assert (drawn["bottom"] <= side).all() and (drawn["right"] <= side).all() and (drawn["top"] >= 0).all()


# --- bits ---------------------------------------------------------------------------------------------------------------------

SHAPES = [(3, 32, 32), (3, 32, 64), (1, 8, 16), (1, 28, 28), (3, 20, 15), (3, 15, 15), (1, 9, 13)]


@pytest.mark.parametrize("level", list(AUGMENTATIONS))
@pytest.mark.parametrize(("channels", "source", "side"), SHAPES)
def test_an_image_comes_out_the_same_bit_for_bit_in_any_batch(level: str, channels: int, source: int, side: int) -> None:
    level_here = augmentation(level, side=side, channels=channels)
    images = torch.randint(0, 256, (128, channels, source, source), dtype=torch.uint8)
    numbers = np.arange(1000, 1128)
    whole = level_here(images, level_here.draw(5, 2, numbers))
    assert whole.shape == (128, channels, side, side) and whole.dtype == torch.float32 and whole.isfinite().all()
    for chosen in ([0], [127], [31, 64, 3], list(range(40, 61)), list(range(127, -1, -1))):
        part = level_here(images[chosen], level_here.draw(5, 2, numbers[chosen]))
        assert torch.equal(part, whole[chosen])


def test_threads_do_not_change_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "ONE_THREAD_VALUES", 0)
    level = augmentation("extended", side=128)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    drawn = level.draw(0, 0, np.arange(5))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = level(images, drawn)
        torch.set_num_threads(2)
        assert torch.equal(level(images, drawn), one)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_autocast_does_not_change_bits() -> None:
    level = augmentation("extended", side=40)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    drawn = level.draw(0, 0, np.arange(4))
    expected = level(images, drawn)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(level(images, drawn), expected)


def test_memory_is_used_again_only_when_nothing_refers_to_it() -> None:
    level = augmentation("extended")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)

    def batch(epoch: int) -> torch.Tensor:
        return level(images, level.draw(0, epoch, np.arange(4)))

    held = [batch(epoch) for epoch in range(5)]
    assert len({one.data_ptr() for one in held}) == 5
    part, place = batch(5)[1:3, :, 4], batch(6).data_ptr()
    copy = part.clone()
    assert [batch(epoch).data_ptr() for epoch in (7, 8)] == [place, place]
    assert torch.equal(part, copy)
    assert torch.equal(held[0], batch(0))


def test_augmenting_leaves_the_bytes_as_they_were() -> None:
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    before = images.clone()
    for level in AUGMENTATIONS:
        here = augmentation(level)
        here(images, here.draw(0, 0, np.arange(8)))
    assert torch.equal(images, before)


@pytest.mark.parametrize("change", ["seed", "epoch", "image"])
def test_seed_epoch_and_image_each_change_the_augmentation(change: str) -> None:
    level = augmentation("extended")
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    base = level(image, level.draw(0, 0, np.array([0])))
    other = {"seed": (1, 0, 0), "epoch": (0, 1, 0), "image": (0, 0, 1)}[change]
    assert not torch.equal(level(image, level.draw(other[0], other[1], np.array([other[2]]))), base)


def test_none_only_resizes_and_normalises() -> None:
    level = augmentation("none", side=32)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (level.setting.mean, level.setting.std))
    got = level(images, level.draw(3, 4, np.arange(4)))
    torch.testing.assert_close(got, (images / 255 - mean) / std, rtol=0, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_cuda_device_gives_the_processors_images_and_the_host_never_waits() -> None:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    here = augmentation("extended", side=64)
    cuda = torch.device("cuda", 0)
    there = Augmentation(level="extended", setting=Setting(**{**vars(here.setting), "device": cuda}))
    expected = here(images, here.draw(0, 0, np.arange(64)))
    on_device = images.to(cuda)
    there(on_device, there.draw(0, 0, np.arange(64)))  # constants reach the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = there(on_device, there.draw(0, 0, np.arange(64)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # rotation's interpolation is fused differently; everything else has the same bits
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-3)
