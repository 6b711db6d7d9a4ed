// x_adv <- the point nearest to v in {||. - x||_1 <= radius} and the box (Croce and Hein 2103.01208,
// proposition 2.1), v = x_adv + step_size * sign(grad) / m on the m largest |grad| (SLIDE, Tramer and
// Boneh 1904.13000).
//
// With u = v - x and cap_i the distance from x_i to the box on u_i's side, the projection is
// sign(u_i) * min(max(|u_i| - t, 0), cap_i), and t >= 0 the root of a falling, piecewise linear
// function, found by Newton's method inside a bracket. |u| and cap are kept in a scratch of 8 B an
// element (fp32); x_adv, grad and x are read twice and x_adv is written once.
#include <cstdlib>

#include "declare.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

// Grows, and is freed with its thread: a fresh buffer a call would cost its page faults each time.
template <class C>
class Scratch {
 public:
  ~Scratch() { free(data_); }
  C* get(int64_t count) {
    if (count > capacity_) {
      free(data_);
      const size_t bytes = (size_t(count) * sizeof(C) + 63) / 64 * 64;
      data_ = static_cast<C*>(aligned_alloc(64, bytes));
      if (!data_) abort();
      capacity_ = count;
    }
    return data_;
  }

 private:
  C* data_ = nullptr;
  int64_t capacity_ = 0;
};

template <class C>
struct BitsOf {
  using Type = uint32_t;
};
template <>
struct BitsOf<double> {
  using Type = uint64_t;
};

// The k-th largest of `count` numbers >= 0, whose bits order as they do, by a radix select from the
// highest digit; `values` is overwritten.
template <class C>
C kth_largest(C* values, int64_t count, int64_t k) {
  using Bits = typename BitsOf<C>::Type;
  constexpr int kDigit = 11;
  for (int shift = 8 * sizeof(Bits) - 1 - kDigit; count > 1; shift -= kDigit) {
    const int low = shift < 0 ? 0 : shift;
    const Bits mask = (Bits(1) << (shift - low + kDigit)) - 1;
    uint32_t histogram[1 << kDigit] = {};
    for (int64_t i = 0; i < count; ++i) ++histogram[bit_cast<Bits>(values[i]) >> low & mask];
    int64_t digit = mask;
    while (histogram[digit] < k) k -= histogram[digit--];
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const C value = values[i];
      values[kept] = value;
      kept += int64_t(bit_cast<Bits>(value) >> low & mask) == digit;
    }
    count = kept;
    if (low == 0) break;
  }
  return values[0];
}

// The sum of what a threshold leaves, and how many coordinates still fall with it.
struct Left {
  double sum;
  double falling;
};
template <class C>
Left left_by(const C* magnitude, const C* cap, int64_t count, C threshold) {
  using V = Vector<C>;
  DoubleSum sum, falling;
  const V t = constant<V>(threshold);
  each_register<C>(count, [&](int64_t i, auto... n) {
    const V m = load(magnitude + i, n...), c = load(cap + i, n...);
    const V left = shrink(m, t, c);
    add(sum, left);
    add(falling, m > t ? (m - t < c ? constant<V>(1) : V{}) : V{});
  });
  return {sum.total(), falling.total()};
}

// The threshold t that leaves a sum just under `radius`, and never above it.
template <class C>
C threshold_for(const C* magnitude, const C* cap, int64_t count, C largest, double radius,
                double room) {
  const double target = radius * (1 - 2.5 * room);
  C lower = 0, upper = largest;  // leave more than the target, and not more than radius (nothing)
  Left left = left_by(magnitude, cap, count, C(0));
  C at = 0;
  for (int i = 0; i < 64; ++i) {
    C next = left.falling > 0 ? C(at + (left.sum - target) / left.falling) : lower;
    if (!(next > lower && next < upper)) next = lower + (upper - lower) / 2;
    if (!(next > lower && next < upper)) break;  // neighbours
    at = next;
    left = left_by(magnitude, cap, count, at);
    if (left.sum > radius * (1 - 2 * room)) {
      lower = at;
    } else {
      upper = at;
      if (left.sum >= radius * (1 - 3 * room)) break;
    }
  }
  return upper;
}

