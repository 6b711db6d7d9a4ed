// o = softmax(scale q k^T) v for each head of each sample, and the gradients by q, k and v.
//
// A head's matrices stay in L1 and L2 (64 tokens of 64: 16 KiB each): read and written once, with
// the strides of whatever they are parts of, so that no pass splits, turns or joins them. The
// probabilities p are kept for the gradient, which is four products: as large as q where there are
// as many tokens as numbers a head. A head of 64 tokens of 64: 22 us, and its gradient 37.
#include "declare.h"
#include "elementary.h"
#include "gemm.h"
#include "narrow.h"
#include "sweep.h"
#include "workspace.h"

FASTADV_NAMESPACE_BEGIN

// T: of the tensors. Matrices here are rows of whole registers, zeros beyond their ends.
template <class Products, class T>
class AttentionHead {
 public:
  explicit AttentionHead(const AttentionArgs& args)
      : args_(args), length_(whole(args.length)), width_(whole(args.width)) {
    const int64_t most = length_ > width_ ? length_ : width_;
    const int64_t oblong = length_ * width_, square = length_ * length_;
    x_ = workspace(3 * oblong + 3 * square + length_ * most);
    b_ = x_ + oblong, c_ = b_ + oblong, s_ = c_ + oblong;
    p_ = s_ + square, t_ = p_ + square, a_ = t_ + square;
  }

  void forward(int64_t sample, int64_t head) {
    read(args_.k, sample, head, 1);
    turned_panels();
    read(args_.q, sample, head, args_.scale);
    product(rows(x_, width_), width_, length_, s_);
    T* const kept = kept_of(sample, head);
    for (int64_t i = 0; i < args_.length; ++i) softmax(s_ + i * length_, kept + i * length_);
    read(args_.v, sample, head, 1);
    panels();
    product(rows(s_, length_), length_, width_, c_);
    write(args_.o, sample, head, 1);
  }

  void backward(int64_t sample, int64_t head) {
    read(args_.v, sample, head, 1);
    turned_panels();
    read(args_.grad, sample, head, 1);
    product(rows(x_, width_), width_, length_, s_);
    panels();  // of grad
    const T* const kept = kept_of(sample, head);
    for (int64_t i = 0; i < length_ * length_; i += kLanes<float>) {
      put(p_ + i, i < args_.length * length_ ? load(kept + i) : Floats{});
    }
    product(turned_rows(p_), length_, width_, c_);
    write(args_.dv, sample, head, 1);
    for (int64_t i = 0; i < args_.length; ++i) slopes(p_ + i * length_, s_ + i * length_);
    const int64_t beyond = (length_ - args_.length) * length_;
    memset(s_ + args_.length * length_, 0, beyond * sizeof(float));
    read(args_.k, sample, head, 1);
    panels();
    product(rows(s_, length_), length_, width_, c_);
    write(args_.dq, sample, head, args_.scale);
    read(args_.q, sample, head, args_.scale);
    panels();
    product(turned_rows(s_), length_, width_, c_);
    write(args_.dk, sample, head, 1);
  }

 private:
  static constexpr int64_t kWhole = kPanel * Products::kPerStep;
  static int64_t whole(int64_t size) { return (size + kWhole - 1) / kWhole * kWhole; }
  T* kept_of(int64_t sample, int64_t head) {
    return static_cast<T*>(args_.p) + (sample * args_.heads + head) * args_.length * length_;
  }

  void read(const HeadRows& from, int64_t sample, int64_t head, float scale) {
    const T* row = static_cast<const T*>(from.data) + sample * from.sample + head * from.head;
    for (int64_t i = 0; i < length_; ++i, row += from.row) {
      for (int64_t k = 0; k < width_; k += kLanes<float>) {
        const int64_t left = i < args_.length ? args_.width - k : 0;
        const Floats v = left >= kLanes<float> ? load(row + k)
                         : left > 0            ? load(row + k, left)
                                               : Floats{};
        put(x_ + i * width_ + k, v * scale);
      }
    }
  }
  void write(const HeadRows& to, int64_t sample, int64_t head, float scale) {
    T* row = static_cast<T*>(to.data) + sample * to.sample + head * to.head;
    for (int64_t i = 0; i < args_.length; ++i, row += to.row) {
      each_register<float>(args_.width, [&](int64_t k, auto... n) {
        put(row + k, load(c_ + i * width_ + k) * scale, n...);
      });
    }
  }

