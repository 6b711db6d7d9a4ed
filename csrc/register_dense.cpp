// A whole attack on a stack of linear layers, on the CPU: the checks that keep the kernel inside
// its memory. Its schema and what defines it stand in fastadv/engine/ops.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/run.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void parallel(int64_t begin, int64_t end, int64_t grain, fastadv::Body body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

// Raises unless t is on the CPU, contiguous, of this dtype and as many elements.
void check(const Tensor& t, const char* name, ScalarType dtype, int64_t elements) {
  STD_TORCH_CHECK(
      t.is_cpu() && t.is_contiguous() && t.scalar_type() == dtype && t.numel() == elements, "`",
      name, "` must be contiguous on the CPU, of ", elements,
      " elements and the dtype that goes with the others, got ", t.numel());
}
const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

fastadv::PerSample per_sample(const Tensor& t, const char* name, int64_t samples) {
  const bool one = t.dim() == 0 || t.numel() == 1;
  check(t, name, ScalarType::Float, one ? 1 : samples);
  return {t.const_data_ptr(), one ? 0 : 1};
}

fastadv::Box box_of(const std::optional<Tensor>& bounds, const Tensor& x) {
  if (!bounds) return {};
  const int64_t channels = bounds->dim() == 2 ? bounds->size(1) : 1;
  STD_TORCH_CHECK(channels == 1 || (x.dim() > 1 && x.size(1) == channels),
                  "`bounds` must be (2,) or (2, C) with the C of x, got C = ", channels);
  check(*bounds, "bounds", ScalarType::Float, 2 * channels);
  int64_t inner = 1;
  for (int64_t i = 2; i < x.dim(); ++i) inner *= x.size(i);
  return {floats(*bounds), floats(*bounds) + channels, channels, inner};
}

// The layers, whose sizes follow each other from x to the logits.
std::vector<fastadv::DenseLayer> layers_of(const std::vector<Tensor>& weights,
                                           const std::vector<Tensor>& gradients,
                                           const std::vector<Tensor>& biases,
                                           const std::vector<int64_t>& sizes,
                                           const std::vector<int64_t>& activations,
                                           const std::vector<double>& leaks) {
  const size_t count = weights.size();
  STD_TORCH_CHECK(
      count > 0 && gradients.size() == count && biases.size() == count &&
          sizes.size() == count + 1 && activations.size() == count && leaks.size() == count,
      "every layer has weights, their gradient's, a bias, sizes, an activation, a leak");
  std::vector<fastadv::DenseLayer> layers;
  const ScalarType dtype = weights[0].scalar_type();
  const auto packed = [&](int64_t columns, int64_t depth) {
    const int64_t panels = (columns + fastadv::kPanel - 1) / fastadv::kPanel;
    return panels * fastadv::kPanel * (dtype == ScalarType::BFloat16 ? (depth + 1) / 2 * 2 : depth);
  };
  for (size_t l = 0; l < count; ++l) {
    const int64_t inputs = sizes[l], outputs = sizes[l + 1];
    STD_TORCH_CHECK(inputs > 0 && outputs > 0, "`sizes` must be positive");
    STD_TORCH_CHECK(activations[l] >= 0 && activations[l] < fastadv::kDenseActivations,
                    "`activations` must be numbers of activations, got ", activations[l]);
    check(weights[l], "weights", dtype, packed(outputs, inputs));
    check(gradients[l], "gradients", dtype, packed(inputs, outputs));
    check(biases[l], "biases", ScalarType::Float,
          (outputs + fastadv::kPanel - 1) / fastadv::kPanel * fastadv::kPanel);
    layers.push_back({weights[l].const_data_ptr(), gradients[l].const_data_ptr(), floats(biases[l]),
                      inputs, outputs, fastadv::Activation(activations[l]), float(leaks[l])});
  }
  return layers;
}

fastadv::HeadArgs head_of(const Tensor& y, const std::optional<Tensor>& target, int64_t head,
                          bool targeted, int64_t samples, int64_t classes) {
  STD_TORCH_CHECK(head >= 0 && head < fastadv::kHeads, "`head` must be a head's number, got ",
                  head);
  const bool dense = head == fastadv::kBinaryCrossEntropy || head == fastadv::kKl;
  check(y, "y", dense ? ScalarType::Float : ScalarType::Long, dense ? samples * classes : samples);
  const int64_t least = head == fastadv::kDlr ? 3 + targeted : head == fastadv::kMargin ? 2 : 1;
  STD_TORCH_CHECK(classes >= least, "the head needs ", least, " classes, got ", classes);
  const bool compares = head == fastadv::kDlr && targeted;
  STD_TORCH_CHECK(!compares || target, "`target` must be given for the targeted dlr");
  if (compares) check(*target, "target", ScalarType::Long, samples);
  return {.logits = nullptr,
          .y = y.const_data_ptr(),
          .target = compares ? target->const_data_ptr() : nullptr,
          .loss = nullptr,
          .grad = nullptr,
          .prediction = nullptr,
          .samples = samples,
          .classes = classes,
          .targeted = targeted};
}

