// What follows a layer's sum, in registers: residual, ReLU with its signs; of a gradient the
// slopes. Other activations than a ReLU are a second look at what was stored, in L1: a Winograd
// tile finishes 16 numbers a lane, and their code would stand there as often.
#pragma once

#include "signs.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

// A gradient times the slopes of its activation.
template <class... N>
FASTADV_FN Floats times_slopes(const Epilogue& after, int64_t channels, int64_t pixel, int64_t k,
                               Floats v, N... n) {
  if (after.mask) {
    const Floats below = after.leak ? v * after.leak : Floats{};
    v = get_signs(after.mask, channels, pixel, k) ? v : below;
  }
  if (after.factors) {  // where a slope is zero the gradient is, an infinite one too
    const Floats slopes = load(after.factors + pixel * channels + k, n...);
    v = slopes == 0 ? Floats{} : v * slopes;
  }
  return v;
}

// A ReLU, the one activation that stands in registers, and its signs.
FASTADV_FN Floats rectify(const Epilogue& after, int64_t channels, int64_t pixel, int64_t k,
                          Floats v) {
  if (after.activation != kRectified) return v;
  const Ints positive = ~(v <= 0);  // so that NaN passes
  if (after.signs) put_signs(after.signs, channels, pixel, k, positive);
  return positive ? v : Floats{};
}

// y's channels k and up of `pixel`, from the layer's sum with its bias.
template <class Args, class... N>
FASTADV_FN void finish(const Args& args, int64_t pixel, int64_t k, Floats v, N... n) {
  const Epilogue& after = args.after;
  const int64_t at = pixel * args.outputs + k;
  if (after.residual) v += load(after.residual + at, n...);
  v = rectify(after, args.outputs, pixel, k, v);
  v = times_slopes(after, args.outputs, pixel, k, v, n...);
  store(args.y + at, bit_cast<Ints>(v), n...);
}

// Whether finish() left the activation to activate_stored().
FASTADV_FN bool is_stored_raw(const Epilogue& after) { return after.activation > kRectified; }

// y's channels [begin, end) of a pixel <- their activations, with the slopes; `begin` in whole
// panels (activate.cpp).
void activate_stored(const Epilogue& after, float* y, int64_t channels, int64_t pixel,
                     int64_t begin, int64_t end);

FASTADV_NAMESPACE_END
