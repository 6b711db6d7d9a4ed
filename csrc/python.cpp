// fastadv._native: facts about the build and the processor, and the updates on NumPy arrays, in
// place and without a copy; and what a forward borrows. Imports without torch; fastadv/numpy.py and
// fastadv/engine/loans.py stand before it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/run.h"
#include "loans.h"

namespace py = pybind11;

namespace {

// Those that this process may use: a container or taskset can leave fewer than there are.
int cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = FASTADV_COMPILER;
  facts["standard"] = static_cast<long>(__cplusplus);
  facts["flags"] = FASTADV_FLAGS;
  facts["isa_flags"] = FASTADV_ISA_FLAGS;
  return facts;
}

py::dict processor() {
  py::dict features;
  for (const auto& [name, present] : fastadv::processor_features()) {
    features[py::str(name)] = present;
  }
  py::dict facts;
  facts["isa"] = fastadv::kernels().isa;
  facts["available"] = fastadv::available_isas();
  facts["features"] = features;
  facts["cores"] = cores();
  return facts;
}

void serial(int64_t begin, int64_t end, int64_t, fastadv::Body body, void* context) {
  body(begin, end, context);
}
fastadv::ParallelFor parallel = serial;

fastadv::DType dtype_of(const py::array& a) {
  const char kind = a.dtype().kind();
  if (kind == 'f' && a.itemsize() == 4) return fastadv::kFloat32;
  if (kind == 'f' && a.itemsize() == 8) return fastadv::kFloat64;
  if (kind == 'f' && a.itemsize() == 2) return fastadv::kFloat16;
  throw py::type_error("arrays must be float32, float64 or float16");
}

// What fastadv/numpy.py has checked for a person is checked here for memory alone.
void need(bool holds, const char* what) {
  if (!holds) throw py::value_error(what);
}
bool dense(const py::array& a) { return (a.flags() & py::array::c_style) != 0; }
bool computes(const py::array& a, fastadv::DType dtype) {
  return a.dtype().kind() == 'f' && a.itemsize() == (dtype == fastadv::kFloat64 ? 8 : 4) &&
         dense(a);
}
fastadv::PerSample per_sample(const py::array& a, int64_t samples, fastadv::DType dtype) {
  need(computes(a, dtype) && (a.size() == 1 || a.size() == samples), "step_size and radius");
  return {a.data(), a.size() == 1 ? 0 : 1};
}

// Dense arrays alone: their addresses tell.
void need_apart(const py::array& updated, const py::array& read) {
  const char* const a = static_cast<const char*>(updated.data());
  const char* const b = static_cast<const char*>(read.data());
  need(a + updated.nbytes() <= b || b + read.nbytes() <= a,
       "what is updated in place must share no memory with another array: copy one");
}

void step_(int norm, py::array x_adv, const py::array& grad, const py::array& x,
           const py::array& step_size, const py::array& radius, const py::object& bounds,
           bool steepest, double top) {
  const fastadv::DType dtype = dtype_of(x_adv);
  const auto like = [&](const py::array& a) {
    return dense(a) && a.size() == x_adv.size() && dtype_of(a) == dtype;
  };
  need(norm >= 0 && norm < fastadv::kNorms, "norm");
  need(x_adv.ndim() >= 1 && x_adv.writeable() && like(x_adv) && like(grad) && like(x), "arrays");
  need_apart(x_adv, grad);
  need_apart(x_adv, x);
  const int64_t samples = x_adv.shape(0), size = samples ? x_adv.size() / samples : 0;
  fastadv::Box box;
  if (!bounds.is_none()) {
    const py::array b = bounds;
    const int64_t channels = b.size() / 2;
    need(computes(b, dtype) && channels >= 1 && b.size() == 2 * channels, "bounds");
    need(channels == 1 || (x_adv.ndim() > 1 && x_adv.shape(1) == channels), "bounds");
    const char* lower = static_cast<const char*>(b.data());
    box = {lower, lower + channels * b.itemsize(), channels, size / channels};
  }
  const fastadv::StepArgs args{x_adv.mutable_data(),
                               grad.data(),
                               x.data(),
                               samples,
                               size,
                               per_sample(step_size, samples, dtype),
                               per_sample(radius, samples, dtype),
                               box,
                               steepest,
                               top};
  const py::gil_scoped_release release;
  fastadv::run_step(static_cast<fastadv::Norm>(norm), dtype, args, parallel);
}

void universal_(int norm, py::array delta, const py::object& velocity, const py::array& grads,
                const py::object& weights, const py::array& step_size, const py::array& radius,
                double momentum, bool signs, bool steepest, double top) {
  const fastadv::DType dtype = dtype_of(grads);
  need(norm >= 0 && norm < fastadv::kNorms, "norm");
  need(grads.ndim() >= 1 && dense(grads) && grads.shape(0) > 0, "grads");
  const int64_t samples = grads.shape(0), size = grads.size() / samples;
  need(dense(delta) && delta.writeable() && delta.size() == size && dtype_of(delta) == dtype,
       "delta");
  const auto optional = [&](const py::object& given, int64_t count, const char* name) {
    if (given.is_none()) return py::array();
    py::array a = given;
    need(computes(a, dtype) && a.size() == count, name);
    return a;
  };
  py::array v = optional(velocity, size, "velocity"), w = optional(weights, samples, "weights");
  need_apart(delta, grads);
  if (!velocity.is_none()) {
    need_apart(v, grads);
    need_apart(v, delta);
  }
  const fastadv::UniversalArgs args{delta.mutable_data(),
                                    velocity.is_none() ? nullptr : v.mutable_data(),
                                    grads.data(),
                                    weights.is_none() ? nullptr : w.data(),
                                    samples,
                                    size,
                                    per_sample(step_size, 1, dtype),
                                    per_sample(radius, 1, dtype),
                                    momentum,
                                    signs,
                                    steepest,
                                    top};
  const py::gil_scoped_release release;
  fastadv::run_universal(static_cast<fastadv::Norm>(norm), dtype, args, parallel);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Facts about the compiled kernels and the processor; needs no torch.";
  m.def("build_facts", &build_facts,
        "How this module was built: compiler, C++ standard, flags, flags per instruction set.");
  m.def("processor", &processor,
        "The instruction set in use, those available here, the processor's features, and the cores "
        "this process may use. Raises RuntimeError if FASTADV_CPU_CAPABILITY cannot be honoured.");
  m.def(
      "multiplies_bfloat16", [] { return fastadv::multiplies_bfloat16(); },
      "Whether the kernels in use multiply bfloat16 (AVX-512 BF16).");
  m.def(
      "capability", [] { return fastadv::kernels().isa; },
      "The instruction set in use: baseline, avx2 or avx512. Raises RuntimeError if "
      "FASTADV_CPU_CAPABILITY names one that cannot run here.");
  m.def("step_", &step_, "One step on arrays; fastadv.numpy.step_ checks and explains.");
  m.def("universal_", &universal_, "One universal step; see fastadv.numpy.universal_.");
  m.def(
      "use_parallel_for",
      [](uintptr_t function) { parallel = reinterpret_cast<fastadv::ParallelFor>(function); },
      "Runs the entry points on the threads of a fastadv_parallel_for, given by its address.");
  fastadv::loans::add_to(m);
}
