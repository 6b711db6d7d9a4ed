"""Images of either order in fast.learn, and models that read them flat or write on them."""

from __future__ import annotations

import copy

import learners
import pytest
import torch
from learners import close, data, gradients, native, smooth_net, warm
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine.learning_choice import Kernels

kernels = learners.kernels


@native
@pytest.mark.parametrize("in_format", [torch.contiguous_format, torch.channels_last])
def test_images_of_either_format(kernels: Kernels, in_format: torch.memory_format) -> None:
    model, (x, y) = smooth_net(inplace=True).eval(), data(1)
    exact = copy.deepcopy(model).double()
    got = gradients(warm(model, x).learn, model, x.to(memory_format=in_format), y)
    close(got, gradients(exact, exact, x.double(), y))
    assert all(p.grad is not None and p.grad.is_contiguous() for p in model.parameters())


class Viewing(nn.Module):
    """Flat images after a convolution, and what writes on them, or before."""

    def __init__(self, view: str, writes: str = "") -> None:
        super().__init__()
        self.conv, self.view, self.writes = nn.Conv2d(9, 16, 3, padding=1), view, writes

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        flat = {
            "view": lambda: y.view(len(x), -1),
            "view by name": lambda: y.view(size=(len(x), -1)),
            "flatten": lambda: torch.flatten(y, 1),
            "reshape": lambda: y.reshape(len(x), -1),
            "contiguous": lambda: y.contiguous().flatten(1),
            "flatten by name": lambda: torch.flatten(input=y, start_dim=1),
            "one by one": lambda: torch.stack([one.view(-1) for one in y]),
            "strided": lambda: torch.as_strided(y, (len(x), 1008), (1008, 1)),
        }[self.view]()
        if self.writes == "on the view":
            flat.mul_(2)
        if self.writes == "on the images":
            y.mul_(3)
        return flat[:, :5] * y.mean((1, 2, 3))[:, None]


@native
@pytest.mark.parametrize("writes", ["", "on the view", "on the images"])
@pytest.mark.parametrize(
    "view",
    [
        "view",
        "view by name",
        "flatten",
        "flatten by name",
        "reshape",
        "contiguous",
        "strided",
        "one by one",
    ],
)
def test_views_are_those_of_contiguous_images(kernels: Kernels, view: str, writes: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = Viewing(view, writes), data()
    exact = copy.deepcopy(model).double()
    expected = gradients(exact, exact, x.double(), y)
    fast = fa.compile(model)
    if view == "one by one" and writes == "on the images":  # as the first forward does not show
        fast.learn(x)
        with pytest.raises(RuntimeError, match=r"wrote in place on a view of its images.*again"):
            fast.learn(x)
    for _ in range(3):
        close(gradients(fast.learn, model, x, y), expected)


@native
def test_a_write_that_comes_later_raises_once() -> None:
    torch.manual_seed(0)
    model, (x, y) = Viewing("flatten"), data()
    fast = warm(model, x)
    model.writes = "on the view"
    exact = copy.deepcopy(model).double()
    with pytest.raises(RuntimeError, match=r"wrote in place on a view of its images.*again"):
        fast.learn(x)
    close(gradients(fast.learn, model, x, y), gradients(exact, exact, x.double(), y))
