// y = the mean of a sample's pixels, a channel, or each pixel x / pixels: a pooling over all of an
// image and its gradient, channels last, 4 B read, or written, a number of the image. A register's
// channels are summed in the order of the pixels.
#include "declare.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

void mean(const MeanArgs& args, int64_t begin, int64_t end) {
  const Floats pixels = broadcast(float(args.pixels));
  for (int64_t sample = begin; sample < end; ++sample) {
    const int64_t row = sample * args.channels, image = row * args.pixels;
    each_register<float>(args.channels, [&](int64_t k, auto... n) {
      Floats sum{};
      if (args.gradient) sum = load(args.x + row + k, n...) / pixels;
      for (int64_t p = 0; p < args.pixels; ++p) {
        const int64_t at = image + p * args.channels + k;
        if (args.gradient) {
          store(args.y + at, bit_cast<Ints>(sum), n...);
        } else {
          sum += load(args.x + at, n...);
        }
      }
      if (!args.gradient) store(args.y + row + k, bit_cast<Ints>(sum / pixels), n...);
    });
  }
}

FASTADV_NAMESPACE_END
