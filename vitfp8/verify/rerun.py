"""Execute a run again, aside, and compare: bit by bit where the record promises it, else in words what may differ and what does.

The lab record's own notebook is executed with the record's parameters, in a temporary folder; the study's folder is only read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitfp8.errors import InputError
from vitfp8.files import file_digest
from vitfp8.home import at_home
from vitfp8.params import identity_of, idle_values
from vitfp8.params.quantization import parameters_of
from vitfp8.record import RecordError, RunRecord, code_digest_rule, incomparable_code, read_record
from vitfp8.run.execute import Signals, execute
from vitfp8.verify.checks import Check
from vitfp8.verify.figures import differences, shown

#: What decides bits beside parameters and data: key of the provenance → what it is called.
DECIDING = {
    "code_digest": "code that decides numbers",
    "device_type": "device",
    "device": "device",
    "instruction_set": "instruction set",
    "onednn_isa_limit": "limit of the instruction set",
    "threads": "threads",
}

#: Packages whose version may decide bits.
DECIDING_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scikit-learn")

#: Differences that are listed.
LISTED = 3


@dataclass(frozen=True)
class Repeat:
    """What came of executing a run again.

    Attributes:
        checks: how it compares.
        signal: the signal that stopped it, else None.
    """

    checks: list[Check]
    signal: int | None = None


def check_repeatable(path: Path) -> RunRecord:
    """The record of a run that can be executed again.

    Args:
        path: its lab record.

    Raises:
        InputError: it has not completed, or was not made by this project.
    """
    record = read_record(path)
    if record.origin == "imported":
        raise InputError(f"{path}: was imported: there is nothing to execute; take a run of this project")
    if record.status not in ("completed", "diverged"):
        raise InputError(f"{path}: is {record.status}: only a finished run can be compared; `vitfp8 run` finishes it")
    return record


def rerun(path: Path, *, signals: Signals | None = None, while_waiting: Callable[[], None] | None = None) -> Repeat:
    """Execute a finished run again and compare.

    Args:
        path: its lab record.
        signals: of whoever listens already.
        while_waiting: called about twice a second meanwhile.

    Raises:
        InputError: see `check_repeatable`; or the temporary folder cannot be written.
    """
    record = check_repeatable(path)
    try:
        with tempfile.TemporaryDirectory(prefix="vitfp8-rerun-") as aside:
            return _rerun_in(Path(aside), path, record, signals, while_waiting)
    except OSError as error:
        raise InputError(f"{tempfile.gettempdir()}: cannot be written ({error.strerror}); make room or set TMPDIR") from None


def _rerun_in(
    aside: Path, path: Path, record: RunRecord, signals: Signals | None, while_waiting: Callable[[], None] | None
) -> Repeat:
    """The same in a folder."""
    output = aside / "repeat" / path.name
    output.parent.mkdir()
    parameters: dict[str, Any] = {**record.parameters, "run_folder": str(output.with_suffix(""))}
    if record.kind == "run":  # earlier versions accepted what nothing read; and a repeat compares bits, not watts
        parameters |= {key: value for key, (value, _) in idle_values(parameters).items()}
        parameters["powermetrics"] = False
    if record.kind == "quantization":  # its source is found beside the lab record, not in the folder aside
        beside = path.with_name(f"{record.source.get('run')}.ipynb")
        parameters["source_run"] = str(beside.absolute() if beside.is_file() else at_home(str(record.source.get("path"))))
    ended = execute(path, output, parameters, signals=signals, while_waiting=while_waiting)
    if ended.signal is not None:
        return Repeat([], ended.signal)
    try:
        repeat = read_record(output)
    except RecordError as error:
        return Repeat([Check(path, "repeat", "FAILED", f"could not be executed again: {ended.error or error}")])
    if repeat.status not in ("completed", "diverged"):
        return Repeat([Check(path, "repeat", "FAILED", f"ended as {repeat.status} this time: {ended.error or repeat.reason}")])
    found = list(_compare(path, record, repeat, output))
    return Repeat([Check(path, "repeat", level, text) for level, text in found])


def why_not_promised(record: RunRecord, repeat: RunRecord) -> list[str]:
    """Reasons for which a repeat need not give the same bits, in words; none where it must.

    Args:
        record: of the run.
        repeat: of its repeat.
    """
    reasons = (
        [] if record.deterministic.get("promised") else [f"the record promises nothing: {record.deterministic.get('level')}"]
    )
    there, here = record.provenance, repeat.provenance
    comparable = code_digest_rule(there) == code_digest_rule(here)
    if not comparable:
        reasons.append(f"made by {incomparable_code(there)}")
    reasons += [
        f"another {name} ({shown(there.get(key))}, now {shown(here.get(key))})"
        for key, name in DECIDING.items()
        if there.get(key) != here.get(key) and (comparable or key != "code_digest")
    ]
    versions, today = there.get("versions") or {}, here.get("versions") or {}
    reasons += [
        f"another {name} ({versions.get(name)}, now {today.get(name)})"
        for name in DECIDING_PACKAGES
        if versions.get(name) != today.get(name)
    ]
    if record.data.get("digest") != repeat.data.get("digest"):
        reasons.append(f"another data set ({shown(record.data.get('digest'))}, now {shown(repeat.data.get('digest'))})")
    if record.weights_digest != repeat.weights_digest:
        reasons.append(f"other pretrained weights ({shown(record.weights_digest)}, now {shown(repeat.weights_digest)})")
    return list(dict.fromkeys(reasons))


def _compare(path: Path, record: RunRecord, repeat: RunRecord, output: Path) -> Iterator[tuple[str, str]]:
    """A run and its repeat: digest, what differs first, weights."""
    reasons = why_not_promised(record, repeat)
    level = "note" if reasons else "FAILED"
    because = f"; it need not be the same: {'; '.join(reasons)}" if reasons else ""
    # what JSON makes of both, so that only values count
    there, here = (json.loads(json.dumps(_values(each))) for each in (record, repeat))
    found = list(differences(there, here))
    for where, one, other in found[:LISTED]:
        yield level, f"{name_of(where, record)}: {shown(one)}, this time {shown(other)}{because}"
    if len(found) > LISTED:
        yield level, f"{len(found) - LISTED} more values differ"
    if not found and record.deterministic.get("digest") != repeat.deterministic.get("digest"):
        yield (
            "FAILED",
            (
                f"deterministic.digest: {shown(record.deterministic.get('digest'))}, this time "
                f"{shown(repeat.deterministic.get('digest'))}, though no value differs: one of them was edited"
            ),
        )
    weights = _different_weights(path.with_suffix(""), output.with_suffix(""))
    if weights:
        yield level, f"{weights}{because}"
    if not found and not weights:
        compared = "digest and predictions" if weights is None else "digest, predictions and last weights"
        yield "ok", f"{compared} are the same{', though not promised: ' + '; '.join(reasons) if reasons else ''}"


def _values(record: RunRecord) -> dict[str, Any]:
    """The deterministic part with the parameters as values: a difference is then named, and is none between rules of identity."""
    return {**record.deterministic_part(), "parameters": identity_of(parameters_of(record.experiment), record.parameters)}


def name_of(where: str, record: RunRecord) -> str:
    """A place in the deterministic part, in words: ``history[2].val_acc`` is ``val_acc of epoch 3``.

    Args:
        where: from `vitfp8.verify.figures.differences`.
        record: whose history it is.
    """
    head, bracket, rest = where.partition("[")
    if head != "history" or not bracket:
        return where
    number, _, column = rest.partition("].")
    return f"{column} of epoch {record.history[int(number)].epoch}" if number.isdigit() else where


def _different_weights(there: Path, here: Path) -> str | None:
    """What is different in the last weights, empty when nothing is; None where there are none to compare."""
    one, other = (folder / "checkpoints" / "last.pt" for folder in (there, here))
    if not (one.is_file() and other.is_file()):
        return None
    if file_digest(one) == file_digest(other):
        return ""
    import torch

    from vitfp8.checkpoint import CheckpointError, load_checkpoint

    try:
        a, b = load_checkpoint(one)["model"], load_checkpoint(other)["model"]
    except (CheckpointError, KeyError) as error:
        return f"the last weights cannot be compared: {error}"
    if a.keys() != b.keys():
        return "the last weights are those of another model"
    unequal = [name for name in a if not torch.equal(a[name], b[name])]
    return f"the last weights differ in {len(unequal)} of {len(a)} tensors, first in {unequal[0]}" if unequal else ""
