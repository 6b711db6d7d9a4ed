// Logits to loss, gradient of the logits of the summed loss, and prediction: one pass over memory.
//
// Bytes a logit in fp32: 4 read and 4 written (bce and kl read 4 more, for y); all further passes
// run over a panel in L1. Cross-entropy of 512x10 takes 1.4 ns a logit on one AVX-512 core, where
// torch's forward, backward and argmax take 36.
#include "declare.h"
#include "heads.h"
#include "panel.h"

FASTADV_NAMESPACE_BEGIN

namespace {

// Up to here a lane is a sample, beyond it a class. At 65 classes that is 1.0 against 2.0 ns a
// logit, at 1000 1.3 against 1.0; a batch of one pays for a register full, so the bound is not
// higher.
constexpr int64_t kFewClasses = 128;

// `count` numbers, from dtype T to dtype U.
template <class T, class U>
void convert(const T* from, U* to, int64_t count) {
  each_register<T>(
      count, [&](int64_t i, auto... n) { store(to + i, encode<U>(load(from + i, n...)), n...); });
}

// -1 stands for a label that is no class, so that nothing is ever read or written outside the row.
template <class L, class C>
Int<Vector<C>> labels(const int64_t* from, int64_t count, int64_t classes) {
  using I = Int<Vector<C>>;
  int64_t label[kLanes<C>];
  decltype(I{}[0] + 0) lane[kLanes<C>];
  for (int i = 0; i < kLanes<C>; ++i) label[i] = L::kSamples == 1 ? from[0] : -1;
  memcpy(label, from, count * sizeof(int64_t));
  for (int i = 0; i < kLanes<C>; ++i) lane[i] = label[i] >= 0 && label[i] < classes ? label[i] : -1;
  I result;
  memcpy(&result, lane, sizeof(result));
  return result;
}

// The first `count` lanes.
template <class V, class T>
void put(V v, T* to, int64_t count) {
  constexpr int kCount = sizeof(V) / sizeof(v[0]);
  decltype(v[0] + 0) lane[kCount];
  T value[kCount];
  memcpy(lane, &v, sizeof(v));
  for (int i = 0; i < kCount; ++i) value[i] = lane[i];
  memcpy(to, value, count * sizeof(T));
}

template <class T, class C, int kEntries>
void write_sparse(const Entries<C, kEntries>& entries, T* grad, int64_t classes, int64_t count) {
  memset(grad, 0, count * classes * sizeof(T));
  for (int i = 0; i < kEntries; ++i) {
    T value[kLanes<T>];
    store(value, encode<T>(entries.total(i)));
    for (int64_t s = 0; s < count; ++s) grad[s * classes + entries.at[i][s]] = value[s];
  }
}

template <class T>
bool is_positive(T v) {
  if constexpr (sizeof(T) == 2) {
    return decode<T, float>(int32_t(v.bits)) > 0;
  } else {
    return v > 0;
  }
}

// The memory that a block is worked on in. Rows and panel are one where a lane is a class.
template <class L, class C>
struct Room {
  int64_t registers, size;
  Aligned<C> memory;
  C* const z;
  C* const y;
  C* const rows;
  explicit Room(int64_t classes)
      : registers(L::registers(classes)),
        size(registers * kLanes<C>),
        memory(3 * size + kLanes<C>),
        z(memory.data()),
        y(z + size),
        rows(y + size) {}
  template <class T>
  void take(const T* from, C* panel, int64_t classes, int64_t count, C padding) const {
    convert(from, L::kSamples == 1 ? panel : rows, count * classes);
    L::spread(rows, panel, classes, padding);
  }
  template <class T>
  void give(T* to, int64_t classes, int64_t count) const {
    L::collect(z, rows, classes);
    convert(L::kSamples == 1 ? z : rows, to, count * classes);
  }
};

// Loss, prediction and gradient of the samples at .. at + count.
template <Head kHead, bool kTargeted, class L, class T, class C>
void finish(const HeadArgs& args, const Block<C>& block, const Room<L, C>& room, int64_t at,
            int64_t count) {
  const int64_t classes = args.classes;
  T* const grad = static_cast<T*>(args.grad) + at * classes;
  Outcome<C> outcome;
  if constexpr (kHead == kMargin || kHead == kDlr) {
    Entries<C, kHead == kDlr ? 5 : 2> entries;
    if constexpr (kHead == kMargin) outcome = margin<L>(block, entries);
    if constexpr (kHead == kDlr) outcome = dlr<L, kTargeted>(block, entries);
    write_sparse(entries, grad, classes, count);
  } else {
    if constexpr (kHead == kCrossEntropy) outcome = cross_entropy<L>(block);
    if constexpr (kHead == kBinaryCrossEntropy) outcome = binary_cross_entropy<L>(block);
    if constexpr (kHead == kKl) outcome = kl<L>(block);
    room.give(grad, classes, count);
  }
  put(outcome.loss, static_cast<C*>(args.loss) + at, count);
  if constexpr (kHead == kBinaryCrossEntropy) {
    const T* const logits = static_cast<const T*>(args.logits) + at * classes;
    bool* const prediction = static_cast<bool*>(args.prediction) + at * classes;
    for (int64_t i = 0; i < count * classes; ++i) prediction[i] = is_positive(logits[i]);
  } else {
    put(outcome.prediction, static_cast<int64_t*>(args.prediction) + at, count);
  }
}

template <Head kHead, bool kTargeted, class L, class T>
void run(const HeadArgs& args, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const int64_t classes = args.classes;
  const Room<L, C> room(classes);
  Block<C> block{room.z, room.y, room.registers,
                 {},     {},     constant<Vector<C>>(args.targeted ? -1 : 1)};
  for (int64_t at = begin; at < end; at += L::kSamples) {
    const int64_t count = end - at < L::kSamples ? end - at : L::kSamples, first = at * classes;
    room.take(static_cast<const T*>(args.logits) + first, room.z, classes, count,
              C(-__builtin_inf()));
    if constexpr (kHead == kBinaryCrossEntropy || kHead == kKl) {
      room.take(static_cast<const C*>(args.y) + first, room.y, classes, count, C(0));
    } else {
      block.label = labels<L, C>(static_cast<const int64_t*>(args.y) + at, count, classes);
    }
    if constexpr (kHead == kDlr && kTargeted) {
      block.target = labels<L, C>(static_cast<const int64_t*>(args.target) + at, count, classes);
    }
    finish<kHead, kTargeted, L, T>(args, block, room, at, count);
  }
}

template <Head kHead, bool kTargeted, class T>
void run(const HeadArgs& args, int64_t begin, int64_t end) {
  if (args.classes <= kFewClasses) {
    run<kHead, kTargeted, SamplesInLanes<Compute<T>>, T>(args, begin, end);
  } else {
    run<kHead, kTargeted, ClassesInLanes<Compute<T>>, T>(args, begin, end);
  }
}

}  // namespace

template <Head kHead, class T>
void head(const HeadArgs& args, int64_t begin, int64_t end) {
  if (kHead == kDlr && args.targeted) {
    run<kHead, kHead == kDlr, T>(args, begin, end);
  } else {
    run<kHead, false, T>(args, begin, end);
  }
}

#define FASTADV_INSTANTIATE_HEAD(which)                                   \
  template void head<which, float>(const HeadArgs&, int64_t, int64_t);    \
  template void head<which, double>(const HeadArgs&, int64_t, int64_t);   \
  template void head<which, bfloat16>(const HeadArgs&, int64_t, int64_t); \
  template void head<which, float16>(const HeadArgs&, int64_t, int64_t);

FASTADV_INSTANTIATE_HEAD(kCrossEntropy)
FASTADV_INSTANTIATE_HEAD(kBinaryCrossEntropy)
FASTADV_INSTANTIATE_HEAD(kMargin)
FASTADV_INSTANTIATE_HEAD(kDlr)
FASTADV_INSTANTIATE_HEAD(kKl)

FASTADV_NAMESPACE_END
