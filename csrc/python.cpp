// fastadv._native: facts about the build and the processor. Imports without torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

#include "cpu/dispatch.h"
#include "cpu/kernels.h"

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

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Facts about the compiled kernels and the processor; needs no torch.";
  m.def("build_facts", &build_facts,
        "How this module was built: compiler, C++ standard, flags, flags per instruction set.");
  m.def("processor", &processor,
        "The instruction set in use, those available here, the processor's features, and the cores "
        "this process may use. Raises RuntimeError if FASTADV_CPU_CAPABILITY cannot be honoured.");
  m.def(
      "capability", [] { return fastadv::kernels().isa; },
      "The instruction set in use: baseline, avx2 or avx512. Raises RuntimeError if "
      "FASTADV_CPU_CAPABILITY names one that cannot run here.");
}
