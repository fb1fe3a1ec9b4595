"""Folders of class folders: which pictures belong to which class and split, and the pixels of a picture.

Nothing is left out or converted in silence. A folder that looks like a split is one or is refused, linked folders are followed,
and a picture whose levels cannot be brought to eight bits by a stated rule is refused by name. No torch.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from vitfp8.data.readers import TEST, TRAIN, UNSPLIT, VALIDATION, Source, one_line
from vitfp8.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

#: Endings of the files that an image folder is searched for.
IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})

#: Endings of other pictures. Beside class folders full of PNG files they would be left out without a word, so they are refused.
OTHER_PICTURES = frozenset(
    {".apng", ".avif", ".dng", ".exr", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jxl", ".pbm", ".pfm", ".pnm",
     ".psd", ".svg", ".tga"}
)  # fmt: skip

#: Folders that systems leave behind, with copies or thumbnails of pictures in them; passed over like hidden ones.
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"})

#: Split → how its folder may be called. Case and non-letters do not matter: ``Training``, ``test_set``, ``val2017``.
_SPLIT_NAMES: Mapping[int, re.Pattern[str]] = MappingProxyType(
    {
        part: re.compile(f"(?:{words})(?:set|data|images?|imgs?|split|folder|samples)*")
        for part, words in (
            (TRAIN, "train|training|trn"),
            (VALIDATION, "val|valid|validation|validate"),
            (TEST, "test|testing|tst"),
        )
    }
)

#: A name in lower case that may mean a split and is not understood: ``trainval``, ``seg_test``.
_SPLIT_HINT = re.compile("train|(?<![a-z])(?:test|testing|val|valid|validation)(?![a-z])")

#: What transparent pictures are laid on.
BACKGROUND = "white"

#: Pillow's modes whose 8-bit levels (or one bit) Pillow itself turns into RGB, those with transparency, and 16-bit grey.
_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_GREY16_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})

#: EXIF's orientation → the Pillow transposition that turns the picture upright.
_TURNS: Mapping[int, str] = MappingProxyType(
    {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_270",
        7: "TRANSVERSE",
        8: "ROTATE_90",
    }
)
_EXIF_ORIENTATION, _TIFF_BITS, _TIFF_PHOTOMETRIC = 0x112, 258, 262

#: The preflight decodes every picture of a folder up to this many bytes; of a larger one it looks at the headers, of at most so
#: many, and decodes one picture of each class and split.
DECODED_BYTES, HEADERS = 2**23, 10_000


# --- which pictures -----------------------------------------------------------------------------------------------------------


def _is_passed_over(name: str) -> bool:
    """Whether what has this name, and all below it, is not part of the data: hidden, or left behind by a system."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _refuse_dangling(path: Path) -> None:
    """A link to nothing may once have been a folder of pictures."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"data_dir: {path} is a link to {str(path.readlink())!r}, which is not there; correct or remove it")


def _folders(folder: Path) -> list[Path]:
    """Folders, and links to folders, directly in a folder, by name; not what is passed over."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_passed_over(entry.name):
                continue
            if entry.is_dir():
                found.append(folder / entry.name)
            elif entry.is_symlink():
                _refuse_dangling(folder / entry.name)
    return sorted(found, key=lambda path: path.name)


def _names(folder: Path) -> set[str]:
    return {path.name for path in _folders(folder)}


def _part_of(name: str) -> int | None:
    """The split that a folder's name means; None if it means none."""
    letters = re.sub("[^a-z]", "", name.lower())
    return next((part for part, pattern in _SPLIT_NAMES.items() if pattern.fullmatch(letters)), None)


def split_folders(root: Path) -> dict[int, Path]:
    """Part → the folder of its class folders; one folder for `UNSPLIT` where nothing says which images are for what.

    Raises:
        InputError: a split is there twice, or a folder looks like a split and is none that is understood.
    """
    folders = _folders(root)
    known = {part: [path for path in folders if _part_of(path.name) == part] for part in _SPLIT_NAMES}
    if not any(_folders(path) for path in known[TRAIN]) and not (known[TRAIN] and (known[TEST] or known[VALIDATION])):
        # a class may be called "test"; a split holds folders that are called as those of its neighbours, or as its neighbours
        suspects = [path for path in folders if _part_of(path.name) is not None or _SPLIT_HINT.search(path.name.lower())]
        for path in suspects:
            around = {other.name for other in folders}.union(*(_names(other) for other in folders if other != path))
            if _names(path) & around:
                names = ", ".join(f"{suspect.name}/" for suspect in suspects[:4])
                raise InputError(
                    f"data_dir: {root} has folders that look like splits ({names}); call them train/, val/ and test/, "
                    "move them away, or rename what is a class"
                )
        return {UNSPLIT: root}
    for paths in known.values():
        if len(paths) > 1:
            names = " and ".join(f"{path.name}/" for path in paths[:3])
            raise InputError(f"data_dir: {root} has {names}, which mean the same split; keep one, and move the other away")
    [train] = known[TRAIN]
    classes = _names(train)
    splits = [path for paths in known.values() for path in paths]
    if others := [path for path in folders if path not in splits and (path.name in classes or _names(path) & classes)]:
        names = ", ".join(f"{path.name}/" for path in others[:4])
        raise InputError(
            f"data_dir: {root} has {names} beside {train.name}/, with the same classes; call it val/ or test/, or move it away"
        )
    if not known[TEST] and not known[VALIDATION]:
        return {UNSPLIT: train}
    if not known[TEST] or not known[VALIDATION]:
        return {TRAIN: train, TEST: (known[TEST] or known[VALIDATION])[0]}
    return {TRAIN: train, VALIDATION: known[VALIDATION][0], TEST: known[TEST][0]}


