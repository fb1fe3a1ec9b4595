"""Checkpoints: atomic save, safe load.

A checkpoint is written aside, flushed to disk and moved into place, so that whoever dies while writing leaves the earlier file
intact. Its SHA-256 stands beside it. The one before can be kept: whatever dies, one of the two is whole. Loading executes nothing
(``weights_only=True``) and refuses a file whose digest is wrong or missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vitfp8.errors import InputError

#: Layout of what `save_checkpoint` writes.
CHECKPOINT_VERSION = 1


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or of another run; the message names the file."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(state: Mapping[str, Any], path: Path, *, before: Path | None = None) -> str:
    """Write a checkpoint atomically: aside, fsync, replace, fsync of the folder.

    Args:
        state: tensors, numbers, strings and containers of them.
        path: where; the folder must exist.
        before: where what is at `path` now is kept; None: it is replaced.

    Returns:
        The file's SHA-256, which also stands in ``<path>.sha256``.

    Raises:
        CheckpointError: it cannot be written (disk full, no permission); the earlier file is intact.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _clear_asides(path, before)  # of processes that died while writing: on a full disk their room is needed
        with aside.open("wb") as file:
            torch.save({"version": CHECKPOINT_VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        digest = file_digest(aside)
        note = _note(path)
        note_aside = aside.with_suffix(".sha256.tmp")
        _write_note(note_aside, digest, path.name)
        if before is not None and path.is_file() and note.is_file():
            _keep(path, before)  # while `path` is whole: at no instant are both torn
        # the digest goes first: a crash between the two moves leaves a file that reads as altered, never one taken on trust
        note_aside.replace(note)
        aside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            _clear_asides(path, before)
        raise CheckpointError(f"{path}: cannot be written ({_why(error)}); check disk space and permissions") from None
    return digest


def _clear_asides(*paths: Path | None) -> None:
    """Remove what was being written of these files; whoever writes holds the run's lock, so that nobody else does."""
    for path in paths:
        for aside in path.parent.glob(f".{path.name}.*.tmp") if path is not None else ():
            aside.unlink(missing_ok=True)


def _why(error: BaseException) -> str:
    """What the system said: torch wraps it in an error of its own on the position in the file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


def _note(path: Path) -> Path:
    """The file that holds a checkpoint's digest."""
    return path.with_name(path.name + ".sha256")


def _write_note(aside: Path, digest: str, name: str) -> None:
    """Write a digest in sha256sum's format, with the name that it will stand beside; flushed, or a power cut empties it."""
    with aside.open("w", encoding="utf-8") as file:
        file.write(f"{digest}  {name}\n")
        file.flush()
        os.fsync(file.fileno())


def _keep(path: Path, before: Path) -> None:
    """Make `before` what `path` is, without touching `path`: by a second link, or by a copy where the file system has none."""
    aside = before.with_name(f".{before.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except OSError:
        shutil.copyfile(path, aside)
    note_aside = aside.with_suffix(".sha256.tmp")
    digest = (_note(path).read_text(errors="replace").split() or ["none"])[0]
    _write_note(note_aside, digest, before.name)
    note_aside.replace(_note(before))
    aside.replace(before)


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: what `save_checkpoint` wrote.
        device: where its tensors go.

    Raises:
        CheckpointError: missing, truncated, altered, or not of this kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    if not _note(path).is_file():
        raise CheckpointError(
            f"{path}: {_note(path).name}, its digest, is missing; it cannot be told whether it is what was written"
        )
    try:
        same = _note(path).read_text(errors="replace").split()[:1] == [file_digest(path)]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from None
    if not same:
        raise CheckpointError(f"{path}: is not what was written (its digest differs); it is truncated or altered")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the digest can be made anew as well: torch's reader meets any bytes, and fails in any way
        why = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise CheckpointError(f"{path}: cannot be read safely ({why})") from None
    if not isinstance(state, dict) or state.get("version") != CHECKPOINT_VERSION:
        raise CheckpointError(f"{path}: is no checkpoint of this version of vitfp8")
    return state


def first_sound(paths: Sequence[Path], *, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Path, list[str]] | None:
    """The first checkpoint that can be trusted.

    Args:
        paths: in the order of preference; those that are not there are passed over.
        device: where its tensors go.

    Returns:
        What it holds, its path, and what is wrong with those before it; None where there is none at all.

    Raises:
        CheckpointError: there are some, and none is sound.
    """
    problems: list[str] = []
    for path in paths:
        if not path.is_file():
            continue
        try:
            return load_checkpoint(path, device=device), path, problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}; move {paths[0].parent} aside to begin anew")
    return None
