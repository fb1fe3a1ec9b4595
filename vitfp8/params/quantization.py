"""QuantizeParams: every parameter of a quantisation after training (FP8Test). Imports no torch.

Read, merged and refused by the same code as `vitfp8.params.RunParams`: `vitfp8.params.validate` takes the class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from vitfp8.catalog import (
    DEVICES,
    EXPERIMENTS,
    QUANTIZED_FORMATS,
    QUANTIZED_GRANULARITIES,
    QUANTIZED_OPERANDS,
    TRAININGS,
    run_name,
)
from vitfp8.errors import suggest
from vitfp8.params.fields import PLACE, About, Flag, KeyedError, Name, Parameters, RealNumber, Text, WholeNumber
from vitfp8.params.training import RunParams

_Names = Annotated[list[Annotated[str, Field(strict=True, max_length=80)]], Field(min_length=1, max_length=20)]


class QuantizeParams(Parameters):
    """Every parameter of a quantisation after training, validated. Immutable; unknown keys are refused."""

    example_file: ClassVar[str] = "FP8Test.yaml"

    # The trained model
    source_experiment: Annotated[Name, About()] = Field(description="the experiment whose trained model is quantised")
    source_variant: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.=+]*$", max_length=80), About()] = Field(
        description="variant of that run; empty for the experiment itself"
    )
    source_run: Annotated[Text | None, PLACE] = Field(
        description="its executed notebook or run folder; null: the run of the same study and seed"
    )

    # What is quantised, and how
    formats: Annotated[_Names, About()] = Field(description="of e4m3, e5m2, int8, int_240")
    granularities: Annotated[_Names, About()] = Field(description="what shares a scale: of tensor, channel, mx (blocks of 32)")
    operands: Annotated[_Names, About()] = Field(description="what is quantised: of weights, weights_activations")
    calibration_images: Annotated[WholeNumber, Field(ge=1, lt=2**31), About()] = Field(
        description="training images that the scales of activations are measured on"
    )
    sensitivity: Annotated[Flag, About()] = Field(description="quantise one layer at a time too, judged on validation images")
    sensitivity_granularity: Annotated[str, Field(strict=True), About()] = Field(description="granularity of that")
    sensitivity_operands: Annotated[str, Field(strict=True), About()] = Field(description="operands of that")

    # Data and machine; everything else is the source's
    data_dir: Annotated[Text | None, PLACE] = Field(description="folder with the data set's files; null: the usual places")
    download: Annotated[Flag, PLACE] = Field(description="may the data set be downloaded")
    device: Annotated[str, Field(strict=True), About()] = Field(description="auto, cpu, cuda or mps")
    threads: Annotated[Annotated[WholeNumber, Field(ge=1, le=4096)] | None, About()] = Field(
        description="processor threads; null: as many as torch chooses"
    )

    # Records
    export: Annotated[Flag, PLACE] = Field(description="save the quantised models in safetensors, load them back and compare")
    monitor_interval: Annotated[RealNumber, Field(ge=0.1, le=3600), PLACE] = Field(description="seconds between hardware samples")
    run_folder: Annotated[Text | None, PLACE] = Field(
        description="journal and exported models; null: a fresh folder (the runner says where)"
    )

    @model_validator(mode="after")
    def _names(self) -> QuantizeParams:
        """Refuse names that no table knows."""
        kinds = [name for name, row in EXPERIMENTS.items() if row.parameters == type(self).__name__]
        tables: tuple[tuple[str, Iterable[str]], ...] = (
            ("experiment", kinds),
            ("source_experiment", TRAININGS),
            ("formats", QUANTIZED_FORMATS),
            ("granularities", QUANTIZED_GRANULARITIES),
            ("operands", QUANTIZED_OPERANDS),
            ("sensitivity_granularity", QUANTIZED_GRANULARITIES),
            ("sensitivity_operands", QUANTIZED_OPERANDS),
            ("device", DEVICES),
        )
        for key, known in tables:
            value = getattr(self, key)
            names = value if isinstance(value, list) else [value]
            for name in names:
                if name not in known:
                    raise KeyedError(key, f"{name!r} is unknown; {suggest(name, known)}")
            if len(set(names)) != len(names):
                raise KeyedError(key, "one is named twice; name each once")
        source = EXPERIMENTS[self.experiment].source
        if self.source_experiment != source and not self.variant:
            raise KeyedError(
                "source_experiment",
                f"but {self.experiment} quantises {source}; name the change with variant, e.g. variant: {self.source_experiment}",
            )
        self._refuse_idle()
        return self

    def _refuse_idle(self) -> None:
        """Refuse what would be accepted and ignored; the values of the shipped file stand for "as it comes"."""
        if "int_240" in self.formats:
            for key, only in (("granularities", "tensor"), ("operands", "weights")):
                if only not in getattr(self, key):
                    raise KeyedError(
                        key, f"int_240 is defined for weights under one scale alone; add {only}, or take it out of formats"
                    )
        ways = [(operands, granularity) for operands in self.operands for granularity in self.granularities]
        if self.sensitivity:
            ways.append((self.sensitivity_operands, self.sensitivity_granularity))
        else:
            for key, neutral in (("sensitivity_granularity", "tensor"), ("sensitivity_operands", "weights_activations")):
                if getattr(self, key) != neutral:
                    raise KeyedError(
                        key, f"sensitivity is false, and nothing reads it; set sensitivity: true or {key}: {neutral}"
                    )
        calibrated = self.export or any(
            operands == "weights_activations" and granularity != "mx" for operands, granularity in ways
        )
        if self.calibration_images != 512 and not (calibrated and set(self.formats) != {"int_240"}):
            raise KeyedError(
                "calibration_images",
                "no activation is quantised under a calibrated scale, and nothing is exported; leave calibration_images: 512",
            )

    @property
    def source_name(self) -> str:
        """Name of the source run in the same study."""
        return run_name(self.source_experiment, self.source_variant, self.seed)


#: Name of a class of parameters, as the catalogue has it → the class.
PARAMETER_CLASSES: Mapping[str, type[RunParams] | type[QuantizeParams]] = MappingProxyType(
    {"RunParams": RunParams, "QuantizeParams": QuantizeParams}
)


def parameters_of(experiment: str) -> type[RunParams] | type[QuantizeParams]:
    """The class of parameters of an experiment; `RunParams` where the catalogue does not know it.

    Args:
        experiment: its name.
    """
    row = EXPERIMENTS.get(experiment)
    return PARAMETER_CLASSES[row.parameters] if row else RunParams
