// What follows a convolution, in registers: residual, ReLU with its signs, or a mask.
#pragma once

#include "signs.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

// y's channels k and up of `pixel`, from the convolution's sum with its bias.
template <class Args, class... N>
FASTADV_FN void finish(const Args& args, int64_t pixel, int64_t k, Floats v, N... n) {
  const int64_t at = pixel * args.outputs + k;
  if (args.residual) v += load(args.residual + at, n...);
  if (args.relu) {
    const Ints positive = ~(v <= 0);  // so that NaN passes
    if (args.signs) put_signs(args.signs, args.outputs, pixel, k, positive);
    v = positive ? v : Floats{};
  }
  if (args.mask) v = get_signs(args.mask, args.outputs, pixel, k) ? v : Floats{};
  store(args.y + at, bit_cast<Ints>(v), n...);
}

FASTADV_NAMESPACE_END
