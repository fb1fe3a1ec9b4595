"""What a record holds: its types, what follows from them, and how a record begins. The JSON form is `vitfp8.record.codec`'s.

Units, unless a field says otherwise: accuracies are fractions, losses are means over images, times are seconds, sizes are bytes.
None: not known, or not measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vitfp8.catalog import run_name
from vitfp8.params import IDENTITY_RULE, Parameters, RunParams, identity_digest
from vitfp8.params.quantization import QuantizeParams, parameters_of
from vitfp8.record.codec import SCHEMA_VERSION, pack, unpack

Status = Literal["running", "completed", "interrupted", "diverged", "failed"]


def _within(low: float, high: float) -> Callable[[float | None], float | None]:
    """A check of a number's range; NaN and None, which say that it is not known, pass."""

    def check(value: float | None) -> float | None:
        if value is not None and not math.isnan(value) and not low <= value <= high:
            raise ValueError(f"must be from {low:g} to {high:g}")
        return value

    return check


#: The ranges that a record may state: a wild number in one record must not stop the tables and figures of all the others.
_Fraction = Annotated[float | None, AfterValidator(_within(0, 1))]
_Difference = Annotated[float | None, AfterValidator(_within(-1, 1))]
_Amount = Annotated[float | None, AfterValidator(_within(0, math.inf))]
_Count = Annotated[int | None, Field(ge=0, lt=2**63)]
_Classes = list[Annotated[int, Field(ge=-(2**31), lt=2**31)]]


class _Part(BaseModel):
    """A part of a record; keys of later versions are kept."""

    model_config = ConfigDict(extra="allow")


class EpochRow(_Part):
    """What one epoch brought."""

    epoch: Annotated[int, Field(ge=0, lt=2**31)]  # from 1
    train_loss: float | None = None  # over the augmented training images, with label smoothing, while training
    train_acc: _Fraction = None  # on the same images
    clean_train_loss: float | None = None  # over a fixed clean subset of the training images, evaluation mode, no smoothing
    clean_train_acc: _Fraction = None  # on the same images; the generalisation gap compares it with val_acc
    val_loss: float | None = None  # without smoothing
    val_acc: _Fraction = None
    learning_rate: float | None = None  # of the epoch's last step
    epoch_seconds: _Amount = None  # training and validation
    train_seconds: _Amount = None  # training alone, until the device has finished its last step
    images_per_second: _Amount = None  # training images ÷ train_seconds
    grad_norm: float | None = None  # mean over the steps that were not skipped, before clipping
    loss_scale: float | None = None  # of FP16 at the epoch's end; None without loss scaling
    skipped_steps: _Count = None  # optimizer steps skipped because a gradient overflowed
    peak_allocated_bytes: _Amount = None  # largest size of all tensors on a CUDA device; None elsewhere
    peak_reserved_bytes: _Amount = None  # most memory that torch's allocator held there


#: The columns of an epoch that a repeat on the same machine must reproduce bit by bit; the others are times and memory.
DETERMINISTIC_COLUMNS = (
    "epoch", "train_loss", "train_acc", "clean_train_loss", "clean_train_acc", "val_loss", "val_acc", "learning_rate",
    "grad_norm", "loss_scale", "skipped_steps",
)  # fmt: skip


class LayerPrecision(_Part):
    """The precision of one layer that multiplies."""

    name: str
    type: str
    format: str  # of the operands of its products
    converted: bool  # whether that is the format that was asked for
    reason: str | None = None


