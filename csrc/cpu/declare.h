// What each kernel file defines, once per ISA, and table.cpp collects.
#pragma once

#include "../math.h"
#include "kernels.h"

FASTADV_NAMESPACE_BEGIN

template <class T, class G, bool kHasX>
void step_linf(const StepArgs&, int64_t begin, int64_t end);
template <class T, class G, bool kHasX>
void step_l2(const StepArgs&, int64_t begin, int64_t end);
template <class T, class G, bool kHasX>
void step_l1(const StepArgs&, int64_t begin, int64_t end);
template <class T>
void accumulate(const AccumulateArgs&, int64_t begin, int64_t end);
template <class T>
void digest(const DigestArgs&, int64_t begin, int64_t end);
template <class C>
void uniform(const UniformArgs&, int64_t begin, int64_t end);

void winograd(const WinogradArgs&, int64_t begin, int64_t end);
void winograd_weights(const WinogradWeightsArgs&, int64_t begin, int64_t end);
void winograd_learn_tiles(const WinogradWeightGradientArgs&, int64_t begin, int64_t end);
void winograd_learn_taps(const WinogradWeightGradientArgs&, int64_t begin, int64_t end);
void direct(const DirectArgs&, int64_t begin, int64_t end);
void fold(const DirectArgs&, int64_t begin, int64_t end);
void depthwise(const DirectArgs&, int64_t begin, int64_t end);
void depthwise_gradient(const DirectArgs&, int64_t begin, int64_t end);
void linear(const LinearArgs&, int64_t begin, int64_t end);
void attention(const AttentionArgs&, int64_t begin, int64_t end);
void norm(const NormArgs&, int64_t begin, int64_t end);
void max_pool(const PoolArgs&, int64_t begin, int64_t end);
void max_pool_gradient(const PoolArgs&, int64_t begin, int64_t end);
void pointwise(const PointwiseArgs&, int64_t begin, int64_t end);
void mean(const MeanArgs&, int64_t begin, int64_t end);
void watch(const WatchArgs&, int64_t begin, int64_t end);
void fingerprint(const FingerprintArgs&, int64_t begin, int64_t end);
void dense_pgd(const DensePgdArgs&, int64_t begin, int64_t end);
void dense_pass(const DensePassArgs&, int64_t begin, int64_t end);

// A sample's own step, and a universal perturbation's: no x, the gradient summed in the compute
// dtype.
#define FASTADV_INSTANTIATE_STEP(name)                                             \
  template void name<float, float, true>(const StepArgs&, int64_t, int64_t);       \
  template void name<double, double, true>(const StepArgs&, int64_t, int64_t);     \
  template void name<bfloat16, bfloat16, true>(const StepArgs&, int64_t, int64_t); \
  template void name<float16, float16, true>(const StepArgs&, int64_t, int64_t);   \
  template void name<float, float, false>(const StepArgs&, int64_t, int64_t);      \
  template void name<double, double, false>(const StepArgs&, int64_t, int64_t);    \
  template void name<bfloat16, float, false>(const StepArgs&, int64_t, int64_t);   \
  template void name<float16, float, false>(const StepArgs&, int64_t, int64_t);

FASTADV_NAMESPACE_END
