"""nbconvert beside us: no conversion drops a cell, our notebooks can be executed, nothing is installed for a whole machine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from nbconvert.exporters import HTMLExporter, LatexExporter, TemplateExporter

from tests.conftest import TOP
from tests.reporting import report_notebooks as notebooks
from vitfp8 import read_record

PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())


def nbconvert(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Call it in the current folder."""
    command = [sys.executable, "-m", "jupyter", "nbconvert", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """A notebook with every tag, of our own project: it carries the marker."""
    tags = ("parameters", "injected-parameters", "remove-cell", "remove-input")
    return notebooks.write(
        tmp_path / "a.ipynb", *(notebooks.cell(source=f"{tag.replace('-', '_')} = 1", tags=(tag,)) for tag in tags)
    )


def test_a_conversion_to_a_notebook_keeps_every_cell(tagged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tagged.parent)
    before = [cell.source for cell in nbformat.read(tagged, as_version=4).cells]
    done = nbconvert("--clear-output", "--inplace", tagged.name)
    assert done.returncode == 0, done.stderr
    assert [cell.source for cell in nbformat.read(tagged, as_version=4).cells] == before


def test_the_train_notebook_is_executed_by_nbconvert_and_its_run_is_the_projects(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    done = nbconvert("--execute", "notebooks/train.ipynb", "--to", "notebook", "--output", "done.ipynb")
    assert done.returncode == 0, done.stderr
    record = read_record(project / "notebooks" / "done.ipynb")
    assert record.status == "completed" and re.match("runs/BaseFP32-s0-", str(record.run_folder))
    assert (project / str(record.run_folder) / "journal.jsonl").is_file()
    assert sorted(path.name for path in (project / "notebooks").iterdir() if path.is_dir()) == []


def test_nothing_is_installed_for_every_notebook_of_a_machine() -> None:
    data_files = PROJECT["tool"]["setuptools"]["data-files"]
    assert data_files and not [place for place in data_files if place.startswith("etc")]
    assert not list(TOP.glob("jupyter*config*"))


def test_our_exporters_have_names_of_their_own_and_leave_nbconverts_as_they_are() -> None:
    points = PROJECT["project"]["entry-points"]["nbconvert.exporters"]
    assert points and all(name.startswith("vitfp8-") for name in points)
    for place in points.values():
        module, _, name = place.partition(":")
        ours = getattr(import_module(module), name)
        assert issubclass(ours, TemplateExporter)
        assert ours(config=None).default_config.TagRemovePreprocessor.remove_cell_tags
    for theirs in (HTMLExporter, LatexExporter):
        exporter = theirs()
        assert "vitfp8" not in exporter.template_name and not exporter.default_config.TagRemovePreprocessor.get(
            "remove_cell_tags"
        )


@pytest.mark.parametrize(
    ("content", "stays"), [("from vitfp8.reporting.exporters import nbconvert_config", False), ("c.x = 1", True)]
)
def test_make_removes_what_an_earlier_version_installed_and_nothing_else(content: str, stays: bool, tmp_path: Path) -> None:
    (line,) = [line for line in (TOP / "Makefile").read_text().splitlines() if "etc/jupyter" in line]
    place = tmp_path / "etc" / "jupyter" / "jupyter_nbconvert_config.py"
    place.parent.mkdir(parents=True)
    place.write_text(content)
    command = line.strip().removeprefix("@").replace("$(VENV)", str(tmp_path)).replace("$$", "$")
    for _ in range(2):  # also where there is none
        subprocess.run(["sh", "-ec", command], check=True)
        assert place.exists() == stays
