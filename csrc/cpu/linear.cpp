// y = finish(x W^T + bias) + residual: a linear layer or its gradient, with what follows it. finish
// is nothing, a GELU that leaves its slope for the gradient, or the product with such slopes.
//
// A task multiplies a block of rows by kWide columns of the weights at a time, as many rows as the
// registers hold, and finishes these before the next: what is stored drains while these are
// multiplied, and no pass over memory is made but of x, y and the slopes. 2048 rows, 192 to 768:
// 106 GFLOP/s, with a GELU and its slopes 90; in bfloat16 212 and 149.
#include "activations.h"
#include "declare.h"
#include "gemm.h"
#include "narrow.h"
#include "sweep.h"
#include "workspace.h"

FASTADV_NAMESPACE_BEGIN

template <class Products>
class LinearBlock {
 public:
  LinearBlock(const LinearArgs& args, int64_t first, int64_t rows)
      : args_(args),
        first_(first),
        rows_(rows),
        width_((args.outputs + kPanel - 1) / kPanel * kPanel),
        row_(Products::steps(args.inputs)),
        sums_(workspace(kRows * kWide + args.block * row_)) {}

  // The outputs from `begin` to `end`.
  void run(int64_t begin, int64_t end) {
    place();
    for (int64_t column = begin; column < end; column += kWide) {
      const int64_t left = end - column, columns = left < kWide ? left : kWide;
      int64_t row = 0;
      for (int64_t groups = (rows_ + kRows - 1) / kRows; groups > 0; --groups) {
        const int64_t rows = (rows_ - row + groups - 1) / groups;  // as equal as can be
        fetch(row, rows, column, columns);
        multiply_rows_by(row, rows, column, columns);
        finish(row, rows, column, columns);
        row += rows;
      }
    }
  }

 private:
  // The rows as they are multiplied: where they are, or gathered as pairs.
  void place() {
    const int64_t inputs = args_.inputs;
    if constexpr (Products::kPerStep == 1) {
      rows_of_a_ = static_cast<const float*>(args_.x) + first_ * inputs;
    } else if (args_.narrow_x && inputs % 2 == 0) {
      rows_of_a_ = static_cast<const float*>(args_.x) + first_ * inputs / 2;
    } else {
      float* const to = sums_ + kRows * kWide;
      for (int64_t i = 0; i < rows_; ++i) {
        bfloat16* const row = reinterpret_cast<bfloat16*>(to + i * row_);
        if (inputs % 2) row[inputs].bits = 0;
        if (args_.narrow_x) {
          memcpy(row, static_cast<const bfloat16*>(args_.x) + (first_ + i) * inputs, inputs * 2);
        } else {
          const float* const from = static_cast<const float*>(args_.x) + (first_ + i) * inputs;
          each_register<float>(
              inputs, [&](int64_t k, auto... n) { put(row + k, load(from + k, n...), n...); });
        }
      }
      rows_of_a_ = to;
    }
  }

  // What finish() is going to read and write.
  void fetch(int64_t row, int64_t rows, int64_t column, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (first_ + row + i) * args_.outputs + column;
      const char* const y = static_cast<const char*>(args_.y) + at * (args_.narrow_y ? 2 : 4);
      const char* const slopes = static_cast<const char*>(args_.slopes);
      constexpr int64_t kSlope = 4 / Products::kPerStep;
      for (int64_t k = 0; k < columns; k += kPanel) {
        __builtin_prefetch(y + k * (args_.narrow_y ? 2 : 4), 1);
        if (args_.residual) __builtin_prefetch(args_.residual + at + k);
        if (args_.slopes) __builtin_prefetch(slopes + (at + k) * kSlope);
      }
    }
  }

  void multiply_rows_by(int64_t row, int64_t rows, int64_t column, int64_t columns) {
    const float* weights = args_.weights;
    for (int64_t begin = 0; begin < args_.inputs; begin += kDirectDepth) {
      const int64_t left = args_.inputs - begin;
      const int64_t steps = Products::steps(left < kDirectDepth ? left : kDirectDepth);
      multiply<Products>({.a = rows_of_a_ + row * row_ + begin / Products::kPerStep,
                          .a_row = row_,
                          .b = weights + column * steps,
                          .c = sums_,
                          .c_row = kWide,
                          .group = kPanel,
                          .depth = steps,
                          .add = begin > 0},
                         rows, (columns + kPanel - 1) / kPanel);
      weights += steps * width_;
    }
  }

  void finish(int64_t row, int64_t rows, int64_t column, int64_t columns) {
    const int64_t first = first_ + row;
#if defined(__AVX512F__)
    if constexpr (Products::kPerStep > 1) {
      if (args_.narrow_y) return finish_as<bfloat16, bfloat16>(first, rows, column, columns);
      return finish_as<float, bfloat16>(first, rows, column, columns);
    }
#endif
    finish_as<float, float>(first, rows, column, columns);
  }
  template <class Y, class Slope>
  void finish_as(int64_t first, int64_t rows, int64_t column, int64_t columns) {
    switch (args_.finish) {
      case kGeluSlopes:
        return finish_rows<kGeluSlopes, Y, Slope>(first, rows, column, columns);
      case kGeluByTanhSlopes:
        return finish_rows<kGeluByTanhSlopes, Y, Slope>(first, rows, column, columns);
      case kTimesSlopes:
        return finish_rows<kTimesSlopes, Y, Slope>(first, rows, column, columns);
      default:
        return finish_rows<kUnfinished, Y, Slope>(first, rows, column, columns);
    }
  }
  template <Finish kWhich, class Y, class Slope>
  void finish_rows(int64_t first, int64_t rows, int64_t column, int64_t columns) {
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (first + i) * args_.outputs + column;
      const float* const sums = sums_ + i * kWide;
      each_register<float>(columns, [&](int64_t k, auto... n) {
        Floats v = load(sums + k);
        if (args_.bias) v += load(args_.bias + column + k, n...);
        Slope* const slopes = static_cast<Slope*>(args_.slopes) + at + k;
        if constexpr (kWhich == kTimesSlopes) {
          v *= load(slopes, n...);
        } else if constexpr (kWhich != kUnfinished) {
          const Activated a = kWhich == kGeluSlopes ? gelu(v) : gelu_by_tanh(v);
          put(slopes, a.slope, n...);
          v = a.value;
        }
        if (args_.residual) v += load(args_.residual + at + k, n...);
        put(static_cast<Y*>(args_.y) + at + k, v, n...);
      });
    }
  }

  const LinearArgs& args_;
  const int64_t first_, rows_, width_;
  const int64_t row_;  // floats of a row as it is multiplied
  float* const sums_;
  const float* rows_of_a_ = nullptr;
};

template <class Products>
void multiply_rows_of(const LinearArgs& args, int64_t begin, int64_t end) {
  each_chunk(begin, end, args.outputs, args.chunk, [&](int64_t block, int64_t from, int64_t until) {
    const int64_t first = block * args.block, left = args.rows - first;
    LinearBlock<Products>(args, first, left < args.block ? left : args.block).run(from, until);
  });
}

// Task i is chunk i % chunks of the outputs of block i / chunks.
void linear(const LinearArgs& args, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  if (args.bfloat16) return multiply_rows_of<Pairs>(args, begin, end);
#endif
  multiply_rows_of<Singles>(args, begin, end);
}

FASTADV_NAMESPACE_END
