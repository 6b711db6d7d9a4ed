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

// The points say how much is rounded. 1 is one of them: then the rows of B^T but one have the
// factor x - 1, so that where a patch is constant all but one are exactly zero, and its outputs are
// equal, as a plain convolution's are: a max pooling after it takes the same ones. Among such
// points, with as few operations, 0, 1, -1, 1/2, -2 round least, .70 times as much as 0, 1, -1, 2,
// -2, and for F(4,2) 0, 1, -1/2, -2, .66 times as much as 0, 1, -1, 2.

// F(4,3): o <- B^T d for six vectors `step` apart, from their differences: but for those of 1 and
// -1 the rows share the factor x^2 - 1.
FASTADV_FN void transform_input3(const Floats* d, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), half = constant<Floats>(.5f);
  const Floats more = constant<Floats>(1.5f);
  const Floats d2 = d[2 * step], d3 = d[3 * step];
  const Floats f0 = d2 - d[0], f1 = d3 - d[step], f2 = d[4 * step] - d2, f3 = d[5 * step] - d3;
  const Floats even = multiply_add(more, d3, f2), odd = multiply_add(more, d2, f1);
  o[0] = multiply_add(more, f1, f2 - f0);
  o[o_step] = even + odd;
  o[2 * o_step] = even - odd;
  o[3 * o_step] = multiply_add(two, f1, f2);
  o[4 * o_step] = multiply_add(-half, f1, f2);
  o[5 * o_step] = multiply_add(more, f2, f3 - f1);
}

// F(4,3): o <- A^T m for six vectors `step` apart.
FASTADV_FN void transform_output3(const Floats* m, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), four = constant<Floats>(4), eight = constant<Floats>(8);
  const Floats half = constant<Floats>(.5f), quarter = constant<Floats>(.25f);
  const Floats eighth = constant<Floats>(.125f), m3 = m[3 * step], m4 = m[4 * step];
  const Floats sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
  o[0] = (m[0] + sum) + (m3 + m4);
  o[o_step] = multiply_add(-two, m4, multiply_add(half, m3, difference));
  o[2 * o_step] = multiply_add(four, m4, multiply_add(quarter, m3, sum));
  o[3 * o_step] = multiply_add(-eight, m4, multiply_add(eighth, m3, difference + m[5 * step]));
}

// F(4,2): o <- B^T d for five vectors, from their differences: but for that of 1 the rows share
// the factor x - 1.
FASTADV_FN void transform_input2(const Floats* d, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), half = constant<Floats>(.5f);
  const Floats more = constant<Floats>(2.5f);
  const Floats d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
  const Floats e0 = d1 - d[0], e1 = d2 - d1, e2 = d3 - d2, e3 = d[4 * step] - d3;
  o[0] = multiply_add(more, e1, e0 + e2);
  o[o_step] = multiply_add(more, d2, d1 + d3);
  o[2 * o_step] = multiply_add(two, e1, e2);
  o[3 * o_step] = multiply_add(half, e1, e2);
  o[4 * o_step] = multiply_add(more, e2, e1 + e3);
}

// F(4,2): o <- A^T m for five vectors.
FASTADV_FN void transform_output2(const Floats* m, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), four = constant<Floats>(4), eight = constant<Floats>(8);
  const Floats half = constant<Floats>(.5f), quarter = constant<Floats>(.25f);
  const Floats eighth = constant<Floats>(.125f);
  const Floats m1 = m[step], m2 = m[2 * step], m3 = m[3 * step];
  o[0] = (m[0] + m1) + (m2 + m3);
  o[o_step] = multiply_add(-two, m3, multiply_add(-half, m2, m1));
  o[2 * o_step] = multiply_add(four, m3, multiply_add(quarter, m2, m1));
  o[3 * o_step] = multiply_add(-eight, m3, multiply_add(-eighth, m2, m1 + m[4 * step]));
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
