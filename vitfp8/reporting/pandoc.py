"""pandoc: where it is, how it is called, and its document tree as plain dicts.

The tree is pandoc's own JSON. The library panflute would wrap it in classes, but the pass over it needs one short recursive
function, and plain dicts go to pandoc as they are.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

from vitfp8.errors import InputError

Node = dict[str, Any]

#: pandoc's Markdown as Jupyter reads it: lists and headings need no blank line before them; raw HTML, LaTeX and macros are off.
_MARKDOWN = (
    "markdown-raw_tex-raw_attribute-latex_macros-smart-markdown_in_html_blocks-native_divs-native_spans-implicit_figures"
    "-yaml_metadata_block-pandoc_title_block-fancy_lists-example_lists-blank_before_header-blank_before_blockquote"
    "+lists_without_preceding_blankline+autolink_bare_uris+tex_math_double_backslash"
)
_TIMEOUT_SECONDS = 120


@cache
def find_pandoc() -> str:
    """Return the path of pandoc: the one from the pypandoc-binary wheel, else the one on the PATH.

    Raises:
        InputError: there is none; the line names the command that installs it.
    """
    try:
        import pypandoc

        path = str(pypandoc.get_pandoc_path())
        # A wheel built for another processor can hold a program that does not start.
        if subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    except (ImportError, OSError):
        pass
    found = shutil.which("pandoc")
    if found is None:
        raise InputError("pandoc is missing, and the report is written with it: pip install pypandoc-binary")
    return found


def run_pandoc(text: str, *options: str) -> str:
    """Convert text with pandoc, sandboxed: it reads no file but those that ``options`` name, and writes none."""
    command = [find_pandoc(), "--sandbox", *options]
    given = text.encode("utf-8", "replace")
    result = subprocess.run(command, input=given, capture_output=True, check=False, timeout=_TIMEOUT_SECONDS)
    if result.returncode:
        reason = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise InputError(f"pandoc could not convert a text of the report: {reason[0] if reason else 'no reason given'}")
    return result.stdout.decode("utf-8")


@cache
def _blocks(source: str, reader: str) -> str:
    return json.dumps(json.loads(run_pandoc(source, "-f", reader, "-t", "json"))["blocks"])


def read_markdown(source: str) -> list[Node]:
    """Return the blocks of a Markdown text."""
    return json.loads(_blocks(source, _MARKDOWN)) if source.strip() else []


def read_html(source: str) -> list[Node]:
    """Return the blocks of an HTML fragment, without the tags that pandoc does not read, such as styles and scripts."""
    blocks = json.loads(_blocks(source, "html")) if source.strip() else []
    found: list[Node] = transform(blocks, lambda node: [] if node["t"] in ("RawBlock", "RawInline") else None)
    return found


def write_document(meta: Node, blocks: list[Node], *options: str) -> str:
    """Write a document with pandoc; ``options`` name the format, the template and so on."""
    document = {"pandoc-api-version": [1, 23, 1], "meta": meta, "blocks": blocks}
    return run_pandoc(json.dumps(document), "-f", "json", "--wrap=none", *options)


def transform(tree: Any, action: Callable[[Node], list[Node] | None]) -> Any:
    """Rebuild a tree from the leaves up.

    Args:
        tree: a node, or any nesting of lists and dicts.
        action: returns the nodes that replace a node, or None to keep it; the node's children are already transformed.
    """
    if isinstance(tree, list):
        rebuilt: list[Any] = []
        for item in tree:
            item = transform(item, action)
            replaced = action(item) if isinstance(item, dict) and "t" in item else None
            rebuilt.extend([item] if replaced is None else replaced)
        return rebuilt
    if isinstance(tree, dict):
        return {key: transform(value, action) for key, value in tree.items()}
    return tree


def plain_text(tree: Any) -> str:
    """Return the words of a tree on one line."""
    words: list[str] = []

    def collect(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                collect(item)
        elif isinstance(node, dict):
            kind, content = node.get("t"), node.get("c", "")
            if kind == "Str":
                words.append(content)
            elif kind in ("Space", "SoftBreak", "LineBreak"):
                words.append(" ")
            elif kind in ("Code", "Math", "RawInline", "CodeBlock", "RawBlock"):
                words.append(content[1])
            elif kind in ("Link", "Image", "Div"):
                collect(content[1])
            elif kind in ("Span", "Cite", "Header"):
                collect(content[-1])
            else:
                collect(content)
            if kind in ("Para", "Plain"):
                words.append(" ")

    collect(tree)
    return " ".join("".join(words).split())


def literal(text: str) -> list[Node]:
    """Return a text as inline nodes, word by word."""
    nodes: list[Node] = []
    for word in re.split(r"[ \t\r\n]+", text.strip()):
        nodes += [{"t": "Str", "c": word}, {"t": "Space"}]
    return nodes[:-1] if text.strip() else []


def attributes(label: str = "", *classes: str, **pairs: str) -> list[Any]:
    """Return pandoc's attributes: identifier, classes, and key-value pairs."""
    return [label, list(classes), [[key, value] for key, value in pairs.items()]]


@cache
def formula_is_safe(formula: str) -> bool:
    """Whether a TeX formula holds nothing but mathematics, so that it can neither act nor break the document.

    pandoc must understand all of it: its reader knows mathematical commands only, and macros are off. What TeX would still read
    differently is refused here: comments, character codes, labels, colours, and unbalanced or misplaced delimiters.
    """
    if re.search(r"\^\^|[%#$]|\\(?:label|tag|ref|color)\b|\n\s*\n", formula):
        return False
    if len(re.findall(r"\\left(?![A-Za-z])", formula)) != len(re.findall(r"\\right(?![A-Za-z])", formula)):
        return False
    if "\\begin" not in formula and ("&" in formula or "\\\\" in formula):
        return False
    blocks = [{"t": "Para", "c": [{"t": "Math", "c": [{"t": "InlineMath"}, formula]}]}]
    return "<math" in write_document({}, blocks, "-t", "html5", "--mathml")
