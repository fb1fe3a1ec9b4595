"""A table of the analysis: data with notes, shown as HTML, LaTeX or text, and written as LaTeX and CSV.

A table stays data until its last step: in a notebook it carries its columns, alignment, rows and notes as JSON beside the HTML,
and the report is typeset from that. Cells are plain texts, escaped in each format.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vitfp8.analysis.escaping import csv_cell, escape_html, escape_latex, one_line
from vitfp8.analysis.values import finite

#: MIME type under which a displayed table carries its data.
TABLE_MIME = "application/vnd.vitfp8.table+json"
#: What stands in a cell without a value.
MISSING = "–"


def number(value: Any, factor: float = 1.0, digits: int = 2) -> str:
    """Format a number for a cell, multiplied by ``factor``, with a true minus sign; a dash stands for a missing value."""
    found = finite(value)
    return MISSING if found is None else f"{factor * found:,.{digits}f}".replace("-", "−").replace(",", "\u00a0")


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table of texts, with the plain values beside it.

    Attributes:
        stem: name of its files, without ending.
        columns: headers.
        rows: one text per header.
        notes: sentences below the table.
        values: numbers in base units (fractions, seconds) for the CSV; None: the CSV holds the texts.
    """

    stem: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    values: pd.DataFrame | None = None

    @property
    def alignment(self) -> list[str]:
        """``left`` or ``right`` per column: a column that reads as numbers is aligned to the right."""
        return ["right" if self._numeric(index) else "left" for index in range(len(self.columns))]

    def to_data(self) -> dict[str, Any]:
        """The table as JSON, under `TABLE_MIME` in a notebook."""
        return {
            "columns": list(map(one_line, self.columns)),
            "alignment": self.alignment,
            "rows": [list(map(one_line, row)) for row in self.rows],
            "notes": list(map(one_line, self.notes)),
        }

    def to_html(self) -> str:
        """The table as an HTML fragment without active content."""
        head = "".join(f"<th>{escape_html(cell)}</th>" for cell in self.columns)
        lines = []
        for row in self.rows:
            first, *others = (
                f' style="text-align: {side}">{escape_html(cell)}' for side, cell in zip(self.alignment, row, strict=True)
            )
            lines.append(f"<tr><th{first}</th>" + "".join(f"<td{cell}</td>" for cell in others) + "</tr>")
        notes = "".join(f"<p><small>{escape_html(note)}</small></p>" for note in self.notes)
        body = "\n".join(lines)
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n{notes}"

    def to_latex(self) -> str:
        """The table as a LaTeX ``tabular`` for the package booktabs, with its notes."""
        lines = [f"\\begin{{tabular}}{{{''.join(side[0] for side in self.alignment)}}}", "\\toprule"]
        lines += [" & ".join(map(escape_latex, self.columns)) + r" \\", "\\midrule"]
        lines += [" & ".join(map(escape_latex, row)) + r" \\" for row in self.rows]
        lines += ["\\bottomrule", "\\end{tabular}"]
        lines += [f"\n\\par\\smallskip{{\\footnotesize {escape_latex(note)}\\par}}" for note in self.notes]
        return "\n".join(lines) + "\n"

    def to_text(self) -> str:
        """The table for a terminal."""
        cells = [[one_line(cell) for cell in row] for row in [self.columns, *self.rows]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        sides = self.alignment
        lines = [
            "  ".join(
                cell.rjust(width) if side == "right" else cell.ljust(width)
                for side, cell, width in zip(sides, row, widths, strict=True)
            ).rstrip()
            for row in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, *map(one_line, self.notes)])

    def to_csv(self) -> str:
        """The plain values as CSV; a cell that a spreadsheet would read as a formula gets a leading apostrophe."""
        values = self.values if self.values is not None else pd.DataFrame(self.rows, columns=list(self.columns))
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([csv_cell(str(name)) for name in values.columns])
        for row in values.itertuples(index=False):
            writer.writerow(["" if cell is None or cell is pd.NA or cell != cell else csv_cell(cell) for cell in row])
        return buffer.getvalue()

    def save(self, folder: Path, *endings: str) -> list[Path]:
        """Write the table to ``folder``, by default as both ``tex`` and ``csv``, and return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        writers: dict[str, Callable[[], str]] = {"tex": self.to_latex, "csv": self.to_csv}
        files = [folder / f"{self.stem}.{ending}" for ending in endings or writers]
        for file in files:
            file.write_text(writers[file.suffix[1:]](), encoding="utf-8")
        return files

    def _numeric(self, index: int) -> bool:
        """Whether most cells of a column begin like numbers; the first column names the rows."""
        cells = [row[index] for row in self.rows if row[index] not in ("", MISSING)]
        return index > 0 and bool(cells) and sum(cell[:1] in "0123456789+−-≤≥<" for cell in cells) >= 0.75 * len(cells)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """All forms together (IPython's protocol)."""
        forms = {"text/html": self.to_html(), "text/latex": self.to_latex(), "text/plain": self.to_text()}
        return {TABLE_MIME: self.to_data(), **forms}


def show_table(table: ReportTable, empty: str = "", lead: str = "") -> None:
    """Display a table in a notebook, after the Markdown ``lead``; an empty table is replaced by the Markdown ``empty``."""
    from IPython.display import Markdown, display

    if text := lead if table.rows else empty:
        display(Markdown(text))
    if table.rows:
        display(table)
