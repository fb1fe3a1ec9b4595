"""Which code decides a run's numbers, and its digest.

The digest covers a named list of files as syntax trees, and the facts of the catalogue's data sets by their
values. A comment, a docstring, a line break or another version of Python makes no finished run stale.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from vitfp8.catalog import DATASETS
from vitfp8.errors import InputError

PACKAGE = Path(__file__).resolve().parent.parent

#: How the digest is formed; a record states it as ``code_digest_rule``. Rule 1, which early records do not state, took the
#: bytes of whole folders. Digests of different rules cannot be compared.
CODE_DIGEST_RULE = 2

_TRAINING = (
    "compilation.py",
    "data/augment.py",
    "data/batches.py",
    "data/datasets.py",
    "data/draws.py",
    "data/formats.py",
    "data/folders.py",
    "data/operations.py",
    "data/sources.py",
    "data/splits.py",
    "experiment.py",
    "model.py",
    "precision/attention.py",
    "precision/capability.py",
    "precision/rounding.py",
    "precision/grid.py",
    "precision/formats.py",
    "precision/fp8_linear.py",
    "precision/health.py",
    "precision/layers.py",
    "precision/native_products.py",
    "precision/preparation.py",
    "precision/quantizer.py",
    "precision/recipes.py",
    "pretrained.py",
    "trainer.py",
)

#: Kind of a run → the files that decide its numbers, relative to the package.
DECIDING: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "run": _TRAINING,
        "quantization": (
            *_TRAINING,
            "ptq/experiment.py",
            "ptq/safetensors.py",
            "ptq/schemes.py",
            "ptq/start.py",
            "ptq/trained_model.py",
        ),
    }
)

#: Every other file, or folder, that a run imports or that stands beside the deciding files → why it decides no number.
DECIDING_NOTHING: Mapping[str, str] = MappingProxyType(
    {
        "__init__.py": "only names what other modules define",
        "analysis/": "shows what records hold",
        "catalog.py": "names and labels; what its data sets decide enters the digest by value",
        "checkpoint.py": "gives back exactly what the trainer saved, or refuses",
        "home.py": "says where files of a study are",
        "data/__init__.py": "only names what other modules define",
        "memory.py": "keeps and counts memory; training reads none of it",
        "monitor/": "measures the machine; training reads none of it",
        "errors.py": "words errors",
        "files.py": "writes whole files",
        "params/": "gives values, which stand in the record and have a digest of their own",
        "precision/__init__.py": "only names what other modules define",
        "explore.py": "for looking at one layer in formats.ipynb; no run imports it",
        "precision/rows.py": "tells what became of each layer, seen on a copy without memory, and changes none",
        "ptq/__init__.py": "only names what other modules define",
        "params/quantization.py": "gives values, which stand in the record and have a digest of their own",
        "record/": "stores what it is given; the weights that a quantisation starts from are named by their digest",
    }
)

#: Facts of a data set that are for the reader, or name the origin of its files.
_READERS_FACTS = frozenset({"label", "source", "needs_files"})

#: Fields of a syntax tree that change nothing of what is computed.
_IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})

#: A C++ literal, which is kept, or C++ comments and blanks, which are as good as one blank.
_CPP = re.compile(r'("(?:\\.|[^"\\\n])*"|(?<!\w)\'(?:\\.|[^\'\\\n])*\')|(?://[^\n]*|/\*.*?\*/|[ \t]+)+', re.DOTALL)


def code_digest(kind: str = "run") -> str:
    """SHA-256, hexadecimal, over the code that decides the numbers of a ``run`` or ``quantization``, by `CODE_DIGEST_RULE`.

    Raises:
        InputError: one of these files is missing or is not Python.
    """
    digest = hashlib.sha256(_facts_of_data_sets().encode())
    for name in DECIDING[kind]:
        path = PACKAGE / name
        try:
            tree = tree_digest(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); install vitfp8 again") from None
        except (SyntaxError, ValueError) as error:
            raise InputError(f"{path}: is not valid Python ({error}); correct it or install vitfp8 again") from None
        digest.update(f"\0{name}\0{tree}".encode())
    return digest.hexdigest()


def compare_code(provenance: Mapping[str, Any], kind: str) -> Literal["same", "other", "unknown"]:
    """Whether today's code made a record of that kind; ``unknown`` if it has no code digest, or one by another rule."""
    if code_digest_rule(provenance) != CODE_DIGEST_RULE:
        return "unknown"
    return "same" if provenance["code_digest"] == code_digest(kind) else "other"


