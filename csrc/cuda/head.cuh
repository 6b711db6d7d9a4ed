// Logits to loss, gradient of the logits of the summed loss, and prediction. What the heads define,
// at every edge, stands in fastadv/reference_head.py.
//
// A warp has a row of up to about 1000 classes and holds it in registers: 4 B read and 4 B written
// a logit in fp32, once (bce and kl read 4 more, for y). A longer row is a block's, which reads it
// twice, 8 B; the largest logit and the sums relative to it are found in one pass (largest.cuh).
#pragma once

#include "access.cuh"
#include "largest.cuh"
#include "team.cuh"

namespace fastadv::cuda {

constexpr int kHeadThreads = 128;  // of a block: 4 warps with a row each

// A row of logits, and for bce and kl of y, as a team of kTeam threads sees it: see sample.cuh.
template <class T, bool kHasY, int kTeam, int kHeld>
class Row {
 public:
  using C = Compute<T>;
  FASTADV_DEVICE Row(const HeadArgs& args, int64_t row, int rank, bool aligned)
      : span_(row, args.classes, aligned),
        rank_(rank),
        logits_(static_cast<const T*>(args.logits)),
        y_(static_cast<const C*>(args.y)),
        grad_(static_cast<T*>(args.grad)) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (vector(i) < span_.vectors()) held_[i] = read(span_.place(vector(i)));
      }
    }
  }
  // f(logit, y, class)
  template <class F>
  FASTADV_DEVICE void each(F f) const {
    vectors([&](const Place& place, const Parts& parts) {
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) {
        if (j < place.low || j >= place.high) continue;
        f(number(parts.logits.lane[j]), y_of(parts, j), class_of(place, j));
      }
    });
  }
  // The gradient <- f(logit, y, class).
  template <class F>
  FASTADV_DEVICE void write(F f) const {
    vectors([&](const Place& place, const Parts& parts) {
      Pack<T> grad{};
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) {
        if (j < place.low || j >= place.high) continue;
        const C g = f(number(parts.logits.lane[j]), y_of(parts, j), class_of(place, j));
        grad.lane[j] = stored<T>(encode<T>(g));
      }
      store(grad_, place, grad);
    });
  }
  FASTADV_DEVICE C logit(int c) const { return c < 0 ? C(0) : number(logits_[span_.begin + c]); }
  FASTADV_DEVICE int64_t begin() const { return span_.begin; }

 private:
  struct Parts {
    Pack<T> logits;
    Pack<C, kHasY ? kLanes<T> : 1> y;
  };
  FASTADV_DEVICE static C y_of(const Parts& parts, int j) {
    return kHasY ? parts.y.lane[kHasY ? j : 0] : C(0);
  }
  FASTADV_DEVICE int class_of(const Place& place, int j) const {
    return int(place.at - span_.begin) + j;
  }
  FASTADV_DEVICE int64_t vector(int i) const { return rank_ + i * kTeam; }
  FASTADV_DEVICE Parts read(const Place& place) const {
    Parts parts;
    parts.logits = load<kLanes<T>>(logits_, place);
    if constexpr (kHasY) parts.y = load<kLanes<T>>(y_, place);
    return parts;
  }
  template <class F>
  FASTADV_DEVICE void vectors(F f) const {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (vector(i) < span_.vectors()) f(span_.place(vector(i)), held_[i]);
      }
    } else {
      for (int64_t k = rank_; k < span_.vectors(); k += kTeam) {
        const Place place = span_.place(k);
        f(place, read(place));
      }
    }
  }

  Span<T> span_;
  int rank_;
  const T* logits_;
  const C* y_;
  T* grad_;
  Parts held_[kHeld > 0 ? kHeld : 1];
};

template <class C>
struct Outcome {
  C loss;
  int prediction;
};

template <class C>
FASTADV_DEVICE C nan_unless(bool valid, C v) {
  return valid ? v : C(__builtin_nan(""));
}

// -log softmax(z)_y.
template <int kTeam, class C, class R>
FASTADV_DEVICE Outcome<C> cross_entropy(const R& row, int y, C sign) {
  auto all = Softmax<C>::none();
  row.each([&](C z, C, int c) { all = all + Softmax<C>::of(z, c); });
  all = over_team<kTeam>(all, Add());
  const bool valid = y >= 0;
  const C at_label = row.logit(y) - all.top;
  const C rest = all.rest + (all.top - all.top);  // NaN if the largest is not finite, as in torch
  const C total = C(1) + rest, scale = sign / total;
  const C less_one = y == all.index ? -rest : exponential(at_label) - total;
  row.write([&](C z, C, int c) {
    return valid ? (c == y ? less_one : exponential(z - all.top)) * scale : C(0);
  });
  return {nan_unless(valid, sign * (logarithm1(rest) - at_label)), all.index};
}

// KL(y || softmax(z)) = sum_j y_j (log y_j - log softmax(z)_j), 0 where y_j = 0.
template <int kTeam, class C, class R>
FASTADV_DEVICE Outcome<C> kl(const R& row, C sign) {
  auto all = Cross<C>::none();
  row.each([&](C z, C y, int c) { all = all + Cross<C>::of(z, c, y); });
  all = over_team<kTeam>(all, Add());
  const C top = all.softmax.top, rest = all.softmax.rest + (top - top);
  const C scale = all.mass / (C(1) + rest);
  row.write([&](C z, C y, int) { return sign * (exponential(z - top) * scale - y); });
  return {sign * (all.cross + all.mass * logarithm1(rest)), all.softmax.index};
}

