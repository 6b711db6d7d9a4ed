// x_adv <- x + min(1, radius / ||v||) v,  v = x_adv - x + step_size * grad / ||grad||; then the
// box.
//
// ||v|| follows from three sums, ||d||^2, <d, grad> and ||grad||^2 with d = x_adv - x, so one pass
// reads (12 B an element in fp32) and a second reads again and writes (16 B). The second runs from
// the sample's end, whose elements the first has just left in the cache.
#include "declare.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

constexpr int64_t kBlock = 2048;

struct Moments {
  DoubleSum dd, dg, gg;
};
struct Move {
  double step;   // v = d + step * grad
  double scale;  // moved to x + scale * v
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
Move plan(const Moments& moments, double step_size, double radius, bool steepest, int64_t size) {
  const double dd = moments.dd.total(), dg = moments.dg.total(), gg = moments.gg.total();
  const double largest = sizeof(Compute<T>) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308;
  double step = steepest ? (gg > 0 ? step_size / __builtin_sqrt(gg) : 0.) : step_size;
  step = step > largest ? largest : step;  // grad itself subnormal: a shorter step, not inf * 0
  const double vv = dd + 2 * step * dg + step * step * gg;
  const double norm = vv > 0 ? __builtin_sqrt(vv) : vv;  // NaN passes
  const double room = slack<T>(size);
  return {step, norm > radius * (1 - room) ? radius * (1 - 2 * room) / norm : 1.};
}

template <class T, class G, bool kHasX>
void step_l2(const StepArgs& args, int64_t begin, int64_t end) {
  using V = Vector<T>;
  const Sweep<Compute<T>> sweep(args.box);
  for (int64_t sample = begin; sample < end; ++sample) {
    const int64_t start = sample * args.size;
    T* const x_adv = static_cast<T*>(args.x_adv) + start;
    const G* const grad = static_cast<const G*>(args.grad) + start;
    const T* const x = static_cast<const T*>(args.x) + (kHasX ? start : 0);

    Moments moments;
    each_register<T>(args.size, [&](int64_t i, auto... n) {
      const V g = load(grad + i, n...);
      const V origin = kHasX ? load(x + (kHasX ? i : 0), n...) : V{};
      const V d = load(x_adv + i, n...) - origin;
      add_product(moments.dd, d, d);
      add_product(moments.dg, d, g);
      add_product(moments.gg, g, g);
    });
    const Move move = plan<T>(moments, value_of<Compute<T>>(args.step_size, sample),
                              value_of<Compute<T>>(args.radius, sample), args.steepest, args.size);

    const V step = constant<V>(move.step), scale = constant<V>(move.scale);
    const bool inside = move.scale == 1;
    sweep.template runs<true>(0, args.size, kBlock, [&](int64_t first, int64_t count, auto box) {
      each_register<T>(count, [&](int64_t i, auto... n) {
        const int64_t k = first + i;
        const V g = load(grad + k, n...);
        const V origin = kHasX ? load(x + (kHasX ? k : 0), n...) : V{};
        const V point = load(x_adv + k, n...), stride = step * g;
        const V moved = add_towards(origin, scale * (point - origin + stride));
        // Where nothing moves the point stays to the bit: x + (x_adv - x) need not be x_adv.
        const V v = inside ? (stride == 0 ? point : moved) : moved;
        store(x_adv + k, place_towards<T>(v, origin, box.lower(i, n...), box.upper(i, n...)), n...);
      });
    });
  }
}

FASTADV_INSTANTIATE_STEP(step_l2)

FASTADV_NAMESPACE_END
