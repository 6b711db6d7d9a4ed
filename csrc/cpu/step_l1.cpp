// x_adv <- the point nearest to v in {||. - x||_1 <= radius} and the box (Croce and Hein
// 2103.01208, proposition 2.1), v = x_adv + step_size * sign(grad) / m on the m largest |grad|
// (SLIDE, Tramer and Boneh 1904.13000).
//
// With u = v - x and cap_i the distance from x_i to the box on u_i's side, the projection is
// sign(u_i) * min(max(|u_i| - t, 0), cap_i), and t >= 0 the root of a falling, piecewise linear
// function, found by Newton's method inside a bracket.
//
// One pass reads everything (12 B an element in fp32) and lists the registers that matter: where
// x_adv left x, or |grad| may be among the largest. A step moves 1%, and the projection of an
// attack under way leaves no more than that off x, so the two passes after it visit a third of the
// registers: one packs |u| and cap for Newton, the other writes. 0.9 ns an element in L2, 3.7 with
// a select and a projection over everything; 2.6 where every element is off x.
#include "declare.h"
#include "select.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

template <class V>
struct Element {
  V point, origin, grad;
};

template <class T, class G, bool kHasX>
struct Sample {
  using V = Vector<T>;
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
  FASTADV_FN Element<V> at(int64_t k, N... n) const {
    const V origin = kHasX ? load(x + (kHasX ? k : 0), n...) : V{};
    return {load(x_adv + k, n...), origin, load(grad + k, n...)};
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

template <class V>
FASTADV_FN V magnitude_of_move(V u) {  // a raw step may be beyond the numbers: NaN alone passes
  const V most = constant<V>(sizeof(u[0]) == 4 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023);
  const V m = turn(u, u);
  return m > most ? most : m;
}
template <class V>
FASTADV_FN V cap_of(V u, V origin, V lower, V upper) {
  return clamp(u > 0 ? upper - origin : origin - lower, V{}, constant<V>(__builtin_inf()));
}

// The memory of a thread. `list` holds where the registers that matter begin, in order.
template <class C>
struct Memory {
  Scratch<C> numbers;
  Scratch<int64_t> indices;
  C* magnitude;
  C* cap;
  int64_t* list;
  int64_t listed;
  void reserve(int64_t size) {
    const int64_t room = (size + 2 * kLanes<C> - 1) / kLanes<C> * kLanes<C>;  // see append()
    magnitude = numbers.get(2 * room);
    cap = magnitude + room;
    list = indices.get(size);
  }
  // visit(k, i, bounds, n...) for every register listed, at k in the sample and i in its run; from
  // the end, which was touched last and is still in the cache.
  template <class T, class Visit>
  FASTADV_FN void visit_listed(const Sweep<C>& sweep, int64_t size, Visit visit) const {
    int64_t left = listed;
    sweep.template runs<true>(0, size, size, [&](int64_t first, int64_t length, auto box) {
      while (left > 0 && list[left - 1] >= first) {
        const int64_t k = list[--left], i = k - first;
        if (i + kLanes<T> <= length) {
          visit(k, i, box);
        } else {
          visit(k, i, box, length - i);
        }
      }
    });
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
  const int64_t count = size / 8 < 1024 ? size / 8 : 1024;
  const double expected = double(k) / double(size) * double(count);
  const int64_t rank = int64_t(expected + 3 * __builtin_sqrt(expected)) + 2;
  if (rank >= count) return 0;
  for (int64_t i = 0; i < count; ++i) scratch[i] = magnitude_of(grad[i * (size / count)]);
  return kth_largest(scratch, count, rank);
}

// Lists the registers that matter and packs the |grad| that reach `least`; returns how many those
// are. NaN reaches anything.
template <class T, class G, bool kHasX, class C>
int64_t list_registers(Sample<T, G, kHasX> sample, const Sweep<C>& sweep, C least,
                       Memory<C>& memory) {
  const Vector<T> bar = constant<Vector<T>>(least);
  int64_t found = 0, listed = 0;
  C* const magnitude = memory.magnitude;
  int64_t* const list = memory.list;
  sweep.runs(0, sample.size, sample.size, [&](int64_t first, int64_t length, auto box) {
    each_register<T>(length, [&](int64_t i, auto... n) {
      const Element<Vector<T>> e = sample.at(first + i, n...);
      const auto magnitude_here = turn(e.grad, e.grad);
      const Int<Vector<T>> large = ~(magnitude_here < bar);
      const auto off =
          (e.point != e.origin) | (e.point < box.lower(i, n...)) | (e.point > box.upper(i, n...));
      found += append(magnitude + found, magnitude_here, bits_of(large) & lanes<C>(n...));
      list[listed] = first + i;
      listed += bits_of(large | off) != 0;
    });
  });
  memory.listed = listed;
  return found;
}

// The direction of the steepest step; lists the registers that matter.
template <class T, class G, bool kHasX, class C>
Direction<C> steepest(Sample<T, G, kHasX> sample, const Sweep<C>& sweep, double step_size,
                      double top, Memory<C>& memory) {
  using V = Vector<C>;
  int64_t k = int64_t(top * double(sample.size) + .5);
  k = k < 1 ? 1 : (k > sample.size ? sample.size : k);
  const C least = likely_below(sample.grad, sample.size, k, memory.magnitude);
  int64_t found = list_registers(sample, sweep, least, memory);
  if (found < k) found = list_registers(sample, sweep, C(0), memory);  // the sample misled
  memcpy(memory.cap, memory.magnitude, found * sizeof(C));
  const V smallest = constant<V>(kth_largest(memory.cap, found, k));
  Int<V> moves = {};
  each_register<C>(found, [&](int64_t i, auto... n) {
    const V m = load(memory.magnitude + i, n...);
    moves -= (m >= smallest) & (m > 0);
  });
  const int64_t moving = total<C>(moves);
  const C stride = moving > 0 ? C(step_size / double(moving)) : C(0);
  return {true, smallest, constant<V>(stride)};
}

struct Packed {
  int64_t count;
  double largest;
};
template <class T, class G, bool kHasX, class C>
Packed pack(Sample<T, G, kHasX> sample, const Sweep<C>& sweep, const Direction<C>& direction,
            const Memory<C>& memory) {
  using V = Vector<T>;
  C* const magnitude = memory.magnitude;
  C* const caps = memory.cap;
  int64_t count = 0;
  V largest = {};
  const auto visit = [&](int64_t k, int64_t i, auto box, auto... n) {
    const Element<V> e = sample.at(k, n...);
    const V u = e.point - e.origin + direction.of(e.grad), m = magnitude_of_move(u);
    const V cap = cap_of(u, e.origin, box.lower(i, n...), box.upper(i, n...));
    const uint32_t bits = bits_of(u != 0) & lanes<C>(n...);
    largest = m > largest ? m : largest;
    append(caps + count, cap, bits);
    count += append(magnitude + count, m, bits);
  };
  memory.template visit_listed<T>(sweep, sample.size, visit);
  C most = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) most = largest[lane] > most ? largest[lane] : most;
  return {count, double(most)};
}

// The sum of what a threshold leaves, and how many coordinates still fall with it.
struct Left {
  double sum;
  int64_t falling;
};
template <class C>
Left left_by(const Memory<C>& memory, int64_t count, C threshold) {
  using V = Vector<C>;
  DoubleSum sum;
  Int<V> falling = {};
  const V t = constant<V>(threshold);
  each_register<C>(count, [&](int64_t i, auto... n) {
    const V beyond = load(memory.magnitude + i, n...) - t, cap = load(memory.cap + i, n...);
    add(sum, clamp(beyond, V{}, cap));
    falling -= (beyond > 0) & (beyond < cap);
  });
  return {sum.total(), total<C>(falling)};
}

// The threshold t that leaves a sum just under `radius`, and never above it; 0 leaves `left`.
template <class C>
C threshold_for(const Memory<C>& memory, const Packed& packed, Left left, double radius,
                double room) {
  const double target = radius * (1 - 2.5 * room);
  C lower = 0, upper = C(packed.largest);  // leave more than the target, and not more than radius
  C at = 0;
  for (int i = 0; i < 64; ++i) {
    C next = left.falling > 0 ? C(at + (left.sum - target) / double(left.falling)) : lower;
    if (!(next > lower && next < upper)) next = lower + (upper - lower) / 2;
    if (!(next > lower && next < upper)) break;  // neighbours
    at = next;
    left = left_by(memory, packed.count, at);
    if (left.sum > radius * (1 - 2 * room)) {
      lower = at;
    } else {
      upper = at;
      if (left.sum >= radius * (1 - 3 * room)) break;
    }
  }
  return upper;
}

template <class T, class G, bool kHasX, class C>
void write(Sample<T, G, kHasX> sample, const Sweep<C>& sweep, const Direction<C>& direction,
           bool inside, C threshold, const Memory<C>& memory) {
  using V = Vector<T>;
  const V t = constant<V>(threshold);
  const auto visit = [&](int64_t k, int64_t i, auto box, auto... n) {
    const Element<V> e = sample.at(k, n...);
    const V lower = box.lower(i, n...), upper = box.upper(i, n...);
    const V stride = direction.of(e.grad), u = e.point - e.origin + stride;
    const V w = turn(shrink(magnitude_of_move(u), t, cap_of(u, e.origin, lower, upper)), u);
    const V moved = add_towards(e.origin, w);
    // Where nothing moves the point stays to the bit: x + (x_adv - x) need not be x_adv.
    const V v = inside ? (stride == 0 ? e.point : moved) : moved;
    store(sample.x_adv + k, place_towards<T>(v, e.origin, lower, upper), n...);
  };
  memory.template visit_listed<T>(sweep, sample.size, visit);
}

template <class T, class G, bool kHasX>
void step_l1(const StepArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using V = Vector<T>;
  if (args.size == 0) return;
  static thread_local Memory<C> memory;
  memory.reserve(args.size);
  const Sweep<C> sweep(args.box);
  const double rounding = sizeof(C) == 4 ? 0x1p-24 : 0x1p-53;
  const double room = 16 * rounding + double(args.size) * 0x1p-53;  // see slack() in step_l2.cpp
  for (int64_t i = begin; i < end; ++i) {
    const Sample<T, G, kHasX> sample(args, i);
    const C step_size = value_of<C>(args.step_size, i), radius = value_of<C>(args.radius, i);
    Direction<C> direction{false, V{}, constant<V>(step_size)};
    if (args.steepest) {
      direction = steepest(sample, sweep, double(step_size), args.top, memory);
    } else {
      list_registers(sample, sweep, C(0), memory);  // all of them
    }
    const Packed packed = pack(sample, sweep, direction, memory);
    const Left left = left_by(memory, packed.count, C(0));
    const bool inside = left.sum <= double(radius) * (1 - room);
    const C threshold = inside ? C(0) : threshold_for(memory, packed, left, double(radius), room);
    write(sample, sweep, direction, inside, threshold, memory);
  }
}

FASTADV_INSTANTIATE_STEP(step_l1)

FASTADV_NAMESPACE_END
