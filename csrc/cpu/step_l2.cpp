// x_adv <- x + min(1, radius / ||v||) v,  v = x_adv - x + step_size * grad / ||grad||; then the
// box.
//
// ||v|| follows from three sums, ||d||^2, <d, grad> and ||grad||^2 with d = x_adv - x, so one pass
// reads (12 B an element in fp32) and a second reads again and writes (16 B). The second runs from
// the sample's end, whose elements the first has just left in the cache. A gradient whose squares
// leave the numbers takes two passes more, in units of its largest element.
#include "../sample.h"
#include "declare.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

constexpr int64_t kBlock = 2048;

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
  using C = Compute<T>;
  const int64_t start = sample * args.size;
  T* const x_adv = static_cast<T*>(args.x_adv) + start;
  const G* const grad = static_cast<const G*>(args.grad) + start;
  const T* const x = static_cast<const T*>(args.x) + (kHasX ? start : 0);
  const C unit = kInUnits ? unit_of<T>(grad, args.size) : 1;
  const V units = constant<V>(unit);
  const auto gradient = [&](int64_t i, auto... n) {
    const V g = load(grad + i, n...);
    return kInUnits ? g / units : g;
  };
  const auto offset = [&](int64_t i, auto... n) {
    return load(x_adv + i, n...) - (kHasX ? load(x + (kHasX ? i : 0), n...) : V{});
  };

  DoubleSum sum_dd, sum_dg, sum_gg;
  each_register<T>(args.size, [&](int64_t i, auto... n) {
    const V g = gradient(i, n...), d = offset(i, n...);
    add_product(sum_dd, d, d);
    add_product(sum_dg, d, g);
    add_product(sum_gg, g, g);
  });
  const Moments moments{sum_dd.total(), sum_dg.total(), sum_gg.total()};
  if (!kInUnits && !measurable<C>(moments.gg, args.steepest)) return false;
  const double step_size = value_of<C>(args.step_size, sample);
  const double step_by =
      step_of<C>(moments.gg, args.steepest ? step_size : step_size * unit, args.steepest);
  const V step = constant<V>(step_by);
  double vv = moments.after(step_by);
  if (!moments.tell(step_by)) {
    DoubleSum measured;
    each_register<T>(args.size, [&](int64_t i, auto... n) {
      const V v = offset(i, n...) + step * gradient(i, n...);
      add_product(measured, v, v);
    });
    vv = measured.total();
  }
  const double scale_by = scale_of<C>(vv, value_of<C>(args.radius, sample), args.size);
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
