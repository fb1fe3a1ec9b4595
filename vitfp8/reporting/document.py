"""What an executed notebook says, as a sequence of blocks that any format can write.

A cell names its figure or table in its metadata, or an output in its own::

    "vitfp8": {"caption": "Validation accuracy by epoch.", "label": "fig-accuracy"}

Captioned figures and tables are numbered in the order in which they stand, each kind by itself. A captioned cell that shows
neither keeps its sentences and loses caption and number.
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bs4.element import Tag

from vitfp8.errors import InputError, suggest
from vitfp8.reporting.citation import Citation
from vitfp8.reporting.escaping import terminal_text
from vitfp8.reporting.prose import Node, clean, html_tree, markdown_tree, plain_text, transform, write_tree
from vitfp8.reporting.tables import Table, find_tables, read_table

#: Picture formats: file ending and how the content begins. What does not begin so is not what it says.
_PICTURES = {
    "application/pdf": ("pdf", (b"%PDF-",)),
    "image/svg+xml": ("svg", (b"<svg", b"<?xml", b"<!DOCTYPE svg", b"<!--")),
    "image/png": ("png", (b"\x89PNG\r\n\x1a\n",)),
    "image/jpeg": ("jpg", (b"\xff\xd8\xff",)),
}
_LABEL = re.compile(r"(fig|tab)-[A-Za-z0-9][A-Za-z0-9_-]*")
#: What a kind of float is called; the words that a reference reads.
NAMES = {"fig": "Figure", "tab": "Table"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture in the formats that its output holds: file ending to content; width in CSS pixels where it is known."""

    formats: Mapping[str, bytes]
    width: int | None = None
    alternative: str = ""


@dataclass(frozen=True, kw_only=True)
class TableView:
    """A table as it was shown (HTML, parsed) and as it was read, with the words that followed it in the same output."""

    tag: Tag
    table: Table
    note: list[Node] = field(default_factory=list)


@dataclass(kw_only=True)
class Prose:
    """Cleaned blocks of pandoc's tree; references are still citations in it."""

    blocks: list[Node]
    attachments: Mapping[str, Picture] = field(default_factory=dict)


@dataclass(kw_only=True)
class Printed:
    """Text as a program printed it, or (``code``) as it was typed."""

    text: str
    code: bool = False


@dataclass(kw_only=True)
class Float:
    """Figures or tables under one caption; without caption there is no number."""

    kind: str
    items: list[Picture | TableView]
    caption: list[Node] = field(default_factory=list)
    label: str = ""
    number: int | None = None

    @property
    def name(self) -> str:
        """``Figure 1``; empty without a number."""
        return f"{NAMES[self.kind]} {self.number}" if self.number else ""


Block = Prose | Printed | Float


@dataclass(kw_only=True)
class Document:
    """A notebook, read.

    Attributes:
        blocks: in reading order.
        labels: per label, its float; None where the figure or table had no data.
        headings: of each heading its level, anchor and words.
        subtitle: the notebook's own title (its first heading), as inline nodes.
        citation: title, authors and bibliography.
        date: when the notebook was executed, ``2026-01-31``; empty if it does not say.
    """

    blocks: list[Block]
    labels: dict[str, Float | None]
    headings: list[tuple[int, str, str]]
    subtitle: list[Node]
    citation: Citation
    date: str = ""


def read_document(notebook: Mapping[str, Any], citation: Citation, *, code: bool = False, folder: Path | None = None) -> Document:
    """Read an executed notebook (cells that a tag removes are gone already).

    Args:
        notebook: nbformat 4.
        citation: title, authors and bibliography.
        code: show the cells' code too.
        folder: the notebook's; pictures that a text names are taken from inside it only.

    Raises:
        InputError: a label is malformed, used twice, or referred to and unknown.
    """
    labels: dict[str, Float | None] = {}
    blocks: list[Block] = []
    for index, cell in enumerate(notebook["cells"]):
        where = f"cell {index + 1} of the notebook"
        if cell["cell_type"] == "markdown":
            attachments = {name: _picture(data) for name, data in cell.get("attachments", {}).items()}
            found = {name: picture for name, picture in attachments.items() if picture is not None}
            blocks += _prose(clean(markdown_tree(cell["source"])), found)
        elif cell["cell_type"] == "code":
            if code and cell["source"].strip() and not cell["metadata"].get("transient", {}).get("remove_source"):
                blocks.append(Printed(text=cell["source"], code=True))
            blocks += _code_cell(cell, labels, where)
    counts = dict.fromkeys(NAMES, 0)
    for block in blocks:
        if isinstance(block, Float) and block.caption:
            counts[block.kind] += 1
            block.number = counts[block.kind]
    _embed_pictures(blocks, folder)
    subtitle = _take_subtitle(blocks)
    headings = _anchor_headings(blocks)
    document = Document(
        blocks=blocks, labels=labels, headings=headings, subtitle=subtitle, citation=citation, date=_date(notebook)
    )
    _check_references(document)
    return document


