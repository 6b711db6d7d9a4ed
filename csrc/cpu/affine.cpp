// y = relu(x * scale + shift) with a bit for each number that passed: a batch norm in eval mode
// that no convolution took, and the ReLU after it. Its gradient, y = scale * (x where such a bit is
// set)
// + residual. 8 B read and written an element (12 with a residual), and 1/8 B of bits, where norm
// and ReLU one after the other move 16.
#include "declare.h"
#include "signs.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

void affine_relu(const AffineReluArgs& args, int64_t begin, int64_t end) {
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    each_register<float>(args.channels, [&](int64_t k, auto... n) {
      const int64_t at = pixel * args.channels + k;
      const Floats scale = load(args.scale + k, n...);
      Floats v = load(args.x + at, n...);
      if (args.mask) {
        v = get_signs(args.mask, args.channels, pixel, k) ? v * scale : Floats{};
        if (args.residual) v += load(args.residual + at, n...);
      } else {
        v = multiply_add(v, scale, load(args.shift + k, n...));
        const Ints positive = ~(v <= 0);  // so that NaN passes
        put_signs(args.signs, args.channels, pixel, k, positive);
        v = positive ? v : Floats{};
      }
      store(args.y + at, bit_cast<Ints>(v), n...);
    });
  }
}

FASTADV_NAMESPACE_END
