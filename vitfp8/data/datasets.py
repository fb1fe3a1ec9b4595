"""A data set, ready to train on: its splits, its digest, and its images as bytes.

Images stay in memory as bytes (uint8) at their own resolution, on the training device where they fit there, and are resized with
each batch. Images of a folder are resized to the wanted size as they are decoded; where even these bytes do not fit into memory,
workers decode them again in every epoch. Either way the same bytes reach the augmentation.

The splits are fixed by the data set: neither the seed nor a library's generator decides them. Image numbers count all images of a
set, training images first where its files say which these are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vitfp8.catalog import DATASETS
from vitfp8.data.augment import one_thread_if_small, to_device
from vitfp8.data.folders import decode_image
from vitfp8.data.readers import TEST, TRAIN, VALIDATION, Source
from vitfp8.data.sources import read_source
from vitfp8.data.splits import SPLITS, split_indices
from vitfp8.errors import InputError

#: Largest share of the memory that is free at the start which the images may take, on the device or else on the host.
MEMORY_FRACTION = 0.25

#: Image folders up to this many bytes are digested by content, larger ones by names and sizes. Not a matter of the machine's
#: memory, so that a set has the same digest everywhere.
DIGEST_CONTENT_BYTES = 2**30

#: Seconds that a worker has for a batch. One that is killed is noticed at once; this is for one that is stuck.
PATIENCE_SECONDS = 900

#: Part of a data set's files → the split that it is.
_SPLIT_OF = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Some of a data set's images.

    Attributes:
        name: one of `SPLITS`.
        indices: the images' numbers in the data set, ascending; int64 [N] on the CPU.
        labels: their classes, int64 [N] on the CPU.
    """

    name: str
    indices: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.indices)


class _FolderImages(Dataset):
    """Image files decoded to bytes; what workers run.

    An unreadable file is returned as its message, so that the reader can raise it without the loader's traceback around it.
    """

    def __init__(self, files: Iterable[Path], side: int) -> None:
        # An array of strings instead of a list: a list's reference counts would copy its pages into every worker.
        self.files = np.array([str(path) for path in files])
        self.side = side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return torch.from_numpy(decode_image(Path(str(self.files[index])), self.side))
        except InputError as error:
            return str(error)


def _stacked(images: list[Tensor | str]) -> Tensor | np.ndarray | str:
    """A batch, or the first message among the images.

    A worker hands it over in shared memory. Where that is too small (64 MB in a container), the loader would wait for ever for
    a batch that cannot be sent; an array goes through a pipe instead.
    """
    message = next((image for image in images if isinstance(image, str)), None)
    if message is not None:
        return message
    batch = torch.stack([image for image in images if not isinstance(image, str)])
    if get_worker_info() is None:
        return batch
    try:
        return batch.share_memory_()
    except (RuntimeError, OSError):  # no room, or no more open files
        return batch.numpy()


class _IndexBatches:
    """A batch sampler whose batches are replaced before each pass, so that workers can live through many epochs."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class FolderReader:
    """Reads batches of an image folder, in order, with workers that stay alive.

    Args:
        files: the image files.
        side: height and width wanted.
        workers: processes that decode; 0 decodes in this one.
        pin: whether batches are to lie in pinned memory.
    """

    def __init__(self, files: Iterable[Path], side: int, *, workers: int, pin: bool) -> None:
        self._order = _IndexBatches()
        self._workers = workers
        self._pin = pin
        self._loader: DataLoader[Tensor] = DataLoader(
            _FolderImages(files, side),
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=_stacked,
            pin_memory=pin,
            timeout=PATIENCE_SECONDS if workers else 0,
            persistent_workers=workers > 0,
            # The loader would draw a seed for its workers from the global generator, and so shift everybody else's draws.
            generator=torch.Generator(),
        )

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode batches; only one pass at a time.

        Args:
            batches: image numbers, int64 [B] each.

        Yields:
            uint8 [B, 3, S, S] on the CPU, for each batch.

        Raises:
            InputError: a file cannot be read, see `vitfp8.data.folders.decode_image`.
            RuntimeError: a worker died or is stuck.
        """
        self._order.batches = [batch.tolist() for batch in batches]
        try:
            for images in self._loader:
                if isinstance(images, str):
                    raise InputError(images)
                if isinstance(images, np.ndarray):
                    images = torch.from_numpy(images)
                    images = images.pin_memory() if self._pin else images
                yield images
        except (RuntimeError, OSError) as error:
            if not self._workers:
                raise
            why = str(error).strip().splitlines()[0].rstrip(". ")
            raise RuntimeError(
                f"a process that reads images ended or is stuck ({why}); set fewer workers, or workers: 0, which needs none"
            ) from error


