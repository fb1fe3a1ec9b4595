"""What a study found: its records, grouped into the cells that may be averaged.

Only completed runs enter a group. A group holds runs that differ in nothing but the seed: the same experiment, variant, origin,
parameters and kind of arithmetic. Runs of another data set or length in the same folder make a group of their own, with a label
that says so, and are warned about.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitfp8.analysis import disturbance
from vitfp8.analysis.factors import (
    BUNDLE_KEYS,
    DATA_KEYS,
    MACHINE_KEYS,
    NAMES,
    PRECISION_KEYS,
    departures,
    differing_keys,
    key_words,
    recorded_precision,
    recorded_words,
    value_words,
)
from vitfp8.catalog import EXPERIMENTS, catalogue_order, label_of, row_of
from vitfp8.errors import InputError
from vitfp8.home import at_home, run_command, study_home
from vitfp8.params import identity_of
from vitfp8.params.quantization import parameters_of
from vitfp8.record import (
    Remark,
    RunRecord,
    code_digest_rule,
    history_frame,
    load_records,
    quartiles,
    remarks_of,
    runs_frame,
    superseded_of,
)

#: What stands for the epochs of a run that trains nothing.
MISSING_EPOCHS = "–"

#: What "validation" is of an imported run; said wherever one of its accuracies stands.
IMPORTED_VALIDATION = "Imported runs: “validation” is the test set, which also chose the best epoch"

#: What else is different about imported runs, in sentences.
IMPORTED_CAVEATS = (
    f"{IMPORTED_VALIDATION}; their best accuracy is biased upwards, and is no validation or test accuracy of this project.",
    "Imported runs took means of batch means, set no seed, and measured training accuracy while training, on augmented images; "
    "those in FP16 were evaluated in FP32. Their notebooks say what is known and what is not.",
)

#: No loss, norm or time is as large; squares of such numbers, and sums of them, overflow.
_LARGEST = 1e100

#: Styles for what the catalogue does not know, and for further groups of one experiment.
_SPARE_COLORS = ("#7f3c8d", "#525252", "#0072b2", "#b8860b", "#008080", "#d55e00")
_SPARE_LINES: tuple[Any, ...] = ((0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)), (0, (8, 2)), (0, (5, 1, 1, 1)))
_SPARE_MARKERS = ("P", "X", "v", "<", ">", "p", "*", "h")
_SPARE_HATCHES = ("\\\\", "++", "oo", "--", "||", "**")


def finite(value: Any) -> float | None:
    """A number as a float; None for what is missing, no number, NaN, infinite, or so large that its square is.

    Args:
        value: anything that a record may hold.
    """
    if value is None or value is pd.NA or isinstance(value, (bool, np.bool_, str)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) < _LARGEST else None


def finite_values(values: Iterable[Any]) -> list[float]:
    """Those values that are finite numbers.

    Args:
        values: anything that a record may hold.
    """
    return [number for number in map(finite, values) if number is not None]


def steady_seconds(values: Iterable[Any]) -> list[float]:
    """The seconds of a run's epochs that count: without the first, slower one where there are more.

    Args:
        values: in the order of the epochs.
    """
    seconds = list(values)
    return finite_values(seconds[1:] or seconds)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a group is drawn: each style differs in more than its colour."""

    color: str
    linestyle: Any
    marker: str
    hatch: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A column of the history of a group, over its seeds.

    Attributes:
        epochs: from 1.
        mean: over the runs that have a value there.
        low: least of the runs' values.
        high: greatest of them.
        n: number of runs.
        column: which column it is.
    """

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    column: str


@dataclass(frozen=True, kw_only=True)
class Group:
    """Completed runs that differ in their seed alone.

    Attributes:
        experiment: its name in the catalogue.
        variant: control or point of a sweep; empty for the experiment itself.
        origin: ``run`` or ``imported``.
        label: what figures and tables call it.
        parameters: deciding parameters that the runs share.
        stated: every parameter of the first run's record.
        departures: factors in which the runs are not what their name says, see `vitfp8.analysis.factors.departures`.
        machine: device and processor.
        backend: ``native``, ``emulated`` or None where the record does not say.
        compiled: whether its models were compiled: their times compare with each other's only.
        precision: effective precision.
        style: how it is drawn.
        runs: a row a run, of `load_runs`.
        history: a row a run and epoch, of `load_history`.
    """

    experiment: str
    variant: str
    origin: str
    label: str
    parameters: Mapping[str, Any]
    stated: Mapping[str, Any]
    departures: Mapping[str, Any]
    machine: str
    backend: str | None
    compiled: bool
    precision: str | None
    style: Style
    runs: pd.DataFrame
    history: pd.DataFrame

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def emulated(self) -> bool:
        """Whether its times, memory and energy say nothing about the format."""
        return self.backend == "emulated"

    @property
    def imported(self) -> bool:
        """Whether its runs come from an earlier project: what they call validation is not what it is here."""
        return self.origin == "imported"

    @property
    def of_design(self) -> bool:
        """Whether it is a cell of the design: no variant, and what its name says."""
        return not self.variant and not self.departures

    @cached_property
    def disturbed(self) -> int:
        """Number of runs during which others took the processor."""
        return sum(value is True for value in self.runs.get("disturbed", []))

    @property
    def marks(self) -> str:
        """What stands beside its times, memory and energy: † emulated, ‡ every run was disturbed; empty: they may be compared."""
        return " ".join(("†",) * self.emulated + (disturbance.MARK,) * (self.disturbed == self.n))

    @property
    def marked_label(self) -> str:
        """The label, with the marks of its times."""
        return f"{self.label} {self.marks}".rstrip()

    @cached_property
    def undisturbed_runs(self) -> list[str]:
        """The runs whose times count: those that nobody disturbed, or all of them where every one was."""
        names = list(self.runs["run"])
        if not 0 < self.disturbed < self.n:
            return names
        return [run for run, value in zip(names, self.runs["disturbed"], strict=True) if value is not True]

    def timed_values(self, key: str) -> list[float]:
        """The finite values of a column about time, memory or energy: without disturbed runs, unless all were disturbed.

        Args:
            key: the column of `runs`.
        """
        kept = self.runs[self.runs["run"].isin(self.undisturbed_runs)]
        return finite_values(kept[key]) if key in kept else []

    def epoch_quartiles(self) -> tuple[float, float, float] | None:
        """First quartile, median and third quartile of the seconds of an epoch, over the epochs of all undisturbed runs.

        The first epoch of a run, which is slower, is left out where there are more. None: no time is recorded.
        """
        if "epoch_seconds" not in self.history:
            return None
        seconds: list[float] = []
        for run in self.undisturbed_runs:
            rows = self.history[self.history["run"] == run]
            seconds += steady_seconds(rows["epoch_seconds"])
        return quartiles(seconds) if seconds else None

    def values(self, key: str) -> list[float]:
        """The finite values of a column of `runs`, a run each.

        Args:
            key: the column.
        """
        return finite_values(self.runs[key]) if key in self.runs else []

    def by_seed(self, key: str) -> dict[int | None, float]:
        """Seed → value of a column; the seed None stands for an only run without one.

        Args:
            key: the column of `runs`.
        """
        found: dict[int | None, float] = {}
        for seed, value in zip(self.runs["seed"], self.runs.get(key, [None] * self.n), strict=True):
            number = finite(value)
            if number is not None and (not pd.isna(seed) or self.n == 1):
                found[None if pd.isna(seed) else int(seed)] = number
        return found

    def curve(self, *columns: str) -> Curve | None:
        """The first of the columns that has values, by epoch; None when none has.

        Args:
            columns: of the history, in order of preference.
        """
        for column in columns:
            if column not in self.history:
                continue
            table = self.history.assign(value=self.history[column].map(finite)).dropna(subset=["value"])
            if table.empty:
                continue
            values = table.assign(value=table["value"].astype(float)).groupby("epoch")["value"]
            frame = values.agg(["mean", "min", "max"]).sort_index()
            return Curve(
                epochs=frame.index.to_numpy(dtype=float), mean=frame["mean"].to_numpy(), low=frame["min"].to_numpy(),
                high=frame["max"].to_numpy(), n=table["run"].nunique(), column=column,
            )  # fmt: skip
        return None


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A run that is not in the results, and why."""

    run: str
    experiment: str
    label: str
    seed: int | None
    status: str
    epochs: str
    reason: str


