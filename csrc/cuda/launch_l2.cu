// Launches step_l2.cuh: a block a sample, held in registers where it fits.
#include "launch.cuh"
#include "step_l2.cuh"

namespace fastadv::cuda {
namespace {

template <class T, class G, bool kHasX>
void step(const StepArgs& args, Stream stream) {
  constexpr int kThreads = kHoldingThreads<T>, kHeld = kHeldVectors<T>;
  launch_sample<T, kThreads, kHeld>("step_l2", step_l2<T, G, kHasX, kThreads, kHeld>,
                                    step_l2<T, G, kHasX, kReadingThreads, 0>, args, stream);
}

}  // namespace

void run_step_l2(DType dtype, const StepArgs& args, void* stream) {
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto kernel = args.x ? step<T, T, true> : step<T, Compute<T>, false>;
    kernel(args, static_cast<Stream>(stream));
  });
}

}  // namespace fastadv::cuda