bool is_bfloat16(const std::vector<Tensor>& weights) {
  const bool bfloat16 = weights[0].scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(
      bfloat16 ? fastadv::multiplies_bfloat16() : weights[0].scalar_type() == ScalarType::Float,
      "`weights` must be float32, or bfloat16 where the kernels in use multiply it");
  return bfloat16;
}

void dense_pgd(Tensor x_adv, Tensor seen, Tensor x, Tensor step_size, Tensor radius,
               std::optional<Tensor> bounds, int64_t norm, double top, int64_t steps,
               std::vector<Tensor> weights, std::vector<Tensor> gradients,
               std::vector<Tensor> biases, std::vector<int64_t> sizes,
               std::vector<int64_t> activations, std::vector<double> leaks, Tensor y,
               std::optional<Tensor> target, int64_t head, bool targeted) {
  STD_TORCH_CHECK(x_adv.dim() > 0 && norm >= 0 && norm < fastadv::kNorms && top > 0 && top <= 1,
                  "`x_adv` must have a batch, `norm` be 0, 1 or 2, and `top` in (0, 1]");
  const auto layers = layers_of(weights, gradients, biases, sizes, activations, leaks);
  const int64_t samples = x_adv.size(0), size = layers.front().inputs;
  check(x_adv, "x_adv", ScalarType::Float, samples * size);
  check(x, "x", ScalarType::Float, samples * size);
  check(seen, "seen", ScalarType::Float, samples);
  const fastadv::StepArgs step{x_adv.mutable_data_ptr(),
                               nullptr,
                               x.const_data_ptr(),
                               samples,
                               size,
                               per_sample(step_size, "step_size", samples),
                               per_sample(radius, "radius", samples),
                               box_of(bounds, x),
                               true,
                               top};
  const int64_t classes = layers.back().outputs;
  const auto heads = head_of(y, target, head, targeted, samples, classes);
  const fastadv::Kernels& table = fastadv::kernels();
  const fastadv::DensePgdArgs args{
      {layers.data(), int64_t(layers.size()), is_bfloat16(weights)},
      step,
      table.step[norm][fastadv::kFloat32],
      norm == fastadv::kLinf,
      heads,
      table.head[head][fastadv::kFloat32],
      y.scalar_type() == ScalarType::Long ? 8 : 4 * classes,
      steps,
      static_cast<float*>(seen.mutable_data_ptr()),
  };
  fastadv::run_dense_pgd(args, parallel);
}

void dense_pass(Tensor to, Tensor slopes, Tensor from, std::vector<Tensor> weights,
                std::vector<Tensor> gradients, std::vector<Tensor> biases,
                std::vector<int64_t> sizes, std::vector<int64_t> activations,
                std::vector<double> leaks, bool gradient) {
  const auto layers = layers_of(weights, gradients, biases, sizes, activations, leaks);
  const int64_t inputs = layers.front().inputs, outputs = layers.back().outputs;
  const int64_t samples = from.dim() > 0 ? from.size(0) : 0;
  int64_t widths = 0;
  for (const Tensor& bias : biases) widths += bias.numel();
  check(from, "from", ScalarType::Float, samples * (gradient ? outputs : inputs));
  check(to, "to", ScalarType::Float, samples * (gradient ? inputs : outputs));
  check(slopes, "slopes", ScalarType::Float, samples * widths);
  const fastadv::DensePassArgs args{
      {layers.data(), int64_t(layers.size()), is_bfloat16(weights)},
      floats(from),
      static_cast<float*>(to.mutable_data_ptr()),
      static_cast<float*>(slopes.mutable_data_ptr()),
      samples,
      gradient,
  };
  fastadv::run_dense_pass(args, parallel);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("dense_pgd_", TORCH_BOX(&dense_pgd));
  m.impl("dense_pass_", TORCH_BOX(&dense_pass));
}
