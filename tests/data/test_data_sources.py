"""Finding, checking and refusing: what is missing, truncated or altered costs one clear line before anything starts."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets as tvd
from PIL import Image
from torchvision import transforms

from vitfp8.catalog import DATASETS
from vitfp8.data import check_dataset, load_data, readers, sources
from vitfp8.data.folders import decode_image, list_image_folder
from vitfp8.data.readers import CIFAR_FILES, FASHION_CLASSES, read_digits
from vitfp8.data.sources import DOWNLOAD_URLS, read_source
from vitfp8.errors import InputError

RANDOM = np.random.default_rng(0)
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NOWHERE = "http://127.0.0.1:9/"


def refusal(**kwargs: object) -> str:
    """The line with which both the preflight and the reader refuse."""
    lines = []
    for refuse in (check_dataset, lambda **kw: load_data(image_size=32, **kw)):
        with pytest.raises(InputError) as caught:
            refuse(**kwargs)
        lines.append(str(caught.value))
    assert all("\n" not in line and line.startswith(("data_dir: ", "dataset: ")) for line in lines)
    return lines[1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, no system folders, no internet."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    monkeypatch.setattr(readers, "system_folders", lambda: ())
    monkeypatch.setattr(sources, "DOWNLOAD_URLS", dict.fromkeys(DOWNLOAD_URLS, NOWHERE + "archive"))
    monkeypatch.setattr(tvd.FashionMNIST, "mirrors", [NOWHERE])
    for dataset in (tvd.CIFAR10, tvd.CIFAR100):
        monkeypatch.setattr(dataset, "url", NOWHERE + "archive")


# --- digits -------------------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_with_sixteen_as_white() -> None:
    source = read_digits()
    assert source.pixels is not None
    assert source.pixels.shape == (1797, 1, 8, 8)
    assert source.pixels.min() == 0 and source.pixels.max() == 255
    assert np.unique(source.pixels).tolist() == [round(value * 255 / 16) for value in range(17)]


def test_unknown_data_set_is_refused_with_a_suggestion() -> None:
    assert "cifar10" in refusal(dataset="cifar-10")


def test_preflight_loads_no_torch() -> None:
    code = "import sys; from vitfp8.data import check_dataset; check_dataset(dataset='digits'); sys.exit('torch' in sys.modules)"
    top = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=top).returncode == 0


# --- Fashion-MNIST ------------------------------------------------------------------------------------------------------------


def idx(magic: int, array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write_fashion_mnist(folder: Path, *, zipped: bool = False, train: int = 60, test: int = 20) -> dict[str, np.ndarray]:
    """Small IDX files in the real layout; returns what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, count in (("train", train), ("t10k", test)):
        arrays[f"{part}-images-idx3-ubyte"] = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        raw = idx(0x803 if array.ndim == 3 else 0x801, array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)
    return arrays


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("below", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_plain_and_gzipped_files_in_either_layout(tmp_path: Path, zipped: bool, below: str) -> None:
    arrays = write_fashion_mnist(tmp_path / below, zipped=zipped)
    check_dataset(dataset="fashion_mnist", data_dir=tmp_path, download=False)
    data = load_data(dataset="fashion_mnist", data_dir=str(tmp_path), image_size=28, validation_fraction=0.2, download=False)
    assert data.pixels is not None
    expected = np.concatenate([arrays[IDX_NAMES[0]], arrays[IDX_NAMES[2]]])
    np.testing.assert_array_equal(data.pixels[:, 0].numpy(), expected)
    np.testing.assert_array_equal(data.labels.numpy(), np.concatenate([arrays[IDX_NAMES[1]], arrays[IDX_NAMES[3]]]))
    assert data.split("test").indices.tolist() == list(range(60, 80))


def test_fashion_mnist_is_found_in_the_data_folder_and_then_where_the_system_puts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_fashion_mnist(tmp_path / "system")
    monkeypatch.setattr(readers, "system_folders", lambda: (tmp_path / "system",))
    assert readers.find_fashion_mnist(None) == tmp_path / "system"
    write_fashion_mnist(Path("data"))
    assert readers.find_fashion_mnist(None) == Path("data")


def test_a_folder_that_the_user_names_is_not_replaced_by_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path / "system")
    monkeypatch.setattr(readers, "system_folders", lambda: (tmp_path / "system",))
    (tmp_path / "mine").mkdir()
    assert "Fashion-MNIST is not in" in refusal(dataset="fashion_mnist", data_dir=tmp_path / "mine", download=False)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_fashion_mnist_is_what_the_catalogue_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data = load_data(dataset="fashion_mnist", data_dir=DEBIAN, image_size=28, download=False)
    assert data.sizes == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert DEBIAN in readers.system_folders()
    row = DATASETS["fashion_mnist"]
    assert data.pixels is not None
    train = data.pixels[:60_000].double() / 255
    assert train.mean().item() == pytest.approx(row.mean[0], abs=6e-5)
    assert train.std().item() == pytest.approx(row.std[0], abs=6e-5)
    assert data.class_names == list(FASHION_CLASSES) == list(tvd.FashionMNIST.classes)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def cut_to_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6])


