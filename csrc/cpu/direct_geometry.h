// Which pixels a convolution's outputs see. An output at (row, column) of a phase sees the pixels
// (row * step + tap), and stands at (row * apart + the phase's own) in y.
#pragma once

#include <cstdint>

#include "../math.h"
#include "kernels.h"

FASTADV_NAMESPACE_BEGIN

struct Tap {
  int64_t row, column;
};

struct Phase {
  int64_t rows, columns;  // its outputs, a sample
  int64_t row, column;    // of its first output in y
  int64_t step[2], apart[2];
  int64_t weights;  // floats from the first phase's weights to its own
  int64_t count;    // taps
  Tap taps[kDirectTaps];
};

// The outputs of a convolution are one phase; of a gradient those that share their distance to the
// stride's grid. Taps are in the order of the pixels under them, the weights' order in Python.
struct Phases {
  int64_t count;
  Phase all[kDirectPhases];

  Phases(const DirectArgs& args, int64_t numbers_a_step)
      : count(args.gradient ? args.stride[0] * args.stride[1] : 1) {
    int64_t weights = 0;
    for (int64_t i = 0; i < count; ++i) {
      Phase& phase = all[i];
      phase.row = i / args.stride[1];
      phase.column = i % args.stride[1];
      for (int axis = 0; axis < 2; ++axis) {
        phase.step[axis] = args.gradient ? 1 : args.stride[axis];
        phase.apart[axis] = args.gradient ? args.stride[axis] : 1;
      }
      phase.rows = (args.rows - phase.row + phase.apart[0] - 1) / phase.apart[0];
      phase.columns = (args.columns - phase.column + phase.apart[1] - 1) / phase.apart[1];
      add_taps(args, phase);
      phase.weights = weights;
      const int64_t depth = phase.count * args.channels;
      const int64_t width = (args.outputs + kPanel - 1) / kPanel * kPanel;
      const int64_t whole = depth / kDirectDepth * kDirectDepth / numbers_a_step;
      weights += (whole + (depth % kDirectDepth + numbers_a_step - 1) / numbers_a_step) * width;
    }
  }

 private:
  static void add_taps(const DirectArgs& args, Phase& phase) {
    phase.count = 0;
    for (int64_t i = 0; i < args.kernel[0]; ++i) {
      for (int64_t j = 0; j < args.kernel[1]; ++j) {
        Tap tap;
        if (place(args, 0, i, phase.row, tap.row) && place(args, 1, j, phase.column, tap.column)) {
          phase.taps[phase.count++] = tap;
        }
      }
    }
  }
  // Where the i-th tap in order falls, and whether an output of the phase sees it.
  static bool place(const DirectArgs& args, int axis, int64_t i, int64_t own, int64_t& at) {
    if (!args.gradient) {
      at = i * args.dilation[axis] - args.padding[axis];
      return true;
    }
    const int64_t tap = args.kernel[axis] - 1 - i;
    const int64_t distance = own + args.padding[axis] - tap * args.dilation[axis];
    at = distance / args.stride[axis];
    return distance % args.stride[axis] == 0;
  }
};

FASTADV_NAMESPACE_END
