"""Provenance: the code, machine and versions that made a record. Versions are read from package metadata, without torch."""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import os
import platform
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from vitfp8.errors import printable
from vitfp8.record.deciding_code import CODE_DIGEST_RULE, PACKAGE, code_digest

#: Packages whose versions enter a record.
_PACKAGES = ("vitfp8", "torch", "torchvision", "timm", "numpy", "papermill", "nbclient", "ipykernel", "scikit-learn", "pillow")

#: The folders of a checkout that run: their uncommitted changes enter a record, and nothing else of the repository does.
_PLACES = (PACKAGE.name, "notebooks", "params")

#: A larger patch of uncommitted changes (bytes) is recorded by its digest alone.
_LARGEST_PATCH = 200_000

#: A notebook that is larger without its outputs (characters) is compared by its digest, not line by line.
_LARGEST_NOTEBOOK = 1_000_000

#: How many files that git does not track are recorded one by one, and how many of their bytes are read for digests.
_MOST_UNTRACKED, _MOST_UNTRACKED_BYTES = 100, 20_000_000

#: Timeout of one git command in seconds.
_GIT_SECONDS = 10.0

#: Metadata that JupyterLab and others write while a notebook is viewed or run; not part of its content.
_VOLATILE_OF_NOTEBOOK = frozenset({"kernelspec", "language_info", "papermill", "toc", "toc-autonumbering", "widgets"})
_VOLATILE_OF_CELL = frozenset(
    {"ExecuteTime", "collapsed", "editable", "execution", "heading_collapsed", "hidden", "jp-MarkdownHeadingCollapsed", "jupyter",
     "papermill", "scrolled", "slideshow", "trusted", "vscode"}
)  # fmt: skip


class _GitError(Exception):
    """Git gives no answer; the message says why."""


