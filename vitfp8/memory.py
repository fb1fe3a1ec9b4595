"""Memory of a training: freed blocks that are kept, peaks of a GPU's allocator, and the error line when memory runs out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from vitfp8.errors import InputError
from vitfp8.params import RunParams

#: What libraries below torch say when they get no memory; torch's own words and class are asked for first.
_OUT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", "HIPBLAS_STATUS_ALLOC_FAILED", "miopenStatusAllocFailed",
)  # fmt: skip


def keep_freed_memory() -> None:
    """Tell glibc to reuse large freed blocks instead of returning them to the system; elsewhere nothing happens.

    A training step allocates the same large tensors again and again. Fetched anew each time, their pages cost emulated FP16 about
    a fifth of its speed. Decides no number.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        library.mallopt(mmap_threshold, 2**30)
        library.mallopt(trim_threshold, 2**31 - 1)


def start_peaks(device: torch.device) -> None:
    """Begin to measure the peaks of a CUDA device anew; elsewhere nothing happens."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> dict[str, int]:
    """Most bytes since `start_peaks` that tensors took, and that torch's allocator held; empty where torch does not count them.

    The driver's own figure (NVML's) counts other processes, the context and freed blocks too, and cannot tell formats apart.
    """
    if device.type != "cuda":
        return {}
    return {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has a class for CUDA; other devices and libraries have only words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def explain_out_of_memory(params: RunParams, device: torch.device) -> Iterator[None]:
    """Turn an error that says that memory ran out into one line that names the size to try.

    Raises:
        InputError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(_advice(params, device)) from None


def _advice(params: RunParams, device: torch.device) -> str:
    """The size to try after memory ran out."""
    size = params.micro_batch_size or params.batch_size
    smaller = next((n for n in range(size // 2, 0, -1) if params.batch_size % n == 0), None)
    if smaller is None:
        return f"micro_batch_size: {size}: the {device.type} is out of memory with single images; take a smaller model"
    return f"micro_batch_size: {size}: the {device.type} is out of memory; try micro_batch_size: {smaller}"
