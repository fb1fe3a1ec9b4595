"""What a machine can multiply in, and how that is known: the device that a parameter means, native formats, TF32's switches.

Every answer comes with its reason in words, for the record and for `vitfp8 check`. A `Machine` holds the facts that
decide, and `this_machine` reads them. What follows from them (`native_products`, `fp8_products`, `has_kernels`) asks nothing
else, so that a test and docs/hardware.md can describe a machine that is not there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitfp8.errors import InputError
from vitfp8.precision.recipes import RECIPES, recipe_named

#: Recipe → the least compute capability of an NVIDIA GPU on which ``torch._scaled_mm`` runs it.
NATIVE_CAPABILITY: dict[str, tuple[int, int]] = {
    "tensorwise": (8, 9),
    "delayed": (8, 9),
    "rowwise": (8, 9),
    "rowwise_with_gw_hp": (8, 9),
    "mxfp8_floor": (10, 0),
    "mxfp8_rceil": (10, 0),
}

#: Environment variable that says which device ``device: auto`` means: ``cpu``, ``cuda`` or ``mps``.
DEVICE_VARIABLE = "VITFP8_DEVICE"

#: Kinds of devices in the order in which ``device: auto`` takes them.
_KINDS = ("cuda", "mps", "cpu")

#: Format → names in `torch.cpu.get_capabilities` of instructions that multiply in it: x86 first, then Arm.
_INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}

#: Format → the least compute capability of an NVIDIA GPU that multiplies in it.
_NVIDIA: Mapping[str, tuple[int, int]] = {"fp32": (0, 0), "fp16": (5, 3), "bf16": (8, 0), "tf32": (8, 0)}

#: AMD's architectures whose matrix units take BF16: CDNA from MI100 on by MFMA, RDNA 3 and 4 by WMMA.
_AMD_BF16 = re.compile(r"gfx(908|90a|94[0-9a-f]|950|1[12][0-9a-f]{2})")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts of one device that decide what it multiplies in.

    Attributes:
        device: ``cpu``, ``cuda`` (AMD's GPUs too) or ``mps``.
        instructions: what torch finds in the processor: the names in `torch.cpu.get_capabilities` that are true.
        onednn: formats of ``bf16`` and ``fp16`` that oneDNN takes here; None: this torch has no such operators, as on macOS.
        isa_limit: ``ONEDNN_MAX_CPU_ISA``, which may forbid oneDNN what the processor has; None: not set.
        compute_capability: of an NVIDIA GPU; None elsewhere.
        built_for: architectures that this torch has CUDA kernels for, e.g. ``sm_80`` or ``compute_120`` (PTX); empty: not known.
        amd: architecture of an AMD GPU, e.g. ``gfx942``; None elsewhere.
        macos14: whether this is macOS 14 or later.
    """

    device: str
    instructions: frozenset[str] = frozenset()
    onednn: frozenset[str] | None = None
    isa_limit: str | None = None
    compute_capability: tuple[int, int] | None = None
    built_for: tuple[str, ...] = ()
    amd: str | None = None
    macos14: bool = False