@dataclass(kw_only=True)
class ImageData:
    """A data set at a size, on a device. Made by `load_data`.

    Attributes:
        name: a key of `vitfp8.catalog.DATASETS`.
        label: how a figure or table calls it.
        classes: number of classes.
        class_names: name of each class.
        channels: of the images that batches give, 1 or 3; where the files have one and three are given, it is repeated.
        image_size: height and width of the images that batches give.
        device: where batches are given.
        flip_keeps_class: whether images may be flipped.
        mean: of each channel over training images, in [0, 1].
        std: of each channel, in the same unit.
        validation_fraction: what was asked for; the folder's own validation split ignores it.
        digest: SHA-256 of what `digest_covers` says, in hexadecimal.
        digest_covers: what the digest was computed over.
        labels: class of every image, int64 [N] on the CPU.
        pixels: every image, uint8 [N, C, H, W], on the device or on the CPU; None where they are streamed.
        files: the image files of a folder, in order.
        folders: split → name of its folder, where a folder is divided by folders.
        workers: processes that decode streamed images.
    """

    name: str
    label: str
    classes: int
    class_names: list[str]
    channels: int
    image_size: int
    device: torch.device
    flip_keeps_class: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation_fraction: float
    digest: str
    digest_covers: str
    labels: Tensor
    pixels: Tensor | None
    files: tuple[Path, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)
    workers: int = 0
    splits: Mapping[str, Split] = field(repr=False)

    def __post_init__(self) -> None:
        self._device_labels = self.labels.to(self.device)

    @property
    def native_channels(self) -> int:
        """Channels that the images have in memory, and are augmented in."""
        return 3 if self.pixels is None else self.pixels.shape[1]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in the training, validation and test split."""
        return {name: len(self.splits[name]) for name in SPLITS[:3]}

    def split(self, name: str) -> Split:
        """The images of a split.

        ``train_clean`` is a part of the training images, as many of each class as validation has, for the generalisation gap.

        Args:
            name: one of `SPLITS`.
        """
        return self.splits[name]

    def facts(self) -> dict[str, Any]:
        """What a record says of the data: plain JSON, nothing of the machine's folders.

        ``native_channels`` is there where the grey channel is repeated, ``folders`` where the folder has splits of its own.
        """
        said = {"native_channels": self.native_channels} if self.native_channels != self.channels else {}
        divided = {"folders": dict(self.folders)} if self.folders else {}
        return {
            "name": self.name,
            "label": self.label,
            "classes": self.classes,
            "class_names": list(self.class_names),
            "channels": self.channels,
            **said,
            "image_size": self.image_size,
            "native_size": list(self.pixels.shape[2:]) if self.pixels is not None and not self.files else None,
            "sizes": self.sizes,
            **divided,
            "train_clean_size": len(self.splits["train_clean"]),
            "validation_fraction": self.validation_fraction,
            "mean": list(self.mean),
            "std": list(self.std),
            "digest": self.digest,
            "digest_covers": self.digest_covers,
            "storage": "streamed from files" if self.pixels is None else f"bytes in memory on {self.pixels.device.type}",
        }

    def labels_of(self, indices: Tensor) -> Tensor:
        """Classes of images, int64 [B] on the device.

        Args:
            indices: image numbers, int64 [B] on the device.
        """
        return self._device_labels[indices]

    def reader(self) -> FolderReader | None:
        """A new reader with workers of its own, where images are streamed; else None."""
        if self.pixels is not None:
            return None
        return FolderReader(self.files, self.image_size, workers=self.workers, pin=self.device.type == "cuda")

    def read(self, batches: Iterable[Tensor], reader: FolderReader | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as bytes, batch after batch.

        Args:
            batches: image numbers, int64 [B] on the CPU each.
            reader: from `reader`.

        Yields:
            (images, labels) on the device: uint8 [B, `native_channels`, H, W] and int64 [B].
        """
        batches = list(batches)
        if self.pixels is None:
            assert reader is not None, "streamed images need a reader"
            for indices, images in zip(batches, reader.read(batches), strict=True):
                yield images.to(self.device, non_blocking=True), self.labels_of(to_device(indices, self.device))
            return
        values = self.pixels[0].numel()
        for indices in batches:
            here = to_device(indices, self.device)
            if self.pixels.device == here.device:
                with one_thread_if_small(len(here) * values, self.device):
                    images, labels = self.pixels[here], self.labels_of(here)
            else:
                images, labels = to_device(self.pixels[indices], self.device), self.labels_of(here)
            yield images, labels