@dataclass(kw_only=True)
class StudyResults:
    """Everything that a study's folder holds, read once.

    Attributes:
        folder: ``executed/<study>``.
        runs: a row a run, of `load_runs`, whatever its status.
        history: a row a run and epoch, of `load_history`.
        records: training run → its record.
        problems: a line for each notebook that cannot be read.
        quantizations: quantisation after training → its record, whatever its status.
        remarks: run of either kind → what is noted of it; runs of which nothing is noted are left out.
        set_aside: run that is there no more → its lab records in ``superseded/``.
    """

    folder: Path
    runs: pd.DataFrame
    history: pd.DataFrame
    records: Mapping[str, RunRecord]
    problems: Sequence[str] = field(default_factory=list)
    quantizations: Mapping[str, RunRecord] = field(default_factory=dict)
    remarks: Mapping[str, Sequence[Remark]] = field(default_factory=dict)
    set_aside: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The study's name: that of its folder."""
        return self.folder.resolve().name

    @cached_property
    def _superseded(self) -> dict[str, str]:
        """Completed runs of which another one with the same seed and parameters is later → the one that counts."""
        latest: dict[str, pd.Series] = {}
        older: dict[str, str] = {}
        for _, row in self.runs[self.runs["status"] == "completed"].iterrows():
            if pd.isna(row["seed"]):
                continue
            key = _group_key(self.records[row["run"]], with_seed=True)
            other = latest.get(key)
            if other is None or str(row.get("started") or "") >= str(other.get("started") or ""):
                latest[key] = row
                if other is not None:
                    older[other["run"]] = row["run"]
            else:
                older[row["run"]] = other["run"]
        return _that_count(older)

    @cached_property
    def groups(self) -> list[Group]:
        """The groups of completed runs, in the catalogue's order; imported ones after those that were run here."""
        completed = self.runs[(self.runs["status"] == "completed") & ~self.runs["run"].isin(list(self._superseded))]
        keyed: dict[str, list[str]] = {}
        for run in completed["run"]:
            keyed.setdefault(_group_key(self.records[run]), []).append(run)
        found = sorted(keyed.values(), key=lambda names: _order(self.records[names[0]]))
        siblings: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for names in found:
            record = self.records[names[0]]
            siblings.setdefault((*_cell(record), recorded_words(departures(record))), []).append(_context(record))
        styles = _Styles()
        groups = []
        for names in found:
            record = self.records[names[0]]
            context = _context(record)
            differing = departures(record)
            recorded = recorded_words(differing)
            suffix = ", ".join(filter(None, (recorded, _differences(context, siblings[(*_cell(record), recorded)]))))
            groups.append(
                Group(
                    experiment=record.experiment,
                    variant=record.variant,
                    origin=record.origin,
                    label=group_label(record.experiment, record.variant, record.origin, suffix),
                    parameters=deciding_parameters(record),
                    stated=record.parameters,
                    departures=differing,
                    machine=str(context["machine"]),
                    backend=record.precision.backend if record.precision else None,
                    compiled="compiled" in context,
                    precision=recorded_precision(record),
                    style=styles.take(record.experiment, of_design=not (record.variant or differing)),
                    runs=completed[completed["run"].isin(names)].reset_index(drop=True),
                    history=self.history[self.history["run"].isin(names)].reset_index(drop=True),
                )
            )
        return groups

    @cached_property
    def excluded(self) -> list[Excluded]:
        """Every run that is not in the results, with its reason."""
        rows = []
        for _, row in self.runs.iterrows():
            record = self.records[row["run"]]
            reason = record.reason or ""
            if row["status"] == "completed":
                if row["run"] not in self._superseded:
                    continue
                reason = f"the same seed and parameters as {self._superseded[row['run']]}, which is later and counts"
            rows.append(
                Excluded(
                    run=row["run"],
                    experiment=record.experiment,
                    label=group_label(record.experiment, record.variant, record.origin),
                    seed=record.seed,
                    status=record.status,
                    epochs=_how_far(record),
                    reason=reason or "no reason recorded",
                )
            )
        rows += [
            Excluded(
                run=run,
                experiment=record.experiment,
                label=group_label(record.experiment, record.variant, record.origin),
                seed=record.seed,
                status=record.status,
                epochs=MISSING_EPOCHS,
                reason=record.reason or "no reason recorded",
            )
            for run, record in self.quantizations.items()
            if record.status != "completed"
        ]
        rows += [
            Excluded(
                run=run,
                experiment=self.quantizations[run].experiment,
                label=group_label(self.quantizations[run].experiment, self.quantizations[run].variant),
                seed=self.quantizations[run].seed,
                status=self.quantizations[run].status,
                epochs=MISSING_EPOCHS,
                reason=f"the same seed and parameters as {later}, which is later and counts",
            )
            for run, later in self._quantized[1].items()
        ]
        return rows

    @cached_property
    def _quantized(self) -> tuple[list[dict[str, RunRecord]], dict[str, str]]:
        """Completed quantisations that may be averaged, run → record in each; and repeats of a seed → the one that counts."""
        cells: dict[str, dict[str, RunRecord]] = {}
        older: dict[str, str] = {}
        completed = [(run, r) for run, r in self.quantizations.items() if r.status == "completed" and r.quantization]
        for run, record in sorted(completed, key=lambda pair: pair[1].started or ""):
            cell = cells.setdefault(_quantization_key(record), {})
            for other in [name for name, earlier in cell.items() if record.seed is not None and earlier.seed == record.seed]:
                del cell[other]
                older[other] = run
            cell[run] = record
        first = {key: next(iter(cell.values())) for key, cell in cells.items()}
        keys = sorted(cells, key=lambda key: (first[key].origin == "imported", first[key].variant, key))
        chosen = [dict(sorted(cells[key].items(), key=lambda pair: pair[1].seed or 0)) for key in keys]
        return chosen, _that_count(older)

    @property
    def quantization_cells(self) -> list[dict[str, RunRecord]]:
        """Completed quantisations, run → record: each cell holds runs that differ in nothing but the seed.

        The experiment itself comes before its variants, imported ones come last.
        """
        return self._quantized[0]

    @property
    def quantized(self) -> list[RunRecord]:
        """The completed quantisations of the first cell, with the first imported one beside them."""
        chosen: list[RunRecord] = []
        for origin in ("run", "imported"):
            cells = (list(cell.values()) for cell in self.quantization_cells)
            chosen += next((records for records in cells if records[0].origin == origin), [])
        return chosen

    @property
    def statuses(self) -> Counter[str]:
        """Status → number of runs of either kind that ended so."""
        return Counter(self.runs["status"]) + Counter(record.status for record in self.quantizations.values())

    @property
    def run_count(self) -> int:
        """Number of runs, trainings and quantisations after training alike."""
        return self.statuses.total()

    def count(self, status: str) -> int:
        """Number of runs of either kind with a status.

        Args:
            status: of `vitfp8.catalog.STATUSES`.
        """
        return self.statuses[status]

    def status_words(self, *, trainings: bool = False) -> str:
        """How many runs ended how, e.g. ``3 completed, 1 diverged``.

        Args:
            trainings: without quantisations after training.
        """
        counts = Counter(self.runs["status"]) if trainings else self.statuses
        return ", ".join(f"{counts[key]} {key}" for key in sorted(counts, key=lambda key: (key != "completed", key))) or "no run"

    @property
    def test_images(self) -> int | None:
        """Number of test images, where the runs that were executed here agree on one."""
        sizes = {_test_images(self.records[run]) for g in self.groups if not g.imported for run in g.runs["run"]}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def missing_experiments(self) -> list[str]:
        """Those of the four core experiments without a completed run: variants, and runs with other factors, are none."""
        there = {group.experiment for group in self.groups if group.of_design}
        return [name for name, row in EXPERIMENTS.items() if row.core and name not in there]

    @property
    def has_imported(self) -> bool:
        """Whether any result comes from an earlier project."""
        return any(group.imported for group in self.groups) or any(r.origin == "imported" for r in self.quantized)

    def mismatches(self) -> list[str]:
        """Sentences about parameters outside the design that differ, so that runs are not comparable; usually none."""
        fresh = [group for group in self.groups if group.origin == "run"]
        said = []
        free = {*BUNDLE_KEYS, *PRECISION_KEYS, *MACHINE_KEYS}
        for key in _keys(fresh):
            # what a variant changes on purpose is named where it is compared; other images are never compared
            groups = [group for group in fresh if not group.variant or key in DATA_KEYS]
            if not any(differing_keys(groups[0].parameters, group.parameters, free=free).count(key) for group in groups[1:]):
                continue
            by_value: dict[str, list[str]] = {}
            for group in groups:
                by_value.setdefault(value_words(key, group.parameters.get(key)), []).append(group.label)
            parts = "; ".join(f"{value} in {', '.join(labels)}" for value, labels in by_value.items())
            said.append(f"These runs are not comparable throughout, {key_words(key)} differs: {parts}.")
        return said

    def misnamed(self) -> list[str]:
        """Sentences about runs that are not what their names say; none where the records agree with the names."""
        said = []
        for group in self.groups:
            if group.departures:
                runs = list(group.runs["run"])
                what = ", ".join(f"{key_words(key)} {value_words(key, value)}" for key, value in group.departures.items())
                said.append(
                    f"{', '.join(runs)} {'is' if len(runs) == 1 else 'are'} named {label_of(group.experiment)}, but recorded "
                    f"with {what}: labelled “{group.label}” here, and in no contrast of the design."
                )
        return said

    def disturbances(self) -> list[str]:
        """Sentences about runs during which others took the processor; none where nobody did, or where it was not measured."""
        runs = self.runs[self.runs["run"].isin([run for group in self.groups for run in group.runs["run"]])]
        told = [(row["run"], row["others_share"]) for _, row in runs.iterrows() if row.get("disturbed") is True]
        if not told:
            return []
        parts = ", ".join(f"{run} ({100 * share:.0f} % of the processors)" for run, share in told)
        return [
            f"Others took the processor while {parts} trained. Times, memory and energy of "
            f"{'this run' if len(told) == 1 else 'these runs'} are in no mean and no comparison; where an experiment has no "
            f"other run, they are shown with {disturbance.MARK}. Accuracies are not affected."
        ]

    def warnings(self) -> list[str]:
        """Sentences about what must not be compared; empty when everything may."""
        groups = [group for group in self.groups if group.origin == "run"]
        said = self.misnamed() + self.mismatches()
        machines = {group.machine for group in groups}
        if len(machines) > 1:
            said.append(
                f"The runs come from different machines ({'; '.join(sorted(machines))}): times are not compared between them."
            )
        said += self.disturbances()
        if self.has_imported:
            said.append("Imported runs stand beside those that were run here; they are never averaged or compared with them.")
            said += IMPORTED_CAVEATS
        codes: dict[int | None, set[str]] = {}  # digests that were taken by different rules cannot be compared
        for run in (run for group in groups for run in group.runs["run"]):
            about = self.records[run].provenance
            codes.setdefault(code_digest_rule(about), set()).update(finite_texts([about.get("code_digest")]))
        versions = max(map(len, codes.values()), default=0)
        if versions > 1:
            said.append(f"The runs were made by {versions} versions of the code that decides numbers; see the provenance.")
        if len(codes.keys() - {None}) > 1:
            said.append(
                "Code digests of these runs were taken in different ways, by different versions of vitfp8: whether the same code "
                "decided their numbers is not known."
            )
        return said


