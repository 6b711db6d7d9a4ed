// exp and log of a register of numbers. GCC does not vectorise libm's.
//
// Both are series without fitted constants: exp's Taylor series on |r| <= log(2)/2, and
// log(m) = 2 atanh((m - 1) / (m + 1)) on 1/sqrt(2) <= m <= sqrt(2), cut where the rest is below a
// tenth of an ulp. Largest errors measured, in ulp (every float of the domain; 5e7 doubles a
// range):
//   exp 1.22 (double 1.17), log 0.96 (1.30), log1p 1.33 (1.55)
#pragma once

#include "../math.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

template <class V>
struct Series;
template <>
struct Series<Floats> {
  static constexpr int kMantissa = 23, kBias = 127, kExpTerms = 7, kLogTerms = 5;
  static constexpr double kLowest = -86.6;       // exp of it is still a normal number
  static constexpr double kRound = 0x1.8p23;     // x + kRound - kRound rounds x to an integer
  static constexpr double kLn2High = 0x1.63p-1;  // short enough for exact multiples of it
  static constexpr double kLn2Low = -0x1.bd0106p-13;
};
template <>
struct Series<Doubles> {
  static constexpr int kMantissa = 52, kBias = 1023, kExpTerms = 13, kLogTerms = 11;
  static constexpr double kLowest = -707.7;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42feep-1;
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
};

struct Coefficients {
  double exp[14], log[12];
  constexpr Coefficients() : exp(), log() {
    exp[0] = 1;
    for (int k = 1; k < 14; ++k) exp[k] = exp[k - 1] / k;
    for (int k = 0; k < 12; ++k) log[k] = 2. / (2 * k + 1);
  }
};
constexpr Coefficients kCoefficients;

// exp(x) for x <= 0: 0 below Series::kLowest (nothing that is added to 1 sees it), NaN passes.
template <class V>
FASTADV_FN V exp_of_negative(V x) {
  using S = Series<V>;
  const V lowest = constant<V>(S::kLowest);
  const V bounded = x < lowest ? lowest : x;
  const V shifted = bounded * constant<V>(0x1.71547652b82fep0) + constant<V>(S::kRound);
  const V n = shifted - constant<V>(S::kRound);
  const V r = (bounded - n * constant<V>(S::kLn2High)) - n * constant<V>(S::kLn2Low);
  V sum = constant<V>(kCoefficients.exp[S::kExpTerms]);
#pragma GCC unroll 16
  for (int k = S::kExpTerms - 1; k >= 0; --k) sum = sum * r + constant<V>(kCoefficients.exp[k]);
  // The integer n stands in the last bits of `shifted`; in the exponent's place it is 2^n.
  const V power = bit_cast<V>((bit_cast<Int<V>>(shifted) + S::kBias) << S::kMantissa);
  return x < lowest ? V{} : sum * power;
}

// log(x) for normal x > 0; NaN passes. A subnormal x counts as 2^-127 to 2^-126 (2^-1023 ...).
template <class V>
FASTADV_FN V log_of_positive(V x) {
  using S = Series<V>;
  const Int<V> bits = bit_cast<Int<V>>(x);
  const Int<V> mantissa = bits & (((Int<V>{} + 1) << S::kMantissa) - 1);
  V m = bit_cast<V>(mantissa | bit_cast<Int<V>>(constant<V>(1)));
  const Int<V> large = m > constant<V>(0x1.6a09e667f3bcdp0);  // sqrt(2): a mask, -1 where true
  m = large ? m * constant<V>(.5) : m;
  const Int<V> exponent = (bits >> S::kMantissa) - S::kBias - large;
  // An integer in the last bits of kRound is that integer after kRound is taken off again.
  const V round = constant<V>(S::kRound);
  const V n = bit_cast<V>(bit_cast<Int<V>>(round) + exponent) - round;
  const V f = m - constant<V>(1), s = f / (f + constant<V>(2)), square = s * s;
  V sum = constant<V>(kCoefficients.log[S::kLogTerms]);
#pragma GCC unroll 16
  for (int k = S::kLogTerms - 1; k >= 1; --k)
    sum = sum * square + constant<V>(kCoefficients.log[k]);
  // log(1 + f) = f - s * (f - square * sum), which keeps f's bits
  const V log_m = f - s * (f - square * sum);
  return n * constant<V>(S::kLn2High) + (n * constant<V>(S::kLn2Low) + log_m) + (x - x);
}

// log(1 + t) for t >= 0, given 1 / (1 + t): right to the last bits where t is far below 1.
template <class V>
FASTADV_FN V log1p_of_positive(V t, V inverse) {
  const V u = constant<V>(1) + t;
  return log_of_positive(u) + (t - (u - constant<V>(1))) * inverse;
}

FASTADV_NAMESPACE_END
