"""The files of a report that are no figures: tables, a JSON for programs, a text for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitfp8.analysis.contrasts import find_contrasts
from vitfp8.analysis.escaping import one_line
from vitfp8.analysis.metrics import Group, StudyResults
from vitfp8.analysis.statistics import describe
from vitfp8.analysis.tables import METRIC_ROWS, comparison, contrast_table, not_in_results, write_tables
from vitfp8.home import at_home
from vitfp8.record import backup_state


def _group_summary(results: StudyResults, group: Group) -> dict[str, Any]:
    """One group for the JSON: numbers in base units."""
    metrics = {}
    for row in METRIC_ROWS:
        sample = describe(group.values(row.key))
        if sample is not None:
            metrics[row.key] = {
                "n": sample.n, "mean": sample.mean, "sd": sample.sd, "ci95": [sample.low, sample.high] if sample.n > 1 else None,
                "values": group.values(row.key),
            }  # fmt: skip
    return {
        "label": group.label,
        "experiment": group.experiment,
        "variant": group.variant,
        "origin": group.origin,
        "n": group.n,
        "seeds": [None if seed is None else int(seed) for seed in (results.records[run].seed for run in group.runs["run"])],
        "precision": group.precision,
        "backend": group.backend,
        "timings_comparable": group.backend == "native",
        "machine": group.machine,
        "notebooks": [Path(path).as_posix() for path in group.runs["path"]],
        "metrics": metrics,
    }


def summary(results: StudyResults) -> dict[str, Any]:
    """Everything that the report says in numbers, for programs: fractions, seconds, joules.

    Args:
        results: the study.
    """
    contrasts, left_out = find_contrasts(results)
    return {
        "format": 1,
        "study": results.name,
        "runs": len(results.runs),
        "statuses": {status: results.count(status) for status in sorted(set(results.runs["status"]))},
        "experiments": [_group_summary(results, group) for group in results.groups],
        "contrasts": [
            {
                "first": contrast.first.label, "second": contrast.second.label, "factor": contrast.factor,
                "endpoint": contrast.endpoint, "n": contrast.paired.n, "seeds": list(contrast.paired.seeds),
                "differences": list(contrast.paired.differences), "mean": contrast.paired.sample.mean,
                "holm_p": contrast.adjusted_p, "least_p": contrast.paired.least_p, "conclusion": contrast.conclusion,
            }
            for contrast in contrasts
        ],
        "not_compared": left_out,
        "not_in_results": [vars(row) for row in results.excluded],
        "unreadable": list(results.problems),
        "warnings": results.warnings(),
    }  # fmt: skip


def summary_text(results: StudyResults) -> str:
    """The results as a text for a terminal or a mail.

    Args:
        results: the study.
    """
    parts = [f"Study {one_line(results.name)}: {len(results.runs)} runs, {results.status_words()}", ""]
    table = comparison(results)
    parts += [table.to_text() if results.groups else "No run has completed.", ""]
    contrasts, left_out = find_contrasts(results)
    if contrasts:
        parts += ["Contrasts", contrast_table(results).to_text(), ""]
        parts += [f"- {one_line(contrast.label)}: {contrast.conclusion}." for contrast in contrasts] + [""]
    if results.excluded or results.problems:
        parts += ["Not in the results", not_in_results(results).to_text(), ""]
    remarks = [*left_out, *results.warnings()]
    if remarks:
        parts += ["Remarks", *(f"- {one_line(remark)}" for remark in remarks), ""]
    parts += [f"The results are {one_line(backup_state(results.folder).words)}.", ""]
    return "\n".join(parts)


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
    files = write_tables(results, folder)
    text = json.dumps(summary(results), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    for name, content in (("all_experiments_summary.json", text + "\n"), ("RESULTS_SUMMARY.txt", summary_text(results))):
        path = folder / name
        path.write_text(content, encoding="utf-8", errors="replace")
        files.append(path)
    return files
