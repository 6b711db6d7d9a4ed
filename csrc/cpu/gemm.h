// c (rows, outputs) <- a (rows, depth) times b, whose columns stand in panels of kPanel.
//
// A register block of kRows rows and kAtOnce panels keeps its sums in registers for the whole
// depth: on AVX-512 28 multiply-adds for 4 loads of b and 7 of a. The sum of one output runs over
// the depth in order, whatever the block: its bits do not depend on what else is computed.
#pragma once

#include "kernels.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

constexpr int kPanelVectors = kPanel / kLanes<float>;
#if defined(__AVX512F__)
constexpr int kRows = 7, kAtOnce = 4;  // 28 of 32 registers
#elif defined(__AVX2__)
constexpr int kRows = 6, kAtOnce = 1;  // 12 of 16
#else
constexpr int kRows = 2, kAtOnce = 1;  // 8 of 16
#endif

// Steps of the depth (of bfloat16 two numbers each) that are summed in a row. A sum's rounding
// grows with the square root of the terms in a row: with 512 channels in one row twice as much was
// rounded as in four.
constexpr int64_t kSummed = 128;

// How numbers are multiplied: float32, or pairs of bfloat16 in the place of one, summed in float32.
struct Singles {
  static constexpr int kPerStep = 1;  // numbers of a that one step of the depth multiplies
  static int64_t steps(int64_t numbers) { return numbers; }
  FASTADV_FN static Floats broadcast(float a) { return fastadv::FASTADV_ISA::broadcast(a); }
  FASTADV_FN static Floats add_product(Floats a, Floats b, Floats sum) {
    return multiply_add(a, b, sum);
  }
  // Stores channels k and up of a row whose groups of kPanel numbers stand `group` floats apart.
  FASTADV_FN static void put(float* row, int64_t group, int64_t k, Floats v) {
    store(row + k / kPanel * group + k % kPanel, bit_cast<Ints>(v));
  }
};

#if defined(__AVX512F__)
// Asked of the processor before it is used. In assembly, since no flag of this build allows the
// instruction: the compiler must not put it anywhere else.
struct Pairs {
  static constexpr int kPerStep = 2;
  static int64_t steps(int64_t numbers) { return (numbers + 1) / 2; }
  FASTADV_FN static Floats broadcast(float a) {  // the bits, which as a float may be denormal
    return bit_cast<Floats>(bit_cast<int32_t>(a) - Ints{});
  }
  FASTADV_FN static Floats add_product(Floats a, Floats b, Floats sum) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
    return sum;
  }
  FASTADV_FN static Shorts narrow(Floats v) {  // to nearest, ties to even
    Shorts bits;
    asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(v));
    return bits;
  }
  // Of two rows, the numbers of a column side by side.
  FASTADV_FN static Floats pair(Floats first, Floats second) {
    const Ints low = __builtin_convertvector(narrow(first), Ints);
    return bit_cast<Floats>(low | __builtin_convertvector(narrow(second), Ints) << 16);
  }
  FASTADV_FN static void put(float* row, int64_t group, int64_t k, Floats v) {
    const Shorts bits = narrow(v);
    constexpr int64_t kPairs = 2 * kPanel;
    memcpy(row + k / kPairs * group + k % kPairs / 2, &bits, sizeof(bits));
  }
};
#endif

// What is multiplied: row r of a at a + r * a_row, panel p of b at b + p * depth * kPanel, and the
// result with c_row between rows. Rows of a and of c stand in groups of kPanel numbers, `group`
// from one to the next.
struct Product {
  const float* a;
  int64_t a_row;
  const float* b;
  float* c;
  int64_t c_row;
  int64_t group;
  int64_t depth;
  bool add = false;  // to c
};

// Where vector q of a row of c begins.
FASTADV_FN int64_t column_of(const Product& p, int q) {
  return q / kPanelVectors * p.group + q % kPanelVectors * kLanes<float>;
}

// Steps `begin` to `end` of the depth, added to c or, where it holds nothing yet, in its place.
template <class Products, int R, int P>
FASTADV_FN void multiply_steps(const Product& p, int64_t begin, int64_t end, bool add) {
  constexpr int Q = P * kPanelVectors;
  Floats sum[R][Q] = {};
  for (int64_t d = begin; d < end; ++d) {
    const float* const row = p.a + d / kPanel * p.group + d % kPanel;
    Floats b[Q];
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      b[q] = load(p.b + ((q / kPanelVectors) * p.depth + d) * kPanel +
                  q % kPanelVectors * kLanes<float>);
    }
    // The panels after these, which are multiplied next: no processor looks as far ahead.
#pragma GCC unroll 4
    for (int q = 0; q < P; ++q) __builtin_prefetch(p.b + ((P + q) * p.depth + d) * kPanel, 0, 2);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Floats a = Products::broadcast(row[r * p.a_row]);
#pragma GCC unroll 4
      for (int q = 0; q < Q; ++q) sum[r][q] = Products::add_product(a, b[q], sum[r][q]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      float* const c = p.c + r * p.c_row + column_of(p, q);
      store(c, bit_cast<Ints>(add ? sum[r][q] + load(c) : sum[r][q]));
    }
  }
}

template <class Products, int R, int P>
FASTADV_FN void multiply_block(const Product& p) {
  for (int64_t d = 0; d < p.depth; d += kSummed) {
    const int64_t end = d + kSummed < p.depth ? d + kSummed : p.depth;
    multiply_steps<Products, R, P>(p, d, end, d > 0 || p.add);
  }
}

template <class Products, int R, int P>
void multiply_rows(const Product& p, int64_t rows) {
  if constexpr (R > 0) {
    if (rows < R) return multiply_rows<Products, R - 1, P>(p, rows);
    multiply_block<Products, R, P>(p);
  }
}

// The rows in groups as equal as can be: 32 rows are 7 + 7 + 6 + 6 + 6, not 4 times 7 and 4.
template <class Products, int P>
void multiply_panels(Product p, int64_t rows) {
  for (int64_t groups = (rows + kRows - 1) / kRows; groups > 0; --groups) {
    const int64_t n = (rows + groups - 1) / groups;
    multiply_rows<Products, kRows, P>(p, n);
    p.a += n * p.a_row;
    p.c += n * p.c_row;
    rows -= n;
  }
}

template <class Products = Singles, int P = kAtOnce>
void multiply(Product p, int64_t rows, int64_t panels) {
  if constexpr (P > 0) {
    for (; panels >= P; panels -= P) {
      multiply_panels<Products, P>(p, rows);
      p.b += P * p.depth * kPanel;
      p.c += P * p.group;
    }
    multiply<Products, P - 1>(p, rows, panels);
  }
}

FASTADV_NAMESPACE_END
