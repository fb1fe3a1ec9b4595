"""What the three writers share: prose with its references resolved, and the pictures that go beside the text."""

from __future__ import annotations

from abc import ABC, abstractmethod

from vitfp8.reporting.document import NAMES, Document, Float, Picture, Printed, Prose, TableView
from vitfp8.reporting.escaping import LONGEST_WORD
from vitfp8.reporting.prose import Node, plain_text, transform, write_tree


class Writer(ABC):
    """A format. It writes a document's body; the page around it is a template.

    Args:
        document: what to write.
        folder: where pictures lie beside the text, relative to it.

    Attributes:
        files: the pictures to be put beside the text, by their path relative to it.
    """

    #: pandoc's name of the format.
    target = ""
    #: Options for pandoc.
    options: tuple[str, ...] = ()
    #: Picture formats that it takes, the best first.
    pictures: tuple[str, ...] = ()

    def __init__(self, document: Document, folder: str = "report_files") -> None:
        self.document = document
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self._keys = [reference.key for reference in document.citation.references]

    def body(self) -> str:
        """All blocks in the format, in order."""
        parts = []
        for block in self.document.blocks:
            if isinstance(block, Prose):
                parts.append(self.prose(block.blocks, block))
            elif isinstance(block, Printed):
                parts.append(self.printed(block))
            else:
                parts.append(self.float(block))
        return "\n\n".join(part for part in parts if part)

    def prose(self, blocks: list[Node], source: Prose | None = None) -> str:
        """Blocks of prose, written by pandoc after everything that needs the format's own care is written here."""

        def action(node: Node) -> list[Node] | None:
            """The node as this format's own text, where it needs that."""
            kind, content = node["t"], node.get("c", "")
            if kind == "Cite":
                return self._cite(content)
            if kind == "Image":
                return self.inline_picture(source, content)
            if kind == "Code":
                return [self.raw(self.inline_code(content[1]))]
            if kind == "CodeBlock":
                return [{"t": "RawBlock", "c": [self.target, self.printed(Printed(text=content[1], code=True))]}]
            if kind == "Str" and self.is_special(content):
                return [self.raw(self.word(content))]
            return None

        return write_tree(transform(blocks, action), self.target, *self.options)

    def inlines(self, nodes: list[Node]) -> str:
        """One line of prose."""
        return self.prose([{"t": "Plain", "c": nodes}]) if nodes else ""

    def note(self, view: TableView) -> str:
        """The words below a table."""
        return self.prose(view.note) if view.note else ""

    def raw(self, text: str) -> Node:
        """A node that pandoc passes through as this writer wrote it."""
        return {"t": "RawInline", "c": [self.target, text]}

    def _cite(self, content: list[list[Node]]) -> list[Node]:
        """A citation as a reference to a figure or table, as a pointer into the bibliography, or, if neither, as its words."""
        keys = [citation["citationId"] for citation in content[0]]
        nodes: list[Node] = []
        if all(key in self.document.labels for key in keys):
            for key in keys:
                float_ = self.document.labels[key]
                missing = f"a {NAMES[key[:3]].lower()} without data"
                written = self.raw(self.reference(key, float_)) if float_ is not None else {"t": "Str", "c": missing}
                nodes += [{"t": "Str", "c": ","}, {"t": "Space"}] * bool(nodes) + [written]
            return nodes
        if all(key in self._keys for key in keys):
            return [self.raw(self.citation(keys))]
        return list(content[1])

    def picture_file(self, picture: Picture, name: str) -> str | None:
        """Put a picture beside the text in the best format that there is; its path, or None without a format that fits."""
        for ending in self.pictures:
            if ending in picture.formats:
                path = f"{self.folder}/{name}.{ending}"
                number = 2
                while path in self.files and self.files[path] != picture.formats[ending]:
                    path, number = f"{self.folder}/{name}-{number}.{ending}", number + 1
                self.files[path] = picture.formats[ending]
                return path
        return None

    def alternative(self, block: Float) -> str:
        """The alternative text of a float's pictures: its caption."""
        return plain_text(block.caption) or "Figure without caption"

    def number_of(self, key: str) -> int:
        """A work's number in the bibliography."""
        return self._keys.index(key) + 1

    def inline_picture(self, source: Prose | None, content: list) -> list[Node]:
        """A picture in a line of prose; without a fitting format its words."""
        picture = source.attachments.get(content[2][0]) if source is not None else None
        written = self.small_picture(picture, plain_text(content[1])) if picture is not None else ""
        return [self.raw(written)] if written else list(content[1])

    @abstractmethod
    def inline_code(self, text: str) -> str:
        """Code within a line."""

    def is_special(self, word: str) -> bool:
        """Whether a word needs this writer's care: it must be able to break."""
        return len(word) >= LONGEST_WORD

    @abstractmethod
    def word(self, text: str) -> str:
        """A word, escaped, with places to break."""

    @abstractmethod
    def printed(self, block: Printed) -> str:
        """Printed text or code, with long lines broken."""

    @abstractmethod
    def float(self, block: Float) -> str:
        """Figures or tables with their caption."""

    @abstractmethod
    def reference(self, label: str, float_: Float) -> str:
        """A reference to a numbered float."""

    @abstractmethod
    def citation(self, keys: list[str]) -> str:
        """A pointer into the bibliography."""

    @abstractmethod
    def small_picture(self, picture: Picture, words: str) -> str:
        """A picture within a line of prose."""

    @abstractmethod
    def bibliography(self) -> str:
        """The works that the citation file names."""
