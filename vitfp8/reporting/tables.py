"""Tables: read from HTML, measured, and written so that they stay within the margins.

A notebook shows its tables as HTML; the printed formats are written from the same cells, so that every export holds the same
table and none of its text can act.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from bs4 import BeautifulSoup
from bs4.element import NavigableString, Tag

from vitfp8.reporting import escaping
from vitfp8.reporting.prose import safe_url

#: Inline elements that survive, and what they stand for.
_STYLES = {"b": "bold", "strong": "bold", "i": "italic", "em": "italic", "code": "code", "sup": "super", "sub": "sub"}
_NUMBER = re.compile(r"[\s<>≤≥≈~±+−–\-\d.,:/()\[\]×%eE∞]*\d[\s<>≤≥≈~±+−–\-\d.,:/()\[\]×%eE∞]*[A-Za-zµ°/%²*†‡]{0,8}")
_EMPTY = frozenset({"", "–", "—", "-", "n/a", "nan", "NaN", "None", "not measured", "…"})
_COLOUR = re.compile(r"(?<![-\w])color\s*:\s*#([0-9a-fA-F]{6})\b")
#: The text block of an A4 page with 25 mm margins, in points, upright and turned; the height counts rows.
PAGE_WIDTH, TURNED_WIDTH = 455.0, 700.0
ROWS_OF_A_PAGE = 38
_CHARACTER = 0.53
_TEXT_COLUMN = 26


@dataclass(frozen=True)
class Run:
    """A stretch of text in a cell, with one style (``bold``, ``link``, …; empty: as the cell's) and its argument."""

    text: str
    style: str = ""
    argument: str = ""


@dataclass(kw_only=True)
class Cell:
    """One cell of a table; it may span several columns and rows."""

    runs: list[Run] = field(default_factory=list)
    header: bool = False
    columns: int = 1
    rows: int = 1

    @property
    def text(self) -> str:
        """The cell's words."""
        return " ".join("".join(run.text for run in self.runs).split())

    @property
    def numeric(self) -> bool:
        """Whether the cell reads as a number, perhaps with an uncertainty and a unit."""
        return _NUMBER.fullmatch(self.text) is not None


@dataclass(kw_only=True)
class Table:
    """A table's cells by row, each with the column where it starts.

    Attributes:
        rows: per row, pairs of (column, cell).
        head: how many of the first rows are the header.
        width: number of columns.
        caption: what the HTML itself called the table.
    """

    rows: list[list[tuple[int, Cell]]]
    head: int
    width: int
    caption: str = ""

    def blanks(self) -> list[list[int]]:
        """Per row, the columns that no cell covers."""
        covered = {
            (index + y, column + x)
            for index, row in enumerate(self.rows)
            for column, cell in row
            for y in range(cell.rows)
            for x in range(cell.columns)
        }
        return [[x for x in range(self.width) if (y, x) not in covered] for y in range(len(self.rows))]

    def parts(self, columns: int) -> list[Table]:
        """The table cut into several that repeat the first column; itself when cells span columns.

        Args:
            columns: how many columns a part may have.
        """
        if any(cell.columns > 1 for row in self.rows for _, cell in row) or columns >= self.width:
            return [self]
        step = max(1, columns - 1)
        parts = []
        for start in range(1, self.width, step):
            kept = [0, *range(start, min(start + step, self.width))]
            rows = [[(kept.index(column), cell) for column, cell in row if column in kept] for row in self.rows]
            parts.append(Table(rows=rows, head=self.head, width=len(kept)))
        return parts

    def numeric_columns(self) -> list[bool]:
        """Per column, whether its body is numbers (empty cells and dashes aside), to be aligned to the right."""
        numbers, texts = [0] * self.width, [0] * self.width
        for row in self.rows[self.head :]:
            for column, cell in row:
                if cell.columns == 1 and cell.text not in _EMPTY:
                    (numbers if cell.numeric else texts)[column] += 1
        return [n > 0 and n >= 2 * t for n, t in zip(numbers, texts, strict=True)]


def _runs(node: Tag, style: str = "", argument: str = "") -> list[Run]:
    """The text of a cell as stretches of one style each; the innermost style wins."""
    runs: list[Run] = []
    for child in node.children:
        if isinstance(child, Tag):
            if child.name == "br":
                runs.append(Run("\n", "break"))
            elif child.name == "a":
                address = safe_url(str(child.get("href", "")))
                runs += _runs(child, "link", address) if address else _runs(child, style, argument)
            elif child.name == "span" and (colour := _COLOUR.search(str(child.get("style", "")))):
                runs += _runs(child, "colour", colour.group(1).upper())
            else:
                runs += _runs(child, _STYLES.get(child.name, style), argument)
        elif type(child) is NavigableString:
            text = re.sub(r"[ \t\n\r]+", " ", str(child))
            runs.append(Run(text, style, argument))
    return runs


def _span(tag: Tag, name: str) -> int:
    """A cell's colspan or rowspan, bounded: what is not a small whole number is 1."""
    value = str(tag.get(name, "1"))
    return min(int(value), 100) if value.isascii() and value.isdigit() and int(value) > 0 else 1


def read_table(tag: Tag) -> Table | None:
    """Read an HTML table; None when it holds no cell."""
    rows: list[list[tuple[int, Cell]]] = []
    taken: dict[tuple[int, int], bool] = {}
    head, width = 0, 0
    lines = [row for row in tag.find_all("tr") if row.find_parent("table") is tag]
    for index, line in enumerate(lines):
        row, column = [], 0
        tags = [item for item in line.find_all(["td", "th"]) if item.find_parent("tr") is line]
        for item in tags:
            while taken.get((index, column)):
                column += 1
            across, down = _span(item, "colspan"), min(_span(item, "rowspan"), len(lines) - index)
            # A cell that would lie on one that reaches down from above ends before it.
            across = next((x for x in range(1, across) if taken.get((index, column + x))), across)
            row.append((column, Cell(runs=_strip(_runs(item)), header=item.name == "th", columns=across, rows=down)))
            for y in range(index, index + down):
                for x in range(column, column + across):
                    taken[y, x] = True
            column += across
            width = max(width, column)
        in_head = line.find_parent("thead") is not None or (tags and all(item.name == "th" for item in tags))
        if in_head and head == index:
            head = index + 1
        rows.append(row)
    if head == len(rows):
        head = min(1, len(rows))
    for index, row in enumerate(rows[:head]):
        for _, cell in row:
            cell.rows = min(cell.rows, head - index)
    named = tag.find("caption")
    caption = named.get_text(" ", strip=True) if named else ""
    return Table(rows=rows, head=head, width=width, caption=caption) if width else None


def _strip(runs: list[Run]) -> list[Run]:
    """Runs without the space around a cell's text."""
    runs = [run for run in runs if run.text]
    while runs and not runs[0].text.strip(" "):
        runs = runs[1:]
    while runs and not runs[-1].text.strip(" "):
        runs = runs[:-1]
    if runs:
        runs[0] = Run(runs[0].text.lstrip(" "), runs[0].style, runs[0].argument)
        runs[-1] = Run(runs[-1].text.rstrip(" "), runs[-1].style, runs[-1].argument)
    return runs


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a table is set: what the widths of its words ask for.

    Attributes:
        size: font size in points.
        turned: on a page turned to landscape.
        header_width: per column, after how many characters a header line breaks (0: it stays one line).
        shares: per column, its share of the line when its text must wrap, else 0.
        long: breaks across pages.
        parts: when a page is too narrow even so, in how many columns at a time the table is set.
    """

    size: float
    turned: bool
    header_width: list[int]
    shares: list[float]
    long: bool
    parts: int = 0


def plan(table: Table) -> Layout:
    """Choose font size, wrapped columns and page orientation: the least intrusive that fits, measured in characters.

    In this order: as it is at 9 or 8 points; headers on several lines; columns of text wrapped; the page turned.
    """
    body, header = [1] * table.width, [1] * table.width
    for index, row in enumerate(table.rows):
        for column, cell in row:
            if cell.columns == 1:
                widths = header if index < table.head else body
                widths[column] = max(widths[column], *(len(line) for line in cell.text.split("\n")), 1)
    word = [1] * table.width
    for row in table.rows[: table.head]:
        for column, cell in row:
            if cell.columns == 1:
                word[column] = max([word[column], *(len(piece) for piece in _header_pieces(cell.text))])
    long = len(table.rows) > ROWS_OF_A_PAGE
    nothing = [0] * table.width

    def points(characters: list[int], size: float) -> float:
        """The width of a table whose columns hold so many characters."""
        return sum(characters) * size * _CHARACTER + (2 * len(characters) - 2) * 4.5

    natural = [max(b, h) for b, h in zip(body, header, strict=True)]
    wrapped = [max(b, w) for b, w in zip(body, word, strict=True)]
    text = [b > _TEXT_COLUMN and not n for b, n in zip(body, table.numeric_columns(), strict=True)]
    for page, turned in ((PAGE_WIDTH, False), (TURNED_WIDTH, True)):
        for size in (9.0, 8.0):
            if points(natural, size) <= page:
                return Layout(size=size, turned=turned, header_width=nothing, shares=[0.0] * table.width, long=long)
        for size in (9.0, 8.0):
            if points(wrapped, size) <= page:
                return Layout(size=size, turned=turned, header_width=wrapped, shares=[0.0] * table.width, long=long)
        if any(text):
            size = 8.0
            fixed = points([w for w, t in zip(wrapped, text, strict=True) if not t], size) + 9.0 * sum(text)
            room = page - fixed
            wants = [min(b, 120) if t else 0 for b, t in zip(body, text, strict=True)]
            # A column of text narrower than this reads badly; better to turn the page.
            if room >= sum(text) * 14 * size * _CHARACTER:
                shares = [room / page * want / sum(wants) for want in wants]
                return Layout(size=size, turned=turned, header_width=wrapped, shares=shares, long=long)
    room, columns = PAGE_WIDTH - wrapped[0] * 8.0 * _CHARACTER, 1
    for width in wrapped[1:]:
        room -= width * 8.0 * _CHARACTER + 9.0
        columns += room >= 0
    # Parts of about the same width, rather than a last one with a column left over.
    count = -(-(table.width - 1) // max(1, columns - 1))
    columns = -(-(table.width - 1) // count) + 1
    return Layout(size=8.0, turned=False, header_width=wrapped, shares=[0.0] * table.width, long=long, parts=max(2, columns))


def _header_pieces(text: str) -> list[str]:
    """A header's words; a long name breaks after its separators."""
    return [piece for word in text.split() for piece in escaping.word_pieces(word, escaping.LONGEST_NAME)]


def wrap_header(text: str, width: int) -> list[str]:
    """A header's lines when it may be no wider than its column."""
    lines: list[str] = []
    for word in text.split():
        for number, piece in enumerate(escaping.word_pieces(word, escaping.LONGEST_NAME)):
            joined = "" if number else " "
            if lines and len(lines[-1]) + len(joined) + len(piece) <= width:
                lines[-1] += joined + piece
            else:
                lines.append(piece)
    return lines


def find_tables(html: str) -> tuple[BeautifulSoup, list[Tag]]:
    """Parse HTML, drop what is not content, and find its outermost tables.

    Returns:
        The parsed fragment and its tables, in order; the tables are part of the fragment.
    """
    soup = BeautifulSoup(html, "html.parser")
    for unwanted in soup.find_all(["script", "style", "iframe", "object", "embed", "template", "noscript"]):
        unwanted.decompose()
    return soup, [tag for tag in soup.find_all("table") if tag.find_parent("table") is None]


def escape_runs(cell: Cell, writers: dict[str, Any], literal: Any) -> str:
    """A cell's text in a format.

    Args:
        cell: the cell.
        writers: per style, a function of (escaped text, argument).
        literal: the format's escape.
    """
    parts = []
    for run in cell.runs:
        text = run.text.replace(" ", "\u00a0") if cell.numeric else run.text
        parts.append(writers[run.style](literal(text), run.argument) if run.style in writers else literal(text))
    return "".join(parts)