template <class C>
struct Direction {
  C smallest;  // the least |grad| that moves
  C stride;    // what each of them moves, or the factor of a raw gradient
};
template <class T, class G>
Direction<Compute<T>> direction(const G* grad, int64_t size, double step_size, double top,
                                Compute<T>* scratch) {
  using C = Compute<T>;
  using V = Vector<T>;
  each_register<G>(size, [&](int64_t i, auto... n) {
    store(scratch + i, bit_cast<Int<V>>(turn(load(grad + i, n...), load(grad + i, n...))), n...);
  });
  int64_t k = int64_t(top * double(size) + .5);
  k = k < 1 ? 1 : (k > size ? size : k);
  const C smallest = kth_largest(scratch, size, k);
  DoubleSum moving;
  const V least = constant<V>(smallest);
  each_register<G>(size, [&](int64_t i, auto... n) {
    const V g = load(grad + i, n...);
    add(moving, g != 0 ? (turn(g, g) >= least ? constant<V>(1) : V{}) : V{});
  });
  const double count = moving.total();
  return {smallest, count > 0 ? C(step_size / count) : C(0)};
}

template <class T, class G, bool kHasX>
void step_l1(const StepArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using V = Vector<T>;
  static thread_local Scratch<C> scratch;
  C* const magnitude = scratch.get(2 * (args.size + kLanes<T>));
  C* const cap = magnitude + (args.size + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  const double room = 0x1p-22 * (sizeof(C) == 4 ? 1 : 0x1p-29) + double(args.size) * 0x1p-53;
  const Sweep<C> sweep(args.box);
  for (int64_t sample = begin; sample < end; ++sample) {
    const int64_t start = sample * args.size;
    T* const x_adv = static_cast<T*>(args.x_adv) + start;
    const G* const grad = static_cast<const G*>(args.grad) + start;
    const T* const x = static_cast<const T*>(args.x) + (kHasX ? start : 0);
    const C step_size = value_of<C>(args.step_size, sample), radius = value_of<C>(args.radius, sample);
    const Direction<C> chosen =
        args.steepest ? direction<T>(grad, args.size, step_size, args.top, magnitude)
                      : Direction<C>{C(0), step_size};
    const V smallest = constant<V>(chosen.smallest), stride = constant<V>(chosen.stride);
    const auto move = [&](V g) {
      const V signed_stride = turn(g, g) >= smallest ? stride * sign(g) : V{};
      return args.steepest ? signed_stride : stride * g;
    };

    DoubleSum inside_box;
    V largest = {};
    sweep.runs(0, args.size, args.size, [&](int64_t first, int64_t count, auto box) {
      each_register<T>(count, [&](int64_t i, auto... n) {
        const int64_t k = first + i;
        const V origin = kHasX ? load(x + (kHasX ? k : 0), n...) : V{};
        const V u = load(x_adv + k, n...) - origin + move(load(grad + k, n...));
        const V room_up = box.upper(i, n...) - origin, room_down = origin - box.lower(i, n...);
        const V c = clamp(u > 0 ? room_up : room_down, V{}, constant<V>(__builtin_inf()));
        const V m = turn(u, u);
        store(magnitude + k, bit_cast<Int<V>>(m), n...);
        store(cap + k, bit_cast<Int<V>>(c), n...);
        add(inside_box, m < c ? m : c);
        largest = m > largest ? m : largest;
      });
    });
    C most = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) most = largest[lane] > most ? largest[lane] : most;
    const bool inside = inside_box.total() <= double(radius) * (1 - room);
    const V threshold = constant<V>(
        inside ? C(0) : threshold_for(magnitude, cap, args.size, most, double(radius), room));

    sweep.template runs<true>(0, args.size, 2048, [&](int64_t first, int64_t count, auto box) {
      each_register<T>(count, [&](int64_t i, auto... n) {
        const int64_t k = first + i;
        const V origin = kHasX ? load(x + (kHasX ? k : 0), n...) : V{};
        const V point = load(x_adv + k, n...), stride_k = move(load(grad + k, n...));
        const V u = point - origin + stride_k;
        const V w = turn(shrink(load(magnitude + k, n...), threshold, load(cap + k, n...)), u);
        const V moved = add_towards(origin, w);
        // Where nothing moves the point stays to the bit: x + (x_adv - x) need not be x_adv.
        const V v = inside ? (stride_k == 0 ? point : moved) : moved;
        store(x_adv + k, place_towards<T>(v, origin, box.lower(i, n...), box.upper(i, n...)), n...);
      });
    });
  }
}

FASTADV_INSTANTIATE_STEP(step_l1)

FASTADV_NAMESPACE_END
