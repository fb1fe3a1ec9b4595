"""Prose: Markdown, and what HTML holds beside tables, through pandoc's syntax tree.

The tree is cleaned before a format is written: raw HTML is shown as text, attributes and links that could act are dropped, TeX
mathematics passes only if every command in it is a mathematical one. ``@fig-…`` and ``@tab-…`` become numbered references, other
``@key`` citations of the bibliography.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable
from functools import cache
from typing import Any

from vitfp8.errors import InputError

#: pandoc's Markdown as Jupyter reads it: lists and headings need no blank line before them, nothing in it is active.
_MARKDOWN = (
    "markdown-raw_tex-raw_attribute-smart-markdown_in_html_blocks-native_divs-native_spans-implicit_figures"
    "-yaml_metadata_block-pandoc_title_block-fancy_lists-example_lists-blank_before_header-blank_before_blockquote"
    "+lists_without_preceding_blankline+autolink_bare_uris+tex_math_double_backslash"
)
#: The commands of a formula that may pass, by what they are.
_MATH_COMMANDS: dict[str, str] = {
    "letters": "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi varpi rho varrho "
    "sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar "
    "Re Im partial nabla infty emptyset prime top dagger ddagger",
    "accents": "hat bar tilde vec dot ddot overline underline widehat widetilde overbrace underbrace stackrel overset underset",
    "operators": "pm mp times div cdot ast star circ bullet oplus otimes odot cap cup vee wedge setminus sum prod int oint "
    "bigcup bigcap neg forall exists",
    "relations": "le leq ge geq ne neq equiv approx sim simeq cong propto ll gg in notin ni subset subseteq supset supseteq mid "
    "parallel perp to gets mapsto rightarrow leftarrow leftrightarrow Rightarrow Leftarrow Leftrightarrow longrightarrow "
    "uparrow downarrow",
    "functions": "log ln exp sin cos tan min max arg sup inf lim det dim ker gcd Pr operatorname bmod pmod",
    "layout": "frac dfrac tfrac binom sqrt left right middle big Big bigg Bigg bigl bigr Bigl Bigr lfloor rfloor lceil rceil "
    "langle rangle lvert rvert lVert rVert vert Vert begin end quad qquad ldots cdots vdots ddots dots limits nolimits "
    "displaystyle textstyle tag substack",
    "fonts": "text textrm textbf textit mathrm mathbf mathit mathsf mathtt mathcal mathbb mathfrak boldsymbol",
}
_MATH_ALLOWED = frozenset(name for names in _MATH_COMMANDS.values() for name in names.split())
_MATH_ENVIRONMENTS = frozenset(
    {"aligned", "align", "align*", "cases", "matrix", "pmatrix", "bmatrix", "vmatrix", "gathered", "split"}
)
_URL_SCHEMES = frozenset({"http", "https", "mailto", "doi"})
_ATTRIBUTES_AT = {"Div": 0, "Span": 0, "Code": 0, "CodeBlock": 0, "Link": 0, "Image": 0, "Table": 0, "Figure": 0}

Node = dict[str, Any]


@cache
def find_pandoc() -> str:
    """The pandoc to call: the one that the pypandoc-binary wheel brought, else the one on the PATH.

    Raises:
        InputError: there is none; the line names the command that installs one.
    """
    try:
        import pypandoc

        path = str(pypandoc.get_pandoc_path())
        # A wheel for another processor's macOS can hold a program that does not start.
        if subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    except (ImportError, OSError):
        pass
    found = shutil.which("pandoc")
    if found is None:
        raise InputError("pandoc is missing, and the report's text is written with it: pip install pypandoc-binary")
    return found


def run_pandoc(text: str, *options: str) -> str:
    """Convert text with pandoc, which may neither read nor write files.

    Args:
        text: the input.
        options: pandoc's, such as ``-f markdown -t json``.
    """
    command = [find_pandoc(), "--sandbox", *options]
    result = subprocess.run(command, input=text.encode("utf-8", "replace"), capture_output=True, check=False, timeout=120)
    if result.returncode:
        reason = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise InputError(f"pandoc could not convert a text of the report: {reason[0] if reason else 'no reason given'}")
    return result.stdout.decode("utf-8")


def markdown_tree(source: str) -> list[Node]:
    """The blocks of a Markdown text, as pandoc's syntax tree."""
    return json.loads(run_pandoc(source, "-f", _MARKDOWN, "-t", "json"))["blocks"] if source.strip() else []


def html_tree(source: str) -> list[Node]:
    """The blocks of an HTML fragment, as pandoc's syntax tree; scripts and styles have no place in it."""
    return json.loads(run_pandoc(source, "-f", "html", "-t", "json"))["blocks"]


