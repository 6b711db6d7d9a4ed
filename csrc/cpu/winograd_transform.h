// The transforms of Winograd's F(4x4,3x3) (Lavin and Gray, 1509.09308, section 4.3), on vectors of
// channels: a 6x6 patch of the input to 36 numbers, and 36 products to a 4x4 tile of the output.
//
// Each is a one-dimensional transform on the columns and then on the rows: 144 and 120 operations.
#pragma once

#include "simd.h"

FASTADV_NAMESPACE_BEGIN

// o <- B^T d for six vectors `step` apart.
FASTADV_FN void transform_input(const Floats* d, int step, Floats* o, int o_step) {
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

// o <- A^T m for six vectors `step` apart.
FASTADV_FN void transform_output(const Floats* m, int step, Floats* o, int o_step) {
  const Floats two = constant<Floats>(2), four = constant<Floats>(4), eight = constant<Floats>(8);
  const Floats sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
  const Floats sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
  o[0] = m[0] + (sum1 + sum2);
  o[o_step] = multiply_add(two, difference2, difference1);
  o[2 * o_step] = multiply_add(four, sum2, sum1);
  o[3 * o_step] = m[5 * step] + multiply_add(eight, difference2, difference1);
}

// write(i, value) for the 36 vectors of B^T d B; `read(i)` gives pixel i of the patch, row by row.
template <class Read, class Write>
FASTADV_FN void transform_patch(Read read, Write write) {
  Floats columns[36];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    Floats d[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) d[i] = read(6 * i + j);
    transform_input(d, 1, columns + j, 6);
  }
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
    Floats row[6];
    transform_input(columns + 6 * i, 1, row, 1);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) write(6 * i + j, row[j]);
  }
}

// write(i, j, value) for the 4x4 tile A^T m A of the 36 vectors at from[i * stride].
template <class Write>
FASTADV_FN void transform_tile(const float* from, int64_t stride, Write write) {
  Floats columns[24];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    Floats m[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) m[i] = load(from + (6 * i + j) * stride);
    transform_output(m, 1, columns + j, 6);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    Floats row[4];
    transform_output(columns + 6 * i, 1, row, 1);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) write(i, j, row[j]);
  }
}

FASTADV_NAMESPACE_END
