// What l2 and l1 take of a whole sample: from its sums, in double, the scalars of its elements. For
// host and device, as math.h.
#pragma once

#include "math.h"

FASTADV_NAMESPACE_BEGIN

// Relative room below the radius. Rounding in float32 or float64 (first term; the elements of v
// carry up to 7 roundings while the point was within the ball) and in the sums (second) stay under
// it, so that what was scaled to radius * (1 - 2 slack) is found inside, and left alone, the next
// time.
template <class C>
FASTADV_FN double slack(int64_t size) {
  const double rounding = sizeof(C) == 4 ? 0x1p-24 : 0x1p-53;
  return 16 * rounding + double(size) * 0x1p-53;
}

// l2: the step along a grad of squared norm gg.
template <class C>
FASTADV_FN double step_of(double gg, double step_size, bool steepest) {
  const double largest = sizeof(C) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308;
  const double length = __builtin_sqrt(gg);
  double step = steepest ? (gg > 0 ? step_size / length : 0.) : step_size;
  // A step beyond all numbers ends where the gradient points, as a shorter one does.
  const double longest = sizeof(C) == 4 ? 1e30 : 1e150;
  if (step * length > longest) step = longest / length;
  // A grad that is itself subnormal takes a shorter step, not inf * 0; and as the elements take it.
  return double(C(step > largest ? largest : step));
}

// l2: the scale, as the elements take it, that leaves ||v||^2 = vv in the ball.
template <class C>
FASTADV_FN double scale_of(double vv, double radius, int64_t size) {
  const double norm = vv > 0 ? __builtin_sqrt(vv) : vv;  // NaN passes
  const double room = slack<C>(size);
  if (!(norm > radius * (1 - room))) return norm == norm ? 1. : norm;
  const double scale = radius * (1 - 2 * room) / norm;
  const C nearest = C(scale);
  return double(nearest) > scale ? double(bit_cast<C>(bit_cast<Int<C>>(nearest) - 1)) : nearest;
}

// l2: whether a gradient's length, and the step over it, follow from the sum of its squares. Else
// it is taken in units of its largest element.
template <class C>
FASTADV_FN bool measurable(double gg, bool steepest) {
  const bool wide = sizeof(C) == 8;
  const double least = wide ? 1e-300 : 1e-60, most = wide ? 1e300 : __builtin_inf();
  return (gg > least || !steepest) && gg < most;
}

// l2: ||d + step * grad||^2 by its parts, and whether they tell it. They cannot tell a v that d and
// the step nearly cancel to (no attack's own step does that from within the ball), nor one of
// overflown products: it is measured, in a pass of its own.
struct Moments {
  double dd, dg, gg;
  FASTADV_FN double after(double step) const { return dd + 2 * step * dg + step * step * gg; }
  FASTADV_FN bool tell(double step) const {
    return after(step) > 1e-3 * (dd + step * step * gg) || !(dd > 0);
  }
  FASTADV_FN Moments operator+(const Moments& other) const {
    return {dd + other.dd, dg + other.dg, gg + other.gg};
  }
};

// l1: how many of a sample's largest |grad| move.
FASTADV_FN int64_t moving_of(double top, int64_t size) {
  const int64_t k = int64_t(top * double(size) + .5);
  return k < 1 ? 1 : (k > size ? size : k);
}

// l1: |u| of a move u, which may be beyond the numbers (NaN alone passes), and how far the box lets
// it go.
template <class C>
FASTADV_FN C magnitude_of_move(C u) {
  const C most = largest_number<C>(), m = turn(u, u);
  return m > most ? most : m;
}
template <class C>
FASTADV_FN C cap_of(C u, C origin, C lower, C upper) {
  return clamp(u > 0 ? upper - origin : origin - lower, constant<C>(0),
               constant<C>(__builtin_inf()));
}

// l1: the sum of what a threshold leaves, and how many coordinates still fall with it.
struct Left {
  double sum;
  int64_t falling;
  FASTADV_FN Left operator+(const Left& other) const {
    return {sum + other.sum, falling + other.falling};
  }
};

// l1: the threshold t that leaves a sum just under `radius`, and never above it, of a sample of
// which 0 leaves `left` and `left_by(t)` tells what t leaves. The sum is a falling, piecewise
// linear function of t: Newton's method inside a bracket.
template <class C, class LeftBy>
FASTADV_FN C threshold_for(LeftBy left_by, double largest, Left left, double radius, double room) {
  const double target = radius * (1 - 2.5 * room);
  C lower = 0, upper = C(largest);  // leave more than the target, and not more than radius
  C at = 0;
  for (int i = 0; i < 64; ++i) {
    C next = left.falling > 0 ? C(at + (left.sum - target) / double(left.falling)) : lower;
    if (!(next > lower && next < upper)) next = lower + (upper - lower) / 2;
    if (!(next > lower && next < upper)) break;  // neighbours
    at = next;
    left = left_by(at);
    if (left.sum > radius * (1 - 2 * room)) {
      lower = at;
    } else {
      upper = at;
      if (left.sum >= radius * (1 - 3 * room)) break;
    }
  }
  return upper;
}

FASTADV_NAMESPACE_END
