// Which function serves which op on the CPU, and the checks that keep a kernel inside its memory.
// Schemas, fakes and the reference implementations stand in fastadv/ops.py.
//
// Registered through torch's stable ABI: one build serves torch 2.10 and newer.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <tuple>

#include "cpu/run.h"

namespace {

using fastadv::DType;
using fastadv::Norm;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void parallel(int64_t begin, int64_t end, int64_t grain, fastadv::Body body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

std::string shape(const Tensor& t) {
  std::string text = "(";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + ")";
}

DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return fastadv::kFloat32;
    case ScalarType::Double:
      return fastadv::kFloat64;
    case ScalarType::BFloat16:
      return fastadv::kBFloat16;
    case ScalarType::Half:
      return fastadv::kFloat16;
    default:
      STD_TORCH_CHECK(false, "`", name, "` must be float32, float64, bfloat16 or float16");
  }
}
ScalarType compute_dtype(DType dtype) {
  return dtype == fastadv::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

// (N, *shape) whose samples are dense: contiguous, or channels_last in two or three dimensions.
struct Layout {
  int64_t samples, size, channels, inner;
};
bool is_channels_last(const Tensor& t) {
  const int64_t dims = t.dim();
  if (dims != 4 && dims != 5) return false;
  int64_t expected = t.size(1);
  for (int64_t i = dims - 1; i >= 2; --i) {
    if (t.size(i) != 1 && t.stride(i) != expected) return false;
    expected *= t.size(i);
  }
  return (t.size(1) == 1 || t.stride(1) == 1) && (t.size(0) == 1 || t.stride(0) == expected);
}
Layout layout_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() >= 1, "`", name, "` must have a batch dimension, got a scalar");
  const int64_t samples = t.size(0), channels = t.dim() > 1 ? t.size(1) : 1;
  int64_t size = 1, inner = 1;
  for (int64_t i = 1; i < t.dim(); ++i) size *= t.size(i);
  for (int64_t i = 2; i < t.dim(); ++i) inner *= t.size(i);
  if (t.is_contiguous()) return {samples, size, channels, inner};
  STD_TORCH_CHECK(is_channels_last(t), "`", name, "` must be contiguous or channels_last");
  return {samples, size, channels, 1};
}
void check_like(const Tensor& t, const char* name, const Tensor& like, const char* like_name) {
  bool same = t.dim() == like.dim() && t.is_cpu();
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == like.size(i);
  STD_TORCH_CHECK(same, "`", name, "` must be ", shape(like), " on the CPU like `", like_name,
                  "`, got ", shape(t));
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), "`", name, "` must have the dtype of `",
                  like_name, "`");
  for (int64_t i = 0; i < t.dim(); ++i) {
    STD_TORCH_CHECK(t.size(i) <= 1 || t.stride(i) == like.stride(i), "`", name,
                    "` must have the memory format of `", like_name, "`");
  }
}
fastadv::PerSample per_sample(const Tensor& t, const char* name, int64_t samples, DType dtype) {
  const bool one = t.dim() == 0 || (t.dim() == 1 && t.size(0) == 1);
  STD_TORCH_CHECK(one || (t.dim() == 1 && t.size(0) == samples), "`", name, "` must be () or (",
                  samples, "), got ", shape(t));
  STD_TORCH_CHECK(t.scalar_type() == compute_dtype(dtype) && t.is_cpu(), "`", name,
                  "` must be float64 on the CPU for float64 data, float32 for all other");
  return {t.const_data_ptr(), one ? 0 : t.stride(0)};
}
fastadv::Box box_of(const std::optional<Tensor>& bounds, const Layout& layout, DType dtype) {
  if (!bounds) return {};
  const Tensor& t = *bounds;
  const int64_t channels = t.dim() == 2 ? t.size(1) : 1;
  STD_TORCH_CHECK((t.dim() == 1 || t.dim() == 2) && t.size(0) == 2 && t.is_contiguous() &&
                      t.is_cpu() && (t.dim() == 1 || channels == layout.channels),
                  "`bounds` must be (2,) or (2, ", layout.channels, "), got ", shape(t));
  STD_TORCH_CHECK(t.scalar_type() == compute_dtype(dtype),
                  "`bounds` must be float64 for float64 data, float32 for all other");
  const int64_t item = dtype == fastadv::kFloat64 ? 8 : 4;
  const char* const lower = static_cast<const char*>(t.const_data_ptr());
  return {lower, lower + channels * item, channels, layout.inner};
}