def other_magic(path: Path) -> None:
    path.write_bytes(struct.pack(">I", 0x802) + path.read_bytes()[4:])


def fewer_images(path: Path) -> None:
    path.write_bytes(idx(0x803, np.zeros((59, 28, 28), dtype=np.uint8)))


def other_side(path: Path) -> None:
    path.write_bytes(idx(0x803, np.zeros((60, 32, 32), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "is truncated: its header says 47040 bytes, it has 46940"),
        (lengthen, "is too long"),
        (cut_to_header, "its header alone has 16"),
        (other_magic, "begins with 0x00000802, not 0x00000803"),
        (fewer_images, "59 images but train-labels-idx1-ubyte has 60 labels"),
        (other_side, "images of 32×32, Fashion-MNIST's are 28×28"),
        (Path.unlink, "lacks train-images-idx3-ubyte"),
    ],
)
def test_damaged_idx_files_are_refused_by_name(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    write_fashion_mnist(tmp_path)
    damage(tmp_path / IDX_NAMES[0])
    line = refusal(dataset="fashion_mnist", data_dir=tmp_path, download=False)
    assert said in line and str(tmp_path) in line


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / IDX_NAMES[3]).write_bytes(idx(0x801, np.full(20, 10, dtype=np.uint8)))
    assert "has label 10" in refusal(dataset="fashion_mnist", data_dir=tmp_path, download=False)


def flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("damage", [truncate, flip_byte, lambda path: path.write_bytes(b"not gzip")])
def test_damaged_gzip_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_fashion_mnist(tmp_path, zipped=True)
    damage(tmp_path / f"{IDX_NAMES[0]}.gz")
    assert "is damaged or truncated (gzip" in refusal(dataset="fashion_mnist", data_dir=tmp_path, download=False)


# --- CIFAR --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes small files in CIFAR's real pickle format and lets both md5 tables, ours and torchvision's, expect them."""

    def write(name: str) -> Path:
        known = CIFAR_FILES[name]
        folder = tmp_path / known.folder
        folder.mkdir()
        classes = 10 if name == "cifar10" else 100
        sums = {}

        def dump(file: str, content: dict) -> None:
            (folder / file).write_bytes(pickle.dumps(content, protocol=2))
            sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()

        for file, _ in (*known.train, *known.test):
            count = 2 * classes
            content = {
                "data": RANDOM.integers(0, 256, (count, 3072), dtype=np.uint8),
                known.label_key: (np.arange(count) % classes).tolist(),
                "filenames": [f"{number}.png" for number in range(count)],
            }
            if name == "cifar100":
                content["coarse_labels"] = [0] * count
            dump(file, content)
        dump(known.meta[0], {known.names_key: [f"class {number}" for number in range(classes)]})

        train, test = (tuple((file, sums[file]) for file, _ in files) for files in (known.train, known.test))
        made = replace(known, train=train, test=test, meta=(known.meta[0], sums[known.meta[0]]))
        monkeypatch.setattr(readers, "CIFAR_FILES", {name: made})
        theirs = tvd.CIFAR10 if name == "cifar10" else tvd.CIFAR100
        monkeypatch.setattr(theirs, "train_list", [list(row) for row in train])
        monkeypatch.setattr(theirs, "test_list", [list(row) for row in test])
        monkeypatch.setattr(theirs, "meta", {**theirs.meta, "md5": made.meta[1]})
        return tmp_path

    return write


