"""What the data decide is known from a listing and refused before the start; what lies in a folder is used or refused by name."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import datasets as tvd

from vitfp8 import experiment
from vitfp8.cli import main
from vitfp8.data import (
    TrainBatches,
    check_dataset,
    count_classes,
    data_digest,
    eval_batches,
    load_data,
    readers,
    sample_grid,
    sources,
)
from vitfp8.data.folders import list_image_folder
from vitfp8.data.readers import CIFAR_FILES, TEST, TRAIN, UNSPLIT, Source, default_folder, read_digits
from vitfp8.data.splits import split_indices
from vitfp8.errors import InputError
from vitfp8.experiment import check_experiment, prepare_experiment
from vitfp8.params import RunParams
from vitfp8.run.estimates import model_facts_of

MakeParams = Callable[..., RunParams]


def write_pictures(folder: Path, counts: dict[str, int], *, first: int = 0) -> Path:
    """Class folders of small PPM files, whose bytes no library's version decides; their levels are numbers counted on."""
    level = first
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = (np.arange(level, level + 300) % 256).astype(np.uint8)
            (folder / name / f"{number:03}.ppm").write_bytes(b"P6 10 10 255\n" + pixels.tobytes())
            level += 7
    return folder


def refusal(check: Callable[..., object], *arguments: object, **keywords: object) -> str:
    with pytest.raises(InputError) as caught:
        check(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def folder_refusal(root: Path) -> str:
    """The line with which both the preflight and the reader refuse a folder."""
    line = refusal(check_dataset, dataset="imagefolder", data_dir=root)
    assert line == refusal(load_data, dataset="imagefolder", data_dir=root, image_size=8)
    return line


# --- classes too small, batches too large -------------------------------------------------------------------------------------


def test_a_class_of_four_pictures_is_refused_with_its_size_and_what_would_do(tmp_path: Path, smoke_params: MakeParams) -> None:
    pictures = write_pictures(tmp_path, {"cat": 20, "rare": 4})
    folder = {"dataset": "imagefolder", "data_dir": str(pictures), "batch_size": 8}
    line = refusal(check_experiment, smoke_params(**folder))
    assert line == (
        "validation_fraction: 0.1 leaves no validation images of class 'rare', which has 4 images (1 to test with); "
        "take 0.17 or more, give the class 7 images or more, or remove it"
    )
    assert line == refusal(prepare_experiment, smoke_params(**folder))  # in the notebook
    check_experiment(smoke_params(**folder, validation_fraction=0.17))
    write_pictures(tmp_path, {"rare": 7})
    check_experiment(smoke_params(**folder))


def source_of(counts: list[int], *, divided: bool) -> Source:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = tuple(str(number) for number in range(len(counts)))
    if divided:
        return Source(labels=labels, parts=np.full(len(labels), UNSPLIT), class_names=names)
    parts = np.repeat([TRAIN, TEST], [len(labels), len(counts)])
    return Source(labels=np.concatenate([labels, np.arange(len(counts))]), parts=parts, class_names=names)


@settings(max_examples=200, deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=4), fraction=st.floats(0.001, 0.499), divided=st.booleans())
def test_every_way_out_that_a_refusal_names_is_one(counts: list[int], fraction: float, divided: bool) -> None:
    try:
        split_indices(source_of(counts, divided=divided), fraction)
    except InputError as error:
        line = str(error)
    else:
        return
    if line.startswith("data_dir: "):  # no fraction would do
        assert min(counts) < 3
        for other in (0.1, 0.3, 0.49):
            with pytest.raises(InputError):
                split_indices(source_of(counts, divided=divided), other)
        return
    words = line.split()
    split_indices(source_of(counts, divided=divided), float(words[words.index("take") + 1]))
    wanted = int(words[words.index("give") + 3])
    split_indices(source_of([max(count, wanted) for count in counts], divided=divided), fraction)
    with pytest.raises(InputError):
        split_indices(source_of([max(min(counts), wanted - 1)] * 2, divided=divided), fraction)


def idx_files(folder: Path, train: np.ndarray, test: np.ndarray) -> Path:
    for part, labels in (("train", train), ("t10k", test)):
        pixels = np.zeros((len(labels), 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(labels)) + labels.astype("u1").tobytes())
    return folder


