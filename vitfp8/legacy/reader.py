"""What an earlier project's files say, read strictly.

A file either is what the earlier project's scripts (or `vitfp8 export`) wrote, or `NotTakenError` says why not, and nothing of it
is taken. Nothing is repaired. Units become those of a record: fractions, seconds, watts, joules.
"""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from vitfp8.errors import printable
from vitfp8.legacy.hardware import Series
from vitfp8.legacy.source import SourceFile, SourceTree
from vitfp8.monitor.probes import THERMAL_LEVELS
from vitfp8.record import EpochRow, Metrics, QuantizationRow

FINAL, INTERRUPTED, TIMING = "final_metrics.json", "interrupted_metrics.json", "timing_report.json"
LOAD, GPU = "hardware_stats.json", "gpu_stats.csv"
QUANTIZED = ("fp8_test_results.json", "fp8_quantization_results.json")  # of the first script, of the later one

#: List of a metrics file → column of the history.
COLUMNS = {
    "train_loss": "train_loss", "train_acc": "train_acc", "val_loss": "val_loss", "val_acc": "val_acc",
    "epoch_time": "epoch_seconds", "learning_rates": "learning_rate",
}  # fmt: skip

#: Column of the GPU's file → column of the samples, and its factor.
GPU_COLUMNS = {
    "gpu_utilization_percent": ("gpu_utilization_percent", 1), "gpu_power_mW": ("gpu_power_watts", 1000),
    "cpu_power_mW": ("cpu_power_watts", 1000),
}  # fmt: skip

#: A larger text file is not read: days of samples have a few megabytes.
_LARGEST_TEXT = 256 * 1024 * 1024
_LARGEST_CONFIG = 64 * 1024

#: A clock that goes back by at most this many seconds was set back (a time zone, summer time); by more, midnight has passed.
_SET_BACK = 2 * 3600.0
_TIME_OF_DAY = re.compile(r"([01]\d|2[0-3]):([0-5]\d):([0-5]\d)")

_T = TypeVar("_T", bound=BaseModel)


class NotTakenError(Exception):
    """A file is not what the earlier project's scripts wrote; ``str(error)`` says what is wrong with it, without its name."""


# -------------------------------------------------------------------------------------------------- what the scripts wrote


def _level(value: int | str) -> int | str:
    """A thermal pressure: a whole number, 0 for none, or a name of `THERMAL_LEVELS`."""
    if value not in THERMAL_LEVELS if isinstance(value, str) else not 0 <= value <= 1000:
        raise ValueError("is not a thermal level")
    return value


_Loss = float | None  # of a diverged run NaN or infinite
_Fraction = Annotated[float, Field(ge=0, le=1)] | None
_Amount = Annotated[float, Field(ge=0, le=1e9)] | None
_Percent = Annotated[float, Field(ge=0, le=100)] | None
_Level = Annotated[int | str, AfterValidator(_level)] | None
_Seconds = Annotated[float, Field(allow_inf_nan=False)]
_Epochs = Annotated[int, Field(ge=1, le=1_000_000)] | None


class _OldFile(BaseModel):
    """An object of a file: types are exact, further entries are allowed."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    @model_validator(mode="after")
    def _equal_lengths(self) -> _OldFile:
        lengths = {key: len(value) for key, value in self if isinstance(value, list)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the lists have unequal lengths ({', '.join(f'{k} {n}' for k, n in lengths.items())})")
        return self


class _MetricsFile(_OldFile):
    train_loss: Annotated[list[_Loss], Field(min_length=1, max_length=100_000)]
    train_acc: list[_Fraction]
    val_loss: list[_Loss]
    val_acc: list[_Fraction]
    learning_rates: list[_Amount]
    epoch_time: list[_Amount] | None = None  # the first runs were not timed


class _LoadFile(_OldFile):
    timestamps: list[_Seconds]
    cpu_percent: list[_Percent] | None = None
    memory_percent: list[_Percent] | None = None
    thermal_pressure: list[_Level] | None = None


class _GPUFile(_OldFile):
    timestamp: list[str]
    gpu_utilization: list[_Percent] | None = Field(None, alias="gpu_utilization_percent")
    gpu_power: list[_Amount] | None = Field(None, alias="gpu_power_mW")
    cpu_power: list[_Amount] | None = Field(None, alias="cpu_power_mW")


class _TimingFile(_OldFile):
    num_epochs: _Epochs = None
    precision: str | None = None
    augmentation: str | None = None


class _ConfigTraining(_OldFile):
    num_epochs: _Epochs
    precision: str | None = None


class _ConfigData(_OldFile):
    augmentation: str | None = None


class _ConfigFile(_OldFile):
    training: _ConfigTraining
    data: _ConfigData = _ConfigData()


class _Tested(_OldFile):
    accuracy: Annotated[float, Field(ge=0, le=100)]
    loss: Annotated[float, Field(ge=0, le=1e9)]


class _FirstFP8Test(_OldFile):
    """The first script: percent, whole numbers up to ±4."""

    original_fp16: _Tested
    fp8_simulated: _Tested
    restored_fp16: _Tested


class _LaterFP8Test(_OldFile):
    """The later script: fractions, whole numbers up to ±240."""

    original_fp16: _Tested
    quantized_fp8: _Tested
    source_model: str | None = None


def _checked(kind: type[_T], value: Any) -> _T:
    """A value of a file as what it must be, or `NotTakenError` with the first thing that is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ", value ".join(str(part + 1 if isinstance(part, int) else part) for part in first["loc"][:2])
        what = first["msg"].removeprefix("Value error, ")
        raise NotTakenError(f"{where}: {what}" if where else what) from None


