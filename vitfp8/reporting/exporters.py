"""nbconvert's part: our exporters, which cells they leave out, their templates, and the filters that those call."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nbconvert.exporters import HTMLExporter, LatexExporter, TemplateExporter
from traitlets import default
from traitlets.config import Config

from vitfp8.errors import InputError
from vitfp8.reporting import escaping
from vitfp8.reporting.citation import Author, Citation, read_citation
from vitfp8.reporting.document import Document, read_document
from vitfp8.reporting.html import HtmlWriter
from vitfp8.reporting.latex import FALLBACK_FONT, LatexWriter, needs_fallback_font, special_characters
from vitfp8.reporting.prose import plain_text
from vitfp8.reporting.typst import TypstWriter
from vitfp8.reporting.writer import Writer

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE_NAME = "vitfp8"
#: What a tag on a cell takes out of an export; papermill tags the cells with parameters.
REMOVED_CELLS = frozenset({"remove-cell", "parameters", "injected-parameters"})
REMOVED_INPUTS = frozenset({"remove-input"})
REMOVED_OUTPUTS = frozenset({"remove-output"})
#: Where the font lies that matplotlib brings.
_FONTS = ("mpl-data", "fonts", "ttf")


def fonts_folder() -> Path | None:
    """The folder with the DejaVu fonts that matplotlib brings, found without loading matplotlib."""
    import importlib.util

    found = importlib.util.find_spec("matplotlib")
    for location in (found.submodule_search_locations or []) if found else []:
        folder = Path(location).joinpath(*_FONTS)
        if folder.is_dir():
            return folder
    return None


def _citation(resources: Mapping[str, Any]) -> Citation:
    """The report's citation, or, when nbconvert was called by hand, the one above the notebook, or its name alone."""
    given = resources.get("vitfp8_citation")
    if isinstance(given, Citation):
        return given
    start = Path(resources.get("metadata", {}).get("path") or ".").resolve()
    for folder in (start, *start.parents, Path.cwd()):
        if (folder / "CITATION.cff").is_file():
            return read_citation(folder / "CITATION.cff")
    return Citation(title=str(resources.get("metadata", {}).get("name") or "Report"))


def _read(notebook: Mapping[str, Any], resources: Mapping[str, Any]) -> Document:
    """The notebook as a document; code is shown where nbconvert's content filter lets it."""
    code = bool(resources.get("global_content_filter", {}).get("include_input", True))
    folder = resources.get("metadata", {}).get("path")
    return read_document(notebook, _citation(resources), code=code, folder=Path(folder) if folder else None)


def _page(writer: Writer, written: Callable[[str], str]) -> dict[str, Any]:
    """What every template puts around the body, in the format's own escaping."""
    citation = writer.document.citation

    def literal(text: str) -> str:
        """Escaped; nothing stays nothing."""
        return written(text) if text else ""

    def signed(author: Author) -> dict[str, str]:
        """An author as the template shows one."""
        return {"name": literal(author.name), "affiliation": literal(author.affiliation), "orcid": author.orcid}

    return {
        "title": literal(citation.title),
        "subtitle": writer.inlines(writer.document.subtitle),
        "authors": [signed(author) for author in citation.authors],
        "abstract": literal(citation.abstract),
        "version": literal(citation.version),
        "date": writer.document.date,
        "url": citation.url,
        "body": writer.body(),
        "references": writer.bibliography(),
    }


def report_html(notebook: Mapping[str, Any], resources: Mapping[str, Any]) -> dict[str, Any]:
    """Template filter: the parts of the HTML page."""
    writer = HtmlWriter(_read(notebook, resources))
    page = _page(writer, html.escape)
    heading, title = plain_text(writer.document.subtitle), writer.document.citation.title
    page["window_title"] = html.escape(f"{heading} – {title}" if heading else title)
    page["contents"] = writer.contents()
    page["style"] = (TEMPLATES / TEMPLATE_NAME / "report.css").read_text(encoding="utf-8")
    return page


