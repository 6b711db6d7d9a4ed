// All steps of an attack on a stack of linear layers, a block of samples at a time: forward, head,
// gradient, step, and again, without leaving this file.
//
// A step costs 4 flops a weight and sample. A block's activations stay in L2, and so each weight
// is read twice a step and block, from L3 or memory: 8 B (bfloat16: 4 B) for 4 kBlock flops. Of
// activations only their slopes are kept.
// 784-512-512-10, 512 samples, one core of an EPYC 9004 (AVX-512): see bench/results/dense.csv.
#include "activations.h"
#include "declare.h"
#include "gemm.h"
#include "sweep.h"
#include "workspace.h"

FASTADV_NAMESPACE_BEGIN

namespace {

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
        const Activated a = activate<kWhich>(z, layer.leak);
        store(v + i, bit_cast<Ints>(a.value));
        store(slopes + i, bit_cast<Ints>(a.slope));
      }
    }
  }
}
using ActivateRows = void (*)(float*, float*, int64_t, const DenseLayer&);
constexpr ActivateRows kActivateRows[kActivations] = {
    activate_rows<kNone>,    activate_rows<kRectified>,  activate_rows<kLeaky>,
    activate_rows<kGelu>,    activate_rows<kGeluByTanh>, activate_rows<kTanh>,
    activate_rows<kSigmoid>,
};

// Rows of whole panels to rows of `size`, in place.
void close_up(float* rows, int64_t count, int64_t size) {
  const int64_t apart = whole_panels(size);
  if (apart == size) return;
  for (int64_t r = 1; r < count; ++r) {
    memmove(rows + r * size, rows + r * apart, size * sizeof(float));
  }
}

bool all_finite(const float* v, int64_t count) {
  Floats rest = {};  // v - v is 0 unless v is no number or infinite
  each_register<float>(count, [&](int64_t i, auto... n) {
    const Floats number = load(v + i, n...);
    rest += number - number;
  });
  float sum = 0;
  for (int lane = 0; lane < kLanes<float>; ++lane) sum += rest[lane];
  return sum == 0;
}

class Block {
 public:
  Block(const DensePgdArgs& args, int64_t most) : args_(args), classes_(args.head.classes) {
    int64_t width = 0, slopes = 0;
    for (int64_t l = 0; l < args.count; ++l) {
      const DenseLayer& layer = args.layers[l];
      const int64_t wider = layer.inputs > layer.outputs ? layer.inputs : layer.outputs;
      width = whole_panels(wider) > width ? whole_panels(wider) : width;
      slopes += whole_panels(layer.outputs);
    }
    const int64_t labels = whole_panels(classes_);
    float* at = workspace(most * (3 * width + slopes + 2 * labels + 4));
    const auto take = [&](int64_t floats) { return (at += most * floats) - most * floats; };
    values_[0] = take(width);
    values_[1] = take(width);
    pairs_ = take(width);
    slopes_ = take(slopes);
    logits_grad_ = take(labels);
    prediction_ = take(labels + 2);  // int64 a sample, or a bool a label
    loss_ = take(2);
  }

  void attack(int64_t first, int64_t count) {
    first_ = first, count_ = count;
    for (int64_t k = 0; k < args_.steps; ++k) {
      float* const logits = forward();
      if (k == 0) check_logits(logits);
      head(logits);
      step(backward());
    }
  }

 private:
  // `to` (count, whole panels of columns) <- `from` (count, depth), `apart` floats between rows.
  void product(const float* from, int64_t apart, int64_t depth, const void* weights,
               int64_t columns, float* to) {
    const int64_t panels = whole_panels(columns) / kPanel;
    const float* const w = static_cast<const float*>(weights);
#if defined(__AVX512F__)
    if (args_.bfloat16) {
      const int64_t pairs = (depth + 1) / 2;
      narrow(from, apart, depth, pairs);
      return multiply<Pairs>({pairs_, pairs, w, to, panels * kPanel, kPanel, pairs}, count_,
                             panels);
    }
#endif
    multiply({from, apart, w, to, panels * kPanel, kPanel, depth}, count_, panels);
  }

#if defined(__AVX512F__)
  void narrow(const float* from, int64_t apart, int64_t depth, int64_t pairs) {
    bfloat16* to = reinterpret_cast<bfloat16*>(pairs_);
    for (int64_t r = 0; r < count_; ++r, from += apart, to += 2 * pairs) {
      if (depth % 2) to[depth].bits = 0;
      each_register<float>(depth, [&](int64_t i, auto... n) {
        const Shorts bits = Pairs::narrow(load(from + i, n...));
        store(to + i, __builtin_convertvector(bits, Ints), n...);
      });
    }
  }
#endif

