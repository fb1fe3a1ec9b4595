"""``vitfp8 export --to json``: records in the old layout (``final_metrics.json`` and the files beside it).

`vitfp8 import` reads these files back with the same figures. Every file states under ``vitfp8`` which run it belongs to, and what
its columns mean: here ``val_acc`` is of the validation split, not of the test set as in the earlier project.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitfp8.errors import InputError
from vitfp8.files import check_writable, write_atomically
from vitfp8.legacy.names import variant_of
from vitfp8.legacy.reader import COLUMNS, FINAL, GPU, GPU_COLUMNS, INTERRUPTED, LOAD, TIMING
from vitfp8.record import RunRecord, find_run, load_records, read_record
from vitfp8.run.locate import executed_folder

#: Where exports go when no folder is named, seen from the working directory.
EXPORTS = Path("exports")

#: Column of the samples → its list in the file of processor and memory.
_LOAD_LISTS = ("cpu_percent", "memory_percent", "thermal_pressure")

_MEANING = {
    "run": "val_acc and val_loss are of the validation split, train_acc is taken while training, test_acc is below",
    "imported": "val_acc and val_loss are of the test set, which also chose the best epoch",
}


@dataclass
class Exported:
    """What an export wrote.

    Attributes:
        runs: folder of each run → its files.
        left: a sentence for each run of the study that has no such files.
    """

    runs: dict[Path, list[Path]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def why_not(path: Path, record: RunRecord) -> str | None:
    """Why a record has no files in the old layout, one sentence with a way out; None where it has."""
    if record.kind != "run":
        return f"{path}: is a quantisation, for which the old layout has no files; vitfp8.load_quantization gives its table"
    if record.status == "running":
        return f"{path}: is running; wait for it"
    if not record.history:
        return f"{path}: is {record.status} and has no finished epoch; there is nothing to export yet"
    return None


def export_runs(runs: Sequence[tuple[Path, RunRecord]], output: Path) -> Exported:
    """Write the files of runs into ``<output>/<run>/metrics/``; earlier exports are replaced, nothing else.

    Raises:
        InputError: a file is there that no export wrote, or the folder cannot be written; nothing has been written then.
    """
    done = Exported()
    planned: dict[Path, str] = {}
    for path, record in runs:
        if (why := why_not(path, record)) is not None:
            done.left.append(why)
            continue
        folder = output / path.stem
        files = {folder / "metrics" / name: text for name, text in files_of(path, record).items()}
        planned |= files
        done.runs[folder] = list(files)
    _check_places(planned, output)
    try:
        for target, text in planned.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, text)
        for folder in done.runs:
            _remove_other(folder / "metrics", planned)
    except OSError as error:
        place = error.filename or output
        raise InputError(f"--output: {str(place)!r}: cannot be written ({error.strerror}); make room, or give another") from None
    return done


def _check_places(planned: Iterable[Path], output: Path) -> None:
    """Refuse to replace what no export wrote."""
    check_writable(output)
    for target in planned:
        if target.exists() and target.suffix == ".json" and not _is_ours(target):
            raise InputError(f"--output: {str(target)!r}: is there, and not written by an export; give another folder")


def _is_ours(path: Path) -> bool:
    """Whether a file says that an export wrote it."""
    try:
        return "vitfp8" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _remove_other(folder: Path, planned: Iterable[Path]) -> None:
    """Remove what an earlier export wrote of a run that has gone on since: it would be read instead."""
    for name in (FINAL, INTERRUPTED):
        path = folder / name
        if path not in planned and path.is_file() and _is_ours(path):
            path.unlink()


def files_of(path: Path, record: RunRecord) -> dict[str, str]:
    """The files of a run in the old layout: name → text."""
    about = _about(path, record)
    history = {key: [getattr(row, column) for row in record.history] for key, column in COLUMNS.items()}
    final = FINAL if record.status == "completed" else INTERRUPTED
    metrics = record.metrics
    timing = {
        "total_seconds": metrics.train_seconds,
        "epoch_seconds": [row.epoch_seconds for row in record.history],
        "epoch_seconds_mean": metrics.epoch_seconds_mean,
        "epoch_seconds_sd": metrics.epoch_seconds_sd,
        "images_per_second": metrics.images_per_second,
        "energy_joules": record.hardware.summary.get("energy_joules"),
    }
    samples = record.hardware.samples
    # seconds since the monitor started, not times of day: that is what a record holds
    load = {name: samples[name] for name in _LOAD_LISTS if _is_measured(samples, name)} | {
        "timestamps": samples.get("seconds", [])
    }
    texts = {final: _text(history | about), LOAD: _text(load | about), TIMING: _text(timing | about)}
    if any(_is_measured(samples, name) for name, _ in GPU_COLUMNS.values()):
        texts[GPU] = _gpu_text(samples)
    return texts


def _is_measured(samples: dict[str, list[Any]], name: str) -> bool:
    """Whether a column of the samples holds anything."""
    return any(value is not None for value in samples.get(name, []))


def _about(path: Path, record: RunRecord) -> dict[str, Any]:
    """What every file says of its run: the figures that the old layout has no list for, and what its lists mean."""
    metrics = record.metrics
    return {
        "vitfp8": {
            "run": f"{path.parent.name}/{path.stem}",
            "experiment": record.experiment,
            "variant": record.variant,
            "seed": record.seed,
            "status": record.status,
            "reason": record.reason,
            "meaning": _MEANING["imported" if record.origin == "imported" else "run"],
            "test_acc": metrics.test_acc,
            "test_loss": metrics.test_loss,
            "best_epoch": metrics.best_epoch,
            "best_val_acc": metrics.best_val_acc,
            "best_test_acc": metrics.best_test_acc,
            "precision": record.precision.effective if record.precision else record.parameters.get("precision"),
            "backend": record.precision.backend if record.precision else None,
            "parameters_digest": record.parameters_digest,
        }
    }


def _text(values: dict[str, Any]) -> str:
    """JSON as the earlier project wrote it: NaN, of a diverged run, as Python writes it."""
    return json.dumps(values, indent=1, default=str) + "\n"


def _gpu_text(samples: dict[str, list[Any]]) -> str:
    """The GPU's samples as CSV, in milliwatts; empty is what was not measured."""
    columns = {old: (samples[name], factor) for old, (name, factor) in GPU_COLUMNS.items() if _is_measured(samples, name)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["timestamp", *columns])
    for index, second in enumerate(samples.get("seconds", [])):
        values = [(column[index], factor) for column, factor in columns.values()]
        writer.writerow([second, *("" if value is None else value * factor for value, factor in values)])
    return text.getvalue()


