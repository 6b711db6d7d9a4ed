// Which instruction sets there are, which of them run here, and what this processor has.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fastadv {

// Those that this build has kernels for and this processor can run, worst first.
std::vector<std::string> available_isas();

// The extensions of x86-64 that kernels ask for, and whether the processor and the operating
// system have each. Empty on other architectures.
std::vector<std::pair<std::string, bool>> processor_features();

// Whether the kernels in use multiply bfloat16 (AVX-512 BF16).
bool multiplies_bfloat16();

}  // namespace fastadv
