// The heads' formulas on a block of samples: loss, gradient of the logits of the summed loss, and
// prediction. What they define, at every edge, stands in fastadv/reference_head.py.
#pragma once

#include "elementary.h"
#include "panel.h"

FASTADV_NAMESPACE_BEGIN

template <class C>
struct Outcome {
  Vector<C> loss;
  Int<Vector<C>> prediction;
};

// A gradient with few entries: at[i] gets the sum of the coefficients that stand there.
template <class C, int kEntries>
struct Entries {
  using V = Vector<C>;
  using I = Int<V>;
  I at[kEntries];
  V coefficient[kEntries];
  FASTADV_FN V total(int i) const {
    V sum = {};
    for (int j = 0; j < kEntries; ++j) sum += at[j] == at[i] ? coefficient[j] : V{};
    return sum;
  }
};

template <class C>
struct Block {  // what a head sees: `registers` registers a panel
  using V = Vector<C>;
  using I = Int<V>;
  C* z;  // logits; dense heads leave their gradient here
  C* y;  // bce, kl
  int64_t registers;
  I label;   // -1 if it is no class
  I target;  // targeted dlr
  V sign;    // -1 where the targeted form is the negative
  FASTADV_FN V logit(int64_t k) const { return load(z + k * kLanes<C>); }
  FASTADV_FN V weight(int64_t k) const { return load(y + k * kLanes<C>); }
  FASTADV_FN void put(int64_t k, V v) const { store(z + k * kLanes<C>, encode<C>(v)); }
  template <class L>
  FASTADV_FN V logit_of(I classes) const {  // 0 where it is no class
    return L::pick(z, registers, classes);
  }
  template <class L, int kKept>
  FASTADV_FN Largest<C, kKept> largest(I except) const {
    Largest<C, kKept> top(L::classes_of(0));
    for (int64_t k = 0; k < registers; ++k) {
      const I c = L::classes_of(k);
      top.insert(c == except ? constant<V>(-__builtin_inf()) : logit(k), c);
    }
    L::merge(top);
    return top;
  }
};

template <class V>
FASTADV_FN V nan_unless(Int<V> valid, V v) {
  return valid ? v : constant<V>(__builtin_nan(""));
}

// -log softmax(z)_y. The largest logit's 1 is kept out of the sum: what it is added to survives,
// and a loss or a gradient of 1e-20 is not rounded to 0, where a sample that is sure of y would
// stall.
template <class L, class C>
FASTADV_FN Outcome<C> cross_entropy(const Block<C>& block) {
  using V = Vector<C>;
  using I = Int<V>;
  const I y = block.label, valid = y >= 0;
  const auto top = block.template largest<L, 1>(I{} - 1);
  const V largest = top.value[0], at_label = block.template logit_of<L>(y) - largest;
  V rest = {};
  for (int64_t k = 0; k < block.registers; ++k) {
    const V e = exp_of_negative(block.logit(k) - largest);
    rest += L::classes_of(k) == top.index[0] ? V{} : e;
    block.put(k, e);
  }
  rest = L::sum(rest) + (largest - largest);  // NaN if the largest is not finite, as in torch
  const V total = constant<V>(1) + rest, inverse = constant<V>(1) / total;
  const V scale = valid ? block.sign * inverse : V{};
  const V less_one = y == top.index[0] ? -rest : exp_of_negative(at_label) - total;
  for (int64_t k = 0; k < block.registers; ++k) {
    block.put(k, (L::classes_of(k) == y ? less_one : block.logit(k)) * scale);
  }
  const V loss = log1p_of_positive(rest, inverse) - at_label;
  return {nan_unless(valid, block.sign * loss), top.index[0]};
}

// KL(y || softmax(z)) = sum_j y_j (log y_j - log softmax(z)_j), 0 where y_j = 0.
template <class L, class C>
FASTADV_FN Outcome<C> kl(const Block<C>& block) {
  using V = Vector<C>;
  const auto top = block.template largest<L, 1>(Int<V>{} - 1);
  V total = {}, mass = {}, cross = {};
  for (int64_t k = 0; k < block.registers; ++k) {
    const V shifted = block.logit(k) - top.value[0], e = exp_of_negative(shifted),
            y = block.weight(k);
    const V term = y * (log_of_positive(y) - shifted);
    cross += y > 0 ? term : nan_unless(y == 0, V{});
    mass += y;
    total += e;
    block.put(k, e);
  }
  total = L::sum(total), mass = L::sum(mass), cross = L::sum(cross);
  const V scale = block.sign * mass / total;
  for (int64_t k = 0; k < block.registers; ++k) {
    block.put(k, block.logit(k) * scale - block.weight(k) * block.sign);
  }
  return {block.sign * (cross + mass * log_of_positive(total)), top.index[0]};
}

