// One bit a number: whether it passed a ReLU. A pixel's bits stand in whole panels of kPanel
// channels, channel k's in bit k % 8 of byte k / 8.
#pragma once

#include "kernels.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

FASTADV_FN int64_t sign_bytes(int64_t channels) {
  return (channels + kPanel - 1) / kPanel * (kPanel / 8);
}

// The bits of a register's channels k and up, k a multiple of the lanes.
FASTADV_FN void put_signs(uint8_t* signs, int64_t channels, int64_t pixel, int64_t k, Ints mask) {
  uint8_t* const to = signs + pixel * sign_bytes(channels) + k / 8;
  const unsigned bits = bits_of(mask);
  if constexpr (kLanes<float> == 4) {  // half a byte
    *to = uint8_t(k % 8 ? (*to & 0xf) | bits << 4 : bits);
  } else {
    memcpy(to, &bits, kLanes<float> / 8);
  }
}
FASTADV_FN Ints get_signs(const uint8_t* signs, int64_t channels, int64_t pixel, int64_t k) {
  const uint8_t* const from = signs + pixel * sign_bytes(channels) + k / 8;
  unsigned bits = 0;
  if constexpr (kLanes<float> == 4) {
    bits = unsigned(*from) >> k % 8;
  } else {
    memcpy(&bits, from, kLanes<float> / 8);
  }
  return mask_of(bits);
}

FASTADV_NAMESPACE_END
