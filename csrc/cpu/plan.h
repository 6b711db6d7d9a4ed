// A plan: the calls of ops that a gradient, or a step of an attack, was made of, noted once with
// the memory that they read and wrote, and made again in one call.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "kernels.h"
#include "run.h"

namespace fastadv {

// `to`, contiguous, from any strides: what torch's contiguous() and repeat_interleave() do.
constexpr int kCopyDims = 6;
struct CopyArgs {
  const void* from;
  void* to;
  int64_t sizes[kCopyDims], strides[kCopyDims];  // of `from`, in bytes; the last dimension first
  int64_t bytes;                                 // of an element: 1, 2, 4 or 8
};
void run_copy(const CopyArgs& args, ParallelFor parallel);

struct Fold {
  DirectArgs args;
};
struct Depthwise {
  DirectArgs args;
  bool gradient;
};
struct Pool {
  PoolArgs args;
  bool gradient;
};
struct Step {
  Norm norm;
  DType dtype;
  StepArgs args;
};
struct Loss {
  Head head;
  DType dtype;
  HeadArgs args;
};
using Call = std::variant<CopyArgs, WinogradArgs, DirectArgs, Fold, Depthwise, Pool, PointwiseArgs,
                          LinearArgs, AttentionArgs, NormArgs, MeanArgs, Step, Loss, WatchArgs>;

struct Plan {
  std::vector<Call> calls;
};

// Memory that stood at `from` stands at `to`.
struct Move {
  const char* from;
  int64_t bytes;
  const char* to;
};
void move(Plan& plan, const Move* moves, int64_t count);
// All of them in their order, so many times.
void run(const Plan* const* plans, int64_t count, int64_t times, ParallelFor parallel);

// Where this thread's calls are noted while they run; null: nowhere.
inline thread_local Plan* noted_in = nullptr;
inline void note(const Call& call) {
  if (noted_in) noted_in->calls.push_back(call);
}

}  // namespace fastadv
