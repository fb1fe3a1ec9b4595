"""Quantisation in one pass over memory: a small C++ routine for processors, compiled once on the user's machine, or nothing.

Emulated FP8 spends its extra time on quantisation: find the amax, scale, round to the grid, store. Eager PyTorch walks over the
tensor once for each of about eight operations, and a cast *from* an FP8 dtype is slower still. The routine below does the same
float32 arithmetic in one or two passes with OpenMP, in PyTorch's own thread pool.

It is an accelerator and decides no number: `vitfp8.precision.quantizer` holds the same arithmetic as eager PyTorch, which runs
wherever `load` returns None (no compiler, another device, ``VITFP8_CPU_QUANTIZER=0``), and the tests hold both to the same bits.
That is why the flags forbid contraction to fused multiply-adds and anything that reassociates.

The shared library is kept in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``, ``vitfp8/``) under a digest of
its source, the compiler and the processor, so that machines which share a home folder never load each other's code.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from vitfp8.precision.formats import NumberFormat

SWITCH = "VITFP8_CPU_QUANTIZER"
"""Environment variable; ``0`` keeps quantisation in eager PyTorch."""

#: The C++ source; its comments and layout are not part of the code digest.
_SOURCE = Path(__file__).with_suffix(".cpp")

# Strict IEEE arithmetic: no contraction, no reassociation. The rest lets a comparison be a vector instruction.
_FLAGS = ["-O3", "-std=c++14", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
_RULES = {"amax": 0, "amax_pow2": 1, "mx_floor": 2, "mx_rceil": 3}
_FLOAT_BITS = 0x7F800000
_SMALL = 16_384  # elements below which a second thread costs more than it saves


class CpuQuantizer:
    """The compiled routines; see `load`.

    Attributes:
        description: the compiler, and whether it is threaded; for a record.
    """

    def __init__(self, library: ctypes.CDLL, description: str) -> None:
        pointer, integer, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self.description = description
        self._one_scale = library.quantize_one_scale
        self._one_scale.restype = real
        self._one_scale.argtypes = [
            ctypes.c_int, pointer, pointer, integer, real, real, real, real, pointer, ctypes.c_int,
        ]  # fmt: skip
        self._blocks = library.quantize_blocks
        self._blocks.restype = None
        self._blocks.argtypes = [
            ctypes.c_int, ctypes.c_int, pointer, pointer, integer, integer, integer, integer,
            real, real, real, ctypes.c_int, pointer, ctypes.c_int,
        ]  # fmt: skip
        self._round = library.round_values
        self._round.restype = None
        self._round.argtypes = [ctypes.c_int, pointer, pointer, integer, ctypes.c_int]

    def round(self, tensor: Tensor, dtype: torch.dtype, *, in_place: bool = False) -> Tensor:
        """What ``tensor.to(dtype).float()`` gives, in one pass over memory instead of two.

        Args:
            tensor: contiguous float32 on the CPU.
            dtype: ``torch.float16`` or ``torch.bfloat16``.
            in_place: overwrite `tensor`; autograd is told of it.

        Returns:
            The rounded tensor; `tensor` itself where it was overwritten.
        """
        out = tensor if in_place else torch.empty_like(tensor)
        self._round(int(dtype == torch.float16), tensor.data_ptr(), out.data_ptr(), tensor.numel(), _threads(tensor))
        if in_place and not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
        return out

    @staticmethod
    def takes(tensor: Tensor, container: torch.dtype) -> bool:
        """Whether a tensor and the dtype of its result are among those that the routines know."""
        known = (torch.float32, torch.bfloat16)
        return tensor.device.type == "cpu" and tensor.dtype in known and container in known

    def one_scale(
        self, tensor: Tensor, number_format: NumberFormat, container: torch.dtype, scale: float | None
    ) -> tuple[Tensor, float, float]:
        """Quantise with one scale: the given one, or the largest number ÷ amax.

        Args:
            tensor: contiguous, float32 or bfloat16.
            container: dtype of the result, float32 or bfloat16.
            scale: the scale to use; None computes it from the amax.

        Returns:
            (values on the grid, scale, amax of the tensor: Inf or NaN where it has such).
        """
        out = torch.empty_like(tensor, dtype=container)
        bits = ctypes.c_uint32(0)
        used = self._one_scale(
            _types(tensor, container), tensor.data_ptr(), out.data_ptr(), tensor.numel(),
            number_format.largest, number_format.smallest_normal, number_format.shift,
            0.0 if scale is None else scale, ctypes.byref(bits), _threads(tensor),
        )  # fmt: skip
        return out, used, ctypes.c_float.from_buffer(bits).value

    def blocks(
        self, tensor: Tensor, number_format: NumberFormat, container: torch.dtype, block: tuple[int, int], rule: str
    ) -> tuple[Tensor, Tensor]:
        """Quantise and dequantise with one power-of-two scale per block.

        Args:
            tensor: contiguous matrix, float32 or bfloat16.
            rule: ``amax_pow2``, ``mx_floor`` or ``mx_rceil``.

        Returns:
            (dequantised values, float32 scales of shape [blocks down, blocks across]).
        """
        rows, columns = tensor.shape
        out = torch.empty_like(tensor, dtype=container)
        scales = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
        self._blocks(
            _types(tensor, container), _RULES[rule], tensor.data_ptr(), out.data_ptr(), rows, columns, block[0], block[1],
            number_format.largest, number_format.smallest_normal, number_format.shift, number_format.largest_exponent,
            scales.data_ptr(), _threads(tensor),
        )  # fmt: skip
        return out, scales


def _types(tensor: Tensor, container: torch.dtype) -> int:
    return int(tensor.dtype == torch.bfloat16) + 2 * int(container == torch.bfloat16)


def _threads(tensor: Tensor) -> int:
    return max(1, min(torch.get_num_threads(), tensor.numel() // _SMALL))


@functools.cache
def load() -> CpuQuantizer | None:
    """The compiled routines, built on the first call on a machine; None where they cannot be had or are switched off.

    Never raises: without them everything works, slower.
    """
    if os.environ.get(SWITCH, "1") == "0":
        return None
    compiler = next(filter(None, (shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))), None)
    if compiler is None:
        return None
    # PyTorch's Linux builds bring an OpenMP library into the process; left unlinked, the routine finds that one and shares
    # its threads. Without one, loading fails, and a single thread does the work.
    for openmp in (["-fopenmp"], []) if sys.platform == "linux" else ([],):
        try:
            path, description = _built(compiler, openmp)
            quantizer = CpuQuantizer(ctypes.CDLL(str(path)), description)
            _check(quantizer)
        except (OSError, subprocess.SubprocessError, AttributeError, RuntimeError):
            continue
        return quantizer
    return None


def _built(compiler: str, openmp: list[str]) -> tuple[Path, str]:
    """The shared library, compiled now if the cache does not hold it; (path, compiler and flags)."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    version = version.splitlines()[0]
    text = _SOURCE.read_text(encoding="utf-8")
    key = "\n".join([text, version, *_FLAGS, *openmp, platform.machine(), _processor()])
    folder = _cache_folder()
    path = folder / f"quantizer-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
    if path.exists():
        return path, f"{version}{' with OpenMP' if openmp else ''}"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source, built = Path(scratch) / "quantizer.cpp", Path(scratch) / "quantizer.so"
        source.write_text(text, encoding="utf-8")
        for native in (["-march=native"], []):
            object_file = Path(scratch) / "quantizer.o"
            steps = [
                [compiler, *_FLAGS, *native, *openmp, "-c", str(source), "-o", str(object_file)],
                [compiler, "-shared", str(object_file), "-o", str(built)],
            ]
            if all(subprocess.run(step, capture_output=True, timeout=120).returncode == 0 for step in steps):
                built.replace(path)  # whole or not at all, whoever else is compiling
                return path, f"{version}{' with OpenMP' if openmp else ''}"
    raise RuntimeError("the quantiser does not compile here")


