// o = softmax(scale q k^T) v for each head of each sample, and the gradients by q, k and v.
//
// A head's matrices stay in L1 and L2 (64 tokens of 64: 16 KiB each): read and written once, with
// the strides of whatever they are parts of, so that no pass splits, turns or joins them. The
// probabilities p are kept for the gradient, which is four products: as large as q where there are
// as many tokens as numbers a head. A head of 64 tokens of 64: 16 us, and its gradient 30 (products
// at 109 GFLOP/s alone: 10 and 19; the rest is memory's); in bfloat16 13 and 17.
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

  // Each asks for what it reads next before it multiplies: rows that stand apart come slowly.
  void forward(int64_t sample, int64_t head) {
    read(args_.k, sample, head, 1);
    turned_panels();
    read(args_.q, sample, head, args_.scale);
    fetch(args_.v, sample, head);
    product(rows(x_, width_), width_, length_, s_);
    fetch_next(args_.k, sample, head);
    softmax(kept_of(sample, head));
    read(args_.v, sample, head, 1);
    panels();
    fetch_next(args_.q, sample, head);
    product(rows(s_, length_), length_, width_, c_);
    write(args_.o, sample, head, 1);
  }

  void backward(int64_t sample, int64_t head) {
    read(args_.v, sample, head, 1);
    turned_panels();
    read(args_.grad, sample, head, 1);
    const T* const kept = kept_of(sample, head);
    fetch(kept, length_, length_);
    product(rows(x_, width_), width_, length_, s_);
    panels();  // of grad
    for (int64_t i = 0; i < length_ * length_; i += kLanes<float>) {
      put(p_ + i, i < args_.length * length_ ? load(kept + i) : Floats{});
    }
    fetch(args_.k, sample, head);
    product(turned_rows(p_), length_, width_, c_);
    write(args_.dv, sample, head, 1);
    slopes();
    read(args_.k, sample, head, 1);
    panels();
    fetch(args_.q, sample, head);
    product(rows(s_, length_), length_, width_, c_);
    write(args_.dq, sample, head, args_.scale);
    read(args_.q, sample, head, args_.scale);
    panels();
    fetch_next(args_.v, sample, head);
    fetch_next(args_.grad, sample, head);
    product(turned_rows(s_), length_, width_, c_);
    write(args_.dk, sample, head, 1);
  }

 private:
  static constexpr int64_t kWhole = kPanel * Products::kPerStep;
  static int64_t whole(int64_t size) { return (size + kWhole - 1) / kWhole * kWhole; }
  T* kept_of(int64_t sample, int64_t head) {
    return static_cast<T*>(args_.p) + (sample * args_.heads + head) * args_.length * length_;
  }

  // To L2.
  void fetch(const T* row, int64_t apart, int64_t numbers) {
    for (int64_t i = 0; i < args_.length; ++i, row += apart) {
      for (int64_t k = 0; k < numbers; k += 64 / sizeof(T)) __builtin_prefetch(row + k, 0, 2);
    }
  }
  void fetch(const HeadRows& from, int64_t sample, int64_t head) {
    const T* const rows = static_cast<const T*>(from.data);
    fetch(rows + sample * from.sample + head * from.head, from.row, args_.width);
  }
  void fetch_next(const HeadRows& from, int64_t sample, int64_t head) {
    const bool last = head + 1 == args_.heads;
    if (!last || sample + 1 < args_.samples) {
      fetch(from, last ? sample + 1 : sample, last ? 0 : head + 1);
    }
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

  // Rows of s <- e^(s - max) / sum over the keys there are, and kept. In three sweeps, in each of
  // which a row waits for no other: what sums lanes up takes long, but many can be under way. (NaN
  // is no maximum, and makes its row NaN through the exponentials.)
  void softmax(T* kept) {
    const Ints lane = lane_numbers();
    const Floats lowest = broadcast(-__builtin_inff());
    for (int64_t i = 0; i < args_.length; ++i) {
      float* const s = s_ + i * length_;
      Floats most = lowest;
      for (int64_t k = 0; k < length_; k += kLanes<float>) {
        const Floats v = lane + int32_t(k) < int32_t(args_.length) ? load(s + k) : lowest;
        put(s + k, v);
        most = v > most ? v : most;
      }
      of_row_[i] = largest_of(most);
    }
    for (int64_t i = 0; i < args_.length; ++i) {
      float* const s = s_ + i * length_;
      const float most = of_row_[i];
      Floats sums = {};
      for (int64_t k = 0; k < length_; k += kLanes<float>) {
        const Floats e = exp_of_negative(load(s + k) - most);
        put(s + k, e);
        sums += e;
      }
      of_row_[i] = 1 / sum_of(sums);
    }
    for (int64_t i = 0; i < args_.length; ++i) {
      for (int64_t k = i * length_; k < (i + 1) * length_; k += kLanes<float>) {
        const Floats v = load(s_ + k) * of_row_[i];
        put(s_ + k, v);
        put(kept + k, v);
      }
    }
  }
  static float largest_of(Floats v) {
    float lanes[kLanes<float>];
    memcpy(lanes, &v, sizeof(v));
#pragma GCC unroll 4
    for (int half = kLanes<float> / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) {
        lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
      }
    }
    return lanes[0];
  }

  // Rows of s, the gradient by p, <- that by the scores: p * (s - sum of p * s).
  void slopes() {
    for (int64_t i = 0; i < args_.length; ++i) {
      Floats sums = {};
      for (int64_t k = i * length_; k < (i + 1) * length_; k += kLanes<float>) {
        sums = multiply_add(load(p_ + k), load(s_ + k), sums);
      }
      of_row_[i] = sum_of(sums);
    }
    for (int64_t i = 0; i < args_.length; ++i) {
      for (int64_t k = i * length_; k < (i + 1) * length_; k += kLanes<float>) {
        put(s_ + k, load(p_ + k) * (load(s_ + k) - of_row_[i]));
      }
    }
    const int64_t beyond = (length_ - args_.length) * length_;
    memset(s_ + args_.length * length_, 0, beyond * sizeof(float));
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
  float of_row_[kAttentionMost];
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
