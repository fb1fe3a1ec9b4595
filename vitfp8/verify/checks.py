"""Verify lab records: record, notebook, parameters, journal, checkpoints and sources agree. Reads only; needs no torch.

A record stands twice, in the notebook and in the journal of its run folder, and most of it follows from the rest of it: digests
from contents, figures from history and predictions, printed lines from figures. Each is computed again and compared. What may
differ without anybody's doing (today's code and parameter files, a run folder that was not copied) is a note, never a failure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vitfp8.catalog import EXPERIMENTS
from vitfp8.errors import InputError, suggest
from vitfp8.files import file_digest
from vitfp8.home import at_home
from vitfp8.params import Layer, validate, why_no_text
from vitfp8.params.quantization import parameters_of
from vitfp8.record import (
    JOURNAL,
    NotARunError,
    RecordError,
    RunRecord,
    agrees_with_digest,
    code_digest,
    compare_code,
    find_run,
    incomparable_code,
    is_executing,
    payload_digest,
    payload_of,
    read_notebook,
    record_from_journal,
)
from vitfp8.record.codec import PAYLOAD_DIGEST
from vitfp8.run.locate import executed_folder, preset_file, template
from vitfp8.run.plan import layers_for
from vitfp8.run.study_file import load_study
from vitfp8.verify.figures import contradiction, differences, shown, wrong_digests, wrong_figures
from vitfp8.verify.notebook import Found, other_code, wrong_outputs, wrong_parameters


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        path: the file that it is about.
        subject: what was compared.
        level: ``ok``, ``note`` (it differs, as it may) or ``FAILED``.
        text: one line: what stands where, and what was expected; empty when it agrees.
    """

    path: Path
    subject: str
    level: str
    text: str = ""


@dataclass(frozen=True)
class _Run:
    """A lab record with what belongs to it."""

    path: Path
    notebook: dict[str, Any]
    payload: dict[str, Any]
    record: RunRecord
    journal: RunRecord | None

    @property
    def folder(self) -> Path:
        """Where its run folder is now."""
        return self.path.with_suffix("")

    @property
    def own_journal(self) -> RunRecord | None:
        """The journal's record, when it is of this execution."""
        run_id = self.record.provenance.get("run_id")
        return self.journal if self.journal is not None and self.journal.provenance.get("run_id") == run_id else None

    @property
    def finished(self) -> bool:
        """Whether nothing can be newer than the record."""
        return self.record.status in ("completed", "diverged")


def find_notebooks(study: str | None = None, runs: Sequence[str] = (), *, executed: Path | None = None) -> list[Path]:
    """The lab records to verify.

    Args:
        study: name of a study, or one run as `vitfp8.record.find_run` takes it; None: every study.
        runs: names of runs of that study; none: all of them.
        executed: the folder of the studies; None: ``executed/`` at the study's home.

    Raises:
        InputError: there is no such study or run.
    """
    executed = executed or executed_folder()
    if study is not None and (study.endswith(".ipynb") or "/" in study):
        notebook = find_run(study, executed=executed)
        return [notebook, *(notebook.with_name(f"{run}.ipynb") for run in runs)]
    there = sorted(path.name for path in executed.glob("*") if path.is_dir())
    if study is not None and study not in there:
        raise InputError(f"study: {study!r}: there is no {executed / study}; {suggest(study, there) if there else 'none yet'}")
    found = [path for name in ([study] if study is not None else there) for path in _notebooks(executed / name)]
    if not runs:
        return found
    names = {path.stem: path for path in found}
    for run in runs:
        if run not in names:
            raise InputError(f"run: {run!r}: there is none in {executed / str(study)}; {suggest(run, names)}")
    return [names[run] for run in runs]


def _notebooks(folder: Path) -> list[Path]:
    """Notebooks of a folder that are or should be lab records, and those that a run folder's journal says should be there."""
    found = set(folder.glob("*.ipynb"))
    found |= {path.parent.with_name(f"{path.parent.name}.ipynb") for path in folder.glob(f"*/{JOURNAL}")}
    return sorted(path for path in found if not _is_no_run(path))


