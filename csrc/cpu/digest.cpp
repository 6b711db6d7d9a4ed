// A 64-bit digest of each sample's bits, in the order of memory: equal samples have equal digests,
// and stop="cycle" looks for a repeat. One pass, 4 B read an element in fp32.
#include "declare.h"

FASTADV_NAMESPACE_BEGIN

template <class T>
struct Raw {
  using Type = uint16_t;
};
template <>
struct Raw<float> {
  using Type = uint32_t;
};
template <>
struct Raw<double> {
  using Type = uint64_t;
};

template <class T>
void digest(const DigestArgs& args, int64_t begin, int64_t end) {
  using Bits = typename Raw<T>::Type;
  for (int64_t sample = begin; sample < end; ++sample) {
    const Bits* const bits = static_cast<const Bits*>(args.data) + sample * args.size;
    uint64_t sum = 0;
    for (int64_t i = 0; i < args.size; ++i) sum += digest_share(bits[i], uint64_t(i));
    args.digest[sample] = int64_t(sum);
  }
}

template void digest<float>(const DigestArgs&, int64_t, int64_t);
template void digest<double>(const DigestArgs&, int64_t, int64_t);
template void digest<bfloat16>(const DigestArgs&, int64_t, int64_t);
template void digest<float16>(const DigestArgs&, int64_t, int64_t);

FASTADV_NAMESPACE_END
