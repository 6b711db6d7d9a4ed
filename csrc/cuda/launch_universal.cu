// Launches universal.cuh: two kernels in linf; else the sum, its momentum, and the ball's step.
#include <algorithm>

#include "launch.cuh"
#include "universal.cuh"

namespace fastadv::cuda {

void run_step(Norm norm, DType dtype, const StepArgs& args, void* stream) {
  if (args.samples == 0 || args.size == 0) return;
  const auto run = norm == kLinf ? run_step_linf : norm == kL2 ? run_step_l2 : run_step_l1;
  run(dtype, args, stream);
}

namespace {

// Parts of the batch, by the shape alone: enough blocks for an H100 (132 multiprocessors, 8 blocks
// each), at least 8 samples a part, and at most 32 parts to add up.
template <class T>
int64_t parts_of(int64_t samples, int64_t size) {
  const int64_t blocks = blocks_for(most_vectors<T>(1, size, true), kUniversalThreads);
  return std::clamp<int64_t>(std::min(blocks_for(1056, blocks), samples / 8), 1, 32);
}

// Where each array stands in the workspace, in bytes.
template <class T>
struct Room {
  int64_t parts, norms, sum, end;
  Room(int64_t samples, int64_t size)
      : parts(0),
        norms(parts_of<T>(samples, size) * size * 8),
        sum(norms + blocks_for(size, kUniversalThreads) * 8),
        end(sum) {
    sum = (sum + 15) / 16 * 16;
    end = sum + size * int64_t(sizeof(Compute<T>));
  }
};

template <class T>
void run(Norm norm, DType dtype, const UniversalArgs& args, char* workspace, Stream stream) {
  using C = Compute<T>;
  const Room<T> room(args.samples, args.size);
  double* const parts = reinterpret_cast<double*>(workspace + room.parts);
  double* const norms = reinterpret_cast<double*>(workspace + room.norms);
  C* const sum = reinterpret_cast<C*>(workspace + room.sum);
  const int64_t count = parts_of<T>(args.samples, args.size);
  const AccumulateArgs batch{nullptr,      args.grads, args.weights,
                             args.samples, args.size,  args.signs};
  const bool aligned = are_aligned(args.grads) && args.size % kLanes<T> == 0;
  const int64_t blocks = blocks_for(most_vectors<T>(1, args.size, aligned), kUniversalThreads);
  launch(accumulate<T>, "accumulate", blocks * count, kUniversalThreads, stream, batch, parts,
         count, aligned, uint32_t(blocks));
  const int64_t columns = blocks_for(args.size, kUniversalThreads);
  const double* const summed = parts;
  StepArgs step{args.delta,  sum,   nullptr,       1,       args.size, args.step_size,
                args.radius, Box{}, args.steepest, args.top};
  if (norm == kLinf && !args.velocity) {
    launch(combine_and_step<T>, "combine_and_step", columns, kUniversalThreads, stream, summed,
           count, step);
    return;
  }
  launch(combine<C>, "combine", columns, kUniversalThreads, stream, summed, count, args.size, sum,
         norms);
  if (args.velocity) {
    step.grad = args.velocity;
    launch(gather_momentum<C>, "gather_momentum", columns, kUniversalThreads, stream,
           static_cast<C*>(args.velocity), static_cast<const C*>(sum),
           static_cast<const double*>(norms), args.size, args.momentum);
  }
  run_step(norm, dtype, step, stream);
}

}  // namespace

int64_t universal_workspace(DType dtype, int64_t samples, int64_t size) {
  int64_t bytes = 0;
  with_dtype(dtype,
             [&](auto type) { bytes = Room<typename decltype(type)::type>(samples, size).end; });
  return bytes;
}

void run_universal(Norm norm, DType dtype, const UniversalArgs& args, void* workspace,
                   void* stream) {
  if (args.size == 0) return;
  with_dtype(dtype, [&](auto type) {
    run<typename decltype(type)::type>(norm, dtype, args, static_cast<char*>(workspace),
                                       static_cast<Stream>(stream));
  });
}

}  // namespace fastadv::cuda