def _digest(name: str, source: Source, splits: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """SHA-256 of a data set, and what it covers."""
    total = hashlib.sha256()
    shape = None if source.pixels is None else list(source.pixels.shape)
    total.update(json.dumps({"name": name, "shape": shape, "classes": source.class_names}).encode())
    if source.pixels is not None:
        total.update(np.ascontiguousarray(source.pixels).data)
        covers = "image bytes at native size, labels, class names and splits"
    else:
        assert source.root is not None, "a source without pixels is a folder"
        sizes = [path.stat().st_size for path in source.files]
        by_content = sum(sizes) <= DIGEST_CONTENT_BYTES
        for path, size in zip(source.files, sizes, strict=True):
            total.update(json.dumps([path.relative_to(source.root).as_posix(), size]).encode())
            if by_content:
                total.update(path.read_bytes())
        what = "names, sizes and bytes" if by_content else "names and sizes, not bytes"
        covers = f"image files ({what}), labels, class names and splits"
    total.update(source.labels.astype("<i8").tobytes())
    for split in SPLITS:
        total.update(json.dumps([split, len(splits[split])]).encode() + splits[split].astype("<i8").tobytes())
    return total.hexdigest(), covers


def _fits(size: int, device: torch.device) -> bool:
    """Whether bytes are at most `MEMORY_FRACTION` of what is free on a device."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return size <= MEMORY_FRACTION * free


def _pixels(source: Source, image_size: int, device: torch.device, workers: int) -> Tensor | None:
    """The images where they fit: the device, else the host, else (a folder) nowhere."""
    size = source.pixels.nbytes if source.pixels is not None else len(source.files) * 3 * image_size**2
    home = next((place for place in (device, torch.device("cpu")) if _fits(size, place)), None)
    if source.pixels is not None:
        return torch.from_numpy(np.ascontiguousarray(source.pixels)).to(home or "cpu")
    if home is None:
        return None
    pixels = torch.empty(len(source.files), 3, image_size, image_size, dtype=torch.uint8)
    reader = FolderReader(source.files, image_size, workers=workers, pin=False)
    start = 0
    for images in reader.read(torch.arange(len(pixels)).split(64)):
        pixels[start : start + len(images)] = images
        start += len(images)
    return pixels.to(home)


def data_digest(*, dataset: str, data_dir: str | Path | None, validation_fraction: float) -> str | None:
    """The digest that a run on this data set would have; None where its files are not at hand. Downloads nothing.

    Args:
        dataset: a key of `vitfp8.catalog.DATASETS`.
        data_dir: the folder that its files are in; None: ``data/``, then the system's folders.
        validation_fraction: share of the training images held out for validation.
    """
    try:
        source = read_source(dataset, data_dir, download=False)
        return _digest(dataset, source, split_indices(source, validation_fraction))[0]
    except (InputError, OSError):
        return None


def load_data(
    *,
    dataset: str,
    data_dir: str | Path | None = None,
    image_size: int,
    validation_fraction: float = 0.1,
    download: bool = True,
    channels: int | None = None,
    workers: int = 0,
    device: torch.device | None = None,
) -> ImageData:
    """Read a data set and divide it.

    Args:
        dataset: a key of `vitfp8.catalog.DATASETS`.
        data_dir: the folder that its files are in; None: ``data/``, then the system's folders.
        image_size: height and width of the images that batches give, in pixels.
        validation_fraction: share of the training images held out for validation.
        channels: that batches are to have; None: the data set's own. A grey channel is repeated to three after augmentation, and
            its mean and deviation with it.
        device: where batches are given; None: the CPU.

    Raises:
        InputError: it is not there and cannot be had, is damaged, is too small to be divided, or has more channels than wanted.
    """
    row = DATASETS.get(dataset)
    if row is not None and channels is not None and (channels < row.channels or channels % row.channels):
        raise InputError(f"channels: {channels}, but {dataset} has {row.channels}; take {row.channels} or None")
    device = torch.device("cpu") if device is None else torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    source = read_source(dataset, data_dir, download=download)
    indices = split_indices(source, validation_fraction)
    digest, digest_covers = _digest(dataset, source, indices)
    labels = torch.from_numpy(source.labels)
    row = DATASETS[dataset]
    repeats = (channels or row.channels) // row.channels
    return ImageData(
        name=dataset,
        label=row.label,
        classes=len(source.class_names),
        class_names=list(source.class_names),
        channels=row.channels * repeats,
        image_size=image_size,
        device=device,
        flip_keeps_class=row.flip_keeps_class,
        mean=row.mean * repeats,
        std=row.std * repeats,
        validation_fraction=validation_fraction,
        digest=digest,
        digest_covers=digest_covers,
        labels=labels,
        pixels=_pixels(source, image_size, device, workers),
        files=source.files,
        folders={_SPLIT_OF[part]: name for part, name in source.folders.items()},
        workers=workers,
        splits={
            name: Split(name=name, indices=torch.from_numpy(chosen), labels=labels[torch.from_numpy(chosen)])
            for name, chosen in indices.items()
        },
    )
