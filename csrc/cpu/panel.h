// How a head holds logits in registers, so that one formula serves two classes and thirty thousand.
//
// A panel is an array of registers. With few classes a lane is a sample: register k holds class k
// of kLanes samples, and no reduction ever crosses lanes. With many classes a lane is a class:
// register k holds classes k * kLanes and up of one sample, and reductions end with a butterfly
// over the lanes. Which of the two depends on the number of classes alone, never on the batch: a
// sample's result has the same bits whatever else is in the batch.
#pragma once

#include <new>

#include "simd.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

template <class C>
FASTADV_FN Int<Vector<C>> lane_numbers() {
  Int<Vector<C>> lanes;
  for (int i = 0; i < kLanes<C>; ++i) lanes[i] = i;
  return lanes;
}

// Lane i takes lane i ^ distance.
template <class V, class I>
FASTADV_FN V exchange(V v, [[maybe_unused]] I lanes, int distance) {
#if defined(__clang__)  // it has no shuffle by a vector of lanes, and sees through the loop
  V result;
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) result[i] = v[i ^ distance];
  return result;
#else
  return __builtin_shuffle(v, lanes ^ distance);
#endif
}

// Order of the logits: NaN is the largest, as in torch.argmax and torch.sort.
template <class V>
FASTADV_FN Int<V> greater(V a, V b) {
  return (a <= b ? Int<V>{} : Int<V>{} - 1) & (b == b);
}

// The `kKept` largest values that passed through each lane, with their classes, the largest first
// and the first of equals first: torch.sort(stable=True, descending=True).
template <class C, int kKept>
struct Largest {
  using V = Vector<C>;
  using I = Int<V>;
  V value[kKept];
  I index[kKept];

  FASTADV_FN explicit Largest(I first) {
    for (int m = 0; m < kKept; ++m) {
      value[m] = constant<V>(-__builtin_inf());
      index[m] = m == 0 ? first : I{};
    }
  }
  // From then on everything moves down one place: `ahead` stays set once it is.
  FASTADV_FN void insert(V v, I i) {
    I ahead = {};
    for (int m = 0; m < kKept; ++m) place(v, i, m, ahead |= greater(v, value[m]));
  }
  FASTADV_FN void insert_unordered(V v, I i) {
    I ahead = {};
    for (int m = 0; m < kKept; ++m) {
      const I lower_class = i < index[m];
      ahead |= greater(v, value[m]) | (~greater(value[m], v) & lower_class);
      place(v, i, m, ahead);
    }
  }

 private:
  FASTADV_FN void place(V& v, I& i, int m, I ahead) {
    const V value_below = ahead ? value[m] : v;
    const I index_below = ahead ? index[m] : i;
    value[m] = ahead ? v : value[m];
    index[m] = ahead ? i : index[m];
    v = value_below;
    i = index_below;
  }
};

// rows[i] lane j <-> rows[j] lane i, by exchanging ever larger squares.
template <class C>
FASTADV_FN void transpose(Vector<C> (&rows)[kLanes<C>]) {
  using V = Vector<C>;
  const Int<V> lanes = lane_numbers<C>();
#pragma GCC unroll 4
  for (int d = 1; d < kLanes<C>; d *= 2) {
    const Int<V> second = (lanes & d) != 0;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<C>; ++i) {
      if (i & d) continue;
      const V a = rows[i], b = rows[i | d];
      rows[i] = second ? exchange(b, lanes, d) : a;
      rows[i | d] = second ? b : exchange(a, lanes, d);
    }
  }
}

template <class C>
struct SamplesInLanes {
  using V = Vector<C>;
  using I = Int<V>;
  static constexpr int kSamples = kLanes<C>;
  FASTADV_FN static int64_t registers(int64_t classes) { return classes; }
  FASTADV_FN static I classes_of(int64_t k) { return I{} + decltype(I{}[0])(k); }
  FASTADV_FN static V sum(V v) { return v; }
  template <int kKept>
  FASTADV_FN static void merge(Largest<C, kKept>&) {}
  FASTADV_FN static V pick(const C* panel, int64_t classes, I which) {
    V v = {};
    for (int64_t k = 0; k < classes; ++k)
      v = classes_of(k) == which ? load(panel + k * kSamples) : v;
    return v;
  }
  // Rows of `classes` numbers to a panel and back, in squares. They read, and spoil, up to a
  // register beyond a row: that is the start of the rows after it, or room left behind the last.
  FASTADV_FN static void spread(const C* rows, C* panel, int64_t classes, C) {
    for (int64_t c = 0; c < classes; c += kSamples) {
      V square[kSamples];
      for (int64_t s = 0; s < kSamples; ++s) square[s] = load(rows + s * classes + c);
      transpose<C>(square);
      for (int64_t k = 0; k < kSamples && c + k < classes; ++k) {
        store(panel + (c + k) * kSamples, encode<C>(square[k]));
      }
    }
  }
  FASTADV_FN static void collect(const C* panel, C* rows, int64_t classes) {
    for (int64_t c = (classes - 1) / kSamples * kSamples; c >= 0; c -= kSamples) {
      V square[kSamples];
      for (int64_t k = 0; k < kSamples; ++k) {
        square[k] = c + k < classes ? load(panel + (c + k) * kSamples) : V{};
      }
      transpose<C>(square);
      for (int64_t s = 0; s < kSamples; ++s) store(rows + s * classes + c, encode<C>(square[s]));
    }
  }
};

template <class C>
struct ClassesInLanes {
  using V = Vector<C>;
  using I = Int<V>;
  static constexpr int kSamples = 1;
  FASTADV_FN static int64_t registers(int64_t classes) {
    return (classes + kLanes<C> - 1) / kLanes<C>;
  }
  FASTADV_FN static I classes_of(int64_t k) {
    return lane_numbers<C>() + decltype(I{}[0])(k * kLanes<C>);
  }
  FASTADV_FN static V sum(V v) {
    for (int d = kLanes<C> / 2; d >= 1; d /= 2) v += exchange(v, lane_numbers<C>(), d);
    return v;
  }
  template <int kKept>
  FASTADV_FN static void merge(Largest<C, kKept>& top) {
    for (int d = kLanes<C> / 2; d >= 1; d /= 2) {
      const Largest<C, kKept> mine = top;
      for (int m = 0; m < kKept; ++m) {
        top.insert_unordered(exchange(mine.value[m], lane_numbers<C>(), d),
                             exchange(mine.index[m], lane_numbers<C>(), d));
      }
    }
  }
  FASTADV_FN static V pick(const C* panel, int64_t, I which) {
    return constant<V>(which[0] < 0 ? C(0) : panel[which[0]]);
  }
  // The panel is the row, and `padding` in the lanes beyond the last class.
  FASTADV_FN static void spread(const C*, C* panel, int64_t classes, C padding) {
    for (int64_t c = classes; c < registers(classes) * kLanes<C>; ++c) panel[c] = padding;
  }
  FASTADV_FN static void collect(const C*, C*, int64_t) {}
};

template <class C>
class Aligned {  // `count` zeros, aligned to a cache line
 public:
  explicit Aligned(int64_t count)
      : data_(static_cast<C*>(::operator new(count * sizeof(C), std::align_val_t(64)))) {
    memset(data_, 0, count * sizeof(C));
  }
  ~Aligned() { ::operator delete(data_, std::align_val_t(64)); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  C* data() const { return data_; }

 private:
  C* data_;
};

FASTADV_NAMESPACE_END