def _date(notebook: Mapping[str, Any]) -> str:
    """The day on which papermill finished the notebook."""
    papermill = notebook.get("metadata", {}).get("papermill", {})
    date = str(papermill.get("end_time") or papermill.get("start_time") or "")[:10]
    return date if re.fullmatch(r"\d{4}-\d\d-\d\d", date) else ""


def _code_cell(cell: Mapping[str, Any], labels: dict[str, Float | None], where: str) -> list[Block]:
    """The blocks of a cell's outputs; its floats are entered under their labels."""
    about = _about(cell.get("metadata", {}), where)
    blocks: list[Block] = []
    shared: Float | None = None
    for output in _joined(cell.get("outputs", [])):
        own = _about(output.get("metadata", {}), where)
        first: Float | None = None
        for piece in _pieces(output):
            if isinstance(piece, Prose | Printed):
                blocks.append(piece)
                continue
            owner = first if own else shared
            if owner is not None and (own or about):
                owner.items.append(piece)
                continue
            said = own or about
            caption = said.get("caption", "") or (piece.table.caption if isinstance(piece, TableView) else "")
            label = said.get("label", "")
            kind = label[:3] or ("fig" if isinstance(piece, Picture) else "tab")
            float_ = Float(kind=kind, items=[piece], caption=_inlines(caption), label=label)
            blocks.append(float_)
            if label:
                _enter(labels, label, float_, where)
            if own:
                first = float_
            elif about:
                shared = float_
        if own.get("label") and first is None:
            _enter(labels, own["label"], None, where)
    if about.get("label") and shared is None:
        _enter(labels, about["label"], None, where)
    return blocks


def _about(metadata: Mapping[str, Any], where: str) -> dict[str, str]:
    """What metadata say of a figure or table: caption and label, checked."""
    about = metadata.get("vitfp8")
    if not isinstance(about, Mapping) or not ("caption" in about or "label" in about):
        return {}
    caption, label = about.get("caption", ""), about.get("label", "")
    if not isinstance(caption, str) or not isinstance(label, str):
        raise InputError(f"{where}: caption and label must be texts")
    if label and _LABEL.fullmatch(label) is None:
        raise InputError(f"{where}: label {label[:60]!r} is not one: fig-NAME for a figure, tab-NAME for a table")
    if label and not caption.strip():
        raise InputError(f"{where}: label {label!r} has no caption, and without one there is no number to refer to")
    return {"caption": caption, "label": label}


def _enter(labels: dict[str, Float | None], label: str, float_: Float | None, where: str) -> None:
    """Put a label on record; each only once."""
    if label in labels:
        raise InputError(f"{where}: label {label!r} is used twice; each figure and table needs its own")
    labels[label] = float_


