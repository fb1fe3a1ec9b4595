"""What the files of an earlier run say: history, hardware, quantisation. Taken as far as it goes; what is wrong is said.

Units become those of a record: fractions, seconds, watts, joules. A value that is missing or no number stays unknown.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from vitfp8.legacy.source import kind_of_value, shown
from vitfp8.monitor.sampling import THERMAL_LEVELS, THROTTLED_LEVELS
from vitfp8.record import EpochRow, Hardware, Metrics, QuantizationRow

#: Name of a list in a metrics file → column of the history.
COLUMNS = {
    "train_loss": "train_loss", "train_acc": "train_acc", "val_loss": "val_loss", "val_acc": "val_acc",
    "epoch_time": "epoch_seconds", "learning_rates": "learning_rate",
}  # fmt: skip

_FRACTIONS = ("train_acc", "val_acc")

#: No loss, time or rate is beyond this.
_LARGEST = 1e9

#: A list beyond this is no list of epochs.
_MOST_EPOCHS = 100_000

#: Samples that a record keeps of a run: more would make the notebook large, and no figure shows them.
MOST_SAMPLES = 1500


def number(value: Any) -> float | None:
    """A finite number; None for anything else (texts are no numbers).

    Args:
        value: of a JSON file.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def fraction(value: Any) -> float | None:
    """A number from 0 to 1; None for anything else.

    Args:
        value: of a JSON file.
    """
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


@dataclass
class OldHistory:
    """What a metrics file says.

    Attributes:
        rows: a row an epoch.
        metrics: the final figures that follow from them.
        diverged: whether the last training loss is NaN or infinite.
    """

    rows: list[EpochRow] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    diverged: bool = False


def read_history(values: Mapping[str, Any], name: str, remarks: list[str]) -> OldHistory:
    """The history of a metrics file, a row an epoch.

    Args:
        values: what the file holds.
        name: of the file, for remarks.
        remarks: gets a sentence on each thing that is wrong.
    """
    columns: dict[str, list[Any]] = {}
    for key, column in COLUMNS.items():
        found = values.get(key)
        if found is None:
            remarks.append(f"{name}: has no {key}; it stays unknown")
        elif not isinstance(found, list):
            remarks.append(f"{name}: {key}: is {kind_of_value(found)} where a list is expected; it stays unknown")
        else:
            if len(found) > _MOST_EPOCHS:
                remarks.append(f"{name}: {key}: has {len(found):,} values; the first {_MOST_EPOCHS:,} are taken")
            columns[column] = found[:_MOST_EPOCHS]
    lengths = {key: len(columns[column]) for key, column in COLUMNS.items() if column in columns}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{key} {length}" for key, length in lengths.items())
        remarks.append(f"{name}: the lists have unequal lengths ({said}); what is missing stays unknown")
    count = max(lengths.values(), default=0)
    rows: list[dict[str, Any]] = [{"epoch": epoch} for epoch in range(1, count + 1)]
    for key, column in COLUMNS.items():
        if column in columns:
            _fill(rows, column, columns[column], f"{name}: {key}", remarks)
    history = [EpochRow.model_validate(row) for row in rows]
    losses = columns.get("train_loss", [])
    diverged = bool(losses) and isinstance(losses[-1], float) and not math.isfinite(losses[-1])
    return OldHistory(history, _metrics(history), diverged)


def _fill(rows: list[dict[str, Any]], column: str, values: Sequence[Any], name: str, remarks: list[str]) -> None:
    """Put a list into its column; values that cannot be are counted by their kind, and said."""
    wrong: Counter[str] = Counter()
    for row, value in zip(rows, values, strict=False):
        found = number(value)
        if found is None:
            wrong[
                "NaN or infinite" if isinstance(value, (int, float)) and not isinstance(value, bool) else kind_of_value(value)
            ] += 1
        elif column in _FRACTIONS and not 0 <= found <= 1:
            wrong["no fraction from 0 to 1"] += 1
        elif column not in _FRACTIONS and not 0 <= found <= _LARGEST:
            wrong["negative or beyond reason"] += 1
        else:
            row[column] = found
    for what, count in wrong.items():
        remarks.append(f"{name}: {count} of {len(values)} values {'is' if count == 1 else 'are'} {what}; unknown in the record")


