"""Pictures of a notebook's outputs and attachments: their formats, and the size at which they are printed."""

from __future__ import annotations

import base64
import binascii
import re
import struct
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: MIME type → file ending and how the content begins. What does not begin like that is not a picture.
_FORMATS = {
    "application/pdf": ("pdf", (b"%PDF-",)),
    "image/svg+xml": ("svg", (b"<svg", b"<?xml", b"<!DOCTYPE svg", b"<!--")),
    "image/png": ("png", (b"\x89PNG\r\n\x1a\n",)),
    "image/jpeg": ("jpg", (b"\xff\xd8\xff",)),
}
MIME_TYPES = {ending: name for name, (ending, _) in _FORMATS.items()}
#: The text block of an A4 page with margins of 25 mm; a picture leaves room for its caption (points).
_LINE, _HEIGHT = 455.0, 600.0
#: Up to this height a picture is printed at its own size; a higher one is scaled down to this fraction at most.
_LOW, _LEAST_SCALE = 190.0, 0.68


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture: file ending → content, and its width in CSS pixels where the output states it."""

    formats: Mapping[str, bytes]
    pixels: int | None = None

    def share_of_line(self) -> float:
        """Return the width at which the picture is printed, as a fraction of the line.

        A picture stands where the text speaks of it, so that one which no longer fits leaves the end of a page white: a high one
        is made smaller, as far as it stays legible.
        """
        width, height = self._points()
        scale = min(1.0, _LINE / width, max(_LEAST_SCALE, _LOW / height), _HEIGHT / height)
        return round(scale * width / _LINE, 3)

    def printed_height(self) -> float:
        """Return the height at which the picture is printed, in points."""
        width, height = self._points()
        return height * self.share_of_line() * _LINE / width

    def _points(self) -> tuple[float, float]:
        """Return width and height in points, as far as they are known."""
        box = re.search(rb"/MediaBox\s*\[\s*[\d.]+\s+[\d.]+\s+([\d.]+)\s+([\d.]+)", self.formats.get("pdf", b""))
        if box and float(box[1]) > 0 < float(box[2]):
            return float(box[1]), float(box[2])
        png = self.formats.get("png", b"")
        width, height = struct.unpack(">II", png[16:24]) if len(png) >= 24 else (0, 0)
        if not width or not height:
            return _LINE, _LINE / 2
        points = 0.75 * (self.pixels or width)
        return points, points * height / width


def has_picture(data: Mapping[str, Any]) -> bool:
    """Whether a MIME bundle claims to hold a picture."""
    return any(name in data for name in _FORMATS)


def picture_of(data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Picture | None:
    """Return the picture of a MIME bundle if its content really is one."""
    formats: dict[str, bytes] = {}
    for name, (ending, beginnings) in _FORMATS.items():
        text = data.get(name, "")
        text = "".join(map(str, text)) if isinstance(text, list) else str(text)
        try:
            content = text.encode("utf-8", "replace") if "<" in text else base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            continue
        if content.lstrip().startswith(beginnings):
            formats[ending] = content
    about = (metadata or {}).get("image/png", {})
    pixels = about.get("width") if isinstance(about, Mapping) else None
    sensible = isinstance(pixels, int) and 0 < pixels < 20_000
    return Picture(formats=formats, pixels=pixels if sensible else None) if formats else None


def picture_in(folder: Path, address: str) -> Picture | None:
    """Return the picture that a text names, if it is a file inside the notebook's folder."""
    if urllib.parse.urlsplit(address).scheme:
        return None
    try:
        path = (folder / address).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        content = path.read_bytes()
    except (OSError, ValueError):
        return None
    for ending, beginnings in _FORMATS.values():
        if path.suffix.lower().lstrip(".") in (ending, "jpeg") and content.startswith(beginnings):
            return Picture(formats={ending: content})
    return None
