// Which function serves which op on the CPU.
#include "cpu/run.h"
#include "ops.h"

namespace {

void parallel(int64_t begin, int64_t end, int64_t grain, fastadv::Body body, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

struct Cpu {
  static void step(Norm norm, DType dtype, const fastadv::StepArgs& args, const Tensor&) {
    fastadv::run_step(norm, dtype, args, parallel);
  }
  static void universal(Norm norm, DType dtype, const fastadv::UniversalArgs& args, const Tensor&) {
    fastadv::run_universal(norm, dtype, args, parallel);
  }
  static void head(fastadv::Head head, DType dtype, const fastadv::HeadArgs& args, const Tensor&) {
    fastadv::run_head(head, dtype, args, parallel);
  }
  static void digest(DType dtype, const fastadv::DigestArgs& args, const Tensor&) {
    fastadv::run_digest(dtype, args, parallel);
  }
  static void uniform(bool double_precision, const fastadv::UniformArgs& args, const Tensor&) {
    fastadv::run_uniform(double_precision, args, parallel);
  }
};

}  // namespace

// For _native, which knows no torch: the NumPy entry points then run on torch's threads.
extern "C" __attribute__((visibility("default"))) void fastadv_parallel_for(
    int64_t begin, int64_t end, int64_t grain, fastadv::Body body, void* context) {
  parallel(begin, end, grain, body, context);
}

STABLE_TORCH_LIBRARY_IMPL(fastadv, CPU, m) { register_ops<Cpu>(m); }
