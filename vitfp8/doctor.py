"""What this machine lacks, for which feature, and the command that installs it. Starts one kernel; changes nothing else.

Each check answers by itself and never raises: a machine on which much is missing is the one that needs the whole list. What
`vitfp8 check` asks of the machine, disk, memory, power, heat and code, is asked with the same functions.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vitfp8.catalog import DATASETS, EXPERIMENTS
from vitfp8.errors import InputError
from vitfp8.files import check_writable, size_words
from vitfp8.params import RunParams, validate
from vitfp8.reporting.pandoc import find_pandoc
from vitfp8.reporting.pdf import TEX_PROGRAMS, find_tex, has_typst
from vitfp8.run.locate import executed_folder, parameter_file, preset_file, report_folder, template
from vitfp8.run.plan import layers_for
from vitfp8.run.preflight import every_precision, examine_machine

#: Seconds that a kernel has to start and to run one cell.
KERNEL_SECONDS = 120.0

#: Oldest Python that the project runs on.
_PYTHON = (3, 11)

#: Modules without which the four runs and their report cannot be made → the name that pip knows.
_NEEDED: Mapping[str, str] = MappingProxyType(
    {
        "numpy": "numpy", "sklearn": "scikit-learn", "scipy": "scipy", "pandas": "pandas", "matplotlib": "matplotlib",
        "PIL": "pillow", "safetensors": "safetensors", "papermill": "papermill", "nbclient": "nbclient", "nbconvert": "nbconvert",
        "nbformat": "nbformat", "ipykernel": "ipykernel", "ipywidgets": "ipywidgets", "jupyterlab": "jupyterlab",
    }
)  # fmt: skip

#: Below this much shared memory PyTorch's workers run into its end: a container has 64 MB unless it is told otherwise.
_SMALL_SHM = 256 * 2**20

#: Program → Debian's package and Homebrew's.
_PACKAGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "compiler": ("apt install g++", "xcode-select --install"),
        "git": ("apt install git", "brew install git"),
        "tex": (
            "apt install texlive-xetex texlive-latex-extra texlive-fonts-recommended",
            "brew install tectonic",
        ),
    }
)


@dataclass(frozen=True)
class Line:
    """One thing that this machine has, or lacks.

    Attributes:
        level: ``ok``; ``note``: worth knowing; ``warning``: something may suffer; ``missing``: the feature is not to be had.
        subject: what was looked for.
        feature: what it is for.
        text: what was found, on one line.
        command: what installs it; None where nothing has to be installed.
        needed: whether four runs on the digits and their report need it.
    """

    level: str
    subject: str
    feature: str
    text: str
    command: str | None = None
    needed: bool = False


def examine() -> Iterator[Line]:
    """Everything that can be missing, one line after the other, as it is found."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:  # a check that fails in an unforeseen way says so; the others go on
            what = check.__name__.strip("_").replace("_", " ")
            why = " ".join(str(error).split())[:200]
            yield Line("warning", what, "", f"cannot be told ({type(error).__name__}: {why})")


def can_do_the_basic_study(lines: list[Line]) -> bool:
    """Whether nothing is missing that four runs on the digits and their report need.

    Args:
        lines: from `examine`.
    """
    return not any(line.level == "missing" and line.needed for line in lines)


def _package(what: str) -> str:
    """The command that installs a program on this system."""
    return _PACKAGES[what][sys.platform == "darwin"]


# --------------------------------------------------------------------------------------------------------------- python


