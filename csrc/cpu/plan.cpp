#include "plan.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace fastadv {
namespace {

// Every pointer of a call. A new one must be named here, or a plan would go on reading old memory.
static_assert(sizeof(Epilogue) == 64 && sizeof(WinogradArgs) == 184 && sizeof(DirectArgs) == 256 &&
                  sizeof(PoolArgs) == 184 && sizeof(PointwiseArgs) == 120 &&
                  sizeof(LinearArgs) == 96 && sizeof(AttentionArgs) == 312 &&
                  sizeof(NormArgs) == 80 && sizeof(StepArgs) == 120 && sizeof(HeadArgs) == 72 &&
                  sizeof(MeanArgs) == 48 && sizeof(WatchArgs) == 32,
              "does each() name all pointers?");
template <class F>
void each(CopyArgs& a, F f) {
  f(a.from), f(a.to);
}
template <class F>
void each(Epilogue& a, F f) {
  f(a.residual), f(a.signs), f(a.slopes), f(a.mask), f(a.factors);
}
template <class F>
void each(WinogradArgs& a, F f) {
  f(a.x), f(a.weights), f(a.bias), f(a.y), each(a.after, f);
}
template <class F>
void each(DirectArgs& a, F f) {
  f(a.x), f(a.weights), f(a.bias), f(a.y), each(a.after, f);
}
template <class F>
void each(Fold& a, F f) {
  each(a.args, f);
}
template <class F>
void each(Depthwise& a, F f) {
  each(a.args, f);
}
template <class F>
void each(Pool& a, F f) {
  f(a.args.x), f(a.args.taken), f(a.args.y), each(a.args.after, f);
}
template <class F>
void each(PointwiseArgs& a, F f) {
  f(a.x), f(a.other), f(a.scale), f(a.shift), f(a.y), each(a.after, f);
}
template <class F>
void each(LinearArgs& a, F f) {
  f(a.x), f(a.weights), f(a.bias), f(a.residual), f(a.slopes), f(a.y);
}
template <class F>
void each(AttentionArgs& a, F f) {
  for (HeadRows* rows : {&a.q, &a.k, &a.v, &a.o, &a.grad, &a.dq, &a.dk, &a.dv}) f(rows->data);
  f(a.p);
}
template <class F>
void each(NormArgs& a, F f) {
  f(a.x), f(a.grad), f(a.gamma), f(a.beta), f(a.residual), f(a.kept), f(a.y);
}
template <class F>
void each(MeanArgs& a, F f) {
  f(a.x), f(a.y);
}
template <class F>
void each(Step& step, F f) {
  StepArgs& a = step.args;
  f(a.x_adv), f(a.grad), f(a.x), f(a.step_size.data), f(a.radius.data);
  f(a.box.lower), f(a.box.upper);
}
template <class F>
void each(Loss& loss, F f) {
  HeadArgs& a = loss.args;
  f(a.logits), f(a.y), f(a.target), f(a.loss), f(a.grad), f(a.prediction);
}
template <class F>
void each(WatchArgs& a, F f) {
  f(a.x), f(a.met);
}

struct Runner {
  ParallelFor parallel;
  void operator()(const CopyArgs& a) const { run_copy(a, parallel); }
  void operator()(const WinogradArgs& a) const { run_winograd(a, parallel); }
  void operator()(const DirectArgs& a) const { run_direct(a, parallel); }
  void operator()(const Fold& a) const { run_fold(a.args, parallel); }
  void operator()(const Depthwise& a) const { run_depthwise(a.args, a.gradient, parallel); }
  void operator()(const Pool& a) const { run_max_pool(a.args, a.gradient, parallel); }
  void operator()(const PointwiseArgs& a) const { run_pointwise(a, parallel); }
  void operator()(const LinearArgs& a) const { run_linear(a, parallel); }
  void operator()(const AttentionArgs& a) const { run_attention(a, parallel); }
  void operator()(const NormArgs& a) const { run_norm(a, parallel); }
  void operator()(const MeanArgs& a) const { run_mean(a, parallel); }
  void operator()(const Step& s) const { run_step(s.norm, s.dtype, s.args, parallel); }
  void operator()(const Loss& l) const { run_head(l.head, l.dtype, l.args, parallel); }
  void operator()(const WatchArgs& a) const { run_watch(a, parallel); }
};

template <class T>
void copy_line(const CopyArgs& args, const char* from, char* to) {
  for (int64_t i = 0; i < args.sizes[0]; ++i) {
    std::memcpy(to + i * int64_t(sizeof(T)), from + i * args.strides[0], sizeof(T));
  }
}

void copy_line(const CopyArgs& args, const char* from, char* to) {
  if (args.strides[0] == args.bytes) {
    std::memcpy(to, from, args.sizes[0] * args.bytes);
  } else if (args.bytes == 1) {
    copy_line<uint8_t>(args, from, to);
  } else if (args.bytes == 2) {
    copy_line<uint16_t>(args, from, to);
  } else if (args.bytes == 4) {
    copy_line<uint32_t>(args, from, to);
  } else {
    copy_line<uint64_t>(args, from, to);
  }
}

}  // namespace

void run_copy(const CopyArgs& args, ParallelFor parallel) {
  int64_t lines = 1;
  for (int d = 1; d < kCopyDims; ++d) lines *= args.sizes[d];
  const int64_t line = args.sizes[0] * args.bytes;
  if (lines * line == 0) return;
  const auto body = [](int64_t begin, int64_t end, void* context) {
    const CopyArgs& a = *static_cast<const CopyArgs*>(context);
    int64_t at[kCopyDims];  // of the line: a division each would take as long as a short line
    const char* from = static_cast<const char*>(a.from);
    for (int64_t d = 1, left = begin; d < kCopyDims; left /= a.sizes[d], ++d) {
      at[d] = left % a.sizes[d];
      from += at[d] * a.strides[d];
    }
    for (int64_t i = begin; i < end; ++i) {
      copy_line(a, from, static_cast<char*>(a.to) + i * a.sizes[0] * a.bytes);
      for (int64_t d = 1; d < kCopyDims; ++d) {
        from += a.strides[d];
        if (++at[d] < a.sizes[d]) break;
        from -= at[d] * a.strides[d];
        at[d] = 0;
      }
    }
  };
  constexpr int64_t kGrainBytes = 1 << 17;
  parallel(0, lines, std::max<int64_t>(1, kGrainBytes / line), body, const_cast<CopyArgs*>(&args));
}

void move(Plan& plan, const Move* moves, int64_t count) {
  const auto moved = [&](auto*& pointer) {
    using T = std::remove_reference_t<decltype(pointer)>;
    const char* const at = reinterpret_cast<const char*>(pointer);
    for (int64_t i = 0; i < count; ++i) {
      if (at < moves[i].from || at >= moves[i].from + moves[i].bytes) continue;
      pointer = T(const_cast<char*>(moves[i].to + (at - moves[i].from)));
      return;
    }
  };
  for (Call& call : plan.calls) {
    std::visit([&](auto& args) { each(args, moved); }, call);
  }
}

void run(const Plan* const* plans, int64_t count, int64_t times, ParallelFor parallel) {
  for (int64_t i = 0; i < times * count; ++i) {
    for (const Call& call : plans[i % count]->calls) std::visit(Runner{parallel}, call);
  }
}

}  // namespace fastadv