def report_latex(notebook: Mapping[str, Any], resources: dict[str, Any]) -> dict[str, Any]:
    """Template filter: the parts of the LaTeX document; its pictures and its font go to ``resources["outputs"]``."""
    folder = resources.get("output_files_dir") or "report_files"
    writer = LatexWriter(_read(notebook, resources), folder)
    page = _page(writer, lambda text: escaping.latex(text))
    shown = "".join(str(value) for value in page.values())
    page["special_characters"] = special_characters(shown)
    page["fallback_font"] = ""
    fonts = fonts_folder()
    if needs_fallback_font(shown) and fonts is not None and (fonts / FALLBACK_FONT).is_file():
        writer.files[f"{folder}/{FALLBACK_FONT}"] = (fonts / FALLBACK_FONT).read_bytes()
        page["fallback_font"], page["fallback_folder"] = FALLBACK_FONT, f"{folder}/"
    page["author_names"] = ", ".join(author["name"] for author in page["authors"])
    resources["outputs"] = writer.files
    return page


def report_typst(notebook: Mapping[str, Any], resources: dict[str, Any]) -> dict[str, Any]:
    """Template filter: the parts of the Typst document; its pictures go to ``resources["outputs"]``."""
    writer = TypstWriter(_read(notebook, resources), resources.get("output_files_dir") or "report_files")
    page = _page(writer, escaping.typst)
    citation = writer.document.citation
    page["title_string"] = escaping.typst_string(citation.title)
    page["author_strings"] = [escaping.typst_string(author.name) for author in citation.authors]
    resources["outputs"] = writer.files
    return page


#: By the names that the templates use.
FILTERS = {"report_html": report_html, "report_latex": report_latex, "report_typst": report_typst}


class _Report(TemplateExporter):
    """What our exporters share. They have names of their own: nbconvert's exporters stay as they are without us."""

    @property
    def default_config(self) -> Config:
        """Cells left out by their tags, prompts left out, our templates; a caller may lay other settings over it."""
        tags = {
            "enabled": True,
            "remove_cell_tags": set(REMOVED_CELLS),
            "remove_input_tags": set(REMOVED_INPUTS),
            "remove_all_outputs_tags": set(REMOVED_OUTPUTS),
        }
        own = {
            "template_name": TEMPLATE_NAME,
            "extra_template_basedirs": [str(TEMPLATES)],
            "filters": dict(FILTERS),
            "exclude_input_prompt": True,
            "exclude_output_prompt": True,
        }
        config = Config({type(self).__name__: own, "TagRemovePreprocessor": tags})
        # pictures are taken from the outputs when they are written, and none of them needs another program
        config.ExtractOutputPreprocessor.enabled = False
        config.SVG2PDFPreprocessor.enabled = False
        inherited: Config = super().default_config
        inherited.merge(config)
        return inherited


class HtmlReport(_Report, HTMLExporter):
    """``jupyter nbconvert --to vitfp8-html``: the page of a report, its code shown where no tag hides it."""

    export_from_notebook = "HTML report (vitfp8)"


class LatexReport(_Report, LatexExporter):
    """``jupyter nbconvert --to vitfp8-latex``: the LaTeX of a report."""

    export_from_notebook = "LaTeX report (vitfp8)"


class TypstReport(_Report):
    """The Typst of a report, of which `vitfp8.reporting.pdf` makes the PDF."""

    output_mimetype = "text/x-typst"

    @default("file_extension")
    def _file_extension_default(self) -> str:
        return ".typ"

    @default("template_extension")
    def _template_extension_default(self) -> str:
        return ".typ.j2"


_EXPORTERS: dict[str, type[_Report]] = {"html": HtmlReport, "latex": LatexReport, "typst": TypstReport}


def convert(notebook: Mapping[str, Any], target: str, citation: Citation, folder: Path) -> tuple[str, dict[str, bytes]]:
    """A report's text in one format, and the files that it needs beside it.

    Args:
        notebook: nbformat 4, executed.
        target: ``html``, ``latex`` or ``typst``.
        citation: title, authors and bibliography.
        folder: the notebook's.

    Returns:
        The text, and per relative path the content of a file.

    Raises:
        InputError: the notebook holds what cannot be exported; one line.
    """
    exporter = _EXPORTERS[target](config=Config({"TemplateExporter": {"exclude_input": True}}))
    about = {"name": "report", "path": str(folder)}
    resources = {"vitfp8_citation": citation, "metadata": about, "output_files_dir": "report_files"}
    try:
        text, resources = exporter.from_notebook_node(notebook, resources=resources)
    except InputError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from None
        raise
    return text, dict(resources.get("outputs") or {}) if target != "html" else {}
