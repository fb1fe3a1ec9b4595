"""The tables of a study.

``±`` is a standard deviation over seeds; times, memory and energy of emulated
arithmetic carry a dagger, because they say nothing about the format and are never compared. Those of runs that others disturbed
are in no mean; where there are no other runs, they carry a double dagger.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vitfp8.analysis.after_training import quantized_groups
from vitfp8.analysis.contrasts import ENDPOINTS, FAMILIES, Contrast, find_contrasts
from vitfp8.analysis.disturbance import MARK
from vitfp8.analysis.escaping import one_line
from vitfp8.analysis.factors import key_words
from vitfp8.analysis.grouping import Group
from vitfp8.analysis.results import IMPORTED_VALIDATION, StudyResults
from vitfp8.analysis.statistics import LEAST_SEEDS_FOR_A_TEST, describe
from vitfp8.analysis.table import MISSING, ReportTable, number
from vitfp8.catalog import AUGM_BUNDLE, EXPERIMENTS, PRECISIONS
from vitfp8.record import code_digest_rule


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A row of the comparison.

    Attributes:
        key: column of `load_runs`; for ``text`` only a name.
        label: with the unit.
        factor: from the column's unit to that one.
        digits: after the point.
        timed: whether emulated arithmetic, or others on the machine, make the value say nothing.
        text: gives the cell instead, for what is no mean of numbers.
        optional: left out where no group has it.
    """

    key: str
    label: str
    factor: float = 1.0
    digits: int = 2
    timed: bool = False
    text: Callable[[Group], str] | None = None
    optional: bool = False

    def values(self, group: Group) -> list[float]:
        """The values of a group's runs that count; see `Group.timed_values`.

        Args:
            group: whose.
        """
        return group.timed_values(self.key) if self.timed else group.values(self.key)


def mean_cell(group: Group, row: MetricRow) -> str:
    """Mean, ± standard deviation where there are several runs, and n where not all of them have the value.

    Args:
        group: whose.
        row: what.
    """
    sample = describe(row.values(group))
    if sample is None:
        return MISSING
    text = number(sample.mean, row.factor, row.digits)
    if sample.sd is not None:
        text += f" ± {number(sample.sd, row.factor, row.digits)}"
    if sample.n != group.n:
        text += f" (n = {sample.n})"
    return _marked(text, group) if row.timed else text


def _marked(text: str, group: Group) -> str:
    """A cell about time, memory or energy with the marks of its group."""
    return f"{text} {group.marks}".rstrip()


def _precision_cell(group: Group) -> str:
    """Effective precision and who multiplied."""
    name = PRECISIONS.get(group.precision or "", group.precision or MISSING)
    return f"{name}, {group.backend}" if group.backend else name


def _epoch_time_cell(group: Group) -> str:
    """Mean time of an epoch ± standard deviation over the epochs (pooled over the runs)."""
    mean = describe(group.timed_values("epoch_seconds_mean"))
    if mean is None:
        return MISSING
    spreads = group.timed_values("epoch_seconds_sd")
    pooled = math.sqrt(math.fsum(value**2 for value in spreads) / len(spreads)) if spreads else None
    spread = f" ± {number(pooled)}" if pooled is not None else ""
    return _marked(number(mean.mean) + spread, group)


def _epoch_median_cell(group: Group) -> str:
    """Median time of an epoch and its quartiles, over the epochs of all runs that count."""
    found = group.epoch_quartiles()
    return MISSING if found is None else _marked(f"{number(found[1])} ({number(found[0])}–{number(found[2])})", group)


def _disturbed_cell(group: Group) -> str:
    """During how many runs others took the processor."""
    told = [value for value in group.runs.get("disturbed", []) if isinstance(value, bool)]
    if not told:
        return "not measured"
    return f"{sum(told)} of {len(told)} runs" if any(told) else "no"


def _throttled_cell(group: Group) -> str:
    """Whether the machine slowed down, in how many runs."""
    told = [value for value in group.runs.get("throttled", []) if isinstance(value, bool)]
    if not told:
        return "not measured"
    return f"{sum(told)} of {len(told)} runs" if any(told) else "no"


def _whole_cell(key: str) -> Callable[[Group], str]:
    """Values of whole numbers: one when all runs agree, else the range."""

    def cell(group: Group) -> str:
        values = group.values(key)
        if not values:
            return MISSING
        low, high = min(values), max(values)
        return f"{low:.0f}" if low == high else f"{low:.0f}–{high:.0f}"

    return cell


