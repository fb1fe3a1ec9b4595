"""Two records side by side: what they were asked for, what they were made with, and what came of it. Reads records only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitfp8.params import field_notes, identity_of
from vitfp8.params.quantization import parameters_of
from vitfp8.record import RunRecord
from vitfp8.record.schema import DETERMINISTIC_COLUMNS
from vitfp8.verify.figures import differences

#: Part of the provenance → its keys. What is left is the machine's.
_CODE = ("code_digest", "commit", "dirty", "patch_sha256", "untracked")
#: Keys of the provenance that name one execution, or repeat what `patch_sha256` says.
_LEFT_OUT = ("run_id", "patch_zlib_base64", "imported", "versions", *_CODE)

#: Final figures that are times: of emulated arithmetic they are shown and never compared.
TIMES = ("train_seconds", "epoch_seconds_mean", "epoch_seconds_sd", "images_per_second", "compile_seconds")


@dataclass(frozen=True)
class Difference:
    """One value that is not the same in both records; None is what a record does not state.

    Attributes:
        name: of the value.
        one: in the first record.
        other: in the second.
        change: `other` less `one` for figures that may be compared, else None.
    """

    name: str
    one: Any
    other: Any
    change: float | None = None


@dataclass
class Section:
    """One kind of values of two records.

    Attributes:
        name: of the kind.
        different: the values that differ.
        same: names of those that both records state alike.
        remark: what a reader must know of them.
    """

    name: str
    different: list[Difference] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    remark: str | None = None


@dataclass
class Comparison:
    """What `compare` found.

    Attributes:
        sections: parameters, code, versions, machine, data, model, precision, outcome.
        history: where the histories first differ, in words; None where both are the same or there is none.
        first_different_epoch: that epoch; None where they do not differ in a common epoch.
        epochs_compared: epochs that both have.
        deterministic: ``equal``, ``different`` or ``unknown``: the digests of what a repeat reproduces.
        predictions: weights → images whose predicted class is another, and images; None where the images are not the same.
    """

    sections: list[Section]
    history: list[Difference]
    first_different_epoch: int | None
    epochs_compared: int
    deterministic: str
    predictions: dict[str, tuple[int, int] | None]

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON-able values; NaN and infinity stay floats."""
        return asdict(self)


def compare(one: RunRecord, other: RunRecord) -> Comparison:
    """Compare two records.

    Args:
        one: the first.
        other: the second; changes are its values less the first's.
    """
    sections = [*_parameters(one, other), *_provenance(one, other)]
    sections.append(_section("data", one.data, other.data))
    sections.append(_section("model", one.model, other.model))
    sections.append(_precision(one, other))
    sections.append(_outcome(one, other))
    if one.kind == other.kind == "quantization":
        sections.append(_section("source", one.source, other.source, left_out=("path",)))
        sections.append(_quantization(one, other))
    epoch, history, compared = _history(one, other)
    digests = one.deterministic.get("digest"), other.deterministic.get("digest")
    same = "unknown" if None in digests else "equal" if digests[0] == digests[1] else "different"
    return Comparison(sections, history, epoch, compared, same, _predictions(one, other))


def _section(name: str, one: Mapping[str, Any], other: Mapping[str, Any], *, left_out: Sequence[str] = ()) -> Section:
    """Values of two mappings: those that differ, place by place, and the names of the others."""
    found = Section(name)
    stated = [any(value is not None for key, value in part.items() if key not in left_out) for part in (one, other)]
    if stated in ([True, False], [False, True]):  # an imported record: one row per value would say the same of each
        found.remark = f"only the {'first' if stated[0] else 'second'} record states it"
        return found
    for key in dict.fromkeys([*one, *other]):
        if key in left_out:
            continue
        a, b = _plain(one.get(key)), _plain(other.get(key))
        unequal = list(differences(a, b, key))
        found.different += [Difference(*each) for each in unequal]
        if not unequal and a is not None:
            found.same.append(key)
    return found


def _plain(value: Any) -> Any:
    """A value as JSON makes of it, so that only values count."""
    return json.loads(json.dumps(value, default=str))


def _parameters(one: RunRecord, other: RunRecord) -> Iterator[Section]:
    """Parameters that make another run, then those that decide no number."""
    kinds = [parameters_of(record.experiment) for record in (one, other)]
    identities = [identity_of(kind, record.parameters) for kind, record in zip(kinds, (one, other), strict=True)]
    deciding = list(dict.fromkeys([*identities[0], *identities[1]]))
    values = []
    for kind, record in zip(kinds, (one, other), strict=True):
        # a field that an older record does not know had the value that means "as before"; of an imported run nothing is known
        known = {} if record.origin == "imported" else field_notes(kind)
        values.append({key: note.neutral for key, note in known.items() if note.neutral is not ...} | record.parameters)
    yield _section("parameters that decide numbers", *({key: each.get(key) for key in deciding} for each in values))
    yield _section("other parameters", *values, left_out=("run_folder", *deciding))