def _python() -> Iterator[Line]:
    """The interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _PYTHON:
        yield Line("missing", "python", "everything", f"{found}, but 3.11 is the oldest", "install Python 3.11 or later", True)
    else:
        yield Line("ok", "python", "everything", f"{found} ({sys.executable})")


def _torch() -> Iterator[Line]:
    """What trains: really imported, since an installed library may not load."""
    for name, feature in (("torch", "training"), ("torchvision", "augmentation, downloads"), ("timm", "models")):
        try:
            module = importlib.import_module(name)
        except Exception as error:
            why = " ".join(str(error).split())[:150]
            yield Line("missing", name, feature, f"cannot be imported ({why})", f"pip install {name}", True)
        else:
            yield Line("ok", name, feature, str(getattr(module, "__version__", "")))


def _modules() -> Iterator[Line]:
    """The other packages that the basic study needs: one line where all are there."""
    missing = {module: name for module, name in _NEEDED.items() if not _has(module)}
    for module, name in missing.items():
        yield Line("missing", name, "runs and report", f"{module} is not installed", f"pip install {name}", True)
    if not missing:
        yield Line("ok", "packages", "runs and report", f"{len(_NEEDED)} further packages are installed")


def _has(module: str) -> bool:
    """Whether a module could be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(name: str) -> str:
    """Version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "version not known"


# ----------------------------------------------------------------------------------------------------------- arithmetic


def _precisions() -> Iterator[Line]:
    """The device, and who multiplies in each precision, and why."""
    if not all(_has(name) for name in ("torch", "timm")):
        yield Line("note", "arithmetic", "precisions", "cannot be told without torch and timm")
        return
    from vitfp8.precision.capability import devices_passed_over

    for reason in devices_passed_over("auto"):
        yield Line("warning", "device", "training", reason)
    for finding in every_precision():
        yield Line(finding.level, finding.subject, "precision", finding.text)


def _compiler() -> Iterator[Line]:
    """The C++ compiler of our own routines, and whether torch.compile finds what it needs on the device."""
    feature = "fast emulated FP8 and FP16 on processors"
    named = os.environ.get("CXX")
    found = next(filter(None, (shutil.which(name) for name in (named or "g++", "g++", "clang++"))), None)
    if found is None:
        yield Line("missing", "C++ compiler", feature, "neither g++ nor clang++ is on the PATH", _package("compiler"))
    else:
        yield Line("ok", "C++ compiler", feature, found)
    if _has("torch"):
        from vitfp8.precision.capability import compiler_for, resolve_device

        device = resolve_device("auto")
        compiles, why = compiler_for(device)
        yield Line("ok" if compiles else "note", "torch.compile", "torch_compile: true", f"on {device.type}: {why}")


# --------------------------------------------------------------------------------------------------------------- report


def _report() -> Iterator[Line]:
    """What the report is written with: pandoc, and TeX or Typst for the PDF."""
    try:
        yield Line("ok", "pandoc", "report", find_pandoc())
    except InputError:
        yield Line("missing", "pandoc", "report", "neither the wheel nor a program", "pip install pypandoc-binary", True)
    tex, typst = find_tex(), has_typst()
    if tex is not None:
        yield Line("ok", "TeX", "PDF through LaTeX", tex)
    else:
        text = f"neither {' nor '.join(TEX_PROGRAMS)} is on the PATH" + ("; the PDF is made with typst" if typst else "")
        yield Line("note" if typst else "missing", "TeX", "PDF through LaTeX", text, _package("tex"))
    if typst:
        yield Line("ok", "typst", "PDF without TeX", _version("typst"))
    else:
        text = "not installed" + ("" if tex else ", and without TeX nothing here makes a PDF")
        yield Line("missing", "typst", "PDF without TeX", text, "pip install typst", needed=tex is None)


# ------------------------------------------------------------------------------------------------------------- hardware


def _git() -> Iterator[Line]:
    """Git, which names the code of a run."""
    found = shutil.which("git")
    if found is None:
        yield Line("missing", "git", "commit in each record", "not on the PATH", _package("git"))
    else:
        yield Line("ok", "git", "commit in each record", found)


def _power_readings() -> Iterator[Line]:
    """What reads power and energy: each probe of the monitor is opened as a run would open it."""
    from vitfp8.monitor.apple import AppleEnergyProbe
    from vitfp8.monitor.machine import RAPLProbe
    from vitfp8.monitor.nvidia import NVMLProbe
    from vitfp8.monitor.powermetrics import PowermetricsProbe

    has_nvidia = bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia").exists()
    probes: list[tuple[str, str, Callable[[], Any], str | None]] = []
    if sys.platform == "darwin":
        probes.append(("zeus-apple-silicon", "energy on a Mac, no sudo", AppleEnergyProbe, "pip install 'vitfp8[apple]'"))
        probes.append(("powermetrics", "powermetrics: true on a Mac's GPU", lambda: PowermetricsProbe(1.0), "sudo -v"))
    else:
        driver = "install NVIDIA's driver" if has_nvidia else None
        driver = driver if _has("pynvml") else "pip install nvidia-ml-py"
        probes.append(("NVML", "power and energy of NVIDIA GPUs", lambda: NVMLProbe(0), driver))
        readable = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
        probes.append(("RAPL", "energy of the processor", RAPLProbe, readable if _has_rapl() else None))
    for subject, feature, make, command in probes:
        probe = make()
        try:
            probe.open()
        except Exception as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            yield Line("missing" if command else "note", subject, feature, text, command)
        else:
            probe.close()
            yield Line("ok", subject, feature, "readable")


def _has_rapl() -> bool:
    """Whether the kernel shows energy counters of the processor, readable or not."""
    return any(Path("/sys/class/powercap").glob("intel-rapl:[0-9]*"))


def _awake() -> Iterator[Line]:
    """What keeps a laptop awake."""
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    feature = "a laptop stays awake during a batch"
    if _has("wakepy"):
        yield Line("ok", "wakepy", feature, _version("wakepy"))
    else:
        level = "note" if battery is None else "missing"
        text = "not installed" + ("; this machine has no battery" if battery is None else "")
        yield Line(level, "wakepy", feature, text, "pip install 'vitfp8[awake]'")


# ----------------------------------------------------------------------------------------------------------------- data


def _data() -> Iterator[Line]:
    """Data sets: found, or where they were looked for."""
    from vitfp8.data.formats import default_folder, find_cifar, find_fashion_mnist, read_digits, system_folders

    try:
        yield Line("ok", "digits", "data set", f"{len(read_digits().labels)} images, with scikit-learn")
    except Exception as error:
        why = " ".join(str(error).split())[:150]
        yield Line("missing", "digits", "data set", f"cannot be read ({why})", "pip install scikit-learn", True)
    finders: dict[str, tuple[Callable[[], Path | None], list[Path], str]] = {
        "fashion_mnist": (
            lambda: find_fashion_mnist(None), [default_folder(), *system_folders()], "apt install dataset-fashion-mnist",
        ),
        "cifar10": (lambda: find_cifar("cifar10", None), [default_folder()], ""),
        "cifar100": (lambda: find_cifar("cifar100", None), [default_folder()], ""),
    }  # fmt: skip
    for name, (find, looked, apt) in finders.items():
        ways = "download: true gets it when a run needs it, or give data_dir"
        command = f"{ways}; {apt}" if apt and sys.platform == "linux" else ways
        try:
            found = find()
        except InputError as error:
            yield Line("missing", name, "data set", str(error), command)
            continue
        if found is None:
            places = ", ".join(map(str, looked))
            yield Line("missing", name, "data set", f"{DATASETS[name].label} is not in {places}", command)
        else:
            yield Line("ok", name, "data set", str(found))


# --------------------------------------------------------------------------------------------------------------- places


def _places() -> Iterator[Line]:
    """Folders that must be writable: results, temporary files, caches."""
    for folder, feature in ((executed_folder(), "lab records"), (report_folder(), "reports")):
        try:
            check_writable(folder)
        except InputError as error:
            yield Line("missing", f"{folder}/", feature, str(error), "work in a folder of your own", True)
        else:
            yield Line("ok", f"{folder}/", feature, f"can be written: {folder.resolve()}")
    try:
        with tempfile.TemporaryFile():
            yield Line("ok", "temporary files", "kernels, reports", tempfile.gettempdir())
    except OSError as error:
        yield Line("missing", "temporary files", "kernels, reports", str(error), "export TMPDIR=FOLDER", True)
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        check_writable(cache)
    except (InputError, RuntimeError, OSError) as error:
        text = f"compiled rounding and pretrained weights are not kept ({error})"
        yield Line("warning", "cache", "quick starts, pretrained weights", text, "export XDG_CACHE_HOME=FOLDER HOME=FOLDER")
    else:
        yield Line("ok", "cache", "quick starts, pretrained weights", f"can be written: {cache}")


def _shared_memory() -> Iterator[Line]:
    """Shared memory, through which workers hand over images."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return
    size = shutil.disk_usage(place).total
    feature = "workers of image folders"
    if size < _SMALL_SHM:
        text = f"{size_words(size)} is little: set workers: 0, or give the container more"
        yield Line("warning", "/dev/shm", feature, text, "docker run --shm-size=1g")
    else:
        yield Line("ok", "/dev/shm", feature, size_words(size))


