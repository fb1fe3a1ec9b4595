"""Augmentation of a whole batch at once, on the device that trains.

A level is a row of `AUGMENTATIONS`: the operations, in order, with their parameters. Each operation first *draws*, on the host
and from counters (`vitfp8.data.draws`), what it will do to each image, then *applies* it to the batch. Nothing here waits for the
device.

Every image comes out the same bit for bit, whichever batch it is in. That holds because each step is either a fixed formula of a
few of the image's own pixels, or a sum whose terms and partial sums are all exact, so that the order of summation cannot show:

- resizing multiplies bytes by weights that are multiples of 1/256 and rounds to whole levels between its two passes, as Pillow
  does: at most 16 significant bits, exact even where a device multiplies in TF32 or BF16 (with FP32 sums);
- the mean that contrast needs is a sum of whole grey levels.

Where it differs from torchvision's transforms on Pillow images, whose parameters it shares:

- levels are not rounded to bytes after each operation;
- brightness, contrast, saturation and hue are applied in this order, not in a random one. Without clipping the first three
  commute, so only clipped pixels and the place of hue among them differ;
- rotation interpolates bilinearly and fills with black; torchvision's ``RandomRotation`` takes the nearest pixel unless told
  otherwise, which makes small images ragged (on digits at 16×16 it cost half a point of accuracy, three seeds);
- random erasing takes its normal noise from a fixed pool, at a place drawn for each image and epoch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from vitfp8.data.draws import image_draws
from vitfp8.data.operations import ColorJitter, Drawn, Normalize, Operation, RandomErasing, Resample, Rotation, Setting

#: Values of images [B, C, S, S] that each thread of a processor works on at a time, so that they stay in its second-level cache.
#: Accelerators take the whole batch.
CPU_CHUNK_VALUES = 3 * 2**16

#: Up to this many values a batch is augmented by one thread: starting and awaiting others takes longer, and very much longer
#: where other programs have the cores.
ONE_THREAD_VALUES = 2**22

_BASIC = Resample(crop_padding=1 / 8, flip=0.5)

#: Augmentation level → its operations in order. The names are those of `vitfp8.catalog.AUGMENTATION_LEVELS`.
AUGMENTATIONS: Mapping[str, tuple[Operation, ...]] = MappingProxyType(
    {
        "none": (Resample(), Normalize()),
        "basic": (_BASIC, Normalize()),
        "extended": (
            _BASIC,
            ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
            Rotation(degrees=15.0),
            Normalize(),
            RandomErasing(probability=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)),
        ),
    }
)


class RecycledMemory:
    """Memory for batches on a processor, used again once nothing refers to the batch that was in it.

    The system maps fresh memory page by page as it is first written, which takes a fifth of the time of augmenting at 224 pixels.
    A batch is lent out as a tensor over a numpy array; the array lives as long as any tensor that shares its memory, and a weak
    reference tells when it is gone.
    """

    #: Blocks that are kept: the batch that is worked with and the one that is made.
    BLOCKS = 2

    def __init__(self) -> None:
        self._blocks: list[tuple[Tensor, weakref.ref[np.ndarray]]] = []

    def take(self, count: int, *shape: int) -> Tensor:
        """An uninitialised float32 tensor [count, *shape] on the CPU that is the caller's alone."""
        free = [block for block, lent in self._blocks if lent() is None]
        block = next((block for block in free if block.shape[1:] == shape and len(block) >= count), None)
        if block is None:
            block = torch.empty(count, *shape)
        array = block[:count].numpy()
        others = [pair for pair in self._blocks if pair[0] is not block]
        self._blocks = [*others, (block, weakref.ref(array))][-self.BLOCKS :]
        return torch.from_numpy(array)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A level at work: bytes in, normalised images out.

    Attributes:
        level: a key of `AUGMENTATIONS`.
        setting: the images' size and kind.
    """

    level: str
    setting: Setting
    operations: tuple[Operation, ...] = field(init=False)
    _memory: RecycledMemory = field(init=False, repr=False, compare=False, default_factory=lambda: RecycledMemory())

    def __post_init__(self) -> None:
        object.__setattr__(self, "operations", AUGMENTATIONS[self.level])

    def draw(self, seed: int, epoch: int, indices: np.ndarray) -> dict[str, Tensor]:
        """What will be done to each image, float32 [B] by name, on the device (one copy, which the host does not wait for).

        Args:
            epoch: counted from 0.
            indices: int64 [B], the images' numbers in the data set.
        """
        uniform = image_draws(seed, epoch, indices)
        drawn: Drawn = {}
        for operation in self.operations:
            drawn |= operation.draw(uniform, self.setting)
        table = torch.from_numpy(np.stack(list(drawn.values())).astype(np.float32))
        return dict(zip(drawn, to_device(table, self.setting.device).unbind(0), strict=True))

    def __call__(self, images: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """Apply the level.

        Args:
            images: uint8 [B, C, H, W] on the device.
            drawn: from `draw`, for these images.

        Returns:
            float32 [B, C, S, S], normalised.
        """
        setting = self.setting
        count = len(images)
        values = setting.channels * setting.side * setting.side
        kind = setting.device.type
        exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with torch.no_grad(), exact, one_thread_if_small(count * values, setting.device):
            if setting.device.type != "cpu":
                return self._apply(images, drawn)
            augmented = self._memory.take(count, setting.channels, setting.side, setting.side)
            chunk = max(1, CPU_CHUNK_VALUES * torch.get_num_threads() // values)
            for start in range(0, count, chunk):
                part = slice(start, start + chunk)
                # Copied at once, so that the next chunk works in the memory that this one leaves, which is in the cache.
                augmented[part] = self._apply(images[part], {name: value[part] for name, value in drawn.items()})
        return augmented

    def _apply(self, images: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """One operation after the other."""
        for operation in self.operations:
            images = operation.apply(images, drawn, self.setting)
        return images


@contextmanager
def one_thread_if_small(values: int, device: torch.device) -> Iterator[None]:
    """Let one thread do what is not worth several; on accelerators, and for large work, nothing changes."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or values > ONE_THREAD_VALUES:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, by way of pinned memory where that lets the host go on."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
