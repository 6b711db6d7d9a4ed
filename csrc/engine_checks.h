// What the engine's ops check: tensors of one shape and dtype, contiguous, on the CPU.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/run.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void parallel(int64_t begin, int64_t end, int64_t grain, fastadv::Body body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

std::string shape(std::initializer_list<int64_t> sizes) {
  std::string text = "(";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

// Raises unless t is on the CPU, of these sizes, its memory contiguous in their order.
void check(const Tensor& t, const char* name, ScalarType dtype,
           std::initializer_list<int64_t> sizes) {
  bool same = t.is_cpu() && t.scalar_type() == dtype && t.dim() == int64_t(sizes.size()) &&
              t.is_contiguous();
  int64_t i = 0;
  for (const int64_t size : sizes) same = same && t.size(i++) == size;
  STD_TORCH_CHECK(same, "`", name, "` must be contiguous on the CPU, of shape ", shape(sizes),
                  dtype == ScalarType::Byte       ? " and uint8"
                  : dtype == ScalarType::BFloat16 ? " and bfloat16"
                                                  : " and float32");
}
template <class T>
T* check_or_null(const std::optional<Tensor>& t, const char* name, ScalarType dtype,
                 std::initializer_list<int64_t> sizes) {
  if (!t) return nullptr;
  check(*t, name, dtype, sizes);
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(t->const_data_ptr());
  } else {
    return static_cast<T*>(t->mutable_data_ptr());
  }
}
int64_t panels(int64_t channels) { return (channels + fastadv::kPanel - 1) / fastadv::kPanel; }
[[maybe_unused]] int64_t sign_bytes(int64_t channels) {
  return panels(channels) * fastadv::kPanel / 8;
}
const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

// What a layer writes: (n, height, width, channels).
struct Written {
  int64_t n, height, width, channels;
};
template <class Args>
Written written_by(const Args& args) {
  return {args.samples, args.rows, args.columns, args.outputs};
}

// A tensor like what is written, or null.
[[maybe_unused]] const float* like_written(const std::optional<Tensor>& t, const char* name,
                                           const Written& y) {
  return check_or_null<const float>(t, name, ScalarType::Float,
                                    {y.n, y.height, y.width, y.channels});
}

// Of a forward: the residual, the activation, and where its signs or slopes go.
[[maybe_unused]] void set_activation(fastadv::Epilogue& after, const Written& y,
                                     const std::optional<Tensor>& residual, int64_t activation,
                                     const std::vector<double>& numbers,
                                     const std::optional<Tensor>& kept) {
  after.residual = like_written(residual, "residual", y);
  STD_TORCH_CHECK(activation >= 0 && activation < fastadv::kActivations,
                  "`activation` must be 0 to ", fastadv::kActivations - 1, ", got ", activation);
  after.activation = fastadv::Activation(activation);
  const size_t asked = numbers_of(after.activation);
  STD_TORCH_CHECK(numbers.size() == asked, "`numbers` must be ", asked, ", got ", numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) after.numbers[i] = float(numbers[i]);
  if (!kept) return;
  STD_TORCH_CHECK(activation != fastadv::kNone, "`kept` must be None without an activation");
  if (has_two_slopes(after.activation)) {
    after.signs = check_or_null<uint8_t>(kept, "kept", ScalarType::Byte,
                                         {y.n, y.height, y.width, sign_bytes(y.channels)});
  } else {
    after.slopes =
        check_or_null<float>(kept, "kept", ScalarType::Float, {y.n, y.height, y.width, y.channels});
  }
}

// Of a gradient: the residual, and what is multiplied by: signs with a leak, or slopes.
[[maybe_unused]] void set_slopes(fastadv::Epilogue& after, const Written& y,
                                 const std::optional<Tensor>& residual,
                                 const std::optional<Tensor>& slopes, double leak) {
  after.residual = like_written(residual, "residual", y);
  after.leak = float(leak);
  if (slopes && slopes->scalar_type() == ScalarType::Byte) {
    after.mask = check_or_null<const uint8_t>(slopes, "slopes", ScalarType::Byte,
                                              {y.n, y.height, y.width, sign_bytes(y.channels)});
  } else {
    after.factors = like_written(slopes, "slopes", y);
  }
}

}  // namespace
