"""What a record says against itself: final figures follow from the history, accuracies from the predictions, digests from both.

Computed anew and on its own, without the code that made the figures, so that an error there would show as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from vitfp8.params import IDENTITY_RULE, identity_digest
from vitfp8.params.quantization import parameters_of
from vitfp8.record import EpochRow, RunRecord, digest_of

#: Final figures that were added after the first release.
_LATER_FIGURES = ("epoch_seconds_median", "epoch_seconds_q1", "epoch_seconds_q3")


def shown(value: object) -> str:
    """A value as a line shows it: digests and other long ones shortened."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:16]}…"


def contradiction(what: str, stands: object, expected: object, because: str) -> str:
    """One line on a value that is not what it must be.

    Args:
        what: its name in the record.
        stands: what stands there.
        expected: what must stand there.
        because: what it follows from.
    """
    return f"{what}: {shown(stands)} stands there, but {shown(expected)} follows from {because}"


def wrong_figures(record: RunRecord) -> Iterator[str]:
    """Final figures that do not follow from history and predictions; one line each.

    Args:
        record: of a run of this project, whatever its status.
    """
    if record.kind == "quantization":
        yield from _wrong_quantization(record)
        return
    yield from _wrong_history(record)
    if record.metrics.epochs is not None:  # a run that failed has no final figures
        yield from _wrong_metrics(record)
    yield from _wrong_tests(record)


def wrong_digests(record: RunRecord) -> Iterator[str]:
    """Digests in a record that are not those of what they cover, and names that contradict its parameters; one line each.

    Args:
        record: of a run of this project.
    """
    digest = record.deterministic.get("digest")
    if digest is not None and digest != digest_of(record.deterministic_part()):
        found = digest_of(record.deterministic_part())
        yield contradiction("deterministic.digest", digest, found, "parameters, data, history, metrics and predictions")
    if digest is None and record.status == "completed":
        yield "deterministic.digest: is missing, though every completed run has one"
    if record.identity_rule > IDENTITY_RULE:
        yield f"identity_rule: {record.identity_rule} is later than {IDENTITY_RULE}, which this vitfp8 knows: update it"
        return
    expected = identity_digest(parameters_of(record.experiment), record.parameters, record.identity_rule)
    if record.parameters_digest != expected:
        yield contradiction("parameters_digest", record.parameters_digest, expected, "the parameters that decide numbers")
    for key in ("experiment", "variant", "seed", "question", "expectation"):
        if getattr(record, key) != record.parameters.get(key):
            yield contradiction(key, getattr(record, key), record.parameters.get(key), f"parameters.{key}")
    if record.kind == "run" and record.precision and record.precision.requested != record.parameters.get("precision"):
        yield contradiction(
            "precision.requested", record.precision.requested, record.parameters.get("precision"), "parameters.precision"
        )
    if record.kind == "run" and record.data and record.data.get("name") != record.parameters.get("dataset"):
        yield contradiction("data.name", record.data.get("name"), record.parameters.get("dataset"), "parameters.dataset")


def _wrong_history(record: RunRecord) -> Iterator[str]:
    """Epochs that are missing or too many."""
    epochs = [row.epoch for row in record.history]
    if epochs != list(range(1, len(epochs) + 1)):
        yield f"history: its epochs are {shown(epochs)}, not 1 to {len(epochs)}"
    if record.progress.get("epoch", 0) != len(epochs):
        yield contradiction("progress.epoch", record.progress.get("epoch"), len(epochs), "the length of the history")
    planned = record.parameters.get("epochs")
    if record.status == "completed" and len(epochs) != planned:
        yield f"status: is completed after {len(epochs)} epochs, but parameters.epochs is {planned}"


def _wrong_metrics(record: RunRecord) -> Iterator[str]:
    """Metrics that do not follow from the history."""
    rows, metrics = record.history, record.metrics
    expected: dict[str, Any] = {"epochs": rows[-1].epoch if rows else 0}
    if rows:
        expected |= _figures_of(rows)
        if record.status == "completed" and all(row.skipped_steps is not None for row in rows):
            expected["skipped_steps"] = sum(row.skipped_steps or 0 for row in rows)
    for key, value in expected.items():
        if key in _LATER_FIGURES and getattr(metrics, key) is None:
            continue  # records of earlier versions do not have it
        if not _agree(getattr(metrics, key), value):
            yield contradiction(f"metrics.{key}", getattr(metrics, key), value, "the history")