def _metrics(history: Sequence[EpochRow]) -> Metrics:
    """Final figures that follow from a history: those of the best and of the last epoch, and times."""
    if not history:
        return Metrics()
    last = history[-1]
    known = [(row.val_acc, row.epoch) for row in history if row.val_acc is not None]
    best = max(known, key=lambda pair: (pair[0], -pair[1]), default=(None, None))
    times = [row.epoch_seconds for row in history if row.epoch_seconds is not None]
    gap = last.train_acc - last.val_acc if last.train_acc is not None and last.val_acc is not None else None
    return Metrics(
        epochs=len(history), best_epoch=best[1], best_val_acc=best[0], final_train_acc=last.train_acc, final_val_acc=last.val_acc,
        generalization_gap=gap, final_train_loss=last.train_loss, final_val_loss=last.val_loss,
        train_seconds=math.fsum(times) if len(times) == len(history) else None,
        epoch_seconds_mean=statistics.fmean(times) if times else None,
        epoch_seconds_sd=statistics.stdev(times) if len(times) > 1 else None,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- hardware


#: A time of day, as the earlier GPU monitor stamped its samples.
_TIME_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d):([0-5]\d(?:\.\d+)?)")
_DAY = 86400.0

#: A clock that goes back by no more than this was set back (a time zone, the end of summer time); by more: midnight was passed.
_SET_BACK = 2 * 3600.0


def _time(value: Any) -> tuple[float, str] | None:
    """A time stamp in seconds and its kind: a number, a time of day, or ISO 8601 with or without a zone."""
    found = number(value)
    if found is None and isinstance(value, str):
        if of_day := _TIME_OF_DAY.fullmatch(value.strip()):
            hours, minutes, seconds = of_day.groups()
            return 3600.0 * int(hours) + 60 * int(minutes) + float(seconds), "of day"
        try:
            found = number(float(value))
        except ValueError:
            try:
                moment = datetime.fromisoformat(value.strip())
                zoned = moment if moment.tzinfo else moment.replace(tzinfo=datetime.now().astimezone().tzinfo)
                return zoned.timestamp(), "zoned" if moment.tzinfo else "local"
            except (ValueError, OverflowError, OSError):
                return None
    return None if found is None else (found, "number")


def _unfolded(times: Sequence[float], name: str, remarks: list[str]) -> list[float]:
    """Times of day in the order of a file as seconds that never go back: past midnight the next day is counted."""
    found: list[float] = []
    offset = 0.0
    for index, time in enumerate(times):
        back = times[index - 1] - time if index else 0.0
        if back > _SET_BACK:
            offset += _DAY
        elif back > 0:
            offset += back
            remarks.append(
                f"{name}: its clock goes back by {back:.0f} s, from sample {index} to the next; time is counted on from there"
            )
        found.append(time + offset)
    return found


def _percent(value: Any) -> float | None:
    """A number from 0 to 100."""
    found = _as_number(value)
    return found if found is not None and 0 <= found <= 100 else None


def _as_number(value: Any) -> float | None:
    """A number, also one that a CSV file has as text."""
    if isinstance(value, str):
        try:
            return number(float(value))
        except ValueError:
            return None
    return number(value)


def _watts(value: Any) -> float | None:
    """Milliwatts as watts."""
    found = _as_number(value)
    return found / 1000 if found is not None and 0 <= found <= 1e7 else None


def _level(value: Any) -> str | int | None:
    """A thermal pressure: a whole number from 0 (none) as the earlier monitor wrote it, or a name in whatever case."""
    text = value.strip().lower() if isinstance(value, str) else None
    if text in THERMAL_LEVELS:
        return text
    found = number(value)
    return int(found) if found is not None and found == int(found) and 0 <= found <= 1000 else None


@dataclass(frozen=True)
class _Series:
    """Samples of one file: seconds on its own clock, the clock's kind, and columns."""

    seconds: list[float]
    clock: str
    columns: dict[str, list[Any]]


_LOAD = {"cpu_percent": ("cpu_percent", _percent), "memory_percent": ("memory_percent", _percent),
         "thermal_pressure": ("thermal_pressure", _level)}  # fmt: skip
_GPU = {"gpu_utilization_percent": ("gpu_utilization_percent", _percent), "gpu_power_mW": ("gpu_power_watts", _watts),
        "cpu_power_mW": ("cpu_power_watts", _watts)}  # fmt: skip


