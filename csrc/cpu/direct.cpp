// y = activation(conv(x) + bias + residual): any kernel, stride, padding and dilation, as products
// of gathered pixels and weights.
//
// A task gathers the pixels under the taps of a block of outputs, kDepth numbers of each at a time,
// multiplies them by all weights of those, and finishes y in registers: 4 B written an element. A
// row of the kernel is one run of memory unless it is dilated: 5 copies for 5x5 taps, not 25. For
// 1x1 there is nothing to gather. Where there are few blocks a task has some of the outputs alone.
#include "declare.h"
#include "epilogue.h"
#include "gemm.h"
#include "sweep.h"
#include "workspace.h"

FASTADV_NAMESPACE_BEGIN

FASTADV_FN void copy(float* to, const float* from, int64_t count) {
  each_register<float>(count, [&](int64_t k, auto... n) {
    store(to + k, bit_cast<Ints>(load(from + k, n...)), n...);
  });
}
FASTADV_FN void zero(float* to, int64_t count) {
  each_register<float>(count, [&](int64_t k, auto... n) { store(to + k, Ints{}, n...); });
}

// Numbers under one tap, or under the taps of a row of the kernel whose pixels are neighbours.
struct Run {
  int64_t row;     // of x, from the first tap's
  int64_t column;  // in numbers, from the first tap's
  int64_t count;
};

// A block of outputs: outputs `first` and up, row by row.
template <class Products>
class Block {
 public:
  Block(const DirectArgs& args, int64_t first, int64_t count)
      : args_(args),
        first_(first),
        count_(count),
        width_((args.outputs + kPanel - 1) / kPanel * kPanel),
        length_(args.width * args.channels),
        reach_{args.dilation[0] * (args.kernel[0] - 1),
               (args.dilation[1] * (args.kernel[1] - 1) + 1) * args.channels},
        sums_(workspace(args.block * (width_ + kDepth) + kDepth)),
        gathered_(sums_ + args.block * width_),
        row_(gathered_ + args.block * kDepth) {}

  // The channels of y from `from` to `until`.
  void run(int64_t from, int64_t until) {
    const int64_t depth = args_.kernel[0] * args_.kernel[1] * args_.channels;
    const bool there = Products::kPerStep == 1 && pixels_are_rows();
    const float* weights = args_.weights;
    for (int64_t begin = 0; begin < depth; begin += kDepth) {
      const int64_t numbers = depth - begin < kDepth ? depth - begin : kDepth;
      const int64_t steps = Products::steps(numbers);
      if (!there) gather(begin, numbers);
      multiply<Products>({.a = there ? args_.x + first_ * args_.channels + begin : gathered_,
                          .a_row = there ? args_.channels : kDepth,
                          .b = weights + from * steps,
                          .c = sums_ + from,
                          .c_row = width_,
                          .group = kPanel,
                          .depth = steps,
                          .add = begin > 0},
                         count_, (until - from + kPanel - 1) / kPanel);
      weights += steps * width_;
    }
    for (int64_t i = 0; i < count_; ++i) write(i, from, until);
  }

 private:
  // Of a 1x1 convolution that skips no pixel: nothing is to be gathered.
  bool pixels_are_rows() const {
    return args_.kernel[0] * args_.kernel[1] == 1 && args_.rows == args_.height &&
           args_.columns == args_.width && args_.padding[0] + args_.padding[1] == 0;
  }

  // Numbers [begin, begin + count) of what each output's taps see.
  void gather(int64_t begin, int64_t count) {
    find_runs(begin, count);
    int64_t column = first_ % args_.columns;
    int64_t row = first_ / args_.columns % args_.rows;
    int64_t sample = first_ / args_.columns / args_.rows;
    for (int64_t i = 0; i < count_; ++i) {
      float* const to = gathered_ + i * kDepth;
      float* const plain = Products::kPerStep == 1 ? to : row_;
      read(sample * args_.height, row * args_.stride[0] - args_.padding[0],
           (column * args_.stride[1] - args_.padding[1]) * args_.channels, plain);
      if constexpr (Products::kPerStep > 1) {
        each_register<float>(count, [&](int64_t k, auto... n) {
          Products::put(to, kPanel, k, load(row_ + k, n...));
        });
      }
      if (++column < args_.columns) continue;
      column = 0;
      if (++row < args_.rows) continue;
      row = 0;
      ++sample;
    }
  }