def _files() -> Iterator[Line]:
    """Notebooks and parameter files, wherever they are installed."""
    try:
        found = [template(name) for name in dict.fromkeys([row.notebook for row in EXPERIMENTS.values()] + ["analysis.ipynb"])]
        found += [parameter_file(name) for name in EXPERIMENTS]
        found.append(preset_file("digits"))
    except InputError as error:
        yield Line(
            "missing", "notebooks, params", "runs and report", str(error), "pip install vitfp8, or work in a checkout", True
        )
    else:
        place = found[0].resolve().parent.parent
        yield Line("ok", "notebooks, params", "runs and report", f"{len(found)} files, notebooks in {place}")


def _machine() -> Iterator[Line]:
    """Disk, memory, power, heat, code and backups, as `vitfp8 check` sees them for the four runs on the digits."""
    runs: list[RunParams] = []
    if all(_has(name) for name in ("torch", "timm")):
        try:
            runs = [validate(layers_for(name, "digits", ())) for name, row in EXPERIMENTS.items() if row.core]
        except InputError:
            runs = []  # the files are not found: another line says so
    features = {"power": "long batches", "heat": "timings", "code": "commit in each record", "backup": "results"}
    for finding in examine_machine(runs):
        if finding.subject in ("arithmetic", "device"):
            continue  # every precision has a line of its own, and so has a GPU that is passed over
        refused = finding.level == "refusal"
        feature = features.get(finding.subject, "the four runs on the digits")
        yield Line("missing" if refused else finding.level, finding.subject, feature, finding.text, needed=refused)


