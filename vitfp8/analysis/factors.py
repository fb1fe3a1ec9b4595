"""What a run was, by its record: its factors, and what two runs differ in. Names decide nothing here.

An experiment without a variant must be what the catalogue's row of its name says; records of earlier versions may be something
else. Such a run is labelled by what it was and stands in no contrast of the design.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vitfp8.catalog import BUNDLES, EXPERIMENTS, PRECISIONS
from vitfp8.params import RunParams, field_notes
from vitfp8.record import RunRecord

#: Parameters that "Augm" changes together; a contrast of augmentation lets exactly these differ.
BUNDLE_KEYS = ("augmentation", "weight_decay", "label_smoothing", "gradient_clip", "warmup_fraction")

#: Parameters that say how the arithmetic is done; a contrast of precision lets exactly these differ.
PRECISION_KEYS = (
    "precision", "fp8_recipe", "base_precision", "backend", "loss_scale", "loss_scale_interval", "torch_compile",
)  # fmt: skip

#: Parameters that say where a run ran: they decide bits and times, not what is compared.
MACHINE_KEYS = ("device", "threads", "deterministic", "micro_batch_size")

#: What says which images a run saw: accuracies on other images are not compared, whatever the reason for the difference.
DATA_KEYS = ("dataset", "data_digest")

#: Names of a run; they are no parameters that could differ.
NAMES = ("experiment", "variant", "seed")

#: What is known of a run beside its parameters; where a record does not say it, it is unknown, not different.
_BESIDE_PARAMETERS = ("data_digest", "pretrained_sha256")


def recorded_precision(record: RunRecord) -> str | None:
    """The format of the products that ran; where the record does not say it, the one that was asked for.

    Args:
        record: of a training.
    """
    effective = record.precision.effective if record.precision else None
    asked = record.parameters.get("precision")
    return effective or (asked if isinstance(asked, str) and asked else None)


def departures(record: RunRecord) -> dict[str, Any]:
    """Factors in which a run is not what its experiment's name says → their recorded values; empty for variants.

    What a record does not state (those of an earlier project state little) is taken to be as the name says.

    Args:
        record: of a training.
    """
    row = EXPERIMENTS.get(record.experiment)
    if row is None or record.variant or record.kind != "run":
        return {}
    expected = {"augmentation": row.augmentation, **BUNDLES.get(row.augmentation, {})}
    found = {key: record.parameters[key] for key in expected if key in record.parameters}
    if record.origin == "imported" and found.get("warmup_fraction") and expected.get("warmup_fraction"):
        found.pop("warmup_fraction")  # the earlier project warmed up for five epochs, whatever their number
    differing = {key: value for key, value in found.items() if value != expected[key]}
    precision = recorded_precision(record)
    return ({"precision": precision} if precision not in (None, row.precision) else {}) | differing


def recorded_words(differing: Mapping[str, Any]) -> str:
    """Departures as a label shows them, e.g. ``as recorded: BF16``; empty where there are none.

    Args:
        differing: from `departures`.
    """
    words = {"precision": "{0}", "augmentation": "{0} augmentation"}
    parts = [words.get(key, "{1} {0}").format(value_words(key, value), key_words(key)) for key, value in differing.items()]
    return f"as recorded: {', '.join(parts)}" if parts else ""


def key_words(key: str) -> str:
    """A parameter as a sentence calls it.

    Args:
        key: its name.
    """
    return key.replace("_", " ")


def value_words(key: str, value: Any) -> str:
    """A parameter's value as a sentence shows it, bounded.

    Args:
        key: its name.
        value: as the record has it.
    """
    if key in ("precision", "base_precision") and isinstance(value, str):
        text = PRECISIONS.get(value, value)
    else:
        text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"


def value_of(parameters: Mapping[str, Any], stated: Mapping[str, Any], key: str) -> Any:
    """A parameter's value: as the identity has it, else as the record states it, else what it meant before it was introduced.

    Args:
        parameters: the identity of a run.
        stated: every parameter of its record.
        key: which.
    """
    if key in parameters:
        return parameters[key]
    note = field_notes(RunParams).get(key)
    return stated.get(key, note.neutral if note is not None and note.neutral is not ... else None)


def differing_keys(first: Mapping[str, Any], second: Mapping[str, Any], *, free: Iterable[str] = ()) -> list[str]:
    """Parameters in which two identities differ, alphabetically, without names.

    Args:
        first: identity of a run, see `vitfp8.params.identity_of`, with what is known of its data.
        second: the other's.
        free: keys that may differ.
    """
    passed_over = {*NAMES, *free}
    keys = sorted((first.keys() | second.keys()) - passed_over)
    known = [key for key in keys if key not in _BESIDE_PARAMETERS or (key in first and key in second)]
    return [key for key in known if first.get(key) != second.get(key)]
