"""The record of a run: its types, its payload in a notebook, and its digests.

A payload is JSON: a small readable header, and the bulky arrays (history, hardware samples, per-image predictions, numeric
health) as one base64 string of zlib-compressed JSON, because nbformat writes one number a line. A reader needs Python's standard
library only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import statistics
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from vitfp8.params import RunParams, identity_digest
from vitfp8.params.quantization import parameters_of

#: The MIME type under which a record stands in an executed notebook.
RECORD_MIME = "application/vnd.vitfp8.record+json"

#: Version of the payload's layout; a reader takes every version up to its own.
SCHEMA_VERSION = 1

Status = Literal["running", "completed", "interrupted", "diverged", "failed"]

#: A decompressed payload beyond this is refused: a record of a long run has a few megabytes.
LARGEST_BULK_BYTES = 64 * 1024 * 1024


def _within(low: float, high: float) -> Callable[[float | None], float | None]:
    """A check that a number can be what it is said to be; NaN and None, which say that it is not known, pass."""

    def check(value: float | None) -> float | None:
        if value is not None and not math.isnan(value) and not low <= value <= high:
            raise ValueError(f"must be from {low:g} to {high:g}")
        return value

    return check


#: What a record may say: a wild number in one record must not stop the tables and figures of all the others.
_Fraction = Annotated[float | None, AfterValidator(_within(0, 1))]
_Difference = Annotated[float | None, AfterValidator(_within(-1, 1))]
_Amount = Annotated[float | None, AfterValidator(_within(0, math.inf))]
_Count = Annotated[int | None, Field(ge=0, lt=2**63)]
_Classes = list[Annotated[int, Field(ge=-(2**31), lt=2**31)]]


def _is_real(annotation: Any) -> bool:
    """Whether a type is ``float``, or ``float`` or None, under whatever annotations."""
    return annotation is float or any(map(_is_real, get_args(annotation)))


#: Parameters that are real numbers: a program that writes JSON as JavaScript does makes 1.0 a 1 of them.
_REAL_PARAMETERS = frozenset(name for name, info in RunParams.model_fields.items() if _is_real(info.annotation))

#: Figures of a quantisation's source that are real numbers.
_REAL_SOURCE_FIGURES = frozenset(
    ("test_acc", "test_loss", "val_acc", "val_loss", "recorded_test_acc", "recorded_predictions_repeated")
)


def _real(values: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Values with whole numbers of these names as real ones, so that digests do not depend on who saved the notebook."""
    return {
        key: float(value)
        if key in names and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023
        else value
        for key, value in values.items()
    }


class _Part(BaseModel):
    """A part of a record: keys of later versions are kept, not refused."""

    model_config = ConfigDict(extra="allow")


class EpochRow(_Part):
    """What one epoch brought. Losses and accuracies are means over images; accuracies are fractions.

    Attributes:
        epoch: from 1.
        train_loss: mean over the augmented training images as they were trained on (with label smoothing).
        train_acc: accuracy on the same, while training.
        clean_train_loss: mean over a fixed clean subset of the training images, evaluation mode, without smoothing.
        clean_train_acc: accuracy on the same; the generalisation gap compares it with `val_acc`.
        val_loss: mean over the validation images, without smoothing.
        val_acc: accuracy on the same.
        learning_rate: of the epoch's last step.
        epoch_seconds: training and validation together.
        train_seconds: training alone, all steps of the epoch, the device waited for at the end.
        images_per_second: training images ÷ training seconds.
        grad_norm: mean gradient norm before clipping over the steps that were not skipped.
        loss_scale: of FP16 at the epoch's end; None without loss scaling.
        skipped_steps: optimizer steps skipped in this epoch because a gradient overflowed.
        peak_allocated_bytes: largest size of all tensors on a CUDA device in this epoch; None elsewhere.
        peak_reserved_bytes: the most that torch's allocator held there.
    """

    epoch: Annotated[int, Field(ge=0, lt=2**31)]
    train_loss: float | None = None
    train_acc: _Fraction = None
    clean_train_loss: float | None = None
    clean_train_acc: _Fraction = None
    val_loss: float | None = None
    val_acc: _Fraction = None
    learning_rate: float | None = None
    epoch_seconds: _Amount = None
    train_seconds: _Amount = None
    images_per_second: _Amount = None
    grad_norm: float | None = None
    loss_scale: float | None = None
    skipped_steps: _Count = None
    peak_allocated_bytes: _Amount = None
    peak_reserved_bytes: _Amount = None


