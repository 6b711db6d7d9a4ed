// Memory of a thread, kept between calls: fresh pages would cost more than what is computed in
// them.
#pragma once

#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../math.h"

FASTADV_NAMESPACE_BEGIN

class Workspace {
 public:
  ~Workspace() { release(); }
  float* at_least(int64_t floats) {
    constexpr int64_t kHugePage = 2 << 20;
    if (floats * 4 <= bytes_) return data_;
    release();
    const int64_t bytes = (floats * 4 + kHugePage - 1) / kHugePage * kHugePage;
    data_ = static_cast<float*>(::operator new(bytes, std::align_val_t(kHugePage)));
    bytes_ = bytes;
#if defined(__linux__)
    madvise(data_, bytes_, MADV_HUGEPAGE);  // 36 streams are more than a small TLB follows
#endif
    return data_;
  }

 private:
  void release() {
    if (data_) ::operator delete(data_, std::align_val_t(2 << 20));
    data_ = nullptr;
    bytes_ = 0;
  }
  float* data_ = nullptr;
  int64_t bytes_ = 0;
};

// `floats` floats that this thread has to itself until it asks again.
inline float* workspace(int64_t floats) {
  static thread_local Workspace mine;
  return mine.at_least(floats);
}

FASTADV_NAMESPACE_END