def finite_text(value: Any) -> str | None:
    """A text that is not empty; None for anything else.

    Args:
        value: anything that a record may hold.
    """
    return value if isinstance(value, str) and value else None


def finite_texts(values: Iterable[Any]) -> list[str]:
    """Those values that are texts and not empty.

    Args:
        values: anything that a record may hold.
    """
    return [value for value in values if isinstance(value, str) and value]


def load_results(folder: str | Path) -> StudyResults:
    """Read a study: every record of its folder.

    Args:
        folder: ``executed/<study>``.

    Raises:
        InputError: there is no folder, or no readable record in it; the line says which command makes some.
    """
    folder = at_home(folder)
    command = f"`{run_command(folder.name)}` executes them"
    if not folder.is_dir():
        seen = "" if folder.is_absolute() else f" (seen from {study_home()})"
        raise InputError(f"study_folder: '{folder}': there is no such folder of runs{seen}; {command}")
    pairs, problems = load_records(folder)
    records = {path.stem: record for path, record in pairs if record.kind == "run"}
    quantizations = {path.stem: record for path, record in pairs if record.kind == "quantization"}
    if not records and not quantizations:
        why = f" ({len(problems)} unreadable, the first: {problems[0]})" if problems else ""
        raise InputError(f"study_folder: '{folder}': holds no record of a run{why}; {command}")
    history = history_frame(pairs)
    runs = _with_times(runs_frame(pairs), history, records)
    noted = {path.stem: remarks for path, record in pairs if (remarks := remarks_of(path, record))}
    there = {path.stem for path, _ in pairs}
    return StudyResults(
        folder=folder, runs=runs, history=history, records=records, problems=problems, quantizations=quantizations,
        remarks=noted, set_aside={run: names for run, names in superseded_of(folder).items() if run not in there},
    )  # fmt: skip


