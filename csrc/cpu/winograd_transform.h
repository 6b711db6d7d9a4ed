// The transforms of Winograd's convolutions (Lavin and Gray, 1509.09308, section 4), on vectors of
// channels. A form says how a patch of the input becomes parts, each of which is multiplied by its
// weights, and how the products become a tile of the output; it is one-dimensional, and done on the
// columns and then on the rows.
//
// F(4x4,3x3): 6x6 pixels, 36 parts, 4x4 outputs: 144 and 120 operations, and 36 multiplications
// where the convolution has 144.
// With stride 2 the kernel falls apart: its middle tap meets every second pixel, and its outer two
// the others, a kernel of two taps, for which F(4,2) has 5 multiplications. 9x9 pixels, 81 parts,
// 4x4 outputs, where the convolution has 144; and 5x5, 81 and 8x8 for the gradient, its transpose.
// The 4 parts of the middle tap share their weights: there are 36 of those, too.
#pragma once

#include "simd.h"

FASTADV_NAMESPACE_BEGIN

// F(4,3): o <- B^T d for six vectors `step` apart.
FASTADV_FN void transform_input3(const Floats* d, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), four = constant<Floats>(4), five = constant<Floats>(5);
  const Floats d0 = d[0], d1 = d[step], d2 = d[2 * step];
  const Floats d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const Floats even = multiply_add(-four, d2, d4), odd = multiply_add(-four, d1, d3);
  const Floats even2 = d4 - d2, odd2 = d3 - d1;
  o[0] = multiply_add(four, d0, multiply_add(-five, d2, d4));
  o[o_step] = even + odd;
  o[2 * o_step] = even - odd;
  o[3 * o_step] = multiply_add(two, odd2, even2);
  o[4 * o_step] = multiply_add(-two, odd2, even2);
  o[5 * o_step] = multiply_add(four, d1, multiply_add(-five, d3, d5));
}

// F(4,3): o <- A^T m for six vectors `step` apart.
FASTADV_FN void transform_output3(const Floats* m, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), four = constant<Floats>(4), eight = constant<Floats>(8);
  const Floats sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
  const Floats sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
  o[0] = m[0] + (sum1 + sum2);
  o[o_step] = multiply_add(two, difference2, difference1);
  o[2 * o_step] = multiply_add(four, sum2, sum1);
  o[3 * o_step] = m[5 * step] + multiply_add(eight, difference2, difference1);
}

// F(4,2): o <- B^T d for five vectors, from the points 0, 1, -1, 2 and infinity.
FASTADV_FN void transform_input2(const Floats* d, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), three = constant<Floats>(3);
  const Floats d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
  const Floats odd = d3 - d1, even = multiply_add(-two, d2, d3);  // d3 - 2 d2
  o[0] = multiply_add(two, d[0], even - d1);
  o[o_step] = multiply_add(-two, d1, d3 - d2);
  o[2 * o_step] = multiply_add(two, d1, multiply_add(-three, d2, d3));
  o[3 * o_step] = odd;
  o[4 * o_step] = multiply_add(-two, odd, d[4 * step] - d2);
}

// F(4,2): o <- A^T m for five vectors.
FASTADV_FN void transform_output2(const Floats* m, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), four = constant<Floats>(4), eight = constant<Floats>(8);
  const Floats m3 = m[3 * step];
  const Floats sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
  o[0] = m[0] + (sum + m3);
  o[o_step] = multiply_add(two, m3, difference);
  o[2 * o_step] = multiply_add(four, m3, sum);
  o[3 * o_step] = m[4 * step] + multiply_add(eight, m3, difference);
}

// In a form `kStep` is the distance between the patches of two tiles.
struct Plain {
  static constexpr int kPatch = 6, kParts = 6, kTile = 4, kStep = 4;
  FASTADV_FN static void input(const Floats* d, int step, Floats* o, int o_step) {
    transform_input3(d, step, o, o_step);
  }
  FASTADV_FN static void output(const Floats* m, int step, Floats* o, int o_step) {
    transform_output3(m, step, o, o_step);
  }
};

struct Strided {
  static constexpr int kPatch = 9, kParts = 9, kTile = 4, kStep = 8;
  FASTADV_FN static void input(const Floats* d, int step, Floats* o, int o_step) {
    transform_input2(d, 2 * step, o, o_step);
    for (int k = 0; k < 4; ++k) o[(5 + k) * o_step] = d[(2 * k + 1) * step];
  }
  FASTADV_FN static void output(const Floats* m, int step, Floats* o, int o_step) {
    transform_output2(m, step, o, o_step);
    for (int k = 0; k < 4; ++k) o[k * o_step] += m[(5 + k) * step];
  }
};

struct StridedGradient {
  static constexpr int kPatch = 5, kParts = 9, kTile = 8, kStep = 4;
  FASTADV_FN static void input(const Floats* d, int step, Floats* o, int o_step) {
    transform_input2(d, step, o, o_step);
    for (int k = 0; k < 4; ++k) o[(5 + k) * o_step] = d[k * step];
  }
  FASTADV_FN static void output(const Floats* m, int step, Floats* o, int o_step) {
    transform_output2(m, step, o + o_step, 2 * o_step);
    for (int k = 0; k < 4; ++k) o[2 * k * o_step] = m[(5 + k) * step];
  }
};

// Which of the 36 weights part (i, j) is multiplied by, i and j under kParts.
FASTADV_FN int weight_of(int i, int j) { return (i < 5 ? i : 5) * 6 + (j < 5 ? j : 5); }

// write(part, value) for all parts; `read(i)` gives pixel i of the patch, row by row.
template <class Form, class Read, class Write>
FASTADV_FN void transform_patch(Read read, Write write) {
  constexpr int P = Form::kPatch, Q = Form::kParts;
  Floats columns[Q * P];
#pragma GCC unroll 9
  for (int j = 0; j < P; ++j) {
    Floats d[P];
#pragma GCC unroll 9
    for (int i = 0; i < P; ++i) d[i] = read(P * i + j);
    Form::input(d, 1, columns + j, P);
  }
#pragma GCC unroll 9
  for (int i = 0; i < Q; ++i) {
    Floats row[Q];
    Form::input(columns + P * i, 1, row, 1);
#pragma GCC unroll 9
    for (int j = 0; j < Q; ++j) write(Q * i + j, row[j]);
  }
}

// write(i, j, value) for the tile of the parts' products at from[part * stride].
template <class Form, class Write>
FASTADV_FN void transform_tile(const float* from, int64_t stride, Write write) {
  constexpr int Q = Form::kParts, T = Form::kTile;
  Floats columns[T * Q];
#pragma GCC unroll 9
  for (int j = 0; j < Q; ++j) {
    Floats m[Q];
#pragma GCC unroll 9
    for (int i = 0; i < Q; ++i) m[i] = load(from + (Q * i + j) * stride);
    Form::output(m, 1, columns + j, Q);
  }
#pragma GCC unroll 8
  for (int i = 0; i < T; ++i) {
    Floats row[T];
    Form::output(columns + Q * i, 1, row, 1);
#pragma GCC unroll 8
    for (int j = 0; j < T; ++j) write(i, j, row[j]);
  }
}

FASTADV_NAMESPACE_END
