// The engine's convolutions and poolings on the CPU: which function serves which op, and the checks
// that keep a kernel inside its memory.
#include <torch/csrc/stable/library.h>

#include "engine_checks.h"

namespace {

// Transformed weights, float32 or, where the kernels in use multiply it, bfloat16: whether they
// are.
bool check_transformed(const Tensor& weights, int64_t outputs, int64_t channels) {
  if (weights.scalar_type() != ScalarType::BFloat16) {
    check(weights, "weights", ScalarType::Float, {36, panels(outputs), channels, fastadv::kPanel});
    return false;
  }
  STD_TORCH_CHECK(fastadv::multiplies_bfloat16(),
                  "`weights` must be float32: the kernels in use have no bfloat16 products");
  check(weights, "weights", ScalarType::BFloat16,
        {36, panels(outputs), (channels + 1) / 2, fastadv::kPanel, 2});
  return true;
}

// Raises unless these are the sizes of a convolution's x and y, or of its gradients.
fastadv::WinogradArgs winograd_of(const Tensor& x, const Tensor& y, int64_t padding, int64_t form,
                                  const char* y_name = "y") {
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4, "`x` and `", y_name, "` must be (N, H, W, C)");
  STD_TORCH_CHECK(form >= fastadv::kPlain && form <= fastadv::kStridedGradient,
                  "`form` must be 0, 1 or 2, got ", form);
  const bool strided = form != fastadv::kPlain;
  STD_TORCH_CHECK(padding >= 0 && padding <= 2 && (!strided || padding == 1),
                  "`padding` must be 0, 1 or 2, and with a stride 1, got ", padding);
  fastadv::WinogradArgs args{};
  args.samples = x.size(0), args.height = x.size(1), args.width = x.size(2);
  args.channels = x.size(3), args.rows = y.size(1), args.columns = y.size(2);
  args.outputs = y.size(3), args.padding = padding, args.form = fastadv::WinogradForm(form);
  STD_TORCH_CHECK(args.channels > 0 && args.outputs > 0, "`x` and `", y_name,
                  "` must have channels");
  const auto pixels = [&](int64_t in, int64_t out) {
    if (form == fastadv::kPlain) return in > 0 && out > 0 && out == in + 2 * padding - 2;
    if (form == fastadv::kStrided) return in > 0 && out == (in + 1) / 2;
    return out > 0 && in == (out + 1) / 2;
  };
  STD_TORCH_CHECK(pixels(args.height, args.rows) && pixels(args.width, args.columns), "`", y_name,
                  "` must have the pixels of a 3x3 convolution of `x`, or of its gradient");
  check(x, "x", ScalarType::Float, {args.samples, args.height, args.width, args.channels});
  check(y, y_name, ScalarType::Float, {args.samples, args.rows, args.columns, args.outputs});
  return args;
}

void winograd(Tensor y, std::optional<Tensor> signs, Tensor x, Tensor weights,
              std::optional<Tensor> bias, std::optional<Tensor> residual,
              std::optional<Tensor> mask, int64_t padding, int64_t form, bool relu) {
  fastadv::WinogradArgs args = winograd_of(x, y, padding, form);
  const int64_t n = args.samples, rows = args.rows, columns = args.columns;
  const int64_t bytes = sign_bytes(args.outputs);
  args.bfloat16 = check_transformed(weights, args.outputs, args.channels);
  args.relu = relu;
  args.x = floats(x), args.weights = floats(weights);
  args.y = static_cast<float*>(y.mutable_data_ptr());
  args.bias = check_or_null<const float>(bias, "bias", ScalarType::Float, {args.outputs});
  args.residual = check_or_null<const float>(residual, "residual", ScalarType::Float,
                                             {n, rows, columns, args.outputs});
  args.mask =
      check_or_null<const uint8_t>(mask, "mask", ScalarType::Byte, {n, rows, columns, bytes});
  args.signs = check_or_null<uint8_t>(signs, "signs", ScalarType::Byte, {n, rows, columns, bytes});
  fastadv::run_winograd(args, parallel);
}

