"""RunParams: every parameter of a training run, and the combinations that are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from vitfp8.catalog import (
    AUGMENTATION_LEVELS,
    BACKENDS,
    BASE_PRECISIONS,
    BUNDLES,
    DATASETS,
    DEVICES,
    EXPERIMENTS,
    FP8_RECIPES,
    PRECISIONS,
    TRAININGS,
)
from vitfp8.errors import suggest
from vitfp8.params.fields import (
    PLACE,
    About,
    Flag,
    FlagOrAuto,
    KeyedError,
    Parameters,
    RealNumber,
    Text,
    WholeNumber,
    precision_name,
    whole_number,
)


class RunParams(Parameters):
    """Every parameter of a training run, validated. Immutable; unknown keys are refused.

    Units: seconds, fractions in [0, 1], pixels, images. ``None`` means "as the model, data set or machine says".
    """

    example_file: ClassVar[str] = "BaseFP32.yaml"

    # Data
    dataset: Annotated[str, Field(strict=True), About()] = Field(description="a data set's name")
    data_dir: Annotated[Text | None, PLACE] = Field(description="folder with its files; null: look in the usual places")
    download: Annotated[Flag, PLACE] = Field(description="may the data set be downloaded")
    validation_fraction: Annotated[RealNumber, Field(gt=0, lt=0.5), About()] = Field(
        description="part of the training images that is held out to choose the best epoch"
    )
    augmentation: Annotated[str, Field(strict=True), About()] = Field(description="none, basic or extended")
    workers: Annotated[WholeNumber, Field(ge=0, le=256), PLACE] = Field(
        description="processes that read an image folder; 0 for other data sets, which are held in memory"
    )

    # Model
    model: Annotated[Text, About()] = Field(description="name of a timm Vision Transformer")
    pretrained: Annotated[Flag, About()] = Field(description="start from timm's trained weights")
    pretrained_file: Annotated[Text | None, About()] = Field(description="local file with these weights; null: timm's download")
    image_size: Annotated[WholeNumber, Field(ge=4, le=2048), About()] = Field(description="pixels; images are resized to it")
    patch_size: Annotated[Annotated[WholeNumber, Field(ge=1, le=512)] | None, About()] = Field(description="pixels of a patch")
    embed_dim: Annotated[Annotated[WholeNumber, Field(ge=1, le=16384)] | None, About()] = Field(description="width")
    depth: Annotated[Annotated[WholeNumber, Field(ge=1, le=256)] | None, About()] = Field(description="number of blocks")
    num_heads: Annotated[Annotated[WholeNumber, Field(ge=1, le=256)] | None, About()] = Field(description="attention heads")
    in_channels: Annotated[Literal[1, 3] | None, BeforeValidator(whole_number), About()] = Field(
        description="colour channels that the model takes; null: the data set's"
    )

    # Training
    epochs: Annotated[WholeNumber, Field(ge=1, le=100_000), About()] = Field(description="passes over the training images")
    batch_size: Annotated[WholeNumber, Field(ge=1, le=1_000_000), About()] = Field(description="images a step")
    micro_batch_size: Annotated[Annotated[WholeNumber, Field(ge=1, lt=2**31)] | None, About()] = Field(
        description="images at once: gradients are accumulated over the batch; null: the whole batch"
    )
    learning_rate: Annotated[RealNumber, Field(gt=0, le=100), About()] = Field(description="AdamW's, at its peak")
    weight_decay: Annotated[RealNumber, Field(ge=0, le=100), About()] = Field(
        description="AdamW's; not on biases, norms, position and class embeddings"
    )
    warmup_fraction: Annotated[RealNumber, Field(ge=0, le=1), About()] = Field(
        description="part of training with a linear warm-up; a cosine to zero follows"
    )
    label_smoothing: Annotated[RealNumber, Field(ge=0, lt=1), About()] = Field(description="Szegedy et al. 2016")
    gradient_clip: Annotated[Annotated[RealNumber, Field(gt=0)] | None, About()] = Field(
        description="largest gradient norm, after unscaling; null: no clipping"
    )

    # Arithmetic and machine
    precision: Annotated[str, BeforeValidator(precision_name), Field(strict=True), About()] = Field(
        description="fp32, tf32, bf16, fp16 or fp8; Lightning's names are understood"
    )
    backend: Annotated[str, Field(strict=True), About()] = Field(
        description="auto: native where the device multiplies in the format, emulated otherwise; native: or refuse; emulated"
    )
    fp8_recipe: Annotated[str, Field(strict=True), About(neutral="tensorwise")] = Field(
        description="how fp8 scales its operands: tensorwise, delayed, rowwise, rowwise_with_gw_hp, blockwise, mxfp8, …"
    )
    base_precision: Annotated[str, BeforeValidator(precision_name), Field(strict=True), About(neutral="bf16")] = Field(
        description="what everything outside the FP8 products follows: bf16 or fp32"
    )
    loss_scale: Annotated[RealNumber, Field(ge=1, le=2.0**40), About()] = Field(
        description="first loss scale of fp16, at least 1; doubled after loss_scale_interval good steps, halved on overflow"
    )
    loss_scale_interval: Annotated[WholeNumber, Field(ge=1, lt=2**31), About()] = Field(
        description="good steps until it is doubled"
    )
    device: Annotated[str, Field(strict=True), About()] = Field(description="auto, cpu, cuda or mps")
    threads: Annotated[Annotated[WholeNumber, Field(ge=1, le=4096)] | None, About()] = Field(
        description="processor threads; they decide the order of sums; null: as many as torch chooses"
    )
    deterministic: Annotated[Flag, About()] = Field(description="only algorithms whose result repeats bit by bit")
    torch_compile: Annotated[FlagOrAuto, About(neutral=False, also_neutral=("auto",))] = Field(
        description="auto: compiled on CUDA where every precision of the study is native; true; false"
    )
    cuda_graphs: Annotated[Flag, About(neutral=False)] = Field(
        description="on CUDA, compiled: record the kernels of a step once and replay them; for small models"
    )

    # Records
    checkpoint_every: Annotated[Annotated[WholeNumber, Field(ge=1, lt=2**31)] | None, PLACE] = Field(
        description="epochs between checkpoints kept beside best, last and the one before; null: none"
    )
    checkpoint_minutes: Annotated[Annotated[RealNumber, Field(gt=0, le=1440)] | None, PLACE] = Field(
        description="minutes between checkpoints within an epoch; null: only after each epoch"
    )
    health_every: Annotated[WholeNumber, Field(ge=0, lt=2**31), PLACE] = Field(
        description="steps between samples of numeric health in low precision; 0: never"
    )
    monitor_interval: Annotated[RealNumber, Field(ge=0.1, le=3600), PLACE] = Field(description="seconds between hardware samples")
    powermetrics: Annotated[Flag, PLACE] = Field(description="on a Mac: ask powermetrics, which needs sudo")
    run_folder: Annotated[Text | None, PLACE] = Field(
        description="journal and checkpoints; null: a fresh folder (the runner says where)"
    )

    @model_validator(mode="after")
    def _names_and_combinations(self) -> RunParams:
        """Refuse names that no table knows and values that contradict each other."""
        tables: tuple[tuple[str, Iterable[str]], ...] = (
            ("experiment", TRAININGS),
            ("dataset", DATASETS),
            ("augmentation", AUGMENTATION_LEVELS),
            ("precision", PRECISIONS),
            ("fp8_recipe", FP8_RECIPES),
            ("base_precision", BASE_PRECISIONS),
            ("backend", BACKENDS),
            ("device", DEVICES),
        )
        for key, known in tables:
            if getattr(self, key) not in known:
                raise KeyedError(key, f"unknown; {suggest(getattr(self, key), known)}")
        if self.patch_size is not None and self.image_size % self.patch_size:
            fitting = self.image_size // self.patch_size * self.patch_size or self.patch_size
            raise KeyedError("image_size", f"is not divisible by patch_size {self.patch_size}; try image_size {fitting}")
        if self.embed_dim is not None and self.num_heads is not None and self.embed_dim % self.num_heads:
            raise KeyedError("embed_dim", f"is not divisible by num_heads {self.num_heads}")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise KeyedError("micro_batch_size", f"does not divide batch_size {self.batch_size}; take one that does")
        if self.pretrained_file is not None and not self.pretrained:
            raise KeyedError("pretrained_file", "is given, but pretrained is false; set pretrained: true or drop the file")
        dataset = DATASETS[self.dataset]
        if self.in_channels is not None and self.in_channels < dataset.channels:
            raise KeyedError("in_channels", f"but {self.dataset} has {dataset.channels}; take {dataset.channels} or null")
        for key, (_, why) in idle_values(dict(self)).items():
            raise KeyedError(key, why)
        _check_experiment_is_what_it_says(self)
        return self


def _check_experiment_is_what_it_says(params: RunParams) -> None:
    """Refuse factors that are not those of the experiment's row, unless a variant says that something is changed on purpose."""
    if params.variant:
        return

    def factors(name: str) -> dict[str, object]:
        row = EXPERIMENTS[name]
        return {"precision": row.precision, "augmentation": row.augmentation, **BUNDLES[row.augmentation]}

    stated = {key: getattr(params, key) for key in factors(params.experiment)}
    differing = {key: value for key, value in factors(params.experiment).items() if stated[key] != value}
    if not differing:
        return
    right = next((name for name in TRAININGS if factors(name) == stated), None)
    way_out = (f"run {right}, which is that, or " if right else "") + "name the change with variant, e.g. variant: trial"
    if len(differing) == 1:
        ((key, value),) = differing.items()
        raise KeyedError(key, f"but {params.experiment} has {'null' if value is None else value}; {way_out}")
    said = ", ".join(f"{key} {'null' if stated[key] is None else stated[key]}, not {value}" for key, value in differing.items())
    raise KeyedError(
        "experiment", f"the values are not its own ({said}); take those of params/{params.experiment}.yaml, or {way_out}"
    )


def idle_values(values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Parameters of a training that nothing would read: name → the value they should have, and why with a way out.

    They are refused, never accepted and ignored. Earlier versions accepted them, so `values` may come from a record. None of
    them decides a number.
    """
    found: dict[str, tuple[Any, str]] = {}
    dataset = DATASETS.get(values.get("dataset", ""))
    if dataset is not None and not dataset.needs_files and values.get("data_dir") is not None:
        found["data_dir"] = None, f"{dataset.name} comes with scikit-learn and is read from no folder; set data_dir: null"
    if dataset is not None and dataset.side is not None and values.get("workers"):
        found["workers"] = 0, f"{dataset.name} is held in memory, so that no worker reads it; set workers: 0"
    return found
