"""Tables: every row of the comparison, each format, and names that try to act."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.analysis.records import HOSTILE, diverged, make_record
from vitfp8.analysis import study_tables as tables
from vitfp8.analysis.escaping import csv_cell, escape_html, escape_latex, escape_markdown, one_line
from vitfp8.analysis.results import load_results
from vitfp8.analysis.summary import summary_text, write_report_files
from vitfp8.analysis.table import MISSING, TABLE_MIME, ReportTable
from vitfp8.record import Metrics

Study = Callable[..., Path]


def _column(table: ReportTable, index: int = 1) -> dict[str, str]:
    return {row[0]: row[index] for row in table.rows}


def test_the_comparison_has_every_figure_that_a_report_owes(four: Path) -> None:
    rows = _column(tables.comparison(load_results(four)))
    assert set(rows) >= {
        "Runs (n)", "Effective precision", "Epochs", "Best validation accuracy (%)", "Final validation accuracy (%)",
        "Test accuracy, last weights (%)", "Test accuracy, best weights (%)", "Final training accuracy (%)",
        "Generalisation gap (points)", "Final training loss", "Final validation loss", "Total time (s)",
        "Time an epoch, ± over epochs (s)", "Images a second", "CPU, mean (%)", "CPU, maximum (%)", "Memory, mean (%)",
        "Memory, maximum (%)", "Throttled",
    }  # fmt: skip
    assert rows["Test accuracy, last weights (%)"] == f"{100 * make_record().metrics.test_acc:.2f}"  # type: ignore[operator]
    assert rows["Time an epoch, ± over epochs (s)"] == "2.06 ± 0.03" and rows["Throttled"] == "not measured"


def test_several_seeds_show_mean_standard_deviation_and_n(rich: Path) -> None:
    table = tables.comparison(load_results(rich))
    values = [100 * make_record(seed=seed).metrics.test_acc for seed in range(3)]  # type: ignore[operator]
    assert _column(table)["Test accuracy, last weights (%)"] == f"{sum(values) / 3:.2f} ± {pd.Series(values).std():.2f}"
    assert _column(table, 3)["Runs (n)"] == "2 (1 more diverged)"


def test_times_of_emulated_arithmetic_carry_a_dagger_and_accuracies_do_not(four: Path) -> None:
    table = tables.comparison(load_results(four))
    native, emulated = _column(table, 1), _column(table, 3)
    timed = [row.label for row in tables.METRIC_ROWS if row.timed and row.label in native] + ["Time an epoch, ± over epochs (s)"]
    assert len(timed) >= 7
    for label in timed:
        assert emulated[label].endswith("†") and not native[label].endswith("†"), label
    assert "†" not in emulated["Test accuracy, last weights (%)"]
    assert any("not to be compared" in note for note in table.notes)


def test_throttling_says_no_only_where_it_was_measured(study: Study) -> None:
    measured, slowed, unknown = make_record(gpu=True), make_record("AugmFP32"), make_record("BaseFP16")
    slowed.hardware.summary["throttled"] = True
    table = tables.comparison(load_results(study(measured, slowed, unknown)))
    assert table.rows[-1] == ["Throttled", "no", "1 of 1 runs", "not measured"]
    alone = tables.comparison(load_results(study(measured, name="alone")))
    assert alone.rows[-1] == ["Throttled", "no"]


def test_one_run_per_cell_is_said_below_the_comparison(four: Path) -> None:
    assert "may be chance" in tables.comparison(load_results(four)).notes[0]


def test_missing_and_nan_values_are_dashes_not_zeros(study: Study) -> None:
    table = tables.comparison(load_results(study(make_record(metrics=Metrics(test_acc=math.nan)))))
    rows = _column(table)
    assert rows["Test accuracy, last weights (%)"] == rows["Total time (s)"] == MISSING
    assert "nan" not in table.to_html().lower() + table.to_latex().lower() + table.to_csv().lower()


def test_the_csv_holds_fractions_and_seconds_not_percent(four: Path) -> None:
    frame = pd.read_csv(io.StringIO(tables.comparison(load_results(four)).to_csv()))
    row = frame[(frame["metric"] == "test_acc") & (frame["experiment"] == "BaseFP32")].iloc[0]
    assert row["mean"] == make_record().metrics.test_acc and row["n"] == 1 and math.isnan(row["sd"])


def test_a_table_shows_itself_as_html_latex_and_text_together(four: Path) -> None:
    table = tables.comparison(load_results(four))
    bundle = table._repr_mimebundle_()
    data = json.loads(json.dumps(bundle.pop(TABLE_MIME)))
    assert data["columns"] == list(table.columns) and data["rows"] == [list(row) for row in table.rows]
    assert len(data["alignment"]) == len(table.columns) and data["alignment"][0] == "left"
    assert set(bundle) == {"text/html", "text/latex", "text/plain"}
    assert "Styler" not in "".join(bundle.values())
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in bundle["text/latex"]


def test_contrasts_of_one_seed_have_neither_interval_nor_p(four: Path) -> None:
    table = tables.contrast_table(load_results(four))
    assert [row[2:] for row in table.rows][0] == ["1", "−0.10", MISSING, "none: n < 6", MISSING]
    assert any("bundle" in note for note in table.notes)


def test_runs_outside_the_results_are_listed_with_reasons_and_unreadable_ones_too(rich: Path) -> None:
    (rich / "torn.ipynb").write_text("{")
    rows = tables.not_in_results(load_results(rich)).rows
    assert [row[2] for row in rows] == ["failed", "diverged", "interrupted", "unreadable"]
    assert rows[1][4] == "the loss is not finite at step 57" and "torn.ipynb" in rows[3][4]


def test_provenance_leads_to_the_notebook_the_code_and_the_data(four: Path) -> None:
    table = tables.provenance_table(load_results(four))
    assert table.rows[0] == ["BaseFP32-s0.ipynb", "Baseline FP32", "0", "0123456789", "c0dec0dec0", "d1d1d1d1d1"]
    assert table.values is not None and Path(table.values["notebook"][0]) == four / "BaseFP32-s0.ipynb"
    assert table.values["code_digest"][0] == "c0de" * 16


def test_requested_and_effective_precision_stand_side_by_side(four: Path) -> None:
    rows = tables.precision_table(load_results(four)).rows
    assert rows[2] == ["Baseline FP16", "1", "FP16", "FP16", "emulated", MISSING, "this processor has no FP16 products"]


def test_precision_summary_groups_layers_that_are_treated_alike() -> None:
    layer = {"name": "blocks.0.fc1", "type": "Linear", "format": "fp16", "converted": True, "reason": None}
    skipped = {"name": "norm", "type": "LayerNorm", "format": "fp32", "converted": False, "reason": "stays in FP32"}
    asked = {"requested": "fp16", "effective": "fp16", "backend": "emulated", "reason": HOSTILE}
    report = asked | {"layers": [layer, layer, skipped]}
    table = tables.precision_summary(report)
    assert ["2 × Linear", "FP16"] in table.rows and ["1 × LayerNorm", "FP32, not converted: stays in FP32"] in table.rows
    assert "<script" not in table.to_html()


class _Tags(HTMLParser):
    """Collects what a browser would take for elements."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_study(study: Study) -> Path:
    record = make_record("BaseFP32", question=HOSTILE, expectation=HOSTILE, variant=HOSTILE)
    record.provenance["processor"] = record.provenance["commit"] = HOSTILE
    failed = make_record("AugmFP32", 3, status="failed", reason=HOSTILE + "\n=cmd|' /C calc'!A0")
    from tests.analysis.records import write_notebook

    folder = study(make_record("BaseFP16"), failed)
    write_notebook(record, folder / "=1+1 <b>.ipynb")
    return folder


def test_hostile_names_act_in_no_format(study: Study, tmp_path: Path) -> None:
    results = load_results(hostile_study(study))
    for make in (tables.comparison, tables.not_in_results, tables.provenance_table, tables.precision_table):
        table = make(results)
        parser = _Tags()
        parser.feed(table.to_html())
        assert parser.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p", "small"}
        assert not re.search(r"\\input|\\write|(?<!\\)[#$%](?!\\(pm|leq|geq|times)|-|\$)", _without_own_math(table.to_latex()))
        cells = [cell for row in csv.reader(io.StringIO(table.to_csv())) for cell in row]
        assert not [cell for cell in cells if re.match(r"[=@\t|]|[+-](?![\d.])", cell)]
    for path in write_report_files(results, tmp_path / "report"):
        assert path.read_text(encoding="utf-8")


def _without_own_math(text: str) -> str:
    return re.sub(r"\$(\\pm|-|\\leq|\\geq|\\times)\$", "", text)


def test_latex_tables_of_hostile_names_keep_their_columns(study: Study) -> None:
    table = tables.comparison(load_results(hostile_study(study)))
    separators = [len(re.findall(r"(?<!\\)&", line)) for line in table.to_latex().splitlines() if line.endswith(r" \\")]
    assert separators == [len(table.columns) - 1] * (1 + len(table.rows))


