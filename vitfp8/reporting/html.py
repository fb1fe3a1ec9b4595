"""The HTML of a report: one file that needs no other and no network."""

from __future__ import annotations

import base64
import html
import re

import bleach
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup

from vitfp8.reporting import escaping
from vitfp8.reporting.citation import reference_tree
from vitfp8.reporting.document import Float, Picture, Printed, TableView
from vitfp8.reporting.prose import Node, transform
from vitfp8.reporting.writer import Writer

_TYPES = {"svg": "image/svg+xml", "png": "image/png", "jpg": "image/jpeg"}
_TABLE_TAGS = frozenset(
    {"table", "thead", "tbody", "tfoot", "tr", "th", "td", "colgroup", "col", "p", "div", "ul", "ol", "li", "br", "a", "span"}
    | {"wbr", "b", "strong", "i", "em", "code", "sup", "sub", "abbr", "small"}
)
_TABLE_ATTRIBUTES = {
    "*": ["class", "style", "title"],
    "a": ["href"],
    "th": ["colspan", "rowspan", "scope"],
    "td": ["colspan", "rowspan"],
}
_TABLE_STYLES = [
    "color",
    "background-color",
    "font-weight",
    "font-style",
    "text-align",
    "vertical-align",
    "white-space",
    "padding-left",
]


class HtmlWriter(Writer):
    """Writes HTML 5 with pictures inside it and mathematics as MathML."""

    target = "html5"
    options = ("--mathml",)
    pictures = ("svg", "png", "jpg")

    def prose(self, blocks: list[Node], source: object = None) -> str:
        """Blocks of prose; the page's title is the only heading of the first level."""

        def action(node: Node) -> list[Node] | None:
            """A heading one level down."""
            if node["t"] == "Header":
                return [{"t": "Header", "c": [min(6, node["c"][0] + 1), *node["c"][1:]]}]
            return None

        return super().prose(transform(blocks, action), source)  # type: ignore[arg-type]

    def inline_code(self, text: str) -> str:
        """Code within a line; paths and digests break after their separators."""
        return f"<code>{_breakable(text)}</code>"

    def word(self, text: str) -> str:
        """A word with places to break."""
        return _breakable(text)

    def printed(self, block: Printed) -> str:
        """Text in a box; long lines wrap."""
        return f'<pre class="{"code" if block.code else "printed"}"><code>{html.escape(block.text)}</code></pre>'

    def float(self, block: Float) -> str:
        """A ``figure`` element: pictures above their caption, tables below it."""
        parts = []
        for item in block.items:
            if isinstance(item, TableView):
                note = f'<div class="note">{self.note(item)}</div>' if item.note else ""
                parts.append(f'<div class="wide">{self._table(item)}</div>{note}')
            else:
                parts.append(self._image(item, self.alternative(block)))
        name = f'<span class="number">{block.name}.</span> ' if block.number else ""
        caption = f"<figcaption>{name}{self.inlines(block.caption)}</figcaption>" if block.caption else ""
        kind = "table" if isinstance(block.items[0], TableView) else "picture"
        inside = [caption, *parts] if kind == "table" else [*parts, caption]
        anchor = f' id="{block.label}"' if block.label else ""
        return f'<figure class="{kind}"{anchor}>' + "\n".join(part for part in inside if part) + "</figure>"

    def _image(self, picture: Picture, alternative: str) -> str:
        """A picture as an element that holds its content. In an ``img``, an SVG runs no script and loads nothing."""
        for ending in self.pictures:
            if ending in picture.formats:
                content = base64.b64encode(picture.formats[ending]).decode("ascii")
                width = f' width="{picture.width}"' if picture.width else ""
                return f'<img src="data:{_TYPES[ending]};base64,{content}" alt="{html.escape(alternative)}"{width}>'
        return "<p><em>(This picture exists in PDF only.)</em></p>"

    def _table(self, view: TableView) -> str:
        """The table as it was shown, with its columns of numbers marked and all that could act taken out."""
        numeric = view.table.numeric_columns()
        rows = [row for row in view.tag.find_all("tr") if row.find_parent("table") is view.tag]
        for line, row in zip(rows, view.table.rows, strict=True):
            tags = [item for item in line.find_all(["td", "th"]) if item.find_parent("tr") is line]
            for tag, (column, cell) in zip(tags, row, strict=True):
                words = "short" if len(cell.text) < escaping.LONGEST_WORD else "long"
                added = "group" if cell.columns > 1 else "number" if numeric[column] else words
                tag["class"] = " ".join(filter(None, [*tag.get_attribute_list("class"), added]))
        if (caption := view.tag.find("caption")) is not None:
            caption.decompose()
        for words in view.tag.find_all(string=True):
            longest = escaping.LONGEST_NAME if words.find_parent("thead") is not None else escaping.LONGEST_WORD
            if any(len(word) >= longest for word in words.split()):
                words.replace_with(BeautifulSoup(_breakable(words, longest), "html.parser"))
        return bleach.clean(
            str(view.tag),
            tags=_TABLE_TAGS,
            attributes=_TABLE_ATTRIBUTES,
            protocols=["http", "https", "mailto"],
            css_sanitizer=CSSSanitizer(allowed_css_properties=_TABLE_STYLES),
            strip=True,
        )

    def reference(self, label: str, float_: Float) -> str:
        """A link to the float."""
        return f'<a href="#{label}">{float_.name.replace(" ", "&nbsp;")}</a>'

    def citation(self, keys: list[str]) -> str:
        """Numbers in brackets, each a link to its work."""
        return "[" + ", ".join(f'<a href="#ref-{key}">{self.number_of(key)}</a>' for key in keys) + "]"

    def small_picture(self, picture: Picture, words: str) -> str:
        """A picture within a line."""
        return self._image(picture, words)

    def bibliography(self) -> str:
        """An ordered list."""
        works = [
            f'<li id="ref-{reference.key}">{self.inlines(reference_tree(reference))}</li>'
            for reference in self.document.citation.references
        ]
        return '<ol class="references">\n' + "\n".join(works) + "\n</ol>" if works else ""

    def contents(self) -> list[tuple[int, str, str]]:
        """Level, anchor and words of the headings that a table of contents shows; none for a short report."""
        top = [heading for heading in self.document.headings if heading[0] <= 2]
        return [(level, anchor, html.escape(words)) for level, anchor, words in top] if len(top) >= 4 else []


def _breakable(text: str, longest: int = escaping.LONGEST_WORD) -> str:
    """Text with places to break in its long words, escaped."""
    return " ".join("<wbr>".join(html.escape(piece) for piece in escaping.word_pieces(word, longest)) for word in text.split(" "))


def external_resources(page: str) -> list[str]:
    """What a page would load from elsewhere: every address that is no plain hyperlink and not inside the page itself.

    Args:
        page: HTML.
    """
    loads = re.findall(r"<(?!a[\s>])[a-zA-Z][^>]*?\s(?:src|href|srcset|data|poster|action)\s*=\s*[\"']?([^\"'\s>]+)", page)
    styles = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", page)
    return [address for address in loads + styles if not address.startswith(("data:", "#"))]
