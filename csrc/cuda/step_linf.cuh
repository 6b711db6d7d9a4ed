// x_adv <- clamp(x_adv + step_size * sign(grad), x - radius, x + radius), then the box.
//
// One thread, one vector: three 16-byte loads and one 16-byte store, 12 B read and 4 B written an
// element in fp32. 2048 threads with 48 B each on their way are 96 KiB a multiprocessor, six times
// what an H100's bandwidth needs at a latency of 600 ns (3.35 TB/s * 600 ns / 132 = 15 KiB).
#pragma once

#include "access.cuh"

namespace fastadv::cuda {

constexpr int kLinfThreads = 256;

// One element's step, as it is stored.
template <class T, class C>
FASTADV_DEVICE T moved_linf(C point, C grad, C origin, C step_size, bool steepest, C radius,
                            C lower, C upper) {
  const C v = point + step_size * (steepest ? sign(grad) : grad);
  return stored<T>(project_linf<T>(v, origin, radius, lower, upper));
}

// One vector, all of it the sample's or not: a body without a mask, and the two ends. `G` and
// `kHasX`: see sample.cuh.
template <class T, class G, bool kHasX, bool kEach>
FASTADV_DEVICE void step_vector(const StepArgs& args, int64_t sample, int64_t begin,
                                const Place& place) {
  using C = Compute<T>;
  T* const x_adv = static_cast<T*>(args.x_adv);
  const auto point = load<kLanes<T>>(x_adv, place);
  const auto grad = load<kLanes<T>>(static_cast<const G*>(args.grad), place);
  Pack<T> origin{};
  if constexpr (kHasX) origin = load<kLanes<T>>(static_cast<const T*>(args.x), place);
  const C step_size = value_of<C>(args.step_size, sample);
  const C radius = value_of<C>(args.radius, sample);
  C lower[kLanes<T>], upper[kLanes<T>];
  Bounds<C>(args.box, kEach).of(place.at - begin, lower, upper);
  Pack<T> moved;
#pragma unroll
  for (int j = 0; j < kLanes<T>; ++j) {
    moved.lane[j] =
        moved_linf<T>(number(point.lane[j]), number(grad.lane[j]), number(origin.lane[j]),
                      step_size, args.steepest, radius, lower[j], upper[j]);
  }
  store(x_adv, place, moved);
}

// `blocks` of a sample follow each other in the grid.
template <class T, class G, bool kHasX, bool kEach>
__global__ void __launch_bounds__(kLinfThreads)
    step_linf(const StepArgs args, bool aligned, uint32_t blocks) {
  const int64_t sample = blockIdx.x / blocks;
  const int64_t vector = int64_t(blockIdx.x % blocks) * kLinfThreads + threadIdx.x;
  const Span<T> span(sample, args.size, aligned);
  if (vector >= span.vectors()) return;
  const Place place = span.place(vector);
  if (place.whole) {
    const Place whole{place.at, 0, kLanes<T>, true};
    step_vector<T, G, kHasX, kEach>(args, sample, span.begin, whole);
  } else {
    const Place part{place.at, place.low, place.high, false};
    step_vector<T, G, kHasX, kEach>(args, sample, span.begin, part);
  }
}

}  // namespace fastadv::cuda