def _git(folder: Path, *arguments: str) -> bytes:
    """The output of a git command in a folder, whatever ``GIT_…`` variables and settings a hook or user may have set.

    Raises:
        _GitError: there is no git, it fails, or it does not answer in time.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    settings = ("core.fsmonitor=false", "core.quotePath=false", "status.renames=false", "diff.renames=false")
    command = ["git", "-C", str(folder), *(word for setting in settings for word in ("-c", setting)), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_GIT_SECONDS, check=True,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError:
        raise _GitError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise _GitError(f"git did not answer within {_GIT_SECONDS:g} s") from None
    except OSError as error:
        raise _GitError(f"git cannot be started ({error.strerror})") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        if "not a git repository" in said:
            raise _GitError("vitfp8 does not run from a git checkout") from None
        if "safe.directory" in said:
            way_out = next((line.strip() for line in said.splitlines() if line.strip().startswith("git config")), "")
            raise _GitError(f"git refuses a folder that belongs to another user; allow it with `{way_out}`") from None
        raise _GitError(f"git fails: {printable(said, 200) or f'exit status {error.returncode}'}") from None
    return done.stdout


def _checkout() -> tuple[Path, str]:
    """Top folder and commit of the git checkout that this package is part of.

    Only a repository that tracks this very package counts. One around it (a virtual environment may lie inside somebody's own
    project) says nothing about this code, and its changes are private.

    Raises:
        _GitError: there is none.
    """
    top = Path(os.fsdecode(_git(PACKAGE, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    try:
        ours = (top / PACKAGE.name / "__init__.py").samefile(PACKAGE / "__init__.py")
    except OSError:
        ours = False
    if not ours or not _git(top, "ls-files", "--", f"{PACKAGE.name}/__init__.py"):
        raise _GitError("the git repository around this installation is not vitfp8's own; nothing of it is read")
    try:
        return top, _git(top, "rev-parse", "--verify", "HEAD").decode().strip()
    except _GitError:
        raise _GitError("the git checkout has no commit yet") from None


def git_state() -> dict[str, Any]:
    """The git state of the code that runs.

    Returns:
        ``commit``; ``dirty``: whether package, notebooks or parameter files differ from it. If so, ``patch_sha256`` of the
        changes (of notebooks without outputs) and ``patch_zlib_base64``, the patch itself if it is not too large; ``untracked``:
        path, bytes and SHA-256 of each file that git does not track; ``untracked_further``: how many more there are. What is not
        known is None, and ``git_note`` says why.
    """
    try:
        top, commit = _checkout()
    except _GitError as error:
        return {"commit": None, "dirty": None, "git_note": str(error)}
    try:
        # records are new files in the tree too, so only the folders that run count
        status = _git(top, "status", "--porcelain", "-z", "--untracked-files=all", "--", *_PLACES)
        entries = [(entry[:2].decode(), os.fsdecode(entry[3:])) for entry in status.split(b"\0") if entry]
        untracked = [path for code, path in entries if code == "??"]
        patch = _patch(top, [path for code, path in entries if code != "??"])
    except _GitError as error:
        return {"commit": commit, "dirty": None, "git_note": str(error)}
    state: dict[str, Any] = {"commit": commit, "dirty": bool(patch or untracked)}
    if patch:
        state["patch_sha256"] = hashlib.sha256(patch).hexdigest()
        if len(patch) <= _LARGEST_PATCH:
            state["patch_zlib_base64"] = base64.b64encode(zlib.compress(patch, 9)).decode("ascii")
    if untracked:
        state["untracked"] = _described(top, untracked[:_MOST_UNTRACKED])
        if len(untracked) > _MOST_UNTRACKED:
            state["untracked_further"] = len(untracked) - _MOST_UNTRACKED
    return state


def _patch(top: Path, changed: Sequence[str]) -> bytes:
    """The uncommitted changes of tracked files; of notebooks without their outputs.

    Args:
        top: top folder of the checkout.
        changed: paths that git names as changed.
    """
    notebooks = [path for path in changed if path.endswith(".ipynb")]
    patch = b""
    if len(notebooks) < len(changed):
        plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--binary", "--src-prefix=a/", "--dst-prefix=b/")
        patch = _git(top, "diff", "HEAD", *plain, "--", *_PLACES, ":(exclude,glob)**/*.ipynb")
    for path in notebooks:
        try:
            committed = _git(top, "cat-file", "blob", f"HEAD:{path}")
        except _GitError:
            committed = b""  # added and not yet committed
        try:
            present = (top / path).read_bytes()
        except OSError:
            present = b""  # deleted
        before, now = _notebook_lines(committed), _notebook_lines(present)
        if before != now:
            lines = difflib.unified_diff(before, now, f"a/{path}", f"b/{path}", lineterm="")
            patch += "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    return patch


def _notebook_lines(content: bytes) -> list[str]:
    """The lines of a notebook as JSON, without outputs, execution counts and editor metadata; of any other file one digest."""
    if not content:
        return []
    try:
        notebook = json.loads(content)
        kept = {
            "cells": [_cell_content(cell) for cell in notebook["cells"]],
            "metadata": _without(notebook["metadata"], _VOLATILE_OF_NOTEBOOK),
            "nbformat": notebook["nbformat"],
        }
        text = json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [f"not a notebook, SHA-256 {hashlib.sha256(content).hexdigest()}"]
    if len(text) > _LARGEST_NOTEBOOK:
        return [f"a large notebook, SHA-256 without outputs {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"]
    return text.splitlines()


def _cell_content(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook's cell without what running or viewing it writes."""
    source = cell["source"]
    kept = {key: value for key, value in cell.items() if key not in ("outputs", "execution_count")}
    kept["source"] = ("".join(source) if isinstance(source, list) else str(source)).splitlines(keepends=True)
    kept["metadata"] = _without(cell["metadata"], _VOLATILE_OF_CELL)
    return kept


def _without(values: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """Metadata without the given keys."""
    return {key: value for key, value in values.items() if key not in keys}


def _described(top: Path, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Path, bytes and SHA-256 of files that git does not track; None for what is too large or cannot be read."""
    described = []
    left = _MOST_UNTRACKED_BYTES
    for path in paths:
        size = digest = None
        with suppress(OSError):
            if (top / path).is_file():
                size = (top / path).stat().st_size
                if size <= left:
                    left -= size
                    digest = hashlib.sha256((top / path).read_bytes()).hexdigest()
        described.append({"path": path.encode("utf-8", "replace").decode(), "bytes": size, "sha256": digest})
    return described


def _versions() -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _processor() -> str:
    """The processor's name as the system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5)
            if done.stdout.strip():
                return done.stdout.strip()
    return platform.processor() or platform.machine()


def processor_and_cores() -> tuple[str, int | None]:
    """The processor's name and its number of cores; times of runs are comparable between machines that agree in both."""
    return _processor(), psutil.cpu_count(logical=False) or os.cpu_count()


def collect_provenance(kind: str = "run") -> dict[str, Any]:
    """Code, versions and machine of a ``run`` or ``quantization``, as far as they are known without torch.

    The experiment adds what only torch knows: device, threads, instruction set.
    """
    return {
        **git_state(),
        "code_digest": code_digest(kind),
        "code_digest_rule": CODE_DIGEST_RULE,
        "versions": _versions(),
        "python": platform.python_version(),
        "system": platform.platform(),
        **dict(zip(("processor", "cores"), processor_and_cores(), strict=True)),
        "logical_cores": psutil.cpu_count() or os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }
