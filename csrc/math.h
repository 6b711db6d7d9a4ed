// The scalar formulas of every update, for host and device. They stand here and nowhere else in
// C++.
//
// Each is a template on the number `C` it computes with: float or double on a device, a vector of
// them in csrc/cpu (comparisons then give masks, and ?: selects lane by lane). Data of dtype `T` is
// held in a register as its bits, one integer a lane: decode<T> gives its value, encode<T> rounds.
//
// Two promises are kept by arithmetic alone, in every dtype, and need no tolerance in a test:
//   linf: |x_adv - x| <= radius for the stored numbers. fl(x + r) may lie beyond the real x + r (by
//         half an ulp, 3e-8 at x = .9), so the ball's end is rounded towards x.
//   l2, l1: each coordinate of x + w is rounded towards x, so |stored - x| <= |w| and no norm
//   grows.
//
// Built with -ffp-contract=off (nvcc --fmad=false): a fused multiply-add would change bits.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTADV_FN __host__ __device__ __forceinline__
#else
#define FASTADV_FN inline __attribute__((always_inline))
#endif

// Each ISA's build lives in its own namespace, inline functions included: were they shared, the
// linker could keep the AVX-512 copy of one and run it on a processor without AVX-512.
#if defined(FASTADV_ISA)
#define FASTADV_NAMESPACE_BEGIN \
  namespace fastadv {           \
  namespace FASTADV_ISA {
#define FASTADV_NAMESPACE_END \
  }                           \
  }
#else
#define FASTADV_NAMESPACE_BEGIN namespace fastadv {
#define FASTADV_NAMESPACE_END }
#endif

FASTADV_NAMESPACE_BEGIN

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// What data of dtype T is computed in.
template <class T>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::Type;

// The integer (or vector of integers) as wide as the number C; simd.h adds the vectors.
template <class C>
struct IntOf;
template <>
struct IntOf<float> {
  using Type = int32_t;
};
template <>
struct IntOf<double> {
  using Type = int64_t;
};
template <class C>
using Int = typename IntOf<C>::Type;

template <class To, class From>
FASTADV_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class C>
FASTADV_FN C constant(double value) {
  return C{} + decltype(C{}[0])(value);  // so a constant is never -0
}
template <>
FASTADV_FN float constant<float>(double value) {
  return float(value);
}
template <>
FASTADV_FN double constant<double>(double value) {
  return value;
}

template <class C>
FASTADV_FN C largest_number() {
  return constant<C>(sizeof(C{}[0]) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023);
}
template <>
FASTADV_FN float largest_number<float>() {
  return 0x1.fffffep127f;
}
template <>
FASTADV_FN double largest_number<double>() {
  return 0x1.fffffffffffffp1023;
}

template <class T>
struct Format {  // float and double are their own bits
  template <class C>
  FASTADV_FN static C decode(Int<C> bits) {
    return bit_cast<C>(bits);
  }
  template <class C>
  FASTADV_FN static Int<C> encode(C v) {
    return bit_cast<Int<C>>(v);
  }
};
template <>
struct Format<bfloat16> {
  template <class C>
  FASTADV_FN static C decode(Int<C> bits) {
    return bit_cast<C>(bits << 16);
  }
  template <class C>
  FASTADV_FN static Int<C> encode(C v) {  // to nearest, ties to even, as torch's casts do
    const Int<C> bits = bit_cast<Int<C>>(v);
    const Int<C> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 & 0xffff;
    return v == v ? rounded : (bits >> 16 & 0x8000) | 0x7fc0;
  }
};
template <>
struct Format<float16> {
  template <class C>
  FASTADV_FN static C decode(Int<C> bits) {
    const Int<C> magnitude = (bits & 0x7fff) << 13;
    // Rebias the exponent by a multiplication (exact, and right for subnormals); inf, NaN by hand.
    const Int<C> finite = bit_cast<Int<C>>(bit_cast<C>(magnitude) * 0x1p112f);
    const Int<C> value = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite;
    return bit_cast<C>(value | (bits & 0x8000) << 16);
  }
  template <class C>
  FASTADV_FN static Int<C> encode(C v) {
    const Int<C> bits = bit_cast<Int<C>>(v);
    const Int<C> magnitude = bits & 0x7fffffff;
    // Below 2^-14 the result is subnormal: adding .5 leaves it, rounded, in the low mantissa bits.
    const Int<C> tiny = bit_cast<Int<C>>(bit_cast<C>(magnitude) + .5f) - 0x3f000000;
    const Int<C> normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const Int<C> finite = magnitude < 0x38800000 ? tiny : normal;
    const Int<C> infinite =
        magnitude > 0x7f800000 ? magnitude * 0 + 0x7e00 : magnitude * 0 + 0x7c00;
    return (magnitude >= 0x47800000 ? infinite : finite) | (bits >> 16 & 0x8000);
  }
};
template <class T, class C>
FASTADV_FN C decode(Int<C> bits) {
  return Format<T>::template decode<C>(bits);
}
template <class T, class C>
FASTADV_FN Int<C> encode(C v) {
  return Format<T>::template encode<C>(v);
}

