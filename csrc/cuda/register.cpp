// Which function serves which op on CUDA: the kernels of this folder, on torch's current stream of
// the data's device. A module of its own, since it does not load beside a torch without CUDA.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../ops.h"
#include "run.h"

namespace {

// While it lives the device of `data` is the current one.
class Place {
 public:
  explicit Place(const Tensor& data) : guard_(index_of(data)) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(data.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  static int32_t index_of(const Tensor& data) {
    STD_TORCH_CHECK(data.is_cuda(), "a tensor that CUDA kernels update must be on a CUDA device");
    return data.get_device_index();
  }
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

struct Cuda {
  static void step(Norm norm, DType dtype, const fastadv::StepArgs& args, const Tensor& data) {
    const Place place(data);
    fastadv::cuda::run_step(norm, dtype, args, place.stream());
  }
  static void universal(Norm norm, DType dtype, const fastadv::UniversalArgs& args,
                        const Tensor& data) {
    if (args.size == 0) return;
    const Place place(data);
    const int64_t bytes[] = {fastadv::cuda::universal_workspace(dtype, args.samples, args.size)};
    const Tensor workspace = torch::stable::new_empty(data, {bytes, 1}, ScalarType::Byte);
    fastadv::cuda::run_universal(norm, dtype, args, workspace.mutable_data_ptr(), place.stream());
  }
  static void head(fastadv::Head head, DType dtype, const fastadv::HeadArgs& args,
                   const Tensor& data) {
    const Place place(data);
    fastadv::cuda::run_head(head, dtype, args, place.stream());
  }
  static void digest(DType dtype, const fastadv::DigestArgs& args, const Tensor& data) {
    const Place place(data);
    fastadv::cuda::run_digest(dtype, args, place.stream());
  }
  static void uniform(bool double_precision, const fastadv::UniformArgs& args, const Tensor& data) {
    const Place place(data);
    fastadv::cuda::run_uniform(double_precision, args, place.stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastadv, CUDA, m) { register_ops<Cuda>(m); }
