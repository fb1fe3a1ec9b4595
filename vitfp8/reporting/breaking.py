"""Printed text as a page takes it: what a terminal would show, and places where a long word may break."""

from __future__ import annotations

import re
import unicodedata

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: A word of this length gets places to break; a name in a table's header or a word of code already at `LONGEST_NAME`.
LONGEST_WORD, LONGEST_NAME = 24, 14
#: Paths, digests, options and identifiers break after these.
_BREAK_AFTER = re.compile(r"[/\\._\-=,:;@?&+|~]+")
#: A place to break; every format writes it in its own way, and none leaves it in copied text.
BREAK = "\u200b"
_DROPPED = frozenset("\u200b\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Return text without control characters, surrogates, and marks that turn the reading direction; line ends and tabs stay."""
    kept = []
    for character in text:
        if unicodedata.category(character) == "Cs":
            kept.append("\ufffd")
        elif character in "\n\t" or (unicodedata.category(character) != "Cc" and character not in _DROPPED):
            kept.append(character)
    return "".join(kept)


def terminal_text(text: str) -> str:
    """Return what a terminal would have left standing: no colours, and the last state of a line that was rewritten."""
    text = _ANSI.sub("", text).replace("\r\n", "\n")
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n"))
    return visible("\n".join(lines)).expandtabs(4).strip("\n")


def word_pieces(word: str, longest: int = LONGEST_WORD) -> list[str]:
    """Cut a word of at least ``longest`` characters where it may break: after separators, else every twelve characters."""
    if len(word) < longest:
        return [word]
    pieces, start = [], 0
    for match in _BREAK_AFTER.finditer(word):
        pieces.append(word[start : match.end()])
        start = match.end()
    pieces.append(word[start:])
    return [piece[i : i + 12] for piece in pieces if piece for i in range(0, len(piece), 12)]


def breakable(text: str, longest: int = LONGEST_WORD) -> str:
    """Return text with places to break in its long words."""
    return re.sub(r"[^\s\u00a0]+", lambda word: BREAK.join(word_pieces(word.group(), longest)), text)