def cifar_files(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> Path:
    """Small files of CIFAR-10's format, ``count`` of each class in each of the five training files."""
    known, sums = CIFAR_FILES["cifar10"], {}
    (folder / known.folder).mkdir(parents=True)
    for file, _ in (*known.train, *known.test, known.meta):
        labels = np.repeat(np.arange(10), count).tolist()
        content: dict[str, object] = {"data": np.zeros((len(labels), 3072), dtype=np.uint8), "labels": labels}
        if file == known.meta[0]:
            content = {"label_names": [f"class {number}" for number in range(10)]}
        raw = pickle.dumps(content, protocol=2)
        (folder / known.folder / file).write_bytes(raw)
        sums[file] = hashlib.md5(raw).hexdigest()
    train, test = (tuple((file, sums[file]) for file, _ in files) for files in (known.train, known.test))
    monkeypatch.setattr(
        readers, "CIFAR_FILES", {"cifar10": replace(known, train=train, test=test, meta=(known.meta[0], sums[known.meta[0]]))}
    )
    return folder


@pytest.fixture(params=["digits", "fashion_mnist", "cifar10", "imagefolder"])
def small_set(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Each kind of data set as parameters, where it has files with ten images of each class to train on."""
    name: str = request.param
    labels = np.repeat(np.arange(10), 10)
    if name == "fashion_mnist":
        idx_files(tmp_path, labels, labels)
    elif name == "cifar10":
        cifar_files(tmp_path, monkeypatch, 2)
    elif name == "imagefolder":
        for part in ("train", "test"):
            write_pictures(tmp_path / part, {f"class {number}": 10 for number in range(10)})
    return {"dataset": name, "data_dir": None if name == "digits" else str(tmp_path)}


def test_a_batch_may_have_as_many_images_as_there_are_to_train_on_and_no_more(
    small_set: dict[str, object], smoke_params: MakeParams
) -> None:
    most = 1295 if small_set["dataset"] == "digits" else 90
    check_experiment(smoke_params(**small_set, batch_size=most))
    for refuse in (check_experiment, prepare_experiment):
        line = refusal(refuse, smoke_params(**small_set, batch_size=most + 1))
        assert line == f"batch_size: {most + 1} must be between 1 and the {most} training images; take a smaller one"


def test_a_fraction_that_holds_nothing_out_is_refused_for_every_data_set(
    small_set: dict[str, object], smoke_params: MakeParams
) -> None:
    for refuse in (check_experiment, prepare_experiment):
        line = refusal(refuse, smoke_params(**small_set, validation_fraction=0.001))
        assert line.startswith("validation_fraction: 0.001 leaves no validation images of class ")


@pytest.mark.parametrize(("part", "said"), [("train", "too small to train and to validate"), ("test", "too few images to test")])
def test_a_class_that_an_idx_files_training_or_test_part_lacks_is_refused_by_name(tmp_path: Path, part: str, said: str) -> None:
    labels = np.repeat(np.arange(10), 10)
    fewer = labels[labels != 3]
    idx_files(tmp_path, *((fewer, labels) if part == "train" else (labels, fewer)))
    line = refusal(check_dataset, dataset="fashion_mnist", data_dir=tmp_path, validation_fraction=0.1)
    assert "class 'Dress'" in line and said in line


def test_splits_of_a_set_that_is_not_there_yet_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readers, "system_folders", lambda: ())
    (tmp_path / "answer").write_text("here")
    monkeypatch.setattr(sources, "DOWNLOAD_URLS", dict.fromkeys(sources.DOWNLOAD_URLS, (tmp_path / "answer").as_uri()))
    for dataset, images in (("fashion_mnist", 54_000), ("cifar10", 45_000), ("cifar100", 45_000)):
        check_dataset(dataset=dataset, validation_fraction=0.1, batch_size=images)
        line = refusal(check_dataset, dataset=dataset, validation_fraction=0.1, batch_size=images + 1)
        assert f"the {images} training images" in line
    assert np.bincount(read_digits().labels).tolist() == list(sources._PUBLISHED["digits"][0])


def test_a_damaged_archive_counts_only_where_the_server_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert {"cifar10": tvd.CIFAR10.tgz_md5, "cifar100": tvd.CIFAR100.tgz_md5} == sources.ARCHIVE_MD5
    archive = tmp_path / "archive.tar.gz"
    archive.write_bytes(b"the first half")
    monkeypatch.setattr(sources, "DOWNLOAD_URLS", {"cifar10": "http://127.0.0.1:9/archive.tar.gz"})
    assert "archive.tar.gz holds is incomplete or altered" in refusal(check_dataset, dataset="cifar10", data_dir=tmp_path)
    monkeypatch.setattr(sources, "ARCHIVE_MD5", {"cifar10": hashlib.md5(archive.read_bytes()).hexdigest()})
    check_dataset(dataset="cifar10", data_dir=tmp_path)


def test_run_and_check_refuse_with_exit_2_and_write_nothing(project: Path) -> None:
    write_pictures(project / "pictures", {"cat": 20, "rare": 4})
    before = sorted(project.rglob("*"))
    chosen = ("-p", "dataset", "imagefolder", "-p", "data_dir", "pictures", "-p", "batch_size", "8")
    for wrong, said in ((chosen, "class 'rare', which has 4 images"), (("-p", "batch_size", "5000"), "the 1295 training images")):
        done = CliRunner().invoke(main, ["run", "BaseFP32", "--preset", "smoke", *wrong])
        assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(project.rglob("*")) == before
    preset = project / "params" / "presets" / "smoke.yaml"
    preset.write_text(preset.read_text().replace("batch_size: 64", "batch_size: 5000"))
    done = CliRunner().invoke(main, ["check", "params/BaseFP32.yaml", "--preset", "smoke"])
    assert done.exit_code == 2 and "the 1295 training images" in done.output


def test_the_model_is_checked_and_estimated_with_the_folders_number_of_classes(
    tmp_path: Path, smoke_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path, {f"class {number}": 10 for number in range(13)})
    params = smoke_params(dataset="imagefolder", data_dir=str(tmp_path), batch_size=8)
    seen: list[int] = []
    monkeypatch.setattr(experiment, "check_model", lambda params, classes: seen.append(classes))
    check_experiment(params)
    assert seen == [13] and model_facts_of(params)["classes"] == 13
    assert [count_classes(name) for name in ("digits", "fashion_mnist", "cifar10", "cifar100")] == [10, 10, 10, 100]


# --- grey pictures for a model of three channels ------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["basic", "extended"])
def test_a_grey_channel_is_repeated_after_it_was_augmented_as_grey(augmentation: str) -> None:
    grey, colour = (load_data(dataset="digits", image_size=16, channels=channels) for channels in (1, 3))
    assert grey.digest == colour.digest and colour.channels == 3
    batches = [next(TrainBatches(data, batch_size=32, augmentation=augmentation, seed=3).epoch(1)) for data in (grey, colour)]
    assert torch.equal(batches[1][0], batches[0][0].repeat(1, 3, 1, 1)) and torch.equal(batches[1][2], batches[0][2])
    for (one, _), (three, _) in zip(eval_batches(grey, "validation", 50), eval_batches(colour, "validation", 50), strict=True):
        assert torch.equal(three, one.repeat(1, 3, 1, 1))
    assert sample_grid(colour, augmentation, 0)[0].shape == (16, 16, 16, 3)


def test_one_channel_or_none_named_changes_nothing() -> None:
    plain, named = (load_data(dataset="digits", image_size=16, channels=channels) for channels in (None, 1))
    assert plain.facts() == named.facts() and "native_channels" not in plain.facts()
    first, second = (
        next(TrainBatches(data, batch_size=32, augmentation="extended", seed=3).epoch(1))[0] for data in (plain, named)
    )
    assert torch.equal(first, second)


def test_the_record_says_that_a_grey_channel_was_repeated_and_a_model_takes_it(smoke_params: MakeParams, tmp_path: Path) -> None:
    ready = prepare_experiment(smoke_params(in_channels=3, run_folder=str(tmp_path)))
    facts = ready.record().data
    assert (facts["channels"], facts["native_channels"]) == (3, 1)
    assert facts["mean"] == [0.3053] * 3 and facts["std"] == [0.3760] * 3
    images, labels, _ = next(ready.trainer.batches.epoch(0))
    assert ready.model(images).shape == (len(labels), 10)


def test_colour_is_never_made_grey(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"ant": 10, "bee": 10})
    line = refusal(load_data, dataset="imagefolder", data_dir=tmp_path, image_size=8, channels=1)
    assert line == "channels: 1, but imagefolder has 3; take 3 or None"


# --- what lies in a folder ----------------------------------------------------------------------------------------------------

TWENTY = {"ant": 20, "bee": 20}


def listed(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_image_folder(root).files]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX"])
def test_what_lies_below_a_hidden_folder_or_a_systems_is_no_image(tmp_path: Path, name: str) -> None:
    before = listed(write_pictures(tmp_path, TWENTY))
    for place in (tmp_path, tmp_path / "ant", tmp_path / "ant" / "deeper" / name):
        write_pictures(place, {name: 1})
        write_pictures(place / name, {"deeper": 2})
    assert listed(tmp_path) == before and len(before) == 40


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "root", TWENTY)
    write_pictures(tmp_path, {"more": 3}, first=1)
    write_pictures(tmp_path / "more", {"below": 2}, first=2)
    (root / "ant" / "linked").symlink_to(tmp_path / "more")
    (root / "bee" / "one.ppm").symlink_to(tmp_path / "more" / "000.ppm")
    write_pictures(tmp_path, {"wasps": 5})
    (root / "wasp").symlink_to("../wasps")
    source = list_image_folder(root)
    assert source.class_names == ("ant", "bee", "wasp") and np.bincount(source.labels).tolist() == [25, 21, 5]
    assert sorted(map(str, source.files)) == sorted(path for path, _ in tvd.ImageFolder(root).samples)


@pytest.mark.parametrize("target", [".", "..", "../..", "../bee", "deeper"])
def test_a_link_by_which_pictures_would_be_read_twice_or_without_end_is_refused(tmp_path: Path, target: str) -> None:
    root = write_pictures(tmp_path / "root", TWENTY)
    write_pictures(root / "ant", {"deeper": 1})
    (root / "ant" / "around").symlink_to(target)
    assert "which would be read twice; remove the link" in folder_refusal(root)


def test_one_folder_linked_as_two_splits_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", TWENTY)
    (tmp_path / "test").symlink_to("train")
    assert "which would be read twice" in folder_refusal(tmp_path)


@pytest.mark.parametrize("link", ["cow", "ant/more", "ant/100.ppm"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, link: str) -> None:
    write_pictures(tmp_path, TWENTY)
    (tmp_path / link).symlink_to("/not/there")
    assert str(tmp_path / link) in folder_refusal(tmp_path)


def test_other_files_and_capital_endings_are_as_they_were(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWENTY)
    for name in ("Thumbs.db", "notes.txt", ".hidden.png", "000.xml"):
        (tmp_path / "ant" / name).write_text("no picture")
    (tmp_path / "ant" / "000.ppm").rename(tmp_path / "ant" / "000.PPM")
    assert len(listed(tmp_path)) == 40


def test_names_of_odd_encodings_are_read_and_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, TWENTY)
    odd = Path(str(tmp_path / "ant" / "\udcff\nname.ppm"))
    (tmp_path / "ant" / "003.ppm").rename(odd)
    data = load_data(dataset="imagefolder", data_dir=tmp_path, image_size=8)
    assert odd in data.files and len(data.labels) == 40
    odd.write_bytes(b"P6 10")
    assert "\\udcff" in folder_refusal(tmp_path)
    odd.unlink()
    write_pictures(tmp_path, {"naïve": 10, "ant \udce9": 10})
    assert "ant \\udce9 has a name that is not UTF-8" in folder_refusal(tmp_path)


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        (("Training", "Testing"), [40, 0, 40]),
        (("TRAIN", "Test"), [40, 0, 40]),
        (("train", "valid"), [40, 0, 40]),
        (("train", "validation"), [40, 0, 40]),
        (("train", "valid", "test"), [40, 40, 40]),
        (("Train", "Validation", "Test"), [40, 40, 40]),
        (("training_set", "test_set"), [40, 0, 40]),
        (("train2017", "val2017"), [40, 0, 40]),
    ],
)
def test_other_spellings_of_the_splits_are_understood_and_in_the_record(
    tmp_path: Path, folders: tuple[str, ...], parts: list[int]
) -> None:
    for number, name in enumerate(folders):
        write_pictures(tmp_path / name, TWENTY, first=number)
    (tmp_path / "annotations").mkdir()
    source = list_image_folder(tmp_path)
    assert source.class_names == ("ant", "bee") and np.bincount(source.parts, minlength=3).tolist() == parts
    assert count_classes("imagefolder", tmp_path) == 2
    said = load_data(dataset="imagefolder", data_dir=tmp_path, image_size=8).facts()["folders"]
    assert sorted(said.values()) == sorted(folders) and said["train"] == folders[0]


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("seg_train/seg_train", "seg_test/seg_test"), "look like splits"),
        (("my_train", "my_holdout"), "look like splits"),
        (("trainval", "test"), "look like splits"),
        (("val", "test"), "look like splits"),
        ((".", "test"), "look like splits"),
        (("train", "extra"), "has extra/ beside train/, with the same classes"),
        (("train", "test", "holdout"), "has holdout/ beside train/, with the same classes"),
        (("train", "."), "has ant/, bee/ beside train/"),
        (("train", "Training", "test"), "mean the same split"),
        (("train", "val", "valid", "test"), "val/ and valid/, which mean the same split"),
        (("ant/train", "ant/test", "bee/train", "bee/test"), "has splits inside the class"),
        (("train/train", "test/test"), "train has 1 class folder;"),
    ],
)
def test_folders_that_look_like_splits_are_refused_or_understood_but_never_ignored(
    tmp_path: Path, folders: tuple[str, ...], said: str
) -> None:
    for number, name in enumerate(folders):
        write_pictures(tmp_path / name, TWENTY, first=number)
    assert said in folder_refusal(tmp_path)


def test_pictures_in_split_folders_without_classes_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 20, "test1": 20})
    assert "train has 0 class folders" in folder_refusal(tmp_path)


@pytest.mark.parametrize("classes", [("bus", "train"), ("control", "test"), ("tests", "trainers", "validators")])
def test_classes_may_be_called_like_splits(tmp_path: Path, classes: tuple[str, ...]) -> None:
    write_pictures(tmp_path, dict.fromkeys(classes, 10))
    assert list_image_folder(tmp_path).class_names == classes


def test_classes_with_folders_of_the_same_names_are_classes(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        write_pictures(tmp_path / name, {"left": 10, "right": 10})
    assert list_image_folder(tmp_path).class_names == ("ant", "bee")


def test_a_user_who_is_not_there_is_refused() -> None:
    assert "is not a folder" in refusal(check_dataset, dataset="imagefolder", data_dir="~nobody-of-this-name/pictures")


# --- well-formed sets are what they were --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "digest"),
    [
        ((".",), "69e1e130da078f0f"),
        (("train",), "270449168a29a502"),
        (("train", "test"), "ab17adebb1b4de4a"),
        (("train", "val"), "28c4f7b6c03dcd2d"),
        (("train", "val", "test"), "9c661aa4cddbce2d"),
    ],
)
def test_digests_and_splits_of_folders_are_what_they_always_were(tmp_path: Path, folders: tuple[str, ...], digest: str) -> None:
    for number, name in enumerate(folders):
        write_pictures(tmp_path / name, TWENTY, first=number)
        write_pictures(tmp_path / name / "ant", {"deeper": 3}, first=number + 100)
    found = data_digest(dataset="imagefolder", data_dir=tmp_path, validation_fraction=0.1)
    assert found is not None and found[:16] == digest


def test_a_folder_is_meant_from_the_study_s_home_in_a_notebook_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params", "notebooks", "data", "pictures"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert default_folder() == tmp_path / "data"
    with pytest.raises(InputError, match="pictures"):  # found, and refused for what is in it
        check_dataset(dataset="imagefolder", data_dir="pictures", download=False)
    with pytest.raises(InputError, match="is not a folder"):
        check_dataset(dataset="imagefolder", data_dir="elsewhere", download=False)