#: The columns of an epoch that a repeat on the same machine must reproduce bit by bit; the others are time.
DETERMINISTIC_COLUMNS = (
    "epoch", "train_loss", "train_acc", "clean_train_loss", "clean_train_acc", "val_loss", "val_acc", "learning_rate",
    "grad_norm", "loss_scale", "skipped_steps",
)  # fmt: skip


class LayerPrecision(_Part):
    """What became of one layer: its name, its type, the format of its products, and why.

    `format` is that of the operands of its products; `converted` says whether that is the format that was asked for.
    """

    name: str
    type: str
    format: str
    converted: bool
    reason: str | None = None


class Precision(_Part):
    """Requested and effective precision.

    Attributes:
        requested: as the parameters say.
        effective: format of the products that really ran.
        backend: ``native`` or ``emulated``: who multiplies.
        reason: why this backend.
        product_dtype: the dtype in which the products are computed, e.g. ``float32`` for FP16 on the grid.
        evaluation: precision of validation and test.
        loss_scaling: ``dynamic`` or None.
        recipe: how FP8 scales its operands; None for other precisions.
        base: format that everything outside the FP8 products follows.
        base_backend: who multiplies there.
        switches: global switches that decide what "FP32" is, e.g. TF32.
        attention: what computes attention: ``written out``, or the fused kernel that torch chose; None: not known.
        compiled: whether torch.compile compiled the model; None in records from before it was decided.
        compile_reason: why, or why not.
        cuda_graphs: whether kernels were recorded once and replayed.
        layers: one row a layer with products.
    """

    requested: str
    effective: str
    backend: str
    reason: str = ""
    product_dtype: str | None = None
    evaluation: str | None = None
    loss_scaling: str | None = None
    recipe: str | None = None
    base: str | None = None
    base_backend: str | None = None
    switches: dict[str, Any] = Field(default_factory=dict)
    attention: str | None = None
    compiled: bool | None = None
    compile_reason: str | None = None
    cuda_graphs: bool | None = None
    layers: list[LayerPrecision] = Field(default_factory=list)


