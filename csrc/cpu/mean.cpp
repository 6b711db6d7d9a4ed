// y = the mean of a sample's pixels, a channel, or each pixel x / pixels: a pooling over all of an
// image and its gradient, channels last, 4 B read, or written, a number of the image. A register's
// channels are summed in the order of the pixels, kSummed in a row, as gemm.h says: of 50,000
// pixels in one row 80 times as much was rounded.
#include "declare.h"
#include "gemm.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

void mean(const MeanArgs& args, int64_t begin, int64_t end) {
  const Floats pixels = broadcast(float(args.pixels));
  for (int64_t sample = begin; sample < end; ++sample) {
    const int64_t row = sample * args.channels, image = row * args.pixels;
    if (args.gradient) {
      each_register<float>(args.channels, [&](int64_t k, auto... n) {
        const Floats share = load(args.x + row + k, n...) / pixels;
        for (int64_t p = 0; p < args.pixels; ++p) {
          store(args.y + image + p * args.channels + k, bit_cast<Ints>(share), n...);
        }
      });
      continue;
    }
    each_register<float>(args.channels, [&](int64_t k, auto... n) {
      const float* const x = args.x + image + k;
      Floats total{};
      for (int64_t first = 0; first < args.pixels; first += kSummed) {
        const int64_t last = first + kSummed < args.pixels ? first + kSummed : args.pixels;
        Floats sum{};
        for (int64_t p = first; p < last; ++p) sum += load(x + p * args.channels, n...);
        total += sum;
      }
      store(args.y + row + k, bit_cast<Ints>(total / pixels), n...);
    });
  }
}

FASTADV_NAMESPACE_END