// v with its sign turned where `by` is negative.
template <class C>
FASTADV_FN C turn(C v, C by) {
  const Int<C> sign_bit = bit_cast<Int<C>>(constant<C>(-1)) ^ bit_cast<Int<C>>(constant<C>(1));
  return bit_cast<C>(bit_cast<Int<C>>(v) ^ (bit_cast<Int<C>>(by) & sign_bit));
}

// The neighbour (one bit away, in T's format) of the number v = decode(bits), against the direction
// of `from`: below where from > 0, above where from < 0. A v of 0 needs from's sign on it, as it
// has where a number beyond it was rounded to it.
template <class C>
FASTADV_FN Int<C> next_against(Int<C> bits, C v, C from) {
  return turn(v, from) > 0 ? bits - 1 : bits + 1;
}

// a + b rounded towards a: |result - a| <= |b| holds exactly. Knuth's TwoSum gives the rounding
// error, and its sign says whether the sum overshot.
template <class C>
FASTADV_FN C add_towards(C a, C b) {
  const C sum = a + b;
  const C b_part = sum - a;
  const C error = (a - (sum - b_part)) + (b - b_part);
  const Int<C> bits = bit_cast<Int<C>>(sum);
  return bit_cast<C>(turn(error, b) < 0 ? next_against(bits, sum, b) : bits);
}

// a + b rounded down and a - b rounded up, for b >= 0: the same with fewer operations, since the
// side is known. simd.h gives them in one instruction where the processor has one.
//
// The sum s overshot exactly if fl(s - a) > b or fl(s - b) > a: rounding is monotonic, so a sum
// that did not overshoot passes neither test, and the difference to the larger of a and b is exact.
template <class C>
FASTADV_FN C add_down(C a, C b) {
  const C sum = a + b;
  const Int<C> overshot = (sum - a > b) | (sum - b > a);
  return bit_cast<C>(overshot ? next_against(bit_cast<Int<C>>(sum), sum, b)
                              : bit_cast<Int<C>>(sum));
}
template <class C>
FASTADV_FN C subtract_up(C a, C b) {
  const C difference = a - b;
  const Int<C> overshot = (a - difference > b) | (difference + b < a);
  return bit_cast<C>(overshot ? next_against(bit_cast<Int<C>>(difference), difference, -b)
                              : bit_cast<Int<C>>(difference));
}

// 1, -1, or 0 for zero and NaN.
template <class C>
FASTADV_FN C sign(C v) {
  return turn(v, v) > 0 ? turn(constant<C>(1), v) : constant<C>(0);
}
// NaN passes, as in torch.clamp.
template <class C>
FASTADV_FN C clamp(C v, C lower, C upper) {
  v = v < lower ? lower : v;
  return v > upper ? upper : v;
}

// v rounded to T, or its neighbour where the rounding left [lower, upper], as bits.
template <class T, class C>
FASTADV_FN Int<C> encode_within(C v, C lower, C upper) {
  const Int<C> nearest = encode<T>(v);
  if constexpr (sizeof(T) >= 4) {
    return nearest;
  } else {
    const C value = decode<T, C>(nearest), rounding = value - v;
    const Int<C> beyond = (value > upper) | (value < lower);
    return beyond ? next_against(nearest, value, rounding) : nearest;
  }
}

// linf: the point of T nearest to v in {|x_adv - x| <= radius} and the box, as bits.
template <class T, class C>
FASTADV_FN Int<C> project_linf(C v, C x, C radius, C lower, C upper) {
  const C low = subtract_up(x, radius), high = add_down(x, radius);
  return encode_within<T>(clamp(clamp(v, low, high), lower, upper), clamp(low, lower, upper),
                          clamp(high, lower, upper));
}

// l2 and l1: v, clamped to the box and rounded towards x, as bits.
template <class T, class C>
FASTADV_FN Int<C> place_towards(C v, C x, C lower, C upper) {
  v = clamp(v, lower, upper);
  const Int<C> nearest = encode<T>(v);
  if constexpr (sizeof(T) >= 4) {
    return nearest;
  } else {
    const C value = decode<T, C>(nearest), rounding = value - v;
    const Int<C> beyond =  // (x may lie beyond the box)
        (turn(rounding, v - x) > 0) | (value > upper) | (value < lower);
    return beyond ? next_against(nearest, value, rounding) : nearest;
  }
}

// l1: what is left of a coordinate after the soft threshold, capped at its distance to the box.
template <class C>
FASTADV_FN C shrink(C magnitude, C threshold, C cap) {
  return clamp(magnitude - threshold, constant<C>(0), cap);
}

// Philox4x32-10 (Salmon et al. 2011): four words for (block, stream, sample) under a 64-bit seed.
struct Words {
  uint32_t word[4];
};
FASTADV_FN Words philox(uint64_t seed, uint32_t block, uint32_t stream, uint64_t sample) {
  uint32_t c0 = block, c1 = stream, c2 = uint32_t(sample), c3 = uint32_t(sample >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(p1);
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// One element's share of a sample's digest (splitmix64's finaliser); shares are summed mod 2^64,
// so order and threads do not matter.
FASTADV_FN uint64_t digest_share(uint64_t bits, uint64_t index) {
  uint64_t z = bits + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

FASTADV_NAMESPACE_END
