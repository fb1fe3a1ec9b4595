"""The LaTeX of a report: for XeLaTeX, tectonic and LuaLaTeX, with booktabs tables that stay within the margins."""

from __future__ import annotations

import re

from vitfp8.reporting import escaping
from vitfp8.reporting.citation import reference_tree
from vitfp8.reporting.document import Float, Picture, Printed, TableView
from vitfp8.reporting.prose import plain_text
from vitfp8.reporting.tables import Cell, Layout, Run, Table, escape_runs, plan, wrap_header
from vitfp8.reporting.writer import Writer

_STYLES = {
    "bold": lambda text, _: rf"\textbf{{{text}}}",
    "italic": lambda text, _: rf"\emph{{{text}}}",
    "code": lambda text, _: rf"\texttt{{{text}}}",
    "super": lambda text, _: rf"\textsuperscript{{{text}}}",
    "sub": lambda text, _: rf"\textsubscript{{{text}}}",
    "break": lambda text, _: " ",
    "colour": lambda text, colour: rf"\textcolor[HTML]{{{colour}}}{{{text}}}",
    "link": lambda text, address: rf"\href{{{url(address)}}}{{{text}}}",
}
#: Characters beyond these may be missing from Latin Modern; the preamble looks each up and takes another font if need be.
_COMMON = frozenset([*map(chr, range(0x20, 0x180)), *"–—‘’“”…•\n\t\u200b"])
#: What Latin Modern Math covers beside: Greek, arrows, operators and the like need no further font.
_SYMBOLS = re.compile("[\u0370-\u03ff\u2020\u2021\u2030\u2032\u2033\u2190-\u2194\u21d0-\u21d4\u2200-\u22ff\u2212]")
#: Characters of a line of small print.
_LINE = 110
#: The font shipped beside the text when a character calls for it.
FALLBACK_FONT = "DejaVuSans.ttf"


def url(address: str) -> str:
    """An address (percent-encoded already) as the argument of a LaTeX link."""
    return re.sub(r"[%#&_~]", lambda match: "\\" + match.group() if match.group() in "%#&_" else r"\string~", address)


