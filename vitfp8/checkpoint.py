"""Checkpoints: atomic save, safe load.

A checkpoint is written aside, flushed to disk and moved into place, so that whoever dies while writing leaves the earlier file
intact. Its SHA-256 stands beside it. Loading executes nothing (``weights_only=True``) and refuses a file whose digest is wrong.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitfp8.params import InputError

#: Layout of what `save_checkpoint` writes.
CHECKPOINT_VERSION = 1


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or of another run; the message names the file."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(state: Mapping[str, Any], path: Path) -> str:
    """Write a checkpoint atomically: aside, fsync, replace, fsync of the folder.

    Args:
        state: tensors, numbers, strings and containers of them.
        path: where; the folder must exist.

    Returns:
        The file's SHA-256, which also stands in ``<path>.sha256``.

    Raises:
        CheckpointError: it cannot be written (disk full, no permission); the earlier file is intact.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            torch.save({"version": CHECKPOINT_VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        digest = file_digest(aside)
        note = path.with_name(path.name + ".sha256")
        note_aside = aside.with_suffix(".sha256.tmp")
        note_aside.write_text(f"{digest}  {path.name}\n")
        # the digest goes first: a crash between the two moves leaves a file that reads as altered, never one taken on trust
        note_aside.replace(note)
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        aside.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be written ({why}); check disk space and permissions") from None
    return digest


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: what `save_checkpoint` wrote.
        device: where its tensors go.

    Raises:
        CheckpointError: missing, truncated, altered, or not of this kind.
    """
    note = path.with_name(path.name + ".sha256")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    if note.is_file() and note.read_text().split()[:1] != [file_digest(path)]:
        raise CheckpointError(f"{path}: is not what was written (its digest differs); it is truncated or altered")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise CheckpointError(f"{path}: cannot be read safely ({why})") from None
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(f"{path}: is no checkpoint of this version of vitfp8")
    return state
