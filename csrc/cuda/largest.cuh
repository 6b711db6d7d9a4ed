// The largest logits of a row, and the sums of a softmax, in one pass: what threads meet with.
#pragma once

#include "../math.h"
#include "device.cuh"

namespace fastadv::cuda {

constexpr int kNoClass = 0x7fffffff;  // the class of a logit that is not there: it comes last

// Order of the logits: NaN is the largest, as in torch.argmax and torch.sort, and the first of
// equals comes first.
template <class C>
FASTADV_DEVICE bool ahead(C a, int class_a, C b, int class_b) {
  const bool greater = !(a <= b) && b == b, less = !(b <= a) && a == a;
  return greater || (!less && class_a < class_b);
}

// The `kKept` largest, the largest first: torch.sort(stable=True, descending=True).
template <class C, int kKept>
struct Largest {
  C value[kKept];
  int index[kKept];

  FASTADV_DEVICE static Largest none() {
    Largest all;
    for (int m = 0; m < kKept; ++m) all.value[m] = -C(__builtin_inf()), all.index[m] = kNoClass;
    return all;
  }
  FASTADV_DEVICE void insert(C v, int c) {  // from its place on everything moves down one
#pragma unroll
    for (int m = 0; m < kKept; ++m) {
      if (!ahead(v, c, value[m], index[m])) continue;
      const C value_below = value[m];
      const int index_below = index[m];
      value[m] = v, index[m] = c;
      v = value_below, c = index_below;
    }
  }
  FASTADV_DEVICE Largest operator+(const Largest& other) const {
    Largest all = *this;
#pragma unroll
    for (int m = 0; m < kKept; ++m) all.insert(other.value[m], other.index[m]);
    return all;
  }
};

FASTADV_DEVICE float exponential(float v) { return expf(v); }
FASTADV_DEVICE double exponential(double v) { return exp(v); }
FASTADV_DEVICE float logarithm(float v) { return logf(v); }
FASTADV_DEVICE double logarithm(double v) { return log(v); }
FASTADV_DEVICE float logarithm1(float v) { return log1pf(v); }  // log(1 + v)
FASTADV_DEVICE double logarithm1(double v) { return log1p(v); }

// exp(z - top), 1 where both are -inf.
template <class C>
FASTADV_DEVICE C weight_of(C z, C top) {
  return z == top ? C(1) : exponential(z - top);
}

// What softmax needs of the logits seen so far, relative to the largest of them, `top`. Its own 1
// is kept out of `rest`: what it is added to survives, and a loss or a gradient of 1e-20 is not
// rounded to 0, where a sample that is sure of y would stall.
template <class C>
struct Softmax {
  C top;
  int index;
  C rest;  // the sum of exp(z - top) over all but the top

  FASTADV_DEVICE static Softmax of(C z, int c) { return {z, c, C(0)}; }
  FASTADV_DEVICE static Softmax none() { return of(-C(__builtin_inf()), kNoClass); }
  FASTADV_DEVICE Softmax operator+(const Softmax& other) const {
    const bool first = ahead(top, index, other.top, other.index);
    const Softmax a = first ? *this : other, b = first ? other : *this;
    return {a.top, a.index, a.rest + (b.rest + C(1)) * weight_of(b.top, a.top)};
  }
};

// The same with weights y, for KL(y || softmax(z)).
template <class C>
struct Cross {
  Softmax<C> softmax;
  C mass;   // sum of y
  C cross;  // sum of y (log y - (z - top))

  FASTADV_DEVICE static Cross of(C z, int c, C y) {
    const C term = y > 0 ? y * logarithm(y) : y == 0 ? C(0) : C(__builtin_nan(""));
    return {Softmax<C>::of(z, c), y, term};
  }
  FASTADV_DEVICE static Cross none() { return {Softmax<C>::none(), C(0), C(0)}; }
  FASTADV_DEVICE Cross operator+(const Cross& other) const {
    const Softmax<C> both = softmax + other.softmax;
    return {both, mass + other.mass, lowered(both.top) + other.lowered(both.top)};
  }

 private:
  FASTADV_DEVICE C lowered(C top) const {  // `cross`, relative to another top
    return mass == 0 || softmax.top == top ? cross : cross + mass * (top - softmax.top);
  }
};

}  // namespace fastadv::cuda