// sum_j log(1 + exp(s_j)), s = (1 - 2 y) z; an entry of y that is neither 0 nor 1 gives a NaN loss.
template <int kTeam, class C, class R>
FASTADV_DEVICE C binary_cross_entropy(const R& row, C sign, bool* prediction) {
  C loss = 0;
  row.write([&](C z, C y, int c) {
    const bool one = y == 1, valid = one || y == 0;
    const C s = one ? -z : z, e = exponential(s > 0 ? -s : s);
    const C sigmoid = s > 0 ? C(1) / (C(1) + e) : e / (C(1) + e);
    loss += nan_unless(valid, (s < 0 ? C(0) : s) + logarithm1(e));
    prediction[row.begin() + c] = z > 0;
    return valid ? sign * (one ? -sigmoid : sigmoid) : C(0);
  });
  return sign * over_team<kTeam>(loss, Add());
}

// max_{j != y} z_j - z_y.
template <int kTeam, class C, class R>
FASTADV_DEVICE Outcome<C> margin(const R& row, int y, C sign) {
  auto other = Largest<C, 1>::none();
  row.each([&](C z, C, int c) { other.insert(c == y ? -C(__builtin_inf()) : z, c); });
  other = over_team<kTeam>(other, Add());
  const bool valid = y >= 0;
  const C at_label = row.logit(y);
  row.write([&](C, C, int c) {
    const int up = c == other.index[0], down = c == y;
    return valid ? sign * C(up - down) : C(0);
  });
  const C loss = nan_unless(valid, sign * (other.value[0] - at_label));
  if (valid) other.insert(at_label, y);
  return {loss, other.index[0]};
}

// (max_{j != y} z_j - z_y) / (z_1st - z_3rd), targeted (z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2).
// Where the divisor is 0 (the top logits are equal: no scale) it counts as 1.
template <int kTeam, bool kTargeted, class C, class R>
FASTADV_DEVICE Outcome<C> dlr(const R& row, int y, int target) {
  constexpr int kKept = kTargeted ? 4 : 3;
  auto top = Largest<C, kKept>::none();
  row.each([&](C z, C, int c) { top.insert(z, c); });
  top = over_team<kTeam>(top, Add());
  const bool valid = y >= 0 && (!kTargeted || target >= 0);
  const int other = kTargeted ? target : (top.index[0] != y ? top.index[0] : top.index[1]);
  const C above = kTargeted ? row.logit(target) : (top.index[0] != y ? top.value[0] : top.value[1]);
  const C spread = top.value[0] - (top.value[2] + top.value[kKept - 1]) * C(.5);
  const C divisor = spread == 0 ? C(1) : spread, slope = C(1) / divisor;
  const C loss = (above - row.logit(y)) / divisor;
  const C pull = spread == 0 ? C(0) : loss * slope, half = pull * C(.5);
  row.write([&](C, C, int c) {
    C g = c == other ? slope : C(0);
    g += c == y ? -slope : C(0);
    g += c == top.index[0] ? -pull : C(0);
    g += c == top.index[2] ? half : C(0);
    g += c == top.index[kKept - 1] ? half : C(0);
    return valid ? g : C(0);
  });
  return {nan_unless(valid, loss), top.index[0]};
}

// The label of a row, -1 if it is no class, so that nothing outside the row is ever read.
FASTADV_DEVICE int label_of(const void* labels, int64_t row, int64_t classes) {
  const int64_t label = static_cast<const int64_t*>(labels)[row];
  return label >= 0 && label < classes ? int(label) : -1;
}

template <Head kHead, bool kTargeted, class T, int kTeam, int kHeld>
__global__ void __launch_bounds__(kTeam == 32 ? kHeadThreads : kTeam)
    head(const HeadArgs args, bool aligned) {
  using C = Compute<T>;
  constexpr int kRows = kTeam == 32 ? kHeadThreads / 32 : 1;
  constexpr bool kHasY = kHead == kBinaryCrossEntropy || kHead == kKl;
  const int64_t index = int64_t(blockIdx.x) * kRows + threadIdx.x / kTeam;
  if (index >= args.samples) return;  // a whole warp
  const int rank = int(threadIdx.x % kTeam);
  const Row<T, kHasY, kTeam, kHeld> row(args, index, rank, aligned);
  const C sign = args.targeted ? C(-1) : C(1);
  const int y = kHasY ? -1 : label_of(args.y, index, args.classes);
  Outcome<C> outcome;
  if constexpr (kHead == kCrossEntropy) outcome = cross_entropy<kTeam>(row, y, sign);
  if constexpr (kHead == kKl) outcome = kl<kTeam>(row, sign);
  if constexpr (kHead == kMargin) outcome = margin<kTeam>(row, y, sign);
  if constexpr (kHead == kDlr) {
    const int target = kTargeted ? label_of(args.target, index, args.classes) : -1;
    outcome = dlr<kTeam, kTargeted, C>(row, y, target);
  }
  if constexpr (kHead == kBinaryCrossEntropy) {
    outcome.loss = binary_cross_entropy<kTeam>(row, sign, static_cast<bool*>(args.prediction));
  }
  if (rank != 0) return;
  static_cast<C*>(args.loss)[index] = outcome.loss;
  if constexpr (kHead != kBinaryCrossEntropy) {
    static_cast<int64_t*>(args.prediction)[index] = outcome.prediction;
  }
}

}  // namespace fastadv::cuda
