#include "run.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "plan.h"

namespace fastadv {
namespace {

// Work for about 10 us in the fastest kernel: below it a second thread costs more than it gives.
constexpr int64_t kGrain = 32768;

template <class F>
void over(int64_t count, int64_t grain, ParallelFor parallel, const F& f) {
  if (count <= 0) return;
  const Body body = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const F*>(context))(begin, end);
  };
  parallel(0, count, grain, body, const_cast<void*>(static_cast<const void*>(&f)));
}

int64_t samples_a_grain(int64_t size) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size));
}

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

// The outputs of a task, where there are so many blocks: fewer than all where these are too few for
// the threads.
int64_t chunk_of(int64_t outputs, int64_t blocks) {
  const int64_t strips = std::max<int64_t>(1, (outputs + kWide - 1) / kWide);
  const int64_t pieces = std::min<int64_t>(strips, (7 + blocks) / blocks);
  return (strips + pieces - 1) / pieces * kWide;
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

// A block of tiles is transformed at once: as many as leave its transforms in half of an L2 cache
// of 1 MiB, but at least 14, two groups of gemm.h's rows. (With 256 channels 64 tiles were 1.15
// times as slow as 14.) Weights of more than 16 MiB, which come from memory for each block, are
// used for 112 tiles. Few blocks are cut by outputs too, for the threads. No choice changes a
// result's bits.
void run_winograd(WinogradArgs args, ParallelFor parallel) {
  note(args);
  const int64_t tile = args.form == kStridedGradient ? 8 : 4;
  const int64_t parts = args.form == kPlain ? 36 : 81;
  const int64_t tiles =
      args.samples * ((args.rows + tile - 1) / tile) * ((args.columns + tile - 1) / tile);
  const int64_t panels = (args.outputs + kPanel - 1) / kPanel;
  if (tiles <= 0) return;
  const int64_t depth = args.bfloat16 ? (args.channels + 1) / 2 : args.channels;
  const bool wide = depth * args.outputs > 128 * 128;
  constexpr int64_t kRows = 7, kTransformed = 512 * 1024, kCached = 16 << 20;
  const bool cached = 36 * 4 * depth * args.outputs <= kCached;
  const int64_t width = depth + (wide ? panels * kPanel : 64);
  const int64_t fitting = kTransformed / (parts * 4 * width) / kRows * kRows;
  const int64_t most = cached ? std::clamp<int64_t>(fitting, 2 * kRows, 16 * kRows) : 16 * kRows;
  const int64_t blocks = (tiles + most - 1) / most;
  args.tiles = (tiles + blocks - 1) / blocks;
  args.panels = !wide ? 4 : blocks >= 4 ? panels : std::max<int64_t>(4, (panels + 15) / 16 * 4);
  const int64_t chunks = (panels + args.panels - 1) / args.panels;
  const WinogradKernel kernel = kernels().winograd;
  over((tiles + args.tiles - 1) / args.tiles * chunks, 1, parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_winograd_weights(const WinogradWeightsArgs& args, ParallelFor parallel) {
  const WinogradWeightsKernel kernel = kernels().winograd_weights;
  const int64_t outputs = args.gradient ? args.in : args.out;
  const int64_t channels = args.gradient ? args.out : args.in;
  const int64_t depth = args.bfloat16 ? (channels + 1) / 2 : channels;
  over((outputs + kPanel - 1) / kPanel * depth, 32, parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

namespace {

// How a gradient by weights is cut: blocks of tiles, and tasks of outputs and channels.
struct Learning {
  int64_t tiles, blocks, block, apart, across, down, tasks;
  explicit Learning(const WinogradWeightGradientArgs& args)
      : tiles(args.samples * ((args.rows + 3) / 4) * ((args.columns + 3) / 4)),
        blocks((tiles + kLearnTiles - 1) / kLearnTiles),
        block((tiles + blocks - 1) / blocks),
        apart(block | 1),
        across((args.channels + kPanel - 1) / kPanel),
        down((args.outputs + kPanel - 1) / kPanel),
        tasks((across + kLearnChannels - 1) / kLearnChannels *
              ((down + kLearnOutputs - 1) / kLearnOutputs)) {}
};

}  // namespace

int64_t learn_scratch(const WinogradWeightGradientArgs& args) {
  const Learning of(args);
  const int64_t sums = of.tasks * kLearnOutputs * kLearnChannels * kPanel * kPanel;
  return 36 * ((of.across + of.down) * of.apart * kPanel + (of.blocks > 1 ? sums : 0));
}

void run_winograd_weight_gradient(WinogradWeightGradientArgs args, float* scratch,
                                  ParallelFor parallel) {
  const Learning of(args);
  args.apart = of.apart;
  args.patches = scratch;
  args.tiles = args.patches + 36 * of.across * of.apart * kPanel;
  args.sums = of.blocks > 1 ? args.tiles + 36 * of.down * of.apart * kPanel : nullptr;
  for (args.first = 0; args.first < of.tiles; args.first += of.block) {
    args.count = std::min(of.block, of.tiles - args.first);
    args.last = args.first + args.count == of.tiles;
    over(args.count, 16, parallel,
         [&](int64_t begin, int64_t end) { kernels().winograd_learn_tiles(args, begin, end); });
    over(of.tasks, 1, parallel,
         [&](int64_t begin, int64_t end) { kernels().winograd_learn_taps(args, begin, end); });
  }
}

// A block's sums and gathered pixels stay in half of an L2 cache; rows in sevens, as gemm.h takes
// them. Few blocks are cut by outputs, too. No choice changes a result's bits.
void run_direct(DirectArgs args, ParallelFor parallel) {
  note(args);
  const int64_t pixels = args.samples * args.rows * args.columns;
  if (pixels <= 0) return;
  const int64_t width = (args.outputs + kPanel - 1) / kPanel * kPanel;
  const int64_t fitting = 512 * 1024 / (4 * (width + kDirectDepth)) / 7 * 7;
  const int64_t most = std::clamp<int64_t>(fitting, 28, 112);
  const int64_t blocks = (pixels + most - 1) / most;
  args.block = (pixels + blocks - 1) / blocks;
  args.chunk = chunk_of(args.outputs, blocks);
  const int64_t taps = args.kernel[0] * args.kernel[1];
  const int64_t work = args.block * args.chunk * taps * args.channels / 16;
  const int64_t chunks = (args.outputs + args.chunk - 1) / args.chunk;
  const DirectKernel kernel = kernels().direct;
  over((pixels + args.block - 1) / args.block * chunks, samples_a_grain(work), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// The ring of products stays in half of an L2 cache, with about 112 pixels multiplied at once, of
// several samples where they are small. A task has all rows of its samples, since neighbouring
// bands multiply the rows between them twice; few large samples are cut nevertheless, for the
// threads. No choice changes a result's bits.
void run_fold(DirectArgs args, ParallelFor parallel) {
  note(Fold{args});
  if (args.samples * args.rows * args.columns <= 0) return;
  const int64_t channels = std::min(args.outputs, kFoldChannels);
  const int64_t blocks = (args.outputs + kFoldChannels - 1) / kFoldChannels;
  const int64_t row = 4 * args.width * (args.kernel[0] * args.kernel[1] * channels + kPanel);
  const int64_t span = args.dilation[0] * (args.kernel[0] - 1) / args.stride[0];
  const int64_t fitting = std::max<int64_t>(1, (512 * 1024 / row - span) / 2);
  args.block = std::clamp<int64_t>(112 / args.width, 1, fitting);
  args.together = std::clamp<int64_t>(args.block / args.height, 1, args.samples);
  args.block = std::min(args.block, args.together * args.height);
  const int64_t tasks = (args.samples + args.together - 1) / args.together * blocks;
  const int64_t least = 4 * (span + 1) * args.stride[0];  // a band multiplies a fifth twice at most
  const int64_t bands =
      args.together > 1 || tasks >= 8 ? 1 : std::max<int64_t>(1, args.rows / least);
  args.band = (args.rows + bands - 1) / bands;
  const DirectKernel kernel = kernels().fold;
  over(tasks * ((args.rows + args.band - 1) / args.band), 1, parallel,
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

void run_affine_relu(const AffineReluArgs& args, ParallelFor parallel) {
  note(args);
  const AffineReluKernel kernel = kernels().affine_relu;
  over(args.pixels, samples_a_grain(args.channels), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

void run_relu(const ReluArgs& args, ParallelFor parallel) {
  note(args);
  const ReluKernel kernel = kernels().relu;
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
