// y = relu(x + residual) with a bit for each number that passed, or y = x where such a bit is set:
// the ReLU and its gradient, 8 B read and written an element (12 with a residual), and 1/8 B of
// bits.
#include "declare.h"
#include "signs.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

void relu(const ReluArgs& args, int64_t begin, int64_t end) {
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    each_register<float>(args.channels, [&](int64_t k, auto... n) {
      const int64_t at = pixel * args.channels + k;
      Floats v = load(args.x + at, n...);
      if (args.residual) v += load(args.residual + at, n...);
      if (args.mask) {
        v = get_signs(args.mask, args.channels, pixel, k) ? v : Floats{};
      } else {
        const Ints positive = ~(v <= 0);  // so that NaN passes
        if (args.signs) put_signs(args.signs, args.channels, pixel, k, positive);
        v = positive ? v : Floats{};
      }
      store(args.y + at, bit_cast<Ints>(v), n...);
    });
  }
}

FASTADV_NAMESPACE_END
