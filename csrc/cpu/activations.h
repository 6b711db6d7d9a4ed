// Activations and their slopes on a register of numbers, with torch's values where a slope jumps.
// Slopes are float64's within 2e-6 (tests/engine/test_dense.py).
#pragma once

#include "elementary.h"
#include "kernels.h"

FASTADV_NAMESPACE_BEGIN

struct Activated {
  Floats value, slope;
};

FASTADV_FN Floats magnitude(Floats v) { return bit_cast<Floats>(bit_cast<Ints>(v) & 0x7fffffff); }

FASTADV_FN Floats tanh_of(Floats v) {
  const Floats size = magnitude(v), square = v * v;
  const Floats e = exp_of_negative(size * -2), t = (1 - e) / (1 + e);
  // Near 0 the difference cancels; there the series' rest is below half an ulp.
  const Floats series = v * (1 + square * (-1.f / 3 + square * (2.f / 15 + square * -17.f / 315)));
  return size < .2f ? series : v < 0 ? -t : t;
}

// x P(X <= x) of a normal X, its tail by Abramowitz and Stegun 7.1.26: to 7.5e-8.
FASTADV_FN Activated gelu(Floats v) {
  const Floats t =
      1 / multiply_add(magnitude(v), broadcast(0.23164189f), broadcast(1));  // .3275911
  const Floats e = exp_of_negative(v * v * -.5f);                            // / sqrt(2)
  Floats sum = multiply_add(t, broadcast(1.061405429f), broadcast(-1.453152027f));
  sum = multiply_add(t, sum, broadcast(1.421413741f));
  sum = multiply_add(t, sum, broadcast(-.284496736f));
  sum = multiply_add(t, sum, broadcast(.254829592f));
  const Floats tail = .5f * t * sum * e, below = v < 0 ? tail : 1 - tail;
  return {v * below, multiply_add(v, e * .39894228f, below)};  // 1 / sqrt(2 pi)
}

FASTADV_FN Activated gelu_by_tanh(Floats v) {
  const Floats square = v * v, k = v - v + .79788456f;  // sqrt(2 / pi)
  const Floats t = tanh_of(k * v * (1 + .044715f * square));
  const Floats inner = k * (1 + 3 * .044715f * square);
  return {.5f * v * (1 + t), .5f * (1 + t) + .5f * v * (1 - t * t) * inner};
}

FASTADV_FN Activated sigmoid(Floats v) {
  const Floats e = exp_of_negative(-magnitude(v)), share = 1 / (1 + e);
  return {v < 0 ? e * share : share, e * share * share};
}

template <Activation kWhich>
FASTADV_FN Activated activate(Floats v, float leak) {
  if constexpr (kWhich == kRectified) {
    const Ints positive = ~(v <= 0);  // so that NaN passes
    return {positive ? v : Floats{}, positive ? constant<Floats>(1) : Floats{}};
  } else if constexpr (kWhich == kLeaky) {
    const Ints positive = v > 0;
    return {positive ? v : v * leak, positive ? constant<Floats>(1) : broadcast(leak)};
  } else if constexpr (kWhich == kGelu) {
    return gelu(v);
  } else if constexpr (kWhich == kGeluByTanh) {
    return gelu_by_tanh(v);
  } else if constexpr (kWhich == kTanh) {
    const Floats t = tanh_of(v);
    return {t, 1 - t * t};
  } else {
    return sigmoid(v);
  }
}

FASTADV_NAMESPACE_END