def class_folders(folder: Path) -> list[Path]:
    """The class folders of a split, by name.

    Args:
        folder: one of `split_folders`.

    Raises:
        InputError: there are fewer than two, or a name is not text and could not be written into a record.
    """
    classes = _folders(folder)
    if len(classes) < 2:
        count = "1 class folder" if len(classes) == 1 else "0 class folders"
        raise InputError(f"data_dir: {folder} has {count}; give one that has a folder of images for each class")
    for path in classes:
        if not path.name.isascii() and path.name.encode(errors="replace").decode() != path.name:
            raise InputError(f"data_dir: {path} has a name that is not UTF-8, which no record can hold; rename it")
    return classes


def _image_files(folder: Path, read: dict[str, Path]) -> list[Path]:
    """Image files below a class folder, links followed, in the order of their relative names.

    Args:
        read: real path → path of the folders that were read already; no folder is read twice, so that links can make no circle
            and no picture is there twice.
    """

    def give_up(error: OSError) -> NoReturn:
        raise error

    if len({_part_of(name) for name in _names(folder)} - {None}) > 1:
        raise InputError(f"data_dir: {folder} has splits inside the class; put the classes into train/, val/ and test/ instead")
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=give_up):
        here, real = Path(place), os.path.realpath(place)
        if real in read:
            raise InputError(f"data_dir: {here} leads to {read[real]}, which would be read twice; remove the link")
        read[real] = here
        folders[:] = [name for name in folders if not _is_passed_over(name)]
        for path in (here / name for name in names if not _is_passed_over(name)):
            ending = path.suffix.lower()
            if ending not in IMAGE_ENDINGS:
                _refuse_dangling(path)
                if ending in OTHER_PICTURES:
                    endings = ", ".join(sorted(IMAGE_ENDINGS))
                    raise InputError(
                        f"data_dir: {path} is a kind of picture that is not read ({endings} are); convert or remove it"
                    )
                continue
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"data_dir: {path} is not a file; replace or remove it")
            if status.st_size == 0:
                raise InputError(f"data_dir: {path} is empty; replace or remove it")
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def list_image_folder(root: Path) -> Source:
    """List an image folder: ``class/image.png``, or the same below ``train/`` and ``test/`` (and ``val/``).

    With ``train/`` and one of ``test/`` and ``val/``, the latter is the test split and validation images are held out of the
    former. With all three, ``val/`` is the validation split. Without ``train/``, or with it alone, one folder is split. Other
    spellings of the three names are understood.

    Raises:
        InputError: there are no classes, a class has no images, a file is empty or a link to nothing, the splits' classes differ,
            or a folder looks like a split and is none.
    """
    if not root.is_dir():
        raise InputError(f"data_dir: {root} is not a folder; give a folder that has a folder of images for each class")
    files: list[Path] = []
    labels: list[int] = []
    parts: list[int] = []
    names: list[str] | None = None
    splits = split_folders(root)
    train = next(iter(splits.values()))
    above = Path(os.path.realpath(root))
    read = {str(path): path for path in (above, *above.parents)}
    for part, folder in splits.items():
        classes = class_folders(folder)
        found = [path.name for path in classes]
        if names is not None and found != names:
            other = ", ".join(sorted(set(found) ^ set(names))[:3])
            raise InputError(f"data_dir: {folder} has other classes than {train} ({other}); give both the same class folders")
        names = found
        read.setdefault(os.path.realpath(folder), folder)
        for label, path in enumerate(classes):
            images = _image_files(path, read)
            if not images:
                endings = ", ".join(sorted(IMAGE_ENDINGS))
                raise InputError(f"data_dir: {path} has no images ({endings}); add some or remove the folder")
            files += images
            labels += [label] * len(images)
            parts += [part] * len(images)
    assert names is not None, "there is always a folder"
    return Source(
        labels=np.asarray(labels, dtype=np.int64),
        parts=np.asarray(parts, dtype=np.int8),
        class_names=tuple(names),
        files=tuple(files),
        root=root,
        folders={part: path.name for part, path in splits.items() if part != UNSPLIT},
    )


