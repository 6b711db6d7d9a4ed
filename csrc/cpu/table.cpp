// This instruction set's kernels, collected. Their names stand in declare.h.
#include "declare.h"

#define FASTADV_TEXT_OF(name) #name
#define FASTADV_TEXT(name) FASTADV_TEXT_OF(name)
#define FASTADV_STEPS(name)                                                              \
  {name<float, float, true>, name<double, double, true>, name<bfloat16, bfloat16, true>, \
   name<float16, float16, true>}
#define FASTADV_SHARED_STEPS(name)                                                       \
  {name<float, float, false>, name<double, double, false>, name<bfloat16, float, false>, \
   name<float16, float, false>}
#define FASTADV_HEADS(which) \
  {head<which, float>, head<which, double>, head<which, bfloat16>, head<which, float16>}
#define FASTADV_EACH_DTYPE(name) {name<float>, name<double>, name<bfloat16>, name<float16>}

FASTADV_NAMESPACE_BEGIN

template <Head kHead, class T>
void head(const HeadArgs&, int64_t begin, int64_t end);

const Kernels& table() {
  static constexpr Kernels kTable = {
      .isa = FASTADV_TEXT(FASTADV_ISA),
      .step = {FASTADV_STEPS(step_linf), FASTADV_STEPS(step_l2), FASTADV_STEPS(step_l1)},
      .shared_step = {FASTADV_SHARED_STEPS(step_linf), FASTADV_SHARED_STEPS(step_l2),
                      FASTADV_SHARED_STEPS(step_l1)},
      .accumulate = FASTADV_EACH_DTYPE(accumulate),
      .head = {FASTADV_HEADS(kCrossEntropy), FASTADV_HEADS(kBinaryCrossEntropy),
               FASTADV_HEADS(kMargin), FASTADV_HEADS(kDlr), FASTADV_HEADS(kKl)},
      .digest = FASTADV_EACH_DTYPE(digest),
      .uniform = {uniform<float>, uniform<double>},
      .winograd = winograd,
      .winograd_weights = winograd_weights,
      .winograd_learn_tiles = winograd_learn_tiles,
      .winograd_learn_taps = winograd_learn_taps,
      .direct = direct,
      .fold = fold,
      .depthwise = depthwise,
      .depthwise_gradient = depthwise_gradient,
      .linear = linear,
      .attention = attention,
      .norm = norm,
      .max_pool = max_pool,
      .max_pool_gradient = max_pool_gradient,
      .pointwise = pointwise,
      .mean = mean,
      .watch = watch,
      .fingerprint = fingerprint,
      .dense_pgd = dense_pgd,
      .dense_pass = dense_pass,
  };
  return kTable;
}

FASTADV_NAMESPACE_END
