// dx = a convolution's gradient by its input + residual, times slopes: any kernel, stride, padding
// and dilation.
//
// Each pixel of the output's gradient is multiplied by all weights, once: nothing is gathered, and
// no multiplication is by a zero that a stride or a padding put there. The products, taps *
// channels a pixel, stay in L2, in a ring of the rows that the next rows of dx see; there each
// pixel of dx sums those of its taps in registers and is written once.
#include "declare.h"
#include "epilogue.h"
#include "gemm.h"
#include "sweep.h"
#include "workspace.h"

FASTADV_NAMESPACE_BEGIN

// Channels [first, first + count) of rows [begin, end) of the samples from `sample` to `last`.
struct FoldTask {
  int64_t first, count, begin, end, sample, last;
};

template <class Products>
class Fold {
 public:
  Fold(const DirectArgs& args, const FoldTask& task)
      : args_(args),
        task_(task),
        columns_((args.kernel[0] * args.kernel[1] * task.count + kPanel - 1) / kPanel * kPanel),
        pitch_(args.width * columns_),
        from_(task.sample * args.height + first_row(task.begin)),
        to_(task.last * args.height + last_row(task.end - 1) + 1),
        ready_(from_),
        slots_(ring_rows(args)),
        steps_(Products::steps(args.channels)),
        ring_(workspace((slots_ + 1) * pitch_ + kPanel + narrow_floats() +
                        2 * args.columns * args.kernel[1])),
        narrow_(ring_ + (slots_ + 1) * pitch_ + kPanel),
        seen_(reinterpret_cast<int64_t*>(narrow_ + narrow_floats())) {}

  void run() {
    find_columns();
    for (int64_t sample = task_.sample; sample <= task_.last; ++sample) {
      for (int64_t row = task_.begin; row < task_.end; ++row) {
        find_rows(sample, row);
        if (task_.count < kLanes<float> && rows_ > 1) add_rows();
        for (int64_t column = 0; column < args_.columns; ++column) sum(sample, row, column);
      }
    }
  }

 private:
  // The rows of the gradient that see a row of dx are these and those between, by the stride.
  int64_t first_row(int64_t row) const {
    const int64_t reach = args_.dilation[0] * (args_.kernel[0] - 1);
    const int64_t distance = row + args_.padding[0] - reach;
    const int64_t seen = distance > 0 ? (distance + args_.stride[0] - 1) / args_.stride[0] : 0;
    return seen < args_.height ? seen : args_.height;
  }
  int64_t last_row(int64_t row) const {
    const int64_t seen = (row + args_.padding[0]) / args_.stride[0];
    return seen < args_.height ? seen : args_.height - 1;
  }
  static int64_t ring_rows(const DirectArgs& args) {
    const int64_t span = args.dilation[0] * (args.kernel[0] - 1) / args.stride[0];
    return ((span + args.block - 1) / args.block + 1) * args.block;
  }
  int64_t narrow_floats() const {
    const int64_t pixels = args_.block * args_.width;
    // The last row's last register is stored whole: up to a panel more.
    return Products::kPerStep > 1 ? (pixels * steps_ + 2 * kPanel) / kPanel * kPanel : 0;
  }

