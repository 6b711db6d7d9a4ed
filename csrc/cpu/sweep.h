// How a kernel walks over a sample: in runs that share their bounds, a register at a time.
#pragma once

#include <cstdint>

#include "../math.h"
#include "kernels.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

template <class C>
FASTADV_FN C value_of(const PerSample& values, int64_t sample) {
  return static_cast<const C*>(values.data)[sample * values.stride];
}

// The bounds of a run: one pair for all its elements, or a pair for each.
template <class C>
struct OneBox {
  using V = Vector<C>;
  V lower_all, upper_all;
  FASTADV_FN V lower(int64_t) const { return lower_all; }
  FASTADV_FN V upper(int64_t) const { return upper_all; }
  FASTADV_FN V lower(int64_t, int64_t) const { return lower_all; }
  FASTADV_FN V upper(int64_t, int64_t) const { return upper_all; }
};
template <class C>
struct EachBox {
  using V = Vector<C>;
  const C* lower_each;
  const C* upper_each;
  FASTADV_FN V lower(int64_t i) const { return load(lower_each + i); }
  FASTADV_FN V upper(int64_t i) const { return load(upper_each + i); }
  FASTADV_FN V lower(int64_t i, int64_t n) const { return load(lower_each + i, n); }
  FASTADV_FN V upper(int64_t i, int64_t n) const { return load(upper_each + i, n); }
};

constexpr int64_t kTile =
    1024;  // a pattern of per-channel bounds, repeated to a loop worth vectorising

template <class C>
class Sweep {
 public:
  explicit Sweep(const Box& box)
      : lower_(static_cast<const C*>(box.lower)),
        upper_(static_cast<const C*>(box.upper)),
        channels_(box.channels),
        inner_(box.inner) {
    if (!interleaved() || channels_ > kTile) return;
    period_ = kTile / channels_ * channels_;
    for (int64_t i = 0; i < period_; ++i) {
      lower_tile_[i] = lower_[i % channels_];
      upper_tile_[i] = upper_[i % channels_];
    }
  }

  bool one_box() const { return !lower_ || channels_ == 1; }
  C first_lower() const { return lower_ ? lower_[0] : -C(__builtin_inf()); }
  C first_upper() const { return upper_ ? upper_[0] : C(__builtin_inf()); }

  // visit(first, count, bounds) over [begin, end) of one sample, in runs of at most `longest`;
  // backwards where the end of the sample was touched last and is still in the cache.
  template <bool kBackwards = false, class Visit>
  FASTADV_FN void runs(int64_t begin, int64_t end, int64_t longest, Visit visit) const {
    const int64_t unit = run_length(longest);
    const int64_t first = begin / unit, last = (end + unit - 1) / unit;
    for (int64_t k = first; k < last; ++k) {
      const int64_t run = kBackwards ? last - 1 - (k - first) : k;
      const int64_t from = run * unit < begin ? begin : run * unit;
      const int64_t to = (run + 1) * unit > end ? end : (run + 1) * unit;
      if (interleaved()) {
        const int64_t phase = from % period();
        const C* lower = channels_ > kTile ? lower_ : lower_tile_;
        const C* upper = channels_ > kTile ? upper_ : upper_tile_;
        visit(from, to - from, EachBox<C>{lower + phase, upper + phase});
      } else {
        const int64_t channel = channels_ == 1 ? 0 : from / inner_ % channels_;
        const C infinity = C(__builtin_inf());
        visit(from, to - from,
              OneBox<C>{constant<Vector<C>>(lower_ ? lower_[channel] : -infinity),
                        constant<Vector<C>>(upper_ ? upper_[channel] : infinity)});
      }
    }
  }

 private:
  bool interleaved() const { return lower_ && channels_ > 1 && inner_ == 1; }
  int64_t period() const { return channels_ > kTile ? channels_ : period_; }
  int64_t run_length(int64_t longest) const {
    if (interleaved()) return period();
    return lower_ && channels_ > 1 ? inner_ : longest;
  }

  const C* lower_;
  const C* upper_;
  int64_t channels_;
  int64_t inner_;
  int64_t period_ = 0;
  C lower_tile_[kTile];
  C upper_tile_[kTile];
};

// body(i, n...) for a register of lanes at i: n, the lanes in use, is passed for the last one only,
// so that load(p + i, n...) and store(p + i, bits, n...) are whole registers in the body.
template <class T, class Body>
FASTADV_FN void each_register(int64_t count, Body body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) body(i);
  if (i < count) body(i, count - i);
}

// visit(block, from, until): the tasks from `begin` to `end`, of which task i is chunk i % chunks
// of the outputs of block i / chunks. A block's neighbouring chunks are visited as one.
template <class Visit>
void each_chunk(int64_t begin, int64_t end, int64_t outputs, int64_t chunk, Visit visit) {
  const int64_t chunks = (outputs + chunk - 1) / chunk;
  while (begin < end) {
    const int64_t block = begin / chunks, next = (block + 1) * chunks;
    const int64_t last = end < next ? end : next;
    const int64_t until = (last - block * chunks) * chunk;
    visit(block, (begin - block * chunks) * chunk, until < outputs ? until : outputs);
    begin = last;
  }
}

// A bool that a lambda takes as a type, so that a branch is settled outside the loop.
template <bool kValue>
struct Flag {
  static constexpr bool value = kValue;
};
template <class Body>
FASTADV_FN void settle(bool flag, Body body) {
  if (flag) {
    body(Flag<true>{});
  } else {
    body(Flag<false>{});
  }
}

FASTADV_NAMESPACE_END
