// The engine's elementwise ops on the CPU: which function serves which, and the checks that keep a
// kernel inside its memory. Their schemas and what defines them stand in fastadv/engine/ops.py.
#include <torch/csrc/stable/library.h>

#include "engine_checks.h"

namespace {

fastadv::PointwiseArgs pointwise_of(const Tensor& y, const Tensor& x,
                                    const std::optional<Tensor>& other,
                                    const std::optional<Tensor>& scale) {
  STD_TORCH_CHECK(x.dim() == 4, "`x` must be (N, H, W, C)");
  const int64_t n = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
  check(x, "x", ScalarType::Float, {n, height, width, channels});
  check(y, "y", ScalarType::Float, {n, height, width, channels});
  fastadv::PointwiseArgs args{};
  args.x = floats(x), args.y = static_cast<float*>(y.mutable_data_ptr());
  args.other =
      check_or_null<const float>(other, "other", ScalarType::Float, {n, height, width, channels});
  args.scale = check_or_null<const float>(scale, "scale", ScalarType::Float, {channels});
  args.pixels = n * height * width, args.channels = channels;
  return args;
}

void activate(Tensor y, std::optional<Tensor> kept, Tensor x, std::optional<Tensor> other,
              std::optional<Tensor> scale, std::optional<Tensor> shift, int64_t activation,
              std::vector<double> numbers) {
  fastadv::PointwiseArgs args = pointwise_of(y, x, other, scale);
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "`scale` must come with `shift`");
  args.shift = check_or_null<const float>(shift, "shift", ScalarType::Float, {args.channels});
  set_activation(args.after, activation, numbers, kept, x.size(0), x.size(1), x.size(2),
                 args.channels);
  fastadv::run_pointwise(args, parallel);
}

void activate_gradient(Tensor y, Tensor x, Tensor slopes, double leak, std::optional<Tensor> other,
                       std::optional<Tensor> scale, std::optional<Tensor> residual) {
  fastadv::PointwiseArgs args = pointwise_of(y, x, other, scale);
  const int64_t n = x.size(0), height = x.size(1), width = x.size(2);
  args.after.residual = check_or_null<const float>(residual, "residual", ScalarType::Float,
                                                   {n, height, width, args.channels});
  set_slopes(args.after, slopes, leak, n, height, width, args.channels);
  fastadv::run_pointwise(args, parallel);
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
  m.impl("activate_", TORCH_BOX(&activate));
  m.impl("activate_gradient_", TORCH_BOX(&activate_gradient));
  m.impl("watch_", TORCH_BOX(&watch));
  m.impl("fingerprint", TORCH_BOX(&fingerprint));
}
