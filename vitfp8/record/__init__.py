"""The record of a run: publish it into a notebook, read it back, load many. Imports no torch."""

from vitfp8.record.journal import RunJournal, is_live, now, record_from_journal
from vitfp8.record.provenance import code_digest, collect_provenance
from vitfp8.record.reading import RecordError, append_to_run_log, load_history, load_records, load_runs, read_record
from vitfp8.record.schema import (
    RECORD_MIME,
    EpochRow,
    Hardware,
    LayerPrecision,
    Metrics,
    Precision,
    RunRecord,
    digest_of,
)

__all__ = [
    "RECORD_MIME",
    "EpochRow",
    "Hardware",
    "LayerPrecision",
    "Metrics",
    "Precision",
    "RecordError",
    "RunJournal",
    "RunRecord",
    "append_to_run_log",
    "code_digest",
    "collect_provenance",
    "digest_of",
    "is_live",
    "load_history",
    "load_records",
    "load_runs",
    "now",
    "read_record",
    "record_from_journal",
]
