// Packing what passes a test, and the k-th largest of many numbers.
#pragma once

#include <cstdlib>

#include "simd.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

// As simd.h's, of a comparison of either width.
template <class I>
FASTADV_FN uint32_t bits_of(I mask) {
  if constexpr (sizeof(mask[0]) == 4) {
    return bits_of(Ints(mask));
  } else {
#if defined(__AVX512DQ__)
    return _mm512_movepi64_mask(__m512i(mask));
#elif defined(__AVX2__)
    return uint32_t(_mm256_movemask_pd(__m256d(mask)));
#elif defined(__SSE2__)
    return uint32_t(_mm_movemask_pd(__m128d(mask)));
#else
    uint32_t bits = 0;
    for (int i = 0; i < kRegister / 8; ++i) bits |= uint32_t(mask[i] & 1) << i;
    return bits;
#endif
  }
}

// The bits of every lane, or of the first n.
template <class C>
FASTADV_FN uint32_t lanes() {
  return (uint32_t(1) << kLanes<C>)-1;
}
template <class C>
FASTADV_FN uint32_t lanes(int64_t n) {
  return (uint32_t(1) << n) - 1;
}

// Appends the lanes whose bit is set, in order, and returns how many; up to a register is written.
#if defined(__AVX512F__)
FASTADV_FN int64_t append(float* to, Floats v, uint32_t bits) {
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(__mmask16(bits), __m512(v)));
  return __builtin_popcount(bits);
}
FASTADV_FN int64_t append(double* to, Doubles v, uint32_t bits) {
  _mm512_storeu_pd(to, _mm512_maskz_compress_pd(__mmask8(bits), __m512d(v)));
  return __builtin_popcount(bits);
}
#else
template <class C>
FASTADV_FN int64_t append(C* to, Vector<C> v, uint32_t bits) {
  if (bits == lanes<C>()) {
    store(to, bit_cast<Int<Vector<C>>>(v));
    return kLanes<C>;
  }
  int64_t count = 0;
  for (; bits; bits &= bits - 1) to[count++] = v[__builtin_ctz(bits)];
  return count;
}
#endif

// What passed, of comparisons that were subtracted from `counts` (true is -1).
template <class C>
FASTADV_FN int64_t total(Int<Vector<C>> counts) {
  int64_t sum = 0;
  for (int i = 0; i < kLanes<C>; ++i) sum += counts[i];
  return sum;
}

// Grows, and is freed with its thread: a fresh buffer a call would cost its page faults each time.
template <class C>
class Scratch {
 public:
  ~Scratch() { free(data_); }
  C* get(int64_t count) {
    if (count > capacity_) {
      free(data_);
      const size_t bytes = (size_t(count) * sizeof(C) + 63) / 64 * 64;
      data_ = static_cast<C*>(aligned_alloc(64, bytes));
      if (!data_) abort();
      capacity_ = count;
    }
    return data_;
  }

 private:
  C* data_ = nullptr;
  int64_t capacity_ = 0;
};

template <class C>
struct BitsOf {
  using Type = uint32_t;
};
template <>
struct BitsOf<double> {
  using Type = uint64_t;
};

// The k-th largest of `count` numbers >= 0, whose bits order as they do (NaN is the largest), by a
// radix select from the highest digit in which they differ. `values` is overwritten.
template <class C>
C kth_largest(C* values, int64_t count, int64_t k) {
  using Bits = typename BitsOf<C>::Type;
  constexpr int kDigit = 8;
  Bits lowest = ~Bits(0), highest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Bits bits = bit_cast<Bits>(values[i]);
    lowest = bits < lowest ? bits : lowest;
    highest = bits > highest ? bits : highest;
  }
  int shift = 0;
  while ((highest - lowest) >> shift) ++shift;  // the sign bit is 0, so this ends
  while (count > 1 && shift > 0) {
    const int low = shift > kDigit ? shift - kDigit : 0;
    const auto digit_of = [=](C v) {
      return ((bit_cast<Bits>(v) - lowest) >> low) & ((Bits(1) << (shift - low)) - 1);
    };
    uint32_t histogram[1 << kDigit] = {};
    for (int64_t i = 0; i < count; ++i) ++histogram[digit_of(values[i])];
    Bits digit = (Bits(1) << (shift - low)) - 1;
    while (histogram[digit] < k) k -= histogram[digit--];
    int64_t kept = 0;  // never ahead of what has been read, so in place
    const Bits mask = (Bits(1) << (shift - low)) - 1;
    each_register<C>(count, [&](int64_t i, auto... n) {
      const Vector<C> v = load(values + i, n...);
      const auto digits = ((bit_cast<Int<Vector<C>>>(v) - Int<C>(lowest)) >> low) & Int<C>(mask);
      kept += append(values + kept, v, bits_of(digits == Int<C>(digit)) & lanes<C>(n...));
    });
    count = kept;
    shift = low;
  }
  return values[0];
}

FASTADV_NAMESPACE_END