void winograd_weights(Tensor weights, Tensor weight, std::optional<Tensor> scale, bool gradient,
                      bool strided) {
  STD_TORCH_CHECK(weight.dim() == 4, "`weight` must be (K, C, 3, 3)");
  const int64_t out = weight.size(0), in = weight.size(1);
  check(weight, "weight", ScalarType::Float, {out, in, 3, 3});
  const bool bfloat16 = check_transformed(weights, gradient ? in : out, gradient ? out : in);
  const fastadv::WinogradWeightsArgs args{
      floats(weight),
      check_or_null<const float>(scale, "scale", ScalarType::Float, {out}),
      static_cast<float*>(weights.mutable_data_ptr()),
      out,
      in,
      gradient,
      strided,
      bfloat16,
  };
  fastadv::run_winograd_weights(args, parallel);
}

void winograd_weight_gradient(Tensor weight, Tensor scratch, Tensor x, Tensor grad,
                              int64_t padding) {
  const fastadv::WinogradArgs sizes = winograd_of(x, grad, padding, fastadv::kPlain, "grad");
  fastadv::WinogradWeightGradientArgs args{};
  args.samples = sizes.samples, args.height = sizes.height, args.width = sizes.width;
  args.channels = sizes.channels, args.rows = sizes.rows, args.columns = sizes.columns;
  args.outputs = sizes.outputs, args.padding = padding;
  STD_TORCH_CHECK(args.samples > 0, "`x` must have samples");
  check(weight, "weight", ScalarType::Float, {args.outputs, args.channels, 3, 3});
  const int64_t floats_of = fastadv::learn_scratch(args);
  STD_TORCH_CHECK(scratch.dim() == 1 && scratch.size(0) >= floats_of, "`scratch` must have ",
                  floats_of, " numbers or more");
  check(scratch, "scratch", ScalarType::Float, {scratch.size(0)});
  args.x = floats(x), args.grad = floats(grad);
  args.weight = static_cast<float*>(weight.mutable_data_ptr());
  fastadv::run_winograd_weight_gradient(args, static_cast<float*>(scratch.mutable_data_ptr()),
                                        parallel);
}

// Raises unless these are the sizes of a convolution: x (N, H, W, C) and y, or, for a gradient, the
// other way round.
fastadv::DirectArgs convolution_of(const Tensor& y, const Tensor& x, const Tensor& weights,
                                   const std::vector<int64_t>& kernel,
                                   const std::vector<int64_t>& stride,
                                   const std::vector<int64_t>& padding,
                                   const std::vector<int64_t>& dilation, bool gradient) {
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4, "`x` and `y` must be (N, H, W, C)");
  STD_TORCH_CHECK(
      kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
      "`kernel`, `stride`, `padding` and `dilation` must be two numbers each");
  fastadv::DirectArgs args{};
  args.samples = x.size(0);
  args.height = x.size(1), args.width = x.size(2), args.channels = x.size(3);
  args.rows = y.size(1), args.columns = y.size(2), args.outputs = y.size(3);
  for (int axis = 0; axis < 2; ++axis) {
    constexpr int64_t kMost = int64_t(1) << 31;
    args.kernel[axis] = kernel[axis], args.stride[axis] = stride[axis];
    args.padding[axis] = padding[axis], args.dilation[axis] = dilation[axis];
    STD_TORCH_CHECK(
        kernel[axis] > 0 && stride[axis] > 0 && padding[axis] >= 0 && dilation[axis] > 0,
        "`kernel`, `stride` and `dilation` must be positive, and `padding` not negative");
    STD_TORCH_CHECK(kernel[axis] <= fastadv::kDirectTaps && stride[axis] < kMost &&
                        padding[axis] < kMost && dilation[axis] < kMost,
                    "`kernel` must have at most 64 taps, and `stride`, `padding` and `dilation` "
                    "must be below 2^31");
    const int64_t in = gradient ? y.size(1 + axis) : x.size(1 + axis);
    const int64_t out = gradient ? x.size(1 + axis) : y.size(1 + axis);
    const int64_t seen = in + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1;
    STD_TORCH_CHECK(seen >= 0 && out == seen / stride[axis] + 1,
                    "`x` and `y` must have the sizes of a convolution and its output");
  }
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= fastadv::kDirectTaps,
                  "`kernel` must have at most 64 taps");
  STD_TORCH_CHECK(args.channels > 0 && args.outputs > 0, "`x` and `y` must have channels");
  check(x, "x", ScalarType::Float, {args.samples, args.height, args.width, args.channels});
  check(y, "y", ScalarType::Float, {args.samples, args.rows, args.columns, args.outputs});
  args.bfloat16 = weights.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(!args.bfloat16 || fastadv::multiplies_bfloat16(),
                  "`weights` must be float32: the kernels in use have no bfloat16 products");
  args.x = floats(x), args.weights = floats(weights);
  args.y = static_cast<float*>(y.mutable_data_ptr());
  return args;
}

