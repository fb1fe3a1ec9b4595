"""Errors that name the file, key and value and a way out, and text made fit to be shown."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

#: Most characters of an error line: a path may have 4096, and a terminal should still show what is wrong.
LONGEST_LINE = 2000


def printable(text: str, limit: int = LONGEST_LINE) -> str:
    """A text as a terminal may show it: on one line, bounded, with control characters written out as their codes.

    What a file, a record or a file name says is data: an escape sequence in it must not act on whoever reads a message.

    Args:
        text: any text.
        limit: most characters; the middle of a longer text is left out, so that its beginning and its end stay.
    """
    if not text.isprintable():
        text = " ".join(re.split(r"[\t\n\r\x0b\x0c\x85\u2028\u2029]+", text))
        shown = (c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode() for c in text)
        text = "".join(shown)
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 1]}…{text[-end:]}"


class InputError(ValueError):
    """Something that the user gave cannot be used; ``str(error)`` is one clear, bounded, printable line with a way out.

    The command line prints it and exits with status 2; a notebook shows it instead of a traceback.

    Args:
        message: the line; whatever it quotes is made printable.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))

    def _render_traceback_(self) -> list[str]:
        """What IPython prints instead of a traceback (its protocol for exceptions that explain themselves)."""
        return [f"{type(self).__name__}: {self}"]


def suggest(name: str, known: Iterable[str]) -> str:
    """``, did you mean …?`` when a known name is near, else a list of what is known.

    Args:
        name: what was given.
        known: what there is.
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def shown(value: object, limit: int = 60) -> str:
    """A value as an error line shows it: on one line, bounded."""
    if isinstance(value, int) and value.bit_length() > 4 * limit:  # Python refuses to write out very large numbers
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value[: limit + 1] if isinstance(value, str | list) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