def read_hardware(
    load: tuple[str, Mapping[str, Any]] | None, gpu: tuple[str, Mapping[str, Any]] | None, remarks: list[str]
) -> Hardware:
    """What the earlier monitors saw, on one time axis.

    Energy is the integral of the sampled power; where samples are far apart nothing is filled in.

    Args:
        load: name and content of the file of processor and memory; None where there is none.
        gpu: name and columns of the file of the GPU.
        remarks: gets a sentence on each thing that is wrong.
    """
    series = []
    for given, stamp, columns in ((load, "timestamps", _LOAD), (gpu, "timestamp", _GPU)):
        if given is not None and (found := _series(given[0], given[1], stamp, columns, remarks)) is not None:
            series.append(found)
    if not series:
        return Hardware()
    origins = [one.seconds[0] for one in series]
    if len({one.clock for one in series}) == 1 and len(series) > 1 and abs(origins[0] - origins[1]) < 7 * 86400:
        origins = [min(origins)] * len(series)
    elif len(series) > 1:
        remarks.append("the files of processor and GPU have clocks that cannot be compared; each begins at 0 here")
    names = list(dict.fromkeys(name for one in series for name in one.columns))
    rows: dict[float, dict[str, Any]] = {}
    for one, origin in zip(series, origins, strict=True):
        for index, second in enumerate(one.seconds):
            row = rows.setdefault(round(second - origin, 3), {})
            row.update({name: column[index] for name, column in one.columns.items()})
    axis = sorted(rows)
    summary = _summary(series, axis, names)
    stride = math.ceil(len(axis) / MOST_SAMPLES)
    if stride > 1:
        remarks.append(f"of {len(axis):,} hardware samples every {stride}th is in the record; its means are of all")
    kept = axis[::stride]
    samples: dict[str, list[Any]] = {"seconds": list(kept)}
    samples |= {name: [rows[second].get(name) for second in kept] for name in names}
    return Hardware(summary=summary, samples=samples)


def _series(
    name: str, values: Mapping[str, Any], stamp: str, columns: Mapping[str, tuple[str, Any]], remarks: list[str]
) -> _Series | None:
    """The samples of one file whose time is known; None where there is none."""
    stamps = values.get(stamp)
    if not isinstance(stamps, list) or not stamps:
        remarks.append(f"{name}: has no {stamp}; its samples have no time and are left out")
        return None
    lists = {key: values[key] for key in columns if isinstance(values.get(key), list)}
    missing = [key for key in columns if key not in lists]
    if missing:
        remarks.append(f"{name}: has no list {', '.join(missing)}; not measured in the record")
    if any(len(column) != len(stamps) for column in lists.values()):
        remarks.append(f"{name}: the lists have unequal lengths; what is missing is not measured in the record")
    times = [_time(value) for value in stamps]
    clock = Counter(time[1] for time in times if time).most_common(1)
    good = [(time[0], index) for index, time in enumerate(times) if time and clock and time[1] == clock[0][0]]
    if len(good) < len(stamps):
        remarks.append(
            f"{name}: {len(stamps) - len(good)} of {len(stamps)} samples have no time that can be read and are left out"
        )
    if not good:
        return None
    if clock[0][0] == "of day":
        good = list(zip(_unfolded([time for time, _ in good], name, remarks), (index for _, index in good), strict=True))
    good.sort()
    found: dict[str, list[Any]] = {}
    for key, column in lists.items():
        target, convert = columns[key]
        found[target] = [convert(column[index]) if index < len(column) else None for _, index in good]
        if target == "thermal_pressure" and found[target] and all(value == 0 for value in found[target]):
            remarks.append(f"{name}: {key}: is 0 throughout, which the earlier monitor also wrote where it could read no level")
        unknown = sum(value is None for value in found[target])
        if unknown:
            remarks.append(f"{name}: {key}: {unknown} of {len(good)} values cannot be; not measured in the record")
    return _Series([time for time, _ in good], clock[0][0], found)


