"""The data: sets, splits, augmentation, batches.

    data = load_data(dataset="digits", data_dir=None, image_size=16, …)     the set, its splits and digest
    for images, labels, indices in TrainBatches(data, …).epoch(epoch): …    augmented and normalised, on the device
    for images, labels in eval_batches(data, "validation", 256): …          normalised only

Every random draw is a function of (seed, epoch, image), never of what was drawn before. Importing this package, and checking with
`check_dataset` whether a set is there, loads no torch; everything that touches tensors does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitfp8.data.augment import AUGMENTATIONS, Augmentation
    from vitfp8.data.batches import TrainBatches, eval_batches, sample_grid
    from vitfp8.data.datasets import ImageData, Split, data_digest, load_data
    from vitfp8.data.sources import check_dataset, count_classes

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "ImageData",
    "Split",
    "TrainBatches",
    "check_dataset",
    "count_classes",
    "data_digest",
    "eval_batches",
    "load_data",
    "sample_grid",
]

_HOMES = {
    "AUGMENTATIONS": "augment",
    "Augmentation": "augment",
    "ImageData": "datasets",
    "Split": "datasets",
    "TrainBatches": "batches",
    "check_dataset": "sources",
    "count_classes": "sources",
    "data_digest": "datasets",
    "eval_batches": "batches",
    "load_data": "datasets",
    "sample_grid": "batches",
}


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