#: The rows of the comparison, in order.
METRIC_ROWS: tuple[MetricRow, ...] = (
    MetricRow(key="precision", label="Effective precision", text=_precision_cell),
    MetricRow(key="augmentation", label="Augmentation", text=lambda group: str(group.stated.get("augmentation") or MISSING)),
    MetricRow(key="epochs", label="Epochs", text=_whole_cell("epochs")),
    MetricRow(key="test_acc", label="Test accuracy, last weights (%)", factor=100),
    MetricRow(key="best_test_acc", label="Test accuracy, best weights (%)", factor=100),
    MetricRow(key="best_val_acc", label="Best validation accuracy (%)", factor=100),
    MetricRow(key="best_epoch", label="Best epoch", text=_whole_cell("best_epoch")),
    MetricRow(key="final_val_acc", label="Final validation accuracy (%)", factor=100),
    MetricRow(key="final_train_acc", label="Final training accuracy (%)", factor=100),
    MetricRow(key="generalization_gap", label="Generalisation gap (points)", factor=100),
    MetricRow(key="final_train_loss", label="Final training loss", digits=4),
    MetricRow(key="final_val_loss", label="Final validation loss", digits=4),
    MetricRow(key="skipped_steps", label="Skipped steps", text=_whole_cell("skipped_steps"), optional=True),
    MetricRow(key="train_seconds", label="Total time (s)", digits=1, timed=True),
    MetricRow(key="epoch_seconds_mean", label="Time an epoch, ± over epochs (s)", timed=True, text=_epoch_time_cell),
    MetricRow(key="epoch_seconds_median", label="Time an epoch, median (quartiles) (s)", timed=True, text=_epoch_median_cell),
    MetricRow(key="images_per_second", label="Images a second", digits=0, timed=True),
    MetricRow(key="cpu_percent_mean", label="CPU, mean (%)", digits=0, timed=True),
    MetricRow(key="cpu_percent_max", label="CPU, maximum (%)", digits=0, timed=True),
    MetricRow(key="memory_percent_mean", label="Memory, mean (%)", digits=0, timed=True),
    MetricRow(key="memory_percent_max", label="Memory, maximum (%)", digits=0, timed=True),
    MetricRow(key="process_rss_bytes_max", label="Memory of the process, maximum (GB)", factor=1e-9, timed=True, optional=True),
    MetricRow(key="gpu_utilization_percent_mean", label="GPU, mean (%)", digits=0, timed=True, optional=True),
    MetricRow(key="gpu_memory_used_bytes_max", label="GPU memory, maximum (GB)", factor=1e-9, timed=True, optional=True),
    MetricRow(key="gpu_power_watts_mean", label="GPU power, mean (W)", digits=0, timed=True, optional=True),
    MetricRow(key="energy_joules", label="Energy (kJ)", factor=1e-3, timed=True, optional=True),
    MetricRow(key="disturbed", label="Others took the processor", text=_disturbed_cell),
    MetricRow(key="throttled", label="Throttled", text=_throttled_cell),
)


def _runs_cell(results: StudyResults, group: Group) -> str:
    """Number of runs, and of those that diverged beside them."""
    diverged = results.diverged_beside(group)
    return f"{group.n}" + (f" ({diverged} more diverged)" if diverged else "")


def _changes(results: StudyResults) -> dict[str, str]:
    """Label of a variant → the parameters that it changes against its base; variants that are compared with none are left out."""
    return {
        contrast.first.label: ", ".join(map(key_words, contrast.changed)) or contrast.changed_words
        for contrast in find_contrasts(results)[0]
        if contrast.family == "variants" and contrast.first.experiment == contrast.second.experiment
    }


_COMPARISON_COLUMNS = [
    "metric", "experiment", "variant", "origin", "group", "backend", "n", "mean", "sd", "ci_low", "ci_high", "min", "max",
]  # fmt: skip


