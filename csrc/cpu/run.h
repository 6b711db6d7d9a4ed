// Every op over plain pointers: the kernel that serves it, split over the caller's threads. What
// torch (register.cpp) and NumPy (python.cpp) share, and all that stands between them and a kernel.
#pragma once

#include "kernels.h"

namespace fastadv {

// Calls body(begin, end, context) on ranges of at least `grain` that make up [begin, end).
using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

void run_step(Norm norm, DType dtype, const StepArgs& args, ParallelFor parallel);
void run_universal(Norm norm, DType dtype, const UniversalArgs& args, ParallelFor parallel);
void run_head(Head head, DType dtype, const HeadArgs& args, ParallelFor parallel);
void run_digest(DType dtype, const DigestArgs& args, ParallelFor parallel);
void run_uniform(bool double_precision, const UniformArgs& args, ParallelFor parallel);
void run_winograd(WinogradArgs args, ParallelFor parallel);  // chooses args.tiles and args.panels
void run_direct(DirectArgs args, ParallelFor parallel);      // chooses args.block
void run_fold(DirectArgs args, ParallelFor parallel);  // chooses args.block, band and together
void run_depthwise(const DirectArgs& args, bool gradient, ParallelFor parallel);
void run_linear(LinearArgs args, ParallelFor parallel);  // chooses args.block and args.chunk
void run_attention(const AttentionArgs& args, ParallelFor parallel);
void run_norm(const NormArgs& args, ParallelFor parallel);
void run_max_pool(const PoolArgs& args, bool gradient, ParallelFor parallel);
void run_winograd_weights(const WinogradWeightsArgs& args, ParallelFor parallel);
// `scratch` holds learn_scratch(args) floats.
void run_winograd_weight_gradient(WinogradWeightGradientArgs args, float* scratch,
                                  ParallelFor parallel);
int64_t learn_scratch(const WinogradWeightGradientArgs& args);
void run_pointwise(const PointwiseArgs& args, ParallelFor parallel);
void run_mean(const MeanArgs& args, ParallelFor parallel);
void run_watch(const WatchArgs& args, ParallelFor parallel);
void run_dense_pgd(const DensePgdArgs& args, ParallelFor parallel);
void run_dense_pass(const DensePassArgs& args, ParallelFor parallel);
// A hash of the bytes, which neither the threads nor the ISA change.
uint64_t run_fingerprint(const void* data, int64_t bytes, ParallelFor parallel);

}  // namespace fastadv