  float* forward() {
    const float* from = static_cast<const float*>(args_.step.x_adv) + first_ * args_.step.size;
    int64_t apart = args_.step.size;
    float *to = values_[0], *next = values_[1], *slopes = slopes_;
    for (int64_t l = 0; l < args_.count; ++l) {
      const DenseLayer& layer = args_.layers[l];
      product(from, apart, layer.inputs, layer.weights, layer.outputs, to);
      apart = whole_panels(layer.outputs);
      kActivateRows[layer.activation](to, slopes, count_, layer);
      slopes += count_ * apart;
      from = to, to = next, next = const_cast<float*>(from);
    }
    last_slopes_ = slopes;
    float* const logits = const_cast<float*>(from);
    close_up(logits, count_, classes_);
    return logits;
  }

  // As the first logits of any attack are checked.
  void check_logits(const float* logits) {
    for (int64_t i = 0; i < count_ * classes_; ++i) {
      if (!(logits[i] < __builtin_inff())) fail(i / classes_);
    }
  }
  void fail(int64_t sample) { args_.seen[first_ + sample] = __builtin_nanf(""); }

  void head(const float* logits) {
    HeadArgs head = args_.head;
    head.logits = logits;
    head.y = static_cast<const char*>(head.y) + first_ * args_.label_bytes;
    if (head.target) head.target = static_cast<const int64_t*>(head.target) + first_;
    head.loss = loss_;
    head.grad = logits_grad_;
    head.prediction = prediction_;
    head.samples = count_;
    args_.head_kernel(head, 0, count_);
    for (int64_t r = 0; r < count_; ++r) {
      if (loss_[r] != loss_[r]) fail(r);
    }
  }

  float* backward() {
    float *from = logits_grad_, *to = values_[0], *next = values_[1], *slopes = last_slopes_;
    int64_t apart = classes_;
    for (int64_t l = args_.count - 1; l >= 0; --l) {
      const DenseLayer& layer = args_.layers[l];
      const int64_t slopes_apart = whole_panels(layer.outputs);
      slopes -= count_ * slopes_apart;
      if (layer.activation != kNone) {
        for (int64_t r = 0; r < count_; ++r) {
          each_register<float>(layer.outputs, [&](int64_t i, auto... n) {
            const Floats slope = load(slopes + r * slopes_apart + i, n...);
            const Floats g = load(from + r * apart + i, n...) * slope;
            store(from + r * apart + i, bit_cast<Ints>(slope == 0 ? Floats{} : g), n...);
          });
        }
      }
      product(from, apart, layer.outputs, layer.gradient, layer.inputs, to);
      apart = whole_panels(layer.inputs);
      from = to, to = next, next = from;
    }
    close_up(from, count_, args_.step.size);
    return from;
  }

  void step(const float* grad) {
    StepArgs step = args_.step;
    for (int64_t r = 0; r < count_; ++r) {
      if (!all_finite(grad + r * step.size, step.size)) fail(r);
    }
    step.x_adv = static_cast<float*>(step.x_adv) + first_ * step.size;
    step.x = static_cast<const float*>(step.x) + first_ * step.size;
    step.grad = grad;
    step.samples = count_;
    step.step_size = from_first(step.step_size);
    step.radius = from_first(step.radius);
    args_.step_kernel(step, 0, args_.by_element ? count_ * step.size : count_);
  }

  PerSample from_first(PerSample values) const {
    return {static_cast<const float*>(values.data) + first_ * values.stride, values.stride};
  }

  const DensePgdArgs& args_;
  const int64_t classes_;
  int64_t first_ = 0, count_ = 0;
  float *values_[2], *pairs_, *slopes_, *last_slopes_ = nullptr, *logits_grad_, *prediction_,
                                        *loss_;
};

}  // namespace

void dense_pgd(const DensePgdArgs& args, int64_t begin, int64_t end) {
  const int64_t blocks = (end - begin + kBlock - 1) / kBlock;
  if (blocks == 0) return;
  const int64_t most = (end - begin + blocks - 1) / blocks;
  Block block(args, most);
  for (int64_t at = begin; at < end; at += most) {
    block.attack(at, end - at < most ? end - at : most);
  }
}

FASTADV_NAMESPACE_END
