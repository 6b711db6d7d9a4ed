// Launches step_linf.cuh: a thread a vector, the samples one after another in the grid.
#include "launch.cuh"
#include "step_linf.cuh"

namespace fastadv::cuda {
namespace {

template <class T, class G, bool kHasX>
void step(StepArgs args, Stream stream) {
  // Samples that share their step and radius are one: bounds repeat from sample to sample.
  if (args.step_size.stride == 0 && args.radius.stride == 0) {
    args.size *= args.samples;
    args.samples = 1;
  }
  const bool aligned = are_aligned(args.x_adv, args.grad, args.x);
  const int64_t blocks =
      blocks_for(most_vectors<T>(args.samples, args.size, aligned), kLinfThreads);
  auto kernel = step_linf<T, G, kHasX, false>;
  if constexpr (kHasX) {  // a universal step has no box
    if (has_box_each(args.box)) kernel = step_linf<T, G, kHasX, true>;
  }
  launch(kernel, "step_linf", blocks * args.samples, kLinfThreads, stream, args, aligned,
         uint32_t(blocks));
}

}  // namespace

void run_step_linf(DType dtype, const StepArgs& args, void* stream) {
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto kernel = args.x ? step<T, T, true> : step<T, Compute<T>, false>;
    kernel(args, static_cast<Stream>(stream));
  });
}

}  // namespace fastadv::cuda
