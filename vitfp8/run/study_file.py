"""A study: runs that are compared with each other; its file says beforehand what it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from vitfp8.catalog import EXPERIMENTS
from vitfp8.errors import InputError, shown, suggest
from vitfp8.home import places
from vitfp8.params import Layer, read_layer
from vitfp8.params.fields import RealNumber, Text, whole_number

#: The study that `vitfp8 run` executes when neither study nor preset is named.
DEFAULT_STUDY = "paper"

#: Most seeds of a study.
_MOST_SEEDS = 1000

#: Names that Windows gives to devices: a study of that name cannot be copied there.
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def _seed_list(value: object) -> object:
    """``3`` means the seeds 0, 1, 2; a list is taken as it is."""
    if isinstance(value, list):
        seeds = [whole_number(item) for item in value]
        if not 1 <= len(seeds) <= _MOST_SEEDS or not all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in seeds):
            raise ValueError(f"give 1 to {_MOST_SEEDS} whole numbers from 0 to 2147483647")
        if len(set(seeds)) != len(seeds):
            raise ValueError("one is named twice; name each once")
        return seeds
    count = whole_number(value)
    if not isinstance(count, int) or not 1 <= count <= _MOST_SEEDS:
        raise ValueError(f"give 1 to {_MOST_SEEDS} seeds, or a list of them")
    return list(range(count))


def _experiment_list(value: object) -> object:
    """A list (in Python also a tuple) that names at least one experiment."""
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError("give a list of experiments, e.g. [BaseFP32, AugmFP32]")
    return value


class Study(BaseModel):
    """What a study file states; run parameters are never among it.

    Attributes:
        question: what the study asks.
        preset: name of the preset that all runs share; None: the parameter files as they are.
        experiments: in the order of the catalogue.
        seeds: each experiment is run with each of them, interleaved by seed.
        cooldown: seconds between runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: Text = ""
    preset: Annotated[str, Field(strict=True, min_length=1, max_length=1000)] | None = None
    experiments: Annotated[tuple[str, ...], BeforeValidator(_experiment_list)] = tuple(
        name for name, row in EXPERIMENTS.items() if row.core
    )
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seed_list)] = (0,)
    cooldown: Annotated[RealNumber, Field(ge=0, le=86400)] = 0.0

    @field_validator("experiments")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse experiments that the catalogue does not know, and doubles."""
        check_experiments(names)
        return names


def check_experiments(names: Sequence[str], where: str = "experiment") -> None:
    """Refuse experiments that the catalogue does not know.

    Args:
        names: what was asked for.
        where: how an error line begins.

    Raises:
        InputError: one line with a suggestion.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise InputError(f"{where}: {name!r}: unknown; {suggest(name, EXPERIMENTS)}")
    if len(set(names)) != len(names):
        raise InputError(f"{where}: {', '.join(names)}: one is named twice; name each once")


def check_study_name(name: str, where: str = "--study") -> str:
    """Refuse a study name that is not a plain folder name on every system: a study never leaves its folder.

    Args:
        name: what the user gave.
        where: how an error line begins.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", name) or name.endswith("."):
        raise InputError(f"{where}: {shown(name)}: is not a folder name; take letters, digits, '-', '_' and '.'")
    if _RESERVED.fullmatch(name):
        raise InputError(f"{where}: {shown(name)}: is the name of a device on Windows; take another")
    return name


def study_file(name: str) -> Path | None:
    """The nearest file of a study, None for an ad-hoc one."""
    return next((path for place in places() if (path := place / "params" / "studies" / f"{name}.yaml").is_file()), None)


def load_study(name: str) -> Study | None:
    """Read a study's file; None where there is none: then the study is ad hoc.

    Args:
        name: the study's name.

    Raises:
        InputError: the file states something that cannot be.
    """
    path = study_file(check_study_name(name))
    return None if path is None else parse_study(read_layer(path))


def parse_study(layer: Layer) -> Study:
    """Validate what a study file states.

    Args:
        layer: the file, as read.
    """
    known = list(Study.model_fields)
    for key in layer.values:
        if key not in known:
            raise InputError(f"{layer.where(key)}: unknown key {shown(key)} of a study; {suggest(key, known)}")
    try:
        return Study(**layer.values)
    except ValidationError as failure:
        error: Any = failure.errors(include_url=False)[0]
        key = str(error["loc"][0])
        cause = error.get("ctx", {}).get("error")
        way_out = f"must be {error['msg'].removeprefix('Input should be ').removeprefix('a valid ')}; correct it there"
        raise InputError(f"{layer.where(key)}: {key}: {shown(layer.values.get(key))}: {cause or way_out}") from None


def resolve_study(name: str | None, preset: str | None) -> tuple[str, Study]:
    """The study that the options mean, and its name.

    Args:
        name: ``--study``.
        preset: ``--preset``.

    Returns:
        Name and settings: of its file, or of an ad-hoc study.
    """
    if name is None:
        name = DEFAULT_STUDY if preset is None else Path(preset).stem
    return name, load_study(name) or Study()
