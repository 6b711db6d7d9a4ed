// What kernels and launchers take from CUDA; tests/cuda/shim.h gives the same on the CPU.
#pragma once

#include <cstdint>

#include "../args.h"
#include "../math.h"
#include "instructions.cuh"

#if defined(FASTADV_SHIM)
#include "shim.h"
#else
#include <cuda_runtime.h>

#include <climits>
#include <stdexcept>
#include <string>

#define FASTADV_SHARED(type, name, count) __shared__ type name[count]

namespace fastadv::cuda {

// 16 bytes at once. Written as an assignment it is taken apart, and stored in four pieces.
__device__ __forceinline__ void store_16_bytes(uint4* to, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

using Stream = cudaStream_t;

// Queues a kernel; `name` is what an error says.
template <class... P, class... A>
void launch(void (*kernel)(P...), const char* name, int64_t blocks, int threads, Stream stream,
            A... args) {
  if (blocks > INT_MAX) throw std::runtime_error(std::string(name) + ": the batch is too large");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
  }
}

}  // namespace fastadv::cuda
#endif

#define FASTADV_DEVICE __device__ __forceinline__
