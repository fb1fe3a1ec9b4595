"""Provenance: which code, machine and versions made a record. Imports no torch; versions are read from package metadata."""

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
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from vitfp8.errors import printable
from vitfp8.record.deciding_code import CODE_DIGEST_RULE, PACKAGE, code_digest

#: Packages whose versions enter a record.
_PACKAGES = (
    "vitfp8",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "papermill",
    "nbclient",
    "ipykernel",
    "scikit-learn",
    "pillow",
)

#: What of a checkout runs: its uncommitted changes enter a record, and nothing else of the repository does.
_PLACES = (PACKAGE.name, "notebooks", "params")

#: A patch of uncommitted changes beyond this many bytes is recorded by its digest alone.
_LARGEST_PATCH = 200_000

#: A notebook beyond this many bytes without its outputs is not compared line by line.
_LARGEST_NOTEBOOK = 1_000_000

#: Files unknown to git that are recorded one by one, and how many bytes of them are read for their digests.
_MOST_UNTRACKED, _MOST_UNTRACKED_BYTES = 100, 20_000_000

#: Seconds that git may take for an answer.
_GIT_SECONDS = 10.0

#: What JupyterLab and others note in a notebook while it is looked at or run: no part of its source.
_VOLATILE_OF_NOTEBOOK = frozenset({"kernelspec", "language_info", "papermill", "toc", "toc-autonumbering", "widgets"})
_VOLATILE_OF_CELL = frozenset(
    {"ExecuteTime", "collapsed", "editable", "execution", "heading_collapsed", "hidden", "jp-MarkdownHeadingCollapsed", "jupyter",
     "papermill", "scrolled", "slideshow", "trusted", "vscode"}
)  # fmt: skip


class _GitError(Exception):
    """Git cannot tell; the message says why."""


def _git(folder: Path, *arguments: str) -> bytes:
    """What git says in a folder, whatever ``GIT_…`` variables (of a hook, say) and settings would have it do.

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

    A repository around it (its virtual environment may lie within somebody's own project) says nothing about this code, and its
    changes are nobody's business: git is believed only where it tracks this very package.

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
    """What git says of the code that runs.

    Returns:
        ``commit``; ``dirty``, whether package, notebooks or parameter files differ from it. Where they do: ``patch_sha256`` of
        the changes (of notebooks without outputs) and ``patch_zlib_base64``, the patch itself where it is not too large;
        ``untracked``, path, bytes and SHA-256 of each file that git does not know; ``untracked_further``, how many more there
        are. What is not known is None, and ``git_note`` says why.
    """
    try:
        top, commit = _checkout()
    except _GitError as error:
        return {"commit": None, "dirty": None, "git_note": str(error)}
    try:
        # records themselves are new files in the tree: only what runs counts
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
    """The uncommitted changes of tracked files; of a notebook those of its source alone.

    Args:
        top: of the checkout.
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
            committed = b""  # added, and not committed yet
        try:
            present = (top / path).read_bytes()
        except OSError:
            present = b""  # deleted
        before, now = _source_of_notebook(committed), _source_of_notebook(present)
        if before != now:
            lines = difflib.unified_diff(before, now, f"a/{path}", f"b/{path}", lineterm="")
            patch += "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    return patch


def _source_of_notebook(content: bytes) -> list[str]:
    """The lines of a notebook as JSON, without outputs, execution counts and what an editor notes; else a line of its digest."""
    if not content:
        return []
    try:
        notebook = json.loads(content)
        kept = {
            "cells": [_source_of_cell(cell) for cell in notebook["cells"]],
            "metadata": _without(notebook["metadata"], _VOLATILE_OF_NOTEBOOK),
            "nbformat": notebook["nbformat"],
        }
        text = json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [f"not a notebook, SHA-256 {hashlib.sha256(content).hexdigest()}"]
    if len(text) > _LARGEST_NOTEBOOK:
        return [f"a large notebook, SHA-256 without outputs {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"]
    return text.splitlines()


def _source_of_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What of a notebook's cell is its source."""
    source = cell["source"]
    kept = {key: value for key, value in cell.items() if key not in ("outputs", "execution_count")}
    kept["source"] = ("".join(source) if isinstance(source, list) else str(source)).splitlines(keepends=True)
    kept["metadata"] = _without(cell["metadata"], _VOLATILE_OF_CELL)
    return kept


def _without(values: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """Metadata without some keys."""
    return {key: value for key, value in values.items() if key not in keys}


def _described(top: Path, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Path, bytes and SHA-256 of files that git does not know; None where that is too much to read, or cannot be read."""
    described = []
    left = _MOST_UNTRACKED_BYTES
    for path in paths:
        size = digest = None
        try:
            if (top / path).is_file():
                size = (top / path).stat().st_size
                if size <= left:
                    left -= size
                    digest = hashlib.sha256((top / path).read_bytes()).hexdigest()
        except OSError:
            pass
        described.append({"path": path.encode("utf-8", "replace").decode(), "bytes": size, "sha256": digest})
    return described


def _versions() -> dict[str, str]:
    """Versions of the packages that matter; what is not installed is left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        try:
            done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5)
            if done.stdout.strip():
                return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return platform.processor() or platform.machine()


def processor_and_cores() -> tuple[str, int | None]:
    """The processor's name and the number of its cores: runs on machines that agree in both can tell each other's time."""
    return _processor(), psutil.cpu_count(logical=False) or os.cpu_count()


def collect_provenance(kind: str = "run") -> dict[str, Any]:
    """What made this record, as far as it can be known without torch: code, versions, machine.

    The experiment adds what only torch knows (device, threads, instruction set).

    Args:
        kind: of the run: ``run`` or ``quantization``.
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
