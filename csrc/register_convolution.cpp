// The engine's convolutions on the CPU: which function serves which op, and the checks
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

fastadv::WinogradArgs winograd_call(const Tensor& y, const Tensor& x, const Tensor& weights,
                                    int64_t padding, int64_t form) {
  fastadv::WinogradArgs args = winograd_of(x, y, padding, form);
  args.bfloat16 = check_transformed(weights, args.outputs, args.channels);
  args.x = floats(x), args.weights = floats(weights);
  args.y = static_cast<float*>(y.mutable_data_ptr());
  return args;
}

void winograd(Tensor y, std::optional<Tensor> kept, Tensor x, Tensor weights,
              std::optional<Tensor> bias, std::optional<Tensor> residual, int64_t padding,
              int64_t form, int64_t activation, std::vector<double> numbers) {
  fastadv::WinogradArgs args = winograd_call(y, x, weights, padding, form);
  args.bias = check_or_null<const float>(bias, "bias", ScalarType::Float, {args.outputs});
  set_activation(args.after, written_by(args), residual, activation, numbers, kept);
  fastadv::run_winograd(args, parallel);
}

void winograd_gradient(Tensor y, Tensor x, Tensor weights, std::optional<Tensor> residual,
                       std::optional<Tensor> slopes, double leak, int64_t padding, int64_t form) {
  fastadv::WinogradArgs args = winograd_call(y, x, weights, padding, form);
  set_slopes(args.after, written_by(args), residual, slopes, leak);
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

// Raises unless the taps are few enough, and `weights` this many rows of panels, of numbers or
// pairs of bfloat16.
void check_packed(const Tensor& weights, const fastadv::DirectArgs& args, int64_t numbers,
                  int64_t wide) {
  STD_TORCH_CHECK(args.kernel[0] * args.kernel[1] <= fastadv::kDirectTaps,
                  "`kernel` must have at most 64 taps");
  const int64_t steps = args.bfloat16 ? (numbers + 1) / 2 * 2 : numbers;
  check(weights, "weights", args.bfloat16 ? ScalarType::BFloat16 : ScalarType::Float,
        {steps * wide * fastadv::kPanel});
}

void direct(Tensor y, std::optional<Tensor> kept, Tensor x, Tensor weights,
            std::optional<Tensor> bias, std::optional<Tensor> residual, std::vector<int64_t> kernel,
            std::vector<int64_t> stride, std::vector<int64_t> padding,
            std::vector<int64_t> dilation, int64_t activation, std::vector<double> numbers) {
  fastadv::DirectArgs args =
      convolution_of(y, x, weights, kernel, stride, padding, dilation, false);
  check_packed(weights, args, kernel[0] * kernel[1] * args.channels, panels(args.outputs));
  args.bias = check_or_null<const float>(bias, "bias", ScalarType::Float, {args.outputs});
  set_activation(args.after, written_by(args), residual, activation, numbers, kept);
  fastadv::run_direct(args, parallel);
}

void fold(Tensor y, Tensor x, Tensor weights, std::optional<Tensor> residual,
          std::optional<Tensor> slopes, double leak, std::vector<int64_t> kernel,
          std::vector<int64_t> stride, std::vector<int64_t> padding,
          std::vector<int64_t> dilation) {
  fastadv::DirectArgs args = convolution_of(y, x, weights, kernel, stride, padding, dilation, true);
  constexpr int64_t kMost = fastadv::kFoldChannels;
  const int64_t taps = kernel[0] * kernel[1], last = args.outputs % kMost;
  check_packed(weights, args, args.channels,
               args.outputs / kMost * panels(taps * kMost) + panels(taps * last));
  set_slopes(args.after, written_by(args), residual, slopes, leak);
  fastadv::run_fold(args, parallel);
}

// Raises unless these are a convolution's of each channel by itself.
fastadv::DirectArgs depthwise_of(const Tensor& y, const Tensor& x, const Tensor& weights,
                                 const std::vector<int64_t>& kernel,
                                 const std::vector<int64_t>& stride,
                                 const std::vector<int64_t>& padding,
                                 const std::vector<int64_t>& dilation, bool gradient) {
  fastadv::DirectArgs args =
      convolution_of(y, x, weights, kernel, stride, padding, dilation, gradient);
  for (int axis = 0; axis < 2; ++axis) {
    STD_TORCH_CHECK(
        kernel[axis] <= fastadv::kDepthwiseTaps && stride[axis] <= fastadv::kDepthwiseStride,
        "`kernel` must have at most 32 taps along an axis, and `stride` be at most 4");
  }
  STD_TORCH_CHECK(args.channels == args.outputs, "`x` and `y` must have the same channels");
  check(weights, "weights", ScalarType::Float, {kernel[0] * kernel[1], args.channels});
  return args;
}

void depthwise(Tensor y, std::optional<Tensor> kept, Tensor x, Tensor weights,
               std::optional<Tensor> bias, std::optional<Tensor> residual,
               std::vector<int64_t> kernel, std::vector<int64_t> stride,
               std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t activation,
               std::vector<double> numbers) {
  fastadv::DirectArgs args = depthwise_of(y, x, weights, kernel, stride, padding, dilation, false);
  args.bias = check_or_null<const float>(bias, "bias", ScalarType::Float, {args.outputs});
  set_activation(args.after, written_by(args), residual, activation, numbers, kept);
  fastadv::run_depthwise(args, false, parallel);
}

void depthwise_gradient(Tensor y, Tensor x, Tensor weights, std::optional<Tensor> residual,
                        std::optional<Tensor> slopes, double leak, std::vector<int64_t> kernel,
                        std::vector<int64_t> stride, std::vector<int64_t> padding,
                        std::vector<int64_t> dilation) {
  fastadv::DirectArgs args = depthwise_of(y, x, weights, kernel, stride, padding, dilation, true);
  set_slopes(args.after, written_by(args), residual, slopes, leak);
  fastadv::run_depthwise(args, true, parallel);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("winograd_", TORCH_BOX(&winograd));
  m.impl("winograd_gradient_", TORCH_BOX(&winograd_gradient));
  m.impl("winograd_weights_", TORCH_BOX(&winograd_weights));
  m.impl("winograd_weight_gradient_", TORCH_BOX(&winograd_weight_gradient));
  m.impl("direct_", TORCH_BOX(&direct));
  m.impl("fold_", TORCH_BOX(&fold));
  m.impl("depthwise_", TORCH_BOX(&depthwise));
  m.impl("depthwise_gradient_", TORCH_BOX(&depthwise_gradient));
}
