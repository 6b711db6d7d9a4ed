// The engine's poolings on the CPU: which function serves which op, and the checks that keep a
// kernel inside its memory.
#include <torch/csrc/stable/library.h>

#include "engine_checks.h"

namespace {

// y and `taken` of x, or of y, the gradient of the output, that of x.
fastadv::PoolArgs pool_of(const Tensor& image, const Tensor& pooled, const Tensor& taken,
                          const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                          const std::vector<int64_t>& padding) {
  STD_TORCH_CHECK(image.dim() == 4 && pooled.dim() == 4, "`x` and `y` must be (N, H, W, C)");
  STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2,
                  "`kernel`, `stride` and `padding` must be two numbers each");
  const int64_t n = image.size(0), channels = image.size(3);
  STD_TORCH_CHECK(channels > 0, "`x` and `y` must have channels");
  fastadv::PoolArgs args{};
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t in = image.size(1 + axis), out = pooled.size(1 + axis);
    STD_TORCH_CHECK(kernel[axis] > 0 && kernel[axis] <= fastadv::kPoolTaps && padding[axis] >= 0 &&
                        padding[axis] < kernel[axis] && stride[axis] > 0 &&
                        stride[axis] < int64_t(1) << 31,
                    "`kernel` must have 1 to 256 taps, `stride` be positive, and `padding` less "
                    "than the kernel");
    STD_TORCH_CHECK(
        out > 0 && out < int64_t(1) << 31 && (out - 1) * stride[axis] - padding[axis] < in,
        "`x` and `y` must have sizes with a pixel under each window");
    args.kernel[axis] = kernel[axis], args.stride[axis] = stride[axis];
    args.padding[axis] = padding[axis];
  }
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= fastadv::kPoolTaps, "`kernel` must have 1 to 256 taps");
  check(image, "x", ScalarType::Float, {n, image.size(1), image.size(2), channels});
  check(pooled, "y", ScalarType::Float, {n, pooled.size(1), pooled.size(2), channels});
  check(taken, "taken", ScalarType::Byte,
        {n, pooled.size(1), pooled.size(2), panels(channels) * fastadv::kPanel});
  args.samples = n, args.outputs = channels;
  args.taken = static_cast<uint8_t*>(taken.mutable_data_ptr());
  return args;
}

void max_pool(Tensor y, Tensor taken, Tensor x, std::vector<int64_t> kernel,
              std::vector<int64_t> stride, std::vector<int64_t> padding) {
  fastadv::PoolArgs args = pool_of(x, y, taken, kernel, stride, padding);
  args.x = floats(x), args.y = static_cast<float*>(y.mutable_data_ptr());
  args.height = x.size(1), args.width = x.size(2), args.rows = y.size(1), args.columns = y.size(2);
  fastadv::run_max_pool(args, false, parallel);
}

void max_pool_gradient(Tensor y, Tensor x, Tensor taken, std::optional<Tensor> residual,
                       std::optional<Tensor> slopes, double leak, std::vector<int64_t> kernel,
                       std::vector<int64_t> stride, std::vector<int64_t> padding) {
  fastadv::PoolArgs args = pool_of(y, x, taken, kernel, stride, padding);
  args.x = floats(x), args.y = static_cast<float*>(y.mutable_data_ptr());
  args.height = x.size(1), args.width = x.size(2), args.rows = y.size(1), args.columns = y.size(2);
  set_slopes(args.after, written_by(args), residual, slopes, leak);
  fastadv::run_max_pool(args, true, parallel);
}

void mean(Tensor y, Tensor x, bool gradient) {
  const Tensor &image = gradient ? y : x, &row = gradient ? x : y;
  STD_TORCH_CHECK(image.dim() == 3, "the pixels must be (N, pixels, C)");
  const int64_t n = image.size(0), pixels = image.size(1), channels = image.size(2);
  check(image, gradient ? "y" : "x", ScalarType::Float, {n, pixels, channels});
  check(row, gradient ? "x" : "y", ScalarType::Float, {n, channels});
  fastadv::run_mean(
      {floats(x), static_cast<float*>(y.mutable_data_ptr()), n, pixels, channels, gradient},
      parallel);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("max_pool_", TORCH_BOX(&max_pool));
  m.impl("max_pool_gradient_", TORCH_BOX(&max_pool_gradient));
  m.impl("mean_", TORCH_BOX(&mean));
}
