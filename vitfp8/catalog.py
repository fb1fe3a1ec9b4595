"""The catalogue: the factorial design and every name that a parameter file may use.

The design is precision × augmentation. Each cell is an *experiment*; its row says how it is called, labelled, drawn and in which
order it stands. The other tables name the data sets, precisions and augmentation levels, so that torch-free code can validate and
label them; the tables that act on these names (``vitfp8.data``, ``vitfp8.precision``) refer to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One cell of the design precision × augmentation.

    Attributes:
        name: how files, folders and commands call it, e.g. ``BaseFP32``.
        label: how a figure or table calls it, e.g. ``Baseline FP32``.
        precision: a key of `PRECISIONS`; of an experiment that trains nothing, the format that it is about.
        augmentation: a key of `AUGMENTATION_LEVELS`. Note that "Augm" is a bundle: augmentation, weight decay, label smoothing,
            gradient clipping and warm-up change together.
        color: the colour of its curve and bar, as ``#rrggbb``.
        linestyle: matplotlib's name of its line style, so that no figure depends on colour.
        marker: matplotlib's name of its marker, for the same reason.
        hatch: matplotlib's hatch of its bars, for the same reason.
        core: whether it is one of the four that ``vitfp8 run`` executes when none is named.
        notebook: the template that executes it, in ``notebooks/``.
        parameters: name of its class of parameters: ``RunParams`` for a training; see `vitfp8.params.quantization`.
        source: the experiment whose completed run it starts from; empty: none.
    """

    name: str
    label: str
    precision: str
    augmentation: str
    color: str
    linestyle: str | tuple[int, tuple[int, ...]]
    marker: str
    hatch: str
    core: bool = False
    notebook: str = "train.ipynb"
    parameters: str = "RunParams"
    source: str = ""


#: What "Augm" changes at once; said wherever the factor is named.
AUGM_BUNDLE = "extended augmentation, stronger weight decay, label smoothing, gradient clipping and warm-up"

#: Augmentation level of an experiment → the values of the parameters that change with it. An experiment is what it says: one
#: without a variant has exactly the values of its row.
BUNDLES: Mapping[str, Mapping[str, float | None]] = MappingProxyType(
    {
        "basic": MappingProxyType({"weight_decay": 0.05, "label_smoothing": 0.0, "gradient_clip": None, "warmup_fraction": 0.0}),
        "extended": MappingProxyType({"weight_decay": 0.1, "label_smoothing": 0.1, "gradient_clip": 1.0, "warmup_fraction": 0.1}),
    }
)

_EXPERIMENTS = (
    Experiment(name="BaseFP32", label="Baseline FP32", precision="fp32", augmentation="basic",
               color="#e74c3c", linestyle="-", marker="o", hatch="", core=True),
    Experiment(name="AugmFP32", label="Augmented FP32", precision="fp32", augmentation="extended",
               color="#2ecc71", linestyle="--", marker="s", hatch="//", core=True),
    Experiment(name="BaseFP16", label="Baseline FP16", precision="fp16", augmentation="basic",
               color="#e67e22", linestyle="-.", marker="^", hatch="..", core=True),
    Experiment(name="AugmFP16", label="Augmented FP16", precision="fp16", augmentation="extended",
               color="#3498db", linestyle=":", marker="D", hatch="xx", core=True),
    Experiment(name="BaseBF16", label="Baseline BF16", precision="bf16", augmentation="basic",
               color="#8e44ad", linestyle=(0, (5, 1, 1, 1)), marker="v", hatch="\\\\"),
    Experiment(name="AugmBF16", label="Augmented BF16", precision="bf16", augmentation="extended",
               color="#16a085", linestyle=(0, (3, 1)), marker="P", hatch="++"),
    Experiment(name="BaseFP8", label="Baseline FP8", precision="fp8", augmentation="basic",
               color="#2c3e50", linestyle=(0, (1, 1)), marker="X", hatch="--"),
    Experiment(name="AugmFP8", label="Augmented FP8", precision="fp8", augmentation="extended",
               color="#c0399f", linestyle=(0, (7, 2)), marker="*", hatch="oo"),
    Experiment(name="FP8Test", label="FP8 test (post-training)", precision="fp8", augmentation="extended",
               color="#9b59b6", linestyle="-", marker="<", hatch="**",
               notebook="quantize.ipynb", parameters="QuantizeParams", source="AugmFP16"),
)  # fmt: skip

#: Experiment name → its row, in the order of every table and figure.
EXPERIMENTS: Mapping[str, Experiment] = MappingProxyType({row.name: row for row in _EXPERIMENTS})

