// y = relu(conv(x) + bias + residual), or a convolution's gradient by its input, masked: any
// kernel, stride, padding and dilation, as products of gathered pixels and weights.
//
// A gradient of stride s falls into s * s phases: outputs of one phase see the same taps, and each
// phase is a convolution of stride 1 of its own, so no multiplication is by a zero that the stride
// put there. A task gathers the pixels under the taps of a block of outputs, kDepth numbers of each
// at a time, multiplies them by all weights of those, and finishes y in registers: 4 B written an
// element.
#include "declare.h"
#include "direct_geometry.h"
#include "epilogue.h"
#include "gemm.h"
#include "sweep.h"
#include "workspace.h"

FASTADV_NAMESPACE_BEGIN

// Numbers [begin, begin + count) of what an output's taps see, one tap's channels after the other.
FASTADV_FN void gather(const DirectArgs& args, const Phase& phase, int64_t sample, int64_t row,
                       int64_t column, int64_t begin, int64_t count, float* to) {
  int64_t tap = begin / args.channels, channel = begin % args.channels;
  while (count > 0) {
    const int64_t n = count < args.channels - channel ? count : args.channels - channel;
    const int64_t r = row * phase.step[0] + phase.taps[tap].row;
    const int64_t c = column * phase.step[1] + phase.taps[tap].column;
    if (r >= 0 && r < args.height && c >= 0 && c < args.width) {
      const int64_t pixel = (sample * args.height + r) * args.width + c;
      memcpy(to, args.x + pixel * args.channels + channel, n * sizeof(float));
    } else {
      memset(to, 0, n * sizeof(float));
    }
    to += n;
    count -= n;
    channel = 0;
    ++tap;
  }
}

// A block of outputs of one phase: outputs `first` and up, in the phase's own order.
template <class Products>
class Block {
 public:
  Block(const DirectArgs& args, const Phase& phase, int64_t first, int64_t count)
      : args_(args),
        phase_(phase),
        first_(first),
        count_(count),
        width_((args.outputs + kPanel - 1) / kPanel * kPanel),
        sums_(workspace(args.block * (width_ + kDepth) + kDepth)),
        gathered_(sums_ + args.block * width_),
        row_(gathered_ + args.block * kDepth) {}

  void run() {
    const int64_t depth = phase_.count * args_.channels;
    const float* weights = args_.weights + phase_.weights;
    if (depth == 0) memset(sums_, 0, count_ * width_ * sizeof(float));
    for (int64_t begin = 0; begin < depth; begin += kDepth) {
      const int64_t numbers = depth - begin < kDepth ? depth - begin : kDepth;
      const int64_t steps = Products::steps(numbers);
      for (int64_t i = 0; i < count_; ++i) read(i, begin, numbers);
      multiply<Products>({.a = gathered_,
                          .a_row = kDepth,
                          .b = weights,
                          .c = sums_,
                          .c_row = width_,
                          .group = kPanel,
                          .depth = steps,
                          .add = begin > 0},
                         count_, width_ / kPanel);
      weights += steps * width_;
    }
    for (int64_t i = 0; i < count_; ++i) write(i);
  }

 private:
  void read(int64_t i, int64_t begin, int64_t numbers) {
    const int64_t index = first_ + i, in_row = index / phase_.columns;
    const int64_t sample = in_row / phase_.rows, row = in_row % phase_.rows;
    float* const to = gathered_ + i * kDepth;
    float* const plain = Products::kPerStep == 1 ? to : row_;
    gather(args_, phase_, sample, row, index % phase_.columns, begin, numbers, plain);
    if constexpr (Products::kPerStep > 1) {
      each_register<float>(numbers, [&](int64_t k, auto... n) {
        Products::put(to, kPanel, k, load(plain + k, n...));
      });
    }
  }

  void write(int64_t i) {
    const int64_t index = first_ + i, in_row = index / phase_.columns;
    const int64_t sample = in_row / phase_.rows;
    const int64_t row = in_row % phase_.rows * phase_.apart[0] + phase_.row;
    const int64_t column = index % phase_.columns * phase_.apart[1] + phase_.column;
    const int64_t pixel = (sample * args_.rows + row) * args_.columns + column;
    const float* const from = sums_ + i * width_;
    each_register<float>(args_.outputs, [&](int64_t k, auto... n) {
      const Floats bias = args_.bias ? load(args_.bias + k, n...) : Floats{};
      finish(args_, pixel, k, load(from + k) + bias, n...);
    });
  }

  static constexpr int64_t kDepth = kDirectDepth;
  const DirectArgs& args_;
  const Phase& phase_;
  const int64_t first_, count_, width_;
  float* const sums_;
  float* const gathered_;
  float* const row_;
};

template <class Products>
void convolve_directly(const DirectArgs& args, int64_t begin, int64_t end) {
  const Phases phases(args, Products::kPerStep);
  for (int64_t task = begin; task < end; ++task) {
    const Phase& phase = phases.all[task % phases.count];
    const int64_t pixels = args.samples * phase.rows * phase.columns;
    const int64_t first = task / phases.count * args.block;
    if (first >= pixels) continue;
    const int64_t count = pixels - first < args.block ? pixels - first : args.block;
    Block<Products>(args, phase, first, count).run();
  }
}

// Task i is block i / phases of phase i % phases.
void direct(const DirectArgs& args, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  if (args.bfloat16) return convolve_directly<Pairs>(args, begin, end);
#endif
  convolve_directly<Singles>(args, begin, end);
}

FASTADV_NAMESPACE_END
