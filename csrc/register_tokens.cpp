// The engine's ops for transformers on the CPU: linear layers with what follows them, attention
// and layer norms.
#include <torch/csrc/stable/library.h>

#include "engine_checks.h"

namespace {

// Whether a tensor is bfloat16, where the kernels in use multiply that, and not float32.
bool is_narrow(const Tensor& t, const char* name) {
  const bool narrow = t.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(!narrow || fastadv::multiplies_bfloat16(), "`", name,
                  "` must be float32: the kernels in use have no bfloat16 products");
  return narrow;
}
ScalarType dtype_of(bool narrow) { return narrow ? ScalarType::BFloat16 : ScalarType::Float; }

void linear(Tensor y, std::optional<Tensor> slopes, Tensor x, Tensor weights,
            std::optional<Tensor> bias, std::optional<Tensor> residual, int64_t finish) {
  STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2,
                  "`x` must be (rows, inputs), and `y` (rows, "
                  "outputs)");
  STD_TORCH_CHECK(finish >= fastadv::kUnfinished && finish <= fastadv::kTimesSlopes,
                  "`finish` must be 0 to 3, got ", finish);
  STD_TORCH_CHECK(slopes.has_value() == (finish != fastadv::kUnfinished),
                  "`slopes` must be given where `finish` writes or reads them");
  fastadv::LinearArgs args{};
  args.rows = x.size(0), args.inputs = x.size(1), args.outputs = y.size(1);
  STD_TORCH_CHECK(args.inputs > 0 && args.outputs > 0, "`x` and `y` must have columns");
  args.bfloat16 = is_narrow(weights, "weights");
  args.narrow_x = is_narrow(x, "x"), args.narrow_y = is_narrow(y, "y");
  STD_TORCH_CHECK(args.bfloat16 || (!args.narrow_x && !args.narrow_y),
                  "`x` and `y` must be float32, as the weights are");
  const int64_t steps = args.bfloat16 ? (args.inputs + 1) / 2 * 2 : args.inputs;
  check(x, "x", dtype_of(args.narrow_x), {args.rows, args.inputs});
  check(y, "y", dtype_of(args.narrow_y), {args.rows, args.outputs});
  check(weights, "weights", dtype_of(args.bfloat16),
        {steps * panels(args.outputs) * fastadv::kPanel});
  args.x = x.const_data_ptr(), args.weights = floats(weights), args.y = y.mutable_data_ptr();
  args.bias = check_or_null<const float>(bias, "bias", ScalarType::Float, {args.outputs});
  args.residual = check_or_null<const float>(residual, "residual", ScalarType::Float,
                                             {args.rows, args.outputs});
  args.slopes =
      check_or_null<void>(slopes, "slopes", dtype_of(args.bfloat16), {args.rows, args.outputs});
  args.finish = fastadv::Finish(finish);
  fastadv::run_linear(args, parallel);
}

