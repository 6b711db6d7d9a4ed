// Activations and their slopes on a register of numbers, with torch's values where a slope jumps.
// Slopes are float64's within 2e-6 (tests/engine/test_dense.py, test_activations.py).
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
  const Floats square = v * v, k = broadcast(.79788456f);  // sqrt(2 / pi)
  const Floats t = tanh_of(k * v * (1 + .044715f * square));
  const Floats inner = k * (1 + 3 * .044715f * square);
  return {.5f * v * (1 + t), .5f * (1 + t) + .5f * v * (1 - t * t) * inner};
}

FASTADV_FN Activated sigmoid(Floats v) {
  const Floats e = exp_of_negative(-magnitude(v)), share = 1 / (1 + e);
  return {v < 0 ? e * share : share, e * share * share};
}

FASTADV_FN Activated silu(Floats v) {
  const Activated s = sigmoid(v);
  return {v * s.value, multiply_add(v, s.slope, s.value)};
}

// v where v > 0, elsewhere alpha (exp(by v) - 1), both times a scale. Numbers: alpha, scale, by.
FASTADV_FN Activated elu(Floats v, const float* numbers) {
  const Ints positive = v > 0;
  const Floats z = v * numbers[2], e = exp_of_negative(positive ? Floats{} : z);
  // Near 0 the difference cancels; there the series' rest is below half an ulp.
  const Floats series = z * (1 + z * (.5f + z * (1.f / 6 + z * (1.f / 24))));
  const Floats less = z > -.03125f ? series : e - 1;
  const float below = numbers[0] * numbers[1];
  return {positive ? v * numbers[1] : below * less,
          positive ? broadcast(numbers[1]) : below * numbers[2] * e};
}

// log(1 + exp(beta v)) / beta, and v where beta v is above a threshold. Numbers: beta, threshold.
FASTADV_FN Activated softplus(Floats v, const float* numbers) {
  const Floats z = v * numbers[0], e = exp_of_negative(-magnitude(z)), share = 1 / (1 + e);
  const Floats log = log1p_of_positive(e, share) + (z < 0 ? Floats{} : z);
  const Ints straight = z > numbers[1];
  return {straight ? v : log / numbers[0], straight ? constant<Floats>(1)
                                           : z < 0  ? e * share
                                                    : share};
}

// v tanh(softplus(v)). With e = exp(-|v|) that tanh is a ratio of its powers, in which nothing
// cancels: (1 + 2 e) / (1 + 2 e + 2 e^2) for v >= 0, and (e^2 + 2 e) / (e^2 + 2 e + 2) below.
FASTADV_FN Activated mish(Floats v) {
  const Floats e = exp_of_negative(-magnitude(v)), square = e * e;
  const Ints negative = v < 0;
  const Floats above = negative ? square + 2 * e : 1 + 2 * e;
  const Floats t = above / (above + (negative ? constant<Floats>(2) : 2 * square));
  const Floats share = (negative ? e : constant<Floats>(1)) / (1 + e);  // softplus's slope
  return {v * t, multiply_add(v, (1 - t * t) * share, t)};
}

// v clamped to [0, 6] after 3 was added, over 6; and v times that. torch's slopes where it bends.
FASTADV_FN Activated hard_sigmoid(Floats v) {
  const Floats z = v + 3, clamped = z < 0 ? Floats{} : z > 6 ? constant<Floats>(6) : z;
  return {clamped * (1.f / 6), (v > -3) & (v < 3) ? constant<Floats>(1.f / 6) : Floats{}};
}
FASTADV_FN Activated hard_swish(Floats v) {
  const Floats share = hard_sigmoid(v).value;
  const Floats bent = multiply_add(v, constant<Floats>(1.f / 3), constant<Floats>(.5f));
  return {v * share, v <= -3 ? Floats{} : v >= 3 ? constant<Floats>(1) : bent};
}

// Of an activation with two slopes: whether it is the upper one. NaN passes a ReLU and, as in
// torch's scalar code, not its vectors', a clamp. Numbers of a clamp: its bounds.
template <Activation kWhich>
FASTADV_FN Ints passes(Floats v, const float* numbers) {
  if constexpr (kWhich == kLeaky) return v > 0;
  if constexpr (kWhich == kClamped) return ~(v <= numbers[0]) & ~(v >= numbers[1]);
  return ~(v <= 0);
}

template <Activation kWhich>
FASTADV_FN Activated activate(Floats v, const float* numbers) {
  if constexpr (kWhich == kRectified) {
    const Ints positive = passes<kWhich>(v, numbers);
    return {positive ? v : Floats{}, positive ? constant<Floats>(1) : Floats{}};
  } else if constexpr (kWhich == kLeaky) {
    const Ints positive = passes<kWhich>(v, numbers);
    return {positive ? v : v * numbers[0], positive ? constant<Floats>(1) : broadcast(numbers[0])};
  } else if constexpr (kWhich == kClamped) {
    const Floats least = broadcast(numbers[0]), most = broadcast(numbers[1]);
    return {v < least  ? least
            : v > most ? most
                       : v,
            passes<kWhich>(v, numbers) ? constant<Floats>(1) : Floats{}};
  } else if constexpr (kWhich == kGelu) {
    return gelu(v);
  } else if constexpr (kWhich == kGeluByTanh) {
    return gelu_by_tanh(v);
  } else if constexpr (kWhich == kTanh) {
    const Floats t = tanh_of(v);
    return {t, 1 - t * t};
  } else if constexpr (kWhich == kSigmoid) {
    return sigmoid(v);
  } else if constexpr (kWhich == kSilu) {
    return silu(v);
  } else if constexpr (kWhich == kElu) {
    return elu(v, numbers);
  } else if constexpr (kWhich == kSoftplus) {
    return softplus(v, numbers);
  } else if constexpr (kWhich == kMish) {
    return mish(v);
  } else if constexpr (kWhich == kHardSigmoid) {
    return hard_sigmoid(v);
  } else {
    return hard_swish(v);
  }
}

FASTADV_NAMESPACE_END
