// sum <- the weighted sum over the batch of the gradients, or of their signs.
//
// Each gradient is read once, 4 B an element of the batch in fp32, and no more than a block of
// columns is held: the sums of 512 columns, in double, are 4 KiB and stay in the L1 cache. A column
// is summed in the order of the batch by one thread, so the result does not depend on the threads.
#include "declare.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

constexpr int64_t kColumns = 512;

FASTADV_FN void accumulate_into(double* sum, Doubles v) {
  Doubles s;
  memcpy(&s, sum, sizeof(s));
  s += v;
  memcpy(sum, &s, sizeof(s));
}
FASTADV_FN void accumulate_into(double* sum, Floats v) {
  const DoublePair d = to_double(v);
  accumulate_into(sum, d.low);
  accumulate_into(sum + kRegister / 8, d.high);
}

template <class T>
void accumulate(const AccumulateArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using V = Vector<T>;
  const T* const grads = static_cast<const T*>(args.grads);
  const C* const weights = static_cast<const C*>(args.weights);
  C* const out = static_cast<C*>(args.sum);
  for (int64_t first = begin; first < end; first += kColumns) {
    const int64_t count = end - first < kColumns ? end - first : kColumns;
    alignas(64) double sums[kColumns + kLanes<T>] = {};
    for (int64_t sample = 0; sample < args.samples; ++sample) {
      if (weights && weights[sample] == 0) continue;  // 0 * inf would not be 0
      const T* const row = grads + sample * args.size + first;
      const V weight = constant<V>(weights ? weights[sample] : C(1));
      settle(args.signs, [&](auto signs) {
        each_register<T>(count, [&](int64_t i, auto... n) {
          const V g = load(row + i, n...);
          accumulate_into(sums + i, weight * (signs.value ? sign(g) : g));
        });
      });
    }
    for (int64_t i = 0; i < count; ++i) out[first + i] = C(sums[i]);
  }
}

template void accumulate<float>(const AccumulateArgs&, int64_t, int64_t);
template void accumulate<double>(const AccumulateArgs&, int64_t, int64_t);
template void accumulate<bfloat16>(const AccumulateArgs&, int64_t, int64_t);
template void accumulate<float16>(const AccumulateArgs&, int64_t, int64_t);

FASTADV_NAMESPACE_END