  void find_runs(int64_t begin, int64_t count) {
    const int64_t runs = args_.dilation[1] == 1 ? 1 : args_.kernel[1];  // in a row of the kernel
    const int64_t length = args_.kernel[1] / runs * args_.channels;
    runs_ = 0;
    for (int64_t at = begin; at < begin + count;) {
      const int64_t run = at / length, left = length - at % length;
      run_[runs_].row = run / runs * args_.dilation[0];
      run_[runs_].column = run % runs * args_.dilation[1] * args_.channels + at % length;
      run_[runs_].count = begin + count - at < left ? begin + count - at : left;
      at += run_[runs_++].count;
    }
  }

  // The runs of an output whose first tap sees row `top` and number `left` of it; `above`: the rows
  // of the samples before.
  void read(int64_t above, int64_t top, int64_t left, float* to) {
    const bool inside =
        top >= 0 && top + reach_[0] < args_.height && left >= 0 && left + reach_[1] <= length_;
    const float* const origin = args_.x + (above + top) * length_ + left;
    for (int64_t i = 0; i < runs_; ++i) {
      const Run& run = run_[i];
      if (inside) {
        copy(to, origin + run.row * length_ + run.column, run.count);
      } else {
        const int64_t row = top + run.row;
        read_clipped(above + row, row >= 0 && row < args_.height, left + run.column, run.count, to);
      }
      to += run.count;
    }
  }

  // Numbers `from` and up of a row of x, with zeros beyond its ends.
  void read_clipped(int64_t row, bool inside, int64_t from, int64_t count, float* to) {
    const int64_t before = from < 0 ? (-from < count ? -from : count) : 0;
    const int64_t last = from + count < length_ ? from + count : length_;
    const int64_t there = inside && last > from + before ? last - from - before : 0;
    zero(to, before);
    if (there > 0) copy(to + before, args_.x + row * length_ + from + before, there);
    zero(to + before + there, count - before - there);
  }

  void write(int64_t i, int64_t from, int64_t until) {
    const float* const sums = sums_ + i * width_;
    each_register<float>(until - from, [&](int64_t at, auto... n) {
      const int64_t k = from + at;
      const Floats bias = args_.bias ? load(args_.bias + k, n...) : Floats{};
      finish(args_, first_ + i, k, load(sums + k) + bias, n...);
    });
    if (is_stored_raw(args_.after)) {
      activate_stored(args_.after, args_.y, args_.outputs, first_ + i, from, until);
    }
  }

  static constexpr int64_t kDepth = kDirectDepth;
  const DirectArgs& args_;
  const int64_t first_, count_, width_;
  const int64_t length_;    // of a row of x, in numbers
  const int64_t reach_[2];  // of the taps: rows, and numbers of a row
  float* const sums_;
  float* const gathered_;
  float* const row_;
  int64_t runs_ = 0;
  Run run_[kDirectTaps + 1];
};

template <class Products>
void convolve_directly(const DirectArgs& args, int64_t begin, int64_t end) {
  const int64_t pixels = args.samples * args.rows * args.columns;
  each_chunk(begin, end, args.outputs, args.chunk, [&](int64_t block, int64_t from, int64_t until) {
    const int64_t first = block * args.block, left = pixels - first;
    Block<Products>(args, first, left < args.block ? left : args.block).run(from, until);
  });
}

// Task i is chunk i % chunks of the outputs of block i / chunks.
void direct(const DirectArgs& args, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  if (args.bfloat16) return convolve_directly<Pairs>(args, begin, end);
#endif
  convolve_directly<Singles>(args, begin, end);
}

FASTADV_NAMESPACE_END
