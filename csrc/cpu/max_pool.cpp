// y = max of the pixels under a window, and which of them it was, a byte an output; and the way
// back of its gradient, + residual, times slopes: channels last, 4 B read a pixel of x and 5 B
// written an output, each once where windows do not overlap. As in torch the first of equals is
// taken, and NaN is.
#include "declare.h"
#include "epilogue.h"
#include "simd.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

// Where a window's or a pixel's range of taps begins and ends: those `at` + tap in [0, size).
struct Range {
  int64_t begin, end;
  Range(int64_t at, int64_t taps, int64_t size)
      : begin(at < 0 ? -at : 0), end(size - at < taps ? size - at : taps) {}
};

// Task i is row i of y, all samples' after one another.
void max_pool(const PoolArgs& args, int64_t begin, int64_t end) {
  const int64_t room = (args.outputs + kPanel - 1) / kPanel * kPanel;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / args.rows;
    const int64_t top = task % args.rows * args.stride[0] - args.padding[0];
    const Range rows(top, args.kernel[0], args.height);
    for (int64_t column = 0; column < args.columns; ++column) {
      const int64_t left = column * args.stride[1] - args.padding[1];
      const Range columns(left, args.kernel[1], args.width);
      const int64_t pixel = task * args.columns + column;
      each_register<float>(args.outputs, [&](int64_t k, auto... n) {
        Floats best = broadcast(-__builtin_inff());
        Ints taken = int32_t(rows.begin * args.kernel[1] + columns.begin) - Ints{};
        for (int64_t i = rows.begin; i < rows.end; ++i) {
          const int64_t row = ((sample * args.height + top + i) * args.width + left) * args.outputs;
          for (int64_t j = columns.begin; j < columns.end; ++j) {
            const Floats v = load(args.x + row + j * args.outputs + k, n...);
            const Ints better = (v > best) | (v != v);
            best = better ? v : best;
            taken = better ? int32_t(i * args.kernel[1] + j) - Ints{} : taken;
          }
        }
        store(args.y + pixel * args.outputs + k, bit_cast<Ints>(best), n...);
        store_bytes(args.taken + pixel * room + k, taken);
      });
    }
  }
}

// The windows that a row, or a column, of x is under: `first` and those before it, as its taps
// `tap`, tap + stride and so on.
struct Windows {
  int64_t first, tap;
  Windows(int64_t at, int64_t stride) : first(at / stride), tap(at % stride) {}
  FASTADV_FN void next(int64_t stride) {  // the next row's: a division takes 20 cycles
    ++tap;
    first += tap == stride;
    tap = tap == stride ? 0 : tap;
  }
  // visit(window, tap)
  template <class Visit>
  FASTADV_FN void each(int64_t taps, int64_t stride, int64_t size, Visit visit) const {
    for (int64_t i = tap, window = first; i < taps && window >= 0; i += stride, --window) {
      if (window < size) visit(window, i);
    }
  }
};

// x is the gradient of the output. Task i is row i of y, which is like the pooled image.
void max_pool_gradient(const PoolArgs& args, int64_t begin, int64_t end) {
  const int64_t room = (args.outputs + kPanel - 1) / kPanel * kPanel;
  int64_t window[kPoolTaps], tap[kPoolTaps];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task / args.rows * args.height;
    const Windows rows(task % args.rows + args.padding[0], args.stride[0]);
    Windows columns(args.padding[1], args.stride[1]);
    for (int64_t column = 0; column < args.columns; ++column, columns.next(args.stride[1])) {
      int64_t windows = 0;
      rows.each(args.kernel[0], args.stride[0], args.height, [&](int64_t row, int64_t i) {
        columns.each(args.kernel[1], args.stride[1], args.width, [&](int64_t at, int64_t j) {
          window[windows] = (first + row) * args.width + at;
          tap[windows++] = i * args.kernel[1] + j;
        });
      });
      each_register<float>(args.outputs, [&](int64_t k, auto... n) {
        Floats total = {};
        for (int64_t w = 0; w < windows; ++w) {
          const Ints taken = load_bytes(args.taken + window[w] * room + k);
          const Floats v = load(args.x + window[w] * args.outputs + k, n...);
          total += taken == int32_t(tap[w]) ? v : Floats{};
        }
        finish(args, task * args.columns + column, k, total, n...);
      });
    }
  }
}

FASTADV_NAMESPACE_END
