"""Fonts of the printed report: the DejaVu fonts that matplotlib brings stand in where the text's own font lacks a character."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

#: The font that lies beside the LaTeX when a character calls for it.
FALLBACK_FONT = "DejaVuSans.ttf"
#: Characters beyond these may be missing from Latin Modern; the preamble looks each up and takes another font if need be.
_COMMON = frozenset([*map(chr, range(0x20, 0x180)), *"–—‘’“”…•\n\t\u200b"])
#: What Latin Modern Math has besides: Greek, arrows, operators.
_SYMBOLS = re.compile("[\u0370-\u03ff\u2020\u2021\u2030\u2032\u2033\u2190-\u2194\u21d0-\u21d4\u2200-\u22ff\u2212]")


def fonts_folder() -> Path | None:
    """Return the folder of matplotlib's fonts, found without loading matplotlib."""
    found = importlib.util.find_spec("matplotlib")
    folders = [Path(place, "mpl-data", "fonts", "ttf") for place in (found.submodule_search_locations or [])] if found else []
    return next((folder for folder in folders if folder.is_dir()), None)


def special_characters(text: str) -> list[int]:
    """Return the code points of a LaTeX text that Latin Modern may lack."""
    return sorted({ord(character) for character in text if character not in _COMMON and ord(character) > 0xA0})


def needs_fallback_font(text: str) -> bool:
    """Whether a text holds characters that neither Latin Modern nor its mathematical companion is sure to have."""
    return any(_SYMBOLS.match(chr(code)) is None for code in special_characters(text))