@pytest.mark.parametrize(("name", "theirs"), [("cifar10", tvd.CIFAR10), ("cifar100", tvd.CIFAR100)])
def test_cifar_is_read_as_torchvision_reads_it(cifar: Callable[[str], Path], name: str, theirs: type) -> None:
    root = cifar(name)
    check_dataset(dataset=name, data_dir=root, download=False)
    data = load_data(dataset=name, data_dir=root, image_size=32, validation_fraction=0.5, download=False)
    train, test = theirs(root, train=True), theirs(root, train=False)  # torchvision verifies its md5 list here
    expected = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)
    assert data.pixels is not None
    np.testing.assert_array_equal(data.pixels.numpy(), expected)
    assert data.labels.tolist() == [*train.targets, *test.targets]
    assert data.class_names == train.classes and data.classes == len(train.classes)


def test_cifar_may_be_named_by_its_own_folder(cifar: Callable[[str], Path]) -> None:
    folder = cifar("cifar10") / CIFAR_FILES["cifar10"].folder
    check_dataset(dataset="cifar10", data_dir=folder, download=False)
    digests = {
        load_data(dataset="cifar10", data_dir=place, image_size=32, download=False).digest for place in (folder, folder.parent)
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncate, "data_batch_3 is truncated or altered"),
        (flip_byte, "is truncated or altered"),
        (Path.unlink, "lacks data_batch_3"),
    ],
)
def test_damaged_cifar_is_refused_and_not_unpickled(
    cifar: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], said: str
) -> None:
    root = cifar("cifar10")
    damage(root / CIFAR_FILES["cifar10"].folder / "data_batch_3")
    assert said in refusal(dataset="cifar10", data_dir=root, download=True)


def test_checksums_and_addresses_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, theirs in (("cifar10", tvd.CIFAR10), ("cifar100", tvd.CIFAR100)):
        ours = CIFAR_FILES[name]
        assert ours.folder == theirs.base_folder
        assert [list(row) for row in ours.train] == theirs.train_list
        assert [list(row) for row in ours.test] == theirs.test_list
        assert ours.meta == (theirs.meta["filename"], theirs.meta["md5"])
        assert ours.names_key == theirs.meta["key"]
        assert DOWNLOAD_URLS[name] == theirs.url
    assert DOWNLOAD_URLS["fashion_mnist"] == tvd.FashionMNIST.mirrors[0] + tvd.FashionMNIST.resources[0][0]


