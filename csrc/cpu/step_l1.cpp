// x_adv <- the point nearest to v in {||. - x||_1 <= radius} and the box (Croce and Hein
// 2103.01208, proposition 2.1), v = x_adv + step_size * sign(grad) / m on the m largest |grad|
// (SLIDE, Tramer and Boneh 1904.13000).
//
// With u = v - x and cap_i the distance from x_i to the box on u_i's side, the projection is
// sign(u_i) * min(max(|u_i| - t, 0), cap_i), and t >= 0 the root of a falling, piecewise linear
// function, found by Newton's method inside a bracket.
//
// One pass reads everything (12 B an element in fp32) and packs the elements that matter: where
// x_adv left x, or |grad| may be among the largest. A step moves 1%, and the projection of an
// attack under way leaves no more than that off x, so what follows works on a twentieth of the
// sample, in a cache, and writes back no more than that.
#include "../sample.h"
#include "declare.h"
#include "select.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

template <class T, class G, bool kHasX>
struct Sample {
  T* x_adv;
  const G* grad;
  const T* x;
  int64_t size;
  Sample(const StepArgs& args, int64_t sample)
      : x_adv(static_cast<T*>(args.x_adv) + sample * args.size),
        grad(static_cast<const G*>(args.grad) + sample * args.size),
        x(static_cast<const T*>(args.x) + (kHasX ? sample * args.size : 0)),
        size(args.size) {}
  template <class... N>
  FASTADV_FN Vector<T> origin(int64_t k, N... n) const {
    return kHasX ? load(x + (kHasX ? k : 0), n...) : Vector<T>{};
  }
};

// The steepest step, or the raw gradient times `stride`.
template <class C>
struct Direction {
  using V = Vector<C>;
  bool steepest;
  V smallest;  // the least |grad| that moves
  V stride;    // what each of them moves
  FASTADV_FN V of(V grad) const {
    const V signed_stride = turn(grad, grad) >= smallest ? stride * sign(grad) : V{};
    return steepest ? signed_stride : stride * grad;
  }
};

// The elements that matter, packed, in the memory of a thread.
template <class C>
struct Elements {
  static constexpr int kArrays = 8;
  Scratch<C> memory;
  C *index, *point, *origin, *grad;  // index: an integer's bits
  C *magnitude, *cap;  // |u|, and how far the box lets it go; before that, room for the select
  C *lower, *upper;    // of each element, where the sample's are not all the same
  bool one_box;
  Vector<C> lower_all, upper_all;
  int64_t count;
  void reserve(int64_t size, const Sweep<C>& sweep) {
    one_box = sweep.one_box();
    lower_all = constant<Vector<C>>(sweep.first_lower());
    upper_all = constant<Vector<C>>(sweep.first_upper());
    const int64_t room = (size + 2 * kLanes<C> - 1) / kLanes<C> * kLanes<C>;  // see append()
    C* at = memory.get(kArrays * room);
    C** const arrays[kArrays] = {&index, &point, &origin, &grad, &magnitude, &cap, &lower, &upper};
    for (C** array : arrays) {
      *array = at;
      at += room;
    }
  }
  template <class... N>
  FASTADV_FN Vector<C> lower_at(int64_t i, N... n) const {
    return one_box ? lower_all : load(lower + i, n...);
  }
  template <class... N>
  FASTADV_FN Vector<C> upper_at(int64_t i, N... n) const {
    return one_box ? upper_all : load(upper + i, n...);
  }
};

template <class T>
FASTADV_FN Compute<T> magnitude_of(T value) {  // without a sign, for -0 and NaN too
  if constexpr (sizeof(T) == 2) {
    return __builtin_fabsf(decode<T, float>(value.bits));
  } else {
    return Compute<T>(__builtin_fabs(value));
  }
}