// Raises unless `weights` are this many rows of panels, of numbers or pairs of bfloat16.
void check_packed(const Tensor& weights, const fastadv::DirectArgs& args, int64_t numbers,
                  int64_t wide) {
  const int64_t steps = args.bfloat16 ? (numbers + 1) / 2 * 2 : numbers;
  check(weights, "weights", args.bfloat16 ? ScalarType::BFloat16 : ScalarType::Float,
        {steps * wide * fastadv::kPanel});
}

void direct(Tensor y, std::optional<Tensor> signs, Tensor x, Tensor weights,
            std::optional<Tensor> bias, std::optional<Tensor> residual, std::vector<int64_t> kernel,
            std::vector<int64_t> stride, std::vector<int64_t> padding,
            std::vector<int64_t> dilation, bool relu) {
  fastadv::DirectArgs args =
      convolution_of(y, x, weights, kernel, stride, padding, dilation, false);
  const int64_t n = args.samples, bytes = sign_bytes(args.outputs);
  check_packed(weights, args, kernel[0] * kernel[1] * args.channels, panels(args.outputs));
  args.relu = relu;
  args.bias = check_or_null<const float>(bias, "bias", ScalarType::Float, {args.outputs});
  args.residual = check_or_null<const float>(residual, "residual", ScalarType::Float,
                                             {n, args.rows, args.columns, args.outputs});
  args.signs =
      check_or_null<uint8_t>(signs, "signs", ScalarType::Byte, {n, args.rows, args.columns, bytes});
  fastadv::run_direct(args, parallel);
}

void fold(Tensor y, Tensor x, Tensor weights, std::optional<Tensor> residual,
          std::optional<Tensor> mask, std::vector<int64_t> kernel, std::vector<int64_t> stride,
          std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  fastadv::DirectArgs args = convolution_of(y, x, weights, kernel, stride, padding, dilation, true);
  const int64_t n = args.samples, bytes = sign_bytes(args.outputs);
  constexpr int64_t kMost = fastadv::kFoldChannels;
  const int64_t taps = kernel[0] * kernel[1], last = args.outputs % kMost;
  check_packed(weights, args, args.channels,
               args.outputs / kMost * panels(taps * kMost) + panels(taps * last));
  args.residual = check_or_null<const float>(residual, "residual", ScalarType::Float,
                                             {n, args.rows, args.columns, args.outputs});
  args.mask = check_or_null<const uint8_t>(mask, "mask", ScalarType::Byte,
                                           {n, args.rows, args.columns, bytes});
  fastadv::run_fold(args, parallel);
}

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
                       std::optional<Tensor> mask, std::vector<int64_t> kernel,
                       std::vector<int64_t> stride, std::vector<int64_t> padding) {
  fastadv::PoolArgs args = pool_of(y, x, taken, kernel, stride, padding);
  args.x = floats(x), args.y = static_cast<float*>(y.mutable_data_ptr());
  args.height = x.size(1), args.width = x.size(2), args.rows = y.size(1), args.columns = y.size(2);
  args.residual = check_or_null<const float>(residual, "residual", ScalarType::Float,
                                             {args.samples, args.rows, args.columns, args.outputs});
  args.mask = check_or_null<const uint8_t>(
      mask, "mask", ScalarType::Byte,
      {args.samples, args.rows, args.columns, sign_bytes(args.outputs)});
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
  m.impl("winograd_", TORCH_BOX(&winograd));
  m.impl("winograd_weights_", TORCH_BOX(&winograd_weights));
  m.impl("winograd_weight_gradient_", TORCH_BOX(&winograd_weight_gradient));
  m.impl("direct_", TORCH_BOX(&direct));
  m.impl("fold_", TORCH_BOX(&fold));
  m.impl("max_pool_", TORCH_BOX(&max_pool));
  m.impl("max_pool_gradient_", TORCH_BOX(&max_pool_gradient));
  m.impl("mean_", TORCH_BOX(&mean));
}