class LatexWriter(Writer):
    """Writes LaTeX in which nothing from the notebook is a command."""

    target = "latex"
    options = ("-t", "latex-smart")
    pictures = ("pdf", "png", "jpg")

    def printed(self, block: Printed) -> str:
        """Lines of fixed width that break anywhere; only the three escaped characters could act in them."""
        lines = escaping.latex_verbatim(block.text)
        return f"\\begin{{ReportVerbatim}}\n{lines}\n\\end{{ReportVerbatim}}"

    def inline_code(self, text: str) -> str:
        """Fixed width; paths and digests break."""
        return rf"\texttt{{{escaping.latex_code(text)}}}"

    def is_special(self, word: str) -> bool:
        """TeX's fonts would make a straight quotation mark a closing one."""
        return '"' in word or super().is_special(word)

    def word(self, text: str) -> str:
        """A word with places to break."""
        return escaping.latex(text)

    def float(self, block: Float) -> str:
        """A float with its caption, or, without caption, the picture or table where it stands."""
        caption = rf"\caption{{{self.inlines(block.caption)}}}" + (rf"\label{{{block.label}}}" if block.label else "")
        tables = [item for item in block.items if isinstance(item, TableView)]
        if tables and len(block.items) == 1 and block.kind == "tab":
            return self._table_float(tables[0], caption if block.caption else "")
        parts = []
        for number, item in enumerate(block.items, 1):
            if isinstance(item, TableView):
                parts.append(_set(item.table, plan(item.table)) + self._note(item))
            else:
                parts.append(self._image(item, block, number))
        inside = "\n\\par\\medskip\n".join(parts)
        if not block.caption:
            return f"\\begin{{center}}\n{inside}\n\\end{{center}}"
        kind = "table" if block.kind == "tab" else "figure"
        inside = f"{caption}\n{inside}" if kind == "table" else f"{inside}\n{caption}"
        return f"\\begin{{{kind}}}[!htbp]\n\\centering\n{inside}\n\\end{{{kind}}}"

    def _image(self, picture: Picture, block: Float, number: int) -> str:
        """A picture no larger than the page."""
        name = (block.label or "picture") + (f"-{number}" if len(block.items) > 1 else "")
        path = self.picture_file(picture, name)
        if path is None:
            return r"\emph{(This picture exists in SVG only, which LaTeX does not read.)}"
        return rf"\includegraphics[max width=\linewidth,max height=0.82\textheight]{{{path}}}"

    def _note(self, view: TableView) -> str:
        """The words below a table."""
        if not view.note:
            return ""
        # Several sentences, or one that is longer than a line, read better from the left.
        left = len(plain_text(view.note)) > _LINE
        set_left = "\\raggedright " if left else ""
        return f"\n\\par\\smallskip{{\\footnotesize {set_left}{self.note(view)}\\par}}"

    def _table_float(self, view: TableView, caption: str) -> str:
        """One table: a float, turned if it must be; one that is longer than a page breaks across pages."""
        table, layout = view.table, plan(view.table)
        if layout.long:
            parts = table.parts(layout.parts) if layout.parts else [table]
            written = [longtable(part, plan(part), caption if part is parts[0] else "") for part in parts]
            text = _sized(layout, "\n".join(written)) + self._note(view)
            return f"\\begin{{landscape}}\n{text}\n\\end{{landscape}}" if layout.turned else text
        inside = _set(table, layout) + self._note(view)
        if not caption:
            return f"\\begin{{center}}\n{inside}\n\\end{{center}}"
        kind, place = ("sidewaystable", "") if layout.turned else ("table", "[!htbp]")
        return f"\\begin{{{kind}}}{place}\n\\centering\n{caption}\n{inside}\n\\end{{{kind}}}"

    def reference(self, label: str, float_: Float) -> str:
        """A link that reads the number LaTeX itself gave."""
        return rf"\hyperref[{label}]{{{float_.name.split()[0]}~\ref*{{{label}}}}}"

    def citation(self, keys: list[str]) -> str:
        """LaTeX's own citation."""
        return rf"\cite{{{','.join(keys)}}}"

    def small_picture(self, picture: Picture, words: str) -> str:
        """A picture within a line."""
        path = self.picture_file(picture, "picture")
        return rf"\includegraphics[max width=\linewidth,max height=0.5\textheight]{{{path}}}" if path else escaping.latex(words)

    def bibliography(self) -> str:
        """The works, numbered as the citation file lists them."""
        works = [
            f"\\bibitem{{{reference.key}}} {self.inlines(reference_tree(reference))}"
            for reference in self.document.citation.references
        ]
        return "\\begin{thebibliography}{99}\n" + "\n".join(works) + "\n\\end{thebibliography}" if works else ""


def _set(table: Table, layout: Layout) -> str:
    """A table in its font size, or its parts one below the other."""
    if not layout.parts:
        return _sized(layout, _boxed(tabular(table, layout)))
    parts = [_boxed(tabular(part, plan(part))) for part in table.parts(layout.parts)]
    return _sized(layout, "\n\\par\\medskip\n".join(parts))


def _sized(layout: Layout, text: str) -> str:
    """Text in a table's font size, as a group."""
    return f"{{\\fontsize{{{layout.size:g}}}{{{layout.size * 1.25:g}}}\\selectfont\n{text}\n}}"


def _boxed(text: str) -> str:
    """A table that shrinks should it still be wider than the line."""
    return f"\\begin{{adjustbox}}{{max width=\\linewidth,max totalheight=0.85\\textheight,center}}\n{text}\n\\end{{adjustbox}}"


