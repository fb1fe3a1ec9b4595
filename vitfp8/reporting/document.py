"""An executed notebook as one document in pandoc's tree, the same for every format.

A cell captions its figure or table in its metadata, an output in its own::

    "vitfp8": {"caption": "Validation accuracy by epoch.", "label": "fig-accuracy"}

Captioned figures and tables are numbered in reading order, each kind by itself; ``@fig-accuracy`` in a text refers to one. A
captioned cell that shows neither keeps its sentences and loses caption and number. Everything in a notebook is data: `clean`
takes out what could act in any format.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfp8.analysis.table import TABLE_MIME
from vitfp8.errors import InputError, suggest
from vitfp8.reporting.breaking import LONGEST_NAME, breakable, terminal_text, visible
from vitfp8.reporting.citation import Citation, safe_url
from vitfp8.reporting.pandoc import Node, attributes, formula_is_safe, literal, plain_text, read_html, read_markdown, transform
from vitfp8.reporting.pictures import Picture, has_picture, picture_in, picture_of
from vitfp8.reporting.tables import table_of_data, tidy_table

_LABEL = re.compile(r"(fig|tab)-[A-Za-z0-9][A-Za-z0-9_-]*")
_KINDS = {"Figure": "Figure", "Table": "Table"}
_WITHOUT_DATA = {"fig": "a figure without data", "tab": "a table without data"}


@dataclass(kw_only=True)
class Document:
    """A notebook as a document.

    Attributes:
        blocks: nodes in reading order. A picture's address is ``picture:`` and its index in ``pictures``.
        names: label → ``Figure 1``; None where the figure or table has no data.
        headings: level, anchor and words of each heading.
        subtitle: the notebook's title (its first heading), as inline nodes.
        date: day on which the notebook was executed, ``2026-01-31``, or empty.
    """

    citation: Citation
    folder: Path | None = None
    date: str = ""
    blocks: list[Node] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    names: dict[str, str | None] = field(default_factory=dict)
    headings: list[tuple[int, str, str]] = field(default_factory=list)
    subtitle: list[Node] = field(default_factory=list)

    def add_picture(self, picture: Picture, words: list[Node] | None = None) -> Node:
        """Return the node of a picture that is now part of the document."""
        self.pictures.append(picture)
        return {"t": "Image", "c": [attributes(), words or [], [f"picture:{len(self.pictures) - 1}", ""]]}


def read_document(notebook: Mapping[str, Any], citation: Citation, *, code: bool = False, folder: Path | None = None) -> Document:
    """Read an executed notebook whose tagged cells are already removed.

    Args:
        notebook: nbformat 4.
        citation: title, authors and bibliography.
        code: show the cells' code too.
        folder: the notebook's; pictures that a text names are read from inside it only.

    Raises:
        InputError: a label is malformed, used twice, or referred to but unknown.
    """
    document = Document(citation=citation, folder=folder, date=_date(notebook))
    for index, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "markdown":
            attached = {name: picture_of(data) for name, data in cell.get("attachments", {}).items()}
            document.blocks += clean(read_markdown(cell["source"]), document, attached)
        elif cell["cell_type"] == "code":
            if code and cell["source"].strip() and not cell["metadata"].get("transient", {}).get("remove_source"):
                document.blocks.append({"t": "CodeBlock", "c": [attributes("", "code"), visible(cell["source"])]})
            _add_outputs(document, cell, f"cell {index + 1} of the notebook")
    _number(document)
    document.blocks = transform(document.blocks, lambda node: _resolved(node, document))
    _take_subtitle(document)
    _anchor_headings(document)
    document.blocks = transform(document.blocks, _broken)
    return document


def _date(notebook: Mapping[str, Any]) -> str:
    """Return the day on which papermill finished the notebook."""
    papermill = notebook.get("metadata", {}).get("papermill", {})
    date = str(papermill.get("end_time") or papermill.get("start_time") or "")[:10]
    return date if re.fullmatch(r"\d{4}-\d\d-\d\d", date) else ""


def _add_outputs(document: Document, cell: Mapping[str, Any], where: str) -> None:
    """Add a cell's outputs; its first figure or table gets the caption, further pictures join the first."""
    about = _about(cell.get("metadata", {}), where)
    shared: Node | None = None
    for output in _joined(cell.get("outputs", [])):
        own = _about(output.get("metadata", {}), where)
        first: Node | None = None
        for node in _shown(output, document):
            if node["t"] not in _KINDS:
                document.blocks.append(node)
                continue
            owner = first if own else shared if about else None
            if owner is not None and owner["t"] == node["t"] == "Figure":
                owner["c"][2] += node["c"][2]
                continue
            document.blocks.append(node)
            if owner is None and (said := own or about):
                node["c"][0] = attributes(said["label"])
                node["c"][1] = [None, [{"t": "Plain", "c": _caption(said["caption"], document)}]]
                _enter(document, said["label"], where)
            first = first or node
            shared = shared or (node if not own else None)
        if own.get("label") and first is None:
            _enter(document, own["label"], where)
    if about.get("label") and shared is None:
        _enter(document, about["label"], where)