def _content(tree: SourceTree, file: SourceFile) -> bytes:
    """A file's bytes."""
    if file.bytes > _LARGEST_TEXT:
        raise NotTakenError(f"has {file.bytes:,} bytes, too many for such a file")
    try:
        with tree.open(file.path) as stream:
            return stream.read()
    except OSError as error:
        raise NotTakenError(f"cannot be read ({error.strerror or error})") from None


def _json(tree: SourceTree, file: SourceFile) -> dict[str, Any]:
    """The object of a JSON file; NaN is as Python writes it."""
    try:
        value = from_json(_content(tree, file), allow_inf_nan=True)
    except ValueError as error:
        raise NotTakenError(f"is not JSON, or was cut off ({error})") from None
    if not isinstance(value, dict):
        raise NotTakenError("is not a JSON object")
    return value


# ---------------------------------------------------------------------------------------------------------------- history


@dataclass
class OldHistory:
    """The history of a metrics file, the final figures that follow from it, and whether its last training loss is not finite."""

    rows: list[EpochRow]
    metrics: Metrics
    diverged: bool


def read_history(tree: SourceTree, file: SourceFile) -> OldHistory:
    """The history of a metrics file, one row per epoch."""
    found = _checked(_MetricsFile, _json(tree, file))
    lists = {column: values for key, column in COLUMNS.items() if (values := getattr(found, key)) is not None}
    rows = [
        EpochRow.model_validate(
            {"epoch": at + 1} | {column: values[at] for column, values in lists.items() if _is_finite(values[at])}
        )
        for at in range(len(found.train_loss))
    ]
    last_loss = found.train_loss[-1]
    return OldHistory(rows, _metrics(rows), last_loss is not None and not math.isfinite(last_loss))


def _is_finite(value: float | None) -> bool:
    """Whether there is a value that JSON can hold."""
    return value is not None and math.isfinite(value)


def _metrics(history: Sequence[EpochRow]) -> Metrics:
    """Final figures of a history: of the best and of the last epoch, and times."""
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


# --------------------------------------------------------------------------------------------------------------- hardware


def read_load(tree: SourceTree, file: SourceFile) -> Series:
    """The samples of processor, memory and thermal pressure."""
    found = _checked(_LoadFile, _json(tree, file))
    columns = {key: values for key, values in found if key != "timestamps" and values is not None}
    levels = columns.get("thermal_pressure")
    notes = (
        [f"{LOAD}: the thermal pressure is 0 throughout, which the earlier monitor also wrote where it could read no level."]
        if levels and all(level == 0 for level in levels)
        else []
    )
    return Series([time - found.timestamps[0] for time in found.timestamps], columns, notes)