class Metrics(_Part):
    """Final figures of a run; fractions, seconds, images. None: not known (yet).

    ``test_acc`` is the primary endpoint: the last epoch's weights. ``best_test_acc`` has the weights of the best validation
    epoch. The generalisation gap is `final_train_acc` − `final_val_acc`, the former on the clean subset. ``compile_seconds`` is
    what compiling a model took, before the first epoch; it enters no throughput.
    ``epoch_seconds_*`` leave the first epoch out where there are more; ``q1`` and ``q3`` are quartiles.
    """

    epochs: _Count = None
    best_epoch: _Count = None
    best_val_acc: _Fraction = None
    final_train_acc: _Fraction = None
    final_val_acc: _Fraction = None
    generalization_gap: _Difference = None
    final_train_loss: float | None = None
    final_val_loss: float | None = None
    test_acc: _Fraction = None
    test_loss: float | None = None
    best_test_acc: _Fraction = None
    best_test_loss: float | None = None
    train_seconds: _Amount = None
    epoch_seconds_mean: _Amount = None
    epoch_seconds_sd: _Amount = None
    epoch_seconds_median: _Amount = None
    epoch_seconds_q1: _Amount = None
    epoch_seconds_q3: _Amount = None
    images_per_second: _Amount = None
    compile_seconds: _Amount = None
    skipped_steps: _Count = None


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile, interpolated between neighbours.

    Args:
        values: at least one.
    """
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class Hardware(_Part):
    """What the monitors saw: a flat summary and columns of samples; None was not measured."""

    summary: dict[str, Any] = Field(default_factory=dict)
    samples: dict[str, list[Any]] = Field(default_factory=dict)


#: Format of quantisation after training that takes more than 8 bits: it is never the best 8-bit way.
NOT_8_BITS = "int_240"


class QuantizationRow(_Part):
    """A model quantised in one way, evaluated on the test set, beside its source on the same images.

    Attributes:
        format: a key of `vitfp8.catalog.QUANTIZED_FORMATS`.
        granularity: a key of `QUANTIZED_GRANULARITIES`.
        operands: a key of `QUANTIZED_OPERANDS`.
        activation_scales: ``calibrated`` on training images, ``computed`` for each block as it comes (mx), or None.
        test_acc: accuracy on the test images.
        test_loss: mean loss over them.
        accuracy_difference: accuracy less the source's.
        loss_difference: loss less the source's.
        mcnemar_p: exact two-sided p of McNemar's test on the same images.
        only_source_correct: images that the source has right and the quantised model wrong.
        only_quantized_correct: the opposite.
        changed_predictions: fraction of images whose predicted class is another.
        logit_sqnr_db: signal to quantisation noise of the logits, over all images; infinite where they are equal.
        logit_cosine: cosine similarity of the logits of an image, mean over the images.
        weight_bits: bits that a quantised weight takes.
        weight_bytes: of the quantised layers' weights with their scales.
        source_weight_bytes: of the same weights in the source's format.
        nonfinite_logits: number of logits that are infinite or NaN.
        export: of the exported model: file, bytes, sha256, same_predictions; None where none was written.
        predictions: predicted class of each test image.
    """

    format: str
    granularity: str
    operands: str
    activation_scales: str | None = None
    test_acc: _Fraction = None
    test_loss: float | None = None
    accuracy_difference: _Difference = None
    loss_difference: float | None = None
    mcnemar_p: _Amount = None
    only_source_correct: _Count = None
    only_quantized_correct: _Count = None
    changed_predictions: _Fraction = None
    logit_sqnr_db: float | None = None
    logit_cosine: float | None = None
    weight_bits: _Count = None
    weight_bytes: _Count = None
    source_weight_bytes: _Count = None
    nonfinite_logits: _Count = None
    export: dict[str, Any] | None = None
    predictions: _Classes = Field(default_factory=list)


class SensitivityRow(_Part):
    """One layer quantised, all others as in the source; judged on validation images.

    Attributes:
        layer: its name in the model.
        format, granularity, operands: as in `QuantizationRow`.
        val_acc: accuracy on the validation images.
        val_loss: mean loss over them.
        accuracy_difference: accuracy less the source's.
        loss_difference: loss less the source's.
        changed_predictions: fraction of images whose predicted class is another.
        logit_sqnr_db: signal to quantisation noise of the logits.
    """

    layer: str
    format: str
    granularity: str
    operands: str
    val_acc: _Fraction = None
    val_loss: float | None = None
    accuracy_difference: _Difference = None
    loss_difference: float | None = None
    changed_predictions: _Fraction = None
    logit_sqnr_db: float | None = None


class LaterVersionError(ValueError):
    """A record is of a later version than this vitfp8 reads."""


class RunRecord(_Part):
    """The versioned, typed result of a run.

    Attributes:
        schema_version: layout of the payload.
        kind: ``run`` of a training, or ``quantization`` of a trained model.
        experiment: name in the catalogue.
        variant: control or point of a sweep; empty for the experiment itself.
        seed: None only for imported runs.
        origin: ``run`` or ``imported``.
        status: see DESIGN; the record decides, not papermill's metadata.
        reason: why it diverged, failed or was interrupted.
        question: what the experiment asks.
        expectation: what was expected beforehand.
        parameters: every parameter.
        parameters_digest: SHA-256 of those that decide numbers.
        identity_rule: the rule by which that digest was formed, see `vitfp8.params.IDENTITY_RULE`; records that name none have 1.
        defaults_taken: parameters that the notebook took from its defaults although others were injected.
        precision: requested and effective.
        model: name, parameters (number), flops_per_image, …
        data: name, sizes, digest, …
        provenance: commit, dirty, patch, versions, machine, code_digest, …
        started, finished: ISO 8601 times with zone.
        run_folder: where journal and checkpoints were.
        progress: epoch, epochs, step: how far it came.
        metrics: final figures.
        hardware: monitors' summary and samples.
        history: a row an epoch.
        predictions: per-image classes on the test set: ``labels``, ``last``, ``best``.
        health: numeric health, in columns.
        checkpoints: name → SHA-256 of the weights' file.
        continued: where the run went on from a checkpoint, an entry each time: ``time``, and ``epoch`` and ``step`` (within the
            next epoch) that were done.
        deterministic: ``promised`` (bool), ``level`` (text), ``digest`` of the part that a repeat reproduces.
        notes: dated notes, merged from the run log.
        source: of a quantisation: the run that it started from, its figures and digests.
        quantization: of a quantisation: a row a way to quantise.
        sensitivity: of a quantisation: a row a layer and format.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["run", "quantization"] = "run"
    experiment: str
    variant: str = ""
    seed: _Count = None
    origin: Literal["run", "imported"] = "run"
    status: Status = "running"
    reason: str | None = None
    question: str = ""
    expectation: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    parameters_digest: str | None = None
    identity_rule: Annotated[int, Field(ge=1, lt=2**31)] = 1
    defaults_taken: list[str] = Field(default_factory=list)
    precision: Precision | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    started: str | None = None
    finished: str | None = None
    run_folder: str | None = None
    progress: dict[str, Any] = Field(default_factory=dict)
    metrics: Metrics = Field(default_factory=Metrics)
    hardware: Hardware = Field(default_factory=Hardware)
    history: list[EpochRow] = Field(default_factory=list)
    predictions: dict[str, _Classes] = Field(default_factory=dict)
    health: dict[str, Any] = Field(default_factory=dict)
    checkpoints: dict[str, str] = Field(default_factory=dict)
    continued: list[dict[str, Any]] = Field(default_factory=list)
    deterministic: dict[str, Any] = Field(default_factory=dict)
    notes: list[dict[str, Any]] = Field(default_factory=list)
    source: dict[str, Any] = Field(default_factory=dict)
    quantization: list[QuantizationRow] = Field(default_factory=list)
    sensitivity: list[SensitivityRow] = Field(default_factory=list)

    @field_validator("parameters")
    @classmethod
    def _real_parameters(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        """Real numbers stay real ones when JavaScript has saved the notebook."""
        return _real(parameters, _REAL_PARAMETERS)

    @field_validator("source")
    @classmethod
    def _real_source(cls, source: dict[str, Any]) -> dict[str, Any]:
        """The same of the source's figures."""
        return _real(source, _REAL_SOURCE_FIGURES)

    @field_validator("health")
    @classmethod
    def _health_in_columns(cls, health: dict[str, Any]) -> dict[str, Any]:
        """Refuse numeric health that is no names with columns of numbers: figures index the one by the other."""
        names = [health.get("layers", []), health.get("operands", [])]
        samples, steps = health.get("samples", {}), health.get("steps", {})
        if not all(isinstance(listed, list) and all(isinstance(name, str) for name in listed) for listed in names):
            raise ValueError("layers and operands must be lists of names")
        if not isinstance(samples, dict) or not isinstance(steps, dict):
            raise ValueError("samples and steps must be columns")
        if samples and not all(isinstance(health.get(key), list) for key in ("layers", "operands")):
            raise ValueError("samples without layers and operands")
        columns = [samples.get(key, []) for key in samples] + [steps.get(key, []) for key in steps if key != "stride"]
        if not all(isinstance(column, list) and all(map(_is_number, column)) for column in columns):
            raise ValueError("samples and steps must be columns of numbers")
        places = [samples.get(key, []) for key in ("step", "layer", "operand")]
        if not all(isinstance(place, int) and place >= 0 for column in places for place in column):
            raise ValueError("step, layer and operand of a sample must be whole numbers")
        stride = steps.get("stride", 1)
        if not isinstance(stride, int) or not 1 <= stride < 2**31:
            raise ValueError("stride must be a whole number from 1")
        return health

    @property
    def run_name(self) -> str:
        """``<experiment>[~<variant>]-s<seed>``; imported runs without a seed have none."""
        variant = f"~{self.variant}" if self.variant else ""
        return f"{self.experiment}{variant}" + (f"-s{self.seed}" if self.seed is not None else "-imported")

    @property
    def first_rule_digest(self) -> str | None:
        """The digest of the parameters under the first rule of identity, whatever rule the record names.

        It stands in the deterministic part, so that records of all versions can be compared.
        """
        if self.identity_rule == 1 or self.parameters_digest is None:
            return self.parameters_digest
        return identity_digest(parameters_of(self.experiment), self.parameters, 1)

    @property
    def weights_digest(self) -> str | None:
        """SHA-256 of the file of trained weights that the run started from; None for random weights, and in older records."""
        pretrained = self.model.get("pretrained")
        return pretrained.get("sha256") if isinstance(pretrained, dict) else None

    @property
    def best_way(self) -> QuantizationRow | None:
        """Of a quantisation: the row of the 8-bit way that costs least accuracy; None where none is known."""
        known = [
            (row.accuracy_difference, row)
            for row in self.quantization
            if row.format != NOT_8_BITS and row.accuracy_difference is not None and math.isfinite(row.accuracy_difference)
        ]
        return max(known, key=lambda pair: pair[0])[1] if known else None

    def deterministic_part(self) -> dict[str, Any]:
        """What a repeat with the same parameters on the same kind of machine reproduces bit by bit."""
        if self.kind == "quantization":
            return {
                "parameters": self.first_rule_digest,
                "data": self.data.get("digest"),
                "source": {
                    key: self.source.get(key) for key in ("parameters_digest", "checkpoint_sha256", "test_acc", "test_loss")
                },
                "quantization": [row.model_dump(exclude={"export"}) for row in self.quantization],
                "sensitivity": [row.model_dump() for row in self.sensitivity],
                "status": self.status,
            }
        return {
            "parameters": self.first_rule_digest,
            "data": self.data.get("digest"),
            **({"pretrained": self.weights_digest} if self.weights_digest else {}),
            "history": [{key: getattr(row, key) for key in DETERMINISTIC_COLUMNS} for row in self.history],
            "metrics": {
                key: getattr(self.metrics, key)
                for key in ("best_epoch", "best_val_acc", "final_train_acc", "final_val_acc", "test_acc", "test_loss",
                            "best_test_acc", "best_test_loss")
            },
            "predictions": self.predictions,
            "status": self.status,
        }  # fmt: skip

    def to_payload(self) -> dict[str, Any]:
        """The JSON-able payload that a notebook carries: header, and the bulky parts compressed."""
        values = self.model_dump(mode="python")
        bulk = {key: values.pop(key) for key in _BULKY}
        bulk["hardware_samples"] = values["hardware"].pop("samples")
        if values["precision"] is not None:
            bulk["precision_layers"] = values["precision"].pop("layers")
        bulk["history"] = _columns(bulk["history"])
        header: dict[str, Any] = _json_safe(values)
        header["bulk"] = compress(bulk)
        return {**header, PAYLOAD_DIGEST: payload_digest(header)}

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> RunRecord:
        """Read a payload back.

        Args:
            payload: what `to_payload` made, perhaps by an earlier version.

        Raises:
            ValueError: it is no record, is damaged, or comes from a later version.
        """
        if not isinstance(payload, dict) or "schema_version" not in payload:
            raise ValueError("the record has no schema_version")
        version = payload["schema_version"]
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValueError(f"schema version {str(version)[:40]!r} is none")
        if version > SCHEMA_VERSION:
            raise LaterVersionError(
                f"schema version {version} is later than {SCHEMA_VERSION}, which this vitfp8 reads: update it"
            )
        try:
            values: dict[str, Any] = _json_back(
                {key: value for key, value in payload.items() if key not in ("bulk", PAYLOAD_DIGEST)}
            )
        except RecursionError:
            raise ValueError("is nested too deeply") from None
        bulk = expand(payload["bulk"]) if payload.get("bulk") is not None else {}
        for name, part in (("its compressed part", bulk), ("hardware", values.setdefault("hardware", {}))):
            if not isinstance(part, dict):
                raise ValueError(f"{name} is no mapping")
        values.update({key: bulk[key] for key in _BULKY if key in bulk})
        values["history"] = _rows(values.get("history", {}))
        values["hardware"]["samples"] = bulk.get("hardware_samples", {})
        if isinstance(values.get("precision"), dict):
            values["precision"]["layers"] = bulk.get("precision_layers", [])
        return validated(values)


def validated(values: dict[str, Any]) -> RunRecord:
    """A record from its fields.

    Args:
        values: field → value, as JSON knows them.

    Raises:
        ValueError: the first thing that is wrong, named by its place.
    """
    try:
        return RunRecord.model_validate(values)
    except ValidationError as failure:
        error = failure.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, error["loc"])) or "the record"
        raise ValueError(f"{place[:100]}: {error['msg'].removeprefix('Value error, ')[:150]}") from None


