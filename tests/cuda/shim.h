// CUDA's words in plain C++, so that csrc/cuda compiles as it stands and runs on the CPU: a fiber a
// thread, a block after another. What schedules them is fibers.cpp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

// A block's own array: found by the address of a static, one for each instance of a template.
#define FASTADV_SHARED(type, name, count) \
  static char name##_key;                 \
  type* const name = static_cast<type*>(shim::shared(&name##_key, sizeof(type) * (count)))

namespace shim {

struct Index {
  unsigned x;
};
Index thread_index();
Index block_index();
Index grid_size();

void* shared(const void* key, size_t bytes);
void barrier();       // of the block
void warp_barrier();  // of all lanes of the warp that are still there
uint64_t from_lane(uint64_t value, unsigned lane);

// Runs body on blocks * threads fibers, in the order that set_schedule() named.
enum class Order { kForward, kReverse, kRandom };
void set_schedule(Order order, unsigned seed);
void run(int64_t blocks, int threads, const std::function<void()>& body);

template <class T>
T shuffle(T value, unsigned lane) {
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = from_lane(word, lane);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

}  // namespace shim

#define threadIdx (shim::thread_index())
#define blockIdx (shim::block_index())
#define gridDim (shim::grid_size())

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline void __syncthreads() { shim::barrier(); }
inline void __syncwarp() { shim::warp_barrier(); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  return shim::shuffle(value, threadIdx.x % 32 ^ unsigned(distance));
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  const unsigned lane = threadIdx.x % 32;
  return shim::shuffle(value, lane < unsigned(distance) ? lane : lane - unsigned(distance));
}
inline uint32_t atomicAdd(uint32_t* to, uint32_t value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

namespace fastadv::cuda {

using Stream = void*;

inline void store_16_bytes(uint4* to, uint4 v) { *to = v; }

template <class... P, class... A>
void launch(void (*kernel)(P...), const char*, int64_t blocks, int threads, Stream, A... args) {
  shim::run(blocks, threads, [=] { kernel(args...); });
}

}  // namespace fastadv::cuda
