"""Which code decides numbers, and what git may say of it."""

from __future__ import annotations

import ast
import base64
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.analysis.records import record_of
from tests.conftest import TOP
from vitfp8 import read_record
from vitfp8.analysis import tables
from vitfp8.analysis.metrics import load_results
from vitfp8.params import InputError, RunParams
from vitfp8.record import code_digest, collect_provenance, compare_code, deciding_code, git_state, provenance
from vitfp8.record.deciding_code import CODE_DIGEST_RULE, DECIDING, DECIDING_NOTHING, PACKAGE, tree_digest
from vitfp8.workflow import estimates, plan, preflight, rerun, verify

# ------------------------------------------------------------------------------------------------------- the code digest

#: Everything whose syntax tree, or whose f-strings, some version of Python takes in another way.
SAMPLE = r'''
"""A module."""
from __future__ import annotations
from . import nothing
from math import pi as π, tau  # a comment
SWITCH = "X"
"""What a name means."""
class Empty:
    """Only a docstring."""
@decorated(1_000, key=-0.1e-7, **{"a": 1, **more})
class Row(Base, metaclass=Meta):
    x: int = 0
    def method(self, a, /, b=None, *rest: int, c, d=1j, **further) -> "Row":
        """A docstring."""
        return None
    async def waits(self): ...
def texts(x, w):
    u"also one"
    a = f"{x}" "" f"{x!r:>{w}}{{}}" 'end' f'\N{BULLET}{x=}'
    b = f"{x:}" + f"{x:%H:{w}\n}" + rf"\d{x}\{{" + f"{'nested'}{f'{x}deep'}"
    c = b"\x00" + b"b", "é€\u200b🙂\ud800", ..., True, 1.0, 10**400, 0x7F800000
    return lambda y, *z: (a, *b, c[1:2, ::3], {**x}, {*w}, (yield), not -x)
def flow(x):
    global SWITCH
    with open(x) as one, (open(x)) as two: pass
    try:
        for i, (j, k) in enumerate(x): del i, x[0]
        else: raise ValueError(f"no {x}") from None
    except (OSError, ValueError) as error: assert x, "why"
    finally: pass
    while (y := x) and x < 1 <= 2 or x is not None: break
    match x:
        case None | {"a": [1, *_], **rest}: return
        case Row(x=0) if x: x @= [a async for a in x if a if b]
'''
SAMPLE_DIGEST = "00e6de21e18a261fda6025deaaa835e51d901d3e096476c3b9484e9a31e8cfee"


def test_the_digest_of_a_source_is_the_same_under_every_supported_python() -> None:
    """The value was computed under CPython 3.11, 3.12, 3.13 and 3.14; whichever runs this must find it again."""
    assert tree_digest(SAMPLE.encode()) == SAMPLE_DIGEST
