"""Epoch and accuracy inside an earlier project's checkpoints, read without executing anything."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping

from vitfp8.errors import printable
from vitfp8.legacy.reader import NotTakenError
from vitfp8.legacy.source import SourceFile, SourceTree

#: Pickle instructions that call something.
_CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX"}


class RefusedError(Exception):
    """Loading a checkpoint would execute code; ``str(error)`` names what."""


def read_checkpoint(tree: SourceTree, file: SourceFile) -> Mapping[str, float]:
    """Epoch (as written, from 0 or 1) and accuracy of a checkpoint, as far as it states them.

    It is read with ``weights_only=True``, which executes nothing.

    Raises:
        NotTakenError: it is damaged.
        RefusedError: loading it would execute code.
    """
    import torch

    try:
        with tree.open(file.path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"\bGLOBAL (\S+)", str(error))
        if called or _calls_something(tree, file):
            raise RefusedError(printable(called[1], 80) if called else "code") from None
        raise NotTakenError("is not a checkpoint, or was cut off") from None
    except Exception as error:  # whatever a damaged archive makes torch raise
        raise NotTakenError(f"is not a checkpoint, or was cut off ({type(error).__name__})") from None
    values = {key: state.get(key) for key in ("epoch", "val_acc")} if isinstance(state, dict) else {}
    found: dict[str, float] = {}
    if isinstance(epoch := values.get("epoch"), int) and 0 <= epoch < 1_000_000:
        found["epoch"] = epoch
    accuracy = values.get("val_acc")
    if isinstance(accuracy, torch.Tensor) and accuracy.numel() == 1:
        accuracy = accuracy.item()
    if isinstance(accuracy, float) and 0 <= accuracy <= 1:
        found["val_acc"] = accuracy
    return found


def _calls_something(tree: SourceTree, file: SourceFile) -> bool:
    """Whether a bare pickle calls something; its instructions are listed, not executed."""
    try:
        with tree.open(file.path) as stream:
            return any(step.name in _CALLS for step, _, _ in pickletools.genops(stream))
    except Exception:  # not a pickle at all
        return False
