"""Checkpoints: atomic save, safe load.

A checkpoint is written to a temporary file, flushed to disk and renamed atomically, so that a process that dies while writing
leaves the earlier file intact. Its SHA-256 stands beside it. Loading executes nothing (``weights_only=True``) and refuses a file
whose digest is wrong or missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from vitfp8.errors import InputError
from vitfp8.files import file_digest, sync_folder

#: Layout of what `save_checkpoint` writes.
CHECKPOINT_VERSION = 1


class CheckpointError(InputError):
    """A checkpoint is missing, damaged or of another run; the message names the file."""


def save_checkpoint(state: Mapping[str, Any], path: Path, *, before: Path | None = None, flushed: bool = True) -> str:
    """Write a checkpoint atomically: temporary file, fsync, rename, fsync of the folder.

    Args:
        state: tensors, numbers, strings and containers of them.
        path: where; the folder must exist.
        before: where the file that is now at `path`, and flushed, is kept; None: it is replaced.
        flushed: whether to flush to disk now. If not, a killed process loses nothing, and a power cut may lose this file; see
            `flush`.

    Returns:
        The file's SHA-256, which is also written to ``<path>.sha256``.

    Raises:
        CheckpointError: it cannot be written (disk full, no permission); the earlier file is intact.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _clear_asides(path.parent)  # of processes that died while writing: on a full disk their room is needed
        with aside.open("wb") as file:
            torch.save({"version": CHECKPOINT_VERSION, **state}, file)
            _sync(file, flushed)
        digest = file_digest(aside)
        note = _note(path)
        note_aside = aside.with_suffix(".sha256.tmp")
        _write_note(note_aside, digest, path.name, flushed)
        if before is not None and path.is_file() and note.is_file():
            _keep(path, before)  # while `path` is whole: at every instant one of the two is whole
        # the digest goes first: a crash between the two moves leaves a file that reads as altered, never one taken on trust
        note_aside.replace(note)
        aside.replace(path)
        if flushed:
            sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            _clear_asides(path.parent)
        raise CheckpointError(f"{path}: cannot be written ({_why(error)}); check disk space and permissions") from None
    return digest


def flush(path: Path) -> None:
    """Flush a checkpoint that was saved with ``flushed=False``.

    Raises:
        CheckpointError: the disk refuses it.
    """
    try:
        for part in (path, _note(path)):
            with part.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({_why(error)}); check disk space and permissions") from None


def _sync(file: IO[Any], flushed: bool) -> None:
    """Hand a file's content to the system, and to the disk where that is wanted."""
    file.flush()
    if flushed:
        os.fsync(file.fileno())


def _clear_asides(folder: Path) -> None:
    """Remove temporary files of checkpoints; the writer holds the run's lock, so they belong to nobody else."""
    for aside in folder.glob(".*.tmp"):
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


def _write_note(aside: Path, digest: str, name: str, flushed: bool) -> None:
    """Write a digest in sha256sum's format, for the file name that it will belong to."""
    with aside.open("w", encoding="utf-8") as file:
        file.write(f"{digest}  {name}\n")
        _sync(file, flushed)


def _keep(path: Path, before: Path) -> None:
    """Make `before` a second link to `path`, or a copy where the file system has no links; `path` is not touched.

    The note, and a copy, are always flushed: a power cut may cost the newest file, never the one that is kept.
    """
    aside = before.with_name(f".{before.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except OSError:
        shutil.copyfile(path, aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
    note_aside = aside.with_suffix(".sha256.tmp")
    digest = (_note(path).read_text(errors="replace").split() or ["none"])[0]
    _write_note(note_aside, digest, before.name, flushed=True)
    note_aside.replace(_note(before))
    aside.replace(before)


def load_checkpoint(path: Path, *, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, its tensors on `device`; nothing in it is executed.

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
        raise CheckpointError(f"{path}: is not a checkpoint of this version of vitfp8")
    return state


def first_sound(paths: Sequence[Path], *, device: torch.device | str = "cpu") -> tuple[dict[str, Any], Path, list[str]] | None:
    """The first checkpoint that can be trusted, in the order of `paths`; those that are not there are passed over.

    Returns:
        What it holds, its path, and what is wrong with those before it; None where there are no checkpoints.

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
