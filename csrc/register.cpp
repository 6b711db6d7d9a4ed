// Which function serves which op on the CPU; checks.h keeps it inside its memory. Schemas, fakes
// and the reference implementations stand in fastadv/ops.py.
//
// Registered through torch's stable ABI: one build serves torch 2.10 and newer.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cpu/run.h"

namespace {

using fastadv::Norm;

void parallel(int64_t begin, int64_t end, int64_t grain, fastadv::Body body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
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
  const int64_t bytes = bytes_of(dtype, layout.samples * layout.size);
  check_apart(args.x_adv, bytes, "x_adv", args.grad, bytes, "grad");
  check_apart(args.x_adv, bytes, "x_adv", args.x, bytes, "x");
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
  const int64_t one = bytes_of(dtype, layout.size), all = one * layout.samples;
  check_apart(args.delta, one, "delta", args.grads, all, "grads");
  if (velocity) {
    const int64_t wide =
        bytes_of(dtype == fastadv::kFloat64 ? dtype : fastadv::kFloat32, layout.size);
    check_apart(args.velocity, wide, "velocity", args.grads, all, "grads");
    check_apart(args.velocity, wide, "velocity", args.delta, one, "delta");
  }
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
