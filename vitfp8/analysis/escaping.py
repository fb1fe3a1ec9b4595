"""Texts of a record as data: shown as they are in every format, active in none."""

from __future__ import annotations

import html
import re
from typing import Any

#: Never printed: control characters, lone surrogates, and marks that turn the direction of text.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$",
    "†": r"\dag{}", "‡": r"\ddag{}", "≤": r"$\leq$", "≥": r"$\geq$", "°": r"\textdegree{}", "–": "--", "—": "---",
    "…": r"\dots{}", "[": "{[}", "]": "{]}", "\u00a0": "~", "-": "{-}",
}  # fmt: skip


def one_line(value: Any, limit: int = 2000) -> str:
    """Return a value as text on one line of at most ``limit`` characters, without what cannot be printed."""
    text = re.sub(r"[ \t\n\r]+", " ", _UNPRINTABLE.sub(" ", str(value))).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def escape_html(value: Any) -> str:
    """Return a value as text for HTML."""
    return html.escape(one_line(value), quote=True)


def escape_latex(value: Any) -> str:
    """Return a value as text for LaTeX, in a paragraph or a table's cell; it needs no package."""
    return "".join(_LATEX.get(character, character) for character in one_line(value))


def escape_markdown(value: Any) -> str:
    """Return a value as text for Markdown: every character that could be mark-up gets a backslash or becomes an entity."""
    text = one_line(value).replace("&", "\ue001").replace("<", "\ue002").replace(">", "\ue003")
    text = re.sub(r"([\\`*_{}\[\]#+!|~$^@])", r"\\\1", text)
    text = re.sub(r"^([-=:]|\d+[.)])", lambda found: f"{found[0][:-1]}\\{found[0][-1]}", text)
    text = re.sub(r":(?=\S)", "&#58;", text).replace("www.", "www&#46;")  # bare addresses become no links
    return text.replace("\ue001", "&amp;").replace("\ue002", "&lt;").replace("\ue003", "&gt;")


def csv_cell(value: Any) -> Any:
    """Return a text that a spreadsheet cannot read as a formula, and any other value as it is."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "|")) else text
