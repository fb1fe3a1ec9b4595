"""RunParams: every parameter of a run; read, merge, refuse.

A parameter file is flat YAML that states every field. Layers are laid over each other as papermill's repeated ``-f`` and
``-p`` do (later wins), and the result is validated once. A refusal is one line that names the file, the line, the key, the value
and a way out. The notebook validates with the same class, since papermill may be called alone.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, overload

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vitfp8.catalog import (
    AUGMENTATION_LEVELS,
    BACKENDS,
    BASE_PRECISIONS,
    BUNDLES,
    DATASETS,
    DEVICES,
    EXPERIMENTS,
    FP8_RECIPES,
    PRECISION_ALIASES,
    PRECISIONS,
    TRAININGS,
    run_name,
    unused_knobs,
)
from vitfp8.errors import InputError, shown, suggest

#: A parameter file has a few kilobytes; beyond this it is something else, and reading YAML is slow.
LARGEST_FILE_BYTES = 100_000


def refuse_windows() -> None:
    """Refuse Windows, before anything else is done: locks, folders that are flushed to disk and signals are those of POSIX.

    Raises:
        InputError: this Python runs on Windows.
    """
    if sys.platform == "win32":
        raise InputError("Windows is not supported: install WSL (`wsl --install`), which is Linux, and run vitfp8 in it")


def _number_from_text(value: object) -> object:
    """Read ``1e-3`` as the number it is: YAML 1.1, and so papermill's ``-f``, makes it a string."""
    if isinstance(value, str) and value.isascii():  # float() takes the digits of every script
        text = value.strip().replace("_", "")
        try:
            number = float(text)
        except ValueError:
            return value
        if any(c in text for c in "eE.") and math.isfinite(number):
            return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return value


def _whole_number(value: object) -> object:
    """Accept ``2.0`` and ``1e2`` as whole numbers; refuse booleans, which Python counts as integers."""
    value = _number_from_text(value)
    if isinstance(value, bool):
        raise ValueError("a whole number is expected, not true or false")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _real_number(value: object) -> object:
    """Accept whole numbers as real ones; refuse booleans."""
    value = _number_from_text(value)
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return float(value) if isinstance(value, int) and abs(value) < 2**1023 else value


def _precision_name(value: object) -> object:
    """Translate Lightning's and torch's names of a precision into the catalogue's."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000:
        value = str(value)
    if isinstance(value, str):
        text = value.strip().lower()
        return PRECISION_ALIASES.get(text, text)
    return value


def _flag_or_auto(value: object) -> object:
    """Accept true, false and ``auto``, and nothing that Python takes for one of them."""
    if isinstance(value, bool) or value == "auto":
        return value
    raise ValueError("auto, true or false is expected")


_Int = Annotated[int, BeforeValidator(_whole_number), Field(strict=True)]
_Float = Annotated[float, BeforeValidator(_real_number), Field(strict=True, allow_inf_nan=False)]
_Text = Annotated[str, Field(strict=True, max_length=4000)]
_Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=80)]
_Flag = Annotated[bool, Field(strict=True)]
_Choice = Annotated[bool | Literal["auto"], BeforeValidator(_flag_or_auto)]


@dataclass(frozen=True)
class About:
    """What is said of a field beside its type.

    Attributes:
        decides: whether it can change a run's numbers; only such fields make the identity of a run.
        neutral: for a field that was added after the first release: the value that means "as before". Identities leave the
            field out while it has this value, so that older records keep theirs.
        also_neutral: values that came later and leave numbers as `neutral` does.
    """

    decides: bool = True
    neutral: object = ...
    also_neutral: tuple[object, ...] = ()

    def is_neutral(self, value: object) -> bool:
        """Whether identities leave the field out while it has this value."""
        return (self.neutral is not ... and self.neutral == value) or value in self.also_neutral


_PLACE = About(decides=False)


class Parameters(BaseModel):
    """What every kind of run states: what it is and what it is for. Immutable; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: A complete file of this kind in ``params/``, for whoever leaves a line out.
    example_file: ClassVar[str] = ""

    # What the run is for: shown beside its outcome.
    experiment: Annotated[_Name, About()] = Field(description="name in the catalogue, e.g. BaseFP32")
    variant: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.=+]*$", max_length=80), About()] = Field(
        description="name of a control or of a point of a sweep; empty for the experiment itself"
    )
    question: Annotated[_Text, About(decides=False)] = Field(description="what this experiment asks")
    expectation: Annotated[_Text, About(decides=False)] = Field(description="what is expected, stated before the run")

    seed: Annotated[_Int, Field(ge=0, lt=2**31), About()] = Field(description="decides every random draw")

    @property
    def run_name(self) -> str:
        """See `vitfp8.catalog.run_name`."""
        return run_name(self.experiment, self.variant, self.seed)

    def identity(self) -> dict[str, Any]:
        """The values that decide the run's numbers: two runs with equal identities do the same arithmetic; see `identity_of`."""
        return identity_of(type(self), self.model_dump())

    @property
    def digest(self) -> str:
        """SHA-256 of `identity` as canonical JSON, hexadecimal."""
        return identity_digest(type(self), self.model_dump())

    def digest_under(self, rule: int) -> str:
        """SHA-256 of the identity that an earlier rule gives these parameters, hexadecimal.

        Args:
            rule: 1 to `IDENTITY_RULE`.
        """
        return identity_digest(type(self), self.model_dump(), rule)