template <Norm norm>
void step_any(const Tensor& x_adv, const Tensor& grad, const Tensor& x, const Tensor& step_size,
              const Tensor& radius, const std::optional<Tensor>& bounds, bool steepest,
              double top) {
  const DType dtype = dtype_of(x_adv, "x_adv");
  const Layout layout = layout_of(x_adv, "x_adv");
  STD_TORCH_CHECK(norm != fastadv::kL1 || (top > 0 && top <= 1), "`top` must be in (0, 1]");
  check_like(grad, "grad", x_adv, "x_adv");
  check_like(x, "x", x_adv, "x_adv");
  const fastadv::StepArgs args{
      x_adv.mutable_data_ptr(),
      grad.const_data_ptr(),
      x.const_data_ptr(),
      layout.samples,
      layout.size,
      per_sample(step_size, "step_size", layout.samples, dtype),
      per_sample(radius, "radius", layout.samples, dtype),
      box_of(bounds, layout, dtype),
      steepest,
      top,
  };
  fastadv::run_step(norm, dtype, args, parallel);
}
template <Norm norm>
void step(Tensor x_adv, Tensor grad, Tensor x, Tensor step_size, Tensor radius,
          std::optional<Tensor> bounds, bool steepest) {
  step_any<norm>(x_adv, grad, x, step_size, radius, bounds, steepest, 0);
}
void step_l1(Tensor x_adv, Tensor grad, Tensor x, Tensor step_size, Tensor radius,
             std::optional<Tensor> bounds, bool steepest, double top) {
  step_any<fastadv::kL1>(x_adv, grad, x, step_size, radius, bounds, steepest, top);
}

template <Norm norm>
void universal_any(const Tensor& delta, const std::optional<Tensor>& velocity, const Tensor& grads,
                   const std::optional<Tensor>& weights, const Tensor& step_size,
                   const Tensor& radius, double momentum, bool signs, bool steepest, double top) {
  const DType dtype = dtype_of(grads, "grads");
  const Layout layout = layout_of(grads, "grads");
  STD_TORCH_CHECK(norm != fastadv::kL1 || (top > 0 && top <= 1), "`top` must be in (0, 1]");
  STD_TORCH_CHECK(grads.is_contiguous(), "`grads` must be contiguous");
  STD_TORCH_CHECK(delta.is_contiguous() && delta.numel() == layout.size && delta.is_cpu() &&
                      delta.scalar_type() == grads.scalar_type(),
                  "`delta` must be one contiguous sample of `grads` ", shape(grads),
                  " in its dtype, got ", shape(delta));
  if (velocity) {
    STD_TORCH_CHECK(velocity->is_contiguous() && velocity->numel() == layout.size &&
                        velocity->is_cpu() && velocity->scalar_type() == compute_dtype(dtype),
                    "`velocity` must be contiguous, like `delta` ", shape(delta),
                    ", in float64 for float64 data and else float32, got ", shape(*velocity));
  }
  if (weights) {
    STD_TORCH_CHECK(weights->is_contiguous() && weights->dim() == 1 && weights->is_cpu() &&
                        weights->size(0) == layout.samples &&
                        weights->scalar_type() == compute_dtype(dtype),
                    "`weights` must be (", layout.samples,
                    "), in float64 for float64 data and else float32, got ", shape(*weights));
  }
  const fastadv::UniversalArgs args{
      delta.mutable_data_ptr(),
      velocity ? velocity->mutable_data_ptr() : nullptr,
      grads.const_data_ptr(),
      weights ? weights->const_data_ptr() : nullptr,
      layout.samples,
      layout.size,
      per_sample(step_size, "step_size", 1, dtype),
      per_sample(radius, "radius", 1, dtype),
      momentum,
      signs,
      steepest,
      top,
  };
  fastadv::run_universal(norm, dtype, args, parallel);
}
template <Norm norm>
void universal(Tensor delta, std::optional<Tensor> velocity, Tensor grads,
               std::optional<Tensor> weights, Tensor step_size, Tensor radius, double momentum,
               bool signs, bool steepest) {
  universal_any<norm>(delta, velocity, grads, weights, step_size, radius, momentum, signs, steepest,
                      0);
}
void universal_l1(Tensor delta, std::optional<Tensor> velocity, Tensor grads,
                  std::optional<Tensor> weights, Tensor step_size, Tensor radius, double momentum,
                  bool signs, bool steepest, double top) {
  universal_any<fastadv::kL1>(delta, velocity, grads, weights, step_size, radius, momentum, signs,
                              steepest, top);
}

void check_labels(const Tensor& y, const char* name, int64_t samples) {
  STD_TORCH_CHECK(y.dim() == 1 && y.size(0) == samples && y.is_contiguous() && y.is_cpu() &&
                      y.scalar_type() == ScalarType::Long,
                  "`", name, "` must be (", samples, ") of int64 and contiguous, got ", shape(y));
}