def _provenance(one: RunRecord, other: RunRecord) -> Iterator[Section]:
    """Code, versions and machine."""
    here, there = one.provenance, other.provenance
    code = [{key: record.get(key) for key in _CODE if key in record} for record in (here, there)]
    yield _section("code", code[0], code[1])
    yield _section("versions", here.get("versions") or {}, there.get("versions") or {})
    yield _section("machine", here, there, left_out=_LEFT_OUT)


def _precision(one: RunRecord, other: RunRecord) -> Section:
    """Effective precision, and how many layers have another format."""
    ours, theirs = ({} if record.precision is None else record.precision.model_dump() for record in (one, other))
    found = _section("precision", ours, theirs, left_out=("layers",))
    layers = [{layer["name"]: layer["format"] for layer in part.get("layers", [])} for part in (ours, theirs)]
    unlike = [name for name in {**layers[0], **layers[1]} if layers[0].get(name) != layers[1].get(name)]
    if unlike and all(layers):
        first = unlike[0]
        found.different.append(Difference(f"format of {first}", layers[0].get(first), layers[1].get(first)))
        found.remark = f"{len(unlike)} of {len({**layers[0], **layers[1]})} layers have another format; the first is named"
    elif layers[0]:
        found.same.append(f"formats of {len(layers[0])} layers")
    return found


def _outcome(one: RunRecord, other: RunRecord) -> Section:
    """Status and final figures, with their differences where they may be compared."""
    found = _section("outcome", {"status": one.status, "reason": one.reason}, {"status": other.status, "reason": other.reason})
    mixed = one.origin != other.origin
    emulated = [record.run_name for record in (one, other) if record.precision and record.precision.backend == "emulated"]
    remarks = []
    if mixed:
        remarks.append("an imported run's validation is the test set, which chose its epoch: its figures are never compared")
    for each in _section("figures", one.metrics.model_dump(), other.metrics.model_dump()).different:
        # a list or text of a later version is shown as it stands
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (each.one, each.other))
        timed = bool(emulated) and each.name in TIMES
        change = each.other - each.one if numbers and not mixed and not timed else None
        found.different.append(Difference(each.name, each.one, each.other, change))
    if emulated and any(each.name in TIMES for each in found.different):
        remarks.append("times of emulated arithmetic are shown and never compared")
    found.same += _section("figures", one.metrics.model_dump(), other.metrics.model_dump()).same
    found.remark = "; ".join(remarks) or None
    return found


def _quantization(one: RunRecord, other: RunRecord) -> Section:
    """Test accuracy of each way to quantise."""
    ways = [{f"{r.format} {r.granularity} {r.operands}": r.test_acc for r in record.quantization} for record in (one, other)]
    found = _section("test accuracy after quantisation", ways[0], ways[1])
    found.different = [
        Difference(d.name, d.one, d.other, None if d.one is None or d.other is None else d.other - d.one) for d in found.different
    ]
    return found


def _history(one: RunRecord, other: RunRecord) -> tuple[int | None, list[Difference], int]:
    """The first common epoch in which columns that a repeat reproduces differ, what differs there, and how many are common."""
    pairs = list(zip(one.history, other.history, strict=False))
    for a, b in pairs:
        values = [{key: getattr(row, key) for key in DETERMINISTIC_COLUMNS} for row in (a, b)]
        if found := [Difference(*each) for each in differences(values[0], values[1])]:
            return a.epoch, found, len(pairs)
    return None, [], len(pairs)


def _predictions(one: RunRecord, other: RunRecord) -> dict[str, tuple[int, int] | None]:
    """For the weights that both have predictions of: how many images have another class."""
    found: dict[str, tuple[int, int] | None] = {}
    labels = one.predictions.get("labels"), other.predictions.get("labels")
    for weights in one.predictions:
        if weights == "labels" or weights not in other.predictions:
            continue
        a, b = one.predictions[weights], other.predictions[weights]
        same_images = labels[0] == labels[1] and len(a) == len(b) and one.data.get("digest") == other.data.get("digest")
        found[weights] = (sum(x != y for x, y in zip(a, b, strict=True)), len(a)) if same_images else None
    return found


def title(path: Path, record: RunRecord) -> str:
    """A run as a heading names it: study, run, status.

    Args:
        path: its lab record.
        record: what it holds.
    """
    state = f"{record.status}, imported" if record.origin == "imported" else record.status
    return f"{path.parent.name}/{path.stem} ({state})"
