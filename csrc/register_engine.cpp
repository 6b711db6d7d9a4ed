// The engine's elementwise ops on the CPU: which function serves which, and the checks that keep a
// kernel inside its memory. Their schemas and what defines them stand in fastadv/engine/ops.py.
#include <torch/csrc/stable/library.h>

#include "engine_checks.h"

namespace {

fastadv::PointwiseArgs pointwise_of(const Tensor& y, const Tensor& x, const Written& sizes,
                                    const std::optional<Tensor>& other,
                                    const std::optional<Tensor>& scale) {
  like_written(x, "x", sizes), like_written(y, "y", sizes);
  fastadv::PointwiseArgs args{};
  args.x = floats(x), args.y = static_cast<float*>(y.mutable_data_ptr());
  args.other = like_written(other, "other", sizes);
  args.scale = check_or_null<const float>(scale, "scale", ScalarType::Float, {sizes.channels});
  args.pixels = sizes.n * sizes.height * sizes.width, args.channels = sizes.channels;
  return args;
}

Written sizes_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "`x` must be (N, H, W, C)");
  return {x.size(0), x.size(1), x.size(2), x.size(3)};
}

void activate(Tensor y, std::optional<Tensor> kept, Tensor x, std::optional<Tensor> other,
              std::optional<Tensor> scale, std::optional<Tensor> shift, int64_t activation,
              std::vector<double> numbers) {
  const Written sizes = sizes_of(x);
  fastadv::PointwiseArgs args = pointwise_of(y, x, sizes, other, scale);
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "`scale` must come with `shift`");
  args.shift = check_or_null<const float>(shift, "shift", ScalarType::Float, {args.channels});
  set_activation(args.after, sizes, std::nullopt, activation, numbers, kept);
  fastadv::run_pointwise(args, parallel);
}

void activate_gradient(Tensor y, Tensor x, Tensor slopes, double leak, std::optional<Tensor> other,
                       std::optional<Tensor> scale, std::optional<Tensor> residual) {
  const Written sizes = sizes_of(x);
  fastadv::PointwiseArgs args = pointwise_of(y, x, sizes, other, scale);
  set_slopes(args.after, sizes, residual, slopes, leak);
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
