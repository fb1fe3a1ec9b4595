"""Pictures of every mode: scaled by their own range, laid on white, turned upright, or refused by file and mode."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from vitfp8.data import check_dataset, folders
from vitfp8.data.folders import IMAGE_ENDINGS, decode_image
from vitfp8.errors import InputError

LEVELS = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        decode_image(path, 16)
    line = str(caught.value)
    assert line.startswith(f"data_dir: {path}") and "\n" not in line
    return line


def grey(levels: np.ndarray) -> np.ndarray:
    """What a grey picture of these levels is decoded to."""
    return np.repeat(levels[None], 3, axis=0)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp", "ppm"])
def test_eight_bit_pictures_keep_their_levels(tmp_path: Path, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path / f"colour.{ending}", Image.fromarray(COLOURS), **options)
    np.testing.assert_array_equal(decode_image(path, 16), COLOURS.transpose(2, 0, 1))
    path = saved(tmp_path / f"grey.{ending}", Image.fromarray(LEVELS), **options)
    np.testing.assert_array_equal(decode_image(path, 16), grey(LEVELS))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bit_grey_is_scaled_by_its_own_range(tmp_path: Path, ending: str) -> None:
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    path = saved(tmp_path / f"deep.{ending}", Image.fromarray(values))
    np.testing.assert_array_equal(decode_image(path, 16), grey(np.arange(256, dtype=np.uint8).reshape(16, 16)))


def test_big_endian_sixteen_bit_grey_is_read_the_same(tmp_path: Path) -> None:
    values = (LEVELS.astype(np.uint16) * 257).astype(">u2")
    path = saved(tmp_path / "big.tif", Image.frombytes("I;16B", (16, 16), values.tobytes()))
    with Image.open(path) as file:
        assert file.mode == "I;16B"
    np.testing.assert_array_equal(decode_image(path, 16), grey(LEVELS))


def tiff(path: Path, bits: int, photometric: int, data: bytes) -> Path:
    """An uncompressed grey TIFF file of 16×16 pixels, as microscopes write them and Pillow does not."""
    entries = [(256, 3, 16), (257, 3, 16), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1),
               (278, 3, 16), (279, 4, len(data))]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    path.write_bytes(header + data + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0))
    return path


def test_a_tiff_file_of_twelve_bits_is_scaled_by_twelve(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 256).round().astype(np.uint32).reshape(-1, 2)  # two values in three bytes
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], axis=1)
    path = tiff(tmp_path / "twelve.tif", 12, 1, packed.astype(np.uint8).tobytes())
    np.testing.assert_array_equal(decode_image(path, 16), grey(np.arange(256, dtype=np.uint8).reshape(16, 16)))


def test_a_tiff_file_whose_zero_is_white_is_inverted_in_sixteen_bits_as_in_eight(tmp_path: Path) -> None:
    eight = tiff(tmp_path / "eight.tif", 8, 0, LEVELS.tobytes())
    sixteen = tiff(tmp_path / "sixteen.tif", 16, 0, (LEVELS.astype("<u2") * 257).tobytes())
    np.testing.assert_array_equal(decode_image(eight, 16), grey(255 - LEVELS))
    np.testing.assert_array_equal(decode_image(sixteen, 16), grey(255 - LEVELS))


def test_sixteen_bit_colour_gives_the_upper_eight_bits(tmp_path: Path) -> None:
    deep = COLOURS.astype(">u2") * 257
    path = tmp_path / "deep.ppm"
    path.write_bytes(b"P6 16 16 65535\n" + deep.tobytes())
    np.testing.assert_array_equal(decode_image(path, 16), COLOURS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "ending"), [("I", "tif"), ("F", "tif"), ("F", "ppm")], ids=lambda text: text
)  # whole and real numbers of 32 bits
def test_levels_of_unknown_range_are_refused_with_file_and_mode(tmp_path: Path, mode: str, ending: str) -> None:
    path = saved(tmp_path / f"numbers.{ending}", Image.fromarray(LEVELS).convert(mode))
    assert f"mode {mode}," in refusal(path)


def test_signed_sixteen_bits_are_refused(tmp_path: Path) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[339] = 2  # two's complement
    path = saved(tmp_path / "signed.tif", Image.fromarray(LEVELS.astype(np.uint16)), tiffinfo=info)
    with Image.open(path) as file:
        assert file.mode == "I"
    assert "mode I," in refusal(path)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colour_spaces_become_rgb(tmp_path: Path, mode: str) -> None:
    flat = Image.new("RGB", (16, 16), (200, 80, 40))
    if mode == "LAB":
        from PIL import ImageCms

        lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(flat, lab)
    else:
        image = flat.convert(mode)
    decoded = decode_image(saved(tmp_path / "picture.tif", image), 16)
    np.testing.assert_allclose(decoded[:, 8, 8], (200, 80, 40), atol=3)


def test_one_bit_and_palette_pictures_become_rgb(tmp_path: Path) -> None:
    bits = Image.fromarray(LEVELS > 100)
    np.testing.assert_array_equal(decode_image(saved(tmp_path / "bits.png", bits), 16), grey((LEVELS > 100) * np.uint8(255)))
    palette = Image.fromarray(COLOURS).quantize(7)
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_image(saved(tmp_path / "palette.png", palette), 16), expected)


def see_through(mode: str) -> tuple[Image.Image, dict[str, object]]:
    """A picture whose left half is red (or grey) and whose right half is transparent, over hidden colours."""
    image = Image.new("RGBA", (16, 16), (200, 80, 40, 255))
    image.paste((1, 2, 3, 0), (8, 0, 16, 16))
    if mode == "LA":
        return image.convert("LA"), {}
    if mode == "P":
        indices = Image.new("P", (16, 16), 1)
        indices.paste(0, (8, 0, 16, 16))
        indices.putpalette([1, 2, 3, 200, 80, 40])
        return indices, {"transparency": 0}
    if mode == "RGB":
        return image.convert("RGB"), {"transparency": (1, 2, 3)}
    if mode == "L":
        levels = Image.new("L", (16, 16), 100)
        levels.paste(7, (8, 0, 16, 16))
        return levels, {"transparency": 7}
    return image, {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_are_laid_on_white(tmp_path: Path, mode: str) -> None:
    image, options = see_through(mode)
    decoded = decode_image(saved(tmp_path / "cut-out.png", image, **options), 16)
    assert (decoded[:, :, 8:] == 255).all()
    assert (decoded[0, :, :8] == {"LA": decoded[1, 0, 0], "L": 100}.get(mode, 200)).all()
    assert decoded[:, 0, 0].max() < 255


def test_half_transparent_pixels_are_blended_and_opaque_ones_keep_their_levels(tmp_path: Path) -> None:
    half = Image.new("RGBA", (16, 16), (100, 0, 0, 128))
    decoded = decode_image(saved(tmp_path / "half.png", half), 16)
    np.testing.assert_allclose(decoded[:, 0, 0], (177, 127, 127), atol=1)
    opaque = Image.fromarray(np.dstack([COLOURS, np.full((16, 16), 255, np.uint8)]))
    for ending, options in (("png", {}), ("webp", {"lossless": True}), ("tif", {})):
        np.testing.assert_array_equal(
            decode_image(saved(tmp_path / f"opaque.{ending}", opaque, **options), 16), COLOURS.transpose(2, 0, 1)
        )


def test_a_transparent_level_among_sixteen_bits_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "deep.png", Image.fromarray(LEVELS.astype(np.uint16)), transparency=7)
    assert "16-bit grey levels (mode I" in refusal(path)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_once(tmp_path: Path, ending: str, orientation: int) -> None:
    upright = Image.new("RGB", (16, 16), "black")
    upright.paste("white", (0, 0, 8, 8))
    upright.paste((255, 0, 0), (8, 0, 16, 8))  # black below, white and red above: all eight orientations differ
    back = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
            8: "ROTATE_270"}  # fmt: skip
    stored = upright.transpose(Image.Transpose[back[orientation]]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    decoded = decode_image(saved(tmp_path / f"turned.{ending}", stored, exif=exif, **options), 16)
    np.testing.assert_allclose(decoded.astype(int), np.asarray(upright).transpose(2, 0, 1), atol=8)


def test_exif_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "picture.jpg", Image.fromarray(COLOURS), exif=b"Exif\0\0nothing of the kind")
    plain = saved(tmp_path / "plain.jpg", Image.fromarray(COLOURS))
    np.testing.assert_array_equal(decode_image(path, 16), decode_image(plain, 16))


@pytest.mark.parametrize("ending", ["tif", "webp", "png"])
def test_several_pictures_in_a_file_are_refused(tmp_path: Path, ending: str) -> None:
    pictures = [Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)]
    path = saved(tmp_path / f"frames.{ending}", pictures[0], save_all=True, append_images=pictures[1:])
    assert "has 2 pictures in it" in refusal(path)


def test_a_gif_file_called_png_is_read_as_what_it_is(tmp_path: Path) -> None:
    one = io.BytesIO()
    Image.fromarray(LEVELS).save(one, "GIF")
    (tmp_path / "one.png").write_bytes(one.getvalue())
    np.testing.assert_array_equal(decode_image(tmp_path / "one.png", 16), grey(LEVELS))


def test_a_cameras_file_with_a_preview_gives_its_first_picture(tmp_path: Path) -> None:
    first, preview = Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS).resize((8, 8))
    first.save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "camera.jpg") as file:
        assert file.format == "MPO" and getattr(file, "n_frames", 1) == 2
    np.testing.assert_array_equal(
        decode_image(tmp_path / "camera.jpg", 16), decode_image(saved(tmp_path / "plain.jpg", first), 16)
    )


# --- what the preflight sees --------------------------------------------------------------------------------------------------


def class_folders(root: Path) -> Path:
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for number in range(10):
            saved(root / name / f"{number}.png", Image.fromarray(COLOURS))
    return root


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def real_numbers(path: Path) -> None:
    Image.fromarray(LEVELS.astype(np.float32)).save(path, "TIFF")


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (truncated, "is not a readable image"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: path.write_text("<html>not found</html>"), "is not a readable image"),
    (real_numbers, "mode F,"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE, ids=["truncated", "empty", "a page", "real numbers"])
def test_the_preflight_finds_a_bad_picture_wherever_it_is_in_a_small_folder(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    bad = class_folders(tmp_path) / "bee" / "7.png"
    damage(bad)
    with pytest.raises(InputError) as caught:
        check_dataset(dataset="imagefolder", data_dir=tmp_path)
    assert str(caught.value).startswith(f"data_dir: {bad}") and said in str(caught.value)


@pytest.mark.parametrize(("damage", "said"), DAMAGE[1:], ids=["empty", "a page", "real numbers"])
def test_the_preflight_looks_at_the_headers_of_a_large_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], said: str
) -> None:
    monkeypatch.setattr(folders, "DECODED_BYTES", 0)
    bad = class_folders(tmp_path) / "bee" / "7.png"
    damage(bad)
    with pytest.raises(InputError) as caught:
        check_dataset(dataset="imagefolder", data_dir=tmp_path)
    assert str(caught.value).startswith(f"data_dir: {bad}") and said in str(caught.value)


@pytest.mark.parametrize("name", ["moving.gif", "photo.HEIC", "photo.jfif", "photo.avif"])
def test_pictures_of_a_kind_that_is_not_read_are_not_left_out_without_a_word(tmp_path: Path, name: str) -> None:
    (class_folders(tmp_path) / "ant" / name).write_bytes(b"any")
    with pytest.raises(InputError, match="is a kind of picture that is not read") as caught:
        check_dataset(dataset="imagefolder", data_dir=tmp_path)
    assert name in str(caught.value) and all(ending in str(caught.value) for ending in IMAGE_ENDINGS)
