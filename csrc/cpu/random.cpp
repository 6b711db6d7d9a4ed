// U[0, 1) by Philox, a function of (seed, sample, stream, element) alone: a sample's random start
// depends neither on the batch around it, nor on the threads, nor on the device.
#include "declare.h"

FASTADV_NAMESPACE_BEGIN

// float32 takes a word (24 bits of it) an element, float64 two (53 bits).
FASTADV_FN void put(float* out, const Words& w, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = float(w.word[i] >> 8) * 0x1p-24f;
}
FASTADV_FN void put(double* out, const Words& w, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t bits = uint64_t(w.word[2 * i + 1]) << 32 | w.word[2 * i];
    out[i] = double(bits >> 11) * 0x1p-53;
  }
}

template <class C>
void uniform(const UniformArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kEach = 16 / sizeof(C);  // elements a block of four words
  for (int64_t sample = begin; sample < end; ++sample) {
    C* const out = static_cast<C*>(args.out) + sample * args.size;
    const uint64_t index = uint64_t(args.offset + sample);
    for (int64_t i = 0; i < args.size; i += kEach) {
      const Words words = philox(args.seed, uint32_t(i / kEach), args.stream, index);
      put(out + i, words, args.size - i < kEach ? args.size - i : kEach);
    }
  }
}

template void uniform<float>(const UniformArgs&, int64_t, int64_t);
template void uniform<double>(const UniformArgs&, int64_t, int64_t);

FASTADV_NAMESPACE_END
