// The engine's elementwise ops on the CPU: which function serves which, and the checks that keep a
// kernel inside its memory. Their schemas and what defines them stand in fastadv/engine/ops.py.
#include <torch/csrc/stable/library.h>

#include "engine_checks.h"

namespace {

void relu(Tensor y, std::optional<Tensor> signs, Tensor x, std::optional<Tensor> residual,
          std::optional<Tensor> mask) {
  STD_TORCH_CHECK(x.dim() == 4, "`x` must be (N, H, W, C)");
  const int64_t n = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
  const int64_t bytes = sign_bytes(channels);
  check(x, "x", ScalarType::Float, {n, height, width, channels});
  check(y, "y", ScalarType::Float, {n, height, width, channels});
  const fastadv::ReluArgs args{
      floats(x),
      check_or_null<const float>(residual, "residual", ScalarType::Float,
                                 {n, height, width, channels}),
      check_or_null<const uint8_t>(mask, "mask", ScalarType::Byte, {n, height, width, bytes}),
      static_cast<float*>(y.mutable_data_ptr()),
      check_or_null<uint8_t>(signs, "signs", ScalarType::Byte, {n, height, width, bytes}),
      n * height * width,
      channels,
  };
  fastadv::run_relu(args, parallel);
}

void affine_relu(Tensor y, std::optional<Tensor> signs, Tensor x, Tensor scale,
                 std::optional<Tensor> shift, std::optional<Tensor> residual,
                 std::optional<Tensor> mask) {
  STD_TORCH_CHECK(x.dim() == 4, "`x` must be (N, H, W, C)");
  const int64_t n = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
  const int64_t bytes = sign_bytes(channels);
  const bool forward = signs && shift && !mask && !residual;
  STD_TORCH_CHECK(forward || (mask && !signs && !shift),
                  "`signs` and `shift` must be given, or `mask` in their place");
  check(x, "x", ScalarType::Float, {n, height, width, channels});
  check(y, "y", ScalarType::Float, {n, height, width, channels});
  check(scale, "scale", ScalarType::Float, {channels});
  const fastadv::AffineReluArgs args{
      floats(x),
      floats(scale),
      check_or_null<const float>(shift, "shift", ScalarType::Float, {channels}),
      check_or_null<const float>(residual, "residual", ScalarType::Float,
                                 {n, height, width, channels}),
      check_or_null<const uint8_t>(mask, "mask", ScalarType::Byte, {n, height, width, bytes}),
      static_cast<float*>(y.mutable_data_ptr()),
      check_or_null<uint8_t>(signs, "signs", ScalarType::Byte, {n, height, width, bytes}),
      n * height * width,
      channels,
  };
  fastadv::run_affine_relu(args, parallel);
}

void watch(Tensor met, Tensor x, bool infinite) {
  const int64_t count = x.numel();
  STD_TORCH_CHECK(met.is_cpu() && met.scalar_type() == ScalarType::Bool && met.numel() == 1,
                  "`met` must be one bool, on the CPU");
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous() && x.scalar_type() == ScalarType::Float,
                  "`x` must be contiguous, of float32, on the CPU");
  const fastadv::WatchArgs args{floats(x), static_cast<uint8_t*>(met.mutable_data_ptr()), count,
                                infinite};
  fastadv::run_watch(args, parallel);
}

int64_t fingerprint(Tensor x) {
  STD_TORCH_CHECK(x.is_cpu() && x.is_contiguous(), "`x` must be contiguous, on the CPU");
  const int64_t bytes = x.numel() * x.element_size();
  return int64_t(fastadv::run_fingerprint(x.const_data_ptr(), bytes, parallel));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("relu_", TORCH_BOX(&relu));
  m.impl("affine_relu_", TORCH_BOX(&affine_relu));
  m.impl("watch_", TORCH_BOX(&watch));
  m.impl("fingerprint", TORCH_BOX(&fingerprint));
}
