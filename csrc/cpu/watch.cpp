// met <- 1 where any number of x is NaN or, if asked, infinite: 4 B read an element.
#include "declare.h"
#include "sweep.h"

FASTADV_NAMESPACE_BEGIN

void watch(const WatchArgs& args, int64_t begin, int64_t end) {
  Ints bad{};
  each_register<float>(end - begin, [&](int64_t k, auto... n) {
    Floats v = load(args.x + begin + k, n...);
    if (args.infinite) v -= v;  // inf - inf is NaN
    bad |= v != v;
  });
  if (bits_of(bad)) __atomic_store_n(args.met, uint8_t(1), __ATOMIC_RELAXED);  // threads share it
}

FASTADV_NAMESPACE_END
