"""Where the images come from: finding a data set, downloading it, refusing it in time.

No torch, so that a bad folder is refused before any kernel starts. A folder that the user names is never replaced in silence:
what is not there is downloaded into it or refused.
"""

from __future__ import annotations

import hashlib
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vitfp8.catalog import DATASETS
from vitfp8.data.folders import check_pictures, class_folders, list_image_folder, split_folders
from vitfp8.data.readers import (
    FASHION_CLASSES,
    TEST,
    TRAIN,
    UNSPLIT,
    VALIDATION,
    Source,
    default_folder,
    find_cifar,
    find_fashion_mnist,
    one_line,
    read_cifar,
    read_digits,
    read_fashion_mnist,
)
from vitfp8.data.splits import check_batch_size, split_indices
from vitfp8.errors import InputError, suggest
from vitfp8.home import at_home

#: What `validation_fraction` states for a folder with a validation split of its own, where nothing is held out.
OWN_SPLIT_FRACTION = 0.1

#: Seconds that the preflight waits for a server's answer.
CONNECT_SECONDS = 10.0


#: What torchvision downloads, asked for by the preflight (a test compares with torchvision's own).
DOWNLOAD_URLS: Mapping[str, str] = MappingProxyType(
    {
        "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
        "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    }
)

#: Data set → images of each class in its training files, and in its test files, as published (a test compares the digits', which
#: have no test files). With these a set's splits are known before it is downloaded, and the digits' without scikit-learn.
_PUBLISHED: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = MappingProxyType(
    {
        "digits": ((178, 182, 177, 183, 181, 182, 181, 179, 174, 180), ()),
        "fashion_mnist": ((6000,) * 10, (1000,) * 10),
        "cifar10": ((5000,) * 10, (1000,) * 10),
        "cifar100": ((500,) * 100, (100,) * 100),
    }
)

#: MD5 sums of CIFAR's archives, as torchvision has them (a test compares).
ARCHIVE_MD5: Mapping[str, str] = MappingProxyType(
    {"cifar10": "c58f30108f718f92721af3b95e74349a", "cifar100": "eb9058c3a382ffc7106e4002c42a8d85"}
)

_WANTED: Mapping[str, str] = MappingProxyType(
    {
        "fashion_mnist": "a folder with its four IDX files",
        "cifar10": "a folder with its unpacked cifar-10-batches-py",
        "cifar100": "a folder with its unpacked cifar-100-python",
    }
)

_FINDERS: Mapping[str, Callable[[Path | None], Path | None]] = MappingProxyType(
    {
        "fashion_mnist": find_fashion_mnist,
        "cifar10": lambda data_dir: find_cifar("cifar10", data_dir),
        "cifar100": lambda data_dir: find_cifar("cifar100", data_dir),
    }
)

_READERS: Mapping[str, Callable[[Path], Source]] = MappingProxyType(
    {
        "fashion_mnist": read_fashion_mnist,
        "cifar10": lambda folder: read_cifar("cifar10", folder),
        "cifar100": lambda folder: read_cifar("cifar100", folder),
    }
)


def _given(dataset: str, data_dir: str | Path | None) -> Path | None:
    """The user's folder, if one is given and used."""
    if dataset not in DATASETS:
        raise InputError(f"dataset: {dataset!r} is unknown; {suggest(dataset, DATASETS)}")
    if dataset == "digits":
        return None
    if not data_dir:
        if dataset == "imagefolder":
            raise InputError("data_dir: dataset imagefolder needs it; give a folder that has a folder of images for each class")
        return None
    folder = Path(data_dir)
    with suppress(RuntimeError):  # ~name of a user who does not exist
        folder = folder.expanduser()
    if not folder.is_dir():  # meant from the study's home, as a terminal there means it
        folder = at_home(folder)
    if not folder.is_dir():
        way_out = "correct it" if dataset == "imagefolder" else "correct it, create it to download there, or leave it out"
        raise InputError(f"data_dir: {str(data_dir)!r} is not a folder; {way_out}")
    return folder


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"data_dir: {error.filename} cannot be read ({error.strerror}); check its permissions") from error


def _not_there(dataset: str, data_dir: Path | None) -> str:
    label = DATASETS[dataset].label
    return f"data_dir: {label} is not in {str(data_dir or default_folder())!r}"


def _download(dataset: str, data_dir: Path | None) -> None:
    """Let torchvision download, verify and unpack a data set."""
    from torchvision import datasets

    classes = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    try:
        classes[dataset](str(data_dir or default_folder()), download=True)
    except (OSError, RuntimeError, EOFError, zlib.error, HTTPException, tarfile.TarError) as error:
        raise InputError(
            f"{_not_there(dataset, data_dir)} and cannot be downloaded from {DOWNLOAD_URLS[dataset]} ({one_line(error)}); "
            f"set data_dir to {_WANTED[dataset]}"
        ) from error


