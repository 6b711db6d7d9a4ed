// Plans for fastadv/engine/noting.py, which calls these by ctypes: a plan is no tensor, and a call
// of torch's dispatcher takes as long as four of them. ctypes lets other threads of Python run
// meanwhile. What runs was checked when it was noted.
#include <torch/csrc/stable/library.h>

#include "cpu/plan.h"

namespace {

void parallel(int64_t begin, int64_t end, int64_t grain, fastadv::Body body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

// 0, or 1 where memory or a thread was refused: no exception leaves for Python.
template <class F>
int guarded(const F& f) {
  try {
    f();
    return 0;
  } catch (...) {
    return 1;
  }
}

}  // namespace

#define FASTADV_EXPORT extern "C" __attribute__((visibility("default")))

FASTADV_EXPORT void* fastadv_plan_new() { return new fastadv::Plan; }
FASTADV_EXPORT void fastadv_plan_delete(void* plan) { delete static_cast<fastadv::Plan*>(plan); }

// From now on this thread's calls are noted; null: no longer.
FASTADV_EXPORT void fastadv_plan_note(void* plan) {
  fastadv::noted_in = static_cast<fastadv::Plan*>(plan);
}
FASTADV_EXPORT int64_t fastadv_plan_size(void* plan) {
  return int64_t(static_cast<fastadv::Plan*>(plan)->calls.size());
}
FASTADV_EXPORT int fastadv_plan_copy(const fastadv::CopyArgs* args) {
  return guarded([&] { fastadv::run_copy(*args, parallel), fastadv::note(*args); });
}
FASTADV_EXPORT void fastadv_plan_move(void* plan, const fastadv::Move* moves, int64_t count) {
  fastadv::move(*static_cast<fastadv::Plan*>(plan), moves, count);
}
FASTADV_EXPORT int fastadv_plan_run(const fastadv::Plan* const* plans, int64_t count,
                                    int64_t times) {
  return guarded([&] { fastadv::run(plans, count, times, parallel); });
}