def _with_times(runs: pd.DataFrame, history: pd.DataFrame, records: Mapping[str, RunRecord]) -> pd.DataFrame:
    """The runs with what the analysis adds: quartiles of epoch times that older records lack, and who else used the machine."""
    columns: dict[str, list[Any]] = {key: [] for key in ("epoch_seconds_q1", "epoch_seconds_median", "epoch_seconds_q3")}
    for run in runs["run"]:
        metrics, rows = records[run].metrics, history[history["run"] == run]
        known = [finite(getattr(metrics, key)) for key in columns]
        seconds = steady_seconds(rows["epoch_seconds"]) if "epoch_seconds" in rows and records[run].status == "completed" else []
        if None in known and seconds:
            known = list(quartiles(seconds))
        for column, value in zip(columns.values(), known, strict=True):
            column.append(value)
    added: dict[str, list[Any]] = columns | {
        "disturbed": [disturbance.disturbed(records[run]) for run in runs["run"]],
        "others_share": [disturbance.others_share(records[run]) for run in runs["run"]],
    }
    return runs.assign(**{key: pd.Series(values, index=runs.index, dtype=object) for key, values in added.items()})


def group_label(experiment: str, variant: str = "", origin: str = "run", suffix: str = "") -> str:
    """What figures and tables call a group.

    Args:
        experiment: its name.
        variant: control or point of a sweep.
        origin: ``run`` or ``imported``.
        suffix: what else distinguishes it.
    """
    further = [part for part in (variant, "imported" if origin == "imported" else "", suffix) if part]
    return label_of(experiment) + (f" ({', '.join(further)})" if further else "")


