"""Damaged records: an executed notebook, its journal or its run log as disks, editors and strangers can leave them."""

from __future__ import annotations

import base64
import copy
import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.analysis.records import make_record, write_notebook
from vitfp8.record import RECORD_MIME, QuantizationRow, RunRecord, SensitivityRow
from vitfp8.record.codec import compress, expand

MARKUP = "<script>alert(1)</script> [red]x[/] [/bold] \x1b[31m $x$ \\input{x} {{x}} =1+1 \ud800 \u202e _x_ *x* `x` \n\n# x"

#: What stands in the place of a value of a record.
ABSURD: tuple[Any, ...] = (
    None, True, -1, 0, 10**15, 10**30, 10**400, -(10**30), 0.5, -0.5, 1e-300, 1e150, 1e308, -1e308, float("nan"), float("inf"),
    78.14,
    "", "text", "0.5", MARKUP, "x" * 100_000, [], [1], ["a"], [None], [[1]], {}, {"a": 1}, {"epoch": -3}, {"__float__": "nan"},
    {"run": "x", "status": "completed", "experiment": "y", "seed": "z"}, "2026-01-01T00:00:00", "/etc", "a\0b", "../../..",
)  # fmt: skip


def full_record(experiment: str = "BaseFP16", seed: int = 0, **changes: Any) -> RunRecord:
    """A record with everything: samples of health and of a GPU, predictions, notes."""
    steps = list(range(1, 6))
    health = {
        "every": 1, "layers": ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"], "operands": ["activation", "weight", "gradient"],
        "samples": {
            "step": [step for step in steps for _ in range(6)], "layer": [0, 0, 0, 1, 1, 1] * 5, "operand": [0, 1, 2] * 10,
            **{name: [0.01 * i for i in range(30)] for name in ("underflow", "saturated", "nonfinite", "amax", "sqnr_db",
            "scale")},
        },
        "steps": {"stride": 1, "grad_norm": [1.0, 2.0, float("nan"), 1.5], "loss_scale": [65536.0, 32768.0, 32768.0, 65536.0]},
    }  # fmt: skip
    predictions = {"labels": [0, 1, 2], "last": [0, 1, 1], "best": [0, 1, 2]}
    more: dict[str, Any] = {"health": health, "predictions": predictions, "notes": [{"time": "2026-01-01", "text": "a note"}]}
    return make_record(experiment, seed, gpu=True, epochs=9, **(more | changes))


def quantization_record(seed: int = 0) -> RunRecord:
    """A record of FP8Test."""
    rows = [
        QuantizationRow(
            format=name, granularity="tensor", operands="weights", test_acc=0.96, test_loss=0.1, accuracy_difference=-0.01,
            mcnemar_p=0.3, changed_predictions=0.02, logit_sqnr_db=30.0, logit_cosine=0.999, weight_bytes=1000,
            source_weight_bytes=4000, export={"bytes": 1200, "same_predictions": True}, predictions=[0, 1, 2],
        )
        for name in ("e4m3", "int8", "int_240")
    ]  # fmt: skip
    layers = [
        SensitivityRow(layer=f"blocks.{i}.fc1", format="e4m3", granularity="tensor", operands="weights", val_acc=0.9,
                       accuracy_difference=-0.01, logit_sqnr_db=30.0 + i)
        for i in range(3)
    ]  # fmt: skip
    source = {"run": "AugmFP16-s0", "experiment": "AugmFP16", "test_acc": 0.97, "test_loss": 0.1}
    return make_record("FP8Test", seed, kind="quantization", quantization=rows, sensitivity=layers, source=source, history=[])


def places_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in nested mappings and lists; of a long list only its first and last."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places_of(value[key], (*path, key))
    elif isinstance(value, list) and value:
        for index in sorted({0, len(value) - 1}):
            yield from places_of(value[index], (*path, index))


def with_value(tree: Any, path: tuple[Any, ...], value: Any, *, remove: bool = False) -> Any:
    """A copy of a tree with one value replaced or removed."""
    tree = copy.deepcopy(tree)
    place = tree
    for step in path[:-1]:
        place = place[step]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return tree


