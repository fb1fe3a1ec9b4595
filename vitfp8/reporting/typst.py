"""The Typst of a report: how the PDF is made where there is no TeX."""

from __future__ import annotations

from vitfp8.reporting import escaping
from vitfp8.reporting.citation import reference_tree
from vitfp8.reporting.document import Float, Picture, Printed, TableView
from vitfp8.reporting.tables import Cell, Layout, Run, Table, escape_runs, plan, wrap_header
from vitfp8.reporting.writer import Writer

_STYLES = {
    "bold": lambda text, _: f"#strong[{text}]",
    "italic": lambda text, _: f"#emph[{text}]",
    "code": lambda text, _: f"#report-code[{text}]",
    "super": lambda text, _: f"#super[{text}]",
    "sub": lambda text, _: f"#sub[{text}]",
    "break": lambda text, _: "#linebreak();",
    "colour": lambda text, colour: f'#text(fill: rgb("#{colour}"))[{text}]',
    "link": lambda text, address: f"#link({escaping.typst_string(address)})[{text}]",
}


class TypstWriter(Writer):
    """Writes Typst in which nothing from the notebook is mark-up."""

    target = "typst"
    options = ("-t", "typst-smart")
    pictures = ("pdf", "svg", "png", "jpg")

    def printed(self, block: Printed) -> str:
        """Text of fixed width in a box; long lines wrap, long words break."""
        text = "\n".join(self._breakable(line) for line in block.text.split("\n"))
        return f"#report-printed({escaping.typst_string(text, lines=True)})"

    @staticmethod
    def _breakable(line: str) -> str:
        """A line with places to break in its long words."""
        return " ".join("\u200b".join(escaping.word_pieces(word)) for word in line.split(" "))

    def inline_code(self, text: str) -> str:
        """Fixed width; paths and digests break."""
        return f"#raw({escaping.typst_string(self._breakable(text))});"

    def word(self, text: str) -> str:
        """A word with places to break."""
        return escaping.typst(text)

    def float(self, block: Float) -> str:
        """A figure with its caption, or, without caption, the picture or table where it stands."""
        parts, turned, long = [], False, False
        for number, item in enumerate(block.items, 1):
            if isinstance(item, TableView):
                layout = plan(item.table)
                turned, long = turned or layout.turned, long or layout.long
                tables = item.table.parts(layout.parts) if layout.parts else [item.table]
                parts += [table_call(part, plan(part)) for part in tables]
                if item.note:
                    parts.append(f"#align(left)[#set text(size: 8.5pt); {self.note(item)}]")
            else:
                parts.append(self._image(item, block, number))
        inside = "\n#v(0.4em)\n".join(parts)
        if block.caption:
            kind = "table" if block.kind == "tab" else "image"
            place = "none" if long or turned else "auto"
            label = f" <{block.label}>" if block.label else ""
            caption = self.inlines(block.caption)
            text = f"#figure(kind: {kind}, supplement: [{block.name.split()[0]}], placement: {place}, caption: [{caption}])"
            text += f"[{inside}]{label}"
            if long:
                text = f"#[#show figure: set block(breakable: true)\n{text}]"
        else:
            text = f"#align(center)[{inside}]"
        return f"#page(flipped: true)[\n{text}\n]" if turned else text

    def _image(self, picture: Picture, block: Float, number: int) -> str:
        """A picture no larger than the page."""
        name = (block.label or "picture") + (f"-{number}" if len(block.items) > 1 else "")
        path = self.picture_file(picture, name)
        if path is None:
            return "#emph[(This picture is in no format that can be printed.)]"
        return f"#report-image({escaping.typst_string(path)}, {escaping.typst_string(self.alternative(block))})"

    def reference(self, label: str, float_: Float) -> str:
        """A link that reads the number Typst itself gave."""
        return f"#ref(<{label}>);"

    def citation(self, keys: list[str]) -> str:
        """Numbers in brackets, each a link to its work."""
        links = ", ".join(f"#link(<ref-{key}>)[{self.number_of(key)}]" for key in keys)
        return rf"\[{links}\]"

    def small_picture(self, picture: Picture, words: str) -> str:
        """A picture within a line."""
        path = self.picture_file(picture, "picture")
        quoted = escaping.typst_string(words)
        return f"#box(report-image({escaping.typst_string(path)}, {quoted}));" if path else escaping.typst(words)

    def bibliography(self) -> str:
        """The works, numbered as the citation file lists them."""
        return "\n".join(
            f"#report-work({number})[{self.inlines(reference_tree(reference))}] <ref-{reference.key}>"
            for number, reference in enumerate(self.document.citation.references, 1)
        )


def _cell(cell: Cell, column: int, layout: Layout, *, header: bool) -> str:
    """A cell; a header that is wider than its column becomes lines."""
    limit = layout.header_width[column] if header and cell.columns == 1 and not layout.shares[column] else 0
    if limit and len(cell.text) > limit and all(run.style in ("", "bold") for run in cell.runs):
        style = cell.runs[0].style
        lines = [escape_runs(Cell(runs=[Run(line, style)]), _STYLES, escaping.typst) for line in wrap_header(cell.text, limit)]
        text = "#linebreak();".join(lines)
    else:
        text = escape_runs(cell, _STYLES, escaping.typst)
    options = [f"colspan: {cell.columns}"] * (cell.columns > 1) + [f"rowspan: {cell.rows}"] * (cell.rows > 1)
    if cell.columns > 1:
        options.append("align: center" if header else "align: left")
    return f"table.cell({', '.join(options)})[{text}]" if options else f"[{text}]"


def table_call(table: Table, layout: Layout) -> str:
    """A table with rules above, below its header and at its end, shrunk should it still be wider than the line."""
    head: list[str] = []
    body: list[str] = []
    blanks = table.blanks()
    for index, row in enumerate(table.rows):
        header = index < table.head
        cells = {column: _cell(cell, column, layout, header=header) for column, cell in row}
        cells |= dict.fromkeys(blanks[index], "[]")
        written = [cells[column] for column in sorted(cells)]
        if header and index < table.head - 1:
            written += [
                f"table.hline(start: {column}, end: {column + cell.columns}, stroke: 0.4pt)"
                for column, cell in row
                if cell.columns > 1 and cell.text
            ]
        (head if header else body).append(", ".join(written))
    columns = ", ".join(f"{share:.3f}fr" if share else "auto" for share in layout.shares)
    align = ", ".join("right" if numeric else "left" for numeric in table.numeric_columns())
    lines = [
        f"columns: ({columns},)",
        f"align: (x, y) => ({align},).at(x) + (if y < {table.head} {{ bottom }} else {{ top }})",
        "table.hline(stroke: 0.9pt)",
    ]
    if head:
        lines.append("table.header(" + ",\n".join([*head, "table.hline(stroke: 0.5pt)"]) + ")")
    lines += [*body, "table.hline(stroke: 0.9pt)"]
    fixed = "false" if any(layout.shares) or layout.long else "true"
    return f"#report-table({layout.size:g}pt, {fixed},\n" + ",\n".join(lines) + ")"
