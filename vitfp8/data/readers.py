"""Known data sets, found, checked and read: scikit-learn's digits, IDX files, CIFAR's pickles. No torch.

A file that is there but damaged is refused. `vitfp8.data.folders` reads folders of class folders.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vitfp8.catalog import DATASETS
from vitfp8.errors import InputError
from vitfp8.home import at_home

#: Share of the images of a set without a test split of its own (digits, one folder of classes) that becomes its test split.
TEST_FRACTION = 0.2

#: Parts of a data set, as `Source.parts` numbers them. UNSPLIT images become train or test images.
TRAIN, VALIDATION, TEST, UNSPLIT = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as its files have it.

    Attributes:
        labels: int64 [N].
        parts: int8 [N], `TRAIN`, `VALIDATION`, `TEST` or `UNSPLIT`.
        class_names: name of each class.
        pixels: uint8 [N, C, H, W]; None for an image folder.
        files: the image files in the same order, for an image folder.
        root: the folder that they are in, for an image folder.
        folders: part → name of the folder that its classes are in, where an image folder is divided by folders.
    """

    labels: np.ndarray
    parts: np.ndarray
    class_names: tuple[str, ...]
    pixels: np.ndarray | None = None
    files: tuple[Path, ...] = ()
    root: Path | None = None
    folders: Mapping[int, str] = field(default_factory=dict)


# --- digits -------------------------------------------------------------------------------------------------------------------


def default_folder() -> Path:
    """Where data sets are looked for, and downloaded to, when no folder is given: ``data/`` at the study's home."""
    return at_home("data")


def read_digits() -> Source:
    """Scikit-learn's digits: 8×8, values 0…16 spread over the bytes. The file's own order; not split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    return Source(
        labels=labels,
        parts=np.full(len(labels), UNSPLIT, dtype=np.int8),
        class_names=tuple(str(digit) for digit in range(10)),
        pixels=pixels,
    )


# --- Fashion-MNIST: IDX files -------------------------------------------------------------------------------------------------

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801
_IDX_FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
_IDX_SUBFOLDERS = (".", "FashionMNIST/raw")


def system_folders() -> tuple[Path, ...]:
    """Where Debian's ``dataset-fashion-mnist`` puts it, and the like below the interpreter's prefix."""
    prefixes = dict.fromkeys((Path("/usr/share"), Path("/usr/local/share"), Path(sys.prefix) / "share"))
    return tuple(prefix / "datasets" / "fashion-mnist" for prefix in prefixes)


def _idx_path(folder: Path, name: str) -> Path | None:
    """The file, plain or gzipped, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def find_fashion_mnist(data_dir: Path | None) -> Path | None:
    """The folder that has Fashion-MNIST's four IDX files.

    Args:
        data_dir: the user's folder; None: `default_folder`, then the system's folders.

    Raises:
        InputError: a folder has some of the four but not all.
    """
    bases = (data_dir,) if data_dir else (default_folder(), *system_folders())
    names = [name for pair in _IDX_FILES for name in pair]
    for folder in (base / sub for base in bases for sub in _IDX_SUBFOLDERS):
        missing = [name for name in names if _idx_path(folder, name) is None]
        if not missing:
            return folder
        if len(missing) < len(names):
            raise InputError(f"data_dir: {folder} lacks {', '.join(missing)} (.gz or not); add it or remove the other IDX files")
    return None


