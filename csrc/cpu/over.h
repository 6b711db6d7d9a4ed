// How a kernel's work is shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "run.h"

namespace fastadv {

// Work for about 10 us in the fastest kernel: below it a second thread costs more than it gives.
constexpr int64_t kGrain = 32768;

template <class F>
void over(int64_t count, int64_t grain, ParallelFor parallel, const F& f) {
  if (count <= 0) return;
  const Body body = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const F*>(context))(begin, end);
  };
  parallel(0, count, grain, body, const_cast<void*>(static_cast<const void*>(&f)));
}

inline int64_t samples_a_grain(int64_t size) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size));
}

// The outputs of a task, where there are so many blocks: fewer than all where these are too few for
// the threads.
inline int64_t chunk_of(int64_t outputs, int64_t blocks) {
  const int64_t strips = std::max<int64_t>(1, (outputs + kWide - 1) / kWide);
  const int64_t pieces = std::min<int64_t>(strips, (7 + blocks) / blocks);
  return (strips + pieces - 1) / pieces * kWide;
}

}  // namespace fastadv
