"""Run by test_dense_interpreted.py, in a process of its own: TRITON_INTERPRET=1 holds for it all.

In the interpreter products are numpy's, in float32: x_adv is the definition's to the bit in linf.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastadv.kernels import dense_launch
from fastadv.kernels.dense_plan import Tile, lay_out
from tests.emulator.dense_cases import Net

NETS = [
    *[Net(sizes, 20, "tf32", norm, leak)
      for sizes in ((20, 5), (33, 16, 1), (33, 40, 19, 10), (21, 20, 33, 18, 40, 10))
      for norm, leak in ((0, 0.2), (1, 0.0))],
    *[Net((21, 20, 33, 7), 17, "tf32", 0, 0.0, head, targeted, seed=4)
      for head, targeted in ((0, True), (1, True), (2, False), (3, False), (3, True), (4, True))],
]  # fmt: skip


@pytest.mark.parametrize("net", NETS, ids=repr)
def test_the_definitions_points(net: Net) -> None:
    if net.sizes[-1] == 1:
        net.head, net.y = 1, torch.ones(net.samples, 1)
    tile = Tile(16, 16, 16, 4)
    weights, _, biases, sizes, _, _ = net.stack()
    leaks = (net.leak,) * (len(sizes) - 2) + (1.0,)
    stack = lay_out(tuple(sizes), leaks, tile)
    x_adv, seen = net.x.clone(), torch.zeros(net.samples)
    with np.errstate(all="ignore"):  # both sides of a tl.where are computed
        dense_launch.launch(
            x_adv, seen, net.x, net.step_size, net.radius, dense_launch.box_of(net.bounds, net.x),
            *dense_launch.pack(weights, biases, sizes, stack), net.y, net.target, 3, net.norm,
            net.head, net.targeted, stack, tile, products="ieee",
        )  # fmt: skip
    expected, _ = net.expected(3)
    difference = (x_adv - expected).abs()
    if net.norm == 0:
        assert torch.equal(x_adv, expected)
    else:
        assert float(difference.max()) <= 1e-5
    assert float((x_adv - net.x).abs().max()) > 0.02
    assert not seen.isnan().any()
