"""The notebook: the template as committed, and executed by papermill in a real kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

from tests.analysis.records import HOSTILE, diverged, make_record
from vitfp8.analysis.figures.of_study import FIGURES

TEMPLATE = Path(__file__).resolve().parents[2] / "notebooks" / "analysis.ipynb"
Study = Callable[..., Path]


def _cells() -> list[dict[str, Any]]:
    return json.loads(TEMPLATE.read_text(encoding="utf-8"))["cells"]


def _execute(study_folder: Path, output: Path, **parameters: Any) -> dict[str, Any]:
    papermill.execute_notebook(
        str(TEMPLATE), str(output), {"study_folder": str(study_folder), **parameters}, kernel_name="python3", progress_bar=False,
    )  # fmt: skip
    notebook = nbformat.read(str(output), as_version=4)
    nbformat.validate(notebook)
    return notebook


def _outputs(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def test_the_template_is_valid_and_marked_as_no_run() -> None:
    notebook = nbformat.read(str(TEMPLATE), as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.vitfp8.kind == "analysis"


def test_code_is_hidden_in_the_report() -> None:
    code = [cell for cell in _cells() if cell["cell_type"] == "code"]
    assert all("remove-input" in cell["metadata"]["tags"] for cell in code)


def test_every_figure_of_the_table_has_its_cell_with_its_caption_and_is_referred_to() -> None:
    about = [cell["metadata"]["vitfp8"] for cell in _cells() if "vitfp8" in cell["metadata"]]
    captions = {said["label"]: said["caption"] for said in about}
    text = "".join("".join(cell["source"]) for cell in _cells())
    for row in FIGURES:
        assert captions[row.label] == row.caption
    for label in captions:
        assert label.startswith(("fig-", "tab-")) and f"@{label}" in text


def test_a_full_study_executes_to_every_file_of_the_report(rich: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    notebook = _execute(rich, tmp_path / "analysis.ipynb", report_folder=str(report))
    stems = {row.stem for row in FIGURES if row.number != 6}
    assert {path.name for path in (report / "figures").iterdir()} == {f"{s}.{e}" for s in stems for e in ("png", "pdf")}
    for name in ("metrics_comparison_4exp.tex", "all_experiments_summary.json", "RESULTS_SUMMARY.txt", "tables/comparison.csv"):
        assert (report / name).stat().st_size > 0
    pictures = [output for output in _outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(pictures) == 7 and all("application/pdf" in output["data"] for output in pictures)
    tables = [output for output in _outputs(notebook) if "text/html" in output.get("data", {})]
    assert len(tables) == 5 and all({"text/latex", "text/plain"} <= output["data"].keys() for output in tables)
    assert (tmp_path / "analysis.ipynb").stat().st_size < 1_000_000
    assert not [output for output in _outputs(notebook) if output["output_type"] in ("error", "stream")]


def test_a_hostile_study_without_results_executes_and_writes_nothing_unasked(study: Study, tmp_path: Path) -> None:
    record = diverged("BaseFP32", 0)
    record.reason = HOSTILE
    folder = study(record, make_record("AugmFP32", 1, status="failed", reason=HOSTILE))
    before = sorted(tmp_path.rglob("*"))
    notebook = _execute(folder, tmp_path / "analysis.ipynb", report_folder=None, title=HOSTILE)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "analysis.ipynb"])
    bundles = [output["data"] for output in _outputs(notebook)]
    shown = [bundle[kind] for bundle in bundles for kind in ("text/markdown", "text/html") if kind in bundle]
    assert not any("<script" in text for text in shown)
    assert not [output for output in _outputs(notebook) if "image/png" in output["data"]]


def test_an_empty_folder_stops_with_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(
        papermill.PapermillExecutionError, match="holds no record of a run; `vitfp8 run --study void --preset PRESET`"
    ):
        _execute(tmp_path / "void", tmp_path / "out.ipynb", report_folder=None)
