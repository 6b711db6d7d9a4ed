// y = activation((x + other) * scale + shift) with its slopes, and the way back of its gradient: a
// batch norm that no convolution took, the sum before it, and the activation after it. Read and
// written are 8 B an element, 4 more of each term, and of slopes 1/8 B where they are two, else 4;
// norm and activation one after the other move 16 and more.
#include "activations.h"
#include "declare.h"
#include "epilogue.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

template <Activation kWhich>
void activate_line(const Epilogue& after, float* y, int64_t channels, int64_t pixel, int64_t begin,
                   int64_t end) {
  const int64_t line = pixel * channels;
  each_register<float>(end - begin, [&](int64_t i, auto... n) {
    const int64_t k = begin + i;
    const Floats v = load(y + line + k, n...);
    const Activated found = activate<kWhich>(v, after.numbers);
    store(y + line + k, bit_cast<Ints>(found.value), n...);
    if constexpr (has_two_slopes(kWhich)) {
      if (!after.signs) return;
      put_signs(after.signs, channels, pixel, k, passes<kWhich>(v, after.numbers));
    } else {
      if (after.slopes) store(after.slopes + line + k, bit_cast<Ints>(found.slope), n...);
    }
  });
}

using ActivateLine = void (*)(const Epilogue&, float*, int64_t, int64_t, int64_t, int64_t);
constexpr ActivateLine kLines[kActivations] = {
    nullptr,  // these two are never stored raw
    nullptr,
    activate_line<kLeaky>,
    activate_line<kGelu>,
    activate_line<kGeluByTanh>,
    activate_line<kTanh>,
    activate_line<kSigmoid>,
    activate_line<kSilu>,
    activate_line<kElu>,
    activate_line<kSoftplus>,
    activate_line<kMish>,
    activate_line<kHardSigmoid>,
    activate_line<kHardSwish>,
    activate_line<kClamped>,
};

void activate_stored(const Epilogue& after, float* y, int64_t channels, int64_t pixel,
                     int64_t begin, int64_t end) {
  kLines[after.activation](after, y, channels, pixel, begin, end);
}

void pointwise(const PointwiseArgs& args, int64_t begin, int64_t end) {
  const Epilogue& after = args.after;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    each_register<float>(args.channels, [&](int64_t k, auto... n) {
      const int64_t at = pixel * args.channels + k;
      Floats v = load(args.x + at, n...);
      if (args.other) v += load(args.other + at, n...);
      v = times_slopes(after, args.channels, pixel, k, v, n...);
      if (args.scale) {
        const Floats scale = load(args.scale + k, n...);
        v = args.shift ? multiply_add(v, scale, load(args.shift + k, n...)) : v * scale;
      }
      if (after.residual) v += load(after.residual + at, n...);
      v = rectify(after, args.channels, pixel, k, v);
      store(args.y + at, bit_cast<Ints>(v), n...);
    });
    if (is_stored_raw(after)) {
      activate_stored(after, args.y, args.channels, pixel, 0, args.channels);
    }
  }
}

FASTADV_NAMESPACE_END
