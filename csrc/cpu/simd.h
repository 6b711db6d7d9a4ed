// Vectors as wide as the ISA's registers, by the compilers' vector extensions (GCC and Clang): the
// formulas of math.h run on them unchanged, with no intrinsics and the same bits on every ISA.
#pragma once

#include "../math.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

FASTADV_NAMESPACE_BEGIN

#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

typedef float Floats __attribute__((vector_size(kRegister)));
typedef double Doubles __attribute__((vector_size(kRegister)));
typedef int32_t Ints __attribute__((vector_size(kRegister)));
typedef int64_t Longs __attribute__((vector_size(kRegister)));
typedef uint16_t Shorts __attribute__((vector_size(kRegister / 2)));
typedef float HalfFloats __attribute__((vector_size(kRegister / 2)));

template <>
struct IntOf<Floats> {
  using Type = Ints;
};
template <>
struct IntOf<Doubles> {
  using Type = Longs;
};

template <class C>
struct VectorOf {
  using Type = Floats;
};
template <>
struct VectorOf<double> {
  using Type = Doubles;
};
template <class T>
using Vector = typename VectorOf<Compute<T>>::Type;
template <class T>
constexpr int kLanes = kRegister / sizeof(Compute<T>);

template <class T>
FASTADV_FN Vector<T> load(const T* from) {
  if constexpr (sizeof(T) == 2) {
    Shorts bits;
    memcpy(&bits, from, sizeof(bits));
    return decode<T, Vector<T>>(__builtin_convertvector(bits, Ints));
  } else {
    Vector<T> v;
    memcpy(&v, from, sizeof(v));
    return v;
  }
}
template <class T>
FASTADV_FN void store(T* to, Int<Vector<T>> bits) {
  if constexpr (sizeof(T) == 2) {
    const Shorts narrow = __builtin_convertvector(bits, Shorts);
    memcpy(to, &narrow, sizeof(narrow));
  } else {
    memcpy(to, &bits, sizeof(bits));
  }
}
// The first n < kLanes elements; the lanes beyond hold zero and are not stored.
template <class T>
FASTADV_FN Vector<T> load(const T* from, int64_t n) {
  T lanes[kLanes<T>] = {};
  memcpy(lanes, from, n * sizeof(T));
  return load(lanes);
}
template <class T>
FASTADV_FN void store(T* to, Int<Vector<T>> bits, int64_t n) {
  T lanes[kLanes<T>];
  store(lanes, bits);
  memcpy(to, lanes, n * sizeof(T));
}

#if defined(__AVX512F__)
// One instruction each, where a copy of n bytes is a call.
template <>
FASTADV_FN Floats load(const float* from, int64_t n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), from);
}
template <>
FASTADV_FN void store(float* to, Ints bits, int64_t n) {
  _mm512_mask_storeu_ps(to, __mmask16((1u << n) - 1), bit_cast<Floats>(bits));
}

