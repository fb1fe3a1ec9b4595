"""Where the images come from: finding a data set, downloading it, refusing it in time.

No torch, so that a bad folder is refused before any kernel starts. A folder that the user names is never replaced in silence:
what is not there is downloaded into it or refused.
"""

from __future__ import annotations

import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vitfp8.catalog import DATASETS
from vitfp8.data.formats import (
    DEFAULT_FOLDER,
    Source,
    decode_image,
    find_cifar,
    find_fashion_mnist,
    list_image_folder,
    one_line,
    read_cifar,
    read_digits,
    read_fashion_mnist,
)
from vitfp8.params import InputError, suggest

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
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        way_out = "correct it" if dataset == "imagefolder" else "correct it, create it to download there, or leave it out"
        raise InputError(f"data_dir: {str(data_dir)!r} is not a folder; {way_out}")
    return folder


def _not_there(dataset: str, data_dir: Path | None) -> str:
    label = DATASETS[dataset].label
    return f"data_dir: {label} is not in {str(data_dir or DEFAULT_FOLDER)!r}"


def _download(dataset: str, data_dir: Path | None) -> None:
    """Let torchvision download, verify and unpack a data set."""
    from torchvision import datasets

    classes = {"fashion_mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    try:
        classes[dataset](str(data_dir or DEFAULT_FOLDER), download=True)
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
        download: whether it may be downloaded.

    Raises:
        InputError: it is not there and cannot be had, or is damaged.
    """
    folder = _given(dataset, data_dir)
    if dataset == "digits":
        return read_digits()
    if dataset == "imagefolder":
        assert folder is not None, "_given refuses that"
        try:
            return list_image_folder(folder)
        except OSError as error:
            raise InputError(f"data_dir: {error.filename} cannot be read ({error.strerror}); check its permissions") from error
    found = _FINDERS[dataset](folder)
    if found is None:
        if not download:
            raise InputError(f"{_not_there(dataset, folder)} and download is false; set data_dir to {_WANTED[dataset]}")
        _download(dataset, folder)
        found = _FINDERS[dataset](folder)
        assert found is not None, "torchvision reported a complete download"
    return _READERS[dataset](found)


def check_dataset(*, dataset: str, data_dir: str | Path | None = None, download: bool = True) -> None:
    """Refuse a data set that cannot be had, before anything starts. Writes nothing and imports no torch.

    Files that are there are read and verified. Of an image folder the structure is checked and one image of each class and split
    is read. Of a set that would be downloaded it is asked whether the server answers.

    Args:
        dataset: a key of `vitfp8.catalog.DATASETS`.
        data_dir: the user's folder; None: the usual places.
        download: whether it may be downloaded.

    Raises:
        InputError: it is not there and cannot be had, or is damaged.
    """
    folder = _given(dataset, data_dir)
    if dataset == "digits":
        return
    if dataset == "imagefolder":
        source = read_source(dataset, folder, download=download)
        _, first = np.unique(source.parts.astype(np.int64) * len(source.class_names) + source.labels, return_index=True)
        for index in first:
            decode_image(source.files[index], 32)
        return
    found = _FINDERS[dataset](folder)
    if found is not None:
        _READERS[dataset](found)
        return
    if not download:
        raise InputError(f"{_not_there(dataset, folder)} and download is false; set data_dir to {_WANTED[dataset]}")
    url = DOWNLOAD_URLS[dataset]
    if ((folder or DEFAULT_FOLDER) / url.rpartition("/")[2]).is_file():
        return  # torchvision verifies and unpacks the archive that is there
    request = urllib.request.Request(url, headers={"User-Agent": "vitfp8"})
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
            return
    except (OSError, HTTPException) as error:  # URLError, HTTPError and time-outs are OSErrors
        raise InputError(
            f"{_not_there(dataset, folder)} and cannot be downloaded from {url} ({one_line(error)}); "
            f"set data_dir to {_WANTED[dataset]}"
        ) from error