def comparison(results: StudyResults, groups: Sequence[Group] | None = None, stem: str = "comparison") -> ReportTable:
    """The comparison: a row a metric, a column an experiment. The CSV has a row a metric and experiment.

    Args:
        results: the study.
        groups: which; None: all.
        stem: name of its files.
    """
    groups = results.groups if groups is None else groups
    rows = [["Runs (n)", *(_runs_cell(results, group) for group in groups)]] if groups else []
    if any(group.variant for group in groups):
        changes = _changes(results)
        rows.append(["Differs from its base in", *(changes.get(group.label, MISSING) for group in groups)])
    for row in METRIC_ROWS:
        if not groups or (row.optional and not any(group.values(row.key) for group in groups)):
            continue
        rows.append([row.label, *((row.text(group) if row.text else mean_cell(group, row)) for group in groups)])
    notes = ["Training accuracy and loss: on a fixed clean subset of the training images in evaluation mode, where recorded."]
    if any(group.n > 1 for group in groups):
        notes.insert(0, "± is the standard deviation over n runs with different seeds.")
    elif groups:
        notes.insert(0, "One run per cell: these numbers have no spread, and differences between them may be chance.")
    if any(group.imported for group in groups):
        notes.append(
            f"{IMPORTED_VALIDATION}; their training accuracy, and so the gap, is that while training, on augmented images."
        )
    if any(group.emulated for group in groups):
        notes.append("† emulated arithmetic: times, memory and energy are shown, and are not to be compared.")
    if any(group.disturbed == group.n for group in groups):
        notes.append(
            f"{MARK} others took the processor during every run: times, memory and energy are shown, and are not to be compared."
        )
    if left := sum(group.disturbed for group in groups if group.disturbed < group.n):
        runs = "one run" if left == 1 else f"{left} runs"
        notes.append(f"Times, memory and energy leave out {runs} during which others took the processor.")
    values = [
        [
            row.key, group.experiment, group.variant, group.origin, group.label, group.backend,
            sample.n, sample.mean, sample.sd, sample.low, sample.high, sample.minimum, sample.maximum,
        ]
        for row in METRIC_ROWS
        for group in groups
        if (sample := describe(row.values(group))) is not None
    ]  # fmt: skip
    return ReportTable(
        stem=stem,
        columns=["Metric", *(group.label for group in groups)],
        rows=rows,
        notes=notes,
        values=pd.DataFrame(values, columns=_COMPARISON_COLUMNS),
    )


def core_comparison(results: StudyResults) -> ReportTable:
    """The comparison of the study's four core experiments alone, as ``metrics_comparison_4exp``.

    Args:
        results: the study.
    """
    core = {name for name, row in EXPERIMENTS.items() if row.core}
    groups = [group for group in results.groups if group.origin == "run" and group.of_design and group.experiment in core]
    return comparison(results, groups, stem="metrics_comparison_4exp")


def contrast_table(results: StudyResults) -> ReportTable:
    """Paired differences of the primary endpoint, with confidence interval and test where there are seeds enough.

    Args:
        results: the study.
    """
    contrasts, _ = find_contrasts(results)
    rows, values = [], []
    for contrast in contrasts:
        sample, paired = contrast.paired.sample, contrast.paired
        interval = MISSING if sample.low is None else f"{number(sample.low, 100)} to {number(sample.high, 100)}"
        tested = paired.n >= LEAST_SEEDS_FOR_A_TEST and paired.p is not None
        p = f"{paired.p:.3g}" if tested else f"none: n < {LEAST_SEEDS_FOR_A_TEST}"
        rows.append([
            contrast.label, _factor_cell(contrast), str(paired.n), number(sample.mean, 100), interval, p,
            f"{contrast.adjusted_p:.3g}" if contrast.adjusted_p is not None else MISSING,
        ])  # fmt: skip
        values.append({
            "first": contrast.first.experiment, "second": contrast.second.experiment, "label": contrast.label,
            "factor": contrast.factor, "endpoint": contrast.endpoint, "n": paired.n,
            "seeds": " ".join(MISSING if seed is None else str(seed) for seed in paired.seeds),
            "difference_mean": sample.mean, "difference_sd": sample.sd, "ci_low": sample.low, "ci_high": sample.high,
            "sign_flip_p": paired.p if tested else None, "holm_p": contrast.adjusted_p, "least_p": paired.least_p,
            "family": contrast.family, "first_variant": contrast.first.variant, "second_variant": contrast.second.variant,
            "changed": contrast.changed_words,
        })  # fmt: skip
    endpoints = " or, where it is not known, ".join(_endpoints(contrast for contrast in contrasts if not contrast.first.imported))
    imported = " or ".join(_endpoints(contrast for contrast in contrasts if contrast.first.imported))
    notes = [f"Differences of {endpoints}, in points."] if endpoints else []
    notes += [f"Imported runs, among themselves: differences of {imported}, in points."] if imported else []
    if any(contrast.factor == "Augm" for contrast in contrasts):
        notes.append(f"“Augm” is a bundle: {AUGM_BUNDLE} change together.")
    if {contrast.family for contrast in contrasts} == {*FAMILIES}:
        notes.append("p (Holm) is adjusted within two families: the design's contrasts, and those of variants.")
    columns = ["Contrast", "Factor", "n", "Mean", "95 % interval", "p", "p (Holm)"]
    return ReportTable(stem="contrasts", columns=columns, rows=rows, notes=notes, values=pd.DataFrame(values))


