"""Checkpoints of an earlier project: a look inside that executes nothing."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from dataclasses import dataclass
from typing import Any

from vitfp8.legacy.source import SourceFile, SourceTree, shown

#: Endings of the files that torch wrote.
ENDINGS = (".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class OldCheckpoint:
    """What is known of a checkpoint.

    Attributes:
        file: which.
        epoch: as it is written there, counted from 0 or 1; None where it does not say.
        val_acc: as it is written there, a fraction.
        refused: why it is not taken along; empty where it is.
        problem: why it could not be read, although it is copied.
    """

    file: SourceFile
    epoch: int | None = None
    val_acc: float | None = None
    refused: str = ""
    problem: str = ""


def look_into(tree: SourceTree, file: SourceFile) -> OldCheckpoint:
    """Read epoch and accuracy of a checkpoint with ``weights_only=True``, which executes nothing.

    Args:
        tree: whose.
        file: which.
    """
    import torch

    try:
        with tree.open(file.path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"\bGLOBAL (\S+)", str(error)):
            return OldCheckpoint(file, refused=f"loading it would execute {shown(found[1], 80)}")
        if _is_pickle_with_code(tree, file):
            return OldCheckpoint(file, refused="loading it would execute code")
        return OldCheckpoint(file, problem="it is no checkpoint that can be read; cut off or damaged")
    except Exception as error:  # whatever a damaged archive makes torch raise
        return OldCheckpoint(file, problem=f"it cannot be read ({type(error).__name__}); cut off or damaged")
    if not isinstance(state, dict):
        return OldCheckpoint(file, problem="it holds no dictionary")
    epoch, accuracy = _plain(state.get("epoch")), _plain(state.get("val_acc"))
    return OldCheckpoint(
        file,
        epoch=int(epoch) if epoch is not None and epoch == int(epoch) and 0 <= epoch < 1e6 else None,
        val_acc=accuracy if accuracy is not None and 0 <= accuracy <= 1 else None,
    )


def _is_pickle_with_code(tree: SourceTree, file: SourceFile) -> bool:
    """Whether a bare pickle calls something; its instructions are listed, not executed."""
    try:
        with tree.open(file.path) as stream:
            return any(
                step.name in ("GLOBAL", "STACK_GLOBAL", "INST", "REDUCE", "OBJ", "NEWOBJ")
                for step, _, _ in pickletools.genops(stream)
            )
    except Exception:  # no pickle at all
        return False


def _plain(value: Any) -> float | None:
    """A finite number, also one in a tensor of one element."""
    from vitfp8.legacy.values import number

    if hasattr(value, "numel") and value.numel() == 1:
        value = value.item()
    return number(value)
