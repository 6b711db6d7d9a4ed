// What keeps a kernel inside its memory: tensors to plain arguments, or an error that says what was
// expected and what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>

#include "args.h"

namespace {

using fastadv::DType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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
bool same_device(const Tensor& a, const Tensor& b) {
  if (a.is_cpu()) return b.is_cpu();
  return a.is_cuda() && b.is_cuda() && a.get_device_index() == b.get_device_index();
}
void check_like(const Tensor& t, const char* name, const Tensor& like, const char* like_name) {
  bool same = t.dim() == like.dim() && same_device(t, like);
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == like.size(i);
  STD_TORCH_CHECK(same, "`", name, "` must be ", shape(like), " on the device of `", like_name,
                  "`, got ", shape(t));
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), "`", name, "` must have the dtype of `",
                  like_name, "`");
  for (int64_t i = 0; i < t.dim(); ++i) {
    STD_TORCH_CHECK(t.size(i) <= 1 || t.stride(i) == like.stride(i), "`", name,
                    "` must have the memory format of `", like_name, "`");
  }
}
// What is updated must not be what is read. Kernels' tensors are dense: their addresses tell.
void check_apart(const void* updated, int64_t bytes, const char* name, const void* read,
                 int64_t bytes_read, const char* other) {
  const char *const a = static_cast<const char*>(updated), *const b =
                                                               static_cast<const char*>(read);
  STD_TORCH_CHECK(a + bytes <= b || b + bytes_read <= a, "`", name,
                  "` is updated in place and must ", "share no memory with `", other,
                  "`: call .clone()");
}
int64_t bytes_of(DType dtype, int64_t elements) {
  return elements * (dtype == fastadv::kFloat64 ? 8 : dtype == fastadv::kFloat32 ? 4 : 2);
}
fastadv::PerSample per_sample(const Tensor& t, const char* name, int64_t samples, DType dtype,
                              const Tensor& data) {
  const bool one = t.dim() == 0 || (t.dim() == 1 && t.size(0) == 1);
  STD_TORCH_CHECK(one || (t.dim() == 1 && t.size(0) == samples), "`", name, "` must be () or (",
                  samples, "), got ", shape(t));
  STD_TORCH_CHECK(t.scalar_type() == compute_dtype(dtype) && same_device(t, data), "`", name,
                  "` must be float64 for float64 data, float32 for all other, on its device");
  return {t.const_data_ptr(), one ? 0 : t.stride(0)};
}
fastadv::Box box_of(const std::optional<Tensor>& bounds, const Layout& layout, DType dtype,
                    const Tensor& data) {
  if (!bounds) return {};
  const Tensor& t = *bounds;
  const int64_t channels = t.dim() == 2 ? t.size(1) : 1;
  STD_TORCH_CHECK((t.dim() == 1 || t.dim() == 2) && t.size(0) == 2 && t.is_contiguous() &&
                      same_device(t, data) && (t.dim() == 1 || channels == layout.channels),
                  "`bounds` must be (2,) or (2, ", layout.channels, "), got ", shape(t));
  STD_TORCH_CHECK(t.scalar_type() == compute_dtype(dtype),
                  "`bounds` must be float64 for float64 data, float32 for all other");
  const char* const lower = static_cast<const char*>(t.const_data_ptr());
  const int64_t bytes = channels * (dtype == fastadv::kFloat64 ? 8 : 4);
  return {lower, lower + bytes, channels, layout.inner};
}

}  // namespace