def _factor_cell(contrast: Contrast) -> str:
    """What a contrast is about: the design's factor, or what a variant changes."""
    if contrast.family == "design":
        return contrast.factor
    return f"variant: {', '.join(map(key_words, contrast.changed)) or contrast.changed_words}"


def _endpoints(contrasts: Iterable[Contrast]) -> list[str]:
    """What some contrasts compare, in words, the primary endpoint first."""
    used = {contrast.endpoint: contrast.endpoint_words for contrast in contrasts}
    return [used[key] for key in ENDPOINTS if key in used]


def not_in_results(results: StudyResults) -> ReportTable:
    """The runs that no mean contains: diverged (a result, counted), interrupted, failed, superseded, and why.

    Args:
        results: the study.
    """
    rows = [[row.run, row.label, row.status, row.epochs, one_line(row.reason, 300)] for row in results.excluded]
    rows += [[MISSING, MISSING, "unreadable", MISSING, one_line(problem, 300)] for problem in results.problems]
    rows += [
        [run, MISSING, "set aside", MISSING, f"this run is there no more; superseded/ holds {one_line(', '.join(names), 250)}"]
        for run, names in results.set_aside.items()
    ]
    return ReportTable(stem="not_in_results", columns=["Run", "Experiment", "Status", "Epochs", "Reason"], rows=rows)


#: Kind of a remark → what the table of notes calls it.
_REMARKS = {"continued": "continued", "attempt": "earlier attempt", "superseded": "set aside", "note": "note"}


def notes_table(results: StudyResults) -> ReportTable:
    """What is noted of the runs beside their figures: continued, earlier attempts, earlier lab records, dated notes.

    What is noted of several runs in the same words stands in one row.

    Args:
        results: the study.
    """
    found: dict[tuple[str, str], list[tuple[str, str | None]]] = {}
    for run, remarks in results.remarks.items():
        for remark in remarks:
            found.setdefault((remark.kind, remark.text), []).append((run, remark.time))
    rows, values = [], []
    for (kind, text), told in found.items():
        runs = list(dict.fromkeys(run for run, _ in told))
        days = sorted({time[:10] for _, time in told if time})
        when = MISSING if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        rows.append([one_line(", ".join(runs), 200), one_line(when, 30), _REMARKS[kind], one_line(text, 600)])
        values += [{"run": run, "time": time, "kind": kind, "text": text} for run, time in told]
    return ReportTable(stem="notes", columns=["Run", "When", "What", "Text"], rows=rows, values=pd.DataFrame(values))


def precision_table(results: StudyResults) -> ReportTable:
    """Requested and effective precision of each completed run; runs that agree share a row.

    Args:
        results: the study.
    """
    counted: dict[tuple[str, ...], int] = {}
    for group in results.groups:
        for run in group.runs["run"]:
            p = results.records[run].precision
            if p is None:
                asked = PRECISIONS.get(str(group.precision), str(group.precision or MISSING))
                cells = (group.label, asked, MISSING, MISSING, MISSING, "the record does not say what ran")
            else:
                converted = f"{sum(layer.converted for layer in p.layers)} of {len(p.layers)}" if p.layers else MISSING
                asked, ran = (PRECISIONS.get(name, name) for name in (p.requested, p.effective))
                ran += f", {p.recipe}" if p.recipe else ""
                cells = (group.label, asked, ran, p.backend, converted, one_line(p.reason, 300) or MISSING)
            counted[cells] = counted.get(cells, 0) + 1
    rows = [[cells[0], str(count), *cells[1:]] for cells, count in counted.items()]
    columns = ["Experiment", "Runs", "Requested", "Effective", "Backend", "Layers converted", "Reason"]
    return ReportTable(stem="effective_precision", columns=columns, rows=rows)


