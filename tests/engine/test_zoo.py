"""fa.compile on many architectures: per-sample input gradients against float64's.

What is checked stands in bench/flips.py. Every net goes through the compiler, those too that
fa.compile would leave to plain torch.
"""

from __future__ import annotations

from collections.abc import Callable

import nets
import pytest
import torch
import torch.nn.functional as F
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastadv as fa
from bench import architectures
from bench.flips import assert_float64s, gradient
from fastadv.engine import Compiled


def through_the_compiler(model: nn.Module) -> Compiled:
    fast = fa.compile(model)
    fast._bypass = None
    return fast


def sample(batch: int, *shape: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(batch))
    return x, torch.arange(batch) % 10


def with_norms(build: Callable[[], nn.Module], size: int) -> Callable[[], nn.Module]:
    return lambda: nets.norm_statistics(build(), 3, size, size)


# The architectures at their own widths; (net, batch, shape of an image).
NETS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "resnet18": (with_norms(lambda: nets.ResNet18(64), 16), 5, (3, 16, 16)),
    "preact_resnet18": (with_norms(lambda: nets.ResNet18(64, True), 16), 5, (3, 16, 16)),
    # a quarter of -10's width, whose packed weights alone are over a GiB
    "wide_resnet_28_4": (with_norms(lambda: zoo.WideResNet(4, 4), 16), 3, (3, 16, 16)),
    "vgg16_bn": (with_norms(lambda: nets.vgg16_bn(64), 32), 3, (3, 32, 32)),
    "densenet": (with_norms(lambda: architectures.densenet(12, 3), 16), 6, (3, 16, 16)),
    "mobilenet": (with_norms(architectures.mobilenet, 16), 6, (3, 16, 16)),
    "lenet": (zoo.lenet, 6, (1, 28, 28)),
    "vit": (nets.ViT, 6, (3, 32, 32)),
    "vit_with_stem": (lambda: nets.ViT(stem=True), 6, (3, 32, 32)),
    "convnext": (architectures.ConvNeXt, 6, (3, 16, 16)),
    "unruly": (architectures.Unruly, 6, (3, 16, 16)),
    "tied": (with_norms(zoo.Tied, 16), 6, (3, 16, 16)),
    "parts": (zoo.Parts, 6, (3, 16, 16)),
    **{name: (with_norms(build, 12), 6, (3, 12, 12)) for name, build in zoo.LAYERS.items()},
}


DYNAMIC = ("tied", "unruly", "parts")  # the others at one size: a half or less to trace


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # Dynamo's, of an autograd op
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_float64s(name: str) -> None:
    build, batch, shape = NETS[name]
    model = build().eval()
    fast = through_the_compiler(model)
    fast._static_batch = name not in DYNAMIC
    assert_float64s(fast, model, *sample(batch, *shape))


def test_outputs_keep_their_structure_and_format() -> None:
    model = zoo.Parts().eval()
    fast = fa.compile(model)
    x, _ = sample(3, 3, 16, 16)
    for given_x in (x, x.contiguous(memory_format=torch.channels_last)):
        leaf, same = (given_x.clone().requires_grad_() for _ in range(2))
        found, exact = fast(leaf), model(same)
        assert found.keys() == exact.keys()
        assert found["name"] == "parts"
        for a, b in zip(found["images"], exact["images"], strict=True):
            assert a.stride() == b.stride()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        for y, leaf_of in ((found, leaf), (exact, same)):
            (y["logits"].sum() + y["images"][0].square().sum()).backward()
            assert leaf_of.grad is not None
        torch.testing.assert_close(leaf.grad, same.grad, rtol=1e-4, atol=1e-4)


def test_frozen_parameters_change_nothing() -> None:
    model = nets.norm_statistics(nets.MnistNet(), 1, 28, 28)
    x, y = sample(1, 1, 28, 28)
    fast = fa.compile(model)
    _, before = gradient(fast, x, y)
    model.conv2.weight.requires_grad_(False)
    assert torch.equal(gradient(fast, x, y)[1], before)
    model.requires_grad_(False)
    for again in (fast, fa.compile(model)):
        assert torch.equal(gradient(again, x, y)[1], before)


class Random(nn.Module):
    """Convolutions drawn by hypothesis, each with what may stand around it."""

    def __init__(self, channels: int, layers: list[dict[str, int]]) -> None:
        super().__init__()
        self.convs, self.norms, self.acts = nn.ModuleList(), nn.ModuleList(), []
        for layer in layers:
            groups = layer["groups"] if channels % layer["groups"] == 0 else 1
            outputs = layer["outputs"] * groups
            options = {k: layer[k] for k in ("stride", "padding", "dilation")}
            bias = layer["bias"] > 0
            conv = nn.Conv2d(channels, outputs, layer["size"], groups=groups, bias=bias, **options)
            self.convs.append(conv)
            self.norms.append(nn.BatchNorm2d(outputs) if layer["norm"] else nn.Identity())
            self.acts.append((torch.tanh, F.relu, F.relu, F.softplus)[layer["act"]])
            channels = outputs
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm, act in zip(self.convs, self.norms, self.acts, strict=True):
            y = norm(conv(x))
            x = act(y + x if y.shape == x.shape else y)
        return self.fc(x.square().mean((2, 3)))


LAYER = st.fixed_dictionaries({
    "size": st.sampled_from([3, 3, 3, 3, 1, 2, 5]), "stride": st.sampled_from([1, 1, 1, 2]),
    "padding": st.integers(0, 2), "dilation": st.sampled_from([1, 1, 1, 2]),
    "groups": st.sampled_from([1, 1, 1, 2, 4]), "outputs": st.sampled_from([3, 8, 12, 16, 20]),
    "bias": st.integers(0, 1), "norm": st.integers(0, 1), "act": st.integers(0, 3),
})  # fmt: skip


@settings(max_examples=8)
@given(
    layers=st.lists(LAYER, min_size=1, max_size=3),
    batch=st.sampled_from([1, 2, 3, 17]),
    channels=st.sampled_from([1, 3, 8, 16]),
    size=st.tuples(st.integers(11, 17), st.integers(11, 17)),
    channels_last=st.booleans(),
)
def test_random_nets(
    layers: list[dict[str, int]], batch: int, channels: int, size: tuple[int, int],
    channels_last: bool,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    x, y = sample(batch, channels, *size)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    model = nets.norm_statistics(Random(channels, layers), channels, *size)
    assert_float64s(through_the_compiler(model), model, x, y)