def _is_number(value: object) -> bool:
    """Whether a figure can draw a value: a number or None; a huge integer is no number that a float can be."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


#: Key of a payload under which the digest of all the rest stands; records of earlier versions have none.
PAYLOAD_DIGEST = "payload_digest"

_BULKY = ("history", "predictions", "health", "quantization", "sensitivity")


#: How a payload digest begins that is over canonical numbers; one without a mark tells 1.0 from 1.
_CANONICAL = "v2:"


def digest_of(value: Any) -> str:
    """SHA-256, hexadecimal, of a JSON-able value in canonical form (sorted keys, shortest round-trip floats).

    It tells 1.0 from 1: for values whose types are known. What another program may have saved goes through `payload_digest`.
    """
    text = json.dumps(_json_safe(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()  # lone surrogates of a damaged text too


def payload_digest(payload: dict[str, Any]) -> str:
    """SHA-256, hexadecimal after ``v2:``, of everything in a payload but its own digest: any number edited by hand changes it.

    Numbers count, not their spelling: JupyterLab saves notebooks as JavaScript writes JSON, 1.0 as 1 and 1e22 as 1e+22.

    Args:
        payload: as a notebook carries it.
    """
    return _CANONICAL + digest_of(_canonical({key: value for key, value in payload.items() if key != PAYLOAD_DIGEST}))


def agrees_with_digest(payload: dict[str, Any], copies: Iterable[RunRecord]) -> bool:
    """Whether a payload is what its own digest says.

    A digest without ``v2:`` is of an earlier version and tells 1.0 from 1; where the notebook was saved by JavaScript since, the
    types of numbers are taken from a copy of the record.

    Args:
        payload: as a notebook carries it, with its digest.
        copies: the record as it was read from the payload, or from the journal; only their types of numbers count.
    """
    stated = payload[PAYLOAD_DIGEST]
    if isinstance(stated, str) and stated.startswith(_CANONICAL):
        return bool(stated == payload_digest(payload))
    content = {key: value for key, value in payload.items() if key != PAYLOAD_DIGEST}
    return stated == digest_of(content) or any(
        stated == digest_of(_typed_like(content, copy.to_payload(), "")) for copy in copies
    )


def _canonical(value: Any) -> Any:
    """A JSON-able value with each number in the one form that Python and JavaScript agree on."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    try:
        number = float(value)  # all that JavaScript knows
    except OverflowError:
        return value
    return int(number) if number.is_integer() else number