def deciding_parameters(record: RunRecord) -> dict[str, Any]:
    """The parameters of a run that can change its numbers, without the seed; the data's digest is one of them.

    Args:
        record: the run's record.
    """
    found = identity_of(parameters_of(record.experiment), record.parameters)
    found.pop("seed", None)
    if record.data.get("digest"):
        found["data_digest"] = str(record.data["digest"])[:12]
    if record.weights_digest:
        found["pretrained_sha256"] = record.weights_digest[:12]
    return found


def _machine(record: RunRecord) -> str:
    """Device and processor of a run."""
    parts = finite_texts([record.provenance.get("device"), record.provenance.get("processor")])
    return ", ".join(dict.fromkeys(parts)) or "unknown machine"


def _context(record: RunRecord) -> dict[str, Any]:
    """What the runs of a group share."""
    backend = record.precision.backend if record.precision else None
    said = record.precision.compiled if record.precision else None
    # records from before the program decided it say what was asked for
    compiled = record.parameters.get("torch_compile") is True if said is None else said
    shared = deciding_parameters(record) | {"backend": backend, "machine": _machine(record)}
    return shared | {"compiled": True} if compiled else shared


def _cell(record: RunRecord) -> tuple[str, str, str]:
    """Experiment, variant and origin of a run."""
    return record.experiment, record.variant, record.origin


