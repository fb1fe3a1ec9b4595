"""Text as each format takes it literally, with places where a long word may break."""

from __future__ import annotations

import re
import unicodedata

#: What LaTeX would act on, each as the character it stands for.
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "`": r"\textasciigrave{}",
    '"': r"\textquotedbl{}",
    "\u00a0": "~",
}
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: A run this long holds no place to break; it gets some.
LONGEST_WORD = 24
#: A name in a table's header breaks from this length on.
LONGEST_NAME = 14
#: Code does not hyphenate, so that shorter words of it must break.
_LONGEST_CODE_WORD = 12
_LONG_WORD = re.compile(rf"[^\s\u00a0]{{{LONGEST_WORD},}}")
#: A word breaks after these, as paths, digests, options and identifiers are read.
_BREAK_AFTER = re.compile(r"[/\\._\-=,:;@?&+|~]+")


def printable(text: str, *, lines: bool = False) -> str:
    """Text without control characters, surrogates and marks that turn the reading direction.

    Args:
        text: any text.
        lines: keep line ends and tabs; otherwise they become spaces.
    """
    kept = []
    for character in text:
        if character in "\n\t":
            kept.append(character if lines else " ")
        elif unicodedata.category(character) == "Cs":
            kept.append("\ufffd")
        elif unicodedata.category(character) == "Cc" or character in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
            continue
        else:
            kept.append(character)
    return "".join(kept)


def terminal_text(text: str) -> str:
    """What a terminal would have left standing: no colours, and of a line that was rewritten the last state."""
    text = _ANSI.sub("", text).replace("\r\n", "\n")
    text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    return printable(text, lines=True).expandtabs(4)


def word_pieces(word: str, longest: int = LONGEST_WORD) -> list[str]:
    """Cut a word into pieces between which it may break: after separators, else every few characters.

    Args:
        word: without spaces.
        longest: a shorter word stays whole.
    """
    if len(word) < longest:
        return [word]
    pieces, start = [], 0
    for match in _BREAK_AFTER.finditer(word):
        pieces.append(word[start : match.end()])
        start = match.end()
    pieces.append(word[start:])
    return [piece[i : i + 12] for piece in pieces if piece for i in range(0, len(piece), 12)]


def latex(text: str, *, breaks: bool = True) -> str:
    """Text for LaTeX, literal.

    Args:
        text: any text; line ends become spaces.
        breaks: allow long words to break.
    """

    def literal(piece: str) -> str:
        """Escaped, with the ligatures of TeX's fonts undone."""
        escaped = "".join(_LATEX.get(character, character) for character in piece)
        # TeX's fonts would join "--" to a dash and "''" to a quotation mark.
        return re.sub(r"(?<=-)-", "{}-", re.sub(r"(?<=')'", "{}'", escaped))

    text = printable(text)
    if not breaks:
        return literal(text)
    parts, end = [], 0
    for match in _LONG_WORD.finditer(text):
        parts.append(literal(text[end : match.start()]))
        parts.append(r"\allowbreak{}".join(literal(piece) for piece in word_pieces(match.group())))
        end = match.end()
    return "".join([*parts, literal(text[end:])])


def latex_code(text: str) -> str:
    """Code within a line for LaTeX: what TeX would not hyphenate breaks after its separators."""
    words = printable(text).split(" ")
    pieces = [[latex(piece, breaks=False) for piece in word_pieces(word, _LONGEST_CODE_WORD)] for word in words]
    return " ".join(r"\allowbreak{}".join(word) for word in pieces)


def latex_verbatim(text: str) -> str:
    """Lines for fancyvrb's ``Verbatim`` with backslash and braces as command characters: only those need an escape."""
    table = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}"}
    return "".join(table.get(character, character) for character in printable(text, lines=True))


def typst_string(text: str, *, lines: bool = False) -> str:
    """A Typst string literal, quotes included: nothing in it is mark-up."""
    text = printable(text, lines=lines)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def typst(text: str, *, breaks: bool = True) -> str:
    """Text for Typst's mark-up, literal: a string, closed so that what follows is not read as its field.

    Args:
        text: any text; line ends become spaces.
        breaks: allow long words to break (a zero-width space is Typst's place to break).
    """
    if breaks:
        text = _LONG_WORD.sub(lambda match: "\u200b".join(word_pieces(match.group())), text)
    return f"#{typst_string(text)};"