#: Experiments of which there are only records of an earlier project: they are labelled and drawn, and nothing runs them.
ARCHIVED: Mapping[str, Experiment] = MappingProxyType(
    {
        "BaseFP16_OLD_ARCHIVE": Experiment(
            name="BaseFP16_OLD_ARCHIVE", label="Old FP16 archive", precision="fp16", augmentation="basic",
            color="#8d6e63", linestyle=(0, (4, 1, 1, 1, 1, 1)), marker="h", hatch="/.",
        ),
    }
)  # fmt: skip

#: The experiments that train a model.
TRAININGS: Mapping[str, Experiment] = MappingProxyType(
    {name: row for name, row in EXPERIMENTS.items() if row.parameters == "RunParams"}
)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is known of a data set before it is read.

    Attributes:
        name: the key that a parameter file uses.
        label: how a figure or table calls it.
        side: height and width of an image in pixels; None where the folder decides (then images are resized as they are read).
        channels: colour channels, 1 or 3.
        classes: number of classes; None where the folder decides.
        flip_keeps_class: whether a horizontal flip leaves the class as it is (not for digits).
        mean: mean of each channel over the training images, in [0, 1].
        std: standard deviation of each channel, in the same unit.
        needs_files: whether files must be there or be downloaded; False when it is embedded in a dependency.
        source: where it comes from, for the reader.
    """

    name: str
    label: str
    side: int | None
    channels: int
    classes: int | None
    flip_keeps_class: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    needs_files: bool
    source: str


_DATASETS = (
    Dataset(name="digits", label="Digits", side=8, channels=1, classes=10, flip_keeps_class=False,
            mean=(0.3053,), std=(0.3760,), needs_files=False,
            source="scikit-learn's copy of the UCI optical recognition of handwritten digits, 1,797 images"),
    Dataset(name="fashion_mnist", label="Fashion-MNIST", side=28, channels=1, classes=10, flip_keeps_class=True,
            mean=(0.2860,), std=(0.3530,), needs_files=True, source="Xiao et al. 2017, arXiv 1708.07747"),
    Dataset(name="cifar10", label="CIFAR-10", side=32, channels=3, classes=10, flip_keeps_class=True,
            mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), needs_files=True, source="Krizhevsky 2009"),
    Dataset(name="cifar100", label="CIFAR-100", side=32, channels=3, classes=100, flip_keeps_class=True,
            mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), needs_files=True, source="Krizhevsky 2009"),
    Dataset(name="imagefolder", label="Image folder", side=None, channels=3, classes=None, flip_keeps_class=True,
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), needs_files=True,
            source="the user's own folder of class folders; mean and deviation are ImageNet's"),
)  # fmt: skip

#: Data set name → what is known of it.
DATASETS: Mapping[str, Dataset] = MappingProxyType({row.name: row for row in _DATASETS})

#: Augmentation level → what it does, for the reader. `vitfp8.data.AUGMENTATIONS` is the table that acts.
AUGMENTATION_LEVELS: Mapping[str, str] = MappingProxyType(
    {
        "none": "resize and normalise",
        "basic": "resize, random crop with padding of an eighth of the side, horizontal flip where it keeps the class, normalise",
        "extended": "as basic, then colour jitter, rotation by up to 15°, normalise, random erasing",
    }
)


@dataclass(frozen=True, kw_only=True)
class PrecisionFacts:
    """What is known of a precision without torch.

    Attributes:
        name: the key that a parameter file uses.
        label: how a figure or table calls it.
        knobs: parameters that this precision uses and others may not; one that it does not use decides none of its numbers.
        activation_bytes: bytes per element of what backward keeps, where memory is estimated; emulation keeps FP32.
    """

    name: str
    label: str
    knobs: tuple[str, ...] = ()
    activation_bytes: int = 4

    @property
    def scaled(self) -> bool:
        """Whether operands are scaled into the format by a recipe."""
        return "fp8_recipe" in self.knobs


_PRECISIONS = (
    PrecisionFacts(name="fp32", label="FP32"),
    PrecisionFacts(name="tf32", label="TF32"),
    PrecisionFacts(name="bf16", label="BF16", activation_bytes=2),
    PrecisionFacts(name="fp16", label="FP16", knobs=("loss_scale", "loss_scale_interval")),
    PrecisionFacts(name="fp8", label="FP8", knobs=("fp8_recipe", "base_precision"), activation_bytes=2),
)

#: Precision → its facts.
PRECISION_FACTS: Mapping[str, PrecisionFacts] = MappingProxyType({row.name: row for row in _PRECISIONS})

#: Precision → how a figure or table calls it. `vitfp8.precision.PRECISIONS` is the table that acts.
PRECISIONS: Mapping[str, str] = MappingProxyType({row.name: row.label for row in _PRECISIONS})


def unused_knobs(precision: object) -> frozenset[str]:
    """Parameters that only other precisions use; none for a precision that the catalogue does not know.

    Args:
        precision: a key of `PRECISIONS`.
    """
    own = PRECISION_FACTS.get(precision) if isinstance(precision, str) else None
    return frozenset(knob for row in _PRECISIONS for knob in row.knobs) - set(own.knobs) if own else frozenset()


#: Scaling recipe of FP8 → what it does. `vitfp8.precision.recipes.RECIPES` is the table that acts.
FP8_RECIPES: Mapping[str, str] = MappingProxyType(
    {
        "tensorwise": "per-tensor scale, from its present largest value",
        "delayed": "per-tensor scale, from the largest value of the last 1024 steps",
        "rowwise": "a scale for each row and output channel",
        "rowwise_with_gw_hp": "as rowwise, the weight gradient's product in high precision",
        "blockwise": "a scale for each 1×128 block, 128×128 for weights",
        "mxfp8_floor": "MX blocks of 32 with power-of-two scales, rounded down",
        "mxfp8_rceil": "MX blocks of 32 with power-of-two scales, rounded up",
        "mxfp8": "the same as mxfp8_rceil",
    }
)

#: What everything outside the FP8 products may follow.
BASE_PRECISIONS = ("bf16", "fp32")

#: Other names of a precision that hands already know: Lightning's, torch's and the plain ones.
PRECISION_ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "32-true": "fp32", "32": "fp32", "float32": "fp32",
        "16-mixed": "fp16", "16": "fp16", "float16": "fp16", "half": "fp16",
        "bf16-mixed": "bf16", "bfloat16": "bf16",
    }
)  # fmt: skip

#: Format of quantisation after training → what it is. `vitfp8.ptq.FORMATS_AFTER_TRAINING` is the table that acts.
QUANTIZED_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "e4m3": "FP8 E4M3",
        "e5m2": "FP8 E5M2",
        "int8": "INT8",
        "int_240": "integers up to ±240, as published",
    }
)

#: Granularity of the scales of quantisation after training → what shares a scale.
QUANTIZED_GRANULARITIES: Mapping[str, str] = MappingProxyType(
    {
        "tensor": "one scale a weight, one for its layer's input",
        "channel": "one scale an output channel of the weight, one for its layer's input",
        "mx": "one power-of-two scale for each 32 elements along the contracted dimension, of weight and input",
    }
)

#: What is quantised after training → how a figure or table calls it.
QUANTIZED_OPERANDS: Mapping[str, str] = MappingProxyType({"weights": "weights", "weights_activations": "weights and activations"})

#: How the arithmetic may be had: `auto` is native where the device multiplies in the format, emulated otherwise.
BACKENDS = ("auto", "native", "emulated")

#: Where a training may run.
DEVICES = ("auto", "cpu", "cuda", "mps")

#: The states that a record can be in. Only `completed` runs enter a table of results.
STATUSES = ("running", "completed", "interrupted", "diverged", "failed")


def label_of(experiment: str) -> str:
    """The display name of an experiment; the name itself where the catalogue does not know it.

    Args:
        experiment: an experiment's name, e.g. ``AugmFP16``.
    """
    row = row_of(experiment)
    return row.label if row else experiment


def row_of(experiment: str) -> Experiment | None:
    """The row of an experiment, archived ones included; None where the catalogue does not know it.

    Args:
        experiment: an experiment's name.
    """
    return EXPERIMENTS.get(experiment) or ARCHIVED.get(experiment)


def catalogue_order(experiment: str) -> tuple[int, str]:
    """Sort key: the catalogue's order first, then unknown names alphabetically.

    Args:
        experiment: an experiment's name.
    """
    names = [*EXPERIMENTS, *ARCHIVED]
    return (names.index(experiment), "") if experiment in names else (len(names), experiment)


def run_name(experiment: str, variant: str = "", seed: int | None = 0) -> str:
    """``<experiment>[~<variant>]-s<seed>``: the name of a run and of its files; imported runs have no seed."""
    return experiment + (f"~{variant}" if variant else "") + ("-imported" if seed is None else f"-s{seed}")