def _cache_folder() -> Path:
    try:  # a user without an entry in the system's list has no home
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitfp8"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    folder = Path(tempfile.mkdtemp(prefix="vitfp8-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _processor() -> str:
    """What decides the instruction set: the model and its flags where Linux tells, else the platform's word."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "model name", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _check(quantizer: CpuQuantizer) -> None:
    """Refuse a miscompiled library: ties, subnormals, saturation and NaN on one small tensor."""
    from vitfp8.precision.formats import FORMATS

    row = FORMATS["e4m3"]
    x = torch.tensor([17.0, 19.0, 2.0**-10, 3 * 2.0**-10, -464.0, 1e9, float("nan"), 0.3])
    values, _, amax = quantizer.one_scale(x, row, torch.float32, 1.0)
    expected = torch.tensor([16.0, 20.0, 0.0, 2.0**-8, -448.0, 448.0, float("nan"), 0.3125])
    if not (torch.equal(values.nan_to_num(-1.0), expected.nan_to_num(-1.0)) and amax != amax):
        raise RuntimeError("the compiled quantiser rounds wrongly")
    edges = torch.tensor([65519.9, 65520.0, -0.0, 2.0**-25, 1.5 * 2.0**-24, 2049.0, float("inf"), float("nan"), 3e38, 257.0])
    for dtype in (torch.float16, torch.bfloat16):
        rounded, cast = quantizer.round(edges, dtype), edges.to(dtype).float()
        if not torch.equal(rounded.nan_to_num(-1.0), cast.nan_to_num(-1.0)) or rounded[2].signbit() != cast[2].signbit():
            raise RuntimeError("the compiled rounding to 16 bits is wrong")
