"""Batches: the order of an epoch, and images from bytes to what the model sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vitfp8.data.augment import AUGMENTATIONS, Augmentation
from vitfp8.data.datasets import ImageData
from vitfp8.data.draws import epoch_order
from vitfp8.data.operations import Setting
from vitfp8.data.splits import check_batch_size
from vitfp8.errors import InputError, suggest


def augmentation_of(data: ImageData, level: str) -> Augmentation:
    """A level of `AUGMENTATIONS` for a data set.

    Raises:
        InputError: there is no such level.
    """
    if level not in AUGMENTATIONS:
        raise InputError(f"augmentation: {level!r} is unknown; {suggest(level, AUGMENTATIONS)}")
    setting = Setting(
        side=data.image_size,
        channels=data.native_channels,
        mean=data.mean[: data.native_channels],
        std=data.std[: data.native_channels],
        flip_keeps_class=data.flip_keeps_class,
        device=data.device,
    )
    return Augmentation(level=level, setting=setting)


def _with_channels(images: Tensor, data: ImageData) -> Tensor:
    """Augmented images with the channels that batches give; a grey one is repeated only now, so that it is augmented as grey."""
    return images if images.shape[1] == data.channels else images.repeat(1, data.channels // images.shape[1], 1, 1)


class TrainBatches:
    """The training images, in a new order and with new augmentations each epoch, both decided by (seed, epoch, image) alone.

    The last, incomplete batch of an epoch is dropped: steps are alike, and compiled or FP8 products meet one shape only. Other
    images are left out in each epoch.

    Args:
        data: the data set.
        batch_size: images per step.
        augmentation: a key of `AUGMENTATIONS`.
        seed: the run's seed.

    Raises:
        InputError: there are fewer training images than a batch takes, or there is no such level.
    """

    def __init__(self, data: ImageData, *, batch_size: int, augmentation: str, seed: int) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation_of(data, augmentation)
        self._train = data.split("train").indices.numpy()
        check_batch_size(batch_size, len(self._train))
        self._reader = data.reader()

    def __len__(self) -> int:
        """Steps an epoch."""
        return len(self._train) // self.batch_size

    @property
    def images_per_epoch(self) -> int:
        """Images that an epoch trains on."""
        return len(self) * self.batch_size

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of an epoch; of a streamed data set only one epoch at a time.

        Args:
            epoch: counted from 0.
            start_step: steps to leave out at its beginning, for a run that is resumed.

        Yields:
            images, float32 [B, C, S, S] on the device, augmented and normalised; labels, int64 [B] on the device; the images'
            numbers in the data set, int64 [B] on the CPU.
        """
        order = epoch_order(self.seed, epoch, self._train)
        taken = order[start_step * self.batch_size : self.images_per_epoch]
        steps = [torch.from_numpy(step) for step in taken.reshape(-1, self.batch_size)]
        for indices, (images, labels) in zip(steps, self.data.read(steps, self._reader), strict=True):
            drawn = self.augmentation.draw(self.seed, epoch, indices.numpy())
            yield _with_channels(self.augmentation(images, drawn), self.data), labels, indices


def eval_batches(data: ImageData, split_name: str, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of a split, resized and normalised only, in the data set's order.

    Args:
        split_name: ``train``, ``validation``, ``test`` or ``train_clean``.
        batch_size: images per batch; the last may have fewer.

    Yields:
        images, float32 [B, C, S, S], and labels, int64 [B], on the device.
    """
    clean = augmentation_of(data, "none")
    steps = data.split(split_name).indices.split(batch_size)
    for indices, (images, labels) in zip(steps, data.read(steps, data.reader()), strict=True):
        yield _with_channels(clean(images, clean.draw(0, 0, indices.numpy())), data), labels


def sample_grid(data: ImageData, augmentation: str, seed: int, epoch: int = 0, count: int = 16) -> tuple[np.ndarray, list[str]]:
    """The first training images of an epoch, as the model sees them, for showing.

    Args:
        augmentation: a key of `AUGMENTATIONS`.
        epoch: counted from 0.
        count: how many; fewer where there are fewer.

    Returns:
        images, float32 [count, S, S, C] in [0, 1] (erasing's noise is clipped to that), and the name of each one's class.
    """
    level = augmentation_of(data, augmentation)
    indices = epoch_order(seed, epoch, data.split("train").indices.numpy())[:count]
    batches = [torch.from_numpy(indices)]
    [(images, labels)] = data.read(batches, data.reader())
    shown = _with_channels(level(images, level.draw(seed, epoch, indices)), data).cpu().permute(0, 2, 3, 1)
    shown = shown.mul(torch.tensor(data.std)).add(torch.tensor(data.mean)).clamp(0, 1)
    return shown.numpy(), [data.class_names[label] for label in labels.tolist()]
