// Convolutions and their gradients: how each is cut into tasks.
#include <algorithm>

#include "over.h"
#include "plan.h"
#include "run.h"

namespace fastadv {

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

void run_depthwise(const DirectArgs& args, bool gradient, ParallelFor parallel) {
  note(Depthwise{args, gradient});
  const int64_t taps = args.kernel[0] * args.kernel[1];
  const DirectKernel kernel = gradient ? kernels().depthwise_gradient : kernels().depthwise;
  over(args.samples * args.rows, samples_a_grain(args.columns * args.channels * taps / 4), parallel,
       [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace fastadv
