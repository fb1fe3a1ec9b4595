"""What the files of an earlier run state of it: its timing report, and a configuration that lies in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitfp8.legacy.source import SourceFile, SourceTree, read_json, shown
from vitfp8.legacy.values import number

TIMING = "timing_report.json"

#: A configuration beyond this is not read.
_LARGEST_CONFIG = 64 * 1024

#: Entries of a timing report that a record keeps.
_MOST_ENTRIES = 40


@dataclass
class Stated:
    """What files state of a training; None where they do not.

    Attributes:
        where: the files, for sentences.
        precision: as written, e.g. ``fp16``.
        augmentation: as written, e.g. ``extended``.
        epochs: that were planned.
        best_val_acc: a fraction.
        report: the texts and numbers of the timing report; empty where there is none.
    """

    where: list[str] = field(default_factory=list)
    precision: str | None = None
    augmentation: str | None = None
    epochs: int | None = None
    best_val_acc: float | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        """What is stated, e.g. ``precision fp16, augmentation basic, 50 planned epochs``; empty where nothing is."""
        parts = [
            f"{name} {value}" for name, value in (("precision", self.precision), ("augmentation", self.augmentation)) if value
        ]
        parts += [f"{self.epochs} planned epochs"] if self.epochs else []
        config = self.report.get("config_file")
        return ", ".join(parts + ([f"the configuration {shown(config)}"] if parts and config else []))


def read_stated(tree: SourceTree, timing: SourceFile | None, files: list[SourceFile], remarks: list[str]) -> Stated:
    """What the timing report of a run states, completed by the first configuration among its files.

    Args:
        tree: whose.
        timing: the timing report; None where there is none.
        files: of the run's folder.
        remarks: gets a sentence on each thing that is wrong.
    """
    found = Stated()
    if timing is not None:
        report, _ = read_json(tree, timing, remarks)
        plain = {key: value for key, value in report.items() if isinstance(value, str) or number(value) is not None}
        found.report = {shown(key, 80): shown(value) if isinstance(value, str) else value for key, value in plain.items()}
        found.report = dict(list(found.report.items())[:_MOST_ENTRIES])
        _complete(found, shown(timing.path), plain, plain, plain.get("num_epochs"))
        found.best_val_acc = number(plain.get("best_val_accuracy"))
    for file in files:
        if file.path.lower().endswith((".yaml", ".yml")) and file.bytes <= _LARGEST_CONFIG:
            config = _read_yaml(tree, file)
            training, data = config.get("training"), config.get("data")
            if isinstance(training, dict) and training.get("num_epochs") is not None:
                _complete(found, shown(file.path), training, data if isinstance(data, dict) else {}, training["num_epochs"])
                break
    return found


def _complete(found: Stated, where: str, training: Mapping[str, Any], data: Mapping[str, Any], epochs: object) -> None:
    """Take over what is not known yet."""
    before = found.precision, found.augmentation, found.epochs
    for key, values in (("precision", training), ("augmentation", data)):
        if getattr(found, key) is None and isinstance(value := values.get(key), str) and value.strip():
            setattr(found, key, shown(value.strip().lower(), 40))
    planned = number(epochs)
    if found.epochs is None and planned is not None and planned == int(planned) and 1 <= planned <= 1e6:
        found.epochs = int(planned)
    if (found.precision, found.augmentation, found.epochs) != before:
        found.where.append(where)


def _read_yaml(tree: SourceTree, file: SourceFile) -> dict[str, Any]:
    """A YAML file as a mapping; empty where it is none. Nothing in it is executed."""
    import yaml

    try:
        with tree.open(file.path) as stream:
            value = yaml.safe_load(stream.read(_LARGEST_CONFIG).decode("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
