"""Provenance: which code, machine and versions made a record. Imports no torch; versions are read from package metadata."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import subprocess
import sys
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGE = Path(__file__).resolve().parent.parent

#: The modules that decide a run's numbers. A changed plot makes no run stale.
DECIDING_MODULES = ("data", "model.py", "precision", "trainer.py", "experiment.py")

#: Packages whose versions enter a record.
_PACKAGES = ("vitfp8", "torch", "torchvision", "timm", "numpy", "papermill", "nbclient", "ipykernel", "scikit-learn", "torchao")

#: A patch of uncommitted changes beyond this many bytes is recorded by its digest alone.
_LARGEST_PATCH = 200_000


#: Kind of a run → the modules that decide its numbers besides.
_FURTHER_MODULES = {"run": (), "quantization": ("quantize",)}


def code_digest(kind: str = "run") -> str:
    """SHA-256, hexadecimal, over the names and contents of the modules that decide a run's numbers.

    Args:
        kind: of the run: ``run`` or ``quantization``.
    """
    digest = hashlib.sha256()
    for entry in (*DECIDING_MODULES, *_FURTHER_MODULES[kind]):
        place = PACKAGE / entry
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    """What git says in the project's checkout; None without git or outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=20, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def git_state() -> dict[str, Any]:
    """Commit, whether what runs differs from it (``dirty``), and the patch of these changes, compressed; None without git."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    # records themselves are new files in the tree: only what runs (package, notebooks, parameters) counts as dirty
    top = (_git("rev-parse", "--show-toplevel") or "").strip()
    places = [str(Path(top) / name) for name in ("vitfp8", "notebooks", "params") if (Path(top) / name).exists()]
    status = _git("status", "--porcelain", "--", *places) or ""
    state: dict[str, Any] = {"commit": commit.strip(), "dirty": bool(status.strip())}
    if state["dirty"]:
        patch = (_git("diff", "HEAD", "--", *places) or "").encode()
        state["patch_sha256"] = hashlib.sha256(patch).hexdigest()
        state["untracked"] = [line[3:] for line in status.splitlines() if line.startswith("??")]
        if len(patch) <= _LARGEST_PATCH:
            state["patch_zlib_base64"] = base64.b64encode(zlib.compress(patch, 9)).decode("ascii")
    return state


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
        "versions": _versions(),
        "python": platform.python_version(),
        "system": platform.platform(),
        **dict(zip(("processor", "cores"), processor_and_cores(), strict=True)),
        "logical_cores": psutil.cpu_count() or os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }
