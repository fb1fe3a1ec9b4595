"""Tables of the report as nodes of pandoc's tree, with column widths that keep them within the margins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitfp8.reporting.breaking import LONGEST_NAME, word_pieces
from vitfp8.reporting.pandoc import Node, attributes, literal, plain_text, transform

#: The text block of an A4 page with margins of 25 mm, and the width of a table's character at 8.5 points, in points.
_LINE, _CHARACTER, _GAP = 455.0, 4.4, 9.0
#: Columns of text are not made narrower than this, in characters, if they hold as much.
_NARROWEST_TEXT = 16
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
    width, header = len(specs), len(head[1])
    widest, named, words = [1] * width, [1] * width, [1] * width
    for index, row in enumerate(rows):
        for column, cell in enumerate(row) if len(row) == width else ():
            text = plain_text(cell[4])
            number = index >= header and _NUMBER.fullmatch(text) is not None
            pieces = [text] if number else [piece for word in text.split() for piece in word_pieces(word, LONGEST_NAME)]
            words[column] = max([words[column], *(len(piece) + 1 for piece in pieces)])  # capitals are wide
            told = named if index < header else widest
            told[column] = max(told[column], len(text))
            if number:
                cell[4] = transform(cell[4], lambda part: [{"t": "Str", "c": "\u00a0"}] if part["t"] == "Space" else None)
    room = (_LINE - _GAP * (width - 1)) / _CHARACTER
    longest = [max(pair) for pair in zip(widest, named, strict=True)]
    if sum(longest) <= room:
        return [node]
    # Headers break first, then long texts, then every text.
    for kept in (40, 24, 14, 0):
        least = [
            max(word, many) if many <= kept else max(word, min(many, _NARROWEST_TEXT))
            for word, many in zip(words, widest, strict=True)
        ]
        if sum(least) <= room:
            break
    if sum(least) > room and width > 2 and all(len(row) == width for row in rows):
        return [part for columns in _parts(least) for part in fit(_some_columns(node, columns))]
    # What is left of the line goes to the columns in proportion to what they lack.
    spare = max(0.0, room - sum(least))
    lacks = [max(0, min(many, 90) - few) for few, many in zip(least, longest, strict=True)]
    wants = [few + (spare * lack / sum(lacks) if sum(lacks) else 0.0) for few, lack in zip(least, lacks, strict=True)]
    for spec, want in zip(specs, wants, strict=True):
        spec[1] = {"t": "ColWidth", "c": round(want / sum(wants), 4)}
    return [node]


def _parts(least: list[int]) -> list[list[int]]:
    """Return the columns of each part of a table that is too wide, about as many in each."""
    room, most = (_LINE / _CHARACTER) - least[0], 0
    for width in least[1:]:
        room -= width + _GAP / _CHARACTER
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
    """Return the height of a table that was fitted, in lines, with its caption and header."""
    _, _, specs, head, bodies, _ = node["c"]
    widths = [spec[1].get("c", 1.0) * _LINE / _CHARACTER for spec in specs]
    rows = [row[1] for row in [*head[1], *bodies[0][3]]]
    lines = [
        max((-(-len(plain_text(cell[4])) // max(1, int(width))) for cell, width in zip(row, widths, strict=False)), default=1)
        for row in rows
    ]
    return 3 + sum(max(1, many) for many in lines)
