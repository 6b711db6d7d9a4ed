// x_adv <- x + min(1, radius / ||v||) v,  v = x_adv - x + step_size * grad / ||grad||; then the
// box.
//
// ||v|| follows from three sums, ||d||^2, <d, grad> and ||grad||^2 with d = x_adv - x, so one pass
// reads (12 B an element in fp32) and a second reads again and writes (16 B). The second runs from
// the sample's end, whose elements the first has just left in the cache. A gradient whose squares
// leave the numbers takes two passes more, in units of its largest element.
#include "declare.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

constexpr int64_t kBlock = 2048;

struct Moments {
  DoubleSum dd, dg, gg;
};
// Relative room below the radius. Rounding in float32 or float64 (first term; the elements of v
// carry up to 7 roundings while the point was within the ball) and in the sums (second) stay under
// it, so that what was scaled to radius * (1 - 2 slack) is found inside, and left alone, the next
// time.
template <class T>
double slack(int64_t size) {
  const double rounding = sizeof(Compute<T>) == 4 ? 0x1p-24 : 0x1p-53;
  return 16 * rounding + double(size) * 0x1p-53;
}

template <class T>
double step_of(double gg, double step_size, bool steepest) {
  const double largest = sizeof(Compute<T>) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308;
  const double length = __builtin_sqrt(gg);
  double step = steepest ? (gg > 0 ? step_size / length : 0.) : step_size;
  // A step beyond all numbers ends where the gradient points, as a shorter one does.
  const double longest = sizeof(Compute<T>) == 4 ? 1e30 : 1e150;
  if (step * length > longest) step = longest / length;
  // A grad that is itself subnormal takes a shorter step, not inf * 0; and as the elements take it.
  return double(Compute<T>(step > largest ? largest : step));
}

// The scale, as the elements take it, that leaves ||v||^2 = vv in the ball.
template <class T>
double scale_of(double vv, double radius, int64_t size) {
  using C = Compute<T>;
  const double norm = vv > 0 ? __builtin_sqrt(vv) : vv;  // NaN passes
  const double room = slack<T>(size);
  if (!(norm > radius * (1 - room))) return norm == norm ? 1. : norm;
  const double scale = radius * (1 - 2 * room) / norm;
  const C nearest = C(scale);
  return double(nearest) > scale ? double(bit_cast<C>(bit_cast<Int<C>>(nearest) - 1)) : nearest;
}

// Whether a gradient's length, and the step over it, follow from the sum of its squares.
template <class T>
bool measurable(double gg, bool steepest) {
  const bool wide = sizeof(Compute<T>) == 8;
  const double least = wide ? 1e-300 : 1e-60, most = wide ? 1e300 : __builtin_inf();
  return (gg > least || !steepest) && gg < most;
}

// max |grad|; 1 where that is no unit.
template <class T, class G>
Compute<T> unit_of(const G* grad, int64_t size) {
  using V = Vector<T>;
  V most{};
  each_register<T>(size, [&](int64_t i, auto... n) {
    const V g = load(grad + i, n...), magnitude = turn(g, g);
    most = magnitude > most ? magnitude : most;
  });
  Compute<T> largest = 0;
  for (int i = 0; i < kLanes<T>; ++i) largest = most[i] > largest ? most[i] : largest;
  return largest > 0 && largest - largest == 0 ? largest : 1;
}

// False, with nothing written, for a gradient that has to be taken in units.
template <class T, class G, bool kHasX, bool kInUnits>
bool step_sample(const StepArgs& args, const Sweep<Compute<T>>& sweep, int64_t sample) {
  using V = Vector<T>;
  const int64_t start = sample * args.size;
  T* const x_adv = static_cast<T*>(args.x_adv) + start;
  const G* const grad = static_cast<const G*>(args.grad) + start;
  const T* const x = static_cast<const T*>(args.x) + (kHasX ? start : 0);
  const Compute<T> unit = kInUnits ? unit_of<T>(grad, args.size) : 1;
  const V units = constant<V>(unit);
  const auto gradient = [&](int64_t i, auto... n) {
    const V g = load(grad + i, n...);
    return kInUnits ? g / units : g;
  };
  const auto offset = [&](int64_t i, auto... n) {
    return load(x_adv + i, n...) - (kHasX ? load(x + (kHasX ? i : 0), n...) : V{});
  };

  Moments moments;
  each_register<T>(args.size, [&](int64_t i, auto... n) {
    const V g = gradient(i, n...), d = offset(i, n...);
    add_product(moments.dd, d, d);
    add_product(moments.dg, d, g);
    add_product(moments.gg, g, g);
  });
  const double dd = moments.dd.total(), dg = moments.dg.total(), gg = moments.gg.total();
  if (!kInUnits && !measurable<T>(gg, args.steepest)) return false;
  const double step_size = value_of<Compute<T>>(args.step_size, sample);
  const double step_by =
      step_of<T>(gg, args.steepest ? step_size : step_size * unit, args.steepest);
  const V step = constant<V>(step_by);
  double vv = dd + 2 * step_by * dg + step_by * step_by * gg;
  // The sums cannot tell a v that d and the step nearly cancel to (no attack's own step does that
  // from within the ball), nor one of overflown products: it is measured, in a third pass.
  if (!(vv > 1e-3 * (dd + step_by * step_by * gg)) && dd > 0) {
    DoubleSum measured;
    each_register<T>(args.size, [&](int64_t i, auto... n) {
      const V v = offset(i, n...) + step * gradient(i, n...);
      add_product(measured, v, v);
    });
    vv = measured.total();
  }
  const double scale_by = scale_of<T>(vv, value_of<Compute<T>>(args.radius, sample), args.size);
  const V scale = constant<V>(scale_by);
  const bool inside = scale_by == 1;
  sweep.template runs<true>(0, args.size, kBlock, [&](int64_t first, int64_t count, auto box) {
    each_register<T>(count, [&](int64_t i, auto... n) {
      const int64_t k = first + i;
      const V origin = kHasX ? load(x + (kHasX ? k : 0), n...) : V{};
      const V point = load(x_adv + k, n...), stride = step * gradient(k, n...);
      const V moved = add_towards(origin, scale * (point - origin + stride));
      // Where nothing moves the point stays to the bit: x + (x_adv - x) need not be x_adv.
      const V v = inside ? (stride == 0 ? point : moved) : moved;
      store(x_adv + k, place_towards<T>(v, origin, box.lower(i, n...), box.upper(i, n...)), n...);
    });
  });
  return true;
}

template <class T, class G, bool kHasX>
void step_l2(const StepArgs& args, int64_t begin, int64_t end) {
  const Sweep<Compute<T>> sweep(args.box);
  for (int64_t sample = begin; sample < end; ++sample) {
    if (!step_sample<T, G, kHasX, false>(args, sweep, sample)) {
      step_sample<T, G, kHasX, true>(args, sweep, sample);
    }
  }
}

FASTADV_INSTANTIATE_STEP(step_l2)

FASTADV_NAMESPACE_END
