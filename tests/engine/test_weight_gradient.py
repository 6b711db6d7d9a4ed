"""The gradient of a 3x3 convolution by its weights, by Winograd's transforms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastadv as fa
from fastadv.engine import calls
from fastadv.engine.reference_winograd import learn_scratch

native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
sizes = st.tuples(
    st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.integers(1, 19),
    st.integers(1, 19), st.integers(0, 2),
).filter(lambda s: s[5] or min(s[3], s[4]) > 2)  # fmt: skip


@native
@given(sizes)
@settings(max_examples=60, deadline=None)
def test_the_gradient_by_weights_is_float64s(size: tuple[int, int, int, int, int, int]) -> None:
    n, channels, outputs, height, width, padding = size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, height, width, channels, generator=generator).permute(0, 3, 1, 2)
    shape = n, height + 2 * padding - 2, width + 2 * padding - 2, outputs
    grad = torch.randn(shape, generator=generator).permute(0, 3, 1, 2)
    found = calls.winograd_weight_gradient(x, grad, padding)
    like = outputs, channels, 3, 3
    exact = torch.nn.grad.conv2d_weight(x.double(), like, grad.double(), padding=padding)
    assert float((found - exact).norm()) <= 1e-5 * float(exact.norm())


@native
def test_the_gradient_by_weights_is_the_same_with_any_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 17, 13, 40, generator=generator).permute(0, 3, 1, 2)
    grad = torch.randn(9, 17, 13, 70, generator=generator).permute(0, 3, 1, 2)
    before, found = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(calls.winograd_weight_gradient(x, grad, 1))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@native
def test_the_op_checks_what_it_is_given() -> None:
    x, grad = torch.rand(2, 8, 8, 5), torch.rand(2, 8, 8, 7)
    scratch = torch.empty(learn_scratch(x, grad))
    op = torch.ops.fastadv.winograd_weight_gradient_
    op(torch.empty(7, 5, 3, 3), scratch, x, grad, 1)
    for args, named in (
        ((torch.empty(5, 7, 3, 3), scratch, x, grad, 1), "`weight`"),
        ((torch.empty(7, 5, 3, 3), scratch[:-1], x, grad, 1), "`scratch`"),
        ((torch.empty(7, 5, 3, 3), scratch, x, grad, 0), "`grad`"),
        ((torch.empty(7, 5, 3, 3), scratch, x[:0], grad[:0], 1), "`x`"),
        ((torch.empty(7, 5, 3, 3), scratch, x, grad.double(), 1), "`grad`"),
    ):
        with pytest.raises(RuntimeError, match=named):
            op(*args)