def _group_key(record: RunRecord, *, with_seed: bool = False) -> str:
    """Equal for runs that may be averaged (with the seed: for repeats of one run)."""
    return json.dumps([_cell(record), _context(record), record.seed if with_seed else None], sort_keys=True, default=str)


def _quantization_key(record: RunRecord) -> str:
    """Equal for quantisations that may be averaged: same variant, origin, settings, data, and kind of source."""
    settings = identity_of(parameters_of(record.experiment), record.parameters)
    settings.pop("seed", None)
    source = [record.source.get(key) for key in ("experiment", "variant", "precision")]
    return json.dumps([_cell(record), settings, source, record.data.get("digest")], sort_keys=True, default=str)


def _order(record: RunRecord) -> tuple[Any, ...]:
    """Sort key of groups."""
    return record.origin == "imported", catalogue_order(record.experiment), record.variant, _group_key(record)


def _differences(context: Mapping[str, Any], siblings: Sequence[Mapping[str, Any]]) -> str:
    """What distinguishes a group from others of the same experiment and variant: as few parameters as tell all of them apart."""
    differing = sorted({key for one in siblings for other in siblings for key in differing_keys(one, other)})
    preferred = [key for key in ("dataset", "epochs", "model", "image_size", "backend", "machine") if key in differing]
    shown: list[str] = []
    for key in preferred + [key for key in differing if key not in preferred]:
        told = {tuple(value_words(k, other.get(k)) for k in shown) for other in siblings}
        if len({tuple(value_words(k, other.get(k)) for k in [*shown, key]) for other in siblings}) > len(told):
            shown.append(key)
    return ", ".join(f"{key_words(key)} {value_words(key, context.get(key))}" for key in shown)


