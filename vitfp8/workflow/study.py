"""A study: runs that are compared with each other; its file says beforehand what it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from vitfp8.catalog import EXPERIMENTS
from vitfp8.params import InputError, Layer, read_layer, suggest
from vitfp8.workflow.locate import places

#: The study that `vitfp8 run` executes when neither study nor preset is named.
DEFAULT_STUDY = "paper"


def _seed_list(value: object) -> object:
    """``3`` means the seeds 0, 1, 2; a list is taken as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 1000:
            raise ValueError("give 1 to 1000 seeds, or a list of them")
        return list(range(value))
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

    question: str = ""
    preset: str | None = None
    experiments: tuple[str, ...] = tuple(name for name, row in EXPERIMENTS.items() if row.core)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], BeforeValidator(_seed_list)] = (0,)
    cooldown: float = Field(default=0.0, ge=0, le=86400)

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


def check_study_name(name: str) -> str:
    """Refuse a study name that is no plain folder name.

    Args:
        name: what the user gave.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}", name):
        raise InputError(f"--study: {name!r}: is no folder name; take letters, digits, '-', '_' and '.'")
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
            raise InputError(f"{layer.where(key)}: unknown key {key!r} of a study; {suggest(key, known)}")
    try:
        return Study(**layer.values)
    except ValidationError as failure:
        error: Any = failure.errors(include_url=False)[0]
        key = str(error["loc"][0])
        cause = error.get("ctx", {}).get("error")
        raise InputError(f"{layer.where(key)}: {key}: {layer.values.get(key)!r}: {cause or error['msg']}") from None


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
