// The door to the CPU kernels: plain structs and function pointers, no torch header, so that
// sanitizers, fuzzers and the NumPy module build them alone.
//
// Every kernel is one source built once per ISA (baseline, avx2, avx512). Each build fills one
// `Kernels` table; `kernels()` in dispatch.cpp picks the table once, at run time.
#pragma once

#include <cstdint>

#include "../args.h"

namespace fastadv {

// `begin`, `end`: linf counts elements of the whole batch, l2 and l1 count samples.
using StepKernel = void (*)(const StepArgs&, int64_t begin, int64_t end);

using AccumulateKernel = void (*)(const AccumulateArgs&, int64_t begin, int64_t end);  // columns

using HeadKernel = void (*)(const HeadArgs&, int64_t begin, int64_t end);  // samples

using DigestKernel = void (*)(const DigestArgs&, int64_t begin, int64_t end);  // samples

using UniformKernel = void (*)(const UniformArgs&, int64_t begin, int64_t end);  // samples

// A 3x3 convolution by Winograd's transforms, channels last, or its gradient by its input (then x
// is the gradient of the output, y that of the input, and the weights are turned round): without a
// stride that is a convolution too, with stride 2 a form of its own.
enum WinogradForm { kPlain, kStrided, kStridedGradient };
struct WinogradArgs {
  const float* x;         // (samples, height, width, channels)
  const float* weights;   // (36, panels of the outputs, channels, kPanel): the transformed weights;
                          // of bfloat16 (36, panels, pairs of channels, kPanel, 2)
  const float* bias;      // (outputs) or null
  const float* residual;  // like y, added before the ReLU and the mask; or null
  const uint8_t* mask;    // bits like `signs`: y is zero where they are zero; or null
  float* y;               // (samples, rows, columns, outputs)
  uint8_t* signs;  // a bit an output of the ReLU, !(value <= 0), kPanel / 8 bytes a panel; or null
  int64_t samples, height, width, channels, rows, columns, outputs;
  int64_t padding;  // of the convolution; with stride 2 it is 1
  WinogradForm form;
  bool relu;
  bool bfloat16;   // the products, not the sums: multiplies_bfloat16()
  int64_t tiles;   // of 4x4 outputs (of a strided gradient 8x8), transformed together
  int64_t panels;  // of outputs, multiplied together
};
using WinogradKernel = void (*)(const WinogradArgs&, int64_t begin, int64_t end);  // tasks
constexpr int64_t kPanel = 16;         // outputs whose weights stand side by side, whatever the ISA
constexpr int64_t kWide = 4 * kPanel;  // and what is multiplied at once, at most

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
  const float* bias;  // as in WinogradArgs, as all that follows
  const float* residual;
  const uint8_t* mask;
  float* y;  // (samples, rows, columns, outputs)
  uint8_t* signs;
  int64_t samples, height, width, channels, rows, columns, outputs;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  bool relu, bfloat16;
  int64_t block;     // pixels of a task; of a gradient rows of x that are multiplied at once
  int64_t chunk;     // and the outputs of these, some times kWide
  int64_t band;      // of a gradient: rows of y in a task,
  int64_t together;  // and samples, where a task has all their rows
};
using DirectKernel = void (*)(const DirectArgs&, int64_t begin, int64_t end);  // tasks

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
  const float* residual;  // like y, as in WinogradArgs, as the mask; of a gradient, or null
  const uint8_t* mask;
  float* y;  // (samples, rows, columns, outputs)
  uint8_t* signs;
  int64_t samples, height, width, rows, columns, outputs;
  int64_t kernel[2], stride[2], padding[2];
  bool relu;
};
using PoolKernel = void (*)(const PoolArgs&, int64_t begin, int64_t end);  // rows of y

// y = relu(x [+ residual]) with its signs, or y = x where `mask` has a bit; channels last.
struct ReluArgs {
  const float* x;         // pixels * channels
  const float* residual;  // like x, or null
  const uint8_t* mask;    // given: it is applied, and no ReLU
  float* y;
  uint8_t* signs;  // or null
  int64_t pixels, channels;
};
using ReluKernel = void (*)(const ReluArgs&, int64_t begin, int64_t end);  // pixels

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