# --- pixels -------------------------------------------------------------------------------------------------------------------


def _check_kind(path: Path, file: Image.Image) -> None:
    """Refuse what is not one picture, or has levels of unknown range; a look at the header is enough."""
    # a camera's MPO file is a JPEG picture, with further views or a preview after it
    if file.format != "MPO" and (frames := getattr(file, "n_frames", 1)) > 1:
        raise InputError(f"data_dir: {path} has {frames} pictures in it; save the one to train on as a file of its own")
    if file.mode in _PLAIN_MODES or file.mode in _ALPHA_MODES:
        return
    if not _is_grey16(file):
        raise InputError(
            f"data_dir: {path} has pixels of Pillow's mode {file.mode}, whose range is not known; save it with 8 or 16 bits"
        )
    if "transparency" in file.info:
        raise InputError(f"data_dir: {path} has 16-bit grey levels (mode {file.mode}) and a transparent one; save it without")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, its header checked; whatever Pillow stumbles over inside becomes one line that names the file."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            _check_kind(path, file)
            yield file
    except InputError:
        raise
    except Exception as error:  # on damaged files Pillow's readers raise all kinds of errors
        raise InputError(f"data_dir: {path} is not a readable image ({one_line(error)}); replace or remove it") from error


def _is_grey16(file: Image.Image) -> bool:
    """Whether levels are grey ones of 16 bits; Pillow hands out those of PGM (and once did those of PNG) in 32 bits."""
    return file.mode in _GREY16_MODES or (file.mode == "I" and file.format in ("PNG", "PPM"))


def _to_rgb(file: Image.Image) -> Image.Image:
    """An opaque 8-bit RGB picture."""
    from PIL import Image

    if _is_grey16(file):
        tags: Mapping[int, Any] = getattr(file, "tag_v2", {})
        bits = int(np.max(tags.get(_TIFF_BITS, 16)))  # a TIFF file may use twelve
        levels = np.rint(np.asarray(file).astype(np.float64) * 255 / (2**bits - 1))
        if tags.get(_TIFF_PHOTOMETRIC) == 0:  # white is zero, which Pillow heeds up to eight bits
            levels = 255 - levels
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if file.mode in _ALPHA_MODES or file.has_transparency_data:
        layer = (file.convert("LA") if file.mode == "La" else file).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, BACKGROUND), layer).convert("RGB")
    return file.convert("RGB")


def _upright(image: Image.Image, file: Image.Image) -> Image.Image:
    """The picture as a camera's EXIF entry says that it is to be seen; TIFF files Pillow has turned already."""
    from PIL import Image

    try:
        turn = _TURNS.get(file.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read says nothing, and the picture is sound
        return image
    return image if turn is None else image.transpose(Image.Transpose[turn])


def decode_image(path: Path, side: int) -> np.ndarray:
    """Read an image file as torchvision's ``Resize(side)`` and ``CenterCrop(side)`` would: shorter side resized, centre cut out.

    Before that the picture becomes upright (EXIF) 8-bit RGB: 16-bit grey levels are scaled by their own range, transparent pixels
    are laid on `BACKGROUND`. Colour profiles are not applied.

    Returns:
        uint8 [3, side, side].

    Raises:
        InputError: the file is not an image, is damaged, more than one picture, or of a mode whose range is not known.
    """
    from PIL import Image

    with _opened(path) as file:
        file.load()
        image = _upright(_to_rgb(file), file)
    width, height = image.size
    shorter = min(width, height)
    size = (int(side * width / shorter), int(side * height / shorter))
    left, top = (int(round((length - side) / 2)) for length in size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image).transpose(2, 0, 1).copy()


def check_pictures(source: Source) -> None:
    """Look at the pictures of a folder as far as that takes a second or two.

    Args:
        source: from `list_image_folder`.

    Raises:
        InputError: see `decode_image`.
    """
    if sum(path.stat().st_size for path in source.files) <= DECODED_BYTES:
        decoded = list(source.files)
    else:
        _, first = np.unique(source.parts.astype(np.int64) * len(source.class_names) + source.labels, return_index=True)
        decoded = [source.files[index] for index in first]
        for path in source.files[:: -(-len(source.files) // HEADERS)]:
            with _opened(path):
                pass
    for path in decoded:
        decode_image(path, 32)