def notebook_text(payload: Any, marker: Any = None) -> str:
    """An executed notebook with a payload, sound or not."""
    output = {"output_type": "display_data", "data": {RECORD_MIME: payload, "text/plain": "record"}, "metadata": {}}
    cell = {"cell_type": "code", "execution_count": 1, "id": "record", "metadata": {}, "outputs": [output], "source": ""}
    metadata = {"vitfp8": {"kind": "run"} if marker is None else marker}
    return json.dumps({"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def unpacked(record: RunRecord) -> dict[str, Any]:
    """A payload with its compressed part open."""
    payload = record.to_payload()
    return payload | {"bulk": expand(payload["bulk"])}


def packed(tree: Any) -> Any:
    """The inverse of `unpacked`, for trees that are not sound as well."""
    if isinstance(tree, dict) and isinstance(tree.get("bulk"), (dict, list)):
        return tree | {"bulk": compress(tree["bulk"])}
    return tree


def damaged_values(record: RunRecord, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """What was damaged, and the notebook: one value of the payload is absurd or missing."""
    draw = random.Random(seed)
    tree = unpacked(record)
    places = list(places_of(tree))
    for index in range(count):
        path = places[index % len(places)]
        remove = draw.random() < 0.1
        value = draw.choice(ABSURD)
        yield (
            f"{path} {'removed' if remove else repr(value)[:60]}",
            notebook_text(packed(with_value(tree, path, value, remove=remove))),
        )


def damaged_bytes(record: RunRecord, folder: Path) -> Iterator[tuple[str, bytes]]:
    """What was damaged, and the notebook: cut off, flipped, of another layout, a bomb."""
    content = write_notebook(record, folder / "good.ipynb").read_bytes()
    (folder / "good.ipynb").unlink()
    draw = random.Random(5)
    for length in {*range(0, 40, 7), *range(0, len(content), len(content) // 60), len(content) - 1, len(content) - 2}:
        yield f"cut at {length}", content[:length]
    for _ in range(120):
        flipped = bytearray(content)
        place = draw.randrange(len(flipped))
        flipped[place] ^= 1 << draw.randrange(8)
        yield f"bit of byte {place}", bytes(flipped)
    payload = record.to_payload()
    bulks: list[Any] = ["", "!", "AAAA", 5, [], {}, payload["bulk"][:-8], payload["bulk"][8:], compress([]), compress(5)]
    bulks += [compress({"history": 5}), compress({"history": {"epoch": 5}}), compress({"history": {"epoch": [1], "x": {}}})]
    bulks += [_zipped(b"0" * (80 << 20)), _zipped(b"[" * (80 << 20)), _zipped(b"[" * 50_000), _zipped(b'{"a":' * 50_000)]
    bulks += [_zipped(b"\xff\xfe"), _zipped(b'{"history": NaN}'), _zipped(b'{"history": {"epoch": [' + b"9" * 5000 + b"]}}")]
    for number, bulk in enumerate(bulks):
        yield f"bulk {number}", notebook_text(payload | {"bulk": bulk}).encode()
    for version in (0, -1, 2, 10**9, "1", 1.5, None, True, [], {}):
        yield f"version {version!r}", notebook_text(payload | {"schema_version": version}).encode()
    for wrong in (None, 5, "text", [], [payload], {}, {"schema_version": 1}, True):
        yield f"payload {type(wrong).__name__}", notebook_text(wrong).encode()
    for marker in ({"kind": 5}, {"kind": []}, {"kind": "rvn"}, {"kind": "analysis"}, [], "run", 5, {}):
        yield f"marker {marker!r}", notebook_text(payload, marker).encode()
    good = json.loads(content)
    for path in (("cells",), ("cells", 0), ("cells", 0, "outputs"), ("cells", 0, "outputs", 0), ("cells", 0, "outputs", 0,
    "data"),
                 ("metadata",)):  # fmt: skip
        for value in (None, 5, "x", [], [5], {}, {"a": 1}):
            yield f"{path} {value!r}", json.dumps(with_value(good, path, value)).encode()
    yield "deep", (b"[" * 100_000)
    yield "deep header", json.dumps(good).replace('"reason": null', '"reason": ' + "[" * 900 + "]" * 900).encode()
    yield "deeper header", json.dumps(good).replace('"model": {', '"model": {"x": ' + "[" * 20_000 + "]" * 20_000 + ", ").encode()


def _zipped(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()