def _columns(table: Table, layout: Layout) -> str:
    """The column specification: numbers to the right, text to the left, wrapped where the layout says so."""
    parts = []
    for numeric, share in zip(table.numeric_columns(), layout.shares, strict=True):
        aligned = r"\raggedleft" if numeric else r"\raggedright"
        parts.append(rf">{{{aligned}\arraybackslash}}p{{{share:.3f}\linewidth}}" if share else "r" if numeric else "l")
    return "@{}" + "".join(parts) + "@{}"


def _cell(cell: Cell, column: int, layout: Layout, numeric: bool, *, header: bool) -> str:
    """A cell; a header that is wider than its column becomes lines."""
    plain = all(run.style in ("", "bold") for run in cell.runs)
    width = layout.header_width[column] if header and cell.columns == 1 and not layout.shares[column] else 0
    if header and plain and width and len(cell.text) > width:
        style = cell.runs[0].style
        lines = [escape_runs(Cell(runs=[Run(line, style)]), _STYLES, escaping.latex) for line in wrap_header(cell.text, width)]
        text = rf"\begin{{tabular}}[b]{{@{{}}{'r' if numeric else 'l'}@{{}}}}" + r"\\".join(lines) + r"\end{tabular}"
    else:
        text = escape_runs(cell, _STYLES, escaping.latex)
    return rf"\multicolumn{{{cell.columns}}}{{{'c' if header else 'l'}}}{{{text}}}" if cell.columns > 1 else text


def _lines(table: Table, layout: Layout) -> tuple[list[str], list[str]]:
    """Header and body as lines of LaTeX."""
    numeric = table.numeric_columns()
    written: list[str] = []
    for index, row in enumerate(table.rows):
        header = index < table.head
        cells = {column: _cell(cell, column, layout, numeric[column], header=header) for column, cell in row}
        spans = {column: cell.columns for column, cell in row}
        parts, column = [], 0
        while column < table.width:
            parts.append(cells.get(column, ""))
            column += spans.get(column, 1)
        line = " & ".join(parts) + r" \\"
        if header and index < table.head - 1:
            groups = [(column, cell) for column, cell in row if cell.columns > 1 and cell.text]
            line += "".join(rf"\cmidrule(lr){{{column + 1}-{column + cell.columns}}}" for column, cell in groups)
        # A line that begins with a bracket would be read as the argument of the line break before it.
        written.append(r"\relax " + line if line.lstrip().startswith(("[", "*")) else line)
    return written[: table.head], written[table.head :]


def tabular(table: Table, layout: Layout) -> str:
    """A table in booktabs style."""
    head, body = _lines(table, layout)
    middle = [r"\midrule"] if head and body else []
    lines = [r"\toprule", *head, *middle, *body, r"\bottomrule"]
    return f"\\begin{{tabular}}{{{_columns(table, layout)}}}\n" + "\n".join(lines) + "\n\\end{tabular}"


def longtable(table: Table, layout: Layout, caption: str) -> str:
    """A table in booktabs style that breaks across pages and repeats its header."""
    head, body = _lines(table, layout)
    top = [r"\toprule", *head, r"\midrule"]
    foot = rf"\midrule\multicolumn{{{table.width}}}{{r}}{{\emph{{continued on the next page}}}} \\"
    lines = [caption + r" \\" if caption else "", *top, r"\endfirsthead", *top, r"\endhead", foot, r"\endfoot"]
    lines += [r"\bottomrule", r"\endlastfoot", *body]
    return f"\\begin{{longtable}}{{{_columns(table, layout)}}}\n" + "\n".join(filter(None, lines)) + "\n\\end{longtable}"


def special_characters(text: str) -> list[int]:
    """The characters of a LaTeX text that Latin Modern may lack, as code points: the preamble provides for each."""
    return sorted({ord(character) for character in text if character not in _COMMON and ord(character) > 0xA0})


def needs_fallback_font(text: str) -> bool:
    """Whether a text holds characters that neither Latin Modern nor its mathematical companion is sure to have."""
    return any(_SYMBOLS.match(chr(code)) is None for code in special_characters(text))
