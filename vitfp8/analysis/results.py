"""What a study found: everything in its folder, read once, and what may be said of it.

Only completed runs enter a group (see `vitfp8.analysis.grouping`); every other run is listed with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from vitfp8.analysis import disturbance
from vitfp8.analysis.factors import (
    BUNDLE_KEYS,
    DATA_KEYS,
    MACHINE_KEYS,
    PRECISION_KEYS,
    departures,
    differing_keys,
    key_words,
    recorded_precision,
    recorded_words,
    value_words,
)
from vitfp8.analysis.grouping import (
    Group,
    cell_of,
    deciding_parameters,
    distinguishing_words,
    group_key,
    group_label,
    group_order,
    quantization_key,
    shared_context,
    stated_keys,
)
from vitfp8.analysis.style import Styles
from vitfp8.analysis.values import finite, nonempty_texts, steady_seconds
from vitfp8.catalog import EXPERIMENTS, label_of
from vitfp8.errors import InputError
from vitfp8.home import at_home, run_command, study_home
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
        runs: one row per run, of `load_runs`, whatever its status.
        history: one row per run and epoch, of `load_history`.
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
            key = group_key(self.records[row["run"]], with_seed=True)
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
            keyed.setdefault(group_key(self.records[run]), []).append(run)
        found = sorted(keyed.values(), key=lambda names: group_order(self.records[names[0]]))
        siblings: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for names in found:
            record = self.records[names[0]]
            siblings.setdefault((*cell_of(record), recorded_words(departures(record))), []).append(shared_context(record))
        styles = Styles()
        groups = []
        for names in found:
            record = self.records[names[0]]
            context = shared_context(record)
            differing = departures(record)
            recorded = recorded_words(differing)
            suffix = ", ".join(filter(None, (recorded, distinguishing_words(context, siblings[(*cell_of(record), recorded)]))))
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
            cell = cells.setdefault(quantization_key(record), {})
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

    def diverged_beside(self, group: Group) -> int:
        """Number of diverged runs of the same experiment, variant, origin and parameters as a group's."""
        cell = (group.experiment, group.variant, group.origin)
        return sum(
            record.status == "diverged" and cell_of(record) == cell and deciding_parameters(record) == group.parameters
            for record in self.records.values()
        )

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
        for key in stated_keys(fresh):
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
            codes.setdefault(code_digest_rule(about), set()).update(nonempty_texts([about.get("code_digest")]))
        versions = max(map(len, codes.values()), default=0)
        if versions > 1:
            said.append(f"The runs were made by {versions} versions of the code that decides numbers; see the provenance.")
        if len(codes.keys() - {None}) > 1:
            said.append(
                "Code digests of these runs were taken in different ways, by different versions of vitfp8: whether the same code "
                "decided their numbers is not known."
            )
        return said


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
