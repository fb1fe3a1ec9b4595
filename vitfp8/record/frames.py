"""Records as data frames: one row per run, per run and epoch, or per run and way to quantise."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitfp8.record.reading import load_records
from vitfp8.record.schema import RunRecord

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a frame that has no rows.
_OF_RUNS = ("run", "experiment", "variant", "seed", "status", "origin", "precision", "backend", "augmentation", "epochs")
_OF_HISTORY = ("run", "experiment", "variant", "seed", "epoch")
_OF_QUANTIZATION = ("run", "experiment", "variant", "seed", "status", "format", "granularity", "operands", "test_acc",
                    "accuracy_difference", "mcnemar_p", "changed_predictions", "logit_sqnr_db", "weight_bytes")  # fmt: skip


def load_runs(folder: str | Path) -> pd.DataFrame:
    """One row per training run: what it is, how it ended, its final figures (fractions, seconds) and digests.

    Quantisations after training are in `load_quantization`. ``frame.attrs["problems"]`` lists the notebooks that could not be
    read, which are also warned about.

    Args:
        folder: ``executed/<study>``.
    """
    found, problems = load_records(folder)
    return _told(runs_frame(found), problems)


def load_history(folder: str | Path) -> pd.DataFrame:
    """One row per run and epoch; see `vitfp8.record.EpochRow` for columns and units.

    Args:
        folder: ``executed/<study>``.
    """
    found, problems = load_records(folder)
    return _told(history_frame(found), problems)


def load_quantization(folder: str | Path) -> pd.DataFrame:
    """One row per run of FP8Test and way to quantise, whatever its status; see `vitfp8.record.QuantizationRow` for the columns.

    Accuracies and their differences are fractions, SQNRs decibels.

    Args:
        folder: ``executed/<study>``.
    """
    found, problems = load_records(folder)
    return _told(_frame((row for pair in found for row in _quantization_rows(*pair)), _OF_QUANTIZATION), problems)


def runs_frame(found: Sequence[tuple[Path, RunRecord]]) -> pd.DataFrame:
    """The frame of `load_runs`, of records that `load_records` gave."""
    return _frame((_run_row(path, record) for path, record in found if record.kind == "run"), _OF_RUNS)


def history_frame(found: Sequence[tuple[Path, RunRecord]]) -> pd.DataFrame:
    """The frame of `load_history`, of records that `load_records` gave."""
    return _frame(
        (_beside(_identity(path, record), row.model_dump()) for path, record in found for row in record.history), _OF_HISTORY
    )


def _told(frame: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """A frame that lists what could not be read; each problem is warned about."""
    for problem in problems:
        warnings.warn(problem, stacklevel=3)
    frame.attrs["problems"] = problems
    return frame


def _frame(rows: Iterable[dict[str, Any]], columns_if_empty: Sequence[str]) -> pd.DataFrame:
    """Rows as a data frame."""
    import pandas as pd

    rows = list(rows)
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(columns_if_empty))
    if "seed" in frame:
        frame["seed"] = frame["seed"].astype("Int64")
    return frame


def _identity(path: Path, record: RunRecord) -> dict[str, Any]:
    """The first columns of each row."""
    return {"run": path.stem, "experiment": record.experiment, "variant": record.variant, "seed": record.seed}


def _beside(row: dict[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    """A row with what else a record holds: a name that the record chose never replaces a column of ours."""
    return row | {key: value for key, value in further.items() if key not in row}


def _run_row(path: Path, record: RunRecord) -> dict[str, Any]:
    """The row of one training run."""
    precision, parameters = record.precision, record.parameters
    row = _identity(path, record) | {
        "status": record.status,
        "reason": record.reason,
        "origin": record.origin,
        "precision": precision.effective if precision else parameters.get("precision"),
        "precision_requested": precision.requested if precision else parameters.get("precision"),
        "backend": precision.backend if precision else None,
        "augmentation": parameters.get("augmentation"),
        "dataset": record.data.get("name") or parameters.get("dataset"),
        "model": record.model.get("name") or parameters.get("model"),
        "device": record.provenance.get("device"),
        **{key: getattr(record.metrics, key) for key in type(record.metrics).model_fields},
        "epochs_done": record.progress.get("epoch"),
        "parameters_digest": record.parameters_digest,
        "code_digest": record.provenance.get("code_digest"),
        "data_digest": record.data.get("digest"),
        "started": record.started,
        "path": str(path),
    }
    further = record.hardware.summary | (record.metrics.model_extra or {})
    return _beside(row, {key: value for key, value in further.items() if not isinstance(value, (dict, list))})


def _quantization_rows(path: Path, record: RunRecord) -> list[dict[str, Any]]:
    """The rows of one run of FP8Test; none of a training."""
    source = record.source
    identity = _identity(path, record) | {
        "status": record.status,
        "origin": record.origin,
        "source_run": source.get("run"),
        "source_experiment": source.get("experiment"),
        "source_test_acc": source.get("test_acc"),
        "source_test_loss": source.get("test_loss"),
        "dataset": record.data.get("name"),
        "model": record.model.get("name"),
    }
    rows = []
    for row in record.quantization:
        export = row.export or {}
        own = {"export_bytes": export.get("bytes"), "export_same_predictions": export.get("same_predictions"), "path": str(path)}
        rows.append(_beside(identity | own, row.model_dump(exclude={"predictions", "export"})))
    return rows
