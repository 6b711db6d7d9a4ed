// The door to the CPU kernels: plain structs and function pointers, no torch header, so that
// sanitizers, fuzzers and the NumPy module build them alone.
//
// Every kernel is one source built once per ISA (baseline, avx2, avx512). Each build fills one
// `Kernels` table; `kernels()` in dispatch.cpp picks the table once, at run time.
#pragma once

#include <cstdint>

#include "../args.h"
#include "engine_args.h"

namespace fastadv {

// `begin`, `end`: linf counts elements of the whole batch, l2 and l1 count samples.
using StepKernel = void (*)(const StepArgs&, int64_t begin, int64_t end);

using AccumulateKernel = void (*)(const AccumulateArgs&, int64_t begin, int64_t end);  // columns

using HeadKernel = void (*)(const HeadArgs&, int64_t begin, int64_t end);  // samples

using DigestKernel = void (*)(const DigestArgs&, int64_t begin, int64_t end);  // samples

using UniformKernel = void (*)(const UniformArgs&, int64_t begin, int64_t end);  // samples

struct FingerprintArgs {
  const void* data;
  int64_t words;   // of 64 bits
  uint64_t* sums;  // one a block of kFingerprintWords
};
using FingerprintKernel = void (*)(const FingerprintArgs&, int64_t begin, int64_t end);  // blocks
constexpr int64_t kFingerprintWords = 8192;

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
  DirectKernel depthwise;
  DirectKernel depthwise_gradient;
  LinearKernel linear;
  AttentionKernel attention;
  NormKernel norm;
  PoolKernel max_pool;
  PoolKernel max_pool_gradient;
  PointwiseKernel pointwise;
  MeanKernel mean;
  WatchKernel watch;
  FingerprintKernel fingerprint;
  DensePgdKernel dense_pgd;
  DensePassKernel dense_pass;
};

// The table in use: the best that the processor has, or what FASTADV_CPU_CAPABILITY names
// (baseline, avx2, avx512). Throws std::runtime_error if the named one cannot run here.
const Kernels& kernels();

}  // namespace fastadv
