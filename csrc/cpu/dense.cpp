// All steps of an attack on a stack of linear layers, a block of samples at a time: forward, head,
// gradient, step, and again, without leaving this file; and the passes alone, for autograd.
//
// A step costs 4 flops a weight and sample; all else of it is 2% of its time.
// 784-512-512-10, 512 samples, one core of an EPYC 9004 (AVX-512): 109 GFLOP/s of the 117 that its
// registers can do, with bfloat16 products 208 of 231.
#include "declare.h"
#include "dense_stack.h"

FASTADV_NAMESPACE_BEGIN

namespace {

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

class AttackBlock {
 public:
  static int64_t room(const DensePgdArgs& args) {
    return StackBlock::room(args.stack) + StackBlock::slopes(args.stack) +
           2 * whole_panels(args.head.classes) + 4;
  }

  AttackBlock(const DensePgdArgs& args, float* memory, int64_t most)
      : args_(args), stack_(args.stack, memory, most), classes_(args.head.classes), most_(most) {
    slopes_ = memory + most * StackBlock::room(args.stack);
    grad_ = slopes_ + most * StackBlock::slopes(args.stack);
    prediction_ = grad_ + most * whole_panels(classes_);  // int64 a sample, or a bool a label
    loss_ = prediction_ + most * (whole_panels(classes_) + 2);
  }

  void attack(int64_t first, int64_t count) {
    first_ = first, count_ = count;
    const float* const x_adv = static_cast<float*>(args_.step.x_adv) + first * args_.step.size;
    for (int64_t k = 0; k < args_.steps; ++k) {
      const float* const logits = stack_.forward(x_adv, count, {slopes_, most_, 0});
      if (k == 0) check_logits(logits);
      head(logits);
      step(stack_.backward(grad_, count, {slopes_, most_, 0}));
    }
  }

 private:
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
    head.grad = grad_;
    head.prediction = prediction_;
    head.samples = count_;
    args_.head_kernel(head, 0, count_);
    for (int64_t r = 0; r < count_; ++r) {
      if (loss_[r] != loss_[r]) fail(r);
    }
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
  StackBlock stack_;
  const int64_t classes_, most_;
  int64_t first_ = 0, count_ = 0;
  float *slopes_, *grad_, *prediction_, *loss_;
};

// visit(first, count) on [begin, end) in blocks as equal as can be; most: the largest one.
int64_t largest_block(int64_t samples) {
  const int64_t blocks = (samples + kBlock - 1) / kBlock;
  return (samples + blocks - 1) / blocks;
}
template <class Visit>
void each_block(int64_t begin, int64_t end, int64_t most, Visit visit) {
  for (int64_t at = begin; at < end; at += most) visit(at, end - at < most ? end - at : most);
}

}  // namespace

void dense_pgd(const DensePgdArgs& args, int64_t begin, int64_t end) {
  if (begin == end) return;
  const int64_t most = largest_block(end - begin);
  AttackBlock block(args, workspace(most * AttackBlock::room(args)), most);
  each_block(begin, end, most, [&](int64_t at, int64_t n) { block.attack(at, n); });
}

void dense_pass(const DensePassArgs& args, int64_t begin, int64_t end) {
  if (begin == end) return;
  const DenseLayer* const layers = args.stack.layers;
  const int64_t inputs = layers[0].inputs, outputs = layers[args.stack.count - 1].outputs;
  const int64_t before = args.gradient ? outputs : inputs, after = inputs + outputs - before;
  const int64_t most = largest_block(end - begin);
  StackBlock block(args.stack, workspace(most * StackBlock::room(args.stack)), most);
  each_block(begin, end, most, [&](int64_t at, int64_t n) {
    const float* const from = args.from + at * before;
    const StackBlock::Slopes slopes{args.slopes, args.samples, at};
    const float* const result =
        args.gradient ? block.backward(from, n, slopes) : block.forward(from, n, slopes);
    memcpy(args.to + at * after, result, n * after * sizeof(float));
  });
}

FASTADV_NAMESPACE_END
