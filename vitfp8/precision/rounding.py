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

_SOURCE = r"""
#include <cstdint>
#include <cstring>
#include <vector>

typedef uint16_t bf16;
static inline float as_float(uint32_t bits) { float f; std::memcpy(&f, &bits, 4); return f; }
static inline uint32_t as_bits(float f) { uint32_t bits; std::memcpy(&bits, &f, 4); return bits; }
static inline float load(const float* p) { return *p; }
static inline float load(const bf16* p) { return as_float(uint32_t(*p) << 16); }
static inline void store(float* p, float v) { *p = v; }
static inline void store(bf16* p, float v) {  // to nearest even; exact, but for dequantised values below 2^-126
  uint32_t bits = as_bits(v);
  uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  *p = bf16((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
}
static const uint32_t MAGNITUDE = 0x7FFFFFFFu, EXPONENT = 0x7F800000u;

struct Grid { float largest, smallest_normal, shift; int32_t largest_exponent; };

// Clamp, then round to the grid: (y + p) - p with p = 1.5 * 2^k from y's exponent. NaN stays NaN.
static inline float round_to_grid(float y, Grid g) {
  y = y > g.largest ? g.largest : y;
  y = y < -g.largest ? -g.largest : y;
  uint32_t power = as_bits(y) & EXPONENT, floor = as_bits(g.smallest_normal);
  float p = as_float(power > floor ? power : floor) * g.shift;
  return (y + p) - p;
}

enum Rule { RATIO = 0, RATIO_POWER_OF_TWO = 1, MX_FLOOR = 2, MX_RCEIL = 3 };

// The factor that takes an amax (given as bits) to the top of the grid; 1 where the amax is zero or not finite.
template <int RULE>
static inline float scale_of(uint32_t amax, Grid g) {
  const bool finite = amax < EXPONENT;
  if (RULE == RATIO || RULE == RATIO_POWER_OF_TWO) {
    float scale = g.largest / as_float(amax);
    uint32_t bits = as_bits(scale);
    bits = bits < EXPONENT ? bits : 0x7F7FFFFFu;
    if (RULE == RATIO_POWER_OF_TWO) bits &= EXPONENT;
    return finite && amax > 0 ? as_float(bits) : 1.0f;
  }
  int32_t byte;
  if (RULE == MX_FLOOR) {
    byte = int32_t(amax >> 23) - g.largest_exponent;
    byte = byte < 0 ? 0 : byte;
  } else {
    uint32_t bits = as_bits(as_float(amax) / g.largest);
    byte = int32_t(bits >> 23) + int32_t((bits & 0x7FFFFFu) > (bits < 0x800000u ? 0x400000u : 0u));
  }
  return finite ? as_float(uint32_t(254 - byte) << 23) : 1.0f;
}

template <typename In>
static inline uint32_t amax_of(const In* x, int64_t n) {
  uint32_t amax = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t m = as_bits(load(x + i)) & MAGNITUDE;
    amax = m > amax ? m : amax;
  }
  return amax;
}

static inline void chunk(int64_t n, int part, int parts, int64_t align, int64_t* begin, int64_t* end) {
  int64_t size = ((n + parts - 1) / parts + align - 1) / align * align;
  *begin = part * size < n ? part * size : n;
  *end = *begin + size < n ? *begin + size : n;
}

// One scale for a tensor. given > 0 is the scale to use; else it follows from the amax. Returns the scale, and the amax's bits.
template <typename In, typename Out>
static float one_scale(const In* x, Out* out, int64_t n, Grid g, float given, uint32_t* amax_out, int threads) {
  std::vector<uint32_t> partial(size_t(threads) * 16, 0u);
  if (!(given > 0)) {
    #pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; ++t) {
      int64_t begin, end;
      chunk(n, t, threads, 64, &begin, &end);
      partial[size_t(t) * 16] = amax_of(x + begin, end - begin);
    }
    uint32_t amax = 0;
    for (int t = 0; t < threads; ++t) amax = partial[size_t(t) * 16] > amax ? partial[size_t(t) * 16] : amax;
    *amax_out = amax;
    given = scale_of<RATIO>(amax, g);
    #pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; ++t) {
      int64_t begin, end;
      chunk(n, t, threads, 64, &begin, &end);
      for (int64_t i = begin; i < end; ++i) store(out + i, round_to_grid(load(x + i) * given, g));
    }
    return given;
  }
  #pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    int64_t begin, end;
    chunk(n, t, threads, 64, &begin, &end);
    uint32_t amax = 0;
    for (int64_t i = begin; i < end; ++i) {
      float v = load(x + i);
      uint32_t m = as_bits(v) & MAGNITUDE;
      amax = m > amax ? m : amax;
      store(out + i, round_to_grid(v * given, g));
    }
    partial[size_t(t) * 16] = amax;
  }
  uint32_t amax = 0;
  for (int t = 0; t < threads; ++t) amax = partial[size_t(t) * 16] > amax ? partial[size_t(t) * 16] : amax;
  *amax_out = amax;
  return given;
}

// A power-of-two scale for each block of block_rows x block_columns (the last ones smaller). out holds the dequantised values.
template <typename In, typename Out, int RULE>
static void block_scales(const In* x, Out* out, int64_t rows, int64_t columns, int64_t block_rows, int64_t block_columns, Grid g,
                         float* scales, int threads) {
  const int64_t bands = (rows + block_rows - 1) / block_rows, groups = (columns + block_columns - 1) / block_columns;
  int64_t width = columns;  // of a tile; narrower than the tensor only where there are too few bands to share out
  if (bands < 4 * threads) {
    int64_t unit = block_columns > 32 ? block_columns : (32 + block_columns - 1) / block_columns * block_columns;
    width = ((columns + threads - 1) / threads + unit - 1) / unit * unit;
  }
  const int64_t tiles_across = (columns + width - 1) / width;
  #pragma omp parallel num_threads(threads)
  {
    std::vector<uint32_t> largest(width);
    std::vector<float> up(width), down(width);
    #pragma omp for schedule(static)
    for (int64_t tile = 0; tile < bands * tiles_across; ++tile) {
      const int64_t band = tile / tiles_across, first = tile % tiles_across * width;
      const int64_t count = first + width < columns ? width : columns - first;
      const int64_t begin = band * block_rows, end = begin + block_rows < rows ? begin + block_rows : rows;
      uint32_t* m = largest.data();
      float *u = up.data(), *d = down.data();
      for (int64_t c = 0; c < count; ++c) m[c] = as_bits(load(x + begin * columns + first + c)) & MAGNITUDE;
      for (int64_t r = begin + 1; r < end; ++r) {
        const In* row = x + r * columns + first;
        for (int64_t c = 0; c < count; ++c) {
          uint32_t v = as_bits(load(row + c)) & MAGNITUDE;
          m[c] = v > m[c] ? v : m[c];
        }
      }
      float* band_scales = scales + band * groups + first / block_columns;
      if (block_columns == 1) {
        for (int64_t c = 0; c < count; ++c) {
          u[c] = scale_of<RULE>(m[c], g);
          d[c] = 1.0f / u[c];
          band_scales[c] = u[c];
        }
      } else {
        for (int64_t c = 0, group = 0; c < count; c += block_columns, ++group) {
          const int64_t stop = c + block_columns < count ? c + block_columns : count;
          uint32_t amax = 0;
          for (int64_t i = c; i < stop; ++i) amax = m[i] > amax ? m[i] : amax;
          const float scale = scale_of<RULE>(amax, g), inverse = 1.0f / scale;
          band_scales[group] = scale;
          for (int64_t i = c; i < stop; ++i) { u[i] = scale; d[i] = inverse; }
        }
      }
      for (int64_t r = begin; r < end; ++r) {
        const In* row = x + r * columns + first;
        Out* target = out + r * columns + first;
        for (int64_t c = 0; c < count; ++c) store(target + c, round_to_grid(load(row + c) * u[c], g) * d[c]);
      }
    }
  }
}

template <typename In, typename Out>
static void block_scales_by_rule(int rule, const void* x, void* out, int64_t rows, int64_t columns, int64_t block_rows,
                                 int64_t block_columns, Grid g, float* scales, int threads) {
  const In* in = static_cast<const In*>(x);
  Out* to = static_cast<Out*>(out);
  if (rule == RATIO_POWER_OF_TWO)
    block_scales<In, Out, RATIO_POWER_OF_TWO>(in, to, rows, columns, block_rows, block_columns, g, scales, threads);
  else if (rule == MX_FLOOR)
    block_scales<In, Out, MX_FLOOR>(in, to, rows, columns, block_rows, block_columns, g, scales, threads);
  else
    block_scales<In, Out, MX_RCEIL>(in, to, rows, columns, block_rows, block_columns, g, scales, threads);
}

// A float rounded as a cast to the format and back rounds it: ties to even, overflow to infinity, the sign of zero kept.
struct ToBf16 {
  static inline float round(float x) {
    const uint32_t bits = as_bits(x);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
    return as_float((bits & MAGNITUDE) > EXPONENT ? 0x7FC00000u : rounded);
  }
};
struct ToFp16 {
  static inline float round(float x) {
    const uint32_t bits = as_bits(x), m = bits & MAGNITUDE;
    uint32_t normal = (m + 0xFFFu + ((m >> 13) & 1u)) & ~0x1FFFu;
    normal = normal >= 0x47800000u ? EXPONENT : normal;  // 65536
    const uint32_t subnormal = as_bits((as_float(m) + 0.5f) - 0.5f);  // a float's step at 0.5 is 2^-24, FP16's smallest
    uint32_t rounded = m < 0x38800000u ? subnormal : normal;  // 2^-14
    rounded = m > EXPONENT ? 0x7FC00000u : rounded;
    return as_float(rounded | (bits ^ m));
  }
};

template <typename Format>
static void cast_there_and_back(const float* x, float* out, int64_t n, int threads) {
  #pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int t = 0; t < threads; ++t) {
    int64_t begin, end;
    chunk(n, t, threads, 64, &begin, &end);
    if (x == out) {  // a loop of its own: with two pointers that may overlap it would not be vectorised
      for (int64_t i = begin; i < end; ++i) out[i] = Format::round(out[i]);
    } else {
      const float* __restrict from = x;
      float* __restrict to = out;
      for (int64_t i = begin; i < end; ++i) to[i] = Format::round(from[i]);
    }
  }
}

extern "C" void round_values(int fp16, const float* x, float* out, int64_t n, int threads) {
  if (fp16) cast_there_and_back<ToFp16>(x, out, n, threads);
  else cast_there_and_back<ToBf16>(x, out, n, threads);
}

// types: bit 0: the input is bfloat16; bit 1: the output is bfloat16; else float32.
extern "C" float quantize_one_scale(int types, const void* x, void* out, int64_t n, float largest, float smallest_normal,
                                    float shift, float given, uint32_t* amax, int threads) {
  const Grid g = {largest, smallest_normal, shift, 0};
  switch (types) {
    case 0: return one_scale((const float*)x, (float*)out, n, g, given, amax, threads);
    case 1: return one_scale((const bf16*)x, (float*)out, n, g, given, amax, threads);
    case 2: return one_scale((const float*)x, (bf16*)out, n, g, given, amax, threads);
    default: return one_scale((const bf16*)x, (bf16*)out, n, g, given, amax, threads);
  }
}

extern "C" void quantize_blocks(int types, int rule, const void* x, void* out, int64_t rows, int64_t columns, int64_t block_rows,
                                int64_t block_columns, float largest, float smallest_normal, float shift, int largest_exponent,
                                float* scales, int threads) {
  const Grid g = {largest, smallest_normal, shift, largest_exponent};
  switch (types) {
    case 0: return block_scales_by_rule<float, float>(rule, x, out, rows, columns, block_rows, block_columns, g, scales, threads);
    case 1: return block_scales_by_rule<bf16, float>(rule, x, out, rows, columns, block_rows, block_columns, g, scales, threads);
    case 2: return block_scales_by_rule<float, bf16>(rule, x, out, rows, columns, block_rows, block_columns, g, scales, threads);
    default: return block_scales_by_rule<bf16, bf16>(rule, x, out, rows, columns, block_rows, block_columns, g, scales, threads);
  }
}
"""

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
            number_format: the grid.
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
        """Quantise and dequantise with a power-of-two scale a block.

        Args:
            tensor: contiguous matrix, float32 or bfloat16.
            number_format: the grid.
            container: dtype of the result.
            block: rows and columns of a block, at most those of the tensor.
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
    # its threads. Where there is none, loading fails, and one thread has to do.
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
    key = "\n".join([_SOURCE, version, *_FLAGS, *openmp, platform.machine(), _processor()])
    folder = _cache_folder()
    path = folder / f"quantizer-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
    if path.exists():
        return path, f"{version}{' with OpenMP' if openmp else ''}"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source, built = Path(scratch) / "quantizer.cpp", Path(scratch) / "quantizer.so"
        source.write_text(_SOURCE)
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
