"""Whether a run's model is compiled, decided once before it trains and said in its record; and the compiling itself.

Eager mode starts each operation from Python, at some 5 to 10 µs each. A step of a small Vision Transformer in FP8 has thousands
of them, so that on a GPU its time would measure Python. Emulated arithmetic is never compiled as a whole: the compiler takes a
conversion to a low format and back for nothing, and would train in FP32 under another name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitfp8.errors import InputError
from vitfp8.params import RunParams
from vitfp8.precision import compiler_for

#: Set by the runner to the reason why a study runs eagerly although some of its runs could be compiled: times are comparable only
#: between runs that are all compiled or all eager. Read only where a run leaves the choice open.
STUDY_RUNS_EAGERLY = "VITFP8_STUDY_RUNS_EAGERLY"


@dataclass(frozen=True)
class Compilation:
    """What was decided.

    Attributes:
        on: whether the model is compiled.
        reason: why, or why not, in words.
        cuda_graphs: whether its kernels are recorded once and replayed.
    """

    on: bool = False
    reason: str = "torch_compile is false"
    cuda_graphs: bool = False

    def report(self) -> dict[str, Any]:
        """What the record says of it."""
        return {"compiled": self.on, "compile_reason": self.reason, "cuda_graphs": self.cuda_graphs}


def decide_compilation(
    params: RunParams, device: torch.device, backend: str, reason: str, environment: Mapping[str, str] = os.environ
) -> Compilation:
    """Whether a run's model is compiled.

    Args:
        backend: ``native`` or ``emulated``: who multiplies.

    Raises:
        InputError: compilation is demanded where it would change what is measured or cannot be done, or CUDA graphs without it.
    """
    asked = params.torch_compile
    can, lacks = compiler_for(device)
    if asked is True and backend == "emulated":
        # seen with torch 2.14: the compiler takes a conversion to FP16 and back for nothing, and trains in FP32
        raise InputError(
            f"torch_compile: true: {params.precision} is emulated here ({reason}), and the compiler removes the rounding; "
            "set torch_compile: auto"
        )
    if asked is True and not can:
        raise InputError(f"torch_compile: true: {lacks}, or set torch_compile: auto")
    if asked is True:
        found = Compilation(True, "torch_compile is true", params.cuda_graphs)
    elif asked is False:
        found = Compilation()
    elif device.type != "cuda":
        found = Compilation(False, "torch_compile is auto, which compiles on CUDA only")
    elif backend == "emulated":
        found = Compilation(False, f"torch_compile is auto, and {params.precision} is emulated here ({reason})")
    elif environment.get(STUDY_RUNS_EAGERLY):
        found = Compilation(False, f"torch_compile is auto, and {environment[STUDY_RUNS_EAGERLY]}")
    elif not can:
        found = Compilation(False, f"torch_compile is auto, and {lacks}")
    else:
        found = Compilation(True, "torch_compile is auto, and the device is CUDA", params.cuda_graphs)
    if params.cuda_graphs and not (found.on and device.type == "cuda"):
        why = found.reason if device.type == "cuda" else f"the run would train on {device.type}"
        raise InputError(f"cuda_graphs: true: needs a model that is compiled on CUDA, and {why}; set cuda_graphs: false")
    return found


def compile_model(model: nn.Module, compilation: Compilation) -> Callable[[Tensor], Tensor]:
    """The model as a function that is compiled on its first call, or the model itself. Names in its state stay the model's own.

    Inductor would keep values between two fused operations in FP32 where eager mode rounds them to BF16 or FP16; it is told to
    round them, so that a compiled run differs from an eager one by the order of sums only.
    """
    if not compilation.on:
        return model
    options: dict[str, Any] = {"emulate_precision_casts": True}
    if compilation.cuda_graphs:
        options["triton.cudagraphs"] = True
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False, options=options)
    return compiled


def timed(action: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    """Seconds that an action takes on a device."""
    synchronize()
    started = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - started