@given(st.text())
def test_any_text_is_inert_in_html_and_keeps_its_words(text: str) -> None:
    parser = _Tags()
    parser.feed(f"<td>{escape_html(text)}</td>")
    assert parser.tags == {"td"} and parser.text == one_line(text)


@given(st.text(alphabet=st.sampled_from("\\{}$&#%_~^<>|ab \n-[]\"'`")))
def test_any_text_is_inert_in_latex(text: str) -> None:
    escaped = escape_latex(text)
    bare = re.sub(r"\\(text[a-z]+\{\}|dag\{\}|dots\{\}|[{}$&#%_])|\$-\$|\{-\}|\{\[\}|\{\]\}", "", escaped)
    assert not re.search(r"[\\{}$&#%_^\n]", bare)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "|x"])
def test_a_spreadsheet_takes_no_text_for_a_formula(text: str) -> None:
    assert csv_cell(text) == f"'{text}" and csv_cell(-1.5) == -1.5


@pytest.mark.parametrize(
    "text",
    ["<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "# heading", "$x$", "**b** @fig-x", "1. a", "https://x.y www.x"],
)
def test_markdown_of_a_record_is_plain_words(text: str) -> None:
    from vitfp8.reporting.pandoc import plain_text, read_markdown

    tree = read_markdown(f"Outcome: {escape_markdown(text)}")
    assert plain_text(tree) == f"Outcome: {text}"
    assert {node["t"] for node in tree[0]["c"]} <= {"Str", "Space"} and len(tree) == 1


def test_the_report_files_are_all_there(rich: Path, tmp_path: Path) -> None:
    files = {path.relative_to(tmp_path).as_posix() for path in write_report_files(load_results(rich), tmp_path)}
    stems = ("comparison", "contrasts", "not_in_results", "effective_precision", "provenance")
    assert files == {f"tables/{stem}.{ending}" for stem in stems for ending in ("tex", "csv")} | {
        "tables/runs.csv", "metrics_comparison_4exp.tex", "all_experiments_summary.json", "RESULTS_SUMMARY.txt",
    }  # fmt: skip


def test_without_a_report_folder_nothing_is_written(four: Path) -> None:
    before = sorted(four.parent.parent.rglob("*"))
    assert write_report_files(load_results(four), None) == []
    assert sorted(four.parent.parent.rglob("*")) == before


def test_the_json_summary_is_strict_json_with_values_by_run(rich: Path, tmp_path: Path) -> None:
    write_report_files(load_results(rich), tmp_path)
    text = (tmp_path / "all_experiments_summary.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    data = json.loads(text, parse_constant=refuse)
    first = data["experiments"][0]
    assert first["seeds"] == [0, 1, 2] and len(first["metrics"]["test_acc"]["values"]) == 3
    assert first["timings_comparable"] is True and data["experiments"][2]["timings_comparable"] is False
    assert data["statuses"] == {"completed": 12, "diverged": 1, "failed": 1, "interrupted": 1}


def test_the_four_experiment_table_holds_no_imported_run(rich: Path) -> None:
    assert tables.core_comparison(load_results(rich)).columns == [
        "Metric", "Baseline FP32", "Augmented FP32", "Baseline FP16", "Augmented FP16",
    ]  # fmt: skip


def test_a_study_without_a_completed_run_still_has_its_files(study: Study, tmp_path: Path) -> None:
    results = load_results(study(diverged("BaseFP32", 0)))
    write_report_files(results, tmp_path)
    assert "No run has completed." in summary_text(results)
    assert "the loss is not finite" in (tmp_path / "RESULTS_SUMMARY.txt").read_text()


def test_files_are_the_same_bytes_when_written_again(rich: Path, tmp_path: Path) -> None:
    first = write_report_files(load_results(rich), tmp_path / "a")
    second = write_report_files(load_results(rich), tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
