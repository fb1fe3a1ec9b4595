"""The files of a report that are no figures: tables, a JSON for programs, a text for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitfp8.analysis.after_training import QuantizedGroup, quantized_groups
from vitfp8.analysis.contrasts import find_contrasts
from vitfp8.analysis.escaping import one_line
from vitfp8.analysis.grouping import Group
from vitfp8.analysis.quantization import quantization_table
from vitfp8.analysis.results import StudyResults
from vitfp8.analysis.statistics import describe
from vitfp8.analysis.study_tables import (
    METRIC_ROWS,
    comparison,
    contrast_table,
    core_comparison,
    not_in_results,
    notes_table,
    precision_table,
    provenance_table,
    runs_table,
)
from vitfp8.home import at_home
from vitfp8.record import backup_state


def _group_summary(results: StudyResults, group: Group) -> dict[str, Any]:
    """One group for the JSON: numbers in base units."""
    metrics = {}
    for row in METRIC_ROWS:
        if values := row.values(group):
            metrics[row.key] = _sample(values)
    quartiles = group.epoch_quartiles()
    return {
        "kind": "run",
        "label": group.label,
        "experiment": group.experiment,
        "variant": group.variant,
        "origin": group.origin,
        "n": group.n,
        "seeds": [None if seed is None else int(seed) for seed in (results.records[run].seed for run in group.runs["run"])],
        "precision": group.precision,
        "backend": group.backend,
        "augmentation": group.parameters.get("augmentation"),
        "departures": dict(group.departures),
        "timings_comparable": group.backend == "native" and group.disturbed < group.n,
        "disturbed": [value if isinstance(value, bool) else None for value in group.runs["disturbed"]],
        "epoch_seconds_quartiles": None if quartiles is None else list(quartiles),
        "machine": group.machine,
        "notebooks": [Path(path).as_posix() for path in group.runs["path"]],
        "metrics": metrics,
    }


def _sample(values: list[float]) -> dict[str, Any]:
    """Some values, a run each, with mean and spread; there is at least one."""
    sample = describe(values)
    assert sample is not None
    return {
        "n": sample.n, "mean": sample.mean, "sd": sample.sd, "ci95": [sample.low, sample.high] if sample.n > 1 else None,
        "values": values,
    }  # fmt: skip


def _quantized_summary(results: StudyResults, group: QuantizedGroup) -> dict[str, Any]:
    """One group of quantisations after training for the JSON: every way to 8 bits, the best on the test set first."""
    first, judged = group.first, group.judged
    metrics = {"source_test_acc": _sample(group.source_values)} if group.source_values else {}
    if judged:
        metrics |= {f"best_way_{key}": _sample(values) for key in ("test_acc", "accuracy_difference")
                    if (values := judged[0][0].values(key))}  # fmt: skip
    return {
        "kind": "quantization",
        "label": group.label,
        "experiment": first.experiment,
        "variant": first.variant,
        "origin": first.origin,
        "n": group.n,
        "seeds": [record.seed for record in group.records],
        "source": {key: first.source.get(key) for key in ("experiment", "variant", "precision", "backend")},
        "timings_comparable": False,
        "notebooks": [(results.folder / f"{run}.ipynb").as_posix() for run in group.runs],
        "metrics": metrics,
        "ways": [
            {
                "format": way.format, "granularity": way.granularity, "operands": way.operands,
                "accuracy_difference": value, "test_acc": way.mean("test_acc"), "n": len(way.rows),
            }
            for way, value in judged
        ],
    }  # fmt: skip


def summary(results: StudyResults) -> dict[str, Any]:
    """Everything that the report says in numbers, for programs: fractions, seconds, joules.

    Args:
        results: the study.
    """
    contrasts, left_out = find_contrasts(results)
    return {
        "format": 1,
        "study": results.name,
        "runs": results.run_count,
        "statuses": {status: results.count(status) for status in sorted(results.statuses)},
        "experiments": [
            *(_group_summary(results, group) for group in results.groups),
            *(_quantized_summary(results, group) for group in quantized_groups(results)),
        ],
        "contrasts": [
            {
                "first": contrast.first.label, "second": contrast.second.label, "factor": contrast.factor,
                "endpoint": contrast.endpoint, "n": contrast.paired.n, "seeds": list(contrast.paired.seeds),
                "differences": list(contrast.paired.differences), "mean": contrast.paired.sample.mean,
                "holm_p": contrast.adjusted_p, "least_p": contrast.paired.least_p, "conclusion": contrast.conclusion,
                "family": contrast.family, "changed": contrast.changed_words,
            }
            for contrast in contrasts
        ],
        "not_compared": left_out,
        "not_in_results": [vars(row) for row in results.excluded],
        "unreadable": list(results.problems),
        "notes": {run: [vars(remark) for remark in remarks] for run, remarks in results.remarks.items()},
        "set_aside": {run: list(names) for run, names in results.set_aside.items()},
        "warnings": results.warnings(),
    }  # fmt: skip


def summary_text(results: StudyResults) -> str:
    """The results as a text for a terminal or a mail.

    Args:
        results: the study.
    """
    runs = "1 run" if results.run_count == 1 else f"{results.run_count} runs"
    parts = [f"Study {one_line(results.name)}: {runs}, {results.status_words()}", ""]
    quantized = quantized_groups(results)
    if results.groups or not quantized:
        parts += [comparison(results).to_text() if results.groups else "No run has completed.", ""]
    if quantized:
        from vitfp8.analysis.quantization import quantization_table

        for group in quantized:
            parts += [
                f"{one_line(group.label)}: {one_line(', '.join(group.runs))}",
                quantization_table(group.records).to_text(),
                "",
            ]
    contrasts, left_out = find_contrasts(results)
    if contrasts:
        parts += ["Contrasts", contrast_table(results).to_text(), ""]
        for contrast in contrasts:
            differs = f" ({contrast.changed_words})" if contrast.changed_words else ""
            parts.append(f"- {one_line(contrast.label + differs)}: {contrast.conclusion}.")
        parts.append("")
    if results.excluded or results.problems or results.set_aside:
        parts += ["Not in the results", not_in_results(results).to_text(), ""]
    if results.remarks:
        parts += ["Notes", notes_table(results).to_text(), ""]
    remarks = list(dict.fromkeys([*left_out, *results.warnings()]))
    if remarks:
        parts += ["Remarks", *(f"- {one_line(remark)}" for remark in remarks), ""]
    parts += [f"The results are {one_line(backup_state(results.folder).words)}.", ""]
    return "\n".join(parts)


def _write_tables(results: StudyResults, report_folder: Path) -> list[Path]:
    """Write every table: ``tables/*.tex|csv`` and ``metrics_comparison_4exp.tex``. Returns the files."""
    folder = report_folder / "tables"
    files: list[Path] = []
    for make in (comparison, contrast_table, not_in_results, precision_table, provenance_table):
        files += make(results).save(folder)
    files += runs_table(results).save(folder, "csv")
    files += core_comparison(results).save(report_folder, "tex")
    if results.quantized:
        files += quantization_table(results.quantized).save(folder)
    if (notes := notes_table(results)).rows:
        files += notes.save(folder)
    return files


def write_report_files(results: StudyResults, report_folder: str | Path | None) -> list[Path]:
    """Write tables, ``all_experiments_summary.json`` and ``RESULTS_SUMMARY.txt``; figures are written as they are shown.

    Args:
        results: the study.
        report_folder: ``report/<study>``; None: nothing is written.

    Returns:
        The files.
    """
    if report_folder is None:
        return []
    folder = at_home(report_folder)
    files = _write_tables(results, folder)
    text = json.dumps(summary(results), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    for name, content in (("all_experiments_summary.json", text + "\n"), ("RESULTS_SUMMARY.txt", summary_text(results))):
        path = folder / name
        path.write_text(content, encoding="utf-8", errors="replace")
        files.append(path)
    return files
