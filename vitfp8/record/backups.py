"""Whether records are backed up: a small ledger beside them, written by the archive, read by whoever reports. Imports no torch.

The ledger is ``.backups.jsonl`` in the folder that was backed up, one JSON object a line.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

LEDGER = ".backups.jsonl"


def last_backup(study_folder: Path) -> dict[str, Any] | None:
    """The newest complete backup that covers a study: of its folder, or of the one above; None without one.

    Args:
        study_folder: ``executed/<study>``.

    Returns:
        ``time`` (ISO 8601, when it began) and ``place``.
    """
    newest: dict[str, Any] | None = None
    for folder in (study_folder, study_folder.parent):
        with suppress(OSError):
            for line in (folder / LEDGER).read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError):
                    entry = json.loads(line)
                    time = datetime.fromisoformat(entry["time"])
                    if isinstance(entry["place"], str) and (newest is None or time > datetime.fromisoformat(newest["time"])):
                        newest = entry
    return newest


def backup_words(study_folder: Path) -> str:
    """One sentence: whether and where a study is backed up, what has changed since, and the command that does it.

    Args:
        study_folder: ``executed/<study>``.
    """
    last = last_backup(study_folder)
    if last is None:
        return f"Not backed up; `vitfp8 backup {study_folder.parent} PLACE` does it."
    began = datetime.fromisoformat(last["time"]).timestamp()
    records = [path for pattern in ("*.ipynb", "*.log.jsonl", "*/journal.jsonl") for path in study_folder.glob(pattern)]
    changed = sum(path.stat().st_mtime >= began for path in records if path.name != "analysis.ipynb")
    words = f"Backed up on {last['time'][:16].replace('T', ' ')} to {last['place']}"
    if changed:
        files = "1 file" if changed == 1 else f"{changed} files"
        return f"{words}; {files} changed since: `vitfp8 backup {study_folder.parent} {last['place']}`."
    return f"{words}; nothing has changed since."