# --- folders and downloads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10", "imagefolder"])
def test_a_folder_that_is_missing_is_refused(dataset: str) -> None:
    line = refusal(dataset=dataset, data_dir="/no/such/folder")
    assert "'/no/such/folder' is not a folder" in line


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10", "cifar100"])
def test_nothing_there_and_no_download_says_what_to_give(dataset: str) -> None:
    line = refusal(dataset=dataset, download=False)
    assert "is not in 'data' and download is false; set data_dir to a folder" in line


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10", "cifar100"])
def test_a_failed_download_names_the_address_and_the_way_out(dataset: str) -> None:
    line = refusal(dataset=dataset)
    assert f"cannot be downloaded from {NOWHERE}" in line and "set data_dir to a folder" in line


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine that gives what is in ``tmp_path/web``."""
    (tmp_path / "web").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}/"
    web.shutdown()
    thread.join()
    web.server_close()


def test_a_data_set_that_is_not_there_is_downloaded_once(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(tmp_path / "web", zipped=True)
    files = [(f"{name}.gz", hashlib.md5((tmp_path / "web" / f"{name}.gz").read_bytes()).hexdigest()) for name in IDX_NAMES]
    monkeypatch.setattr(tvd.FashionMNIST, "mirrors", [server])
    monkeypatch.setattr(tvd.FashionMNIST, "resources", files)
    monkeypatch.setattr(sources, "DOWNLOAD_URLS", {"fashion_mnist": server + files[0][0]})
    check_dataset(dataset="fashion_mnist")
    assert not Path("data").exists()  # the preflight writes nothing
    first = read_source("fashion_mnist", None, download=True)
    assert Path("data/FashionMNIST/raw").is_dir()
    again = read_source("fashion_mnist", None, download=False)
    np.testing.assert_array_equal(first.pixels, again.pixels)


# --- image folders ------------------------------------------------------------------------------------------------------------


def write_image(path: Path, width: int = 20, height: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def write_classes(folder: Path, *, count: int = 10, names: tuple[str, ...] = ("ant", "bee")) -> None:
    for name in names:
        for number in range(count):
            write_image(folder / name / f"{number}.png")


@pytest.mark.parametrize(("width", "height", "side"), [(40, 30, 16), (30, 41, 16), (17, 17, 17), (9, 20, 24), (333, 250, 224)])
def test_images_are_decoded_as_torchvision_would(tmp_path: Path, width: int, height: int, side: int) -> None:
    write_image(tmp_path / "image.png", width, height)
    theirs = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side), transforms.PILToTensor()])
    with Image.open(tmp_path / "image.png") as image:
        expected = theirs(image)
    assert torch.equal(torch.from_numpy(decode_image(tmp_path / "image.png", side)), expected)


def test_grey_and_transparent_images_become_colour_images(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (8, 8)).save(tmp_path / "image.png")
        assert decode_image(tmp_path / "image.png", 8).shape == (3, 8, 8)


def test_train_and_test_folders_are_kept_apart(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", count=3)
    source = list_image_folder(tmp_path)
    assert np.bincount(source.parts, minlength=4).tolist() == [20, 0, 6, 0]
    assert source.class_names == ("ant", "bee")


def test_val_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val", count=3)
    assert np.bincount(list_image_folder(tmp_path).parts, minlength=4).tolist() == [20, 0, 6, 0]


def test_val_is_the_validation_split_where_there_is_a_test_split(tmp_path: Path) -> None:
    for name, count in (("train", 10), ("val", 2), ("test", 3)):
        write_classes(tmp_path / name, count=count)
    data = load_data(dataset="imagefolder", data_dir=tmp_path, image_size=16)
    assert data.sizes == {"train": 20, "validation": 4, "test": 6}


@pytest.mark.parametrize("below", [".", "train"])
def test_one_folder_is_split(tmp_path: Path, below: str) -> None:
    write_classes(tmp_path / below)
    data = load_data(dataset="imagefolder", data_dir=tmp_path, image_size=16, validation_fraction=0.25)
    assert data.sizes == {"train": 12, "validation": 4, "test": 4}


def test_folders_without_classes_or_images_are_refused(tmp_path: Path) -> None:
    assert "has 0 class folders" in refusal(dataset="imagefolder", data_dir=tmp_path)
    write_classes(tmp_path)
    (tmp_path / "cow").mkdir()
    (tmp_path / "cow" / "notes.txt").write_text("no image")
    assert "cow has no images" in refusal(dataset="imagefolder", data_dir=tmp_path)


def test_splits_with_other_classes_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", names=("ant", "wasp"))
    assert "(bee, wasp)" in refusal(dataset="imagefolder", data_dir=tmp_path)


def test_image_folder_needs_a_folder() -> None:
    assert refusal(dataset="imagefolder").startswith("data_dir: ")


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"text"), truncate])
def test_a_damaged_image_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_classes(tmp_path)
    damage(tmp_path / "bee" / "0.png")
    line = refusal(dataset="imagefolder", data_dir=tmp_path)
    assert str(tmp_path / "bee" / "0.png") in line


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path)

    def denied(path: object) -> Iterator[object]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", denied)  # permissions do not bind a superuser, who may be running this
    assert "Permission denied" in refusal(dataset="imagefolder", data_dir=tmp_path)
