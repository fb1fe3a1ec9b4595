"""What a field of parameters can be: its type, whether it decides numbers, and the identity that follows. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vitfp8.catalog import PRECISION_ALIASES, run_name, unused_knobs


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


def whole_number(value: object) -> object:
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


def precision_name(value: object) -> object:
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


WholeNumber = Annotated[int, BeforeValidator(whole_number), Field(strict=True)]


RealNumber = Annotated[float, BeforeValidator(_real_number), Field(strict=True, allow_inf_nan=False)]


Text = Annotated[str, Field(strict=True, max_length=4000)]


Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=80)]


Flag = Annotated[bool, Field(strict=True)]


FlagOrAuto = Annotated[bool | Literal["auto"], BeforeValidator(_flag_or_auto)]


@dataclass(frozen=True)
class About:
    """What a field says beside its type.

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


PLACE = About(decides=False)


class Parameters(BaseModel):
    """What every kind of run states: what it is and what it is for. Immutable; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: A complete file of this kind in ``params/``, named to someone who left a line out.
    example_file: ClassVar[str] = ""

    # What the run is for: shown beside its outcome.
    experiment: Annotated[Name, About()] = Field(description="name in the catalogue, e.g. BaseFP32")
    variant: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_.=+]*$", max_length=80), About()] = Field(
        description="name of a control or of a point of a sweep; empty for the experiment itself"
    )
    question: Annotated[Text, About(decides=False)] = Field(description="what this experiment asks")
    expectation: Annotated[Text, About(decides=False)] = Field(description="what is expected, stated before the run")

    seed: Annotated[WholeNumber, Field(ge=0, lt=2**31), About()] = Field(description="decides every random draw")

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


def field_notes(kind: type[Parameters]) -> dict[str, About]:
    """Field name → whether it decides numbers, and its neutral value."""
    return {
        name: next((note for note in info.metadata if isinstance(note, About)), About())
        for name, info in kind.model_fields.items()
    }


#: The rule by which identities are formed. A record names the rule of its digest; one that names none has rule 1.
#: 1: what decides numbers, less fields that were added later while they have their neutral value.
#: 2: also less what the precision does not use (FP8's recipe in FP32), so that one command can set it for all experiments.
IDENTITY_RULE = 2


def identity_of(kind: type[Parameters], values: Mapping[str, Any], rule: int = IDENTITY_RULE) -> dict[str, Any]:
    """The values that decide numbers. Two runs with equal identities do the same arithmetic if data and code are equal too.

    The values may be a record's, of any version, and need not be valid today. A name that `kind` does not know counts as
    deciding. Values are compared, not files.
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
    """SHA-256 of `identity_of` as canonical JSON, hexadecimal."""
    text = json.dumps(identity_of(kind, values, rule), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


#: A class of parameters, as `validate` and `from_notebook` take and return it.
AnyParams = TypeVar("AnyParams", bound=Parameters)


class KeyedError(ValueError):
    """A combination of values is refused; `key` is the one to change."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


def describe_parameters(kind: type[Parameters]) -> list[dict[str, Any]]:
    """One row per field, for documentation and the notebook's table: name, meaning, whether it decides numbers."""
    notes = field_notes(kind)
    return [
        {"name": name, "meaning": info.description, "decides_numbers": notes[name].decides}
        for name, info in kind.model_fields.items()
    ]