def _terminal() -> Iterator[Line]:
    """Whether the terminal can show what the commands print."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        "─│┌…–°×".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        text = f"{encoding} has no line drawing and no degree sign: tables are garbled"
        yield Line("warning", "terminal", "tables of commands", text, "export LANG=C.UTF-8 PYTHONIOENCODING=utf-8")
    else:
        yield Line("ok", "terminal", "tables of commands", encoding)


def _kernel() -> Iterator[Line]:
    """Whether a kernel starts and runs a cell, by the code that executes runs; in a process of its own, which has an end."""
    feature = "executing notebooks"
    if not (_has("papermill") and _has("ipykernel")):
        yield Line("missing", "kernel", feature, "papermill or ipykernel is missing", "pip install papermill ipykernel", True)
        return
    cell: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "id": "one",
        "metadata": {},
        "outputs": [],
        "source": "1 + 1",
    }
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    code = (
        "import sys; from pathlib import Path; from vitfp8.run.execute import execute\n"
        "sys.exit(execute(Path(sys.argv[1]), Path(sys.argv[2]), {}).error)"
    )
    with tempfile.TemporaryDirectory(prefix="vitfp8-doctor-") as folder:
        source = Path(folder) / "one.ipynb"
        source.write_text(json.dumps(notebook), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*sys.path]))}
        try:
            done = subprocess.run(
                [sys.executable, "-c", code, str(source), str(source.with_name("out.ipynb"))],
                capture_output=True, text=True, errors="replace", timeout=KERNEL_SECONDS, env=environment, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            text = f"has not run a cell within {KERNEL_SECONDS:.0f} s"
            yield Line("missing", "kernel", feature, text, "pip install --force-reinstall ipykernel", True)
            return
    if done.returncode:
        why = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), f"status {done.returncode}")
        yield Line("missing", "kernel", feature, f"does not start: {why[:300]}", "pip install --force-reinstall ipykernel", True)
    else:
        yield Line("ok", "kernel", feature, "starts, and runs a cell")


#: Every check, in the order of the table.
CHECKS: tuple[Callable[[], Iterator[Line]], ...] = (
    _python, _torch, _modules, _files, _kernel, _precisions, _compiler, _report, _git, _power_readings, _awake,
    _data, _places, _machine, _shared_memory, _terminal,
)  # fmt: skip