def code_digest_rule(provenance: Mapping[str, Any]) -> int | None:
    """The rule of a record's code digest; None if it has no digest, 0 if what it states is not a rule."""
    if provenance.get("code_digest") is None:
        return None
    rule = provenance.get("code_digest_rule", 1)
    return rule if isinstance(rule, int) else 0


def incomparable_code(provenance: Mapping[str, Any]) -> str:
    """What made a record of which `compare_code` says ``unknown``, and why it is unknown, as a part of a sentence."""
    left = "left no code digest" if code_digest_rule(provenance) is None else "took the code digest in another way"
    return f"a version of vitfp8 that {left}, so that its code cannot be compared with today's"


def _facts_of_data_sets() -> str:
    """The facts of the catalogue's data sets that decide numbers, as canonical JSON."""
    facts = {
        name: {key: value for key, value in asdict(row).items() if key not in _READERS_FACTS} for name, row in DATASETS.items()
    }
    return json.dumps(facts, sort_keys=True)


@lru_cache(maxsize=256)
def tree_digest(source: bytes) -> str:
    """SHA-256, hexadecimal, of a Python source's syntax tree without comments, docstrings and positions.

    It is the same under every supported version of Python. A string that is a C++ source (it has an ``#include``) is digested
    without C++ comments, indentation and empty lines.

    Raises:
        SyntaxError: it is not Python.
        ValueError: it has null bytes.
    """
    parts: list[str] = []
    _write(ast.parse(source), parts)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _write(node: ast.AST, parts: list[str]) -> None:
    """Append a node as text: its class and its fields that are not empty; versions of Python differ in the others alone."""
    if isinstance(node, ast.Constant):
        constant = node.value
        # ascii() does not depend on the Unicode tables of a version of Python, as repr() does
        parts.append(ascii(_without_cpp_comments(constant) if isinstance(constant, str) else constant))
        return
    kind: Any = type(node)
    parts.append(f"{kind.__name__}(")
    for name in _fields(kind):
        value: Any = getattr(node, name, None)
        if name == "format_spec" and value is not None and not _text_joined(value.values):
            continue
        if isinstance(value, list):
            value = _text_joined(value) if kind is ast.JoinedStr else [part for part in value if not _does_nothing(part)]
            if value:
                parts.append(f"{name}=[")
                for part in value:
                    _write(part, parts) if isinstance(part, ast.AST) else parts.append(ascii(part))
                    parts.append(",")
                parts.append("]")
        elif isinstance(value, ast.AST):
            parts.append(f"{name}=")
            _write(value, parts)
        elif value is not None:
            parts.append(f"{name}={ascii(value)};")
    parts.append(")")


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    """The fields of a class of nodes that change what is computed."""
    return tuple(name for name in kind._fields if name not in _IGNORED)


def _does_nothing(node: object) -> bool:
    """Whether a statement is a docstring, another bare constant, or ``pass``, which may stand where a docstring was."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _text_joined(values: Sequence[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with adjacent texts joined and empty ones left out: versions split them differently."""
    joined: list[ast.expr] = []
    for part in values:
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            if not part.value:
                continue
            if joined and isinstance(joined[-1], ast.Constant):
                joined[-1] = ast.Constant(joined[-1].value + part.value)  # type: ignore[operator]
                continue
        joined.append(part)
    return joined


def _without_cpp_comments(text: str) -> str:
    """A C++ source without comments, indentation and empty lines; any other text is returned as it is."""
    if "#include" not in text:
        return text
    lines: Iterator[str] = (line.strip() for line in _CPP.sub(lambda found: found[1] or " ", text).splitlines())
    return "\n".join(line for line in lines if line)
