// x_adv <- x + min(1, radius / ||v||) v,  v = x_adv - x + step_size * grad / ||grad||; then the
// box.
//
// A block has a sample. Up to 4096 elements it is held in registers: 12 B read and 4 B written an
// element in fp32, once. A longer one is read twice, 28 B: three sums, ||d||^2, <d, grad> and
// ||grad||^2 with d = x_adv - x, tell ||v||. Sums are in double: 4 B an element at 3.35 TB/s are
// 0.6e12 products a second, where an H100 does 17e12.
#pragma once

#include "../sample.h"
#include "sample.cuh"
#include "team.cuh"

namespace fastadv::cuda {

// A gradient whose squares leave the numbers is taken in units of its largest element.
template <class C>
struct Unit {
  C value = 1;
  bool used = false;
  FASTADV_DEVICE C of(C grad) const { return used ? grad / value : grad; }
};

template <int kThreads, class C, class S>
FASTADV_DEVICE Unit<C> unit_of(const S& sample) {
  C largest = 0;
  sample.each_grad([&](auto grad) {
    const C g = number(grad), magnitude = turn(g, g);
    largest = magnitude > largest ? magnitude : largest;
  });
  largest = over_block<kThreads>(largest, Greatest());
  return {largest > 0 && largest - largest == 0 ? largest : C(1), true};
}

template <int kThreads, class C, class S>
FASTADV_DEVICE Moments moments_of(const S& sample, const Unit<C>& unit) {
  Moments sums{0, 0, 0};
  sample.each([&](C point, C origin, C grad) {
    const double d = double(point - origin), g = double(unit.of(grad));
    sums = sums + Moments{d * d, d * g, g * g};
  });
  return over_block<kThreads>(sums, Add());
}

template <class T, class G, bool kHasX, int kThreads, int kHeld>
__global__ void __launch_bounds__(kThreads, 1)
    step_l2(const StepArgs args, bool aligned, bool each) {
  using C = Compute<T>;
  const int64_t index = blockIdx.x;
  const Sample<T, G, kHasX, kThreads, kHeld> sample(args, index, aligned, each);
  const double step_size = value_of<C>(args.step_size, index);
  Unit<C> unit;
  Moments moments = moments_of<kThreads>(sample, unit);
  if (!measurable<C>(moments.gg, args.steepest)) {
    unit = unit_of<kThreads, C>(sample);
    moments = moments_of<kThreads>(sample, unit);
  }
  const double step_by = step_of<C>(
      moments.gg, args.steepest ? step_size : step_size * double(unit.value), args.steepest);
  const C step = C(step_by);
  double vv = moments.after(step_by);
  if (!moments.tell(step_by)) {
    double sum = 0;
    sample.each([&](C point, C origin, C grad) {
      const double v = double(point - origin + step * unit.of(grad));
      sum += v * v;
    });
    vv = over_block<kThreads>(sum, Add());
  }
  const C scale = C(scale_of<C>(vv, value_of<C>(args.radius, index), args.size));
  const bool inside = scale == 1;
  sample.write([&](C point, C origin, C grad, C lower, C upper) {
    const C stride = step * unit.of(grad);
    const C moved = add_towards(origin, scale * (point - origin + stride));
    // Where nothing moves the point stays to the bit: x + (x_adv - x) need not be x_adv.
    return place_towards<T>(inside && stride == 0 ? point : moved, origin, lower, upper);
  });
}

}  // namespace fastadv::cuda
