// A digest of each sample's bits, and uniform numbers: both a function of an element and its place.
#pragma once

#include "access.cuh"
#include "team.cuh"

namespace fastadv::cuda {

constexpr int kSmallThreads = 256;

FASTADV_DEVICE uint64_t bits_of(bfloat16 v) { return v.bits; }
FASTADV_DEVICE uint64_t bits_of(float16 v) { return v.bits; }
FASTADV_DEVICE uint64_t bits_of(float v) { return bit_cast<uint32_t>(v); }
FASTADV_DEVICE uint64_t bits_of(double v) { return bit_cast<uint64_t>(v); }

// A block has a sample; 4 B read an element in fp32. Shares are summed mod 2^64, in any order.
template <class T>
__global__ void __launch_bounds__(kSmallThreads) digest(const DigestArgs args, bool aligned) {
  const Span<T> span(blockIdx.x, args.size, aligned);
  uint64_t sum = 0;
  for (int64_t k = threadIdx.x; k < span.vectors(); k += kSmallThreads) {
    const Place place = span.place(k);
    const auto pack = load<kLanes<T>>(static_cast<const T*>(args.data), place);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {
      if (j < place.low || j >= place.high) continue;
      sum += digest_share(bits_of(pack.lane[j]), uint64_t(place.at - span.begin + j));
    }
  }
  sum = over_block<kSmallThreads>(sum, Add());
  if (threadIdx.x == 0) args.digest[blockIdx.x] = int64_t(sum);
}

// U[0, 1): float32 takes a word (24 bits of it) an element, float64 two (53 bits).
FASTADV_DEVICE Pack<float> unit_of(const Words& w, float) {
  Pack<float> pack;
#pragma unroll
  for (int i = 0; i < 4; ++i) pack.lane[i] = float(w.word[i] >> 8) * 0x1p-24f;
  return pack;
}
FASTADV_DEVICE Pack<double> unit_of(const Words& w, double) {
  Pack<double> pack;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint64_t bits = uint64_t(w.word[2 * i + 1]) << 32 | w.word[2 * i];
    pack.lane[i] = double(bits >> 11) * 0x1p-53;
  }
  return pack;
}

// A thread has one block of Philox's words, 16 bytes of the result; `blocks` of a sample's follow
// each other in the grid.
template <class C>
__global__ void __launch_bounds__(kSmallThreads)
    uniform(const UniformArgs args, bool aligned, uint32_t blocks) {
  const int64_t sample = blockIdx.x / blocks;
  const int64_t word = int64_t(blockIdx.x % blocks) * kSmallThreads + threadIdx.x;
  const int64_t at = word * kLanes<C>, left = args.size - at;
  if (left <= 0) return;
  const Words words =
      philox(args.seed, uint32_t(word), args.stream, uint64_t(args.offset + sample));
  const int high = left < kLanes<C> ? int(left) : kLanes<C>;
  store(static_cast<C*>(args.out),
        Place{sample * args.size + at, 0, high, aligned && high == kLanes<C>},
        unit_of(words, C(0)));
}

}  // namespace fastadv::cuda
