"""What else is known of a run than its figures: that it was continued or tried before, notes, earlier lab records. Reads only.

It comes from the record, from the run log beside the notebook, from the run folder (which another machine may not have) and
from the study's ``superseded/``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitfp8.record.journal import JOURNAL
from vitfp8.record.reading import RecordError, execution_of, is_about, run_log, written_record
from vitfp8.record.schema import RunRecord

#: Folder of a study for lab records that a repeated run or import replaced.
SUPERSEDED = "superseded"

#: Kind of a remark → how a table calls one of them, and several.
KINDS = {
    "continued": ("continued", "continued {} times"),
    "attempt": ("1 earlier attempt", "{} earlier attempts"),
    "superseded": ("1 earlier record set aside", "{} earlier records set aside"),
    "note": ("1 note", "{} notes"),
}


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One remark on a run."""

    kind: str  # a key of KINDS
    time: str | None  # ISO 8601, if known
    text: str  # data, not markup


def remarks_of(path: Path, record: RunRecord) -> list[Remark]:
    """All remarks on a run, by kind: how it was continued, what was tried before, what it replaced, notes.

    Args:
        path: its notebook, which need not exist yet.
        record: what `read_record` gave.
    """
    folder = path.with_suffix("")
    attempts = _attempts(path, folder, record)
    replaced = [
        Remark(kind="superseded", time=None, text=f"an earlier lab record is {SUPERSEDED}/{name}")
        for name in superseded_of(path.parent).get(path.stem, [])
    ]
    notes = [Remark(kind="note", time=_text(note.get("time")), text=_text(note.get("text")) or "") for note in record.notes]
    return [*_continued(record, folder), *attempts, *replaced, *(note for note in notes if note.text)]


def remark_words(remarks: Sequence[Remark]) -> str:
    """The remarks on one run in words, e.g. ``continued, 1 earlier attempt, 2 notes``; empty for none."""
    counts = {kind: sum(remark.kind == kind for remark in remarks) for kind in KINDS}
    return ", ".join(KINDS[kind][0] if count == 1 else KINDS[kind][1].format(count) for kind, count in counts.items() if count)


def superseded_of(folder: Path) -> dict[str, list[str]]:
    """Run → its earlier lab records, or run folders without one, in the ``superseded/`` of ``executed/<study>``."""
    found: dict[str, set[str]] = {}
    with suppress(OSError):
        for path in (folder / SUPERSEDED).iterdir():
            run, at, stamp = path.name.partition("@")
            if not at:
                continue
            stamp = stamp.removesuffix(".log.jsonl").removesuffix(".ipynb")
            notebook = path.with_name(f"{run}@{stamp}.ipynb")
            found.setdefault(run, set()).add(notebook.name if notebook.exists() else f"{run}@{stamp}")
    return {run: sorted(names) for run, names in sorted(found.items())}


def _continued(record: RunRecord, folder: Path) -> list[Remark]:
    """Where a run went on: as its record says, or, if an earlier version made it, as its journal shows."""
    found = [(_text(entry.get("time")), entry.get("epoch"), entry.get("step")) for entry in record.continued]
    if not found:
        begun = [begin for begin in _begins(folder) if (begin.get("provenance") or {}).get("run_id")]
        found = [
            (_text(begin.get("started")), epoch, 0)
            for begin in begun
            if isinstance(epoch := (begin.get("progress") or {}).get("epoch"), int) and epoch > 0
            and begin.get("kind", "run") == "run"
        ]  # fmt: skip
    return [
        Remark(
            kind="continued", time=time,
            text=f"went on from a checkpoint after epoch {epoch}" + (f" and {step} steps of the next" if step else ""),
        )
        for time, epoch, step in found
    ]  # fmt: skip


def _begins(folder: Path) -> list[dict[str, Any]]:
    """The beginnings of executions in a journal; none where there is no readable journal."""
    begins = []
    with suppress(OSError):
        for line in (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
            if '"begin"' not in line[:120]:
                continue
            with suppress(ValueError, RecursionError, AttributeError):
                begin = json.loads(line).get("begin")
                if isinstance(begin, dict) and isinstance(begin.get("provenance") or {}, dict):
                    begins.append(begin)
    return [begin for begin in begins if isinstance(begin.get("progress") or {}, dict)]


def _attempts(path: Path, folder: Path, record: RunRecord) -> list[Remark]:
    """Earlier executions that failed or were stopped, from the run log and the notebooks that the runner kept."""
    found: dict[str, Remark] = {}
    for number, event in enumerate(run_log(path)):
        if event.get("event") in ("failed", "interrupted") and not is_about(event, record):
            key = _text(event.get("execution")) or f"event {number}"
            text = f"{event['event']}: {_text(event.get('reason')) or 'no reason recorded'}"
            found[key] = Remark(kind="attempt", time=_text(event.get("time")), text=text)
    for notebook in sorted(folder.glob("attempt-*.ipynb")):
        earlier = None
        with suppress(RecordError):
            earlier = written_record(notebook)
        key = (execution_of(earlier) if earlier else None) or notebook.name
        if key in found or (earlier is not None and key == execution_of(record)):
            continue
        said = f"{earlier.status}: {earlier.reason}" if earlier and earlier.reason else "ended without a reason"
        if earlier and earlier.status == "running":
            said = "ended without saying how"
        found[key] = Remark(
            kind="attempt", time=_text(earlier.started if earlier else None), text=f"{said} ({folder.name}/{notebook.name})"
        )
    return list(found.values())


def _text(value: Any) -> str | None:
    """The value if it is a text and not empty, else None."""
    return value if isinstance(value, str) and value else None