def _joined(outputs: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Outputs, with what was printed to one stream in a row as one output."""
    waiting: dict[str, Any] | None = None
    for output in outputs:
        if output["output_type"] == "stream":
            if waiting is not None and waiting["name"] == output["name"]:
                waiting["text"] += output["text"]
                continue
            if waiting is not None:
                yield waiting
            waiting = {**output}
            continue
        if waiting is not None:
            yield waiting
            waiting = None
        yield output
    if waiting is not None:
        yield waiting


def _pieces(output: Mapping[str, Any]) -> Iterator[Prose | Printed | Picture | TableView]:
    """What one output shows, in the richest form that every format can carry."""
    if output["output_type"] == "stream":
        yield from _printed(output["text"])
        return
    if output["output_type"] == "error":
        yield from _printed("\n".join(output.get("traceback", [])) or f"{output.get('ename')}: {output.get('evalue')}")
        return
    data = output.get("data", {})
    if "text/markdown" in data:
        for block in _prose(clean(markdown_tree(_text(data["text/markdown"])))):
            if isinstance(block, Float):
                yield from block.items
            elif isinstance(block, Prose | Printed):
                yield block
        return
    picture = _picture(data, output.get("metadata", {}))
    if picture is not None:
        yield picture
    elif any(name in data for name in _PICTURES):
        yield Prose(blocks=clean(markdown_tree("*(A picture stood here; its content is damaged.)*")))
    elif "text/html" in data:
        yield from _html_pieces(_text(data["text/html"]))
    elif "text/latex" in data and "text/plain" not in data:
        yield Prose(blocks=clean(markdown_tree(_text(data["text/latex"]))))
    else:
        yield from _printed(_text(data.get("text/plain", "")))


def _text(value: object) -> str:
    """A MIME value as text: nbformat allows a list of lines."""
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _printed(text: str) -> Iterator[Printed]:
    """Printed text, if any is left of it."""
    text = "\n".join(line.rstrip() for line in terminal_text(_text(text)).split("\n")).strip("\n")
    if text:
        yield Printed(text=text)


def _picture(data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> Picture | None:
    """The picture of a MIME bundle, if its content is one."""
    formats: dict[str, bytes] = {}
    for name, (ending, beginnings) in _PICTURES.items():
        if name not in data:
            continue
        text = _text(data[name])
        try:
            if ending == "svg" and "<" in text:
                content = text.encode("utf-8", "replace")
            else:
                content = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            continue
        if content.lstrip().startswith(beginnings):
            formats[ending] = content
    if not formats:
        return None
    width = (metadata or {}).get("image/png", {})
    pixels = width.get("width") if isinstance(width, Mapping) else None
    return Picture(formats=formats, width=pixels if isinstance(pixels, int) and 0 < pixels < 20_000 else None)


def _html_pieces(html: str) -> Iterator[Prose | Printed | TableView]:
    """Tables of an HTML output, and the words around them as prose."""
    soup, tags = find_tables(html)
    for number, tag in enumerate(tags):
        tag.replace_with(f"\x02{number}\x02")
    words = [clean(html_tree(part)) if part.strip() else [] for part in re.split(r"\x02\d+\x02", str(soup))]
    if plain_text(words[0]):
        yield Prose(blocks=words[0])
    for tag, after in zip(tags, words[1:], strict=True):
        table, note = read_table(tag), after if plain_text(after) else []
        if table is not None:
            yield TableView(tag=tag, table=table, note=note)
        elif note:
            yield Prose(blocks=note)


def _inlines(caption: str) -> list[Node]:
    """A caption's Markdown as one line of inline nodes."""
    inlines: list[Node] = []
    for block in clean(markdown_tree(" ".join(caption.split()))):
        if block["t"] in ("Para", "Plain"):
            inlines += [{"t": "Space"}] * bool(inlines) + block["c"]
        else:
            inlines.append({"t": "Str", "c": plain_text([block])})
    return inlines


def _prose(tree: list[Node], attachments: Mapping[str, Picture] | None = None) -> list[Block]:
    """A tree as blocks: its tables and code, if they stand alone, are set like every other table and printed text."""
    blocks: list[Block] = []
    for node in tree:
        if node["t"] == "Table":
            _, (tag,) = find_tables(write_tree([node], "html5"))
            table = read_table(tag)
            if table is not None:
                view = TableView(tag=tag, table=table)
                caption = node["c"][1][1]
                inlines = caption[0]["c"] if caption and caption[0]["t"] in ("Plain", "Para") else []
                blocks.append(Float(kind="tab", items=[view], caption=inlines))
        elif node["t"] == "CodeBlock":
            blocks.append(Printed(text=node["c"][1], code=True))
        elif blocks and isinstance(blocks[-1], Prose):
            blocks[-1].blocks.append(node)
        else:
            blocks.append(Prose(blocks=[node], attachments=attachments or {}))
    return blocks


def _embed_pictures(blocks: list[Block], folder: Path | None) -> None:
    """Find the pictures that prose names: attachments, and files inside the notebook's folder. Others become their words."""
    for block in blocks:
        if not isinstance(block, Prose):
            continue
        known = dict(block.attachments)

        def action(node: Node, known: dict[str, Picture] = known) -> list[Node] | None:
            """The picture that a file or attachment holds, else its words."""
            if node["t"] != "Image":
                return None
            address = urllib.parse.unquote(node["c"][2][0])
            name = address.removeprefix("attachment:")
            if name not in known and folder is not None and not urllib.parse.urlsplit(address).scheme:
                picture = _picture_file(folder, address)
                if picture is not None:
                    known[name] = picture
            if name in known:
                return [{"t": "Image", "c": [["", [], []], node["c"][1], [name, ""]]}]
            return node["c"][1]

        block.blocks = transform(block.blocks, action)
        block.attachments = known


def _picture_file(folder: Path, address: str) -> Picture | None:
    """A picture in a file, if the file lies inside the folder."""
    try:
        path = (folder / address).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        content = path.read_bytes()
    except (OSError, ValueError):
        return None
    for ending, beginnings in _PICTURES.values():
        if path.suffix.lower().lstrip(".") in (ending, "jpeg") and content.startswith(beginnings):
            return Picture(formats={ending: content})
    return None


def _take_subtitle(blocks: list[Block]) -> list[Node]:
    """Take the notebook's title, its first heading, off the text, and raise the other headings if it stood above them."""
    first = blocks[0] if blocks else None
    if not isinstance(first, Prose) or first.blocks[0]["t"] != "Header" or first.blocks[0]["c"][0] != 1:
        return []
    title = first.blocks.pop(0)["c"][2]
    headers = [node for block in blocks if isinstance(block, Prose) for node in block.blocks if node["t"] == "Header"]
    if all(node["c"][0] > 1 for node in headers):
        for node in headers:
            node["c"][0] -= 1
    return title


def _anchor_headings(blocks: list[Block]) -> list[tuple[int, str, str]]:
    """Give each heading an anchor of its own, and links to headings (Jupyter's ``#Words-of-the-heading``) the right one."""
    headings: list[tuple[int, str, str]] = []
    prose = [block for block in blocks if isinstance(block, Prose)]
    for block in prose:
        for node in block.blocks:
            if node["t"] == "Header":
                words = plain_text(node["c"][2])
                base = f"sec-{_slug(words)}"
                taken = {anchor for _, anchor, _ in headings}
                anchor = base if base not in taken else f"{base}-{len(headings)}"
                node["c"][1] = [anchor, [], []]
                headings.append((node["c"][0], anchor, words))
    known = {anchor for _, anchor, _ in headings}

    def action(node: Node) -> list[Node] | None:
        """The link with the anchor that its heading got, else its words."""
        if node["t"] != "Link" or not node["c"][2][0].startswith("#"):
            return None
        anchor = f"sec-{_slug(urllib.parse.unquote(node['c'][2][0]))}"
        return [{"t": "Link", "c": [*node["c"][:2], [f"#{anchor}", ""]]}] if anchor in known else node["c"][1]

    for block in prose:
        block.blocks = transform(block.blocks, action)
    return headings


def _slug(words: str) -> str:
    """Words as an anchor: lower case ASCII, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "part"


def _check_references(document: Document) -> None:
    """Refuse a reference to a figure or table that the notebook does not have."""

    def action(node: Node) -> list[Node] | None:
        """Refuse a key that looks like a label and is none."""
        for citation in node["c"][0] if node["t"] == "Cite" else ():
            key = citation["citationId"]
            if _LABEL.fullmatch(key) and key not in document.labels:
                raise InputError(
                    f"the text refers to @{key}, and no figure or table has this label; "
                    + (suggest(key, document.labels) if document.labels else "there are no labels")
                )
        return None

    for block in document.blocks:
        transform(block.blocks if isinstance(block, Prose) else block.caption if isinstance(block, Float) else [], action)