// The rows of t (samples, heads, length, width), in any strides but for the last.
fastadv::HeadRows rows_of(const Tensor& t, const char* name, const fastadv::AttentionArgs& args) {
  const int64_t sizes[] = {args.samples, args.heads, args.length, args.width};
  bool same = t.is_cpu() && t.scalar_type() == dtype_of(args.bfloat16) && t.dim() == 4 &&
              (t.stride(3) == 1 || args.width == 1);
  for (int i = 0; same && i < 4; ++i) same = t.size(i) == sizes[i];
  STD_TORCH_CHECK(same, "`", name,
                  "` must be of `q`'s shape and dtype on the CPU, with numbers of "
                  "a head side by side");
  return {t.mutable_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

fastadv::AttentionArgs attention_of(const Tensor& p, const Tensor& q, const Tensor& k,
                                    const Tensor& v, double scale) {
  STD_TORCH_CHECK(q.dim() == 4, "`q` must be (N, heads, length, width)");
  fastadv::AttentionArgs args{};
  args.samples = q.size(0), args.heads = q.size(1), args.length = q.size(2), args.width = q.size(3);
  constexpr int64_t kMost = fastadv::kAttentionMost;
  STD_TORCH_CHECK(args.length > 0 && args.width > 0 && args.length <= kMost && args.width <= kMost,
                  "`q` must have 1 to 256 tokens, and as many numbers a head");
  args.bfloat16 = is_narrow(q, "q");
  args.scale = float(scale);
  args.q = rows_of(q, "q", args), args.k = rows_of(k, "k", args), args.v = rows_of(v, "v", args);
  const int64_t whole = fastadv::kPanel * (args.bfloat16 ? 2 : 1);
  check(p, "p", dtype_of(args.bfloat16),
        {args.samples, args.heads, args.length, (args.length + whole - 1) / whole * whole});
  args.p = p.mutable_data_ptr();
  return args;
}

void attention(Tensor o, Tensor p, Tensor q, Tensor k, Tensor v, double scale) {
  fastadv::AttentionArgs args = attention_of(p, q, k, v, scale);
  args.o = rows_of(o, "o", args);
  fastadv::run_attention(args, parallel);
}

void attention_gradient(Tensor dq, Tensor dk, Tensor dv, Tensor grad, Tensor p, Tensor q, Tensor k,
                        Tensor v, double scale) {
  fastadv::AttentionArgs args = attention_of(p, q, k, v, scale);
  args.grad = rows_of(grad, "grad", args);
  args.dq = rows_of(dq, "dq", args), args.dk = rows_of(dk, "dk", args);
  args.dv = rows_of(dv, "dv", args);
  fastadv::run_attention(args, parallel);
}

fastadv::NormArgs norm_of(const Tensor& y, const Tensor& kept, const Tensor& x,
                          const std::optional<Tensor>& gamma) {
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, "`x` must be (rows, width)");
  fastadv::NormArgs args{};
  args.rows = x.size(0), args.width = x.size(1);
  check(x, "x", ScalarType::Float, {args.rows, args.width});
  check(kept, "kept", ScalarType::Float, {args.rows, 2});
  args.narrow = is_narrow(y, "y");
  check(y, "y", dtype_of(args.narrow), {args.rows, args.width});
  args.gamma = check_or_null<const float>(gamma, "gamma", ScalarType::Float, {args.width});
  args.x = floats(x), args.y = y.mutable_data_ptr();
  args.kept = static_cast<float*>(kept.mutable_data_ptr());
  return args;
}

void norm(Tensor y, Tensor kept, Tensor x, std::optional<Tensor> gamma, std::optional<Tensor> beta,
          double eps) {
  fastadv::NormArgs args = norm_of(y, kept, x, gamma);
  args.beta = check_or_null<const float>(beta, "beta", ScalarType::Float, {args.width});
  args.eps = float(eps);
  fastadv::run_norm(args, parallel);
}

void norm_gradient(Tensor y, Tensor grad, Tensor kept, Tensor x, std::optional<Tensor> gamma,
                   std::optional<Tensor> residual) {
  fastadv::NormArgs args = norm_of(y, kept, x, gamma);
  STD_TORCH_CHECK(!args.narrow, "`y` must be float32");
  check(grad, "grad", ScalarType::Float, {args.rows, args.width});
  args.grad = floats(grad);
  args.residual =
      check_or_null<const float>(residual, "residual", ScalarType::Float, {args.rows, args.width});
  fastadv::run_norm(args, parallel);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastadv, CPU, m) {
  m.impl("linear_", TORCH_BOX(&linear));
  m.impl("attention_", TORCH_BOX(&attention));
  m.impl("attention_gradient_", TORCH_BOX(&attention_gradient));
  m.impl("norm_", TORCH_BOX(&norm));
  m.impl("norm_gradient_", TORCH_BOX(&norm_gradient));
}
