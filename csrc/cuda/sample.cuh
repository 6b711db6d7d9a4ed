// A sample as the threads of one block see it: thread t has the vectors t, t + kThreads, ... It is
// held in registers, kHeld vectors a thread, so that each pass over it but the first costs no
// memory access; or (kHeld = 0) it is read again by each pass.
#pragma once

#include "access.cuh"

namespace fastadv::cuda {

// `G` is the gradient's dtype; without an x the point is a perturbation and x is zero.
template <class T, class G, bool kHasX, int kThreads, int kHeld>
class Sample {
 public:
  using C = Compute<T>;

  FASTADV_DEVICE Sample(const StepArgs& args, int64_t sample, bool aligned, bool each)
      : span_(sample, args.size, aligned),
        bounds_(args.box, each),
        x_adv_(static_cast<T*>(args.x_adv)),
        grad_(static_cast<const G*>(args.grad)),
        x_(static_cast<const T*>(args.x)) {
    if constexpr (kHeld > 0) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (vector(i) < span_.vectors()) held_[i] = read(span_.place(vector(i)));
      }
    }
  }

  // f(point, origin, grad) of every element; zeros come along where a vector is not whole.
  template <class F>
  FASTADV_DEVICE void each(F f) const {
    vectors([&](const Place&, const Parts& parts) {
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) {
        f(number(parts.point.lane[j]), origin_of(parts, j), number(parts.grad.lane[j]));
      }
    });
  }
  // f(grad), as it is stored: where memory is read again, 4 B an element in place of 12.
  template <class F>
  FASTADV_DEVICE void each_grad(F f) const {
    if constexpr (kHeld > 0) {
      vectors([&](const Place&, const Parts& parts) {
#pragma unroll
        for (int j = 0; j < kLanes<T>; ++j) f(parts.grad.lane[j]);
      });
    } else {
      for (int64_t k = threadIdx.x; k < span_.vectors(); k += kThreads) {
        const auto grad = load<kLanes<T>>(grad_, span_.place(k));
#pragma unroll
        for (int j = 0; j < kLanes<T>; ++j) f(grad.lane[j]);
      }
    }
  }
  // f(point, origin, grad, lower, upper), and with write() its result's bits are the new x_adv.
  template <class F>
  FASTADV_DEVICE void each_boxed(F f) const {
    vectors([&](const Place& place, const Parts& parts) {
      C lower[kLanes<T>], upper[kLanes<T>];
      bounds_.of(place.at - span_.begin, lower, upper);
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) {
        f(number(parts.point.lane[j]), origin_of(parts, j), number(parts.grad.lane[j]), lower[j],
          upper[j]);
      }
    });
  }
  template <class F>
  FASTADV_DEVICE void write(F f) const {
    vectors([&](const Place& place, const Parts& parts) {
      C lower[kLanes<T>], upper[kLanes<T>];
      bounds_.of(place.at - span_.begin, lower, upper);
      Pack<T> moved;
#pragma unroll
      for (int j = 0; j < kLanes<T>; ++j) {
        moved.lane[j] = stored<T>(f(number(parts.point.lane[j]), origin_of(parts, j),
                                    number(parts.grad.lane[j]), lower[j], upper[j]));
      }
      store(x_adv_, place, moved);
    });
  }

 private:
  struct NoX {};
  struct Parts {
    Pack<T> point;
    Pack<G, kLanes<T>> grad;
    Pack<T, kHasX ? kLanes<T> : 1> origin;
  };

  FASTADV_DEVICE static C origin_of(const Parts& parts, int j) {
    return kHasX ? number(parts.origin.lane[kHasX ? j : 0]) : C(0);
  }
  FASTADV_DEVICE static int64_t vector(int i) { return int64_t(threadIdx.x) + i * kThreads; }
  FASTADV_DEVICE Parts read(const Place& place) const {
    Parts parts;
    parts.point = load<kLanes<T>>(x_adv_, place);
    parts.grad = load<kLanes<T>>(grad_, place);
    if constexpr (kHasX) parts.origin = load<kLanes<T>>(x_, place);
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
      for (int64_t k = threadIdx.x; k < span_.vectors(); k += kThreads) {
        const Place place = span_.place(k);
        f(place, read(place));
      }
    }
  }

  Span<T> span_;
  Bounds<C> bounds_;
  T* x_adv_;
  const G* grad_;
  const T* x_;
  Parts held_[kHeld > 0 ? kHeld : 1];
};

}  // namespace fastadv::cuda
