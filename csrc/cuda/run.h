// Every op on a stream of the current device, over plain pointers to its memory: what register.cpp
// calls. Kernels are queued, and errors of the launch thrown as std::runtime_error.
#pragma once

#include "../args.h"

namespace fastadv::cuda {

void run_step_linf(DType dtype, const StepArgs& args, void* stream);
void run_step_l2(DType dtype, const StepArgs& args, void* stream);
void run_step_l1(DType dtype, const StepArgs& args, void* stream);
void run_step(Norm norm, DType dtype, const StepArgs& args, void* stream);

// `workspace`: memory of the device, aligned to 16 bytes, of universal_workspace() bytes.
int64_t universal_workspace(DType dtype, int64_t samples, int64_t size);
void run_universal(Norm norm, DType dtype, const UniversalArgs& args, void* workspace,
                   void* stream);

void run_head(Head head, DType dtype, const HeadArgs& args, void* stream);
void run_digest(DType dtype, const DigestArgs& args, void* stream);
void run_uniform(bool double_precision, const UniformArgs& args, void* stream);

}  // namespace fastadv::cuda