  // Where in a row of products each column of dx finds its own, kernel[1] places a column.
  void find_columns() {
    const int64_t taps = args_.kernel[1];
    for (int64_t column = 0; column < args_.columns; ++column) {
      int64_t* const places = seen_ + column * taps;
      int64_t n = 0;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t at = column + args_.padding[1] - tap * args_.dilation[1];
        if (at < 0 || at % args_.stride[1] || at / args_.stride[1] >= args_.width) continue;
        places[n++] = at / args_.stride[1] * columns_ + tap * task_.count;
      }
      if (n < taps) places[n] = -1;
    }
  }

  // The rows of products that a row of dx sums, computed where they are not there yet.
  void find_rows(int64_t sample, int64_t row) {
    rows_ = 0;
    for (int64_t tap = 0; tap < args_.kernel[0]; ++tap) {
      const int64_t at = row + args_.padding[0] - tap * args_.dilation[0];
      if (at < 0 || at % args_.stride[0] || at / args_.stride[0] >= args_.height) continue;
      const int64_t seen = sample * args_.height + at / args_.stride[0];
      while (ready_ <= seen) multiply_rows_ahead();
      const float* const products = ring_ + (seen - from_) % slots_ * pitch_;
      row_[rows_++] = products + tap * args_.kernel[1] * task_.count;
    }
  }

  void multiply_rows_ahead() {
    const int64_t count = to_ - ready_ < args_.block ? to_ - ready_ : args_.block;
    const int64_t pixels = count * args_.width;
    const float* const grad = args_.x + ready_ * args_.width * args_.channels;
    Product product{.a = grad,
                    .a_row = args_.channels,
                    .b = args_.weights + task_.first * args_.kernel[0] * args_.kernel[1] * steps_,
                    .c = ring_ + (ready_ - from_) % slots_ * pitch_,
                    .c_row = columns_,
                    .group = kPanel,
                    .depth = steps_};
    if constexpr (Products::kPerStep > 1) {
      for (int64_t i = 0; i < pixels; ++i) {
        each_register<float>(args_.channels, [&](int64_t k, auto... n) {
          Products::put(narrow_ + i * steps_, kPanel, k, load(grad + i * args_.channels + k, n...));
        });
      }
      product.a = narrow_;
      product.a_row = steps_;
    }
    multiply<Products>(product, pixels, columns_ / kPanel);
    ready_ += count;
  }

  // Few channels leave a register's lanes empty: then the rows are added first, all of a pixel's
  // columns at once, and 5x5 taps are 5 + 5 additions of registers, not 25.
  void add_rows() {
    float* const to = ring_ + slots_ * pitch_;
    for (int64_t pixel = 0; pixel < args_.width; ++pixel) {
      for (int64_t k = 0; k < args_.kernel[1] * task_.count; k += kLanes<float>) {
        const int64_t at = pixel * columns_ + k;
        Floats total = load(row_[0] + at);
        for (int64_t i = 1; i < rows_; ++i) total += load(row_[i] + at);
        store(to + at, bit_cast<Ints>(total));
      }
    }
    row_[0] = to;
    rows_ = 1;
  }

  void sum(int64_t sample, int64_t row, int64_t column) {
    const int64_t pixel = (sample * args_.rows + row) * args_.columns + column;
    const int64_t* const places = seen_ + column * args_.kernel[1];
    each_register<float>(task_.count, [&](int64_t k, auto... n) {
      Floats total = {};
      for (int64_t i = 0; i < rows_; ++i) {
        for (int64_t j = 0; j < args_.kernel[1] && places[j] >= 0; ++j) {
          total += load(row_[i] + places[j] + k);  // beyond the channels: what is not stored
        }
      }
      finish(args_, pixel, task_.first + k, total, n...);
    });
  }

  const DirectArgs& args_;
  const FoldTask& task_;
  const int64_t columns_;    // of products, a pixel
  const int64_t pitch_;      // floats, a row of products
  const int64_t from_, to_;  // rows of the gradient, of all samples
  int64_t ready_;            // up to this one
  const int64_t slots_;
  const int64_t steps_;
  float* const ring_;
  float* const narrow_;  // of bfloat16, the rows to be multiplied
  int64_t* const seen_;
  int64_t rows_ = 0;
  const float* row_[kDirectTaps];
};

// Task i: a block of channels, of a band of rows, of one sample or of several small ones.
void fold(const DirectArgs& args, int64_t begin, int64_t end) {
  const int64_t blocks = (args.outputs + kFoldChannels - 1) / kFoldChannels;
  const int64_t bands = (args.rows + args.band - 1) / args.band;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i % blocks * kFoldChannels, left = args.outputs - first;
    const int64_t row = i / blocks % bands * args.band;
    const int64_t sample = i / blocks / bands * args.together;
    const int64_t last = sample + args.together, rows = row + args.band;
    const FoldTask task{first,  left < kFoldChannels ? left : kFoldChannels,
                        row,    rows < args.rows ? rows : args.rows,
                        sample, (last < args.samples ? last : args.samples) - 1};
#if defined(__AVX512F__)
    if (args.bfloat16) {
      Fold<Pairs>(args, task).run();
      continue;
    }
#endif
    Fold<Singles>(args, task).run();
  }
}

FASTADV_NAMESPACE_END
