// What every op's kernels take, on any device: plain structs over pointers, no torch header.
#pragma once

#include <cstdint>

namespace fastadv {

enum DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3, kDTypes = 4 };
enum Norm : int { kLinf = 0, kL2 = 1, kL1 = 2, kNorms = 3 };

// float64 data is computed in float64; everything else in float32.

// The box [lower, upper]: null pointers are no box. `channels` bounds, in the compute dtype, each
// serving runs of `inner` consecutive elements: inner = H * W when contiguous, 1 when
// channels_last, and channels = 1 with any inner when one pair serves all.
struct Box {
  const void* lower = nullptr;
  const void* upper = nullptr;
  int64_t channels = 1;
  int64_t inner = 1;
};

// One value for all samples (stride 0) or one a sample (stride 1), in the compute dtype.
struct PerSample {
  const void* data = nullptr;
  int64_t stride = 0;
};

struct StepArgs {
  void* x_adv;       // samples * size elements, updated in place
  const void* grad;  // the same layout and, but for a shared step, dtype
  const void* x;     // the same layout; a shared step has none: x_adv is the perturbation itself
  int64_t samples;
  int64_t size;  // elements a sample
  PerSample step_size;
  PerSample radius;
  Box box;
  bool steepest;  // false: the raw gradient is the direction
  double top;     // l1 steepest: the share of the largest |grad| that moves (SLIDE)
};

struct AccumulateArgs {
  void* sum;            // size elements in the compute dtype, written
  const void* grads;    // samples * size
  const void* weights;  // (samples) in the compute dtype, or null for ones
  int64_t samples;
  int64_t size;
  bool signs;  // sum sign(grad) instead of grad
};

struct UniversalArgs {
  void* delta;          // size elements of the data's dtype, updated in place
  void* velocity;       // size elements of the compute dtype, updated in place; or null
  const void* grads;    // samples * size elements of the data's dtype
  const void* weights;  // samples, in the compute dtype; or null for ones
  int64_t samples;
  int64_t size;
  PerSample step_size;  // of one sample
  PerSample radius;
  double momentum;
  bool signs;
  bool steepest;
  double top;
};

enum Head : int {
  kCrossEntropy = 0,
  kBinaryCrossEntropy = 1,
  kMargin = 2,
  kDlr = 3,
  kKl = 4,
  kHeads = 5
};

struct HeadArgs {
  const void* logits;  // (samples, classes)
  const void*
      y;  // int64 (samples,): cross-entropy, margin, dlr; compute dtype (samples, classes): bce, kl
  const void* target;  // int64 (samples,), targeted dlr only, else null
  void* loss;          // (samples,) in the compute dtype
  void* grad;          // (samples, classes), dtype of logits
  void* prediction;    // int64 (samples,); bce: bool (samples, classes)
  int64_t samples;
  int64_t classes;
  bool targeted;  // the objective's own targeted form
};

struct DigestArgs {
  const void* data;
  int64_t* digest;  // (samples,)
  int64_t samples;
  int64_t size;
};

struct UniformArgs {
  void* out;  // samples * size in the compute dtype float32 or float64
  int64_t samples;
  int64_t size;
  uint64_t seed;
  int64_t offset;  // index of the first sample
  uint32_t stream;
};

}  // namespace fastadv
