// Where the device has one instruction for a formula of math.h that takes ten, as simd.h has it for
// AVX-512: the same bits, but for a NaN's own. Elsewhere, in the tests' shim too, math.h serves.
#pragma once

#include "../math.h"

#if defined(__CUDA_ARCH__)

namespace fastadv {

// A sum of exactly zero is -0 when rounded down and +0 when rounded to nearest; adding 0 makes it
// +0.
template <>
FASTADV_FN float add_down(float a, float b) {
  return __fadd_rd(a, b) + 0.f;
}
template <>
FASTADV_FN double add_down(double a, double b) {
  return __dadd_rd(a, b) + 0.;
}
template <>
FASTADV_FN float subtract_up(float a, float b) {
  return __fsub_ru(a, b);
}
template <>
FASTADV_FN double subtract_up(double a, double b) {
  return __dsub_ru(a, b);
}

template <>
FASTADV_FN float Format<float16>::decode<float>(int32_t bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(uint16_t(bits)));
  return v;
}
template <>
FASTADV_FN int32_t Format<float16>::encode<float>(float v) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}
template <>
FASTADV_FN int32_t Format<bfloat16>::encode<float>(float v) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}

}  // namespace fastadv

#endif
