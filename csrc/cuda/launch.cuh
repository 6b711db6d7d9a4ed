// What the launchers share: dtypes to types, and how many vectors a sample has at most.
#pragma once

#include "access.cuh"
#include "run.h"

namespace fastadv::cuda {

template <class T>
struct Type {
  using type = T;
};

// f(Type<T>) for the type of `dtype`.
template <class F>
void with_dtype(DType dtype, F f) {
  if (dtype == kFloat32) f(Type<float>());
  if (dtype == kFloat64) f(Type<double>());
  if (dtype == kBFloat16) f(Type<bfloat16>());
  if (dtype == kFloat16) f(Type<float16>());
}

template <class... P>
bool are_aligned(const P*... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// See Span: a sample that starts inside a vector may reach into one more.
template <class T>
int64_t most_vectors(int64_t samples, int64_t size, bool aligned) {
  const bool inside = aligned && samples > 1 && size % kLanes<T> != 0;
  return inside ? size / kLanes<T> + 2 : (size + kLanes<T> - 1) / kLanes<T>;
}

inline int64_t blocks_for(int64_t count, int64_t threads) {
  return (count + threads - 1) / threads;
}

inline bool has_box_each(const Box& box) { return box.lower != nullptr && box.channels > 1; }

// l2 and l1: a block a sample. Up to 4096 elements a sample is held in registers, 16 a thread.
template <class T>
constexpr int kHoldingThreads = sizeof(T) == 8 ? 512 : 256;
template <class T>
constexpr int kHeldVectors = 4096 / kLanes<T> / kHoldingThreads<T>;
constexpr int kReadingThreads = 512;

using SampleKernel = void (*)(const StepArgs args, bool aligned, bool each);

template <class T, int kThreads, int kHeld>
void launch_sample(const char* name, SampleKernel holding, SampleKernel reading,
                   const StepArgs& args, Stream stream) {
  const auto fits = [&](bool aligned) {
    return most_vectors<T>(args.samples, args.size, aligned) <= kThreads * kHeld;
  };
  bool aligned = are_aligned(args.x_adv, args.grad, args.x);
  const bool held = fits(aligned) || fits(false);
  // The sizes of 4090 to 4095 that start inside a vector: element by element, but once.
  if (held && !fits(aligned)) aligned = false;
  launch(held ? holding : reading, name, args.samples, held ? kThreads : kReadingThreads, stream,
         args, aligned, has_box_each(args.box));
}

}  // namespace fastadv::cuda
