// x_adv <- the point nearest to v in {||. - x||_1 <= radius} and the box (Croce and Hein
// 2103.01208, proposition 2.1), v = x_adv + step_size * sign(grad) / m on the m largest |grad|
// (SLIDE, Tramer and Boneh 1904.13000).
//
// A block has a sample. The m-th largest |grad| is found exactly, 8 bits at a time from the top, by
// counting (integers: their order does not matter); the threshold of the projection by Newton's
// method, as csrc/sample.h has it. Up to 4096 elements the sample is in registers, 16 B an element
// in fp32 in all; a longer one costs 4 B for each of 4 digits and 12 B for each threshold tried.
#pragma once

#include "../sample.h"
#include "sample.cuh"
#include "team.cuh"

namespace fastadv::cuda {

// |grad|'s bits: they are ordered as the numbers, and NaN is the largest.
template <class G>
struct Key {
  using Bits = uint16_t;
};
template <>
struct Key<float> {
  using Bits = uint32_t;
};
template <>
struct Key<double> {
  using Bits = uint64_t;
};
template <class G>
FASTADV_DEVICE uint64_t key_of(G grad) {
  using Bits = typename Key<G>::Bits;
  return uint64_t(bit_cast<Bits>(grad) & Bits(Bits(~Bits(0)) >> 1));
}

// The digit, among 256 counted, that the k-th largest key has; k becomes its rank among those.
// One warp: lane i has the 8 digits from 255 - 8 * i down.
FASTADV_DEVICE void find_digit(const uint32_t* counts, uint64_t& k, uint32_t& digit) {
  const int lane = int(threadIdx.x), from = 255 - 8 * lane;
  uint64_t mine = 0;
  for (int i = 0; i < 8; ++i) mine += counts[from - i];
  uint64_t reach = mine;  // keys in this lane's digits and all larger ones
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint64_t below = __shfl_up_sync(0xffffffffu, reach, distance);
    if (lane >= distance) reach += below;
  }
  const bool here = reach >= k && reach - mine < k;
  __syncwarp();  // every lane has read k before one writes it
  if (!here) return;
  uint64_t rank = k - (reach - mine);
  int at = from;
  for (; rank > counts[at]; --at) rank -= counts[at];
  k = rank;
  digit = uint32_t(at);
}

// The k-th largest |grad|. The zeros beyond a sample's end change nothing: k counts from the top.
template <class G, int kThreads, class S>
FASTADV_DEVICE Compute<G> kth_largest(const S& sample, int64_t k) {
  constexpr int kBits = 8 * int(sizeof(G));
  FASTADV_SHARED(uint32_t, counts, 256);
  FASTADV_SHARED(uint64_t, rank, 1);
  FASTADV_SHARED(uint32_t, digit, 1);
  uint64_t found = 0;
  if (threadIdx.x == 0) rank[0] = uint64_t(k);
  for (int shift = kBits - 8; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += kThreads) counts[i] = 0;
    __syncthreads();
    sample.each_grad([&](G grad) {
      const uint64_t key = key_of(grad);
      if (((key ^ found) >> shift) < 256) atomicAdd(&counts[key >> shift & 255], 1u);
    });
    __syncthreads();
    if (threadIdx.x < 32) find_digit(counts, rank[0], digit[0]);
    __syncthreads();
    found |= uint64_t(digit[0]) << shift;
  }
  return number(bit_cast<G>(typename Key<G>::Bits(found)));
}

// The steepest step, or the raw gradient times `stride`.
template <class C>
struct Direction {
  bool steepest;
  C smallest;  // the least |grad| that moves
  C stride;    // what each of them moves
  FASTADV_DEVICE C of(C grad) const {
    if (!steepest) return stride * grad;
    return turn(grad, grad) >= smallest ? stride * sign(grad) : C(0);
  }
};

template <class G, int kThreads, class C, class S>
FASTADV_DEVICE Direction<C> steepest_of(const S& sample, double step_size, int64_t k) {
  const C smallest = kth_largest<G, kThreads>(sample, k);
  int64_t moving = 0;
  sample.each_grad([&](G grad) {
    const C g = number(grad), magnitude = turn(g, g);
    moving += magnitude >= smallest && magnitude > 0;
  });
  moving = over_block<kThreads>(moving, Add());
  return {true, smallest, moving > 0 ? C(step_size / double(moving)) : C(0)};
}

// What a threshold leaves of the move.
template <int kThreads, class C, class S>
FASTADV_DEVICE Left left_by(const S& sample, const Direction<C>& direction, C threshold) {
  Left left{0, 0};
  sample.each_boxed([&](C point, C origin, C grad, C lower, C upper) {
    const C u = point - origin + direction.of(grad);
    const C beyond = magnitude_of_move(u) - threshold, cap = cap_of(u, origin, lower, upper);
    left.sum += double(clamp(beyond, C(0), cap));
    left.falling += beyond > 0 && beyond < cap;
  });
  return over_block<kThreads>(left, Add());
}

template <int kThreads, class C, class S>
FASTADV_DEVICE double largest_move(const S& sample, const Direction<C>& direction) {
  C largest = 0;
  sample.each([&](C point, C origin, C grad) {
    const C m = magnitude_of_move(point - origin + direction.of(grad));
    largest = m > largest ? m : largest;
  });
  return double(over_block<kThreads>(largest, Greatest()));
}

template <class T, class G, bool kHasX, int kThreads, int kHeld>
__global__ void __launch_bounds__(kThreads, 1)
    step_l1(const StepArgs args, bool aligned, bool each) {
  using C = Compute<T>;
  const int64_t index = blockIdx.x;
  const Sample<T, G, kHasX, kThreads, kHeld> sample(args, index, aligned, each);
  const double radius = value_of<C>(args.radius, index), room = slack<C>(args.size);
  Direction<C> direction{false, C(0), value_of<C>(args.step_size, index)};
  if (args.steepest) {
    direction = steepest_of<G, kThreads, C>(sample, double(direction.stride),
                                            moving_of(args.top, args.size));
  }
  const Left left = left_by<kThreads>(sample, direction, C(0));
  const bool inside = left.sum <= radius * (1 - room);
  C threshold = 0;
  if (!inside) {
    const double largest = largest_move<kThreads>(sample, direction);
    threshold = threshold_for<C>([&](C t) { return left_by<kThreads>(sample, direction, t); },
                                 largest, left, radius, room);
  }
  sample.write([&](C point, C origin, C grad, C lower, C upper) {
    const C stride = direction.of(grad), u = point - origin + stride;
    const C cap = cap_of(u, origin, lower, upper);
    const C moved = add_towards(origin, turn(shrink(magnitude_of_move(u), threshold, cap), u));
    // Where nothing moves the point stays to the bit: x + (x_adv - x) need not be x_adv.
    return place_towards<T>(inside && stride == 0 ? point : moved, origin, lower, upper);
  });
}

}  // namespace fastadv::cuda
