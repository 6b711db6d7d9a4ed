// The ops that every device serves by kernels of its own: tensors checked (checks.h), made plain
// arguments, and handed to `Device`, with a tensor that says where. Schemas, fakes and the
// reference implementations stand in fastadv/ops.py.
//
// Registered through torch's stable ABI: one build serves torch 2.10 and newer.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "checks.h"

namespace {

using fastadv::Norm;

void check_labels(const Tensor& y, const char* name, const Tensor& logits) {
  const int64_t samples = logits.size(0);
  STD_TORCH_CHECK(y.dim() == 1 && y.size(0) == samples && y.is_contiguous() &&
                      same_device(y, logits) && y.scalar_type() == ScalarType::Long,
                  "`", name, "` must be (", samples, ") of int64 and contiguous, got ", shape(y));
}

template <class Device>
struct Ops {
  template <Norm norm>
  static void step_any(const Tensor& x_adv, const Tensor& grad, const Tensor& x,
                       const Tensor& step_size, const Tensor& radius,
                       const std::optional<Tensor>& bounds, bool steepest, double top) {
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
        per_sample(step_size, "step_size", layout.samples, dtype, x_adv),
        per_sample(radius, "radius", layout.samples, dtype, x_adv),
        box_of(bounds, layout, dtype, x_adv),
        steepest,
        top,
    };
    const int64_t bytes = bytes_of(dtype, layout.samples * layout.size);
    check_apart(args.x_adv, bytes, "x_adv", args.grad, bytes, "grad");
    check_apart(args.x_adv, bytes, "x_adv", args.x, bytes, "x");
    Device::step(norm, dtype, args, x_adv);
  }
  template <Norm norm>
  static void step(Tensor x_adv, Tensor grad, Tensor x, Tensor step_size, Tensor radius,
                   std::optional<Tensor> bounds, bool steepest) {
    step_any<norm>(x_adv, grad, x, step_size, radius, bounds, steepest, 0);
  }
  static void step_l1(Tensor x_adv, Tensor grad, Tensor x, Tensor step_size, Tensor radius,
                      std::optional<Tensor> bounds, bool steepest, double top) {
    step_any<fastadv::kL1>(x_adv, grad, x, step_size, radius, bounds, steepest, top);
  }

  template <Norm norm>
  static void universal_any(const Tensor& delta, const std::optional<Tensor>& velocity,
                            const Tensor& grads, const std::optional<Tensor>& weights,
                            const Tensor& step_size, const Tensor& radius, double momentum,
                            bool signs, bool steepest, double top) {
    const DType dtype = dtype_of(grads, "grads");
    const Layout layout = layout_of(grads, "grads");
    STD_TORCH_CHECK(norm != fastadv::kL1 || (top > 0 && top <= 1), "`top` must be in (0, 1]");
    STD_TORCH_CHECK(grads.is_contiguous(), "`grads` must be contiguous");
    STD_TORCH_CHECK(delta.is_contiguous() && delta.numel() == layout.size &&
                        same_device(delta, grads) && delta.scalar_type() == grads.scalar_type(),
                    "`delta` must be one contiguous sample of `grads` ", shape(grads),
                    " in its dtype, got ", shape(delta));
    if (velocity) {
      STD_TORCH_CHECK(velocity->is_contiguous() && velocity->numel() == layout.size &&
                          same_device(*velocity, grads) &&
                          velocity->scalar_type() == compute_dtype(dtype),
                      "`velocity` must be contiguous, like `delta` ", shape(delta),
                      ", in float64 for float64 data and else float32, got ", shape(*velocity));
    }
    if (weights) {
      STD_TORCH_CHECK(weights->is_contiguous() && weights->dim() == 1 &&
                          same_device(*weights, grads) && weights->size(0) == layout.samples &&
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
        per_sample(step_size, "step_size", 1, dtype, grads),
        per_sample(radius, "radius", 1, dtype, grads),
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
    Device::universal(norm, dtype, args, grads);
  }
  template <Norm norm>
  static void universal(Tensor delta, std::optional<Tensor> velocity, Tensor grads,
                        std::optional<Tensor> weights, Tensor step_size, Tensor radius,
                        double momentum, bool signs, bool steepest) {
    universal_any<norm>(delta, velocity, grads, weights, step_size, radius, momentum, signs,
                        steepest, 0);
  }
  static void universal_l1(Tensor delta, std::optional<Tensor> velocity, Tensor grads,
                           std::optional<Tensor> weights, Tensor step_size, Tensor radius,
                           double momentum, bool signs, bool steepest, double top) {
    universal_any<fastadv::kL1>(delta, velocity, grads, weights, step_size, radius, momentum, signs,
                                steepest, top);
  }

  static std::tuple<Tensor, Tensor, Tensor> head(Tensor logits, Tensor y,
                                                 std::optional<Tensor> target, int64_t head,
                                                 bool targeted) {
    const DType dtype = dtype_of(logits, "logits");
    STD_TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(),
                    "`logits` must be (N, classes) and contiguous, got ", shape(logits));
    STD_TORCH_CHECK(head >= 0 && head < fastadv::kHeads, "`head` must be 0 to 4, got ", head);
    const int64_t samples = logits.size(0), classes = logits.size(1);
    STD_TORCH_CHECK(classes > 0, "`logits` must have a class, got ", shape(logits));
    const bool dense = head == fastadv::kBinaryCrossEntropy || head == fastadv::kKl;
    if (dense) {
      STD_TORCH_CHECK(
          y.dim() == 2 && y.size(0) == samples && y.size(1) == classes && y.is_contiguous() &&
              same_device(y, logits) && y.scalar_type() == compute_dtype(dtype),
          "`y` must be ", shape(logits),
          " like `logits`, in float64 for float64 data and else float32, got ", shape(y));
    } else {
      check_labels(y, "y", logits);
    }
    if (head == fastadv::kDlr && targeted) {
      STD_TORCH_CHECK(target.has_value(), "`target` must be given for the targeted dlr");
      check_labels(*target, "target", logits);
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
    Device::head(static_cast<fastadv::Head>(head), dtype, args, logits);
    return {loss, grad, prediction};
  }

  static Tensor digest(Tensor x) {
    const DType dtype = dtype_of(x, "x");
    const Layout layout = layout_of(x, "x");
    const int64_t size[] = {layout.samples};
    Tensor out = torch::stable::new_empty(x, {size, 1}, ScalarType::Long);
    const fastadv::DigestArgs args{x.const_data_ptr(),
                                   static_cast<int64_t*>(out.mutable_data_ptr()), layout.samples,
                                   layout.size};
    Device::digest(dtype, args, x);
    return out;
  }

  static Tensor uniform(Tensor x, int64_t seed, int64_t offset, int64_t stream) {
    const DType dtype = dtype_of(x, "x");
    STD_TORCH_CHECK(x.dim() >= 1, "`x` must have a batch dimension, got a scalar");
    Tensor out = torch::stable::new_empty(x, x.sizes(), compute_dtype(dtype));
    const int64_t samples = x.size(0);
    const fastadv::UniformArgs args{
        out.mutable_data_ptr(), samples, samples ? x.numel() / samples : 0,
        uint64_t(seed),         offset,  uint32_t(stream)};
    Device::uniform(dtype == fastadv::kFloat64, args, x);
    return out;
  }
};

template <class Device, class Library>
void register_ops(Library& m) {
  using On = Ops<Device>;
  m.impl("step_linf_", TORCH_BOX(&On::template step<fastadv::kLinf>));
  m.impl("step_l2_", TORCH_BOX(&On::template step<fastadv::kL2>));
  m.impl("step_l1_", TORCH_BOX(&On::step_l1));
  m.impl("universal_linf_", TORCH_BOX(&On::template universal<fastadv::kLinf>));
  m.impl("universal_l2_", TORCH_BOX(&On::template universal<fastadv::kL2>));
  m.impl("universal_l1_", TORCH_BOX(&On::universal_l1));
  m.impl("head", TORCH_BOX(&On::head));
  m.impl("digest", TORCH_BOX(&On::digest));
  m.impl("uniform", TORCH_BOX(&On::uniform));
}

}  // namespace
