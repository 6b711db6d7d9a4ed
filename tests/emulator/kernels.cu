// The kernels of csrc/cuda that test_emulated_cuda.py runs, compiled to PTX: each template once or
// twice, so that nvcc takes seconds.
#include "cuda/head.cuh"
#include "cuda/launch.cuh"
#include "cuda/small.cuh"
#include "cuda/step_l1.cuh"
#include "cuda/step_l2.cuh"
#include "cuda/step_linf.cuh"
#include "cuda/universal.cuh"

namespace fastadv::cuda {

template __global__ void step_linf<float, float, true, false>(StepArgs, bool, uint32_t);
template __global__ void step_linf<bfloat16, bfloat16, true, true>(StepArgs, bool, uint32_t);
template __global__ void step_linf<float16, float16, true, false>(StepArgs, bool, uint32_t);
template __global__ void step_linf<double, double, true, true>(StepArgs, bool, uint32_t);
template __global__ void step_l2<float, float, true, 256, 4>(StepArgs, bool, bool);
template __global__ void step_l2<float, float, true, 512, 0>(StepArgs, bool, bool);
template __global__ void step_l1<float, float, true, 256, 4>(StepArgs, bool, bool);
template __global__ void step_l1<float, float, true, 512, 0>(StepArgs, bool, bool);
template __global__ void accumulate<float>(AccumulateArgs, double*, int64_t, bool, uint32_t);
template __global__ void combine<float>(const double*, int64_t, int64_t, float*, double*);
template __global__ void digest<float>(DigestArgs, bool);
template __global__ void digest<bfloat16>(DigestArgs, bool);
template __global__ void uniform<float>(UniformArgs, bool, uint32_t);
template __global__ void uniform<double>(UniformArgs, bool, uint32_t);
template __global__ void head<kCrossEntropy, false, float, 32, 8>(HeadArgs, bool);
template __global__ void head<kCrossEntropy, false, float, 512, 0>(HeadArgs, bool);
template __global__ void head<kDlr, true, float, 32, 8>(HeadArgs, bool);

}  // namespace fastadv::cuda
