// Registers of numbers to memory, as float32 or rounded to bfloat16, and squares of them turned.
#pragma once

#include "gemm.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

template <class T, class... N>
FASTADV_FN void put(T* to, Floats v, N... n) {
  if constexpr (sizeof(T) == 4) {
    store(to, bit_cast<Ints>(v), n...);
  } else {
#if defined(__AVX512F__)
    const Shorts bits = Pairs::narrow(v);  // only asked for where its products are
    if constexpr (sizeof...(n) == 0) {
      memcpy(to, &bits, sizeof(bits));
    } else {
      memcpy(to, &bits, (n * ...) * sizeof(T));
    }
#else
    store(to, encode<T>(v), n...);
#endif
  }
}

// a0 b0 a1 b1 ... of the lower or the upper halves.
template <bool kUpper>
FASTADV_FN Floats zip(Floats a, Floats b) {
  constexpr int n = kLanes<float>, first = kUpper ? n / 2 : 0;
#if defined(__clang__)
  Floats zipped;
#pragma GCC unroll 8
  for (int i = 0; i < n / 2; ++i) zipped[2 * i] = a[first + i], zipped[2 * i + 1] = b[first + i];
  return zipped;
#else
  Ints from;
#pragma GCC unroll 8
  for (int i = 0; i < n / 2; ++i) from[2 * i] = first + i, from[2 * i + 1] = n + first + i;
  return __builtin_shuffle(a, b, from);
#endif
}

// to[c * to_row + r] = from[r * from_row + c], rows and columns in whole registers. A square's rows
// and columns change places by log2(lanes) perfect shuffles of its rows i and i + half.
FASTADV_FN void turn(const float* from, int64_t from_row, int64_t rows, int64_t columns, float* to,
                     int64_t to_row) {
  constexpr int n = kLanes<float>;
  for (int64_t r = 0; r < rows; r += n) {
    for (int64_t c = 0; c < columns; c += n) {
      Floats square[n], next[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) square[i] = load(from + (r + i) * from_row + c);
#pragma GCC unroll 4
      for (int step = 1; step < n; step *= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < n / 2; ++i) {
          next[2 * i] = zip<false>(square[i], square[i + n / 2]);
          next[2 * i + 1] = zip<true>(square[i], square[i + n / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) square[i] = next[i];
      }
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) store(to + (c + i) * to_row + r, bit_cast<Ints>(square[i]));
    }
  }
}

FASTADV_NAMESPACE_END