def _typed_like(value: Any, copy: Any, key: str) -> Any:
    """A value whose whole numbers are real ones where they are so in a copy, or where a monitor's figure always is."""
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


def compress(value: Any) -> str:
    """A JSON-able value as base64 of zlib-compressed JSON text."""
    text = json.dumps(_json_safe(value), separators=(",", ":"), allow_nan=False)
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
        return _json_back(json.loads(data))
    except (zlib.error, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"the compressed part of the record is damaged ({error})") from None


def _json_safe(value: Any) -> Any:
    """JSON has no NaN and no infinity: they travel as marked strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": repr(value)}
    if isinstance(value, dict):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    return value


def _json_back(value: Any) -> Any:
    """The inverse of `_json_safe`."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("nan", "inf", "-inf"):
            return float(value["__float__"])
        return {key: _json_back(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_back(item) for item in value]
    return value


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns: shorter, and one string compresses better."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return {key: [row.get(key) for row in rows] for key in keys}


def _rows(columns: dict[str, list[Any]] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Columns as rows; rows are left as they are."""
    if isinstance(columns, list):
        return columns
    if not isinstance(columns, dict) or not all(isinstance(column, list) for column in columns.values()):
        raise ValueError("the history is no table of columns")
    count = max((len(column) for column in columns.values()), default=0)
    return [{key: column[i] for key, column in columns.items() if i < len(column)} for i in range(count)]