// A number that the k-th largest |grad| very likely reaches, and few others: the rank that k has in
// a sample, and three standard deviations more. 0, which all reach, where a sample is no help.
template <class G, class C>
C likely_below(const G* grad, int64_t size, int64_t k, C* scratch) {
  const int64_t count = size / 8 < 512 ? size / 8 : 512;
  const double expected = double(k) / double(size) * double(count);
  const int64_t rank = int64_t(expected + 3 * __builtin_sqrt(expected)) + 2;
  if (rank >= count) return 0;
  for (int64_t i = 0; i < count; ++i) scratch[i] = magnitude_of(grad[i * (size / count)]);
  return kth_largest(scratch, count, rank);
}

template <class C>
FASTADV_FN Int<Vector<C>> counting_from(int64_t first) {
  Int<Vector<C>> lane;
  for (int i = 0; i < kLanes<C>; ++i) lane[i] = i;
  return lane + Int<C>(first);
}

// Packs the elements that matter; returns how many |grad| reach `least`. NaN reaches anything.
template <class T, class G, bool kHasX, class C>
int64_t pack(Sample<T, G, kHasX> sample, const Sweep<C>& sweep, C least, Elements<C>& to) {
  using V = Vector<T>;
  const V bar = constant<V>(least);
  C *const index = to.index, *const points = to.point, *const origins = to.origin;
  C *const grads = to.grad, *const lowers = to.lower, *const uppers = to.upper;
  const bool one_box = to.one_box;
  int64_t reach = 0, count = 0;
  sweep.runs(0, sample.size, sample.size, [&](int64_t first, int64_t length, auto box) {
    each_register<T>(length, [&](int64_t i, auto... n) {
      const int64_t k = first + i;
      const V point = load(sample.x_adv + k, n...), grad = load(sample.grad + k, n...);
      const V origin = sample.origin(k, n...);
      const V lower = box.lower(i, n...), upper = box.upper(i, n...);
      const uint32_t large = ~bits_of(turn(grad, grad) < bar) & lanes<C>(n...);
      const uint32_t off = bits_of((point != origin) | (point < lower) | (point > upper));
      const uint32_t matter = large | (off & lanes<C>(n...));
      if (!one_box) {
        append(lowers + count, lower, matter);
        append(uppers + count, upper, matter);
      }
      append(index + count, bit_cast<V>(counting_from<C>(k)), matter);
      append(points + count, point, matter);
      append(origins + count, origin, matter);
      count += append(grads + count, grad, matter);
      reach += __builtin_popcount(large);
    });
  });
  to.count = count;
  return reach;
}

// The direction of the steepest step; packs the elements that matter.
template <class T, class G, bool kHasX, class C>
Direction<C> steepest(Sample<T, G, kHasX> sample, const Sweep<C>& sweep, double step_size,
                      double top, Elements<C>& elements) {
  using V = Vector<C>;
  const int64_t k = moving_of(top, sample.size);
  C least = likely_below(sample.grad, sample.size, k, elements.magnitude);
  if (pack(sample, sweep, least, elements) < k) {  // the sample misled
    least = 0;
    pack(sample, sweep, least, elements);
  }
  const V bar = constant<V>(least);
  int64_t found = 0;
  each_register<C>(elements.count, [&](int64_t i, auto... n) {
    const V grad = load(elements.grad + i, n...), m = turn(grad, grad);
    found += append(elements.magnitude + found, m, ~bits_of(m < bar) & lanes<C>(n...));
  });
  const V smallest = constant<V>(kth_largest(elements.magnitude, found, k));
  Int<V> moves = {};
  each_register<C>(elements.count, [&](int64_t i, auto... n) {
    const V grad = load(elements.grad + i, n...), m = turn(grad, grad);
    moves -= (m >= smallest) & (m > 0);
  });
  const int64_t moving = total<C>(moves);
  const C stride = moving > 0 ? C(step_size / double(moving)) : C(0);
  return {true, smallest, constant<V>(stride)};
}