def _summary(series: Sequence[_Series], axis: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    """Means and maxima over all samples, and energy."""
    result: dict[str, Any] = {"samples": len(axis), "seconds": round(axis[-1], 3)}
    for name in names:
        values = [value for one in series for value in one.columns.get(name, []) if value is not None]
        if name == "thermal_pressure":
            numbers = [level for level in values if not isinstance(level, str)]
            named = [level for level in values if isinstance(level, str)]
            result["thermal_pressure_max"] = max(numbers) if numbers else max(named, key=THERMAL_LEVELS.index, default=None)
            slowed = any(level > 0 for level in numbers) or any(level in THROTTLED_LEVELS for level in named)
            result["throttled"] = slowed if values else None
        else:
            result[f"{name}_mean"] = statistics.fmean(values) if values else None
            result[f"{name}_max"] = max(values, default=None)
    parts = {
        label: joules
        for one in series
        for label, name in (("GPU", "gpu_power_watts"), ("CPU", "cpu_power_watts"))
        if (joules := _energy(one.seconds, one.columns.get(name, []))) is not None
    }
    result["energy_joules"] = round(math.fsum(parts.values()), 3) if parts else None
    result["energy_source"] = "estimated" if parts else None
    result["energy_covers"] = ", ".join(parts) or None
    return result


def _energy(seconds: Sequence[float], watts: Sequence[float | None]) -> float | None:
    """Joules by the trapezoidal rule over the samples; None below two. A gap of many samples adds nothing."""
    points = [(time, power) for time, power in zip(seconds, watts, strict=False) if power is not None]
    steps = [later[0] - earlier[0] for earlier, later in pairwise(points)]
    if not steps:
        return None
    longest = 10 * statistics.median(steps)
    return math.fsum(
        step * (earlier[1] + later[1]) / 2
        for step, (earlier, later) in zip(steps, pairwise(points), strict=True)
        if step <= longest
    )


# --------------------------------------------------------------------------------------------------------- quantisation


def read_quantization(values: Mapping[str, Any], name: str, remarks: list[str]) -> tuple[dict[str, Any], list[QuantizationRow]]:
    """What an FP8 test found: the source's figures, and a row for the integer rounding that it called FP8.

    Args:
        values: what the file holds.
        name: of the file, for remarks.
        remarks: gets a sentence on each thing that is wrong.

    Returns:
        Figures of the source (``test_acc``, ``test_loss``), and one row, or none where no accuracy is known.
    """
    key = next((key for key in ("fp8_simulated", "quantized_fp8") if key in values), "fp8_simulated")
    percent = all((_accuracy(values.get(each)) or 0) > 1 for each in ("original_fp16", key))
    if percent:  # as the first script of the earlier project wrote them
        remarks.append(f"{name}: its accuracies are above 1, and read as percent")
    before = _figures(values, "original_fp16", name, remarks, percent)
    after = _figures(values, key, name, remarks, percent)
    if before["test_acc"] is None and after["test_acc"] is None:
        return {}, []
    own, loss = (_difference(after[part], before[part]) for part in ("test_acc", "test_loss"))
    told = _figure(
        values.get("degradation"),
        ("accuracy", "acc", "val_acc", "accuracy_drop", "acc_drop", "accuracy_loss", "accuracy_loss_pp"),
    )
    if (
        told is not None
        and own is not None
        and not any(abs(abs(told) - factor * abs(own)) <= 1e-3 * factor for factor in (1, 100))
    ):
        remarks.append(f"{name}: degradation: {shown(told)} is not the difference of its accuracies ({own:.4f}), which is taken")
    row = QuantizationRow(
        format="int_4" if _is_of_first_script(values) else "int_240", granularity="tensor", operands="weights",
        test_acc=after["test_acc"], test_loss=after["test_loss"], accuracy_difference=own, loss_difference=loss,
    )  # fmt: skip
    return before, [row]


def _difference(after: float | None, before: float | None) -> float | None:
    """What changed, where both are known."""
    return None if after is None or before is None else after - before


def _figure(value: Any, keys: Sequence[str]) -> float | None:
    """A number that stands alone or under one of some keys."""
    if isinstance(value, dict):
        return next((found for key in keys if (found := number(value.get(key))) is not None), None)
    return number(value)


def _accuracy(value: Any) -> float | None:
    """The accuracy of one model of an FP8 test, as it is written."""
    return _figure(value, ("accuracy", "acc", "val_acc", "test_acc"))


def _is_of_first_script(values: Mapping[str, Any]) -> bool:
    """Whether a file is of the first FP8 test of the earlier project, which rounded to whole numbers up to ±4."""
    return "restored_fp16" in values


def _figures(values: Mapping[str, Any], key: str, name: str, remarks: list[str], percent: bool) -> dict[str, float | None]:
    """Accuracy and loss of one model of an FP8 test."""
    value = values.get(key)
    accuracy = _accuracy(value)
    if accuracy is not None and percent:
        accuracy /= 100
    if accuracy is None:
        remarks.append(f"{name}: {key}: has no accuracy that can be read; it stays unknown")
    elif fraction(accuracy) is None:
        remarks.append(f"{name}: {key}: {shown(accuracy)} is no fraction from 0 to 1; unknown in the record")
    loss = _figure(value, ("loss", "val_loss", "test_loss")) if isinstance(value, dict) else None
    return {"test_acc": fraction(accuracy), "test_loss": loss if loss is not None and 0 <= loss <= _LARGEST else None}