def read_gpu(tree: SourceTree, file: SourceFile) -> Series:
    """The samples of the GPU; its clock is a time of day, which passes midnight, or counts seconds."""
    try:
        rows = list(csv.reader(io.StringIO(_content(tree, file).decode("utf-8")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise NotTakenError(f"is not CSV ({printable(str(error), 80)})") from None
    if len(rows) < 2:
        raise NotTakenError("holds no samples")
    header = rows[0]
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise NotTakenError(f"line {line}: has {len(row)} fields, and the header has {len(header)}")
    texts = {name: [row[at] for row in rows[1:]] for at, name in enumerate(header)}
    columns = {key: list(map(_number, texts[key])) for key in GPU_COLUMNS if key in texts}
    found = _checked(_GPUFile, {"timestamp": texts.get("timestamp")} | columns)
    seconds, notes = _clock(found.timestamp)
    taken = {GPU_COLUMNS[key]: values for key, values in found.model_dump(by_alias=True).items() if key in columns}
    watts = {name: [None if v is None else v / factor for v in values] for (name, factor), values in taken.items()}
    return Series(seconds, watts, notes)


def _number(text: str) -> float | str | None:
    """A field of a CSV file; empty is not measured."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _clock(stamps: Sequence[str]) -> tuple[list[float], list[str]]:
    """Seconds since the first stamp, and what a note says of the clock."""
    try:
        times = [float(stamp) for stamp in stamps]
        if not all(map(math.isfinite, times)):
            raise NotTakenError("timestamp: a value is not finite")
        return [time - times[0] for time in times], []
    except ValueError:
        pass
    times, notes, offset, before = [], [], 0.0, None
    for line, stamp in enumerate(stamps, 2):
        match = _TIME_OF_DAY.fullmatch(stamp)
        if match is None:
            raise NotTakenError(f"timestamp, line {line}: {stamp[:40]!r} is not a time of day (HH:MM:SS)")
        hours, minutes, seconds = map(int, match.groups())
        now = 3600.0 * hours + 60 * minutes + seconds
        back = 0.0 if before is None else before - now
        if back > 0:
            offset += 86400 if back > _SET_BACK else back
        if 0 < back <= _SET_BACK:
            notes.append(f"{GPU}: its clock goes back by {back:.0f} s in line {line}; time is counted on from there.")
        times.append(now + offset)
        before = now
    return [time - times[0] for time in times], notes


# ------------------------------------------------------------------------------------------------ plan and FP8 tests


@dataclass
class Stated:
    """What files state of a training; None where they do not.

    Attributes:
        where: the files.
        report: texts and numbers of the timing report.
    """

    where: list[str] = field(default_factory=list)
    precision: str | None = None
    augmentation: str | None = None
    epochs: int | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        """For instance ``precision fp16, augmentation basic, 50 planned epochs``; empty where nothing is stated."""
        told = (("precision", self.precision), ("augmentation", self.augmentation))
        parts = [f"{name} {value}" for name, value in told if value]
        parts += [f"{self.epochs} planned epochs"] if self.epochs else []
        config = self.report.get("config_file")
        return ", ".join(parts + ([f"the configuration {config}"] if parts and config else []))

    def complete(self, where: str, precision: str | None, augmentation: str | None, epochs: int | None) -> None:
        """Take over what is not known yet."""
        before = self.precision, self.augmentation, self.epochs
        self.precision = self.precision or (printable(precision.strip().lower(), 40) if precision else None)
        self.augmentation = self.augmentation or (printable(augmentation.strip().lower(), 40) if augmentation else None)
        self.epochs = self.epochs or epochs
        if (self.precision, self.augmentation, self.epochs) != before:
            self.where.append(where)


def read_timing(tree: SourceTree, file: SourceFile, stated: Stated) -> None:
    """Add what a timing report states."""
    values = _json(tree, file)
    found = _checked(_TimingFile, values)
    plain = {key: value for key, value in values.items() if isinstance(value, str | int | float) and _is_plain(value)}
    entries = [(printable(key, 80), printable(value, 160) if isinstance(value, str) else value) for key, value in plain.items()]
    stated.report = dict(entries[:40])
    stated.complete(printable(file.path, 160), found.precision, found.augmentation, found.num_epochs)


def _is_plain(value: str | float) -> bool:
    """Whether a value is a text or a finite number."""
    return isinstance(value, str) or (not isinstance(value, bool) and math.isfinite(value))


def read_config(tree: SourceTree, file: SourceFile, stated: Stated) -> None:
    """Add what a training configuration (YAML) states. Nothing in it is executed."""
    import yaml

    if file.bytes > _LARGEST_CONFIG:
        raise NotTakenError("is too large for a configuration")
    try:
        value = yaml.safe_load(_content(tree, file).decode("utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError):
        raise NotTakenError("is not YAML") from None
    found = _checked(_ConfigFile, value)
    stated.complete(printable(file.path, 160), found.training.precision, found.data.augmentation, found.training.num_epochs)


@dataclass
class OldQuantization:
    """The result of an FP8 test: accuracy and loss of the source, the row of what was called FP8, and the path of the source."""

    source: dict[str, float]
    row: QuantizationRow
    path: str | None


def read_quantization(tree: SourceTree, file: SourceFile) -> OldQuantization:
    """What an FP8 test found, from one of the files of `QUANTIZED`."""
    values = _json(tree, file)
    path: str | None = None
    if file.path.endswith(QUANTIZED[0]):
        first = _checked(_FirstFP8Test, values)
        name, before, after, scale = "int_4", first.original_fp16, first.fp8_simulated, 100
    else:
        later = _checked(_LaterFP8Test, values)
        name, before, after, scale, path = "int_240", later.original_fp16, later.quantized_fp8, 1, later.source_model
    if max(before.accuracy, after.accuracy) > scale:
        raise NotTakenError("accuracy: is above 1, and this file holds fractions")
    own, new = before.accuracy / scale, after.accuracy / scale
    row = QuantizationRow(
        format=name, granularity="tensor", operands="weights", test_acc=new, test_loss=after.loss,
        accuracy_difference=new - own, loss_difference=after.loss - before.loss,
    )  # fmt: skip
    path = printable(path, 160) if path and path.strip() else None
    return OldQuantization({"test_acc": own, "test_loss": before.loss}, row, path)
