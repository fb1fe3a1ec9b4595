"""The record of a run: publish it into a notebook, read it back, load many. Imports no torch."""

from vitfp8.record.backups import BackupState, backup_state
from vitfp8.record.journal import RunJournal, is_live, is_locked, now, record_from_journal
from vitfp8.record.provenance import code_digest, collect_provenance, git_state, processor_and_cores
from vitfp8.record.reading import (
    RecordError,
    append_to_run_log,
    load_history,
    load_quantization,
    load_records,
    load_runs,
    read_record,
)
from vitfp8.record.schema import (
    RECORD_MIME,
    EpochRow,
    Hardware,
    LayerPrecision,
    Metrics,
    Precision,
    QuantizationRow,
    RunRecord,
    SensitivityRow,
    digest_of,
)
from vitfp8.record.source import best_weights, notebook_of, read_source, source_command

__all__ = [
    "RECORD_MIME",
    "BackupState",
    "EpochRow",
    "Hardware",
    "LayerPrecision",
    "Metrics",
    "Precision",
    "RecordError",
    "QuantizationRow",
    "RunJournal",
    "RunRecord",
    "SensitivityRow",
    "append_to_run_log",
    "backup_state",
    "best_weights",
    "code_digest",
    "collect_provenance",
    "digest_of",
    "git_state",
    "is_live",
    "is_locked",
    "load_history",
    "load_quantization",
    "load_records",
    "load_runs",
    "notebook_of",
    "now",
    "processor_and_cores",
    "read_record",
    "read_source",
    "record_from_journal",
    "source_command",
]
