// A stack of linear layers on a block of samples: forward, and the gradient back to its input.
//
// A block's activations stay in L2, and so each weight is read once a pass and block, from L3 or
// memory: 4 B (bfloat16: 2 B) for 2 kBlock flops. Of activations only their slopes are kept.
#pragma once

#include "activations.h"
#include "gemm.h"
#include "sweep.h"
#include "workspace.h"

FASTADV_NAMESPACE_BEGIN

constexpr int64_t kBlock = 56;  // samples; a multiple of the 7 rows that gemm.h takes at once

FASTADV_FN int64_t whole_panels(int64_t size) { return (size + kPanel - 1) / kPanel * kPanel; }

// v <- activation(v + bias), and its slopes there; rows of whole panels.
template <Activation kWhich>
void activate_rows(float* v, float* slopes, int64_t rows, const DenseLayer& layer) {
  const int64_t width = whole_panels(layer.outputs);
  for (int64_t r = 0; r < rows; ++r, v += width, slopes += width) {
    for (int64_t i = 0; i < width; i += kLanes<float>) {
      const Floats z = load(v + i) + load(layer.bias + i);
      if constexpr (kWhich == kNone) {
        store(v + i, bit_cast<Ints>(z));
      } else {
        const Activated a = activate<kWhich>(z, &layer.leak);
        store(v + i, bit_cast<Ints>(a.value));
        store(slopes + i, bit_cast<Ints>(a.slope));
      }
    }
  }
}
using ActivateRows = void (*)(float*, float*, int64_t, const DenseLayer&);
constexpr ActivateRows kActivateRows[kDenseActivations] = {
    activate_rows<kNone>,    activate_rows<kRectified>,  activate_rows<kLeaky>,
    activate_rows<kGelu>,    activate_rows<kGeluByTanh>, activate_rows<kTanh>,
    activate_rows<kSigmoid>,
};

// Rows of whole panels to rows of `size`, in place.
inline void close_up(float* rows, int64_t count, int64_t size) {
  const int64_t apart = whole_panels(size);
  if (apart == size) return;
  for (int64_t r = 1; r < count; ++r) {
    memmove(rows + r * size, rows + r * apart, size * sizeof(float));
  }
}

class StackBlock {
 public:
  // The floats of working memory that a sample takes.
  static int64_t room(const DenseStack& stack) { return 3 * widest(stack); }
  // All panels of slopes that a sample has.
  static int64_t slopes(const DenseStack& stack) {
    int64_t floats = 0;
    for (int64_t l = 0; l < stack.count; ++l) floats += whole_panels(stack.layers[l].outputs);
    return floats;
  }

  // `memory`: room for `most` samples.
  StackBlock(const DenseStack& stack, float* memory, int64_t most)
      : stack_(stack),
        values_{memory, memory + most * widest(stack)},
        pairs_(memory + 2 * most * widest(stack)) {}

  // Where a block's slopes stand among those of `samples` samples, a layer's of all together.
  struct Slopes {
    float* all;
    int64_t samples, first;
  };

  // (count, outputs) <- (count, inputs); overwritten by the next call.
  float* forward(const float* from, int64_t count, Slopes slopes) {
    float *to = values_[0], *next = values_[1];
    int64_t apart = stack_.layers[0].inputs;
    for (int64_t l = 0; l < stack_.count; ++l) {
      const DenseLayer& layer = stack_.layers[l];
      const int64_t width = whole_panels(layer.outputs);
      product(from, apart, count, layer.inputs, layer.weights, layer.outputs, to);
      kActivateRows[layer.activation](to, slopes.all + slopes.first * width, count, layer);
      slopes.all += slopes.samples * width;
      from = to, to = next, next = const_cast<float*>(from);
      apart = width;
    }
    close_up(next, count, stack_.layers[stack_.count - 1].outputs);
    return next;
  }

  // (count, inputs) <- (count, outputs), and it may be `grad` that forward() gave the room of.
  float* backward(const float* grad, int64_t count, Slopes slopes) {
    float *from = values_[1], *to = values_[0];
    int64_t apart = stack_.layers[stack_.count - 1].outputs;
    memmove(from, grad, count * apart * sizeof(float));
    slopes.all += slopes.samples * StackBlock::slopes(stack_);
    for (int64_t l = stack_.count - 1; l >= 0; --l) {
      const DenseLayer& layer = stack_.layers[l];
      const int64_t width = whole_panels(layer.outputs);
      slopes.all -= slopes.samples * width;
      if (layer.activation != kNone) {
        times_slopes(from, apart, slopes.all + slopes.first * width, width, count, layer.outputs);
      }
      product(from, apart, count, layer.outputs, layer.gradient, layer.inputs, to);
      apart = whole_panels(layer.inputs);
      float* const last = from;
      from = to, to = last;
    }
    close_up(from, count, stack_.layers[0].inputs);
    return from;
  }

 private:
  static int64_t widest(const DenseStack& stack) {
    int64_t width = 0;
    for (int64_t l = 0; l < stack.count; ++l) {
      const int64_t inputs = stack.layers[l].inputs, outputs = stack.layers[l].outputs;
      const int64_t wider = whole_panels(inputs > outputs ? inputs : outputs);
      width = wider > width ? wider : width;
    }
    return width;
  }

  // `to` (count, whole panels of columns) <- `from` (count, depth), `apart` floats between rows.
  void product(const float* from, int64_t apart, int64_t count, int64_t depth, const void* weights,
               int64_t columns, float* to) {
    const int64_t panels = whole_panels(columns) / kPanel;
    const float* const w = static_cast<const float*>(weights);
#if defined(__AVX512F__)
    if (stack_.bfloat16) {
      const int64_t pairs = (depth + 1) / 2;
      narrow(from, apart, count, depth, pairs);
      return multiply<Pairs>({pairs_, pairs, w, to, panels * kPanel, kPanel, pairs}, count, panels);
    }
#endif
    multiply({from, apart, w, to, panels * kPanel, kPanel, depth}, count, panels);
  }

#if defined(__AVX512F__)
  void narrow(const float* from, int64_t apart, int64_t count, int64_t depth, int64_t pairs) {
    bfloat16* to = reinterpret_cast<bfloat16*>(pairs_);
    for (int64_t r = 0; r < count; ++r, from += apart, to += 2 * pairs) {
      if (depth % 2) to[depth].bits = 0;
      each_register<float>(depth, [&](int64_t i, auto... n) {
        const Shorts bits = Pairs::narrow(load(from + i, n...));
        store(to + i, __builtin_convertvector(bits, Ints), n...);
      });
    }
  }
#endif

  // A slope of 0 stops any gradient, as a ReLU does in torch.
  static void times_slopes(float* grad, int64_t apart, const float* slopes, int64_t slopes_apart,
                           int64_t count, int64_t size) {
    for (int64_t r = 0; r < count; ++r, grad += apart, slopes += slopes_apart) {
      each_register<float>(size, [&](int64_t i, auto... n) {
        const Floats slope = load(slopes + i, n...), g = load(grad + i, n...) * slope;
        store(grad + i, bit_cast<Ints>(slope == 0 ? Floats{} : g), n...);
      });
    }
  }

  const DenseStack& stack_;
  float *values_[2], *pairs_;
};

FASTADV_NAMESPACE_END