def write_tree(blocks: list[Node], target: str, *options: str) -> str:
    """Blocks in a format that pandoc writes (``html5``, ``latex``, ``typst``, ``plain``)."""
    document = {"pandoc-api-version": [1, 23, 1], "meta": {}, "blocks": blocks}
    return run_pandoc(json.dumps(document), "-f", "json", "-t", target, "--wrap=none", *options).strip("\n")


def transform(tree: Any, action: Callable[[Node], list[Node] | None]) -> Any:
    """Rebuild a tree from the leaves up.

    Args:
        tree: a node, or any nesting of lists.
        action: what a node becomes: a list of nodes in its place, or None to keep it. It sees the node with its own
            children already transformed.
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
    """The words of a tree, for an alternative text or an identifier."""
    words: list[str] = []

    def collect(node: Any) -> None:
        """Gather the words of a node."""
        if isinstance(node, list):
            for item in node:
                collect(item)
        elif isinstance(node, dict):
            kind, content = node.get("t"), node.get("c", "")
            if kind in ("Str", "Space", "SoftBreak", "LineBreak"):
                words.append(content if kind == "Str" else " ")
            elif kind in ("Code", "Math", "RawInline"):
                words.append(content[1])
            elif kind in ("Link", "Image", "Span", "Cite", "Header"):
                collect(content[-1] if kind in ("Span", "Cite", "Header") else content[1])
            else:
                collect(content)

    collect(tree)
    return " ".join("".join(words).split())


def _literal(text: str) -> list[Node]:
    """A text as inline nodes, word by word."""
    nodes: list[Node] = []
    for word in text.split():
        nodes += [{"t": "Str", "c": word}, {"t": "Space"}]
    return nodes[:-1]


def safe_math(formula: str) -> bool:
    """Whether a TeX formula holds nothing but mathematics, balanced, so that it can neither act nor break the document."""
    if "^^" in formula or "%" in formula or "#" in formula or "$" in formula or "\n\n" in formula:
        return False
    if any(name not in _MATH_ALLOWED for name in re.findall(r"\\([A-Za-z@]+)", formula)):
        return False
    begins, ends = re.findall(r"\\begin\s*\{([^}]*)\}", formula), re.findall(r"\\end\s*\{([^}]*)\}", formula)
    if sorted(begins) != sorted(ends) or not set(begins) <= _MATH_ENVIRONMENTS:
        return False
    if len(re.findall(r"\\(?:begin|end)(?![A-Za-z])", formula)) != len(begins) + len(ends):
        return False
    if len(re.findall(r"\\left(?![A-Za-z])", formula)) != len(re.findall(r"\\right(?![A-Za-z])", formula)):
        return False
    if not begins and ("&" in formula or "\\\\" in formula):
        return False
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", formula.replace("\\\\", "")):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def safe_url(url: str) -> str | None:
    """A link's address as it may stand in a report, or None: web addresses, mail, anchors, and paths relative to the report."""
    url = "".join(url.split())
    parts = urllib.parse.urlsplit(url) if "[" not in url else None
    if parts is None or (parts.scheme and parts.scheme.lower() not in _URL_SCHEMES):
        return None
    if not parts.scheme and (parts.netloc or url.startswith("/") or ":" in url.split("/")[0]):
        return None
    return urllib.parse.quote(url, safe="%/:?#@!&()*+,;=~-._")


def clean(blocks: list[Node]) -> list[Node]:
    """Take out of a tree what could act, and every attribute; what is refused is shown as the text that it was."""

    def action(node: Node) -> list[Node] | None:
        """What is left of a node."""
        kind, content = node["t"], node.get("c", "")
        if kind in ("RawInline", "RawBlock"):
            text = content[1].strip()
            if text.startswith("<!--"):
                return []
            if kind == "RawInline":
                return [{"t": "LineBreak"}] if re.fullmatch(r"<br\s*/?>", text) else _literal(text)
            return [{"t": "Para", "c": _literal(text)}]
        if kind == "Math" and not safe_math(content[1]):
            return [{"t": "Code", "c": [["", [], []], content[1]]}]
        if kind == "Link":
            address = safe_url(content[2][0])
            return content[1] if address is None else [{"t": "Link", "c": [["", [], []], content[1], [address, ""]]}]
        if kind in ("Strikeout", "Underline", "SmallCaps"):
            return content
        if kind in ("Div", "Figure"):
            return content[-1]
        if kind == "Span":
            return content[1]
        if kind in _ATTRIBUTES_AT:
            return [{**node, "c": [["", [], []], *content[1:]]}]
        return None

    return transform(blocks, action)