// What math.h does in ten operations. A sum of exactly zero is -0 when rounded down and +0 when
// rounded to nearest; adding 0 makes it +0.
template <>
FASTADV_FN Floats add_down(Floats a, Floats b) {
  return _mm512_maskz_add_round_ps(0xffff, a, b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC) +
         Floats{};
}
template <>
FASTADV_FN Floats subtract_up(Floats a, Floats b) {
  return _mm512_maskz_sub_round_ps(0xffff, a, b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
}
template <>
FASTADV_FN Doubles add_down(Doubles a, Doubles b) {
  return _mm512_maskz_add_round_pd(0xff, a, b, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC) +
         Doubles{};
}
template <>
FASTADV_FN Doubles subtract_up(Doubles a, Doubles b) {
  return _mm512_maskz_sub_round_pd(0xff, a, b, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
}
#endif

// One value in every lane. (constant() adds it to zero, which for a value known at run time costs
// an addition; subtracting zero changes no bit and costs nothing.)
FASTADV_FN Floats broadcast(float value) { return value - Floats{}; }

// a * b + c, rounded once where the ISA can and twice on baseline: for sums of products, which are
// compared at a tolerance, never for the formulas of math.h.
FASTADV_FN Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// A mask (lanes of 0 or -1) as bits, lane 0 lowest, and back.
FASTADV_FN unsigned bits_of(Ints mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(__m512i(mask));
#elif defined(__AVX2__)
  return unsigned(_mm256_movemask_ps(__m256(mask)));
#elif defined(__SSE2__)
  return unsigned(_mm_movemask_ps(__m128(mask)));
#else
  unsigned bits = 0;
  for (int i = 0; i < kRegister / 4; ++i) bits |= unsigned(mask[i] & 1) << i;
  return bits;
#endif
}
FASTADV_FN Ints mask_of(unsigned bits) {
  Ints lane;
  for (int i = 0; i < kRegister / 4; ++i) lane[i] = 1 << i;
  return ((int32_t(bits) - Ints{}) & lane) != 0;
}

// 0, 1, 2, ... and the sum of the lanes, by halves.
FASTADV_FN Ints lane_numbers() {
  Ints lane;
  for (int i = 0; i < kRegister / 4; ++i) lane[i] = i;
  return lane;
}
FASTADV_FN float sum_of(Floats v) {
  float lanes[kRegister / 4];
  memcpy(lanes, &v, sizeof(v));
#pragma GCC unroll 4
  for (int half = kRegister / 8; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Bytes to whole numbers and back. (__builtin_convertvector moves each through a register of its
// own: four times the instructions of a pooling's gradient.)
typedef uint8_t Bytes __attribute__((vector_size(kRegister / 4)));
FASTADV_FN Ints load_bytes(const uint8_t* from) {
  Bytes bytes;
  memcpy(&bytes, from, sizeof(bytes));
#if defined(__AVX512F__)
  return Ints(_mm512_maskz_cvtepu8_epi32(0xffff, __m128i(bytes)));
#else
  return __builtin_convertvector(bytes, Ints);
#endif
}
FASTADV_FN void store_bytes(uint8_t* to, Ints v) {
#if defined(__AVX512F__)
  const Bytes bytes = Bytes(_mm512_maskz_cvtepi32_epi8(0xffff, __m512i(v)));
#else
  const Bytes bytes = __builtin_convertvector(v, Bytes);
#endif
  memcpy(to, &bytes, sizeof(bytes));
}

// Sums in double, whatever the data: no overflow or underflow of squares, and an error that does
// not grow with the sample. Two accumulators, since a float register fills two double ones.
struct DoubleSum {
  Doubles low = {}, high = {};
  FASTADV_FN void add(Doubles v) { low += v; }
  FASTADV_FN void add(Doubles a, Doubles b) { low += a, high += b; }
  FASTADV_FN double total() const {
    const Doubles both = low + high;
    double sum = 0;
    for (int i = 0; i < kRegister / 8; ++i) sum += both[i];
    return sum;
  }
};
struct DoublePair {
  Doubles low, high;
};
FASTADV_FN DoublePair to_double(Floats v) {
  HalfFloats half[2];
  memcpy(half, &v, sizeof(v));
  return {__builtin_convertvector(half[0], Doubles), __builtin_convertvector(half[1], Doubles)};
}
FASTADV_FN void add(DoubleSum& sum, Doubles v) { sum.add(v); }
FASTADV_FN void add(DoubleSum& sum, Floats v) {
  const DoublePair d = to_double(v);
  sum.add(d.low, d.high);
}
FASTADV_FN void add_product(DoubleSum& sum, Doubles a, Doubles b) { sum.add(a * b); }
FASTADV_FN void add_product(DoubleSum& sum, Floats a, Floats b) {
  const DoublePair p = to_double(a), q = to_double(b);
  sum.add(p.low * q.low, p.high * q.high);
}

FASTADV_NAMESPACE_END