class Precision(_Part):
    """Requested and effective precision."""

    requested: str  # as the parameters say
    effective: str  # format of the products that really ran
    backend: str  # native or emulated: what multiplies
    reason: str = ""  # why this backend
    product_dtype: str | None = None  # in which the products are computed, e.g. float32 for FP16 on the grid
    evaluation: str | None = None  # precision of validation and test
    loss_scaling: str | None = None  # dynamic, or None
    recipe: str | None = None  # how FP8 scales its operands; None for other precisions
    base: str | None = None  # format of everything outside the FP8 products
    base_backend: str | None = None  # what multiplies there
    switches: dict[str, Any] = Field(default_factory=dict)  # global switches that decide what "FP32" is, e.g. TF32
    attention: str | None = None  # "written out", or the fused kernel that torch chose
    compiled: bool | None = None  # whether torch.compile compiled the model
    compile_reason: str | None = None  # why, or why not
    cuda_graphs: bool | None = None  # whether kernels were recorded once and replayed
    layers: list[LayerPrecision] = Field(default_factory=list)  # one row per layer that multiplies


class Metrics(_Part):
    """Final figures of a run."""

    epochs: _Count = None
    best_epoch: _Count = None
    best_val_acc: _Fraction = None
    final_train_acc: _Fraction = None  # on the clean subset
    final_val_acc: _Fraction = None
    generalization_gap: _Difference = None  # final_train_acc − final_val_acc
    final_train_loss: float | None = None
    final_val_loss: float | None = None
    test_acc: _Fraction = None  # the primary endpoint: the last epoch's weights
    test_loss: float | None = None
    best_test_acc: _Fraction = None  # the weights of the best validation epoch
    best_test_loss: float | None = None
    train_seconds: _Amount = None  # all epochs, with validation
    epoch_seconds_mean: _Amount = None  # this and the next four leave the first epoch out if there are more
    epoch_seconds_sd: _Amount = None
    epoch_seconds_median: _Amount = None
    epoch_seconds_q1: _Amount = None  # first and third quartile
    epoch_seconds_q3: _Amount = None
    images_per_second: _Amount = None
    compile_seconds: _Amount = None  # compiling the model before the first epoch; enters no throughput
    skipped_steps: _Count = None


class Hardware(_Part):
    """What the monitors saw."""

    summary: dict[str, Any] = Field(default_factory=dict)
    samples: dict[str, list[Any]] = Field(default_factory=dict)  # in columns


#: Format of quantisation after training that takes more than 8 bits, so that it is never the best 8-bit way.
NOT_8_BITS = "int_240"


class QuantizationRow(_Part):
    """A model quantised in one way, evaluated on the test set, beside the source model on the same images."""

    format: str  # a key of vitfp8.catalog.QUANTIZED_FORMATS
    granularity: str  # a key of QUANTIZED_GRANULARITIES
    operands: str  # a key of QUANTIZED_OPERANDS
    activation_scales: str | None = None  # calibrated on training images, computed for each block as it comes (mx), or None
    test_acc: _Fraction = None
    test_loss: float | None = None
    accuracy_difference: _Difference = None  # quantised − source
    loss_difference: float | None = None  # quantised − source
    mcnemar_p: _Amount = None  # exact two-sided p of McNemar's test
    only_source_correct: _Count = None  # images that only the source model gets right
    only_quantized_correct: _Count = None  # images that only the quantised model gets right
    changed_predictions: _Fraction = None  # of the images
    logit_sqnr_db: float | None = None  # signal to quantisation noise of all logits; infinite where they are equal
    logit_cosine: float | None = None  # cosine similarity of an image's logits, mean over the images
    weight_bits: _Count = None  # per quantised weight
    weight_bytes: _Count = None  # of the quantised layers' weights with their scales
    source_weight_bytes: _Count = None  # of the same weights in the source's format
    nonfinite_logits: _Count = None
    export: dict[str, Any] | None = None  # file, bytes, sha256, same_predictions; None where no model was exported
    predictions: _Classes = Field(default_factory=list)  # predicted class of each test image


class SensitivityRow(_Part):
    """One layer quantised, all others as in the source; evaluated on the validation images. Fields as in `QuantizationRow`."""

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


#: Parameters that a record also shows at its top; they are taken from the parameters.
STATED = ("experiment", "variant", "seed", "question", "expectation")


