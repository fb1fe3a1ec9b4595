"""A record as JSON: the payload that a notebook carries, its compressed part, and the digests over them.

A payload is a small readable header and the bulky arrays (history, hardware samples, per-image predictions, numeric health) as
one base64 string of zlib-compressed JSON, because nbformat writes one number per line. Python's standard library reads it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

#: The MIME type of a record in an executed notebook.
RECORD_MIME = "application/vnd.vitfp8.record+json"

#: Version of the payload's layout; a reader takes every version up to its own.
SCHEMA_VERSION = 1

#: Key of a payload's own digest; records of early versions have none.
PAYLOAD_DIGEST = "payload_digest"

#: A larger decompressed part is refused: a record of a long run has a few megabytes.
LARGEST_BULK_BYTES = 64 * 1024 * 1024

#: Fields of a record that travel compressed.
_BULKY = ("history", "predictions", "health", "quantization", "sensitivity")

#: Prefix of a payload digest over canonical numbers; a digest without it tells 1.0 from 1.
_CANONICAL = "v2:"


class LaterVersionError(ValueError):
    """A record is of a later version than this vitfp8 reads."""


def pack(values: dict[str, Any]) -> dict[str, Any]:
    """The payload of a record's fields: the header, the compressed part and the digest over both."""
    values = dict(values)
    bulk = {key: values.pop(key) for key in _BULKY}
    bulk["history"] = _columns(bulk["history"])
    values["hardware"], bulk["hardware_samples"] = _without(values["hardware"], "samples")
    if values["precision"] is not None:
        values["precision"], bulk["precision_layers"] = _without(values["precision"], "layers")
    header: dict[str, Any] = json_safe(values)
    header["bulk"] = compress(bulk)
    return {**header, PAYLOAD_DIGEST: payload_digest(header)}