def provenance_table(results: StudyResults) -> ReportTable:
    """Where each number comes from: the executed notebook, the code and the data.

    Args:
        results: the study.
    """
    shown = [
        (run, Path(path), group.label)
        for group in results.groups
        for run, path in zip(group.runs["run"], group.runs["path"], strict=True)
    ]
    shown += [(run, results.folder / f"{run}.ipynb", group.label) for group in quantized_groups(results) for run in group.runs]
    rows, values = [], []
    records = {run: results.records.get(run) or results.quantizations[run] for run, _, _ in shown}
    rules = {code_digest_rule(record.provenance) for record in records.values()} - {None}
    for run, path, label in shown:
        record = records[run]
        about = record.provenance
        rule = code_digest_rule(about)
        commit = str(about.get("commit") or "")
        dirty = " + changes" if about.get("dirty") else ""
        digests = [str(about.get("code_digest") or ""), str(record.data.get("digest") or "")]
        seed = MISSING if record.seed is None else str(record.seed)
        rows.append([
            path.name, label, seed, (commit[:10] or MISSING) + dirty,
            (digests[0][:10] or MISSING) + (f" (rule {rule})" if rule is not None and len(rules) > 1 else ""),
            digests[1][:10] or MISSING,
        ])  # fmt: skip
        values.append({
            "notebook": path.as_posix(), "experiment": record.experiment, "variant": record.variant,
            "seed": record.seed,
            "commit": commit or None, "dirty": about.get("dirty"), "code_digest": digests[0] or None,
            "code_digest_rule": rule, "data_digest": digests[1] or None, "parameters_digest": record.parameters_digest,
            "started": record.started, "finished": record.finished,
        })  # fmt: skip
    columns = ["Executed notebook", "Experiment", "Seed", "Commit", "Code digest", "Data digest"]
    notes = [f"The notebooks lie in {results.folder.as_posix()}; digests and commits are shortened here, whole in the CSV."]
    if len(rules) > 1:
        notes.append("Code digests of different rules were taken in different ways and cannot be compared.")
    return ReportTable(stem="provenance", columns=columns, rows=rows, notes=notes, values=pd.DataFrame(values))


def runs_table(results: StudyResults) -> ReportTable:
    """Every training with all its figures, whatever its status: one row per run, for further work.

    Args:
        results: the study.
    """
    rows = [[str(cell) for cell in row] for row in results.runs.itertuples(index=False)]
    return ReportTable(stem="runs", columns=list(results.runs.columns), rows=rows, values=results.runs)


def precision_summary(report: Mapping[str, Any]) -> ReportTable:
    """What was asked for and what really runs, with the layers that are treated alike in one row.

    Args:
        report: a record's precision: requested, effective, backend, reason, product_dtype, evaluation, loss_scaling,
            switches, attention, compiled, compile_reason, cuda_graphs, and layers with name, type, format, converted and reason.
    """
    names = (
        ("requested", "Requested"), ("effective", "Effective"), ("backend", "Backend"), ("reason", "Reason"),
        ("product_dtype", "Products computed in"), ("evaluation", "Validation and test"), ("loss_scaling", "Loss scaling"),
    )  # fmt: skip
    rows = [[label, one_line(report[key]) if report.get(key) is not None else "none"] for key, label in names if key in report]
    if report.get("attention") is not None:
        rows.append(["Attention", one_line(report["attention"]).replace("_", " ")])
    if report.get("compiled") is not None:
        graphs = ", with CUDA graphs" if report.get("cuda_graphs") else ""
        why = one_line(report.get("compile_reason") or "")
        rows.append(["Compiled", f"{'yes' if report['compiled'] else 'no'}{graphs}{f' ({why})' if why else ''}"])
    rows += [[one_line(key), one_line(value)] for key, value in dict(report.get("switches") or {}).items()]
    layers = [layer if isinstance(layer, Mapping) else layer.model_dump() for layer in report.get("layers") or []]
    alike = Counter(
        (str(layer.get("type")), str(layer.get("format")), bool(layer.get("converted")), str(layer.get("reason") or ""))
        for layer in layers
    )
    for (kind, fmt, converted, reason), count in alike.items():
        said = PRECISIONS.get(fmt, fmt) + ("" if converted else ", not converted") + (f": {reason}" if reason else "")
        rows.append([f"{count} × {kind}", said])
    return ReportTable(stem="precision", columns=["Precision", "What really runs"], rows=rows)