  // s <- e^(s - max) / sum over the keys there are, and kept.
  void softmax(float* s, T* kept) {
    const Ints lane = lane_numbers();
    const Floats lowest = broadcast(-__builtin_inff());
    Floats most = lowest;
    for (int64_t k = 0; k < length_; k += kLanes<float>) {
      Floats v = load(s + k);
      v = lane + int32_t(k) < int32_t(args_.length) ? v : lowest;
      put(s + k, v);
      most = (v > most) | (v != v) ? v : most;
    }
    float largest = most[0];
    for (int i = 1; i < kLanes<float>; ++i) {
      largest = most[i] > largest || most[i] != most[i] ? most[i] : largest;
    }
    Floats sums = {};
    for (int64_t k = 0; k < length_; k += kLanes<float>) {
      const Floats e = exp_of_negative(load(s + k) - largest);
      put(s + k, e);
      sums += e;
    }
    const float share = 1 / sum_of(sums);
    for (int64_t k = 0; k < length_; k += kLanes<float>) {
      const Floats v = load(s + k) * share;
      put(s + k, v);
      put(kept + k, v);
    }
  }

  // d, the gradient by p, <- that by the scores: p * (d - sum of p * d).
  void slopes(const float* p, float* d) {
    Floats sums = {};
    for (int64_t k = 0; k < length_; k += kLanes<float>) {
      sums = multiply_add(load(p + k), load(d + k), sums);
    }
    const float mean = sum_of(sums);
    for (int64_t k = 0; k < length_; k += kLanes<float>) {
      put(d + k, load(p + k) * (load(d + k) - mean));
    }
  }

  // What is multiplied: rows of `from`, of `columns` numbers, or of it turned.
  const float* rows(const float* from, int64_t columns) {
    if constexpr (Products::kPerStep == 1) return from;
    for (int64_t i = 0; i < length_ * columns; i += kLanes<float>) {
      Products::put(a_, kPanel, i, load(from + i));
    }
    return a_;
  }
  const float* turned_rows(const float* from) {
    turn(from, length_, length_, length_, t_, length_);
    return rows(t_, length_);
  }

  // b <- x in panels of its columns, the depth its rows.
  void panels() {
    const int64_t steps = length_ / Products::kPerStep;
    for (int64_t k = 0; k < width_; k += kLanes<float>) {
      float* const to = b_ + k / kPanel * steps * kPanel + k % kPanel;
      for (int64_t i = 0; i < steps; ++i) {
        const float* const from = x_ + i * Products::kPerStep * width_ + k;
        if constexpr (Products::kPerStep == 1) {
          put(to + i * kPanel, load(from));
        } else {
          put(to + i * kPanel, Products::pair(load(from), load(from + width_)));
        }
      }
    }
  }
  // b <- x turned in panels of its rows, the depth its columns.
  void turned_panels() {
    const int64_t steps = width_ / Products::kPerStep;
    const float* const from = rows(x_, width_);
    for (int64_t i = 0; i < length_; i += kPanel) {
      turn(from + i * steps, steps, kPanel, steps, b_ + i * steps, kPanel);
    }
  }

  // c (length, columns) <- a (length, depth) b
  void product(const float* a, int64_t depth, int64_t columns, float* c) {
    const int64_t steps = depth / Products::kPerStep;
    multiply<Products>({a, steps, b_, c, columns, kPanel, steps}, length_, columns / kPanel);
  }

  const AttentionArgs& args_;
  const int64_t length_, width_;
  float *x_, *b_, *c_, *s_, *p_, *t_, *a_;
};

template <class Products, class T>
void attend(const AttentionArgs& args, int64_t begin, int64_t end) {
  AttentionHead<Products, T> one(args);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / args.heads, head = task % args.heads;
    if (args.grad.data) {
      one.backward(sample, head);
    } else {
      one.forward(sample, head);
    }
  }
}

// Task i is head i, all samples' after one another.
void attention(const AttentionArgs& args, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  if (args.bfloat16) return attend<Pairs, bfloat16>(args, begin, end);
#endif
  attend<Singles, float>(args, begin, end);
}

FASTADV_NAMESPACE_END
