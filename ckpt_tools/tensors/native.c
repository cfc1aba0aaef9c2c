/* The arithmetic of ckpt_tools.tensors that is called for every element, in one pass over memory instead of a dozen.

   Plain C without Python's headers: one library serves every version of Python. native.py loads it with ctypes;
   where it is missing, numpy computes the same bits. native_variant.h is compiled once for any processor of the architecture,
   and on x86-64 once more for AVX2 with F16C, chosen when the library is loaded. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* To be raised with every change of what the functions below take and give, here and in native.py: a library
   that was built from older sources, as in a checkout that was updated, is then not used. */
#define REVISION 2

enum { FP16, BF16, FP32, FP64 }; /* as in native.py */

/* What is measured of a fold: as Statistics in lazy.py. */
typedef struct {
  double weight_square, delta_square;
  int64_t unchanged, nonfinite_input, nonfinite_output;
} Measured;

/* A slice of a matrix that is folded: rows lie `row` bytes apart, elements of a row side by side, but for `factor`. */
typedef struct {
  const char *stored, *delta, *factor; /* delta: float32; factor: float32, DoRA's, or NULL */
  char *out;
  ptrdiff_t stored_row, delta_row, factor_row, factor_step, out_row; /* bytes */
  int32_t stored_type, out_type;
  int64_t rows, columns;
} Tile;

/* Elements that go through all steps together: what they need stays in the first-level cache. */
#define CHUNK 1024

typedef float Lanes __attribute__((vector_size(32)));

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

/* The 5-bit exponent becomes an 8-bit one by a multiplication that is exact, for subnormal numbers too (F. Giesen, "half
   to float done quick", 2012); Inf and NaN get all ones, and a NaN becomes a quiet one, as processors make it. */
static inline float from_half(uint16_t half) {
#ifdef __ARM_FP16_FORMAT_IEEE
  __fp16 value;
  memcpy(&value, &half, 2);
  return (float)value;
#else
  uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = (uint32_t)(half & 0x7fff) << 13;
  uint32_t scaled = bits_of(float_of(rest) * 0x1p112f);
  uint32_t special = rest | 0x7f800000 | (rest > 0x0f800000 ? 0x00400000 : 0);
  return float_of(sign | (rest >= 0x0f800000 ? special : scaled));
#endif
}

static inline uint16_t to_half(float value) {
#ifdef __ARM_FP16_FORMAT_IEEE
  __fp16 rounded = (__fp16)value;
  uint16_t half;
  memcpy(&half, &rounded, 2);
  return half;
#else
  uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  /* Round the 13 bits that go to nearest even: add half a unit less one, plus the last bit that stays. */
  uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  /* The last bit of 0.5 is worth 2**-24, as that of a subnormal half: the addition itself rounds. */
  uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  /* A NaN keeps its sign and the upper bits of its payload, as processors do it: a slice has the bits of the whole. */
  uint32_t infinite = magnitude > 0x7f800000 ? 0x7e00 | (magnitude >> 13 & 0x3ff) : 0x7c00;
  uint32_t half = magnitude >= 0x477ff000 ? infinite : magnitude >= 0x38800000 ? normal : subnormal;
  return (uint16_t)(sign | half);
#endif
}

static inline uint16_t to_bfloat(float value) {
  uint32_t bits = bits_of(value);
  uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  uint32_t nan = (bits >> 16 & 0x8000) | 0x7fc0;
  return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

#define VARIANT(name) name##_any
#include "native_variant.h"
#undef VARIANT

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#include <immintrin.h>
#define VARIANT(name) name##_avx2
#define HAS_F16C
#include "native_variant.h"
#undef HAS_F16C
#undef VARIANT
#pragma GCC pop_options

static int has_avx2(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
}
#else
#define fold_avx2 fold_any
#define cast_avx2 cast_any
#define nonfinite_avx2 nonfinite_any
static int has_avx2(void) { return 0; }
#endif

int32_t pet_revision(void) { return REVISION; }

/* How many variants this processor can run: 1 or 2. The last one is the fastest. */
int32_t pet_variants(void) { return has_avx2() ? 2 : 1; }

void pet_fold(int32_t variant, const Tile *tile, Measured *measured) {
  (variant == 1 ? fold_avx2 : fold_any)(tile, measured);
}

void pet_cast(int32_t variant, const void *in, int32_t in_type, void *out, int32_t out_type, int64_t count) {
  (variant == 1 ? cast_avx2 : cast_any)(in, in_type, out, out_type, count);
}

int64_t pet_nonfinite(int32_t variant, const void *values, int32_t type, int64_t count) {
  return (variant == 1 ? nonfinite_avx2 : nonfinite_any)(values, type, count);
}