// y = relu(x * scale + shift) with its signs; or y = x * scale where `mask` has a bit, + residual.
struct AffineReluArgs {
  const float* x;         // pixels * channels
  const float* scale;     // (channels)
  const float* shift;     // (channels); null with a mask
  const float* residual;  // like x, or null
  const uint8_t* mask;    // or null
  float* y;
  uint8_t* signs;  // null with a mask
  int64_t pixels, channels;
};
using AffineReluKernel = void (*)(const AffineReluArgs&, int64_t begin, int64_t end);  // pixels

struct FingerprintArgs {
  const void* data;
  int64_t words;   // of 64 bits
  uint64_t* sums;  // one a block of kFingerprintWords
};
using FingerprintKernel = void (*)(const FingerprintArgs&, int64_t begin, int64_t end);  // blocks
constexpr int64_t kFingerprintWords = 8192;

enum Activation : int {
  kNone = 0,
  kRectified = 1,
  kLeaky = 2,
  kGelu = 3,
  kGeluByTanh = 4,
  kTanh = 5,
  kSigmoid = 6,
  kActivations = 7
};

// y = activation(W x + b). The weights stand in panels of kPanel columns, zeros beyond the last:
// (panels, depth, kPanel) of float32, or (panels, ceil(depth / 2), kPanel, 2) of bfloat16.
struct DenseLayer {
  const void* weights;   // columns: the outputs, depth: the inputs
  const void* gradient;  // columns: the inputs, depth: the outputs
  const float* bias;     // of whole panels
  int64_t inputs, outputs;
  Activation activation;
  float leak;  // the slope of kLeaky below 0
};

struct DenseStack {
  const DenseLayer* layers;
  int64_t count;
  bool bfloat16;  // the products; sums are float32
};

// `steps` steps of an attack on a stack, float32 data.
struct DensePgdArgs {
  DenseStack stack;
  StepArgs step;  // grad: null
  StepKernel step_kernel;
  bool by_element;  // what the step kernel counts
  HeadArgs head;    // y, target, classes and targeted; the rest: null
  HeadKernel head_kernel;
  int64_t label_bytes;  // of y, a sample
  int64_t steps;
  float* seen;  // (samples): set to NaN where a loss or a gradient is no number
};
using DensePgdKernel = void (*)(const DensePgdArgs&, int64_t begin, int64_t end);  // samples

// A stack's forward, or the way back of its gradient.
struct DensePassArgs {
  DenseStack stack;
  const float* from;  // (samples, inputs), or of the gradient (samples, outputs)
  float* to;          // the other way round
  float* slopes;      // of the activations, of whole panels: written, or of the gradient read
  int64_t samples;
  bool gradient;
};
using DensePassKernel = void (*)(const DensePassArgs&, int64_t begin, int64_t end);  // samples

struct Kernels {
  const char* isa;
  StepKernel step[kNorms][kDTypes];
  StepKernel shared_step[kNorms][kDTypes];  // x null, grad in the compute dtype
  AccumulateKernel accumulate[kDTypes];
  HeadKernel head[kHeads][kDTypes];
  DigestKernel digest[kDTypes];
  UniformKernel uniform[2];  // float32, float64
  WinogradKernel winograd;
  WinogradWeightsKernel winograd_weights;             // rows: a panel's channel, or two of bfloat16
  WinogradWeightGradientKernel winograd_learn_tiles;  // tiles of the block
  WinogradWeightGradientKernel winograd_learn_taps;   // tasks
  DirectKernel direct;
  DirectKernel fold;
  LinearKernel linear;
  AttentionKernel attention;
  NormKernel norm;
  PoolKernel max_pool;
  PoolKernel max_pool_gradient;
  ReluKernel relu;
  MeanKernel mean;
  WatchKernel watch;
  AffineReluKernel affine_relu;
  FingerprintKernel fingerprint;
  DensePgdKernel dense_pgd;
  DensePassKernel dense_pass;
};

// The table in use: the best that the processor has, or what FASTADV_CPU_CAPABILITY names
// (baseline, avx2, avx512). Throws std::runtime_error if the named one cannot run here.
const Kernels& kernels();

}  // namespace fastadv
