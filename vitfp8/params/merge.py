"""Reading parameter files, laying parameters over each other, and refusing what cannot be.

Layers are laid over each other as papermill's repeated ``-f`` and ``-p`` do (later wins), and the result is validated once. A
refusal is one line that names the file, the line, the key, the value and a way out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import yaml
from pydantic import ValidationError

from vitfp8.errors import InputError, shown, suggest
from vitfp8.params.fields import AnyParams, KeyedError, Parameters
from vitfp8.params.training import RunParams

#: A parameter file has a few kilobytes; beyond this it is something else, and reading YAML is slow.
LARGEST_FILE_BYTES = 100_000


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
    """Why a file is not the text that its name promises, with a way out; None if it may be.

    Args:
        content: the file's, or its beginning.
        appended: lines are appended to the file, so NUL bytes are what a power cut left, and no reason.
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
        raise InputError(f"{path}: is not a file name ({error}); check the name") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    return parse_layer(text, str(path))


def parse_layer(text: str, source: str) -> Layer:
    """Parse flat YAML text; error lines begin with `source`. See `read_layer`."""
    node = _compose(text, source)
    if node is None:
        raise InputError(f"{source}: is empty; state the parameters, one 'key: value' per line")
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{source}: is not a mapping; write one 'key: value' per line")
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _PLAIN_TAGS:
            raise InputError(f"{source}:{line}: a key must be a plain word; write one 'key: value' per line")
        key = key_node.value
        if key in values:
            raise InputError(f"{source}:{line}: {shown(key)} is stated twice (first in line {lines[key]}); keep one")
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
        raise InputError(f"{place}: is not YAML ({problem[:150]}); write one 'key: value' per line") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:150]
        raise InputError(f"{source}: is not YAML ({reason}); write one 'key: value' per line") from None


#: Tags of what a parameter may be; a date stays the text that was written.
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "timestamp"))


#: Numbers that YAML 1.1 reads differently from people: 010 as 8, 1:30 as 90.
_MISREAD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def _plain_value(node: yaml.Node, place: str) -> Any:
    """The value of a scalar or of a list of scalars; anything else, tags of other kinds included, is refused."""
    plain_list = isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq"
    if plain_list and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return [_plain_value(item, place) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"{place}: a nested value; parameter files are flat, write one 'key: value' per line")
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
    """What ``-p KEY VALUE`` says, read as YAML, so that ``-f`` and ``-p`` agree."""
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
    """Merge layers, later ones over earlier ones, and validate them as parameters of a kind.

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