def read_source(dataset: str, data_dir: str | Path | None, *, download: bool) -> Source:
    """Find a data set, download it where that is needed and allowed, and read it (an image folder is only listed).

    Args:
        dataset: a key of `vitfp8.catalog.DATASETS`.
        data_dir: the user's folder; None: the usual places.

    Raises:
        InputError: it is not there and cannot be had, or is damaged.
    """
    folder = _given(dataset, data_dir)
    if dataset == "digits":
        return read_digits()
    if dataset == "imagefolder":
        assert folder is not None, "_given refuses that"
        with _readable():
            return list_image_folder(folder)
    with _readable():
        found = _FINDERS[dataset](folder)
    if found is None:
        if not download:
            raise InputError(f"{_not_there(dataset, folder)} and download is false; set data_dir to {_WANTED[dataset]}")
        _download(dataset, folder)
        found = _FINDERS[dataset](folder)
        assert found is not None, "torchvision reported a complete download"
    return _READERS[dataset](found)


def count_classes(dataset: str, data_dir: str | Path | None = None) -> int:
    """Number of classes, of an image folder from the names in it.

    Args:
        dataset: a key of `vitfp8.catalog.DATASETS`.

    Raises:
        InputError: the folder is not there, or has no class folders.
    """
    folder = _given(dataset, data_dir)
    known = DATASETS[dataset].classes
    if known is not None:
        return known
    assert folder is not None, "_given refuses that"
    with _readable():
        return len(class_folders(next(iter(split_folders(folder).values()))))


def check_dataset(
    *,
    dataset: str,
    data_dir: str | Path | None = None,
    download: bool = True,
    validation_fraction: float | None = None,
    batch_size: int | None = None,
) -> None:
    """Refuse a data set that cannot be had, or cannot be trained on as wanted, before anything starts.

    Writes nothing and imports no torch.

    Files that are there are read and verified. An image folder is listed and its pictures are looked at, see
    `vitfp8.data.folders.check_pictures`. Of a set that would be downloaded it is asked whether the server answers.

    Args:
        dataset: a key of `vitfp8.catalog.DATASETS`.
        data_dir: the user's folder; None: the usual places.
        validation_fraction: share of the training images held out for validation; None: not checked.
        batch_size: images per step; None: not checked.

    Raises:
        InputError: it is not there and cannot be had, is damaged, cannot be divided, or has fewer training images than a batch.
    """
    source = _source_ahead(dataset, data_dir, download=download)
    if VALIDATION in source.parts and validation_fraction not in (None, OWN_SPLIT_FRACTION):
        raise InputError(
            f"validation_fraction: {validation_fraction}: {data_dir} has a validation split of its own, which is taken; leave "
            f"validation_fraction: {OWN_SPLIT_FRACTION}, or remove that split"
        )
    if validation_fraction is not None:
        training_images = len(split_indices(source, validation_fraction)["train"])
        if batch_size is not None:
            check_batch_size(batch_size, training_images)
    if dataset == "imagefolder":
        with _readable():
            check_pictures(source)


def _source_ahead(dataset: str, data_dir: str | Path | None, *, download: bool) -> Source:
    """The data set as `read_source` would give it; of one that is yet to be downloaded, and of the digits, without pixels."""
    folder = _given(dataset, data_dir)
    if dataset == "imagefolder":
        return read_source(dataset, folder, download=download)
    if dataset != "digits":
        with _readable():
            found = _FINDERS[dataset](folder)
        if found is not None or not download:
            return read_source(dataset, folder, download=False)
        _ask_server(dataset, folder)
    train, test = (np.array(counts, dtype=np.int64) for counts in _PUBLISHED[dataset])
    classes = np.arange(len(train))
    return Source(
        labels=np.concatenate([np.repeat(classes, train), np.repeat(classes[: len(test)], test)]),
        parts=np.repeat([TRAIN if len(test) else UNSPLIT, TEST], [train.sum(), test.sum()]).astype(np.int8),
        class_names=FASHION_CLASSES if dataset == "fashion_mnist" else tuple(str(number) for number in classes),
    )


def _ask_server(dataset: str, folder: Path | None) -> None:
    """Refuse a download that would fail: neither an intact archive is there nor does the server answer."""
    url = DOWNLOAD_URLS[dataset]
    archive = (folder or default_folder()) / url.rpartition("/")[2]
    if archive.is_file() and hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest() == ARCHIVE_MD5.get(dataset):
        return  # torchvision unpacks it
    request = urllib.request.Request(url, headers={"User-Agent": "vitfp8"})
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
            return
    except (OSError, HTTPException) as error:  # URLError, HTTPError and time-outs are OSErrors
        damaged = f" (what {archive} holds is incomplete or altered)" if archive.is_file() else ""
        raise InputError(
            f"{_not_there(dataset, folder)}{damaged} and cannot be downloaded from {url} ({one_line(error)}); "
            f"set data_dir to {_WANTED[dataset]}"
        ) from error
