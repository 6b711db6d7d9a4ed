// y = activation(conv(x) + bias + residual) of each channel by itself, and the gradient of that by
// its input: any kernel, stride, padding and dilation.
//
// A register holds 16 channels of a pixel. A row of y is summed in blocks of kColumns pixels, whose
// sums stay in registers for all taps: 8 multiply-adds for 9 loads. Of a gradient the pixels whose
// distance is the stride see the same taps, and are such a block; no multiplication is by a zero
// that the stride put there. x is read once from memory, and once a row of the kernel from the
// caches; y is written once.
#include "declare.h"
#include "epilogue.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

constexpr int kColumns = 8;

// A tap of a row of the kernel, and which column of the source the first pixel of a class sees
// through it.
struct ColumnTap {
  int64_t tap, first;
};
// The pixels of a row of y that see the same taps: of a gradient those of each stride[1]-th column.
struct ColumnClass {
  int64_t count, taps;  // pixels, and taps
  ColumnTap tap[kDepthwiseTaps];
};
// A row of the source that a row of y sees, through the taps from `tap`.
struct SourceRow {
  const float* pixels;
  int64_t tap;
};

template <bool kGradient>
class Depthwise {
 public:
  explicit Depthwise(const DirectArgs& args)
      : args_(args),
        classes_(kGradient ? args.stride[1] : 1),
        advance_(kGradient ? 1 : args.stride[1]) {
    for (int64_t r = 0; r < classes_; ++r) class_[r] = columns_of(r);
  }

  // Row `task` of y, all samples' after one another.
  void run(int64_t task) {
    find_rows(task / args_.rows, task % args_.rows);
    for (int64_t r = 0; r < classes_; ++r) sum(class_[r], task * args_.columns + r);
    if (!is_stored_raw(args_.after)) return;
    for (int64_t column = 0; column < args_.columns; ++column) {
      const int64_t pixel = task * args_.columns + column;
      activate_stored(args_.after, args_.y, args_.outputs, pixel, 0, args_.outputs);
    }
  }

 private:
  ColumnClass columns_of(int64_t r) const {
    ColumnClass c{(args_.columns - r + classes_ - 1) / classes_, 0, {}};
    for (int64_t q = 0; q < args_.kernel[1]; ++q) {
      int64_t first = q * args_.dilation[1] - args_.padding[1];
      if constexpr (kGradient) {
        const int64_t at = r - first;
        first = (at - (at % classes_ + classes_) % classes_) / classes_;
        if (first * classes_ != at) continue;
      }
      c.tap[c.taps++] = {q, first};
    }
    return c;
  }

  void find_rows(int64_t sample, int64_t row) {
    const int64_t length = args_.width * args_.channels;
    const float* const pixels = args_.x + sample * args_.height * length;
    int64_t last = 0;
    rows_ = 0;
    for (int64_t p = 0; p < args_.kernel[0]; ++p) {
      const int64_t reach = p * args_.dilation[0] - args_.padding[0];
      int64_t at = kGradient ? row - reach : row * args_.stride[0] + reach;
      if (at < 0) continue;
      if constexpr (kGradient) {
        if (at % args_.stride[0]) continue;
        at /= args_.stride[0];
      }
      if (at >= args_.height) continue;
      row_[rows_++] = {pixels + at * length, p * args_.kernel[1]};
      last = at > last ? at : last;
    }
    next_ = pixels + (last + 1) * length;
  }

  // All pixels of a class, the first of which is `first`. A block has all its channels before the
  // next one: with one register of all blocks after the other it took 1.5 times as long, since the
  // lines of a channel fall into a few sets of L1.
  void sum(const ColumnClass& c, int64_t first) {
    int64_t m = 0;
    for (; m + kColumns <= c.count; m += kColumns) sum_block<kColumns>(c, first, m);
    sum_rest<kColumns / 2>(c, first, m);
  }
  template <int B>
  void sum_rest(const ColumnClass& c, int64_t first, int64_t m) {
    if (m + B <= c.count) {
      sum_block<B>(c, first, m);
      m += B;
    }
    if constexpr (B > 1) sum_rest<B / 2>(c, first, m);
  }

  template <int B>
  void sum_block(const ColumnClass& c, int64_t first, int64_t m) {
    const DirectArgs args = args_;  // a copy, of which the compiler knows that no store changes it
    each_register<float>(args.channels,
                         [&](int64_t k, auto... n) { sum_columns<B>(args, c, first, m, k, n...); });
  }

  template <int B, class... N>
  FASTADV_FN void sum_columns(const DirectArgs& args, const ColumnClass& c, int64_t first,
                              int64_t m, int64_t k, N... n) {
    const int64_t begin = m * advance_, apart = advance_ * args.channels, taps = c.taps;
    Floats sum[B];
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) sum[b] = Floats{};
    for (int64_t i = 0; i < rows_; ++i) {
      const SourceRow source = row_[i];
      for (int64_t t = 0; t < taps; ++t) {
        const ColumnTap tap = c.tap[t];
        const int64_t column = tap.first + begin;
        const Floats w = load(args.weights + (source.tap + tap.tap) * args.channels + k, n...);
        const float* const at = source.pixels + column * args.channels + k;
        const bool inside = column >= 0 && column + (B - 1) * advance_ < args.width;
#pragma GCC unroll 8
        for (int b = 0; b < B; ++b) {
          if (!inside && uint64_t(column + b * advance_) >= uint64_t(args.width)) continue;
          sum[b] = multiply_add(load(at + b * apart, n...), w, sum[b]);
        }
      }
    }
    // The rows that the next one of y is the first to see: no processor looks as far ahead.
    const float* ahead = next_ + begin * args.channels + k;
    for (int64_t i = 0; i < (kGradient ? 1 : args.stride[0]); ++i) {
      for (int64_t j = 0; j < B * advance_; ++j) {
        __builtin_prefetch(ahead + j * args.channels, 0, 2);
      }
      ahead += args.width * args.channels;
    }
    const Floats bias = args.bias ? load(args.bias + k, n...) : Floats{};
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      finish(args, first + (m + b) * classes_, k, sum[b] + bias, n...);
    }
  }

  const DirectArgs& args_;
  const int64_t classes_, advance_;  // columns of the source from a pixel of a class to the next
  ColumnClass class_[kDepthwiseStride];
  const float* next_ = nullptr;  // the row after those that are seen
  int64_t rows_ = 0;
  SourceRow row_[kDepthwiseTaps];
};

void depthwise(const DirectArgs& args, int64_t begin, int64_t end) {
  Depthwise<false> rows(args);
  for (int64_t task = begin; task < end; ++task) rows.run(task);
}
void depthwise_gradient(const DirectArgs& args, int64_t begin, int64_t end) {
  Depthwise<true> rows(args);
  for (int64_t task = begin; task < end; ++task) rows.run(task);
}

FASTADV_NAMESPACE_END