def unpack(payload: Any) -> dict[str, Any]:
    """The fields of a record from its payload, not validated.

    Raises:
        ValueError: the payload is not a record or is damaged; `LaterVersionError` if a later version made it.
    """
    if not isinstance(payload, dict) or "schema_version" not in payload:
        raise ValueError("the record has no schema_version")
    version = payload["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"schema version {str(version)[:40]!r} is not a version")
    if version > SCHEMA_VERSION:
        raise LaterVersionError(f"schema version {version} is later than {SCHEMA_VERSION}, which this vitfp8 reads: update it")
    try:
        values = json_back({key: value for key, value in payload.items() if key not in ("bulk", PAYLOAD_DIGEST)})
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    bulk = expand(payload["bulk"]) if payload.get("bulk") is not None else {}
    for name, part in (("its compressed part", bulk), ("hardware", values.setdefault("hardware", {}))):
        if not isinstance(part, dict):
            raise ValueError(f"{name} is not an object")
    values |= {key: bulk[key] for key in _BULKY if key in bulk}
    values["history"] = _rows(values.get("history", {}))
    values["hardware"]["samples"] = bulk.get("hardware_samples", {})
    if isinstance(values.get("precision"), dict):
        values["precision"]["layers"] = bulk.get("precision_layers", [])
    return dict(values)


def compress(value: Any) -> str:
    """A JSON-able value as base64 of zlib-compressed JSON text."""
    text = json.dumps(json_safe(value), separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")


def expand(text: str) -> Any:
    """The inverse of `compress`.

    Raises:
        ValueError: the text is damaged, or would expand beyond `LARGEST_BULK_BYTES`.
    """
    try:
        decoder = zlib.decompressobj()
        data = decoder.decompress(base64.b64decode(text, validate=True), LARGEST_BULK_BYTES)
        if decoder.unconsumed_tail:
            raise ValueError("the compressed part of the record is unreasonably large")
        if not decoder.eof:
            raise zlib.error("its end is missing")
        return from_json(data)
    except (zlib.error, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"the compressed part of the record is damaged ({error})") from None


def json_safe(value: Any) -> Any:
    """A value with NaN and infinities, for which JSON has no word, as ``{"__float__": "nan"}``."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": repr(value)}
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return value


def json_back(value: Any) -> Any:
    """The inverse of `json_safe`, of values that JSON has read already."""
    if isinstance(value, dict):
        return _revived({key: json_back(item) for key, item in value.items()})
    return [json_back(item) for item in value] if isinstance(value, list) else value


def from_json(text: str | bytes) -> Any:
    """What a JSON text holds, with NaN and infinities as `json_safe` wrote them."""
    return json.loads(text, object_hook=_revived)


def _revived(read: dict[str, Any]) -> Any:
    """A JSON object, or the float that it stands for."""
    if len(read) == 1 and read.get("__float__") in ("nan", "inf", "-inf"):
        return float(read["__float__"])
    return read


def digest_of(value: Any) -> str:
    """SHA-256, hexadecimal, of a JSON-able value in canonical form (sorted keys, shortest round-trip floats).

    It tells 1.0 from 1. Use `payload_digest` for what another program may have saved.
    """
    text = json.dumps(json_safe(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()  # a damaged text may hold lone surrogates


def payload_digest(payload: Mapping[str, Any]) -> str:
    """``v2:`` and the SHA-256, hexadecimal, of everything in a payload but its own digest, so that any edited number shows.

    Numbers count, not their spelling: JupyterLab saves notebooks as JavaScript writes JSON, 1.0 as 1 and 1e22 as 1e+22.
    """
    return _CANONICAL + digest_of(_canonical(_digested(payload)))


def agrees_with_digest(payload: Mapping[str, Any], copies: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a payload is what its own digest says.

    A digest without ``v2:`` is of an early version and tells 1.0 from 1. If JupyterLab has saved the notebook since, `copies`
    tell which whole numbers were floats.

    Args:
        payload: as a notebook carries it, with its digest.
        copies: payloads of the same record made anew, from this payload or from the journal; only their number types count.
    """
    stated, content = payload[PAYLOAD_DIGEST], _digested(payload)
    if isinstance(stated, str) and stated.startswith(_CANONICAL):
        return stated == payload_digest(payload)
    return stated == digest_of(content) or any(stated == digest_of(_typed_like(content, copy, "")) for copy in copies)


def _digested(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What a payload's digest covers."""
    return {key: value for key, value in payload.items() if key != PAYLOAD_DIGEST}


def _canonical(value: Any) -> Any:
    """A JSON-able value with each number in the one form that Python and JavaScript agree on."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    try:
        number = float(value)  # JavaScript knows no other kind
    except OverflowError:
        return value
    return int(number) if number.is_integer() else number


def _typed_like(value: Any, copy: Any, key: str) -> Any:
    """A value whose whole numbers are floats where they are so in a copy, or where a monitor's figure always is one."""
    if isinstance(value, dict):
        there = copy if isinstance(copy, dict) else {}
        return {name: _typed_like(item, there.get(name), f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        others = copy if isinstance(copy, list) and len(copy) == len(value) else [None] * len(value)
        return [_typed_like(item, other, f"{key}[]") for item, other in zip(value, others, strict=True)]
    if isinstance(value, int) and not isinstance(value, bool):
        counted = key.endswith(("samples", "_bytes_max"))
        if (isinstance(copy, float) and copy == value) or (key.startswith(".hardware.summary.") and not counted):
            return float(value)
    return value


def _without(values: dict[str, Any], key: str) -> tuple[dict[str, Any], Any]:
    """Values without one of their keys, and what it held."""
    return {name: value for name, value in values.items() if name != key}, values[key]


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns, which compress better."""
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}


def _rows(columns: Any) -> list[dict[str, Any]]:
    """Columns as rows; rows are returned as they are."""
    if isinstance(columns, list):
        return columns
    if not isinstance(columns, dict) or not all(isinstance(column, list) for column in columns.values()):
        raise ValueError("the history is not a table of columns")
    count = max((len(column) for column in columns.values()), default=0)
    return [{key: column[i] for key, column in columns.items() if i < len(column)} for i in range(count)]