std::tuple<Tensor, Tensor, Tensor> head(Tensor logits, Tensor y, std::optional<Tensor> target,
                                        int64_t head, bool targeted) {
  const DType dtype = dtype_of(logits, "logits");
  STD_TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(),
                  "`logits` must be (N, classes) and contiguous, got ", shape(logits));
  STD_TORCH_CHECK(head >= 0 && head < fastadv::kHeads, "`head` must be 0 to 4, got ", head);
  const int64_t samples = logits.size(0), classes = logits.size(1);
  STD_TORCH_CHECK(classes > 0, "`logits` must have a class, got ", shape(logits));
  const bool dense = head == fastadv::kBinaryCrossEntropy || head == fastadv::kKl;
  if (dense) {
    STD_TORCH_CHECK(y.dim() == 2 && y.size(0) == samples && y.size(1) == classes &&
                        y.is_contiguous() && y.is_cpu() && y.scalar_type() == compute_dtype(dtype),
                    "`y` must be ", shape(logits),
                    " like `logits`, in float64 for float64 data and else float32, got ", shape(y));
  } else {
    check_labels(y, "y", samples);
  }
  if (head == fastadv::kDlr && targeted) {
    STD_TORCH_CHECK(target.has_value(), "`target` must be given for the targeted dlr");
    check_labels(*target, "target", samples);
  }
  const bool labels = head == fastadv::kBinaryCrossEntropy;
  const int64_t loss_size[] = {samples}, label_size[] = {samples, classes};
  Tensor loss = torch::stable::new_empty(logits, {loss_size, 1}, compute_dtype(dtype));
  Tensor grad = torch::stable::empty_like(logits);
  Tensor prediction = labels ? torch::stable::new_empty(logits, {label_size, 2}, ScalarType::Bool)
                             : torch::stable::new_empty(logits, {loss_size, 1}, ScalarType::Long);
  const fastadv::HeadArgs args{
      logits.const_data_ptr(),
      y.const_data_ptr(),
      target ? target->const_data_ptr() : nullptr,
      loss.mutable_data_ptr(),
      grad.mutable_data_ptr(),
      prediction.mutable_data_ptr(),
      samples,
      classes,
      targeted,
  };
  fastadv::run_head(static_cast<fastadv::Head>(head), dtype, args, parallel);
  return {loss, grad, prediction};
}

Tensor digest(Tensor x) {
  const DType dtype = dtype_of(x, "x");
  const Layout layout = layout_of(x, "x");
  const int64_t size[] = {layout.samples};
  Tensor out = torch::stable::new_empty(x, {size, 1}, ScalarType::Long);
  const fastadv::DigestArgs args{x.const_data_ptr(), static_cast<int64_t*>(out.mutable_data_ptr()),
                                 layout.samples, layout.size};
  fastadv::run_digest(dtype, args, parallel);
  return out;
}

Tensor uniform(Tensor x, int64_t seed, int64_t offset, int64_t stream) {
  const DType dtype = dtype_of(x, "x");
  STD_TORCH_CHECK(x.dim() >= 1, "`x` must have a batch dimension, got a scalar");
  Tensor out = torch::stable::new_empty(x, x.sizes(), compute_dtype(dtype));
  const int64_t samples = x.size(0);
  const fastadv::UniformArgs args{
      out.mutable_data_ptr(), samples, samples ? x.numel() / samples : 0,
      uint64_t(seed),         offset,  uint32_t(stream)};
  fastadv::run_uniform(dtype == fastadv::kFloat64, args, parallel);
  return out;
}

}  // namespace

// For _native, which knows no torch: the NumPy entry points then run on torch's threads.
extern "C" __attribute__((visibility("default"))) void fastadv_parallel_for(
    int64_t begin, int64_t end, int64_t grain, fastadv::Body body, void* context) {
  parallel(begin, end, grain, body, context);
}

STABLE_TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("step_linf_", TORCH_BOX(&step<fastadv::kLinf>));
  m.impl("step_l2_", TORCH_BOX(&step<fastadv::kL2>));
  m.impl("step_l1_", TORCH_BOX(&step_l1));
  m.impl("universal_linf_", TORCH_BOX(&universal<fastadv::kLinf>));
  m.impl("universal_l2_", TORCH_BOX(&universal<fastadv::kL2>));
  m.impl("universal_l1_", TORCH_BOX(&universal_l1));
  m.impl("head", TORCH_BOX(&head));
  m.impl("digest", TORCH_BOX(&digest));
  m.impl("uniform", TORCH_BOX(&uniform));
}
