// sum <- the weighted sum over the batch of the gradients, or of their signs; then momentum. The
// step that follows is step_*.cuh's, without an x.
//
// Two stages. The batch is cut into at most 32 parts; a thread sums 16 bytes' worth of columns over
// one part, in double, reading each gradient once (4 B an element of the batch in fp32), and leaves
// its sums, 8 B a column and part. Then a thread adds a column's parts in their order, and in linf
// takes the column's step at once: two launches. No atomics:
// the parts depend on the shape alone, so a result has the same bits in every run.
#pragma once

#include "access.cuh"
#include "step_linf.cuh"
#include "team.cuh"

namespace fastadv::cuda {

constexpr int kUniversalThreads = 128;

// `parts` of double, (parts, size): the sums of samples / parts samples each.
template <class T>
__global__ void __launch_bounds__(kUniversalThreads)
    accumulate(const AccumulateArgs args, double* parts, int64_t count, bool aligned,
               uint32_t blocks) {
  using C = Compute<T>;
  const int64_t part = blockIdx.x / blocks;
  const int64_t vector = int64_t(blockIdx.x % blocks) * kUniversalThreads + threadIdx.x;
  const Span<T> columns(0, args.size, aligned);
  if (vector >= columns.vectors()) return;
  const int64_t begin = part * args.samples / count, end = (part + 1) * args.samples / count;
  const C* const weights = static_cast<const C*>(args.weights);
  double sums[kLanes<T>] = {};
#pragma unroll 4
  for (int64_t sample = begin; sample < end; ++sample) {
    const C weight = weights ? weights[sample] : C(1);
    if (weight == 0) continue;  // 0 * inf would not be 0
    const Place place = columns.place(vector);
    const auto row = load<kLanes<T>>(static_cast<const T*>(args.grads) + sample * args.size, place);
#pragma unroll
    for (int j = 0; j < kLanes<T>; ++j) {
      const C g = number(row.lane[j]);
      sums[j] += double(weight * (args.signs ? sign(g) : g));
    }
  }
  const Place place = columns.place(vector);
  Pack<double, kLanes<T>> pack;
#pragma unroll
  for (int j = 0; j < kLanes<T>; ++j) pack.lane[j] = sums[j];
  store(parts + part * args.size, place, pack);
}

FASTADV_DEVICE double sum_of(const double* parts, int64_t count, int64_t size, int64_t column) {
  double total = 0;
  for (int64_t part = 0; part < count; ++part) total += parts[part * size + column];
  return total;
}

// delta <- its linf step along the parts' sum.
template <class T>
__global__ void __launch_bounds__(kUniversalThreads)
    combine_and_step(const double* parts, int64_t count, const StepArgs args) {
  using C = Compute<T>;
  const int64_t column = int64_t(blockIdx.x) * kUniversalThreads + threadIdx.x;
  if (column >= args.size) return;
  T* const delta = static_cast<T*>(args.x_adv) + column;
  const C infinity = C(__builtin_inf());
  *delta = moved_linf<T>(number(*delta), C(sum_of(parts, count, args.size, column)), C(0),
                         value_of<C>(args.step_size, 0), args.steepest, value_of<C>(args.radius, 0),
                         -infinity, infinity);
}

// sum <- the parts' sum; norms[block] <- the block's share of ||sum||_1.
template <class C>
__global__ void __launch_bounds__(kUniversalThreads)
    combine(const double* parts, int64_t count, int64_t size, C* sum, double* norms) {
  const int64_t column = int64_t(blockIdx.x) * kUniversalThreads + threadIdx.x;
  double norm = 0;
  if (column < size) {
    sum[column] = C(sum_of(parts, count, size, column));
    norm = __builtin_fabs(double(sum[column]));
  }
  norm = over_block<kUniversalThreads>(norm, Add());
  if (threadIdx.x == 0) norms[blockIdx.x] = norm;
}

// velocity <- momentum * velocity + sum / ||sum||_1 (MI-FGSM, Dong et al. 1710.06081, equation 6).
// Every block adds up the norms itself, 8 B for 128 columns.
template <class C>
__global__ void __launch_bounds__(kUniversalThreads)
    gather_momentum(C* velocity, const C* sum, const double* norms, int64_t size, double momentum) {
  double norm = 0;
  for (int64_t i = threadIdx.x; i < gridDim.x; i += kUniversalThreads) norm += norms[i];
  norm = over_block<kUniversalThreads>(norm, Add());
  const double scale = norm > 0 ? 1 / norm : 0;
  const int64_t column = int64_t(blockIdx.x) * kUniversalThreads + threadIdx.x;
  if (column >= size) return;
  velocity[column] = C(momentum * double(velocity[column]) + scale * double(sum[column]));
}

}  // namespace fastadv::cuda
