// What the engine's kernels are told: layers of a net on the CPU, float32, channels last.
#pragma once

#include <cstdint>

namespace fastadv {

constexpr int64_t kPanel = 16;         // outputs whose weights stand side by side, whatever the ISA
constexpr int64_t kWide = 4 * kPanel;  // and what is multiplied at once, at most

enum Activation : int {
  kNone = 0,
  kRectified = 1,
  kLeaky = 2,
  kGelu = 3,
  kGeluByTanh = 4,
  kTanh = 5,
  kSigmoid = 6,
  kDenseActivations = 7,  // those before are a dense stack's, too
  kSilu = kDenseActivations,
  kElu = 8,
  kSoftplus = 9,
  kMish = 10,
  kHardSigmoid = 11,
  kHardSwish = 12,
  kClamped = 13,
  kActivations = 14
};
constexpr int kNumbers = 3;  // of an activation, at most (activations.h says which)

// Whether its slope is one of two numbers, which a bit says: 1, or the leak.
constexpr bool has_two_slopes(Activation which) {
  return which == kRectified || which == kLeaky || which == kClamped;
}

// How many numbers it takes: a leak; alpha, scale and input scale; beta and threshold; bounds.
constexpr int numbers_of(Activation which) {
  if (which == kElu) return 3;
  if (which == kSoftplus || which == kClamped) return 2;
  return which == kLeaky ? 1 : 0;
}

// What follows a layer's sum before it is written: y = activation(sum + residual), or, where there
// are slopes to multiply by, a gradient's y = (sum + residual) * slopes.
struct Epilogue {
  const float* residual;  // like y, or null
  Activation activation;
  float numbers[kNumbers];  // the activation's
  float leak;               // of a mask
  uint8_t* signs;           // where has_two_slopes: a bit a number, kPanel / 8 bytes a panel,
  float* slopes;            // and elsewhere its slopes, like y: written where they are not null
  const uint8_t* mask;      // what is multiplied by, as signs (and `leak` where there is no bit),
  const float* factors;     // or as slopes; or null
};

// A 3x3 convolution by Winograd's transforms, channels last, or its gradient by its input (then x
// is the gradient of the output, y that of the input, and the weights are turned round): without a
// stride that is a convolution too, with stride 2 a form of its own.
enum WinogradForm { kPlain, kStrided, kStridedGradient };
struct WinogradArgs {
  const float* x;        // (samples, height, width, channels)
  const float* weights;  // (36, panels of the outputs, channels, kPanel): the transformed weights;
                         // of bfloat16 (36, panels, pairs of channels, kPanel, 2)
  const float* bias;     // (outputs) or null
  float* y;              // (samples, rows, columns, outputs)
  Epilogue after;
  int64_t samples, height, width, channels, rows, columns, outputs;
  int64_t padding;  // of the convolution; with stride 2 it is 1
  WinogradForm form;
  bool bfloat16;   // the products, not the sums: multiplies_bfloat16()
  int64_t tiles;   // of 4x4 outputs (of a strided gradient 8x8), transformed together
  int64_t panels;  // of outputs, multiplied together
};
using WinogradKernel = void (*)(const WinogradArgs&, int64_t begin, int64_t end);  // tasks

struct WinogradWeightsArgs {
  const float* weight;  // (out, in, 3, 3)
  const float* scale;   // (out) or null: what each filter is multiplied by
  float* weights;       // as WinogradArgs has them
  int64_t out, in;
  bool gradient;  // of the convolution's gradient by its input
  bool strided;   // for the forms of stride 2
  bool bfloat16;
};
using WinogradWeightsKernel = void (*)(const WinogradWeightsArgs&, int64_t begin, int64_t end);

// The gradient of a 3x3 convolution of stride 1 by its weights (winograd_weight_gradient.cpp).
constexpr int64_t kLearnTiles = 64;                       // at most, transformed together
constexpr int64_t kLearnOutputs = 2, kLearnChannels = 4;  // panels of a task
struct WinogradWeightGradientArgs {
  const float* x;     // (samples, height, width, channels)
  const float* grad;  // (samples, rows, columns, outputs)
  float* weight;      // (outputs, channels, 3, 3): its gradient
  float* patches;     // of a block's tiles: (panels of channels, 36, apart, kPanel)
  float* tiles;       // (panels of outputs, 36, apart, kPanel)
  float* sums;        // of all tasks, from block to block; null where there is one block
  int64_t samples, height, width, channels, rows, columns, outputs;
  int64_t padding;
  int64_t first, count;  // the block's tiles
  int64_t apart;         // tiles from a part to the next: odd, or all would share a cache's sets
  bool last;             // block
};
using WinogradWeightGradientKernel = void (*)(const WinogradWeightGradientArgs&, int64_t begin,
                                              int64_t end);

// Any convolution of one group, channels last (direct.cpp), or its gradient by its input (fold.cpp:
// then x is the gradient of the output, and rows, columns and outputs are the input's).
constexpr int64_t kDirectDepth = 256;  // numbers of an output's taps that are multiplied at once
constexpr int64_t kDirectTaps = 64;
constexpr int64_t kFoldChannels = 64;  // of the input, whose gradient is summed at once
struct DirectArgs {
  const float* x;  // (samples, height, width, channels)
  // In parts of kDirectDepth numbers, each (panels of the outputs, numbers, kPanel); of bfloat16
  // (panels, pairs of numbers, kPanel, 2). Of a gradient in parts of kFoldChannels channels, each
  // (panels of taps * channels, the output's channels or pairs of them, kPanel).
  const float* weights;
  const float* bias;  // as in WinogradArgs
  float* y;           // (samples, rows, columns, outputs)
  Epilogue after;
  int64_t samples, height, width, channels, rows, columns, outputs;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  bool bfloat16;
  int64_t block;     // pixels of a task; of a gradient rows of x that are multiplied at once
  int64_t chunk;     // and the outputs of these, some times kWide
  int64_t band;      // of a gradient: rows of y in a task,
  int64_t together;  // and samples, where a task has all their rows
};
using DirectKernel = void (*)(const DirectArgs&, int64_t begin, int64_t end);  // tasks

// Of a convolution of each channel by itself, and of its gradient (depthwise.cpp), the weights are
// (taps, channels), and a task is a row of y.
constexpr int64_t kDepthwiseTaps = 32, kDepthwiseStride = 4;  // at most, along an axis

// y = finish(x W^T + bias) + residual: a linear layer, or its gradient by its input.
enum Finish : int { kUnfinished = 0, kGeluSlopes = 1, kGeluByTanhSlopes = 2, kTimesSlopes = 3 };
struct LinearArgs {
  const void* x;          // (rows, inputs)
  const float* weights;   // as in DirectArgs, of one tap
  const float* bias;      // (outputs) or null
  const float* residual;  // like y, float32, or null
  void* slopes;  // (rows, outputs): of the GELU, written, or what is multiplied by; of bfloat16
                 // where the products are; null where nothing is finished
  void* y;       // (rows, outputs)
  int64_t rows, inputs, outputs;
  Finish finish;
  bool bfloat16;            // the products
  bool narrow_x, narrow_y;  // these are bfloat16, which asks for such products
  int64_t block;            // rows of a task,
  int64_t chunk;            // and its outputs, some times kWide
};
using LinearKernel = void (*)(const LinearArgs&, int64_t begin, int64_t end);  // tasks

// A row of each head of each sample, `width` numbers side by side, and how many numbers lie between
// one and the next.
struct HeadRows {
  void* data;
  int64_t sample, head, row;
};
// o = softmax(scale q k^T) v, or, where `grad` is given, the gradients by q, k and v.
struct AttentionArgs {
  HeadRows q, k, v;
  HeadRows o;
  HeadRows grad, dq, dk, dv;
  void* p;  // (samples, heads, length, length in whole panels, pairs of them of bfloat16): kept
  float scale;
  int64_t samples, heads, length, width;
  bool bfloat16;  // all tensors, and the products
};
using AttentionKernel = void (*)(const AttentionArgs&, int64_t begin, int64_t end);  // heads
constexpr int64_t kAttentionMost = 256;  // tokens, and numbers a head: what L2 holds

// y = (x - mean) / sqrt(variance + eps) * gamma + beta of each row; or, where `grad` is given, the
// gradient by x, + residual.
struct NormArgs {
  const float* x;         // (rows, width)
  const float* grad;      // like x, or null
  const float* gamma;     // (width) or null
  const float* beta;      // the same
  const float* residual;  // like x, or null
  float* kept;            // (rows, 2): mean, 1 / sqrt(variance + eps); written, or read
  void* y;                // like x
  int64_t rows, width;
  float eps;
  bool narrow;  // y is bfloat16
};
using NormKernel = void (*)(const NormArgs&, int64_t begin, int64_t end);  // rows

// The largest pixel under each window, channels last, or the gradient of that by its input (then x
// is the gradient of the output, and rows and columns are the input's).
constexpr int64_t kPoolTaps = 256;  // a byte's
struct PoolArgs {
  const float* x;  // (samples, height, width, outputs)
  uint8_t* taken;  // which tap of its window each output was, in whole panels of outputs; of a
                   // gradient read
  float* y;        // (samples, rows, columns, outputs)
  Epilogue after;  // of a gradient
  int64_t samples, height, width, rows, columns, outputs;
  int64_t kernel[2], stride[2], padding[2];
};
using PoolKernel = void (*)(const PoolArgs&, int64_t begin, int64_t end);  // rows of y

struct MeanArgs {
  const float* x;
  float* y;
  int64_t samples, pixels, channels;
  bool gradient;  // x is (samples, channels) and y (samples, pixels, channels), not the other way
};
using MeanKernel = void (*)(const MeanArgs&, int64_t begin, int64_t end);  // samples

struct WatchArgs {
  const float* x;
  uint8_t* met;  // one, set where a number is NaN
  int64_t count;
  bool infinite;  // or infinite
};
using WatchKernel = void (*)(const WatchArgs&, int64_t begin, int64_t end);  // elements

// y = activation((x + other) * scale + shift); or, where the epilogue has slopes to multiply by,
// the gradient of that by x: y = (x + other) * slopes * scale + residual. Channels last.
struct PointwiseArgs {
  const float* x;      // pixels * channels
  const float* other;  // like x, or null
  const float* scale;  // (channels) or null
  const float* shift;  // (channels); null without a scale and of a gradient
  float* y;
  int64_t pixels, channels;
  Epilogue after;
};
using PointwiseKernel = void (*)(const PointwiseArgs&, int64_t begin, int64_t end);  // pixels

}  // namespace fastadv
