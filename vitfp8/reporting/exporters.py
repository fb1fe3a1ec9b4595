"""nbconvert's part: exporters with names of their own, and the tags of cells that they leave out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbconvert.exporters import Exporter, TemplateExporter
from traitlets import default
from traitlets.config import Config

from vitfp8.reporting.citation import Citation, find_citation, read_citation
from vitfp8.reporting.document import read_document
from vitfp8.reporting.writing import write

#: Tags that take a cell, its code or its outputs out of an export; papermill tags the cells with parameters.
REMOVED_CELLS = frozenset({"remove-cell", "parameters", "injected-parameters"})
REMOVED_INPUTS = frozenset({"remove-input"})
REMOVED_OUTPUTS = frozenset({"remove-output"})


class _Report(TemplateExporter):
    """Prepares the notebook as nbconvert does, and has pandoc write it with our own template."""

    target = ""
    ending = ""

    @default("file_extension")
    def _file_extension_default(self) -> str:
        return self.ending

    @property
    def default_config(self) -> Config:
        """Leave out tagged cells; a caller may lay other settings over it."""
        tags = {
            "enabled": True,
            "remove_cell_tags": set(REMOVED_CELLS),
            "remove_input_tags": set(REMOVED_INPUTS),
            "remove_all_outputs_tags": set(REMOVED_OUTPUTS),
        }
        inherited: Config = super().default_config
        inherited.merge(Config({"TagRemovePreprocessor": tags}))
        return inherited

    def from_notebook_node(self, nb: Any, resources: Any = None, **options: Any) -> tuple[str, Any]:
        """Return the report's text and nbconvert's resources, in which ``outputs`` holds the files that the text includes."""
        notebook, resources = Exporter.from_notebook_node(self, nb, resources, **options)
        metadata = resources.get("metadata", {})
        folder = Path(metadata["path"]) if metadata.get("path") else None
        citation = resources.get("vitfp8_citation") or _citation_near(folder or Path(), str(metadata.get("name") or "Report"))
        document = read_document(notebook, citation, code=not self.exclude_input, folder=folder)
        text, files = write(document, self.target, resources.get("output_files_dir") or "report_files")
        resources["outputs"] = files
        return text, resources


def _citation_near(folder: Path, name: str) -> Citation:
    """Return the citation above a notebook or the working directory; without one, the notebook's name is the title."""
    path = find_citation(folder) or find_citation(Path())
    return read_citation(path) if path else Citation(title=name)


class HtmlReport(_Report):
    """``jupyter nbconvert --to vitfp8-html``: a report as one page; code is shown where no tag hides it."""

    export_from_notebook = "HTML report (vitfp8)"
    output_mimetype = "text/html"
    target, ending = "html", ".html"


class LatexReport(_Report):
    """``jupyter nbconvert --to vitfp8-latex``: the LaTeX of a report."""

    export_from_notebook = "LaTeX report (vitfp8)"
    output_mimetype = "text/latex"
    target, ending = "latex", ".tex"


class TypstReport(_Report):
    """The Typst of a report, from which `vitfp8.reporting.pdf` makes the PDF."""

    output_mimetype = "text/x-typst"
    target, ending = "typst", ".typ"


_EXPORTERS: dict[str, type[_Report]] = {"html": HtmlReport, "latex": LatexReport, "typst": TypstReport}


def convert(notebook: Mapping[str, Any], target: str, citation: Citation, folder: Path) -> tuple[str, dict[str, bytes]]:
    """Return a report's text in one format, its code hidden, and the files that it includes by relative path.

    Args:
        notebook: nbformat 4, executed.
        target: ``html``, ``latex`` or ``typst``.
        citation: title, authors and bibliography.
        folder: the notebook's.

    Raises:
        InputError: the notebook holds what cannot be exported; one line.
    """
    exporter = _EXPORTERS[target](config=Config({"TemplateExporter": {"exclude_input": True}}))
    about = {"name": "report", "path": str(folder)}
    resources = {"vitfp8_citation": citation, "metadata": about, "output_files_dir": "report_files"}
    text, resources = exporter.from_notebook_node(notebook, resources=resources)
    return text, dict(resources["outputs"])
