// x_adv <- clamp(x_adv + step_size * sign(grad), x - radius, x + radius), then the box.
//
// One pass: 12 B read and 4 B written an element in fp32, and nothing else touches memory.
#include "declare.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

// `G` is the gradient's dtype; without an x the point is a perturbation and x is zero.
template <class T, class G, bool kHasX>
void step_linf(const StepArgs& args, int64_t begin, int64_t end) {
  using V = Vector<T>;
  const Sweep<Compute<T>> sweep(args.box);
  for (int64_t at = begin; at < end;) {
    const int64_t sample = at / args.size, start = sample * args.size;
    const int64_t stop = end < start + args.size ? end : start + args.size;
    const V step_size = constant<V>(value_of<Compute<T>>(args.step_size, sample));
    const V radius = constant<V>(value_of<Compute<T>>(args.radius, sample));
    T* const x_adv = static_cast<T*>(args.x_adv) + start;
    const G* const grad = static_cast<const G*>(args.grad) + start;
    const T* const x = static_cast<const T*>(args.x) + (kHasX ? start : 0);
    settle(args.steepest, [&](auto steepest) {
      sweep.runs(at - start, stop - start, args.size, [=](int64_t first, int64_t count, auto box) {
        each_register<T>(count, [=](int64_t i, auto... n) {
          const int64_t k = first + i;
          const V g = load(grad + k, n...);
          const V direction = steepest.value ? sign(g) : g;
          const V v = load(x_adv + k, n...) + step_size * direction;
          const V origin = kHasX ? load(x + (kHasX ? k : 0), n...) : V{};
          store(x_adv + k,
                project_linf<T>(v, origin, radius, box.lower(i, n...), box.upper(i, n...)), n...);
        });
      });
    });
    at = stop;
  }
}

FASTADV_INSTANTIATE_STEP(step_linf)

FASTADV_NAMESPACE_END
