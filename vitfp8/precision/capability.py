"""What a machine can multiply in, and how that is known: the device that a parameter means, native formats, TF32's switches.

Every answer comes with its reason in words, for the record and for whoever asks `vitfp8 check`.
"""

from __future__ import annotations

from typing import Any

import torch

from vitfp8.params import InputError
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


def resolve_device(name: str) -> torch.device:
    """The device that a parameter means.

    Args:
        name: ``auto`` (CUDA, else Apple's GPU, else the processor), ``cpu``, ``cuda`` or ``mps``.

    Raises:
        InputError: the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name]:
        there = ", ".join(key for key, has in available.items() if has)
        raise InputError(f"device: {name!r}: torch finds none on this machine; there is {there}, or take device: auto")
    return torch.device(name)


def _on_processor(format: str) -> tuple[bool, str]:
    """Whether this processor multiplies in the format, and how that is known. Honours oneDNN's own ISA limit."""
    if format == "fp32":
        return True, "every processor multiplies in FP32"
    if format == "tf32":
        return False, "processors have no TF32 products"
    has = torch.cpu.get_capabilities()
    onednn = torch.ops.mkldnn
    if format == "bf16":
        hardware = [name for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16") if has.get(name)]
        allowed = bool(onednn._is_mkldnn_bf16_supported())
    else:
        hardware = [name for name in ("avx512_fp16", "amx_fp16", "arm_fp16", "fp16") if has.get(name)]
        allowed = bool(onednn._is_mkldnn_fp16_supported())
    if hardware and allowed:
        return True, f"the processor has {format.upper()} products ({', '.join(hardware)})"
    if hardware:
        return False, f"{format.upper()} products are switched off in oneDNN (ONEDNN_MAX_CPU_ISA)"
    return False, f"this processor has no {format.upper()} products"


def _on_cuda(format: str, device: torch.device) -> tuple[bool, str]:
    """Whether this GPU multiplies in the format, by its compute capability."""
    major, minor = torch.cuda.get_device_capability(device)
    least = {"fp32": (0, 0), "fp16": (5, 3), "bf16": (8, 0), "tf32": (8, 0)}[format]
    has = (major, minor) >= least and (torch.version.hip is None or format != "tf32")
    return has, f"compute capability {major}.{minor}, {format.upper()} products need {least[0]}.{least[1]}"


def _on_mps(format: str) -> tuple[bool, str]:
    """Whether Apple's GPU multiplies in the format."""
    if format == "bf16":
        return torch.backends.mps.is_macos_or_newer(14, 0), "BF16 on Apple's GPU needs macOS 14"
    return format in (
        "fp32",
        "fp16",
    ), f"Apple's GPU {'has' if format in ('fp32', 'fp16') else 'has no'} {format.upper()} products"


def has_native_products(format: str, device: torch.device) -> tuple[bool, str]:
    """Whether `device` multiplies in `format`, and why.

    Args:
        format: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        device: where the model runs.

    Returns:
        (yes or no, the reason in words).
    """
    if device.type == "cuda":
        return _on_cuda(format, device)
    if device.type == "mps":
        return _on_mps(format)
    return _on_processor(format)


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
    device = torch.device(device)
    if device.type != "cuda":
        return False, f"{device.type} has no FP8 products"
    if torch.version.hip is not None:
        return False, "AMD GPUs are not supported natively (their FP8 formats may be FNUZ)"
    if name not in NATIVE_CAPABILITY:
        return False, f"{name} is emulated only: it has no native path here"
    least = NATIVE_CAPABILITY[name]
    capability = torch.cuda.get_device_capability(device)
    if capability < least:
        has, needs = (".".join(map(str, pair)) for pair in (capability, least))
        return False, f"compute capability {has}; {name} needs {needs}"
    if base_format == "fp32" and not RECIPES[name].one_scale:
        return False, f"{name} gives BF16 results natively, and the base precision is FP32"
    return True, f"compute capability {capability[0]}.{capability[1]} has FP8 products"


def set_tf32(on: bool) -> dict[str, Any]:
    """Set every switch that decides whether "FP32" products are FP32, and return them as the record keeps them.

    Args:
        on: whether TF32 is wanted.
    """
    value = "tf32" if on else "ieee"
    backends: Any = torch.backends  # torch's stubs do not know all of these switches
    switches = {
        "torch.backends.cuda.matmul.fp32_precision": backends.cuda.matmul,
        "torch.backends.cudnn.conv.fp32_precision": backends.cudnn.conv,
        "torch.backends.mkldnn.matmul.fp32_precision": backends.mkldnn.matmul,
        "torch.backends.mkldnn.conv.fp32_precision": backends.mkldnn.conv,
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