// sum_j log(1 + exp(s_j)), s = (1 - 2 y) z; an entry of y that is neither 0 nor 1 gives a NaN loss.
template <class L, class C>
FASTADV_FN Outcome<C> binary_cross_entropy(const Block<C>& block) {
  using V = Vector<C>;
  using I = Int<V>;
  V loss = {};
  for (int64_t k = 0; k < block.registers; ++k) {
    const V z = block.logit(k), y = block.weight(k);
    const I one = y == 1, valid = one | (y == 0);
    const V s = one ? -z : z;
    const V e = exp_of_negative(s > 0 ? -s : s), share = constant<V>(1) / (constant<V>(1) + e);
    const V sigmoid = s > 0 ? share : e * share;
    loss += nan_unless(valid, (s < 0 ? V{} : s) + log1p_of_positive(e, share));
    const V grad = one ? -sigmoid : sigmoid;
    block.put(k, valid ? grad * block.sign : V{});
  }
  return {L::sum(loss) * block.sign, I{}};
}

// max_{j != y} z_j - z_y.
template <class L, class C>
FASTADV_FN Outcome<C> margin(const Block<C>& block, Entries<C, 2>& grad) {
  using V = Vector<C>;
  using I = Int<V>;
  const I y = block.label, valid = y >= 0;
  const auto other = block.template largest<L, 1>(y);
  const V at_label = block.template logit_of<L>(y);
  auto top = other;
  top.insert_unordered(valid ? at_label : constant<V>(-__builtin_inf()),
                       valid ? y : other.index[0]);
  grad.at[0] = other.index[0], grad.coefficient[0] = valid ? block.sign : V{};
  grad.at[1] = valid ? y : I{}, grad.coefficient[1] = valid ? -block.sign : V{};
  return {nan_unless(valid, block.sign * (other.value[0] - at_label)), top.index[0]};
}

// (max_{j != y} z_j - z_y) / (z_1st - z_3rd), targeted (z_t - z_y) / (z_1st - (z_3rd + z_4th) / 2).
// Where the divisor is 0 (the top logits are equal: no scale) it counts as 1.
template <class L, bool kTargeted, class C>
FASTADV_FN Outcome<C> dlr(const Block<C>& block, Entries<C, 5>& grad) {
  using V = Vector<C>;
  using I = Int<V>;
  const I y = block.label, valid = (y >= 0) & (kTargeted ? block.target >= 0 : y >= 0);
  const auto top = block.template largest<L, kTargeted ? 4 : 3>(I{} - 1);
  const I first = top.index[0] != y;
  const I runner_up = first ? top.index[0] : top.index[1];
  const I other = kTargeted ? block.target : runner_up;
  const V margin = block.template logit_of<L>(other) - block.template logit_of<L>(y);
  const V third = top.value[2], fourth = top.value[kTargeted ? 3 : 2];
  const V spread = top.value[0] - (third + fourth) * constant<V>(.5);
  const V divisor = spread == 0 ? constant<V>(1) : spread;
  const V slope = valid ? constant<V>(1) / divisor : V{}, loss = margin / divisor;
  const I scaled = valid & (spread != 0);
  const V pull = scaled ? loss * slope : V{};
  const I at[5] = {other, y, top.index[0], top.index[2], top.index[kTargeted ? 3 : 2]};
  const V half = pull * constant<V>(.5);
  const V coefficient[5] = {slope, -slope, -pull, half, half};
  for (int i = 0; i < 5; ++i) {
    grad.at[i] = valid ? at[i] : I{};
    grad.coefficient[i] = coefficient[i];
  }
  return {nan_unless(valid, loss), top.index[0]};
}

FASTADV_NAMESPACE_END
