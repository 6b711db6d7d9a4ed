// sum <- the weighted sum over the batch of the gradients, or of their signs.
//
// Each gradient is read once, 4 B an element of the batch in fp32, and no more than a block of
// columns is held: the sums of 2048 columns, in double, are 16 KiB and stay in the L1 cache. A
// column is summed in the order of the batch by one thread, so the result does not depend on the
// threads.
#include "declare.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

constexpr int64_t kColumns = 2048;
constexpr int kRows = 8;  // samples summed in registers between a load and a store of the sums

// The sums of one register of columns, in double.
struct Sums {
  DoublePair at;
  FASTADV_FN explicit Sums(const double* from) { memcpy(&at, from, sizeof(at)); }
  FASTADV_FN void add(Doubles v) { at.low += v; }
  FASTADV_FN void add(Floats v) {
    const DoublePair d = to_double(v);
    at.low += d.low, at.high += d.high;
  }
  FASTADV_FN void put(double* to, Doubles) const { memcpy(to, &at.low, sizeof(at.low)); }
  FASTADV_FN void put(double* to, Floats) const { memcpy(to, &at, sizeof(at)); }
};

template <class T>
void accumulate(const AccumulateArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  using V = Vector<T>;
  const T* const grads = static_cast<const T*>(args.grads);
  const C* const weights = static_cast<const C*>(args.weights);
  C* const out = static_cast<C*>(args.sum);
  for (int64_t first = begin; first < end; first += kColumns) {
    const int64_t count = end - first < kColumns ? end - first : kColumns;
    alignas(64) double sums[kColumns + 2 * kLanes<T>];
    memset(sums, 0, sizeof(sums[0]) * (count + 2 * kLanes<T>));
    for (int64_t sample = 0; sample < args.samples;) {
      const T* row[kRows];
      V weight[kRows];
      int rows = 0;
      for (; sample < args.samples && rows < kRows; ++sample) {
        const C w = weights ? weights[sample] : C(1);
        row[rows] = grads + sample * args.size + first;
        weight[rows] = constant<V>(w);
        rows += w != 0;  // 0 * inf would not be 0
      }
      settle(args.signs, [&](auto signs) {
        each_register<T>(count, [&](int64_t i, auto... n) {
          Sums s(sums + i);
          for (int r = 0; r < rows; ++r) {
            const V g = load(row[r] + i, n...);
            s.add(weight[r] * (signs.value ? sign(g) : g));
          }
          s.put(sums + i, V{});
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
