// Launches step_l1.cuh: a block a sample, held in registers where it fits.
#include <stdexcept>

#include "launch.cuh"
#include "step_l1.cuh"

namespace fastadv::cuda {
namespace {

template <class T, class G, bool kHasX>
void step(const StepArgs& args, Stream stream) {
  if (args.size > UINT32_MAX) {  // elements are counted in 32 bits
    throw std::runtime_error("step_l1: a sample must have fewer than 2^32 elements");
  }
  // Half as many float64 numbers: 4096, and what is computed of them, would spill.
  constexpr int kThreads = 256, kHeld = sizeof(T) == 2 ? 2 : 4;
  launch_sample<T, kThreads, kHeld>("step_l1", step_l1<T, G, kHasX, kThreads, kHeld>,
                                    step_l1<T, G, kHasX, kReadingThreads, 0>, args, stream);
}

}  // namespace

void run_step_l1(DType dtype, const StepArgs& args, void* stream) {
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto kernel = args.x ? step<T, T, true> : step<T, Compute<T>, false>;
    kernel(args, static_cast<Stream>(stream));
  });
}

}  // namespace fastadv::cuda
