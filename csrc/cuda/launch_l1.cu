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
  constexpr int kThreads = kHoldingThreads<T>, kHeld = kHeldVectors<T>;
  launch_sample<T>("step_l1", step_l1<T, G, kHasX, kThreads, kHeld>,
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
