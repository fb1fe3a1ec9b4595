"""Writes a document as HTML, LaTeX or Typst: pandoc writes, after what a format needs of its own is put into the tree."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path
from typing import Any

from vitfp8.reporting.breaking import BREAK, breakable
from vitfp8.reporting.document import Document
from vitfp8.reporting.fonts import FALLBACK_FONT, fonts_folder, needs_fallback_font, special_characters
from vitfp8.reporting.pandoc import Node, attributes, literal, plain_text, transform, write_document
from vitfp8.reporting.pictures import MIME_TYPES
from vitfp8.reporting.tables import fit, height_in_lines

TEMPLATES = Path(__file__).parent / "templates"
#: Picture formats that each format takes, the best first.
_PICTURES = {"html": ("svg", "png", "jpg"), "latex": ("pdf", "png", "jpg"), "typst": ("pdf", "svg", "png", "jpg")}
_OPTIONS = {
    "html": ("-t", "html5", "--template", str(TEMPLATES / "report.html"), "--mathml", "--shift-heading-level-by=1"),
    "latex": ("-t", "latex-smart", "--template", str(TEMPLATES / "report.tex")),
    "typst": ("-t", "typst-smart", "--template", str(TEMPLATES / "report.typ")),
}
#: A table of so many lines is not broken across pages, and of a longer one at least so many stand before the break.
_KEPT_TOGETHER = 16
#: A figure of this height moves to the top of a page, and text after it goes first (points).
_TALL = 300.0
#: From so many headings on, HTML has a table of contents.
_LEAST_CONTENTS = 4


def write(document: Document, target: str, folder: str = "report_files") -> tuple[str, dict[str, bytes]]:
    """Write a document.

    Args:
        document: what to write.
        target: ``html``, ``latex`` or ``typst``.
        folder: where pictures lie beside the text, relative to it.

    Returns:
        The text, and the files that it includes by their path relative to it.
    """
    return _Writer(document, target, folder).write()


class _Writer:
    """The changes that one format needs in a document's tree."""

    def __init__(self, document: Document, target: str, folder: str) -> None:
        self.document, self.target, self.folder = document, target, folder
        self.files: dict[str, bytes] = {}

    def write(self) -> tuple[str, dict[str, bytes]]:
        """Return the text and its files."""
        found = self.document.blocks
        blocks = [
            node for block, after in zip(found, [*found[1:], {"t": "Null"}], strict=True) for node in self._block(block, after)
        ]
        blocks = transform(blocks, self._inline)
        if self.document.citation.references:
            blocks.append({"t": "Header", "c": [1, attributes("references"), literal("References")]})
            blocks.append({"t": "Div", "c": [attributes("refs"), []]})
        options = [*_OPTIONS[self.target], "--citeproc"]
        if self.target == "html" and len(self.document.headings) >= _LEAST_CONTENTS:
            options += ["--toc", "--toc-depth=3"]
        text = write_document(self._meta(), blocks, *options)
        if self.target == "html":
            return text.replace(BREAK, "<wbr>"), {}
        if self.target == "latex":
            text = self._with_fonts(text)
        return text, self.files

    def _raw(self, text: str, kind: str = "RawBlock") -> Node:
        """Return a node that pandoc passes through to this format."""
        return {"t": kind, "c": ["html" if self.target == "html" else self.target, text]}

    def _meta(self) -> Node:
        """Return title, authors, date and bibliography for pandoc's template."""
        citation, document = self.document.citation, self.document
        authors = [{"name": author.name, "affiliation": author.affiliation, "orcid": author.orcid} for author in citation.authors]
        heading = plain_text(document.subtitle)
        values = {
            "title": citation.title, "pagetitle": f"{heading} – {citation.title}" if heading else citation.title,
            "by": authors, "abstract": citation.abstract, "version": citation.version, "date": document.date,
            "url": citation.url, "references": [dict(work) for work in citation.references],
        }  # fmt: skip
        meta = {key: _meta_value(value) for key, value in values.items() if value}
        meta["subtitle"] = {"t": "MetaInlines", "c": transform(document.subtitle, self._inline)}
        meta["link-citations"] = {"t": "MetaBool", "c": True}
        everything = {"citationId": "*", "citationPrefix": [], "citationSuffix": [], "citationMode": {"t": "NormalCitation"}}
        cited = {**everything, "citationNoteNum": 0, "citationHash": 0}
        meta["nocite"] = {"t": "MetaInlines", "c": [{"t": "Cite", "c": [[cited], literal("@*")]}]}
        if self.target == "html":
            style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
            meta["style"] = {"t": "MetaInlines", "c": [self._raw(style, "RawInline")]}
        if self.target == "typst":
            names = ", ".join(typst_string(author.name) for author in citation.authors)
            meta["author-strings"] = {"t": "MetaInlines", "c": [self._raw(f"({names},)", "RawInline")]}
        return meta

    def _block(self, node: Node, after: Node) -> list[Node]:
        """Return a block of the document, which another follows, as this format needs it."""
        kind = node["t"]
        if kind in ("Figure", "Table") and self.target == "html" and node["c"][1][1]:
            name = {"t": "Span", "c": [attributes("", "number"), literal(f"{self.document.names[node['c'][0][0]]}.")]}
            caption = [name, {"t": "Space"}, *node["c"][1][1][0]["c"]]
            node = {"t": kind, "c": [node["c"][0], [None, [{"t": "Plain", "c": caption}]], *node["c"][2:]]}
        if kind == "Table":
            return self._table(node, noted=after["t"] == "Div")
        if kind == "Para" and [part["t"] for part in node["c"]] == ["Strong"] and self.target != "html":
            # A line in bold is a heading in all but name, and does not end a page.
            if self.target == "latex":
                return [self._raw(r"\Needspace{5\baselineskip}"), node]
            return [self._raw("#block(sticky: true)["), node, self._raw("]")]
        if kind == "Figure" and not node["c"][1][1]:
            return self._centred([{"t": "Para", "c": block["c"]} for block in node["c"][2]])
        if kind == "Figure" and self.target != "html":
            return self._figure(node)
        if kind == "Div" and self.target != "html":
            start, end = (r"\nopagebreak{\footnotesize\raggedright", r"\par}"), ("#note[", "]")
            around = start if self.target == "latex" else end
            return [self._raw(around[0]), *node["c"][1], self._raw(around[1])]
        return [node]

    def _figure(self, node: Node) -> list[Node]:
        """Return a figure that stands where it is; one that takes most of a page lets the text after it go first."""
        images = [image for part in node["c"][2] for image in part["c"] if image["t"] == "Image"]
        pictures = [self.document.pictures[int(image["c"][2][0].removeprefix("picture:"))] for image in images]
        if sum(picture.printed_height() for picture in pictures) < _TALL:
            return [node]
        around = {
            "latex": (r"\begingroup\floatplacement{figure}{!tp}", r"\endgroup"),
            "typst": ("#[#set figure(placement: auto)", "]"),
        }[self.target]
        return [self._raw(around[0]), node, self._raw(around[1])]

    def _centred(self, blocks: list[Node]) -> list[Node]:
        if self.target == "html":
            return [{"t": "Div", "c": [attributes("", "picture"), blocks]}]
        around = {"latex": ("\\begin{center}", "\\end{center}"), "typst": ("#align(center)[", "]")}[self.target]
        return [self._raw(around[0]), *blocks, self._raw(around[1])]

    def _table(self, node: Node, noted: bool) -> list[Node]:
        """Return a table, on one page with its notes where it is short enough; where paper is too narrow, in several parts."""
        if self.target == "html":
            return [{"t": "Div", "c": [attributes("", "wide"), [node]]}]
        blocks: list[Node] = []
        for part in fit(node):
            lines = height_in_lines(part) + 3 * noted
            if self.target == "latex":
                blocks += [self._raw(rf"\Needspace{{{min(lines, _KEPT_TOGETHER)}\baselineskip}}"), part]
            else:
                numbering = "" if part["c"][1][1] else "numbering: none"
                breakable = "true" if lines > _KEPT_TOGETHER else "false"
                sticky = ", sticky: true" if noted and lines <= _KEPT_TOGETHER else ""
                rules = f"#set figure({numbering}); #show figure: set block(breakable: {breakable}{sticky})"
                blocks += [self._raw(f"#[{rules}"), part, self._raw("]")]
        return blocks

    def _inline(self, node: Node) -> list[Node] | None:
        """Return pictures, references and printed text as this format needs them."""
        kind, content = node["t"], node.get("c", "")
        if kind == "Image":
            return self._image(int(content[2][0].removeprefix("picture:")), content[1])
        if kind == "Figure" and content[1][1]:
            words = plain_text(content[1]).replace(BREAK, "")
            if self.target == "html":
                words = re.sub(r"^(Figure|Table) \d+\. ", "", words)
            for part in content[2]:
                for image in part["c"]:
                    if image["t"] == "Image":
                        image["c"][0][2].append(["alt", words])
            return None
        if kind == "CodeBlock" and self.target == "latex":
            table = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}"}
            lines = "".join(table.get(character, character) for character in content[1])
            return [self._raw(f"\\begin{{ReportVerbatim}}\n{lines}\n\\end{{ReportVerbatim}}")]
        if kind == "CodeBlock" and self.target == "typst":
            return [{"t": kind, "c": [content[0], breakable(content[1])]}]
        if kind == "Link" and self.target == "latex" and content[2][0][1:] in self.document.names:
            label = content[2][0][1:]
            kind_name = str(self.document.names[label]).split()[0]
            return [self._raw(rf"\hyperref[{label}]{{{kind_name}~\ref*{{{label}}}}}", "RawInline")]
        return None

    def _image(self, index: int, words: list[Node]) -> list[Node]:
        """Return a picture in the best format that this one takes, or its words."""
        picture = self.document.pictures[index]
        ending = next((ending for ending in _PICTURES[self.target] if ending in picture.formats), None)
        if ending is None:
            return words or [{"t": "Emph", "c": literal("(This picture is in no format that can be shown here.)")}]
        content = picture.formats[ending]
        if self.target == "html":
            # In an img element, an SVG runs no script and loads nothing.
            address = f"data:{MIME_TYPES[ending]};base64,{base64.b64encode(content).decode('ascii')}"
            size = {"width": f"{picture.pixels}px"} if picture.pixels else {}
            return [{"t": "Image", "c": [attributes(**size), words, [address, ""]]}]
        path = f"{self.folder}/{self._name(index)}.{ending}"
        self.files[path] = content
        return [{"t": "Image", "c": [attributes(width=f"{100 * picture.share_of_line():.1f}%"), words, [path, ""]]}]

    def _name(self, index: int) -> str:
        """Return the name of a picture's file: its figure's label."""
        for node in self.document.blocks:
            if node["t"] == "Figure":
                addresses = [image["c"][2][0] for part in node["c"][2] for image in part["c"] if image["t"] == "Image"]
                if f"picture:{index}" in addresses and node["c"][0][0]:
                    number = addresses.index(f"picture:{index}") + 1
                    return node["c"][0][0] + (f"-{number}" if len(addresses) > 1 else "")
        return f"picture-{index + 1}"

    def _with_fonts(self, text: str) -> str:
        """Return LaTeX whose preamble provides for the characters that Latin Modern may lack."""
        glyphs = "\n".join(rf"\reportglyph{{{code}}}{{{code:04x}}}" for code in special_characters(text))
        fallback = r"\let\reportfallback\reportsymbols"
        fonts = fonts_folder()
        if needs_fallback_font(text) and fonts is not None and (fonts / FALLBACK_FONT).is_file():
            self.files[f"{self.folder}/{FALLBACK_FONT}"] = (fonts / FALLBACK_FONT).read_bytes()
            fallback = rf"\newfontfamily\reportfallback[Path={self.folder}/]{{{FALLBACK_FONT}}}"
        return text.replace("%REPORT-FALLBACK%", fallback).replace("%REPORT-GLYPHS%", glyphs)


def _meta_value(value: Any) -> Node:
    """Return a value as pandoc's metadata; texts are literal."""
    if isinstance(value, list):
        return {"t": "MetaList", "c": [_meta_value(item) for item in value]}
    if isinstance(value, dict):
        return {"t": "MetaMap", "c": {key: _meta_value(item) for key, item in value.items() if item}}
    return {"t": "MetaInlines", "c": literal(str(value))}


def typst_string(text: str) -> str:
    """Return a Typst string literal, quotes included: nothing in it is mark-up."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def external_resources(page: str) -> list[str]:
    """Return what a page would load from elsewhere: every address that is neither a plain link nor inside the page itself."""
    loads = re.findall(r"<(?!a[\s>])[a-zA-Z][^>]*?\s(?:src|href|srcset|data|poster|action)\s*=\s*[\"']?([^\"'\s>]+)", page)
    styles = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", page)
    return [html.unescape(address) for address in loads + styles if not address.startswith(("data:", "#"))]