def this_machine(device: torch.device | str) -> Machine:
    """The facts of a device of this machine, as torch tells them."""
    device = torch.device(device)
    if device.type == "mps":
        mps = torch.backends.mps
        return Machine(device="mps", macos14=mps.is_built() and mps.is_macos_or_newer(14, 0))
    if device.type == "cuda" and torch.version.hip is not None:
        return Machine(device="cuda", amd=str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0])
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return Machine(device="cuda", compute_capability=capability, built_for=tuple(torch.cuda.get_arch_list()))
    return Machine(
        device=device.type,  # the meta device answers as the processor does
        instructions=frozenset(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        onednn=_onednn_formats(),
        isa_limit=os.environ.get("ONEDNN_MAX_CPU_ISA"),
    )


def _onednn_formats() -> frozenset[str] | None:
    """Formats that oneDNN takes on this processor; None where this torch has no operator that tells."""
    found = set()
    for format in _INSTRUCTIONS:
        try:
            if getattr(torch.ops.mkldnn, f"_is_mkldnn_{format}_supported")():
                found.add(format)
        except (AttributeError, RuntimeError):  # a build without oneDNN
            return None
    return frozenset(found)


# ----------------------------------------------------------------------------------------------------------- the device


def resolve_device(name: str) -> torch.device:
    """The device that a parameter means.

    Args:
        name: ``auto`` (``VITFP8_DEVICE`` where that is set, else the first of CUDA, Apple's GPU and the processor that torch can
            compute on), ``cpu``, ``cuda`` or ``mps``.

    Raises:
        InputError: the machine has no such device, or torch cannot compute on it.
    """
    key = "device"
    if name == "auto" and (asked := os.environ.get(DEVICE_VARIABLE, "auto")) not in ("", "auto"):
        key, name = DEVICE_VARIABLE, asked
        if name not in _KINDS:
            raise InputError(f"{key}: {name!r} is not a device; set it to cpu, cuda, mps or auto, or unset it")
    if name == "auto":
        return torch.device(next(kind for kind in _KINDS if _usable(kind)[0]))
    usable, reason = _usable(name)
    if not usable:
        there = ", ".join(kind for kind in reversed(_KINDS) if kind != name and _usable(kind)[0])
        way_out = "take device: auto" if key == "device" else f"unset {key}"
        raise InputError(f"{key}: {name!r}: {reason}; there is {there}, or {way_out}")
    return torch.device(name)


def devices_passed_over(name: str) -> list[str]:
    """Why ``device: auto`` does not take a device that torch announces, one line each; nothing where it takes the first."""
    if name != "auto" or os.environ.get(DEVICE_VARIABLE, "auto") not in ("", "auto"):
        return []
    taken = resolve_device("auto").type
    before = [kind for kind in _KINDS[: _KINDS.index(taken)] if _announced(kind)]
    return [f"device: auto takes {taken}, not {kind}: {_usable(kind)[1]}" for kind in before]


def _announced(kind: str) -> bool:
    """Whether torch says that there is such a device."""
    if kind == "cuda":
        return torch.cuda.is_available()
    return kind == "cpu" or torch.backends.mps.is_available()


def _usable(kind: str) -> tuple[bool, str]:
    """Whether torch can compute on a kind of device here, and why not."""
    if not _announced(kind):
        return False, "torch finds none on this machine"
    if kind == "cuda":
        return has_kernels(this_machine(kind))
    if kind == "mps":
        try:  # a virtual machine may announce Apple's GPU and have no memory on it
            torch.zeros(1, device=kind)
        except (RuntimeError, TypeError) as error:
            return False, f"it is announced and cannot hold a tensor ({' '.join(str(error).split())[:150]})"
    return True, ""


def has_kernels(machine: Machine) -> tuple[bool, str]:
    """Whether this torch was built for an NVIDIA GPU, and why not. Of other devices, and where it is not known, yes.

    Args:
        machine: its facts. Compiled code runs on its own and on later GPUs of the same major number, PTX on every later GPU.
    """
    if machine.compute_capability is None or not machine.built_for:
        return True, ""
    for built in machine.built_for:
        kind, _, version = built.partition("_")
        found = re.fullmatch(r"(\d+)(\d)([a-z]?)", version)
        if found is None:
            continue
        has, only_this = (int(found[1]), int(found[2])), found[3] == "a"
        newer = has <= machine.compute_capability
        same_major = has[0] == machine.compute_capability[0]
        if has == machine.compute_capability or (newer and not only_this and (same_major or kind == "compute")):
            return True, ""
    words = ".".join(map(str, machine.compute_capability))
    return False, (
        f"compute capability {words} is not among those that this PyTorch has kernels for ({', '.join(machine.built_for)}); "
        "install a PyTorch build for another CUDA version that has them"
    )


# -------------------------------------------------------------------------------------------------------------- formats


def has_native_products(format: str, device: torch.device) -> tuple[bool, str]:
    """Whether `device` multiplies in `format`, and why.

    Args:
        format: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.

    Returns:
        (yes or no, the reason in words).
    """
    return native_products(this_machine(device), format)


def native_products(machine: Machine, format: str) -> tuple[bool, str]:
    """Whether a machine multiplies in a format, and why.

    Args:
        format: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.

    Returns:
        (yes or no, the reason in words).
    """
    if machine.amd is not None:
        return _on_amd(format, machine.amd)
    if machine.device == "cuda":
        assert machine.compute_capability is not None
        has, needs = (".".join(map(str, pair)) for pair in (machine.compute_capability, _NVIDIA[format]))
        return machine.compute_capability >= _NVIDIA[format], (
            f"compute capability {has}, {format.upper()} products need {needs}"
        )
    if machine.device == "mps":
        return _on_mps(format, machine.macos14)
    return _on_processor(format, machine)


def _on_processor(format: str, machine: Machine) -> tuple[bool, str]:
    """Whether a processor multiplies in the format. Honours oneDNN's own limit of instruction sets."""
    if format == "fp32":
        return True, "every processor multiplies in FP32"
    if format == "tf32":
        return False, "processors have no TF32 products"
    label = format.upper()
    hardware = [name for name in _INSTRUCTIONS[format] if name in machine.instructions]
    if not hardware:
        return False, f"this processor has no {label} products"
    has = f"the processor has {label} products ({', '.join(hardware)})"
    if machine.onednn is None:
        return False, f"{has}, and this PyTorch has no oneDNN to use them"
    if format in machine.onednn:
        return True, has
    if machine.isa_limit:
        return False, f"{label} products are switched off in oneDNN (ONEDNN_MAX_CPU_ISA)"
    return False, f"{has}, and oneDNN does not use them"


def _on_amd(format: str, architecture: str) -> tuple[bool, str]:
    """Whether an AMD GPU multiplies in the format, by its architecture."""
    if format == "tf32":
        return False, f"{architecture}: TF32 is asked of NVIDIA's GPUs only"
    if format == "bf16":
        has = _AMD_BF16.fullmatch(architecture) is not None
        return has, f"{architecture} has {'' if has else 'no '}matrix products in BF16"
    return True, f"{architecture} has {format.upper()} products"


def _on_mps(format: str, macos14: bool) -> tuple[bool, str]:
    """Whether Apple's GPU multiplies in the format."""
    if format == "tf32":
        return False, "Apple's GPU has no TF32 products"
    if format == "bf16" and not macos14:
        return False, "BF16 on Apple's GPU needs macOS 14"
    return True, f"Apple's GPU has {format.upper()} products"


def fp8_products(machine: Machine, recipe: str) -> tuple[bool, str]:
    """Whether a machine multiplies in FP8 under a recipe, and why.

    Args:
        recipe: a key of `vitfp8.precision.recipes.RECIPES`.

    Returns:
        (yes or no, the reason in words).

    Raises:
        InputError: the recipe is unknown.
    """
    name = recipe_named(recipe).name
    if machine.amd is not None:
        return False, f"{machine.amd}: FP8 runs natively on NVIDIA's GPUs only (AMD's formats may be FNUZ)"
    if machine.device != "cuda":
        return False, f"{machine.device} has no FP8 products"
    if name not in NATIVE_CAPABILITY:
        return False, f"{name} is emulated only: it has no native path here"
    assert machine.compute_capability is not None
    has, needs = (".".join(map(str, pair)) for pair in (machine.compute_capability, NATIVE_CAPABILITY[name]))
    if machine.compute_capability < NATIVE_CAPABILITY[name]:
        return False, f"compute capability {has}; {name} needs {needs}"
    return True, f"compute capability {has} has FP8 products"


def native_support(recipe: str, device: torch.device | str, *, base_format: str = "bf16") -> tuple[bool, str]:
    """Whether linear layers, of any size, can run a recipe on FP8 hardware, and why not.

    Args:
        recipe: a key of `vitfp8.precision.recipes.RECIPES`.
        device: where the layers run. Asked only if it is a CUDA device.
        base_format: ``bf16`` or ``fp32``; recipes with more than one scale per tensor give BF16 results only.

    Returns:
        (yes or no, the reason in words).

    Raises:
        InputError: the recipe is unknown.
    """
    name = recipe_named(recipe).name
    has, reason = fp8_products(this_machine(device), name)
    if not has:
        return False, reason
    if base_format == "fp32" and not RECIPES[name].one_scale:
        return False, f"{name} gives BF16 results natively, and the base precision is FP32"
    return True, reason


# ------------------------------------------------------------------------------------------------------------- switches


def set_tf32(on: bool) -> dict[str, Any]:
    """Set every switch that decides whether "FP32" products are FP32, and return them as the record keeps them.

    torch has an older and a newer set of switches, and reading the older ones raises where the two disagree; compilers read them.
    So both are set, the older ones first.

    Args:
        on: whether TF32 is wanted.
    """
    value = "tf32" if on else "ieee"
    backends: Any = torch.backends  # torch's stubs do not know all of these switches
    torch.set_float32_matmul_precision("high" if on else "highest")
    backends.cudnn.allow_tf32 = on
    switches = {
        "torch.backends.cuda.matmul.fp32_precision": backends.cuda.matmul,
        "torch.backends.cudnn.conv.fp32_precision": backends.cudnn.conv,
        "torch.backends.cudnn.rnn.fp32_precision": backends.cudnn.rnn,
        "torch.backends.mkldnn.matmul.fp32_precision": backends.mkldnn.matmul,
        "torch.backends.mkldnn.conv.fp32_precision": backends.mkldnn.conv,
        "torch.backends.mkldnn.rnn.fp32_precision": backends.mkldnn.rnn,
    }
    for name, switch in switches.items():
        # oneDNN's "tf32" would mean something else on a processor: there FP32 stays FP32 and TF32 is emulated
        switch.fp32_precision = value if "cud" in name else "ieee"
    # sums of half and BF16 products may otherwise be kept in the low format on the way: accumulation is FP32 here
    backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return {name: switch.fp32_precision for name, switch in switches.items()} | {
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": False,
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction": False,
    }


# ------------------------------------------------------------------------------------------------------------- compiler


def compiler_for(device: torch.device | str) -> tuple[bool, str]:
    """Whether ``torch.compile`` can work on a device, and why not. Compiles nothing.

    Returns:
        (yes or no, what was found, or what is missing and installs it).
    """
    kind = torch.device(device).type
    if kind == "mps":
        return True, "torch compiles for Apple's GPU by itself"
    if kind == "cuda":
        found = _program(os.environ.get("CC"), "gcc", "clang")
        missing = "Triton needs a C compiler; install gcc or set CC"
    else:  # torch looks for one name, not for whichever compiler is there
        found = _program(os.environ.get("CXX"), "clang++" if sys.platform == "darwin" else "g++")
        missing = "needs a C++ compiler; install g++ or set CXX"
    if found is None:
        return False, missing
    headers = Path(sysconfig.get_path("include"))
    if sys.platform != "darwin" and not (headers / "Python.h").exists():  # a Mac's framework keeps them elsewhere
        return False, f"needs Python's headers, and {headers} has none; install python3-dev"
    if kind == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            return False, "Triton is not installed or does not know this GPU; pip install triton"
    return True, f"compiles with {found}"


def _program(named: str | None, *usual: str) -> str | None:
    """The compiler that an environment variable names, maybe with arguments, else the first usual one that is there."""
    candidates = shlex.split(named)[:1] if named else usual
    return next(filter(None, map(shutil.which, candidates)), None)