def read_idx(path: Path, *, magic: int, dimensions: int) -> np.ndarray:
    """Read an IDX file of bytes (LeCun's format), gzipped if its name ends in ``.gz``.

    Args:
        dimensions: how many sizes follow, each a big-endian 32-bit number.

    Returns:
        uint8 array.

    Raises:
        InputError: not an IDX file of this kind, damaged, or not as long as its header says.
    """
    again = "get it again or point data_dir at an intact copy"
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"data_dir: {path} is damaged or truncated (gzip: {error}); {again}") from error
    except OSError as error:
        raise InputError(f"data_dir: {path} cannot be read ({error.strerror or error}); check its permissions") from error
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise InputError(f"data_dir: {path} is truncated: {len(raw)} bytes, its header alone has {header}; {again}")
    found, *shape = struct.unpack(f">{1 + dimensions}I", raw[:header])
    if found != magic:
        raise InputError(
            f"data_dir: {path} begins with {found:#010x}, not {magic:#010x}: not the IDX file its name says; {again}"
        )
    size = int(np.prod(shape, dtype=np.int64))
    if len(raw) - header != size:
        state = "is truncated" if len(raw) - header < size else "is too long"
        raise InputError(f"data_dir: {path} {state}: its header says {size} bytes, it has {len(raw) - header}; {again}")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def read_fashion_mnist(folder: Path) -> Source:
    """Read the four IDX files of a folder; training images first.

    Args:
        folder: from `find_fashion_mnist`.

    Raises:
        InputError: a file is damaged, or images and labels do not belong together.
    """
    side = DATASETS["fashion_mnist"].side
    pixels, labels, parts = [], [], []
    for part, names in zip((TRAIN, TEST), _IDX_FILES, strict=True):
        image_file, label_file = (_idx_path(folder, name) for name in names)
        assert image_file is not None and label_file is not None, "find_fashion_mnist found them"
        images = read_idx(image_file, magic=_IDX_IMAGES, dimensions=3)
        classes = read_idx(label_file, magic=_IDX_LABELS, dimensions=1)
        if images.shape[1:] != (side, side):
            shape = "×".join(str(size) for size in images.shape[1:])
            raise InputError(
                f"data_dir: {image_file} has images of {shape}, Fashion-MNIST's are {side}×{side}; use dataset imagefolder"
            )
        if len(images) != len(classes):
            raise InputError(
                f"data_dir: {image_file} has {len(images)} images but {label_file.name} has {len(classes)} labels; get both again"
            )
        if len(classes) and classes.max() >= len(FASHION_CLASSES):
            raise InputError(f"data_dir: {label_file} has label {classes.max()}, Fashion-MNIST's are 0 to 9; get it again")
        pixels.append(images[:, None])
        labels.append(classes.astype(np.int64))
        parts.append(np.full(len(classes), part, dtype=np.int8))
    return Source(
        labels=np.concatenate(labels),
        parts=np.concatenate(parts),
        class_names=FASHION_CLASSES,
        pixels=np.concatenate(pixels),
    )


# --- CIFAR: Krizhevsky's pickles ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CifarFiles:
    """Names and MD5 sums of the files of a CIFAR set, as torchvision has them (a test compares).

    Attributes:
        folder: that the archive unpacks to.
        train: name and MD5 of each training file, in order.
        test: likewise.
        meta: likewise, of the class names.
        label_key: of the labels in a file.
        names_key: of the class names in the meta file.
    """

    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    meta: tuple[str, str]
    label_key: str
    names_key: str


CIFAR_FILES: Mapping[str, CifarFiles] = MappingProxyType(
    {
        "cifar10": CifarFiles(
            folder="cifar-10-batches-py",
            train=(
                ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
                ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
                ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
                ("data_batch_4", "634d18415352ddfa80567beed471001a"),
                ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ),
            test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
            meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
            label_key="labels",
            names_key="label_names",
        ),
        "cifar100": CifarFiles(
            folder="cifar-100-python",
            train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
            test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
            meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
            label_key="fine_labels",
            names_key="fine_label_names",
        ),
    }
)


def find_cifar(name: str, data_dir: Path | None) -> Path | None:
    """The folder with the unpacked files of ``cifar10`` or ``cifar100``: the given one or that of the archive's name in it.

    Args:
        data_dir: the user's folder; None: `default_folder`.

    Raises:
        InputError: a folder has some of the files but not all.
    """
    known = CIFAR_FILES[name]
    base = data_dir or default_folder()
    names = [file for file, _ in (*known.train, *known.test, known.meta)]
    # "train" and "test" of CIFAR-100 are such common names that a folder counts as its own only by the archive's name or its meta
    # file.
    for folder in (base / known.folder, base):
        missing = [file for file in names if not (folder / file).is_file()]
        if not missing:
            return folder
        if len(missing) < len(names) and (folder.name == known.folder or known.meta[0] not in missing):
            raise InputError(
                f"data_dir: {folder} lacks {', '.join(missing)}; remove the folder to get it anew, or add what is missing"
            )
    return None


def _unpickled(path: Path, md5: str) -> dict:
    """Content of a CIFAR file. Its checksum is verified first, since unpickling runs what a file says."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"data_dir: {path} cannot be read ({error.strerror or error}); check its permissions") from error
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"data_dir: {path} is truncated or altered (its MD5 sum is not {md5}); remove its folder to get it anew")
    return pickle.loads(raw, encoding="latin1")


def read_cifar(name: str, folder: Path) -> Source:
    """Read the files of ``cifar10`` or ``cifar100``; training images first.

    Args:
        folder: from `find_cifar`.

    Raises:
        InputError: a file is not the original one.
    """
    known = CIFAR_FILES[name]
    pixels, labels, parts = [], [], []
    for part, files in ((TRAIN, known.train), (TEST, known.test)):
        for file, md5 in files:
            content = _unpickled(folder / file, md5)
            pixels.append(np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(content[known.label_key], dtype=np.int64))
            parts.append(np.full(len(labels[-1]), part, dtype=np.int8))
    return Source(
        labels=np.concatenate(labels),
        parts=np.concatenate(parts),
        class_names=tuple(_unpickled(folder / known.meta[0], known.meta[1])[known.names_key]),
        pixels=np.concatenate(pixels),
    )


def one_line(error: BaseException) -> str:
    """A library's error as part of a line: white space collapsed, at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
