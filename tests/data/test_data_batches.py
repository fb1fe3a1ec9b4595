"""Splits, digest, storage and batches: what the trainer rests on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitfp8.catalog import DATASETS
from vitfp8.data import ImageData, TrainBatches, datasets, eval_batches, load_data, sample_grid
from vitfp8.data.datasets import SPLITS, split_indices
from vitfp8.data.readers import TEST, TRAIN, Source
from vitfp8.errors import InputError


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(dataset="digits", image_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 3 classes × 20 images of different sizes."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(1)
    for name in ("ant", "bee", "cow"):
        (root / name).mkdir()
        for number in range(20):
            pixels = random.integers(0, 256, (24 + number, 40 - number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02}.png")
    return root


def source_of(counts: list[int], test: int = 10) -> Source:
    """A source with so many training images of each class, and as many test images of each as given."""
    labels = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.repeat(np.arange(len(counts)), test)])
    parts = np.repeat(np.array([TRAIN, TEST], dtype=np.int8), [sum(counts), test * len(counts)])
    return Source(labels=labels, parts=parts, class_names=tuple("abcdef"[: len(counts)]))


# --- splits -------------------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_cover_the_data_set(digits: ImageData) -> None:
    parts = [digits.split(name).indices for name in SPLITS[:3]]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1797))
    assert digits.sizes == {name: len(part) for name, part in zip(SPLITS, parts, strict=False)}
    for name in SPLITS:
        split = digits.split(name)
        assert torch.equal(split.labels, digits.labels[split.indices])


def test_test_split_of_digits_is_a_fifth_of_each_class(digits: ImageData) -> None:
    all_counts = torch.bincount(digits.labels)
    test_counts = torch.bincount(digits.split("test").labels)
    assert ((test_counts - 0.2 * all_counts).abs() <= 0.5).all()


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_validation_takes_its_fraction_of_each_class(fraction: float) -> None:
    counts = [100, 57, 33]
    chosen = split_indices(source_of(counts), fraction)
    labels = source_of(counts).labels
    assert np.bincount(labels[chosen["validation"]]).tolist() == [round(fraction * count) for count in counts]


def test_validation_takes_nothing_from_the_test_images() -> None:
    chosen = split_indices(source_of([50, 50]), 0.2)
    assert chosen["test"].tolist() == list(range(100, 120))
    assert chosen["validation"].max() < 100


def test_train_clean_is_a_part_of_training_with_validations_class_counts(digits: ImageData) -> None:
    clean, validation, train = (digits.split(name) for name in ("train_clean", "validation", "train"))
    assert torch.isin(clean.indices, train.indices).all()
    assert torch.equal(torch.bincount(clean.labels), torch.bincount(validation.labels))


def test_splits_do_not_depend_on_any_generators_state(digits: ImageData) -> None:
    torch.manual_seed(123)
    np.random.seed(5)
    again = load_data(dataset="digits", image_size=16)
    for name in SPLITS:
        assert torch.equal(again.split(name).indices, digits.split(name).indices)


def test_splits_of_digits_are_what_they_always_were(digits: ImageData) -> None:
    assert digits.split("validation").indices[:8].tolist() == DIGITS_VALIDATION
    assert digits.split("test").indices[:8].tolist() == DIGITS_TEST
    assert digits.digest == DIGITS_DIGEST


@pytest.mark.parametrize(
    ("fraction", "counts", "said"),
    [
        (0.0, [50, 50], "is not between 0 and 1"),
        (1.0, [50, 50], "is not between 0 and 1"),
        (0.1, [50, 4], "leaves no validation images of class 'b', which has 4"),
        (0.9, [50, 4], "leaves no training images of class 'b', which has 4"),
    ],
)
def test_a_fraction_that_leaves_a_class_or_split_empty_is_refused(fraction: float, counts: list[int], said: str) -> None:
    with pytest.raises(InputError, match="^validation_fraction: ") as caught:
        split_indices(source_of(counts), fraction)
    assert said in str(caught.value)


def test_a_class_too_small_to_be_tested_is_refused() -> None:
    with pytest.raises(InputError, match="class 'a' has too few images to test with"):
        split_indices(source_of([50], test=0), 0.1)


# --- facts and digest ---------------------------------------------------------------------------------------------------------


def test_facts_are_plain_json_without_the_machines_folders(digits: ImageData, folder: Path) -> None:
    for data in (digits, load_data(dataset="imagefolder", data_dir=folder, image_size=8)):
        text = json.dumps(data.facts(), allow_nan=False)
        assert json.loads(text)["digest"] == data.digest and len(data.digest) == 64
        assert str(folder) not in text


def test_catalogue_has_the_digits_mean_and_deviation(digits: ImageData) -> None:
    assert digits.pixels is not None
    train = digits.pixels[torch.cat([digits.split(name).indices for name in ("train", "validation")])].double() / 255
    row = DATASETS["digits"]
    assert train.mean().item() == pytest.approx(row.mean[0], abs=1e-3)
    assert train.std().item() == pytest.approx(row.std[0], abs=1e-3)


def test_digest_depends_on_the_split_and_not_on_the_size_of_images(digits: ImageData) -> None:
    assert load_data(dataset="digits", image_size=8).digest == digits.digest
    assert load_data(dataset="digits", image_size=16, validation_fraction=0.2).digest != digits.digest


def test_digest_of_a_folder_changes_with_a_byte_and_is_the_same_when_streamed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_data(dataset="imagefolder", data_dir=folder, image_size=16)
    assert "bytes" in before.digest_covers
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    streamed = load_data(dataset="imagefolder", data_dir=folder, image_size=16)
    assert streamed.pixels is None and streamed.digest == before.digest
    assert streamed.facts()["storage"].startswith("streamed")
    path = folder / "ant" / "00.png"
    original = path.read_bytes()
    try:
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        assert load_data(dataset="imagefolder", data_dir=folder, image_size=16).digest != before.digest
    finally:
        path.write_bytes(original)


def test_digest_of_a_large_folder_says_that_it_covers_names_and_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "DIGEST_CONTENT_BYTES", 0)
    assert "names and sizes, not bytes" in load_data(dataset="imagefolder", data_dir=folder, image_size=8).digest_covers


# --- training batches ---------------------------------------------------------------------------------------------------------


def epoch_of(
    data: ImageData, epoch: int = 0, *, seed: int = 0, start_step: int = 0, level: str = "extended", batch_size: int = 50
):
    return list(TrainBatches(data, batch_size=batch_size, augmentation=level, seed=seed).epoch(epoch, start_step))


def same(left: list, right: list) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for batches in zip(left, right, strict=True) for a, b in zip(*batches, strict=True)
    )


def test_batches_have_the_promised_shapes_and_labels(digits: ImageData) -> None:
    batches = TrainBatches(digits, batch_size=50, augmentation="extended", seed=0)
    epoch = list(batches.epoch(0))
    assert len(epoch) == len(batches) == 1295 // 50 and batches.images_per_epoch == 50 * len(batches)
    for images, labels, indices in epoch:
        assert images.shape == (50, 1, 16, 16) and images.dtype == torch.float32
        assert labels.dtype == indices.dtype == torch.int64 and indices.device.type == "cpu"
        assert torch.equal(labels, digits.labels[indices])


def test_an_epoch_meets_no_image_twice_and_only_training_images(digits: ImageData) -> None:
    seen = torch.cat([indices for _, _, indices in epoch_of(digits)])
    assert seen.unique().numel() == seen.numel()
    assert torch.isin(seen, digits.split("train").indices).all()


def test_same_seed_and_epoch_repeat_bit_for_bit_and_others_differ(digits: ImageData) -> None:
    base = epoch_of(digits)
    assert same(base, epoch_of(digits))
    assert not same(base, epoch_of(digits, 1)) and not same(base, epoch_of(digits, seed=1))


def test_a_resumed_epoch_is_the_tail_of_the_whole(digits: ImageData) -> None:
    assert same(epoch_of(digits, 3, start_step=17), epoch_of(digits, 3)[17:])
    assert epoch_of(digits, 3, start_step=25) == []


def test_an_images_pixels_do_not_depend_on_the_batch_size(digits: ImageData) -> None:
    one = {
        int(i): image for images, _, indices in epoch_of(digits, batch_size=7) for i, image in zip(indices, images, strict=True)
    }
    for images, _, indices in epoch_of(digits, batch_size=128):
        assert all(torch.equal(one[int(i)], image) for i, image in zip(indices, images, strict=True) if int(i) in one)


def test_batches_leave_the_global_generator_alone(digits: ImageData, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    streamed = load_data(dataset="imagefolder", data_dir=folder, image_size=16)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epoch_of(digits)
    epoch_of(streamed, batch_size=16)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch_size", [0, 1296])
def test_a_batch_that_cannot_be_filled_is_refused(digits: ImageData, batch_size: int) -> None:
    with pytest.raises(InputError, match="^batch_size: .* the 1295 training images"):
        TrainBatches(digits, batch_size=batch_size, augmentation="basic", seed=0)


def test_an_unknown_level_is_refused_with_a_suggestion(digits: ImageData) -> None:
    with pytest.raises(InputError, match="^augmentation: .*did you mean extended"):
        TrainBatches(digits, batch_size=8, augmentation="extend", seed=0)


# --- evaluation and showing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPLITS)
def test_evaluation_gives_every_image_of_a_split_in_order(digits: ImageData, name: str) -> None:
    batches = list(eval_batches(digits, name, 100))
    assert torch.equal(torch.cat([labels for _, labels in batches]), digits.split(name).labels)
    assert sum(len(images) for images, _ in batches) == len(digits.split(name))


def test_evaluation_does_not_depend_on_the_batch_size(digits: ImageData) -> None:
    one, many = (torch.cat([images for images, _ in eval_batches(digits, "test", size)]) for size in (7, 359))
    assert torch.equal(one, many)


def test_evaluated_images_are_normalised_only() -> None:
    data = load_data(dataset="digits", image_size=8)
    images, _ = next(eval_batches(data, "test", 4))
    assert data.pixels is not None
    expected = (data.pixels[data.split("test").indices[:4]] / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-6)


def test_grid_shows_what_training_sees_first(digits: ImageData) -> None:
    images, names = sample_grid(digits, "basic", seed=3, epoch=2, count=5)
    assert images.shape == (5, 16, 16, 1) and images.min() >= 0 and images.max() <= 1
    first, labels, _ = epoch_of(digits, 2, seed=3, level="basic")[0]
    shown = first[:5, 0] * digits.std[0] + digits.mean[0]
    np.testing.assert_allclose(images[..., 0], shown.clamp(0, 1).numpy(), atol=1e-6)
    assert names == [str(label) for label in labels[:5].tolist()]


# --- streaming ----------------------------------------------------------------------------------------------------------------


def test_streamed_batches_are_the_same_bits_with_and_without_workers_and_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = load_data(dataset="imagefolder", data_dir=folder, image_size=16)
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    alone, two = (load_data(dataset="imagefolder", data_dir=folder, image_size=16, workers=workers) for workers in (0, 2))
    assert in_memory.pixels is not None and alone.pixels is None and two.pixels is None
    expected = [epoch_of(in_memory, epoch, batch_size=8) for epoch in (0, 1)]
    assert [same(epoch_of(alone, epoch, batch_size=8), expected[epoch]) for epoch in (0, 1)] == [True, True]
    batches = TrainBatches(two, batch_size=8, augmentation="extended", seed=0)
    assert [same(list(batches.epoch(epoch)), expected[epoch]) for epoch in (0, 1)] == [True, True]
    assert same(list(batches.epoch(1, start_step=2)), expected[1][2:])
    assert same(list(eval_batches(two, "test", 5)), list(eval_batches(in_memory, "test", 5)))


def test_an_epoch_left_early_does_not_disturb_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    data = load_data(dataset="imagefolder", data_dir=folder, image_size=16, workers=2)
    batches = TrainBatches(data, batch_size=8, augmentation="basic", seed=0)
    expected = list(batches.epoch(1))
    next(batches.epoch(0))
    assert same(list(batches.epoch(1)), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_during_training_is_named_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(datasets, "MEMORY_FRACTION", 0)
    for path in folder.rglob("*.png"):
        copy = tmp_path / path.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    data = load_data(dataset="imagefolder", data_dir=tmp_path, image_size=16, workers=workers)
    broken = data.files[int(data.split("train").indices[0])]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(InputError) as caught:
        list(TrainBatches(data, batch_size=len(data.split("train")), augmentation="none", seed=0).epoch(0))
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


DIGITS_VALIDATION = [0, 6, 14, 20, 67, 85, 88, 96]
DIGITS_TEST = [5, 12, 23, 25, 28, 29, 34, 36]
DIGITS_DIGEST = "ebe94ca6af570c5f5a0f7d9af4a3ca890681275f2db2336083a426b3cf0acfe9"