class RunParams(Parameters):
    """Every parameter of a training run, validated. Immutable; unknown keys are refused.

    Units: seconds, fractions in [0, 1], pixels, images. ``None`` means "as the model, data set or machine says".
    """

    example_file: ClassVar[str] = "BaseFP32.yaml"

    # Data
    dataset: Annotated[str, Field(strict=True), About()] = Field(description="a data set's name")
    data_dir: Annotated[_Text | None, _PLACE] = Field(description="folder with its files; null: look in the usual places")
    download: Annotated[_Flag, _PLACE] = Field(description="may the data set be downloaded")
    validation_fraction: Annotated[_Float, Field(gt=0, lt=0.5), About()] = Field(
        description="part of the training images that is held out to choose the best epoch"
    )
    augmentation: Annotated[str, Field(strict=True), About()] = Field(description="none, basic or extended")
    workers: Annotated[_Int, Field(ge=0, le=256), _PLACE] = Field(
        description="processes that read an image folder; 0 for other data sets, which are held in memory"
    )

    # Model
    model: Annotated[_Text, About()] = Field(description="name of a timm Vision Transformer")
    pretrained: Annotated[_Flag, About()] = Field(description="start from timm's trained weights")
    pretrained_file: Annotated[_Text | None, About()] = Field(description="local file with these weights; null: timm's download")
    image_size: Annotated[_Int, Field(ge=4, le=2048), About()] = Field(description="pixels; images are resized to it")
    patch_size: Annotated[Annotated[_Int, Field(ge=1, le=512)] | None, About()] = Field(description="pixels of a patch")
    embed_dim: Annotated[Annotated[_Int, Field(ge=1, le=16384)] | None, About()] = Field(description="width")
    depth: Annotated[Annotated[_Int, Field(ge=1, le=256)] | None, About()] = Field(description="number of blocks")
    num_heads: Annotated[Annotated[_Int, Field(ge=1, le=256)] | None, About()] = Field(description="attention heads")
    in_channels: Annotated[Literal[1, 3] | None, BeforeValidator(_whole_number), About()] = Field(
        description="colour channels that the model takes; null: the data set's"
    )

    # Training
    epochs: Annotated[_Int, Field(ge=1, le=100_000), About()] = Field(description="passes over the training images")
    batch_size: Annotated[_Int, Field(ge=1, le=1_000_000), About()] = Field(description="images a step")
    micro_batch_size: Annotated[Annotated[_Int, Field(ge=1, lt=2**31)] | None, About()] = Field(
        description="images at once: gradients are accumulated over the batch; null: the whole batch"
    )
    learning_rate: Annotated[_Float, Field(gt=0, le=100), About()] = Field(description="AdamW's, at its peak")
    weight_decay: Annotated[_Float, Field(ge=0, le=100), About()] = Field(
        description="AdamW's; not on biases, norms, position and class embeddings"
    )
    warmup_fraction: Annotated[_Float, Field(ge=0, le=1), About()] = Field(
        description="part of training with a linear warm-up; a cosine to zero follows"
    )
    label_smoothing: Annotated[_Float, Field(ge=0, lt=1), About()] = Field(description="Szegedy et al. 2016")
    gradient_clip: Annotated[Annotated[_Float, Field(gt=0)] | None, About()] = Field(
        description="largest gradient norm, after unscaling; null: no clipping"
    )

    # Arithmetic and machine
    precision: Annotated[str, BeforeValidator(_precision_name), Field(strict=True), About()] = Field(
        description="fp32, tf32, bf16, fp16 or fp8; Lightning's names are understood"
    )
    backend: Annotated[str, Field(strict=True), About()] = Field(
        description="auto: native where the device multiplies in the format, emulated otherwise; native: or refuse; emulated"
    )
    fp8_recipe: Annotated[str, Field(strict=True), About(neutral="tensorwise")] = Field(
        description="how fp8 scales its operands: tensorwise, delayed, rowwise, rowwise_with_gw_hp, blockwise, mxfp8, …"
    )
    base_precision: Annotated[str, BeforeValidator(_precision_name), Field(strict=True), About(neutral="bf16")] = Field(
        description="what everything outside the FP8 products follows: bf16 or fp32"
    )
    loss_scale: Annotated[_Float, Field(ge=1, le=2.0**40), About()] = Field(
        description="first loss scale of fp16, at least 1; doubled after loss_scale_interval good steps, halved on overflow"
    )
    loss_scale_interval: Annotated[_Int, Field(ge=1, lt=2**31), About()] = Field(description="good steps until it is doubled")
    device: Annotated[str, Field(strict=True), About()] = Field(description="auto, cpu, cuda or mps")
    threads: Annotated[Annotated[_Int, Field(ge=1, le=4096)] | None, About()] = Field(
        description="processor threads; they decide the order of sums; null: as many as torch chooses"
    )
    deterministic: Annotated[_Flag, About()] = Field(description="only algorithms whose result repeats bit by bit")
    torch_compile: Annotated[_Choice, About(neutral=False, also_neutral=("auto",))] = Field(
        description="auto: compiled on CUDA where every precision of the study is native; true; false"
    )
    cuda_graphs: Annotated[_Flag, About(neutral=False)] = Field(
        description="on CUDA, compiled: record the kernels of a step once and replay them; for small models"
    )

    # Records
    checkpoint_every: Annotated[Annotated[_Int, Field(ge=1, lt=2**31)] | None, _PLACE] = Field(
        description="epochs between checkpoints kept beside best, last and the one before; null: none"
    )
    checkpoint_minutes: Annotated[Annotated[_Float, Field(gt=0, le=1440)] | None, _PLACE] = Field(
        description="minutes between checkpoints within an epoch; null: only after each epoch"
    )
    health_every: Annotated[_Int, Field(ge=0, lt=2**31), _PLACE] = Field(
        description="steps between samples of numeric health in low precision; 0: never"
    )
    monitor_interval: Annotated[_Float, Field(ge=0.1, le=3600), _PLACE] = Field(description="seconds between hardware samples")
    powermetrics: Annotated[_Flag, _PLACE] = Field(description="on a Mac: ask powermetrics, which needs sudo")
    run_folder: Annotated[_Text | None, _PLACE] = Field(
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
    """Values of a training's parameters that nothing would read: they are refused, never accepted and ignored.

    Args:
        values: name → value; of a record of an earlier version, which accepted them, too.

    Returns:
        Name → the value that says so, and why with a way out. Neither decides a number.
    """
    found: dict[str, tuple[Any, str]] = {}
    dataset = DATASETS.get(values.get("dataset", ""))
    if dataset is not None and not dataset.needs_files and values.get("data_dir") is not None:
        found["data_dir"] = None, f"{dataset.name} comes with scikit-learn and is read from no folder; set data_dir: null"
    if dataset is not None and dataset.side is not None and values.get("workers"):
        found["workers"] = 0, f"{dataset.name} is held in memory, so that no worker reads it; set workers: 0"
    return found


def field_notes(kind: type[Parameters] = RunParams) -> dict[str, About]:
    """Field name → what is said of it: does it decide numbers, what is its neutral value.

    Args:
        kind: the class of parameters.
    """
    return {
        name: next((note for note in info.metadata if isinstance(note, About)), About())
        for name, info in kind.model_fields.items()
    }


#: The rule by which identities are formed. A record names the rule of its digest; one that names none has rule 1.
#: 1: what decides numbers, less fields that were added later while they have their neutral value.
#: 2: less also what the precision does not use (FP8's recipe in FP32), so that one command can set it for all experiments.
IDENTITY_RULE = 2


def identity_of(kind: type[Parameters], values: Mapping[str, Any], rule: int = IDENTITY_RULE) -> dict[str, Any]:
    """The values that decide numbers, of parameters that need not be valid today: a record's, made by whatever version.

    Two runs whose identities are equal do the same arithmetic, if data and code are equal too. Values are compared, not files.

    Args:
        kind: the class of parameters; a name that it does not know counts as deciding.
        values: name → value.
        rule: see `IDENTITY_RULE`.
    """
    about = field_notes(kind)
    notes = {key: about.get(key, About()) for key in values}
    unused = unused_knobs(values.get("precision")) if rule >= 2 else frozenset()
    return {
        key: value
        for key, value in values.items()
        if notes[key].decides and key not in unused and not notes[key].is_neutral(value)
    }


def identity_digest(kind: type[Parameters], values: Mapping[str, Any], rule: int = IDENTITY_RULE) -> str:
    """SHA-256 of `identity_of` as canonical JSON, hexadecimal.

    Args:
        kind: the class of parameters.
        values: name → value.
        rule: see `IDENTITY_RULE`.
    """
    text = json.dumps(identity_of(kind, values, rule), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


#: A class of parameters, as `validate` and `from_notebook` take and return it.
AnyParams = TypeVar("AnyParams", bound=Parameters)


class KeyedError(ValueError):
    """A combination of values is refused; `key` is the one to change."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


# ------------------------------------------------------------------------------------------------ reading and merging


@dataclass(frozen=True)
class Layer:
    """Some parameters and where they come from.

    Attributes:
        source: a file's path, ``-p``, or ``the notebook``.
        values: key → value, as read.
        lines: key → line in the file, from 1; empty where there are no lines.
    """

    source: str
    values: Mapping[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """``file:line`` of a key, as an error line begins."""
        return f"{self.source}:{self.lines[key]}" if key in self.lines else self.source


def why_no_text(content: bytes, *, appended: bool = False) -> str | None:
    """What a file is instead of the text that its name promises, with the way out; None where nothing of the kind is known.

    Args:
        content: of the file, or its beginning.
        appended: whether lines are appended to it: then NUL bytes are what a power cut left, and no reason.
    """
    if content.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file itself; `git lfs pull` gets the file"
    if mark := re.search(rb"^<{7}(?: [^\n]*)?\r?$", content, re.MULTILINE):
        line = content.count(b"\n", 0, mark.start()) + 1
        return f"holds the marks of a merge conflict (line {line}); resolve it in Git: keep one side and remove the marks"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "is UTF-16 text; save it as UTF-8"
    if b"\0" in content[:8000] and not appended:
        return "is not text (it holds NUL bytes: a binary file, or UTF-16); take the file that was meant, or save it as UTF-8"
    return None


def read_layer(path: str | Path) -> Layer:
    """Read a flat YAML file of parameters; nothing in it is executed.

    Args:
        path: the file.

    Raises:
        InputError: it is missing, unreadable, empty, not flat, or states a key twice.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
        if len(content) > LARGEST_FILE_BYTES:
            raise InputError(
                f"{path}: is larger than {LARGEST_FILE_BYTES // 1000} kB; a parameter file has a few: check the name"
            )
        if why := why_no_text(content):
            raise InputError(f"{path}: {why}")
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the name") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is no file name ({error}); check the name") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return parse_layer(text, str(path))


def parse_layer(text: str, source: str) -> Layer:
    """Parse flat YAML text; see `read_layer`.

    Args:
        text: the YAML text.
        source: the name that errors begin with.
    """
    node = _compose(text, source)
    if node is None:
        raise InputError(f"{source}: is empty; state the parameters, one 'key: value' a line")
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{source}: is not a mapping; write one 'key: value' a line")
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _PLAIN_TAGS:
            raise InputError(f"{source}:{line}: a key must be a plain word; write one 'key: value' a line")
        key = key_node.value
        if key in values:
            raise InputError(f"{source}:{line}: {shown(key)} stands twice (first in line {lines[key]}); keep one")
        values[key], lines[key] = _plain_value(value_node, f"{source}:{line}: {shown(key)}"), line
    return Layer(source, values, lines)


def _compose(text: str, source: str) -> yaml.Node | None:
    """The tree of a YAML text, before anything is made of it; None when it is empty."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark else source
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{place}: is not YAML ({problem[:150]}); write one 'key: value' a line") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:150]
        raise InputError(f"{source}: is not YAML ({reason}); write one 'key: value' a line") from None


#: Tags of what a parameter may be; a date stays the text that was written.
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp"))

#: Numbers that YAML 1.1 reads otherwise than people do: 010 as 8, 1:30 as 90.
_MISREAD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def _plain_value(node: yaml.Node, place: str) -> Any:
    """The value of a scalar or of a list of scalars; anything else, tags of other kinds included, is refused."""
    plain_list = isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq"
    if plain_list and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [_plain_value(item, place) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"{place}: a nested value; parameter files are flat, write one 'key: value' a line")
    loader = yaml.SafeLoader("")
    try:
        if node.tag not in _PLAIN_TAGS:
            raise ValueError
        value = loader.construct_object(node)
        if value is None and node.value.lower() not in ("", "~", "null"):
            raise ValueError
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError):  # PyYAML trusts an explicit tag
        raise InputError(f"{place}: {shown(node.value)} with tag {node.tag} is not a plain value; quote it") from None
    finally:
        loader.dispose()
    if isinstance(value, (int, float)) and _MISREAD_NUMBER.fullmatch(node.value):
        raise InputError(f"{place}: {shown(node.value)}: YAML reads it as {shown(value)}; write that, or quote it") from None
    # dates and binary data are no parameters: keep the text that was written
    return value if value is None or isinstance(value, (str, bool, int, float)) else node.value


def parse_assignment(key: str, value: str) -> tuple[str, Any]:
    """What ``-p KEY VALUE`` says, read as YAML reads it, so that ``-f`` and ``-p`` agree.

    Args:
        key: the parameter's name.
        value: its value as typed.
    """
    if value.strip() == "":
        return key, value
    if len(value.splitlines()) > 1 or len(value) > LARGEST_FILE_BYTES:
        raise InputError(f"-p {key}: {shown(value)}: is more than one line of text; state it in a parameter file")
    node = _compose(value, f"-p {key}")
    if node is None:
        return key, value
    if isinstance(node, yaml.ScalarNode):
        # what YAML would cut off (a comment, a mark at the beginning) belongs to the text that was typed
        cut_off = value[: node.start_mark.index] + value[node.end_mark.index :]
        if node.style in ("|", ">") or cut_off.strip():
            return key, value
    return key, _plain_value(node, f"-p {key}")


def merge(layers: Sequence[Layer]) -> dict[str, Any]:
    """Lay parameters over each other; later wins, as with papermill's repeated ``-f`` and ``-p``."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer.values)
    return merged


@overload
def validate(layers: Sequence[Layer]) -> RunParams: ...


@overload
def validate(layers: Sequence[Layer], kind: type[AnyParams]) -> AnyParams: ...


def validate(layers: Sequence[Layer], kind: type[Any] = RunParams) -> Any:
    """Validate merged layers into parameters.

    Args:
        layers: in the order in which they are laid over each other.
        kind: the class of parameters, `RunParams` or another `Parameters`.

    Raises:
        InputError: one line that names the file, line, key, value and a way out, for the first thing that is wrong.
    """
    known = list(kind.model_fields)
    for layer in layers:
        for key in layer.values:
            if key not in known:
                raise InputError(f"{layer.where(key)}: unknown parameter {shown(key)}; {suggest(key, known)}")
    merged = merge(layers)
    missing = [key for key in known if key not in merged]
    if missing:
        raise InputError(
            f"{layers[0].source}: does not state {', '.join(missing)}; a parameter file is complete: add the missing "
            f"lines (params/{kind.example_file} has every one)"
        )
    try:
        return kind(**merged)
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        cause = error.get("ctx", {}).get("error")
        key = cause.key if isinstance(cause, KeyedError) else str(error["loc"][0]) if error["loc"] else "parameters"
        if isinstance(cause, KeyedError):
            why = str(cause)
        else:
            why = str(cause) if isinstance(cause, ValueError) else _way_out(kind, key, error["msg"])
        place = next((layer.where(key) for layer in reversed(layers) if key in layer.values), layers[0].source)
        raise InputError(f"{place}: {key}: {shown(merged.get(key))}: {why}") from None


def _way_out(kind: type[Parameters], key: str, message: str) -> str:
    """Pydantic's message in our words, with what the field is."""
    message = message.removeprefix("Input should be ").replace("a valid integer", "a whole number").replace("a valid ", "a ")
    return f"must be {message} ({kind.model_fields[key].description})"


def describe_parameters(kind: type[Parameters] = RunParams) -> list[dict[str, Any]]:
    """A row a field: name, what it is, whether it decides numbers. For documentation and for the notebook's table.

    Args:
        kind: the class of parameters.
    """
    notes = field_notes(kind)
    return [
        {"name": name, "meaning": info.description, "decides_numbers": notes[name].decides}
        for name, info in kind.model_fields.items()
    ]


# ------------------------------------------------------------------------------------------------------- in a notebook


@dataclass(frozen=True)
class _Cell:
    """What a cell does to parameters.

    Attributes:
        values: name → literal that it assigns.
        computed: name → what it assigns that is not a literal, as it is written.
        further: its first statement that is neither an assignment nor a bare value, as it is written; empty: there is none.
    """

    values: Mapping[str, Any]
    computed: Mapping[str, str]
    further: str = ""


def _read_cell(source: str) -> _Cell:
    """Read a cell without executing it; one that is not Python assigns nothing, as it did when it was executed."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _Cell({}, {}, "a syntax error")
    values: dict[str, Any] = {}
    computed: dict[str, str] = {}
    further = ""
    for statement in body:
        if isinstance(statement, ast.AnnAssign) and statement.value is None:
            continue  # a type alone
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant | ast.Name):
            continue  # a text or a look at a value
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None and len(names) == len(targets):
            try:
                literal = _literal(statement.value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                literal, new = None, {name: ast.unparse(statement.value) for name in names}
                computed |= new
                values = {name: value for name, value in values.items() if name not in new}
            else:
                values |= dict.fromkeys(names, literal)
                computed = {name: text for name, text in computed.items() if name not in names}
            continue
        further = further or ast.unparse(statement)
        computed |= dict.fromkeys(_assigned(statement), further)
    return _Cell(values, computed, further)


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or of ``float("inf")``, which papermill writes for it; anything else raises."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "float" and len(node.args) == 1 and not node.keywords:
        return float(ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def _assigned(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement of any kind assigns in the notebook, not inside a function or a class of its own."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    inner = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    nodes: list[ast.AST] = [statement]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif not isinstance(node, inner):
            nodes += ast.iter_child_nodes(node)


def assignments(source: str) -> dict[str, Any] | None:
    """Names and literals of a cell that does nothing but assign literals to names; None for any other cell.

    Annotated assignments (``epochs: int = 2``) and bare values are understood.

    Args:
        source: the cell's text.
    """
    cell = _read_cell(source)
    return None if cell.computed or cell.further else dict(cell.values)


@dataclass(frozen=True)
class NotebookParameters(Generic[AnyParams]):
    """What a notebook found in its parameter cells.

    Attributes:
        params: the validated parameters.
        injected: names that were laid over the notebook's own, by papermill or by hand.
        defaults_taken: names that kept the notebook's default although something was injected.
    """

    params: AnyParams
    injected: tuple[str, ...]
    defaults_taken: tuple[str, ...]


@overload
def from_notebook(cells: Sequence[str] | None = None) -> NotebookParameters[RunParams]: ...


@overload
def from_notebook(cells: Sequence[str] | None = None, *, kind: type[AnyParams]) -> NotebookParameters[AnyParams]: ...


def from_notebook(cells: Sequence[str] | None = None, *, kind: type[Any] = RunParams) -> NotebookParameters[Any]:
    """Validate the parameters of the running notebook: those of its parameters cell and those that papermill injected.

    The last executed cell that states the parameters holds the defaults. Cells after it that only assign literals are laid over
    it; directly after it every name counts, so that a misspelt name is found although papermill injects it without a word. Cells
    that assign no parameter are passed over, so that a cell may be repeated and values may be looked at.

    Args:
        cells: the sources of the executed cells, the calling one last; None asks IPython.
        kind: the class of parameters.

    Raises:
        InputError: a name is unknown, a value is refused or computed, there is no parameters cell, or this is Windows.
    """
    refuse_windows()
    namespace: Mapping[str, Any] = {}
    if cells is None:
        from IPython.core.getipython import get_ipython

        shell = get_ipython()
        if shell is None:
            raise InputError("from_notebook: is called outside a notebook; use vitfp8.params.validate")
        cells, namespace = shell.user_ns["In"], shell.user_ns
    defaults, laid_over = _parameter_cells([_read_cell(source) for source in cells[:-1]], set(kind.model_fields))
    layers = [Layer("the notebook's parameters cell", defaults)]
    layers += [Layer("injected parameters", values) for values in laid_over]
    injected = tuple(dict.fromkeys(name for values in laid_over for name in values))
    params = validate(layers, kind)
    _refuse_later_changes(merge(layers), namespace)
    taken = tuple(name for name in defaults if name not in injected) if injected else ()
    return NotebookParameters(params, injected, taken)


def _parameter_cells(cells: Sequence[_Cell], known: set[str]) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The parameters cell and what is laid over it, from the cells that were executed before."""

    def stated(cell: _Cell) -> int:
        return len(known & (cell.values.keys() | cell.computed.keys()))

    complete = [number for number, cell in enumerate(cells) if stated(cell) == len(known)]
    candidates = complete or [number for number, cell in enumerate(cells) if 2 * stated(cell) > len(known)]
    # a cell that misses a parameter has injected ones after it, which miss it as well: then the first of them is meant
    start = candidates[-1] if complete else candidates[0] if candidates else None
    if start is None:
        start = next((number for number, cell in enumerate(cells) if cell.values.keys() & known), None)
    if start is None:
        raise InputError("the notebook: no parameters cell was executed before this one; run the notebook from its start")
    first = cells[start]
    _refuse_computed(first.computed, "the notebook's parameters cell")
    if first.further:
        raise InputError(
            f"the notebook's parameters cell: {shown(first.further)}: it may only assign values; move that elsewhere"
        )
    laid_over: list[Mapping[str, Any]] = []
    directly_after = True
    for cell in cells[start + 1 :]:
        if directly_after:
            _refuse_computed({name: cell.computed[name] for name in cell.computed if name in known}, "a cell of parameters")
        if directly_after and cell.values and not (cell.computed or cell.further):
            laid_over.append(cell.values)
        elif own := {name: value for name, value in cell.values.items() if name in known}:
            laid_over.append(own)
        directly_after = directly_after and not cell.computed
    return first.values, laid_over


def _refuse_computed(computed: Mapping[str, str], where: str) -> None:
    """Refuse what a cell of parameters computes: the record and `vitfp8 verify` read the cell, they do not execute it."""
    for name, text in computed.items():
        raise InputError(f"{where}: {name}: {shown(text)}: is computed; write the value itself, parameters are not executed")


def _refuse_later_changes(stated: Mapping[str, Any], namespace: Mapping[str, Any]) -> None:
    """Refuse what no cell of parameters says: a name that has another plain value in the notebook by now."""
    for name, value in stated.items():
        there = namespace.get(name, value)
        if isinstance(there, bool | int | float | str | list | None) and there != value and not (there != there):
            raise InputError(
                f"the notebook: {name}: {shown(there)}: was changed by code, and its parameter cells say {shown(value)}; write "
                "the value into the parameters cell and run that again"
            )