def _figures_of(rows: Sequence[EpochRow]) -> dict[str, Any]:
    """The final figures that a history gives; times leave the first epoch out where there are more."""
    last, steady = rows[-1], rows[1:] or rows
    best = max(row.val_acc for row in rows if row.val_acc is not None)
    figures: dict[str, Any] = {
        "best_val_acc": best,
        "best_epoch": next(row.epoch for row in rows if row.val_acc == best),
        "final_train_acc": last.clean_train_acc,
        "final_val_acc": last.val_acc,
        "final_train_loss": last.clean_train_loss,
        "final_val_loss": last.val_loss,
    }
    if last.clean_train_acc is not None and last.val_acc is not None:
        figures["generalization_gap"] = last.clean_train_acc - last.val_acc
    seconds = [row.epoch_seconds for row in rows if row.epoch_seconds is not None]
    speeds = [row.images_per_second for row in steady if row.images_per_second is not None]
    if len(seconds) == len(rows) and len(speeds) == len(steady):
        late = seconds[1:] or seconds
        figures |= {
            "train_seconds": math.fsum(seconds),
            "epoch_seconds_mean": statistics.fmean(late),
            "epoch_seconds_sd": statistics.stdev(late) if len(late) > 1 else None,
            "images_per_second": statistics.median(speeds),
        }
        figures |= {"epoch_seconds_median": statistics.median(late), **_quartiles(late)}
    return figures


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    """First and third quartile of epoch times, interpolated between neighbours."""
    ordered = sorted(values)

    def at(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        below, share = int(place), place - int(place)
        return ordered[below] + (share * (ordered[below + 1] - ordered[below]) if share else 0.0)

    return {"epoch_seconds_q1": at(0.25), "epoch_seconds_q3": at(0.75)}


def _wrong_tests(record: RunRecord) -> Iterator[str]:
    """Test accuracies that do not follow from the predictions, and predictions that are missing."""
    predictions, labels = record.predictions, record.predictions.get("labels", [])
    size = (record.data.get("sizes") or {}).get("test")
    if record.status == "completed" and not labels:
        yield "predictions: are missing, though every completed run has them"
    for key, metric in (("last", "test_acc"), ("best", "best_test_acc")):
        value = getattr(record.metrics, metric)
        if key not in predictions:
            if value is not None:
                yield f"metrics.{metric}: {shown(value)} stands there without predictions"
            continue
        if len(predictions[key]) != len(labels) or (size is not None and len(labels) != size):
            yield f"predictions.{key}: {len(predictions[key])} for {len(labels)} labels and {size} test images"
        elif value != (expected := _accuracy(predictions[key], labels)):
            yield contradiction(f"metrics.{metric}", value, expected, f"predictions.{key} and labels")


def _wrong_quantization(record: RunRecord) -> Iterator[str]:
    """Rows of a quantisation that do not follow from its predictions and its source's figures."""
    source, labels = record.source, record.predictions.get("labels", [])
    before = record.predictions.get("source", [])
    if record.status == "completed":
        done = len(record.quantization) + len(record.sensitivity)
        if not done == record.progress.get("epoch") == record.progress.get("epochs"):
            yield f"progress: {record.progress.get('epoch')} of {record.progress.get('epochs')} with {done} rows"
        if not labels:
            yield "predictions: are missing, though every completed run has them"
    if labels and source.get("test_acc") != (expected := _accuracy(before, labels)):
        yield contradiction("source.test_acc", source.get("test_acc"), expected, "predictions.source and labels")
    for number, row in enumerate(record.quantization):
        where = f"quantization[{number}]"
        if not len(row.predictions) == len(labels) == len(before):
            yield f"{where}.predictions: {len(row.predictions)} for {len(labels)} labels"
            continue
        for key, value in _quantized_figures(row.predictions, before, labels).items():
            if not _agree(getattr(row, key), value):
                yield contradiction(f"{where}.{key}", getattr(row, key), value, "predictions and labels")
        yield from _wrong_differences(where, row, source, "test")
    for number, line in enumerate(record.sensitivity):
        yield from _wrong_differences(f"sensitivity[{number}]", line, source, "val")


def _quantized_figures(after: Sequence[int], before: Sequence[int], labels: Sequence[int]) -> dict[str, Any]:
    """What the predictions of a quantised model and of its source give; McNemar's exact test as in `vitfp8.ptq`."""
    from scipy.stats import binomtest

    right = [(a == label, b == label) for a, b, label in zip(after, before, labels, strict=True)]
    lost, won = sum(b and not a for a, b in right), sum(a and not b for a, b in right)
    return {
        "test_acc": _accuracy(after, labels),
        "changed_predictions": sum(a != b for a, b in zip(after, before, strict=True)) / len(labels),
        "only_source_correct": lost,
        "only_quantized_correct": won,
        "mcnemar_p": 1.0 if lost + won == 0 else float(binomtest(lost, lost + won, 0.5, alternative="two-sided").pvalue),
    }


def _wrong_differences(where: str, row: Any, source: dict[str, Any], split: str) -> Iterator[str]:
    """Differences of a row that are not those of its figures to the source's."""
    for figure, difference in (("acc", "accuracy_difference"), ("loss", "loss_difference")):
        here, there = getattr(row, f"{split}_{figure}"), source.get(f"{split}_{figure}")
        if here is not None and there is not None and not _agree(getattr(row, difference), here - there):
            yield contradiction(f"{where}.{difference}", getattr(row, difference), here - there, f"source.{split}_{figure}")


def _accuracy(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Correct images ÷ images."""
    return sum(a == b for a, b in zip(predictions, labels, strict=True)) / len(labels)


def _agree(one: object, other: object) -> bool:
    """Equality; of real numbers up to the last bits, which versions of Python compute differently (statistics.stdev)."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(one) and math.isnan(other))
    return one == other


def differences(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON-like values differ, in their order; NaN equals itself.

    Args:
        one: the first.
        other: the second.
        where: the name of the whole.

    Yields:
        name of the place, value in the one, value in the other; a missing value is None.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from differences(one.get(key), other.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from differences(a, b, f"{where}[{number}]")
    elif isinstance(one, list) and isinstance(other, list):
        yield f"{where}: number of entries", len(one), len(other)
    elif one != other and not (isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)):
        yield where, one, other
