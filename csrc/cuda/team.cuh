// Reductions over the threads that share a sample: a warp, or a block. Every thread gets the
// result, and it has the same bits in every run: partial results meet in a fixed order, without
// atomics.
#pragma once

#include "device.cuh"

namespace fastadv::cuda {

// Lane i takes lane i ^ distance's value.
template <class S>
FASTADV_DEVICE S exchange(const S& value, int distance) {
  static_assert(sizeof(S) % 4 == 0, "a value is shuffled a word at a time");
  uint32_t word[sizeof(S) / 4];
  memcpy(word, &value, sizeof(S));
#pragma unroll
  for (unsigned i = 0; i < sizeof(S) / 4; ++i) {
    word[i] = __shfl_xor_sync(0xffffffffu, word[i], distance);
  }
  S result;
  memcpy(&result, word, sizeof(S));
  return result;
}

// combine(a, b) has to be symmetric: then the butterfly leaves the same bits in every lane.
template <class S, class Combine>
FASTADV_DEVICE S over_warp(S value, Combine combine) {
#pragma unroll
  for (int distance = 16; distance >= 1; distance /= 2) {
    value = combine(value, exchange(value, distance));
  }
  return value;
}

template <int kThreads, class S, class Combine>
FASTADV_DEVICE S over_block(S value, Combine combine) {
  constexpr int kWarps = kThreads / 32;
  FASTADV_SHARED(S, partial, kWarps);
  value = over_warp(value, combine);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  S all = partial[0];
  for (int warp = 1; warp < kWarps; ++warp) all = combine(all, partial[warp]);
  __syncthreads();  // or a quick warp's next reduction would write on what a slow one still reads
  return all;
}

// A team of 32 threads is a warp, one of more is a block.
template <int kThreads, class S, class Combine>
FASTADV_DEVICE S over_team(const S& value, Combine combine) {
  if constexpr (kThreads == 32) {
    return over_warp(value, combine);
  } else {
    return over_block<kThreads>(value, combine);
  }
}

struct Add {
  template <class S>
  FASTADV_DEVICE S operator()(const S& a, const S& b) const {
    return a + b;
  }
};
struct Greatest {  // of numbers that are not NaN
  template <class S>
  FASTADV_DEVICE S operator()(const S& a, const S& b) const {
    return a > b ? a : b;
  }
};

}  // namespace fastadv::cuda
