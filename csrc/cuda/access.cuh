// How a thread reaches memory: 16 bytes at a time, in vectors that are counted from the start of
// the whole tensor, so that they are aligned wherever a sample starts, and only a sample's first
// and last vector may be its own in part. Those are taken element by element, and read as zero
// outside.
#pragma once

#include "device.cuh"

namespace fastadv::cuda {

template <class T>
constexpr int kLanes = 16 / sizeof(T);

template <class T, int kCount = kLanes<T>>
struct Pack {
  T lane[kCount];
};

// A vector of a sample: the elements at + low .. at + high of the tensor.
struct Place {
  int64_t at;
  int low, high;
  bool whole;
};

// The vectors of one sample. Unaligned tensors are walked from each sample's own start.
template <class T>
struct Span {
  int64_t begin, end, first;
  bool aligned;
  FASTADV_DEVICE Span(int64_t sample, int64_t size, bool is_aligned)
      : begin(sample * size), end(begin + size), first(begin), aligned(is_aligned) {
    if (aligned) first = begin / kLanes<T> * kLanes<T>;
  }
  FASTADV_DEVICE int64_t vectors() const { return (end - first + kLanes<T> - 1) / kLanes<T>; }
  FASTADV_DEVICE Place place(int64_t k) const {
    const int64_t at = first + k * kLanes<T>;
    const int low = at < begin ? int(begin - at) : 0;
    const int high = at + kLanes<T> > end ? int(end - at) : kLanes<T>;
    return {at, low, high, aligned && low == 0 && high == kLanes<T>};
  }
};

template <int kCount, class T>
FASTADV_DEVICE Pack<T, kCount> load(const T* from, const Place& place) {
  constexpr int kPieces = int(sizeof(T)) * kCount / 16;
  Pack<T, kCount> pack;
  if (place.whole) {
    uint4 piece[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      piece[i] = reinterpret_cast<const uint4*>(from + place.at)[i];
    }
    memcpy(&pack, piece, sizeof(pack));
    return pack;
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    pack.lane[j] = j >= place.low && j < place.high ? from[place.at + j] : T{};
  }
  return pack;
}

template <class T, int kCount>
FASTADV_DEVICE void store(T* to, const Place& place, const Pack<T, kCount>& pack) {
  constexpr int kPieces = int(sizeof(T)) * kCount / 16;
  if (place.whole) {
    uint4 piece[kPieces];
    memcpy(piece, &pack, sizeof(pack));
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      store_16_bytes(reinterpret_cast<uint4*>(to + place.at) + i, piece[i]);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (j >= place.low && j < place.high) to[place.at + j] = pack.lane[j];
  }
}

// A stored element as a number, and an encoded number as it is stored.
template <class T>
FASTADV_DEVICE Compute<T> number(T stored) {
  if constexpr (sizeof(T) == 2) {
    return decode<T, float>(int32_t(stored.bits));
  } else {
    return stored;
  }
}
template <class T>
FASTADV_DEVICE T stored(Int<Compute<T>> bits) {
  if constexpr (sizeof(T) == 2) {
    return T{uint16_t(bits)};
  } else {
    return bit_cast<T>(bits);
  }
}

template <class C>
FASTADV_DEVICE C value_of(const PerSample& values, int64_t sample) {
  return static_cast<const C*>(values.data)[sample * values.stride];
}

// The box of a vector's elements: one pair for all, read once, or a pair a channel.
template <class C>
class Bounds {
 public:
  FASTADV_DEVICE Bounds(const Box& box, bool each)
      : lower_(static_cast<const C*>(box.lower)),
        upper_(static_cast<const C*>(box.upper)),
        channels_(box.channels),
        inner_(box.inner),
        each_(each),
        lower_all_(lower_ ? lower_[0] : -C(__builtin_inf())),
        upper_all_(upper_ ? upper_[0] : C(__builtin_inf())) {}

  // `position` in the sample of the first; negative where a vector begins before its sample.
  template <int kCount>
  FASTADV_DEVICE void of(int64_t position, C (&lower)[kCount], C (&upper)[kCount]) const {
    if (!each_) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) lower[j] = lower_all_, upper[j] = upper_all_;
      return;
    }
    const int64_t first = position > 0 ? position : 0;
    int64_t channel = first / inner_ % channels_, within = first % inner_;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      lower[j] = lower_[channel], upper[j] = upper_[channel];
      if (position + j < 0 || ++within < inner_) continue;
      within = 0;
      if (++channel == channels_) channel = 0;
    }
  }

 private:
  const C* lower_;
  const C* upper_;
  int64_t channels_, inner_;
  bool each_;
  C lower_all_, upper_all_;
};

}  // namespace fastadv::cuda
