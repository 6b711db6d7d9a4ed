"""The fused heads' laws, for any logits: shifts, scales, signs and sums."""

from __future__ import annotations

import torch
from head_cases import one_row
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastadv.reference_head import CROSS_ENTROPY, DLR, KL, MARGIN

rows = st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=150)
law = settings(max_examples=80, deadline=None)


def call(head: int, row: Tensor, y: int, targeted: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    return one_row(head, targeted, row.tolist(), y % len(row), row.dtype).run()


@law
@given(rows, st.integers(0, 149), st.floats(-100, 100))
def test_cross_entropy_ignores_a_shift(row: list[float], y: int, shift: float) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    torch.testing.assert_close(
        call(CROSS_ENTROPY, z + shift, y)[0], call(CROSS_ENTROPY, z, y)[0], rtol=1e-11, atol=1e-11
    )


@law
@given(rows, st.integers(0, 149), st.sampled_from([CROSS_ENTROPY, MARGIN, DLR, KL]), st.booleans())
def test_gradients_sum_to_zero(row: list[float], y: int, head: int, targeted: bool) -> None:
    grad = call(head, torch.tensor(row, dtype=torch.float64), y, targeted)[1]
    assert abs(grad.sum().item()) <= 1e-13 * (1 + grad.abs().sum().item())


@law
@given(rows, st.integers(0, 149), st.sampled_from([MARGIN, DLR]))
def test_positive_means_misclassified(row: list[float], y: int, head: int) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    loss, _, prediction = call(head, z, y)
    label = y % len(row)
    if bool(loss > 0):
        assert prediction.item() != label
    elif bool(loss < 0):
        assert prediction.item() == label
    else:
        assert z[prediction] == z[label]
    assert not loss.isnan()


@law
@given(
    st.lists(st.integers(-1000, 1000), min_size=4, max_size=150),
    st.integers(0, 149),
    st.integers(-50, 50),
    st.floats(0.01, 100),
    st.booleans(),
)
def test_dlr_ignores_shift_and_scale(
    row: list[int], y: int, shift: int, scale: float, targeted: bool
) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    loss, grad, _ = call(DLR, z, y, targeted)
    first, _, third, fourth = z.sort(descending=True).values[:4].tolist()
    if first == (third + fourth) / 2 if targeted else first == third:
        assert loss == (z[(y + 1) % len(z)] if targeted else z.max()) - z[y % len(z)] or loss <= 0
        return
    moved, moved_grad, _ = call(DLR, scale * (z + shift), y, targeted)
    torch.testing.assert_close(moved, loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved_grad * scale, grad, rtol=1e-9, atol=1e-9)
