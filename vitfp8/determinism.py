"""What decides whether a repeat gives the same bits: seeds, threads and switches, and the machine that computes."""

from __future__ import annotations

import os
from typing import Any

import torch

from vitfp8.params import RunParams


def set_determinism(params: RunParams, device: torch.device) -> dict[str, Any]:
    """Set seeds, threads and every switch that decides whether a repeat gives the same bits.

    Returns:
        What the record says of it: ``promised``, ``level`` in words.
    """
    if device.type == "cuda" and params.deterministic:
        # cuBLAS reads it when it starts: the runner sets it before the kernel, this is for plain papermill
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if params.threads is not None:
        torch.set_num_threads(params.threads)
    torch.manual_seed(params.seed)
    # on CUDA an operation that cannot repeat raises: with a warning alone attention would keep a backward pass that does not.
    # Apple's GPU has operations without a deterministic form, and nothing is promised there.
    torch.use_deterministic_algorithms(params.deterministic, warn_only=device.type not in ("cpu", "cuda"))
    # every new tensor would be filled with NaN first: launches that a GPU waits for, and 4 % of an FP8 step on a processor
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not params.deterministic
    if not params.deterministic:
        return {"promised": False, "level": "not asked for: deterministic is false"}
    if device.type == "cpu":
        return {"promised": True, "level": "bit-identical on a CPU with the same instruction set, threads and library versions"}
    if device.type == "cuda":
        return {"promised": False, "level": "deterministic algorithms only; unverified: the same GPU model should repeat"}
    return {"promised": False, "level": "the order of sums is not fixed on this device"}


def device_facts(device: torch.device) -> dict[str, Any]:
    """What only torch knows of the machine: device name, threads, instruction set."""
    facts: dict[str, Any] = {
        "device_type": device.type,
        "device": {"cpu": "CPU", "mps": "Apple GPU"}.get(device.type) or torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "onednn_isa_limit": os.environ.get("ONEDNN_MAX_CPU_ISA"),
    }
    if device.type == "cuda":
        facts["compute_capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts
