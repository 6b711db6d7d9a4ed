#include "run.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "over.h"
#include "plan.h"

namespace fastadv {
namespace {

// velocity <- momentum * velocity + sum / ||sum||_1 (MI-FGSM, Dong et al. 1710.06081, equation 6).
template <class C>
void gather_momentum(C* velocity, const C* sum, int64_t size, double momentum) {
  double norm = 0;
  for (int64_t i = 0; i < size; ++i) norm += std::abs(double(sum[i]));
  const double scale = norm > 0 ? 1 / norm : 0;
  for (int64_t i = 0; i < size; ++i) {
    velocity[i] = C(momentum * double(velocity[i]) + scale * double(sum[i]));
  }
}

template <class C>
void universal(Norm norm, DType dtype, const UniversalArgs& args, ParallelFor parallel) {
  const Kernels& table = kernels();
  // One buffer a thread, kept: fresh pages would cost more than the sums.
  static thread_local std::vector<C> buffer;
  if (int64_t(buffer.size()) < args.size) buffer.resize(args.size);
  C* const sum = buffer.data();
  const AccumulateArgs accumulate{sum,          args.grads, args.weights,
                                  args.samples, args.size,  args.signs};
  over(args.size, std::max<int64_t>(512, kGrain / std::max<int64_t>(1, args.samples)), parallel,
       [&](int64_t begin, int64_t end) { table.accumulate[dtype](accumulate, begin, end); });
  const C* direction = sum;
  if (args.velocity != nullptr) {
    C* const velocity = static_cast<C*>(args.velocity);
    gather_momentum(velocity, sum, args.size, args.momentum);
    direction = velocity;
  }
  const StepArgs step{args.delta,  direction, nullptr,       1,       args.size, args.step_size,
                      args.radius, Box{},     args.steepest, args.top};
  table.shared_step[norm][dtype](step, 0, norm == kLinf ? args.size : 1);
}

int64_t products(const DenseStack& stack) {
  int64_t count = 0;
  for (int64_t l = 0; l < stack.count; ++l) {
    count += stack.layers[l].inputs * stack.layers[l].outputs;
  }
  return count;
}

}  // namespace

void run_step(Norm norm, DType dtype, const StepArgs& args, ParallelFor parallel) {
  note(Step{norm, dtype, args});
  if (args.size == 0) return;
  const StepKernel kernel = kernels().step[norm][dtype];
  const bool by_element = norm == kLinf;
  over(by_element ? args.samples * args.size : args.samples,
       by_element ? kGrain : samples_a_grain(args.size), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_universal(Norm norm, DType dtype, const UniversalArgs& args, ParallelFor parallel) {
  if (args.size == 0) return;
  if (dtype == kFloat64) {
    universal<double>(norm, dtype, args, parallel);
  } else {
    universal<float>(norm, dtype, args, parallel);
  }
}

void run_head(Head head, DType dtype, const HeadArgs& args, ParallelFor parallel) {
  note(Loss{head, dtype, args});
  const HeadKernel kernel = kernels().head[head][dtype];
  over(args.samples, samples_a_grain(16 * args.classes), parallel,  // an exp costs as 16 elements
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_digest(DType dtype, const DigestArgs& args, ParallelFor parallel) {
  const DigestKernel kernel = kernels().digest[dtype];
  over(args.samples, samples_a_grain(args.size), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_uniform(bool double_precision, const UniformArgs& args, ParallelFor parallel) {
  const UniformKernel kernel = kernels().uniform[double_precision];
  over(args.samples, samples_a_grain(8 * args.size), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// A block of rows stays in half of an L2 cache, in sevens as gemm.h takes them. Few blocks are cut
// by outputs, too, for the threads. No choice changes a result's bits.
void run_linear(LinearArgs args, ParallelFor parallel) {
  note(args);
  if (args.rows <= 0) return;
  const int64_t bytes = args.inputs * (args.bfloat16 ? 2 : 4);
  const int64_t most = std::clamp<int64_t>(512 * 1024 / bytes / 7 * 7, 28, 112);
  const int64_t blocks = (args.rows + most - 1) / most;
  args.block = (args.rows + blocks - 1) / blocks;
  args.chunk = chunk_of(args.outputs, blocks);
  const int64_t work = args.block * args.chunk * args.inputs / 16;
  const int64_t chunks = (args.outputs + args.chunk - 1) / args.chunk;
  const LinearKernel kernel = kernels().linear;
  over((args.rows + args.block - 1) / args.block * chunks, samples_a_grain(work), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_attention(const AttentionArgs& args, ParallelFor parallel) {
  note(args);
  const AttentionKernel kernel = kernels().attention;
  over(args.samples * args.heads, samples_a_grain(args.length * args.length * args.width / 8),
       parallel, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_norm(const NormArgs& args, ParallelFor parallel) {
  note(args);
  const NormKernel kernel = kernels().norm;
  over(args.rows, samples_a_grain(args.width), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_max_pool(const PoolArgs& args, bool gradient, ParallelFor parallel) {
  note(Pool{args, gradient});
  const PoolKernel kernel = gradient ? kernels().max_pool_gradient : kernels().max_pool;
  over(args.samples * args.rows, samples_a_grain(args.columns * args.outputs), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_pointwise(const PointwiseArgs& args, ParallelFor parallel) {
  note(args);
  const PointwiseKernel kernel = kernels().pointwise;
  over(args.pixels, samples_a_grain(args.channels), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_mean(const MeanArgs& args, ParallelFor parallel) {
  note(args);
  const MeanKernel kernel = kernels().mean;
  over(args.samples, samples_a_grain(args.pixels * args.channels), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_watch(const WatchArgs& args, ParallelFor parallel) {
  note(args);
  const WatchKernel kernel = kernels().watch;
  over(args.count, kGrain, parallel, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// Threads share the samples, and each cuts its own into blocks: a sample's bits depend on neither.
void run_dense_pgd(const DensePgdArgs& args, ParallelFor parallel) {
  const DensePgdKernel kernel = kernels().dense_pgd;
  over(args.step.samples, samples_a_grain(products(args.stack) * args.steps / 8), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_dense_pass(const DensePassArgs& args, ParallelFor parallel) {
  const DensePassKernel kernel = kernels().dense_pass;
  over(args.samples, samples_a_grain(products(args.stack) / 16), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

uint64_t run_fingerprint(const void* data, int64_t bytes, ParallelFor parallel) {
  const FingerprintKernel kernel = kernels().fingerprint;
  const int64_t words = bytes / 8, blocks = (words + kFingerprintWords - 1) / kFingerprintWords;
  std::vector<uint64_t> sums(blocks + 1);
  std::memcpy(&sums[blocks], static_cast<const char*>(data) + 8 * words, bytes - 8 * words);
  const FingerprintArgs args{data, words, sums.data()};
  over(blocks, 4, parallel, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  uint64_t hash = uint64_t(bytes);
  for (const uint64_t sum : sums) hash = (hash ^ sum) * 0x9E3779B97F4A7C15u ^ hash >> 29;
  return hash;
}

}  // namespace fastadv
