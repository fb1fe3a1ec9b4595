"""Which images train, choose the best epoch and test: fixed by the data set, and refused before the start where it cannot be.

Neither the seed nor a library's generator decides a split. Labels and parts are all it takes, so a listing is enough. No torch.
"""

from __future__ import annotations

import math

import numpy as np

from vitfp8.data.draws import fixed_order
from vitfp8.data.readers import TEST, TEST_FRACTION, TRAIN, UNSPLIT, VALIDATION, Source
from vitfp8.errors import InputError

#: Names that `vitfp8.data.ImageData.split` knows.
SPLITS = ("train", "validation", "test", "train_clean")


def split_indices(source: Source, validation_fraction: float) -> dict[str, np.ndarray]:
    """Divide a data set, class by class, by an order that only the images' numbers decide.

    Images that the files do not assign are divided into test (a fifth) and training. Validation images are taken from the
    training images, unless the files have a validation split, and ``train_clean`` is the part of the remaining ones that comes
    next in the order.

    Args:
        validation_fraction: share of the training images of each class, rounded, that is held out.

    Returns:
        ascending image numbers for each name of `SPLITS`.

    Raises:
        InputError: a class would be left without training, validation or test images.
    """
    if not 0 < validation_fraction < 1:
        raise InputError(f"validation_fraction: {validation_fraction} is not between 0 and 1; 0.1 is usual")
    chosen: dict[str, list[np.ndarray]] = {name: [] for name in SPLITS}
    for label, class_name in enumerate(source.class_names):
        in_class = source.labels == label
        part = {number: fixed_order(np.flatnonzero(in_class & (source.parts == number))) for number in range(4)}
        test_count = round(TEST_FRACTION * len(part[UNSPLIT]))
        test = np.concatenate([part[TEST], part[UNSPLIT][:test_count]])
        train = np.concatenate([part[TRAIN], part[UNSPLIT][test_count:]])
        if not len(test):
            raise _too_few_to_test(class_name, len(train), divided=len(part[UNSPLIT]) > 0)
        if VALIDATION in source.parts:
            validation = part[VALIDATION]
        else:
            count = round(validation_fraction * len(train))
            if not 0 < count < len(train):
                raise _refuse_fraction(validation_fraction, source)
            validation, train = train[:count], train[count:]
        for name, indices in zip(SPLITS, (train, validation, test, train[: len(validation)]), strict=True):
            chosen[name].append(indices)
    return {name: np.sort(np.concatenate(indices)) for name, indices in chosen.items()}


def _too_few_to_test(class_name: str, images: int, *, divided: bool) -> InputError:
    """Why a class cannot be tested. Where a fifth is held out, rounded, three images are the fewest of which one is."""
    why = f"it has {images}, and a fifth of at least 3 is held out" if divided else "the test files have none"
    return InputError(f"data_dir: class {class_name!r} has too few images to test with: {why}; add images or remove the class")


def _refuse_fraction(fraction: float, source: Source) -> InputError:
    """Why the smallest class cannot be divided, and what would do for all of them."""
    counts = np.bincount(source.labels[np.isin(source.parts, (TRAIN, UNSPLIT))], minlength=len(source.class_names))
    smallest = int(counts.argmin())
    images, class_name = int(counts[smallest]), source.class_names[smallest]
    tested = round(TEST_FRACTION * images) if UNSPLIT in source.parts else 0
    trained = images - tested
    which = f"class {class_name!r}, which has {images} " + (f"images ({tested} to test with)" if tested else "training images")
    if trained < 2:
        return InputError(f"data_dir: {which}, is too small to train and to validate; add images or remove the class")
    if fraction * trained > 0.5:
        return InputError(f"validation_fraction: {fraction} leaves no training images of {which}; 0.1 is usual")
    # an image is held out where the fraction is more than half an image; two decimals are enough to write that
    enough = (50 // trained + 1) / 100
    needed = wanted = math.floor(0.5 / fraction) + 1
    while tested and wanted - round(TEST_FRACTION * wanted) < needed:
        wanted += 1
    return InputError(
        f"validation_fraction: {fraction} leaves no validation images of {which}; "
        f"take {enough} or more, give the class {wanted} images or more, or remove it"
    )


def check_batch_size(batch_size: int, training_images: int) -> None:
    """Refuse a batch of more images than there are to train on.

    Args:
        batch_size: images per step.

    Raises:
        InputError: not between 1 and that.
    """
    if not 0 < batch_size <= training_images:
        raise InputError(
            f"batch_size: {batch_size} must be between 1 and the {training_images} training images; take a smaller one"
        )
