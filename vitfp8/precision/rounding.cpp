// Quantisation in one pass over memory; see rounding.py, which compiles this file and says why it decides no number.

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