// What a threshold leaves.
template <class C>
Left left_by(const Elements<C>& elements, C threshold) {
  using V = Vector<C>;
  DoubleSum sum;
  Int<V> falling = {};
  const V t = constant<V>(threshold);
  each_register<C>(elements.count, [&](int64_t i, auto... n) {
    const V beyond = load(elements.magnitude + i, n...) - t, cap = load(elements.cap + i, n...);
    add(sum, clamp(beyond, V{}, cap));
    falling -= (beyond > 0) & (beyond < cap);
  });
  return {sum.total(), total<C>(falling)};
}

// |u| and the caps; returns the largest |u|.
template <class C>
double measure(const Direction<C>& direction, Elements<C>& elements) {
  using V = Vector<C>;
  V largest = {};
  each_register<C>(elements.count, [&](int64_t i, auto... n) {
    const V origin = load(elements.origin + i, n...);
    const V u =
        load(elements.point + i, n...) - origin + direction.of(load(elements.grad + i, n...));
    const V lower = elements.lower_at(i, n...), upper = elements.upper_at(i, n...);
    const V m = magnitude_of_move(u);
    largest = m > largest ? m : largest;
    store(elements.magnitude + i, bit_cast<Int<V>>(m), n...);
    store(elements.cap + i, bit_cast<Int<V>>(cap_of(u, origin, lower, upper)), n...);
  });
  C most = 0;
  for (int lane = 0; lane < kLanes<C>; ++lane) most = largest[lane] > most ? largest[lane] : most;
  return double(most);
}

template <class T, class C>
void write(T* x_adv, const Elements<C>& elements, const Direction<C>& direction, bool inside,
           C threshold) {
  using V = Vector<T>;
  const V t = constant<V>(threshold);
  each_register<C>(elements.count, [&](int64_t i, auto... n) {
    const V point = load(elements.point + i, n...), origin = load(elements.origin + i, n...);
    const V lower = elements.lower_at(i, n...), upper = elements.upper_at(i, n...);
    const V stride = direction.of(load(elements.grad + i, n...)), u = point - origin + stride;
    const V w =
        turn(shrink(load(elements.magnitude + i, n...), t, load(elements.cap + i, n...)), u);
    const V moved = add_towards(origin, w);
    // Where nothing moves the point stays to the bit: x + (x_adv - x) need not be x_adv.
    const V v = inside ? (stride == 0 ? point : moved) : moved;
    T placed[kLanes<T>];
    store(placed, place_towards<T>(v, origin, lower, upper));
    const int64_t used = (i + kLanes<T> <= elements.count) ? kLanes<T> : elements.count - i;
    for (int64_t lane = 0; lane < used; ++lane) {
      x_adv[bit_cast<typename BitsOf<C>::Type>(elements.index[i + lane])] = placed[lane];
    }
  });
}

template <class T, class G, bool kHasX>
void step_l1(const StepArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using V = Vector<T>;
  if (args.size == 0) return;
  static thread_local Elements<C> elements;
  const Sweep<C> sweep(args.box);
  elements.reserve(args.size, sweep);
  const double room = slack<C>(args.size);
  for (int64_t i = begin; i < end; ++i) {
    const Sample<T, G, kHasX> sample(args, i);
    const C step_size = value_of<C>(args.step_size, i), radius = value_of<C>(args.radius, i);
    Direction<C> direction{false, V{}, constant<V>(step_size)};
    if (args.steepest) {
      direction = steepest(sample, sweep, double(step_size), args.top, elements);
    } else {
      pack(sample, sweep, C(0), elements);  // all of them
    }
    const double largest = measure(direction, elements);
    const Left left = left_by(elements, C(0));
    const bool inside = left.sum <= double(radius) * (1 - room);
    const C threshold = inside ? C(0)
                               : threshold_for<C>([&](C t) { return left_by(elements, t); },
                                                  largest, left, double(radius), room);
    write(sample.x_adv, elements, direction, inside, threshold);
  }
}

FASTADV_INSTANTIATE_STEP(step_l1)

FASTADV_NAMESPACE_END