def import_command(done: Exported, output: Path, runs: Sequence[tuple[Path, RunRecord]]) -> str:
    """The command that reads an export back."""
    written = [(path.stem, record) for path, record in runs if output / path.stem in done.runs]
    count = Counter(record.experiment for _, record in written)
    words = []
    for name, record in written:
        variant = variant_of(f"{record.variant}.s{record.seed}".lstrip("."))
        words.append(f"--as {name}={record.experiment}" + (f"~{variant}" if count[record.experiment] > 1 else ""))
    return f"vitfp8 import {output} --study NAME {' '.join(words)}"


def runs_to_export(target: str, executed: Path | None = None) -> tuple[list[tuple[Path, RunRecord]], list[str]]:
    """The runs that a study or a run means, with their records.

    Returns:
        ``(lab record, record)`` pairs, and one line for each notebook of the study that cannot be read.

    Raises:
        InputError: there is neither such a study nor such a run.
    """
    executed = executed or executed_folder()
    for folder in (executed / target, Path(target)):
        if target and folder.is_dir() and folder.resolve().parent == executed.resolve():
            return load_records(folder)
    try:
        notebook = find_run(target, executed=executed)
    except InputError:
        studies = sorted(path.name for path in executed.glob("*") if path.is_dir())
        if near := difflib.get_close_matches(target, studies, n=1):
            raise InputError(f"export: {target!r}: there is no such study or run; did you mean {near[0]}?") from None
        raise
    return [(notebook, read_record(notebook))], []
