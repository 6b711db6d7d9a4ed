"""fast.learn: the model's own forward and all its gradients, on kernels of ours."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import learners
import pytest
import torch
import torch.nn.functional as F
from learners import OURS, close, data, gradients, native, smooth_net, warm
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import learning_choice
from fastadv.engine.learning_choice import Kernels
from fastadv.engine.speeds import ATEN, WINOGRAD

kernels = learners.kernels


@native
@pytest.mark.parametrize("warmed", [False, True])
def test_loss_gradients_and_statistics_are_float64s(kernels: Kernels, warmed: bool) -> None:
    model, (x, y) = smooth_net(), data()
    exact = copy.deepcopy(model).double()
    fast = warm(model, x) if warmed else fa.compile(model)
    got = gradients(fast.learn, model, x, y)
    close(got, gradients(exact, exact, x.double(), y))
    layers = {row.layer: row.served_by for row in fast.report().graphs["learn"]}
    assert layers == dict.fromkeys(("0", "3", "5"), ", ".join(kernels))


@native
@pytest.mark.parametrize("stride", [1, 2])
def test_strides_and_biases(kernels: Kernels, stride: int) -> None:
    if stride == 2 and kernels == OURS:
        kernels = Kernels(WINOGRAD, WINOGRAD, ATEN)
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 20, 3, stride, 1)
    exact = copy.deepcopy(conv).double()
    model = nn.Sequential(conv, nn.Flatten())
    x, y = torch.rand(3, 12, 9, 6), torch.arange(3)
    fast = fa.compile(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning_choice, "kernels_of", lambda *_: kernels)
        got = gradients(fast.learn, model, x, y)
    close(got, gradients(nn.Sequential(exact, nn.Flatten()), exact, x.double(), y))


@native
def test_a_gradient_of_a_gradient_is_torchs(kernels: Kernels) -> None:
    model, (x, y) = smooth_net(), data()
    exact = copy.deepcopy(model).double()

    def penalty(forward: Callable[[Tensor], Tensor], of: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(forward(x), y), x, create_graph=True)
        of.zero_grad()
        grad.square().sum().backward()
        return [p.grad for p in of.parameters() if p.grad is not None]

    got = penalty(warm(model, x).learn, model, x)
    assert len(got) > 5
    close(got, penalty(exact, exact, x.double()), 1e-4)


@native
def test_frozen_weights_get_no_gradient_and_the_rest_do(kernels: Kernels) -> None:
    model, (x, y) = smooth_net(), data()
    model[0].weight.requires_grad_(False)
    exact = copy.deepcopy(model).double()
    fast = warm(model, x)
    for one, forward, images in ((model, fast.learn, x), (exact, exact, x.double())):
        one.zero_grad()
        F.cross_entropy(forward(images), y).backward()
    assert model[0].weight.grad is None
    got, expected = (
        [p.grad for p in one.parameters() if p.grad is not None] for one in (model, exact)
    )
    close(got, expected)


@native
def test_what_no_kernel_serves_is_torchs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(9, 18, 3, groups=3), nn.Conv2d(18, 9, 3, padding="same"),
        nn.ConvTranspose2d(9, 9, 3), nn.Conv2d(9, 2, 9, padding=1),
    )  # fmt: skip
    fast, (x, _) = fa.compile(model), data()
    torch.testing.assert_close(fast.learn(x), model(x), rtol=1e-5, atol=1e-6)
    for images in (x.double(), x.bfloat16()):
        one = copy.deepcopy(model).to(images.dtype)
        torch.testing.assert_close(fa.compile(one).learn(images), one(images))
    with torch.autocast("cpu"):
        torch.testing.assert_close(fast.learn(x), model(x))
    with torch.no_grad():
        torch.testing.assert_close(fast.learn(x), model(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast.learn(x[:0]), model(x[:0]))


@native
def test_a_bias_that_is_a_view(kernels: Kernels) -> None:
    weight, biases = torch.randn(16, 9, 3, 3), torch.randn(16, 2)

    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.biases = nn.Parameter(weight), nn.Parameter(biases)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, self.biases[:, 1], padding=1).tanh().flatten(1)

    model, (x, y) = Viewed(), data()
    exact = copy.deepcopy(model).double()
    close(gradients(warm(model, x).learn, model, x, y), gradients(exact, exact, x.double(), y))


@native
def test_a_mistake_is_torchs_own_error() -> None:
    fast, (x, _) = fa.compile(smooth_net()), data()
    with pytest.raises(RuntimeError, match="expected input"):
        fast.learn(x[:, :5])


@native
def test_a_net_learns_as_by_torch() -> None:
    """Ten steps of SGD from the same weights: the losses agree, and fall."""
    losses = []
    for compiled in (False, True):
        model, (x, y) = smooth_net(), data(24)
        forward = fa.compile(model).learn if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses.append([])
        for _ in range(10):
            loss = F.cross_entropy(forward(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1][-1] < 0.9 * losses[1][0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the outer one's
def test_an_outer_compile_breaks_its_graph_there() -> None:
    model, (x, y) = smooth_net(), data()
    fast = warm(model, x)
    expected = gradients(fast.learn, model, x, y)
    outer = torch.compile(lambda x: fast.learn(x * 1.0) * 1.0, backend="eager")
    model.load_state_dict(smooth_net().state_dict())
    close(gradients(outer, model, x, y), expected, 1e-6)


@native
def test_beside_an_attack_in_another_thread_weights_and_statistics_learn() -> None:
    model, (x, y) = smooth_net(), data()
    fast, z, done = fa.compile(model), x.clone().requires_grad_(), threading.Event()
    fast(z).sum().backward()
    fast.learn(x)
    tracked = model[1].num_batches_tracked

    def attack() -> None:
        while not done.is_set():
            fast(z).sum().backward()

    other = threading.Thread(target=attack)
    other.start()
    try:
        before = int(tracked)
        for _ in range(50):
            for p in model.parameters():
                p.grad = None
            F.cross_entropy(fast.learn(x), y).backward()
            with fast._lock:
                assert all(p.grad is not None for p in model.parameters())
    finally:
        done.set()
        other.join()
    assert int(model[1].num_batches_tracked) == before + 50


@native
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, by jvp
def test_torch_funcs_transforms_are_torchs() -> None:
    model, (x, _) = smooth_net().eval(), data()
    fast = warm(model, x)
    for transform in (
        lambda f: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f: torch.func.vmap(lambda one: f(one[None])[0])(x),
        lambda f: torch.func.jvp(f, (x,), (x,))[1],
    ):
        torch.testing.assert_close(transform(fast.learn), transform(model))


@native
def test_other_defaults_than_torchs_own(kernels: Kernels) -> None:
    model, (x, y) = smooth_net(), data()
    fast = warm(model, x)
    expected = gradients(fast.learn, model, x, y)
    model.load_state_dict(smooth_net().state_dict())
    torch.set_default_dtype(torch.float64)
    try:
        got = gradients(fast.learn, model, x, y)
    finally:
        torch.set_default_dtype(torch.float32)
    close(got, expected, 1e-6)


@native
def test_the_report_says_what_serves_each_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.Tanh(), nn.Flatten())
    fast = fa.compile(model)
    for n in (1, 32):
        fast.learn(torch.rand(n, 128, 16, 16))
    rows = fast.report().graphs["learn"]
    assert [row.layer for row in rows] == ["0", "0"]
    assert [row.op[-4:] for row in rows] == ["ke 1", "e 32"]