def _is_real(annotation: Any) -> bool:
    """Whether a type is ``float``, or ``float`` or None, whatever its annotations."""
    return annotation is float or any(map(_is_real, get_args(annotation)))


#: Names of values that are floats: a program that writes JSON as JavaScript does turns 1.0 into 1.
REAL_PARAMETERS = frozenset(name for name, info in RunParams.model_fields.items() if _is_real(info.annotation))
_REAL_SOURCE_FIGURES = frozenset(
    ("test_acc", "test_loss", "val_acc", "val_loss", "recorded_test_acc", "recorded_predictions_repeated")
)


def _real(values: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Values with the named whole numbers as floats, so that digests do not depend on who saved the notebook."""
    return {
        key: float(value) if key in names and type(value) is int and abs(value) < 2**1023 else value
        for key, value in values.items()
    }


class RunRecord(_Part):
    """The versioned, typed result of a run."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["run", "quantization"] = "run"  # a training, or the quantisation of a trained model
    experiment: str  # name in the catalogue; this and the other names in STATED are the parameters'
    variant: str = ""  # empty for the experiment itself
    seed: _Count = None  # None only for imported runs
    origin: Literal["run", "imported"] = "run"
    status: Status = "running"
    reason: str | None = None  # why it diverged, failed or was interrupted
    question: str = ""
    expectation: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)  # every parameter
    parameters_digest: str | None = None  # SHA-256 of those that decide numbers
    identity_rule: Annotated[int, Field(ge=1, lt=2**31)] = 1  # how that digest was formed, see vitfp8.params.IDENTITY_RULE
    defaults_taken: list[str] = Field(
        default_factory=list
    )  # parameters left at the notebook's defaults while others were injected
    precision: Precision | None = None
    model: dict[str, Any] = Field(default_factory=dict)  # name, parameters (their number), flops_per_image, …
    data: dict[str, Any] = Field(default_factory=dict)  # name, sizes, digest, …
    provenance: dict[str, Any] = Field(default_factory=dict)  # commit, dirty, versions, machine, code_digest, run_id, …
    started: str | None = None  # ISO 8601 with zone
    finished: str | None = None
    run_folder: str | None = None  # where journal and checkpoints were
    progress: dict[str, Any] = Field(default_factory=dict)  # epoch, epochs, step: how far it came
    metrics: Metrics = Field(default_factory=Metrics)
    hardware: Hardware = Field(default_factory=Hardware)
    history: list[EpochRow] = Field(default_factory=list)  # one row per epoch
    predictions: dict[str, _Classes] = Field(default_factory=dict)  # classes of the test images: labels, last, best
    health: dict[str, Any] = Field(default_factory=dict)  # numeric health, in columns
    checkpoints: dict[str, str] = Field(default_factory=dict)  # name → SHA-256 of the file of weights
    continued: list[dict[str, Any]] = Field(default_factory=list)  # each continuation: time; epoch and step that were done
    deterministic: dict[str, Any] = Field(default_factory=dict)  # promised, level (in words), digest of `deterministic_part`
    notes: list[dict[str, Any]] = Field(default_factory=list)  # time and text; notes of the run log are merged
    source: dict[str, Any] = Field(default_factory=dict)  # of a quantisation: the source run, its figures and digests
    quantization: list[QuantizationRow] = Field(default_factory=list)  # of a quantisation: one row per way to quantise
    sensitivity: list[SensitivityRow] = Field(default_factory=list)  # of a quantisation: one row per layer and format

    @classmethod
    def of(cls, params: Parameters, **known: Any) -> RunRecord:
        """The record with which a run begins now.

        Args:
            params: of the run; what the record says of them is taken from here alone.
            **known: further fields that are known by now.
        """
        own = {
            "kind": "quantization" if isinstance(params, QuantizeParams) else "run",
            "parameters": params.model_dump(),
            "parameters_digest": params.digest,
            "identity_rule": IDENTITY_RULE,
            "started": now(),
        }
        return cls.model_validate(own | known)

    @model_validator(mode="before")
    @classmethod
    def _stated_by_the_parameters(cls, values: Any) -> Any:
        """Names that stand in the parameters need not be given again."""
        if isinstance(values, dict) and isinstance(parameters := values.get("parameters"), dict):
            return {key: parameters[key] for key in STATED if key in parameters} | values
        return values

    @field_validator("parameters")
    @classmethod
    def _real_parameters(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        """Floats stay floats when JavaScript has saved the notebook."""
        return _real(parameters, REAL_PARAMETERS)

    @field_validator("source")
    @classmethod
    def _real_source(cls, source: dict[str, Any]) -> dict[str, Any]:
        """Floats stay floats when JavaScript has saved the notebook."""
        return _real(source, _REAL_SOURCE_FIGURES)

    @field_validator("health")
    @classmethod
    def _health_in_columns(cls, health: dict[str, Any]) -> dict[str, Any]:
        """Refuse numeric health that is not names with columns of numbers: figures index the one by the other."""
        names = [health.get("layers", []), health.get("operands", [])]
        samples, steps = health.get("samples", {}), health.get("steps", {})
        if not all(isinstance(listed, list) and all(isinstance(name, str) for name in listed) for listed in names):
            raise ValueError("layers and operands must be lists of names")
        if not isinstance(samples, dict) or not isinstance(steps, dict):
            raise ValueError("samples and steps must be columns")
        if samples and not all(isinstance(health.get(key), list) for key in ("layers", "operands")):
            raise ValueError("samples without layers and operands")
        columns = [*samples.values(), *(column for key, column in steps.items() if key != "stride")]
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
        """See `vitfp8.catalog.run_name`."""
        return run_name(self.experiment, self.variant, self.seed)

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
        part = {"parameters": self.first_rule_digest, "data": self.data.get("digest"), "status": self.status}
        if self.kind == "quantization":
            keys = ("parameters_digest", "checkpoint_sha256", "test_acc", "test_loss")
            return part | {
                "source": {key: self.source.get(key) for key in keys},
                "quantization": [row.model_dump(exclude={"export"}) for row in self.quantization],
                "sensitivity": [row.model_dump() for row in self.sensitivity],
            }
        figures = ("best_epoch", "best_val_acc", "final_train_acc", "final_val_acc", "test_acc", "test_loss", "best_test_acc",
                   "best_test_loss")  # fmt: skip
        return part | {
            **({"pretrained": self.weights_digest} if self.weights_digest else {}),
            "history": [{key: getattr(row, key) for key in DETERMINISTIC_COLUMNS} for row in self.history],
            "metrics": {key: getattr(self.metrics, key) for key in figures},
            "predictions": self.predictions,
        }

    def to_payload(self) -> dict[str, Any]:
        """The JSON-able payload that a notebook carries; see `vitfp8.record.codec`."""
        return pack(self.model_dump(mode="python"))

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> RunRecord:
        """Read a payload back, perhaps one of an earlier version.

        Raises:
            ValueError: it is not a record, is damaged, or comes from a later version.
        """
        return validated(unpack(payload))


def validated(values: dict[str, Any]) -> RunRecord:
    """A record from its fields.

    Raises:
        ValueError: the first thing that is wrong, named by its place.
    """
    try:
        return RunRecord.model_validate(values)
    except ValidationError as failure:
        error = failure.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, error["loc"])) or "the record"
        raise ValueError(f"{place[:100]}: {error['msg'].removeprefix('Value error, ')[:150]}") from None


def now() -> str:
    """The present time as records state it: ISO 8601 with zone, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile of at least one value, interpolated between neighbours."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _is_number(value: object) -> bool:
    """Whether a figure can draw a value: None or a number that a float can hold."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
