// Chooses the kernels at run time: the last instruction set of `kIsas` that runs here, or the one
// that FASTADV_CPU_CAPABILITY names. Built once, for any processor of the architecture.
#include "dispatch.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fastadv {

namespace baseline {
const Kernels& table();
}
namespace avx2 {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}

namespace {

// __builtin_cpu_supports asks the operating system too: registers that it does not save are absent.
// Every processor with AVX2 and FMA has F16C, which older compilers cannot ask for.
#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
#endif
bool has_baseline() { return true; }

using Table = const Kernels& (*)();

struct Isa {
  const char* name;
  const char* needs;
  bool (*runs)();
  Table table;  // null: not in this build
};

#if defined(FASTADV_BUILT_avx2)
constexpr Table kAvx2 = avx2::table;
#else
constexpr Table kAvx2 = nullptr;
#endif
#if defined(FASTADV_BUILT_avx512)
constexpr Table kAvx512 = avx512::table;
#else
constexpr Table kAvx512 = nullptr;
#endif

constexpr Isa kIsas[] = {
    {"baseline", "nothing", has_baseline, baseline::table},
    {"avx2", "AVX2, FMA and BMI2", has_avx2, kAvx2},
    {"avx512", "AVX-512 F, BW, VL and DQ", has_avx512, kAvx512},
};

bool available(const Isa& isa) { return isa.table != nullptr && isa.runs(); }

const Kernels& named(const std::string& name) {
  const std::string got = "FASTADV_CPU_CAPABILITY must be baseline, avx2 or avx512";
  for (const Isa& isa : kIsas) {
    if (name != isa.name) continue;
    if (available(isa)) return isa.table();
    const std::string why = isa.table == nullptr
                                ? "this build has no such kernels"
                                : "this processor lacks some of " + std::string(isa.needs);
    std::string can;
    for (const std::string& other : available_isas()) can += (can.empty() ? "" : ", ") + other;
    throw std::runtime_error(got + ", and one that runs here (" + can + "), got '" + name +
                             "': " + why);
  }
  throw std::runtime_error(got + ", got '" + name + "'");
}

const Kernels& choose() {
  const char* name = std::getenv("FASTADV_CPU_CAPABILITY");
  if (name != nullptr && *name != '\0') return named(name);
  const Isa* best = kIsas;
  for (const Isa& isa : kIsas) {
    if (available(isa)) best = &isa;
  }
  return best->table();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (available(isa)) names.push_back(isa.name);
  }
  return names;
}

bool multiplies_bfloat16() {
#if defined(__x86_64__) && defined(FASTADV_BUILT_avx512)
  return &kernels() == &avx512::table() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

#if defined(__x86_64__)
namespace {

// AMX has no name that all supported compilers know, so the processor is asked: CPUID leaf 7 for
// the instructions, XCR0 bits 17 and 18 for an operating system that saves the tiles.
bool has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kOsxsave = 1u << 27, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsxsave)) return false;
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low >> 17 & 3u) != 3u || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & kAmxBf16) && (d & kAmxTile);
}

}  // namespace

std::vector<std::pair<std::string, bool>> processor_features() {
  return {
      {"avx2", has_avx2()},
      {"fma", bool(__builtin_cpu_supports("fma"))},
      {"avx512f", bool(__builtin_cpu_supports("avx512f"))},
      {"avx512bw", bool(__builtin_cpu_supports("avx512bw"))},
      {"avx512vl", bool(__builtin_cpu_supports("avx512vl"))},
      {"avx512dq", bool(__builtin_cpu_supports("avx512dq"))},
      {"avx512_vnni", bool(__builtin_cpu_supports("avx512vnni"))},
      {"avx512_bf16", bool(__builtin_cpu_supports("avx512bf16"))},
      {"amx_bf16", has_amx_bf16()},
  };
}
#else
std::vector<std::pair<std::string, bool>> processor_features() { return {}; }
#endif

}  // namespace fastadv