def _about(metadata: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return caption and label that metadata give a figure or table; empty where they give neither."""
    about = metadata.get("vitfp8")
    if not isinstance(about, Mapping) or not ("caption" in about or "label" in about):
        return {}
    caption, label = about.get("caption", ""), about.get("label", "")
    if not isinstance(caption, str) or not isinstance(label, str):
        raise InputError(f"{where}: caption and label must be texts")
    if label and _LABEL.fullmatch(label) is None:
        raise InputError(f"{where}: label {label[:60]!r} is malformed; write fig-NAME for a figure, tab-NAME for a table")
    if label and not caption.strip():
        raise InputError(f"{where}: label {label!r} has no caption, and without one there is no number to refer to")
    return {"caption": caption, "label": label}


def _enter(document: Document, label: str, where: str) -> None:
    """Note a label; numbers follow when all of the document is read."""
    if label and label in document.names:
        raise InputError(f"{where}: label {label!r} is used twice; each figure and table needs its own")
    if label:
        document.names[label] = None


def _joined(outputs: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield outputs, consecutive prints to one stream as one output."""
    last: dict[str, Any] | None = None
    for output in outputs:
        stream = output["output_type"] == "stream"
        if last is not None and stream and last["name"] == output["name"]:
            last["text"] += output["text"]
            continue
        if last is not None:
            yield last
        last = {**output} if stream else None
        if not stream:
            yield output
    if last is not None:
        yield last


def _shown(output: Mapping[str, Any], document: Document) -> list[Node]:
    """Return the blocks of one output, from the richest form that every format can carry."""
    if output["output_type"] == "stream":
        return _printed(output["text"])
    if output["output_type"] == "error":
        return _printed("\n".join(output.get("traceback", [])) or f"{output.get('ename')}: {output.get('evalue')}")
    data = output.get("data", {})
    told = data.get(TABLE_MIME)
    if isinstance(told, Mapping) and (table := table_of_data(told)) is not None:
        notes = told.get("notes")
        notes = notes if isinstance(notes, list) else []
        lines = [part for note in notes for part in [*literal(str(note)), {"t": "LineBreak"}]][:-1]
        below = {"t": "Div", "c": [attributes("", "note"), [{"t": "Para", "c": clean(lines, document)}]]}
        return [*clean([table], document), *([below] if lines else [])]
    if "text/markdown" in data:
        return clean(read_markdown(_text(data["text/markdown"])), document)
    if picture := picture_of(data, output.get("metadata", {})):
        return [{"t": "Figure", "c": [attributes(), [None, []], [{"t": "Plain", "c": [document.add_picture(picture)]}]]}]
    if has_picture(data):
        return [{"t": "Para", "c": [{"t": "Emph", "c": literal("(A picture stood here; its content is damaged.)")}]}]
    if "text/html" in data:
        return clean(read_html(_text(data["text/html"])), document)
    if "text/latex" in data and "text/plain" not in data:
        return clean(read_markdown(_text(data["text/latex"])), document)
    return _printed(data.get("text/plain", ""))


def _text(value: object) -> str:
    """Return a MIME value as text: nbformat allows a list of lines."""
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _printed(text: str) -> list[Node]:
    """Return printed text as a block, if anything is left of it."""
    text = terminal_text(_text(text))
    return [{"t": "CodeBlock", "c": [attributes("", "printed"), text]}] if text else []


def _caption(text: str, document: Document) -> list[Node]:
    """Return a caption's Markdown as one line of inline nodes."""
    inlines: list[Node] = []
    for block in clean(read_markdown(" ".join(text.split())), document):
        inlines += [{"t": "Space"}] * bool(inlines)
        inlines += block["c"] if block["t"] in ("Para", "Plain") else literal(plain_text([block]))
    return inlines


def clean(blocks: list[Node], document: Document, attached: Mapping[str, Picture | None] | None = None) -> list[Node]:
    """Take out of a tree what could act, and every attribute; what is refused is shown as the text that it was."""

    def action(node: Node) -> list[Node] | None:
        kind, content = node["t"], node.get("c", "")
        if kind == "Str":
            return [{"t": "Str", "c": visible(content)}]
        if kind in ("RawInline", "RawBlock"):
            text = content[1].strip()
            if text.startswith("<!--"):
                return []
            if kind == "RawInline":
                return [{"t": "LineBreak"}] if re.fullmatch(r"<br\s*/?>", text) else literal(visible(text))
            return [{"t": "Para", "c": literal(visible(text))}]
        if kind == "Math" and not formula_is_safe(content[1]):
            return [{"t": "Code", "c": [attributes(), visible(content[1])]}]
        if kind in ("Code", "CodeBlock"):
            return [{"t": kind, "c": [attributes(), visible(content[1])]}]
        if kind == "Link":
            address = safe_url(content[2][0])
            return content[1] if address is None else [{"t": "Link", "c": [attributes(), content[1], [address, ""]]}]
        if kind == "Image":
            address = urllib.parse.unquote(content[2][0])
            picture = (attached or {}).get(address.removeprefix("attachment:"))
            picture = picture or (picture_in(document.folder, address) if document.folder is not None else None)
            return content[1] if picture is None else [document.add_picture(picture, content[1])]
        if kind in ("Strikeout", "Underline", "SmallCaps"):
            return content
        if kind in ("Div", "Figure", "Span"):
            return content[-1]
        if kind == "Table":
            table = tidy_table(node)
            return [] if table is None else [table]
        return [{"t": kind, "c": [content[0], attributes(), content[2]]}] if kind == "Header" else None

    return transform(blocks, action)


def _number(document: Document) -> None:
    """Number the captioned figures and tables, each kind by itself."""
    counts = dict.fromkeys(_KINDS, 0)
    for node in document.blocks:
        if node["t"] in _KINDS and node["c"][1][1]:
            counts[node["t"]] += 1
            label = node["c"][0][0] or f"{node['t'].lower()}-{counts[node['t']]}"
            node["c"][0] = attributes(label)
            document.names[label] = f"{_KINDS[node['t']]} {counts[node['t']]}"


def _take_subtitle(document: Document) -> None:
    """Take the notebook's title, its first heading, off the text; raise the other headings if they stood below it."""
    first = document.blocks[0] if document.blocks else None
    if first is None or first["t"] != "Header" or first["c"][0] != 1:
        return
    document.subtitle = document.blocks.pop(0)["c"][2]
    headers = [node for node in document.blocks if node["t"] == "Header"]
    if all(node["c"][0] > 1 for node in headers):
        for node in headers:
            node["c"][0] -= 1


def _resolved(node: Node, document: Document) -> list[Node] | None:
    """Replace a reference to a figure or table by a link; leave citations of the bibliography; show others as typed.

    Raises:
        InputError: a reference looks like a label that no figure or table has.
    """
    if node["t"] != "Cite":
        return None
    keys = [citation["citationId"] for citation in node["c"][0]]
    for key in keys:
        if _LABEL.fullmatch(key) and key not in document.names:
            known = suggest(key, document.names) if document.names else "there are no labels"
            raise InputError(f"the text refers to @{key}, and no figure or table has this label; {known}")
    if all(key in document.names for key in keys):
        nodes: list[Node] = []
        for key in keys:
            name = document.names[key]
            words = {"t": "Str", "c": (name or _WITHOUT_DATA[key[:3]]).replace(" ", "\u00a0" if name else " ")}
            link = {"t": "Link", "c": [attributes(), [words], [f"#{key}", ""]]}
            nodes += [{"t": "Str", "c": ","}, {"t": "Space"}] * bool(nodes) + [link if name else words]
        return nodes
    known_works = {work["id"] for work in document.citation.references}
    return None if all(key in known_works for key in keys) else list(node["c"][1])


def _anchor_headings(document: Document) -> None:
    """Give each heading its anchor, and links to headings (``#Words-of-the-heading`` in Jupyter) the right one."""
    for node in document.blocks:
        if node["t"] == "Header":
            words = plain_text(node["c"][2])
            anchor = f"sec-{_slug(words)}"
            if anchor in {taken for _, taken, _ in document.headings}:
                anchor += f"-{len(document.headings)}"
            node["c"][1] = attributes(anchor)
            document.headings.append((node["c"][0], anchor, words))
    known = {anchor for _, anchor, _ in document.headings}

    def action(node: Node) -> list[Node] | None:
        if node["t"] != "Link" or not node["c"][2][0].startswith("#") or node["c"][2][0][1:] in document.names:
            return None
        anchor = f"sec-{_slug(urllib.parse.unquote(node['c'][2][0]))}"
        return [{"t": "Link", "c": [*node["c"][:2], [f"#{anchor}", ""]]}] if anchor in known else node["c"][1]

    document.blocks = transform(document.blocks, action)


def _slug(words: str) -> str:
    """Return words as an anchor: lower-case ASCII letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "part"


def _broken(node: Node) -> list[Node] | None:
    """Give long words places to break."""
    if node["t"] == "Str":
        return [{"t": "Str", "c": breakable(node["c"])}]
    if node["t"] == "Code":
        return [{"t": "Code", "c": [node["c"][0], breakable(node["c"][1], LONGEST_NAME)]}]
    return None
