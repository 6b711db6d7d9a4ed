// A hash of a block of weights: whether any bit of them was written since. One pass, at the speed
// of memory: a 32x32 bit multiplication for 8 B, keyed by the place (the inner loop of XXH3, by Y.
// Collet).
#include "declare.h"
#include "simd.h"

FASTADV_NAMESPACE_BEGIN

typedef uint64_t Words64 __attribute__((vector_size(kRegister)));

void fingerprint(const FingerprintArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kWords = 8;  // 64 B a step, in registers of any ISA: the hash is the same
  constexpr int kParts = 64 / kRegister, kEach = kRegister / 8;
  for (int64_t block = begin; block < end; ++block) {
    const uint64_t* const data =
        static_cast<const uint64_t*>(args.data) + block * kFingerprintWords;
    const int64_t left = args.words - block * kFingerprintWords;
    const int64_t count = left < kFingerprintWords ? left : kFingerprintWords;
    uint64_t keys[kWords];
    for (int i = 0; i < int(kWords); ++i) keys[i] = 0x9E3779B97F4A7C15u * (2 * i + 1);
    Words64 sum[kParts] = {}, key[kParts];
    memcpy(key, keys, sizeof(key));
    for (int64_t at = 0; at < count; at += kWords) {
      uint64_t words[kWords] = {};
      const bool whole = at + kWords <= count;
      if (!whole) memcpy(words, data + at, (count - at) * 8);
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        Words64 word;
        memcpy(&word, (whole ? data + at : words) + part * kEach, sizeof(word));
        const Words64 keyed = word ^ key[part];
        sum[part] += (keyed & 0xffffffffu) * (keyed >> 32) + (word << 32 | word >> 32);
        key[part] += 0xC2B2AE3D27D4EB4Fu;
      }
    }
    uint64_t total = 0;
    for (int i = 0; i < int(kWords); ++i) {
      total = (total ^ sum[i / kEach][i % kEach]) * 0xD6E8FEB86659FD93u;
      total ^= total >> 32;
    }
    args.sums[block] = total;
  }
}

FASTADV_NAMESPACE_END
