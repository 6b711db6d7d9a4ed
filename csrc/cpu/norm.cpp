// y = (x - mean) / deviation * gamma + beta of each row, a layer norm, with its mean and
// 1 / deviation kept; or, from the gradient of y, that by x, + residual. A row is read once from
// memory, and again from L1: 8 B an element (6 with y as bfloat16), and 16 for the gradient, where
// ATen's and a sum after it move 24. 2048 rows of 192: 0.12 ms, and the gradient 0.22.
#include "declare.h"
#include "narrow.h"
#include "simd.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

template <class T>
void normalize(const NormArgs& args, int64_t row) {
  const int64_t width = args.width;
  const float* const x = args.x + row * width;
  T* const y = static_cast<T*>(args.y) + row * width;
  Floats sum = {}, squares = {};
  each_register<float>(width, [&](int64_t k, auto... n) { sum += load(x + k, n...); });
  const float mean = sum_of(sum) / float(width);
  each_register<float>(width, [&](int64_t k, auto... n) {
    const Floats v = load(x + k, n...) - mean;
    squares += lane_numbers() < int32_t(width - k) ? v * v : Floats{};
  });
  const float scale = 1 / __builtin_sqrtf(sum_of(squares) / float(width) + args.eps);
  args.kept[2 * row] = mean, args.kept[2 * row + 1] = scale;
  each_register<float>(width, [&](int64_t k, auto... n) {
    Floats v = (load(x + k, n...) - mean) * scale;
    if (args.gamma) v *= load(args.gamma + k, n...);
    if (args.beta) v += load(args.beta + k, n...);
    put(y + k, v, n...);
  });
}

void differentiate(const NormArgs& args, int64_t row) {
  const int64_t width = args.width;
  const float* const x = args.x + row * width;
  const float* const grad = args.grad + row * width;
  float* const y = static_cast<float*>(args.y) + row * width;
  const float mean = args.kept[2 * row], scale = args.kept[2 * row + 1];
  Floats sum = {}, products = {};
  const auto slope = [&](int64_t k, auto... n) {
    const Floats g = load(grad + k, n...);
    return args.gamma ? g * load(args.gamma + k, n...) : g;
  };
  each_register<float>(width, [&](int64_t k, auto... n) {
    const Floats g = slope(k, n...);
    sum += g;
    products += g * (load(x + k, n...) - mean);  // beyond the end g is zero
  });
  const float by_mean = sum_of(sum) / float(width);
  const float by_scale = sum_of(products) / float(width) * scale * scale;
  each_register<float>(width, [&](int64_t k, auto... n) {
    const Floats from_mean = load(x + k, n...) - mean;
    Floats v = (slope(k, n...) - by_mean - from_mean * by_scale) * scale;
    if (args.residual) v += load(args.residual + row * width + k, n...);
    put(y + k, v, n...);
  });
}

void norm(const NormArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    if (args.grad) {
      differentiate(args, row);
    } else if (args.narrow) {
#if defined(__AVX512F__)
      normalize<bfloat16>(args, row);
#endif
    } else {
      normalize<float>(args, row);
    }
  }
}

FASTADV_NAMESPACE_END