def _is_no_run(path: Path) -> bool:
    """Whether a notebook says of itself that it is not a run."""
    try:
        payload_of(path, read_notebook(path))
    except NotARunError:
        return True
    except RecordError:
        pass
    return False


def verify(paths: Iterable[Path]) -> Iterator[Check]:
    """Verify lab records, each by itself and then beside each other.

    Args:
        paths: from `find_notebooks`.

    Yields:
        what was looked at, one check after the other.
    """
    records: list[tuple[Path, RunRecord]] = []
    for path in paths:
        loaded = _load(path)
        if isinstance(loaded, Check):
            yield loaded
            continue
        records.append((path, loaded.record))
        for subject, look in CHECKS.items():
            if loaded.record.origin == "imported" and subject not in FOR_IMPORTED:
                continue
            try:
                found = list(look(loaded))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                found = [("FAILED", f"cannot be checked: what stands there is not of its kind ({why})")]
            for level, text in found:
                yield Check(path, subject, level, text)
            if not found:
                yield Check(path, subject, "ok")
    yield from _beside_each_other(records)


def _load(path: Path) -> _Run | Check:
    """A lab record with what belongs to it, or what is wrong with it."""
    journal = record_from_journal(path.with_suffix(""))
    try:
        notebook = read_notebook(path)
        payload = payload_of(path, notebook)
        record = RunRecord.from_payload(payload)
        cells = notebook["cells"]
        if not all(isinstance(cell, dict) and isinstance(cell.get("metadata", {}), dict) for cell in cells):
            return Check(path, "record", "FAILED", "its cells are damaged; take it back from a backup, or run it again")
        return _Run(path, notebook, payload, record, journal)
    except NotARunError:
        return Check(path, "record", "note", "is marked as no run (an analysis)")
    except RecordError as error:
        text = str(error).removeprefix(f"{path}: ")
    except (ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        text = f"its record cannot be read ({' '.join(str(error).split())[:200]})"
    if journal is None:
        return Check(path, "record", "FAILED", text)
    if journal.status in ("completed", "diverged"):
        return Check(path, "record", "FAILED", f"{text}; but its journal says {journal.status}")
    if is_executing(path.with_suffix("")):
        return Check(path, "record", "note", "it is being executed now")
    return Check(path, "record", "note", f"{text}; its journal ends as {journal.status}")


# ------------------------------------------------------------------------------------------------------------ checks


def _payload(run: _Run) -> Iterator[Found]:
    """The digest of the whole payload."""
    if PAYLOAD_DIGEST not in run.payload:
        yield "note", "carries no digest of itself: an earlier version made it"
    elif not agrees_with_digest(run.payload, (copy.to_payload() for copy in (run.record, run.own_journal) if copy is not None)):
        found = payload_digest(run.payload)
        yield "FAILED", contradiction(PAYLOAD_DIGEST, run.payload[PAYLOAD_DIGEST], found, "the record: it was edited")


def _name(run: _Run) -> Iterator[Found]:
    """The file's name, which nothing depends on."""
    if run.path.stem != run.record.run_name:
        yield "note", f"the record is that of {run.record.run_name}; the file has another name"


def _figures(run: _Run) -> Iterator[Found]:
    """Figures against history and predictions."""
    yield from (("FAILED", line) for line in wrong_figures(run.record))


def _digests(run: _Run) -> Iterator[Found]:
    """Digests against what they cover."""
    yield from (("FAILED", line) for line in wrong_digests(run.record))


def _times(run: _Run) -> Iterator[Found]:
    """Times of the clock; clocks jump."""
    record = run.record
    if record.finished is None and run.finished:
        yield "FAILED", f"finished: is missing, though the run is {record.status}"
    if record.started and record.finished and datetime.fromisoformat(record.finished) < datetime.fromisoformat(record.started):
        yield "note", f"finished {record.finished} is before started {record.started}: the clock was set back meanwhile"


def _parameters(run: _Run) -> Iterator[Found]:
    """Parameter cells and papermill's metadata."""
    yield from wrong_parameters(run.notebook, run.record)


def _outputs(run: _Run) -> Iterator[Found]:
    """What the notebook shows."""
    yield from wrong_outputs(run.notebook, run.record)


def _code(run: _Run) -> Iterator[Found]:
    """Code of today."""
    code = compare_code(run.record.provenance, run.record.kind)
    commit = str(run.record.provenance.get("commit") or "")[:10]
    made = f" (at commit {commit})" if commit else ""
    if code == "other":
        there, today = shown(run.record.provenance["code_digest"]), shown(code_digest(run.record.kind))
        yield "note", f"the code that decides numbers is another today ({today}, in the record {there}){made}"
    elif code == "unknown":
        yield "note", f"made by {incomparable_code(run.record.provenance)}{made}"
    name = EXPERIMENTS[run.record.experiment].notebook if run.record.experiment in EXPERIMENTS else None
    if name is None:
        yield "note", f"the catalogue does not know {run.record.experiment} today"
    elif cells := other_code(run.notebook, template(name)):
        yield "note", f"code cells {', '.join(map(str, cells))} are not those of notebooks/{name} today"


def _parameter_file(run: _Run) -> Iterator[Found]:
    """Parameter file and preset of today."""
    record, study_name = run.record, run.path.parent.name
    try:
        study = load_study(study_name)
        preset = study.preset if study else None
        if study is None:
            try:
                preset = study_name if preset_file(study_name).is_file() else None
            except InputError:
                preset = None  # an ad hoc study with a name of its own: its preset is not known
        layers = layers_for(record.experiment, preset, [])
        today = validate([*layers, Layer("the record", {"seed": record.seed})], parameters_of(record.experiment)).model_dump()
    except InputError as error:
        yield "note", f"cannot be compared: {error}"
        return
    files = " with ".join(layer.source for layer in layers)
    if changed := [
        f"{key} {shown(value)} (the record: {shown(record.parameters[key])})"
        for key, value in today.items()
        if key != "run_folder" and key in record.parameters and record.parameters[key] != value
    ]:
        yield "note", f"{files} would give other values today, without -p: {'; '.join(changed)}"


#: Fields of a run that has not finished in which journal and notebook may be of different moments.
_GROWING = ("status", "reason", "finished", "progress", "metrics", "hardware", "predictions", "health", "checkpoints",
            "deterministic", "source", "quantization", "sensitivity")  # fmt: skip


def _journal(run: _Run) -> Iterator[Found]:
    """The journal: the record's other copy."""
    if not run.folder.is_dir():
        yield "note", f"{run.folder} is not here: nothing to compare the record with"
        return
    if (run.folder / JOURNAL).is_file():
        yield from _torn_lines(run.folder / JOURNAL)
    if run.journal is None:
        yield "note", f"{run.folder / JOURNAL} is missing or unreadable: nothing to compare the record with"
        return
    if run.own_journal is None:
        yield "note", f"{run.folder / JOURNAL} is of another execution than the notebook"
        return
    here, there = run.record.model_dump(mode="python"), run.own_journal.model_dump(mode="python")
    if is_executing(run.folder):
        yield "note", "it is being executed now"
    elif run.record.status == "running" and run.own_journal.status != "running":
        level = "FAILED" if run.own_journal.status in ("completed", "diverged") else "note"
        yield level, f"the notebook was not written to the end: {run.folder / JOURNAL} ends as {run.own_journal.status}"
    if not run.finished:
        count = min(len(here["history"]), len(there["history"]))
        here, there = (
            {**{key: value for key, value in each.items() if key not in _GROWING}, "history": each["history"][:count]}
            for each in (here, there)
        )
    found = list(differences(here, there))
    for where, one, other in found[:5]:
        yield "FAILED", f"{where}: {shown(one)} in the notebook, {shown(other)} in {run.folder / JOURNAL}"
    if len(found) > 5:
        yield "FAILED", f"{len(found) - 5} more values differ between the notebook and {run.folder / JOURNAL}"


def _torn_lines(path: Path) -> Iterator[Found]:
    """Lines of a file that are not JSON objects: a process died while it wrote, or the disk was full; or what it is instead."""
    content = path.read_bytes()
    if why := why_no_text(content, appended=True):
        yield "FAILED", f"{path}: {why}"
        return
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
        try:
            whole = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            yield "note", f"{path}:{number}: a torn line, passed over"


def _run_log(run: _Run) -> Iterator[Found]:
    """The run log's lines."""
    log = run.path.with_name(run.path.stem + ".log.jsonl")
    if log.is_file():
        yield from _torn_lines(log)


def _checkpoints(run: _Run) -> Iterator[Found]:
    """Files of weights against the digests beside them and in the record."""
    folder = run.folder / "checkpoints"
    if not folder.is_dir():
        if run.record.checkpoints:
            yield "note", f"{folder} is not here: {', '.join(sorted(run.record.checkpoints))} cannot be compared"
        return
    foreign = run.journal is not None and run.own_journal is None  # executed again since, in the same run folder
    for path in sorted(folder.glob("*.pt")):
        digest, note = file_digest(path), path.with_name(path.name + ".sha256")
        recorded = run.record.checkpoints.get(path.stem)
        if not note.is_file():
            yield "note" if digest == recorded else "FAILED", f"{path}: the file with its digest, {note.name}, is missing"
        elif note.read_text(errors="replace").split()[:1] != [digest]:
            yield "FAILED", contradiction(f"{note}", (note.read_text(errors="replace").split() or [""])[0], digest, str(path))
        if recorded is not None and recorded != digest:
            text = f"{path}: its SHA-256 is {shown(digest)}, in the record {shown(recorded)}"
            if foreign or not run.finished:
                yield "note", f"{text}: it is newer than the record"
            else:
                yield "FAILED", text
    for name in sorted(run.record.checkpoints):
        if not (folder / f"{name}.pt").is_file():
            yield "note", f"{folder / name}.pt is not here any more"


def _source(run: _Run) -> Iterator[Found]:
    """The trained model that was quantised, and the exported models."""
    if run.record.kind != "quantization":
        return
    source = run.record.source
    for row in run.record.quantization:
        file = run.folder / str((row.export or {}).get("file", ""))
        if row.export and not file.is_file():
            yield "note", f"{file} is not here"
        elif row.export and file_digest(file) != row.export.get("sha256"):
            yield "FAILED", f"{file}: its SHA-256 is {shown(file_digest(file))}, in the record {shown(row.export.get('sha256'))}"
    if not source:
        return
    places = [run.path.with_name(f"{source.get('run')}.ipynb"), at_home(str(source.get("path")))]
    place = next((path for path in places if path.is_file()), None)
    if place is None:
        yield "note", f"{places[0]}, its source, is not here"
        return
    loaded = _load(place)
    if isinstance(loaded, Check):
        yield "FAILED", f"{place}, its source: {loaded.text}"
        return
    there = loaded.record
    expected = {
        "parameters_digest": ("parameters_digest", there.first_rule_digest),
        "checkpoint_sha256": ("checkpoints.best", there.checkpoints.get("best")),
        "recorded_test_acc": ("metrics.best_test_acc", there.metrics.best_test_acc),
    }
    level, hint = "FAILED", ""
    if any((place.parent / "superseded").glob(f"{place.stem}@*.ipynb")):
        level, hint = "note", ": the source was run again since"
    for key, (name, value) in expected.items():
        if source.get(key) != value:
            yield level, f"source.{key}: {shown(source.get(key))}, but {name} of {place} is {shown(value)}{hint}"
    if run.record.data.get("digest") != there.data.get("digest"):
        yield (
            level,
            f"data.digest: {shown(run.record.data.get('digest'))}, but {shown(there.data.get('digest'))} in {place}{hint}",
        )


#: Subject → what is looked at. Yields nothing where all agrees.
CHECKS: dict[str, Callable[[_Run], Iterator[Found]]] = {
    "record": _payload,
    "name": _name,
    "figures": _figures,
    "digests": _digests,
    "times": _times,
    "parameters": _parameters,
    "outputs": _outputs,
    "journal": _journal,
    "checkpoints": _checkpoints,
    "run log": _run_log,
    "source": _source,
    "parameter file": _parameter_file,
    "code": _code,
}

#: What applies to a record that was imported: its figures, digests and cells are those of another program.
FOR_IMPORTED = ("record", "run log")


# -------------------------------------------------------------------------------------------------- beside each other


def _beside_each_other(records: Sequence[tuple[Path, RunRecord]]) -> Iterator[Check]:
    """Copies of a run under another name, and runs of one study that saw different data or started from different weights."""
    executions: dict[str, Path] = {}
    weights: dict[tuple[Any, ...], tuple[Path, str]] = {}
    data: dict[tuple[Any, ...], tuple[Path, str]] = {}
    for path, record in records:
        run_id = record.provenance.get("run_id")
        if run_id is not None and (first := executions.setdefault(str(run_id), path)) != path:
            yield Check(path, "copies", "FAILED", f"is the same execution as {first}: a copy would count twice")
        if record.weights_digest:
            model = path.parent, record.parameters.get("model"), record.parameters.get("pretrained_file")
            other, first_digest = weights.setdefault(model, (path, record.weights_digest))
            if record.weights_digest != first_digest:
                both = f"{shown(record.weights_digest)}, but {shown(first_digest)} in {other}"
                yield Check(path, "pretrained weights", "FAILED", f"model.pretrained.sha256: {both}: other weights")
        digest = record.data.get("digest")
        if record.origin == "imported" or digest is None:
            continue
        which = (path.parent, record.parameters.get("data_dir"), record.data.get("name"), record.data.get("validation_fraction"))
        other, first_digest = data.setdefault(which, (path, digest))
        if digest != first_digest:
            yield Check(path, "data", "FAILED", f"data.digest: {shown(digest)}, but {shown(first_digest)} in {other}: other data")


def verify_data(paths: Iterable[Path]) -> Iterator[Check]:
    """Compare the data sets and pretrained weights of today with those of the records. Loads torch; downloads nothing.

    Args:
        paths: from `find_notebooks`.
    """
    from vitfp8.data import data_digest
    from vitfp8.pretrained import weights_digest

    seen: dict[tuple[Any, ...], str | None] = {}
    for path in paths:
        loaded = _load(path)
        record = loaded.record if isinstance(loaded, _Run) else None
        if record is None:
            continue
        if record.weights_digest:
            file = record.parameters.get("pretrained_file")
            model = str(record.parameters.get("model"))
            here, what = weights_digest(model, file), file or model
            if here is None:
                yield Check(path, "pretrained weights", "note", f"those of {what} are not at hand; they cannot be compared")
            elif here != record.weights_digest:
                text = f"{what} is another today: its SHA-256 is {shown(here)}, in the record {shown(record.weights_digest)}"
                yield Check(path, "pretrained weights", "FAILED", text)
        if record.origin == "imported" or not {"name", "digest", "validation_fraction"} <= set(record.data):
            yield Check(path, "data", "note", "its record names no digest of its data set; it cannot be compared")
            continue
        which = (record.data["name"], record.parameters.get("data_dir"), record.data["validation_fraction"])
        if which not in seen:
            name, folder, fraction = which
            seen[which] = data_digest(dataset=name, data_dir=folder, validation_fraction=fraction)
        today, there = seen[which], record.data["digest"]
        if today is None:
            yield Check(path, "data", "note", f"{which[0]} is not at hand; it cannot be compared")
        elif today != there:
            text = f"{which[0]} is another today: its digest is {shown(today)}, in the record {shown(there)}"
            yield Check(path, "data", "FAILED", text)
        else:
            yield Check(path, "data", "ok")
