"""Tables of the report as nodes of pandoc's tree, with column widths that keep them within the margins."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vitfp8.reporting.breaking import LONGEST_NAME, word_pieces
from vitfp8.reporting.pandoc import Node, attributes, literal, plain_text, transform

#: The text block of an A4 page with margins of 25 mm, and the space between two columns, in points.
_LINE, _GAP = 455.0, 9.0
#: Bodies of columns up to these widths stay on one line if the table fits, the first that does; then every text may wrap.
_UNWRAPPED = (190.0, 110.0, 60.0, 0.0)
#: Columns of text are not made narrower than this, if they hold as much, and get no more than this, in points.
_NARROWEST_TEXT, _WIDEST_TEXT = 72.0, 400.0
_NUMBER = re.compile(r"[\s<>≤≥≈~±+−–\-\d.,:/()\[\]×%eE∞]*\d[\s<>≤≥≈~±+−–\-\d.,:/()\[\]×%eE∞]*[A-Za-zµ°/%²*†‡]{0,8}")
_EMPTY = frozenset({"", "–", "—", "-", "n/a", "nan", "NaN", "None", "not measured", "…"})


def table_of_data(data: Mapping[str, Any]) -> Node | None:
    """Return a table from the JSON that the analysis displays (`vitfp8.analysis.table`), or None if it is malformed."""
    columns, rows, sides = (data.get(key) for key in ("columns", "rows", "alignment"))
    if not (isinstance(columns, list) and isinstance(rows, list) and isinstance(sides, list) and columns):
        return None
    if len(sides) != len(columns) or any(not isinstance(row, list) or len(row) != len(columns) for row in rows):
        return None
    aligns = ["AlignRight" if side == "right" else "AlignLeft" for side in sides]
    head, body = ([[_cell(str(cell)) for cell in row] for row in part] for part in ([columns], rows))
    return _table(aligns, head, body)


def _cell(text: str) -> list[Any]:
    return _cell_of([{"t": "Plain", "c": literal(text)}] if text.strip() else [])


def _cell_of(blocks: list[Node], columns: int = 1, rows: int = 1) -> list[Any]:
    return [attributes(), {"t": "AlignDefault"}, rows, columns, blocks]


def _table(aligns: list[str], head: list[list[Any]], body: list[list[Any]]) -> Node:
    """Return a table node without caption."""
    specs = [[{"t": align}, {"t": "ColWidthDefault"}] for align in aligns]
    rows = [[[attributes(), row] for row in part] for part in (head, body)]
    sections = [attributes(), rows[0]], [[attributes(), 1, [], rows[1]]], [attributes(), []]
    return {"t": "Table", "c": [attributes(), [None, []], specs, *sections]}


def tidy_table(node: Node) -> Node | None:
    """Return a table that pandoc read without attributes, with aligned columns of numbers; None if it has no cell."""
    _, caption, specs, head, bodies, foot = node["c"]
    rows = [[row[1] for row in part] for part in (head[1], *(part for body in bodies for part in (body[2], body[3])), foot[1])]
    first, rest = rows[0], [row for part in rows[1:] for row in part]
    width = len(specs)
    if not any(cell[4] for row in [*first, *rest] for cell in row):
        return None

    def tidy(cell: list[Any]) -> list[Any]:
        blocks = [{"t": "Plain", "c": block["c"]} if block["t"] == "Para" else block for block in cell[4]]
        return _cell_of(blocks, cell[3], cell[2])

    head_rows, body_rows = ([[tidy(cell) for cell in row] for row in part] for part in (first, rest))
    given = [spec[0]["t"] for spec in specs]
    aligns = given if any(align != "AlignDefault" for align in given) else _aligned(body_rows, width)
    table = _table(aligns, head_rows, body_rows)
    table["c"][1] = [None, caption[1]]
    return table


def _aligned(rows: list[list[Any]], width: int) -> list[str]:
    """Return the alignment of each column: numbers to the right. Only rows without spans tell which cell is in which column."""
    texts = [[plain_text(cell[4]) for cell in row] for row in rows if len(row) == width]
    sides = []
    for column in range(width):
        told = [row[column] for row in texts if row[column] not in _EMPTY]
        numbers = sum(_NUMBER.fullmatch(text) is not None for text in told)
        sides.append("AlignRight" if told and numbers >= 2 * (len(told) - numbers) else "AlignLeft")
    return sides


def fit(node: Node) -> list[Node]:
    """Return a table that fits the line: as it is, with wrapped columns, or cut into several that repeat the first column."""
    _, _, specs, head, bodies, _ = node["c"]
    rows = [row[1] for row in [*head[1], *bodies[0][3]]]
    columns, header = len(specs), len(head[1])
    body, title, word = [6.0] * columns, [6.0] * columns, [6.0] * columns
    for index, row in enumerate(rows):
        for column, cell in enumerate(row) if len(row) == columns else ():
            text = plain_text(cell[4])
            number = index >= header and _NUMBER.fullmatch(text) is not None
            pieces = [text] if number else [piece for part in text.split() for piece in word_pieces(part, LONGEST_NAME)]
            word[column] = max([word[column], *map(_width, pieces)])
            widths = title if index < header else body
            widths[column] = max(widths[column], _width(text))
            if number:
                cell[4] = transform(cell[4], lambda part: [{"t": "Str", "c": "\u00a0"}] if part["t"] == "Space" else None)
    room = _LINE - _GAP * (columns - 1)
    widest = [max(pair) for pair in zip(body, title, strict=True)]
    if sum(widest) <= room:
        return [node]
    for unwrapped in _UNWRAPPED:
        least = [
            max(few, many if many <= unwrapped else min(many, _NARROWEST_TEXT)) for few, many in zip(word, body, strict=True)
        ]
        if sum(least) <= room:
            break
    if sum(least) > room and columns > 2 and all(len(row) == columns for row in rows):
        return [part for chosen in _parts(least) for part in fit(_some_columns(node, chosen))]
    # What is left of the line goes to the columns in proportion to what they lack.
    lacks = [max(0.0, min(many, _WIDEST_TEXT) - few) for few, many in zip(least, widest, strict=True)]
    spare = max(0.0, room - sum(least)) / (sum(lacks) or 1.0)
    wants = [few + spare * lack for few, lack in zip(least, lacks, strict=True)]
    for spec, want in zip(specs, wants, strict=True):
        spec[1] = {"t": "ColWidth", "c": round(want / sum(wants), 4)}
    return [node]


def _width(text: str) -> float:
    """Return about the width of a text in a table, in points: Latin Modern at 8.5 points."""
    return sum(2.6 if c in " .,:;ilj|!()[]'" else 7.2 if c in "mwMW%@" else 6.4 if c.isupper() else 4.4 for c in text)


def _parts(least: list[float]) -> list[list[int]]:
    """Return the columns of each part of a table that is too wide, about as many in each."""
    room, most = _LINE - least[0], 0
    for width in least[1:]:
        room -= width + _GAP
        most += room >= 0
    others = list(range(1, len(least)))
    count = -(-len(others) // max(1, most))
    step = -(-len(others) // count)
    return [[0, *others[start : start + step]] for start in range(0, len(others), step)]


def _some_columns(node: Node, columns: list[int]) -> Node:
    """Return a table with some of the columns of another; the caption stays with the first part."""
    _, caption, specs, head, bodies, _ = node["c"]
    header, body = ([[row[1][column] for column in columns] for row in part] for part in (head[1], bodies[0][3]))
    part = _table([specs[column][0]["t"] for column in columns], header, body)
    if columns[1] == 1:
        part["c"][:2] = node["c"][0], caption
    return part


def height_in_lines(node: Node) -> int:
    """Return about the height of a fitted table, in lines, with its caption."""
    _, _, specs, head, bodies, _ = node["c"]
    widths = [spec[1].get("c", 1.0) * _LINE for spec in specs]
    rows = [row[1] for row in [*head[1], *bodies[0][3]]]
    return 3 + sum(
        max([1, *(math.ceil(_width(plain_text(cell[4])) / width) for cell, width in zip(row, widths, strict=False))])
        for row in rows
    )
