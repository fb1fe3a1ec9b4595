"""Groups: completed runs that may be averaged.

A group holds runs that differ in nothing but the seed: the same experiment, variant, origin, parameters and kind of arithmetic.
Runs of another data set or length in the same folder make a group of their own, with a label that says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from vitfp8.analysis import disturbance
from vitfp8.analysis.factors import NAMES, differing_keys, key_words, value_words
from vitfp8.analysis.style import Style
from vitfp8.analysis.values import finite, finite_values, nonempty_texts, steady_seconds
from vitfp8.catalog import catalogue_order, label_of
from vitfp8.params import identity_of
from vitfp8.params.quantization import parameters_of
from vitfp8.record import RunRecord, quartiles


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
        runs: one row per run, of `load_runs`.
        history: one row per run and epoch, of `load_history`.
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
    parts = nonempty_texts([record.provenance.get("device"), record.provenance.get("processor")])
    return ", ".join(dict.fromkeys(parts)) or "unknown machine"


def shared_context(record: RunRecord) -> dict[str, Any]:
    """What the runs of a group share."""
    backend = record.precision.backend if record.precision else None
    said = record.precision.compiled if record.precision else None
    # records from before the program decided it say what was asked for
    compiled = record.parameters.get("torch_compile") is True if said is None else said
    shared = deciding_parameters(record) | {"backend": backend, "machine": _machine(record)}
    return shared | {"compiled": True} if compiled else shared


def cell_of(record: RunRecord) -> tuple[str, str, str]:
    """Experiment, variant and origin of a run."""
    return record.experiment, record.variant, record.origin


def group_key(record: RunRecord, *, with_seed: bool = False) -> str:
    """Equal for runs that may be averaged (with the seed: for repeats of one run)."""
    return json.dumps([cell_of(record), shared_context(record), record.seed if with_seed else None], sort_keys=True, default=str)


def quantization_key(record: RunRecord) -> str:
    """Equal for quantisations that may be averaged: same variant, origin, settings, data, and kind of source."""
    settings = identity_of(parameters_of(record.experiment), record.parameters)
    settings.pop("seed", None)
    source = [record.source.get(key) for key in ("experiment", "variant", "precision")]
    return json.dumps([cell_of(record), settings, source, record.data.get("digest")], sort_keys=True, default=str)


def group_order(record: RunRecord) -> tuple[Any, ...]:
    """Sort key of groups."""
    return record.origin == "imported", catalogue_order(record.experiment), record.variant, group_key(record)


def distinguishing_words(context: Mapping[str, Any], siblings: Sequence[Mapping[str, Any]]) -> str:
    """What distinguishes a group from others of the same experiment and variant: as few parameters as tell all of them apart."""
    differing = sorted({key for one in siblings for other in siblings for key in differing_keys(one, other)})
    preferred = [key for key in ("dataset", "epochs", "model", "image_size", "backend", "machine") if key in differing]
    shown: list[str] = []
    for key in preferred + [key for key in differing if key not in preferred]:
        told = {tuple(value_words(k, other.get(k)) for k in shown) for other in siblings}
        if len({tuple(value_words(k, other.get(k)) for k in [*shown, key]) for other in siblings}) > len(told):
            shown.append(key)
    return ", ".join(f"{key_words(key)} {value_words(key, context.get(key))}" for key in shown)


def stated_keys(groups: Sequence[Group]) -> list[str]:
    """Every parameter that a group states, but names."""
    return list(dict.fromkeys(key for group in groups for key in group.parameters if key not in NAMES))