def _keys(groups: Sequence[Group]) -> list[str]:
    """Every parameter that a group states, but names."""
    return list(dict.fromkeys(key for group in groups for key in group.parameters if key not in NAMES))


def _that_count(later: Mapping[str, str]) -> dict[str, str]:
    """Repeated runs → the latest one of each, from repeated runs → the next later one."""
    found = {}
    for run, counts in later.items():
        while counts in later:
            counts = later[counts]
        found[run] = counts
    return found


def _how_far(record: RunRecord) -> str:
    """Epochs done of epochs planned."""
    done = record.progress.get("epoch", len(record.history) or None)
    planned = record.progress.get("epochs", record.parameters.get("epochs"))
    return f"{'?' if done is None else done} of {'?' if planned is None else planned}"


def _test_images(record: RunRecord) -> int | None:
    """Number of test images of a run."""
    labels = record.predictions.get("labels")
    if labels:
        return len(labels)
    sizes = record.data.get("sizes")
    number = finite(sizes.get("test")) if isinstance(sizes, dict) else None
    return int(number) if number else None


class _Styles:
    """Hands out styles: the catalogue's first, then spare ones, so that no two groups look alike."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self._colors: dict[str, str] = {}
        self._spare = 0

    def take(self, experiment: str, *, of_design: bool = True) -> Style:
        """The next style for an experiment; its own one is for the experiment itself, not for variants and misnamed runs."""
        row = row_of(experiment)
        first = of_design and self._taken[experiment] == 0
        self._taken[experiment] += of_design
        if row is not None and first:
            return Style(color=row.color, linestyle=row.linestyle, marker=row.marker, hatch=row.hatch)
        color = row.color if row else self._colors.setdefault(experiment, _SPARE_COLORS[len(self._colors) % len(_SPARE_COLORS)])
        number, self._spare = self._spare, self._spare + 1
        return Style(
            color=color, linestyle=_SPARE_LINES[number % len(_SPARE_LINES)],
            marker=_SPARE_MARKERS[number % len(_SPARE_MARKERS)], hatch=_SPARE_HATCHES[number % len(_SPARE_HATCHES)],
        )  # fmt: skip
