// Launches small.cuh: digest and uniform.
#include "launch.cuh"
#include "small.cuh"

namespace fastadv::cuda {

void run_digest(DType dtype, const DigestArgs& args, void* stream) {
  if (args.samples == 0) return;
  with_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(digest<T>, "digest", args.samples, kSmallThreads, static_cast<Stream>(stream), args,
           are_aligned(args.data));
  });
}

namespace {

template <class C>
void run(const UniformArgs& args, Stream stream) {
  const bool aligned = are_aligned(args.out) && (args.samples == 1 || args.size % kLanes<C> == 0);
  const int64_t blocks = blocks_for(most_vectors<C>(1, args.size, true), kSmallThreads);
  launch(uniform<C>, "uniform", blocks * args.samples, kSmallThreads, stream, args, aligned,
         uint32_t(blocks));
}

}  // namespace

void run_uniform(bool double_precision, const UniformArgs& args, void* stream) {
  if (args.samples == 0 || args.size == 0) return;
  (double_precision ? run<double> : run<float>)(args, static_cast<Stream>(stream));
}

}  // namespace fastadv::cuda
