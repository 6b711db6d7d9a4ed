"""What a forward borrows of a model, in C++ and in Python: it all comes back, whatever happens."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_compile import gradient
from test_live import in_threads
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import loans

WAYS = {
    "python": (loans.lent_in_python, loans.modes_in_python),
    "used": (loans.lent, loans.modes_of),
}
X, Y = torch.rand(2, 6, generator=torch.Generator().manual_seed(0)), torch.arange(2)
Lent = Callable[..., Any]


@pytest.fixture(params=WAYS)
def lent(request: pytest.FixtureRequest) -> Lent:
    return WAYS[request.param][0]


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def kept(model: nn.Module) -> Callable[[], bool]:
    """Whether the model has its own tensors, and the same numbers in them."""
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = copy.deepcopy(model.state_dict())

    def same() -> bool:
        after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        own = before.keys() == after.keys() and all(after[n] is t for n, t in before.items())
        return own and all(torch.equal(t, values[n]) for n, t in model.state_dict().items())

    return same


def test_parameters_are_aliases_and_buffers_copies_in_train_mode(lent: Lent) -> None:
    model = make_net()
    same, own = kept(model), model[0].weight

    def look(x: Tensor) -> Tensor:
        weight = model[0].weight
        assert not weight.requires_grad
        assert weight.data_ptr() == own.data_ptr()
        assert weight._version == own._version  # a write in place between is seen by autograd
        own.data = own.data.clone()  # nor is what another puts there lost
        return model(x)

    lent(model, None, look, X)
    assert same()
    assert model[0].weight is own
    assert own.requires_grad
    statistics = model[1].running_mean
    lent(model.eval(), None, lambda x: model[1].running_mean is statistics or 1 / 0, X)


def test_all_comes_back_after_an_error(lent: Lent) -> None:
    model = make_net()
    same = kept(model)

    def fails(x: Tensor) -> Tensor:
        model(x)
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        lent(model, None, fails, X)
    assert same()
    given = iter([model[0].weight.detach(), model[0].bias.detach()])
    with pytest.raises(StopIteration):  # when half is lent
        lent(model, lambda parameter: next(given), model, X)
    assert same()


def test_tied_weights_stay_tied(lent: Lent) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    both = nn.Sequential(model[0], nn.Linear(6, 6))
    both[1].weight = model[0].weight

    def ties(_: Tensor) -> bool:
        return model[0].weight is model[1].weight is both[1].weight

    assert lent(model, None, lambda x: model[0].weight is model[1].weight, X)
    assert lent(model, None, lambda x: lent(both, None, ties, x), X)
    assert isinstance(model[0].weight, nn.Parameter)
    assert ties(X)


@pytest.mark.parametrize("first", ["outer", "inner"])
def test_the_last_of_those_that_share_gives_back(lent: Lent, first: str) -> None:
    model = make_net().eval()
    both, same = nn.Sequential(model, nn.Identity()), kept(model)
    order = {name: threading.Event() for name in ("inside", "gone")}
    seen = []

    def stays(x: Tensor) -> None:
        order["inside"].set()
        assert order["gone"].wait(10)
        seen.append(model[0].weight.requires_grad)

    def goes() -> None:
        assert order["inside"].wait(10)
        lent(both if first == "outer" else model, None, lambda x: None, X)
        order["gone"].set()

    in_threads(lambda: lent(model if first == "outer" else both, None, stays, X), goes)
    assert seen == [False]
    assert same()


def test_threads_side_by_side(lent: Lent) -> None:
    model = make_net()
    both, same = nn.Sequential(model, nn.Identity()), kept(model)

    def run(of: nn.Module) -> Callable[[], None]:
        def forward(x: Tensor) -> None:
            assert not any(p.requires_grad for p in model.parameters())
            of(x)
            assert not any(p.requires_grad for p in model.parameters())

        return lambda: [lent(of, None, forward, X) for _ in range(200)] and None

    in_threads(run(model), run(both), run(model))
    assert same()


@pytest.mark.parametrize("way", WAYS)
def test_modes(way: str) -> None:
    model = make_net()
    model[1].eval()
    model.append(model[0])  # once
    assert WAYS[way][1](model) == (True, True, False, True, True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_no_plain_module_is_an_error() -> None:
    scripted = torch.jit.script(nn.Linear(6, 3))
    with pytest.raises((TypeError, AttributeError)):
        fa.compile(scripted)(X.clone().requires_grad_())


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "data": lambda m: setattr(m[0].weight, "data", m[0].weight.data.flip(0)),
    "in place": lambda m: m[0].weight.data.mul_(-2),
    "transposed": lambda m: setattr(m[0].weight, "data", m[0].weight.data.t().flip(0, 1).t()),
    "assigned": lambda m: m.load_state_dict(
        {n: t * 2 for n, t in m.state_dict().items()}, assign=True
    ),
    "loaded": lambda m: m.load_state_dict({n: t * 2 for n, t in m.state_dict().items()}),
    "replaced": lambda m: m.__setitem__(0, nn.Linear(6, 4)),
    "added": lambda m: m.append(nn.Linear(3, 3)),
    "deep within": lambda m: m.__setitem__(2, nn.Sequential(nn.Tanh(), nn.Linear(4, 4))),
    "train mode": lambda m: m.train(),
    "hook": lambda m: m[0].register_forward_hook(lambda module, x, y: y * 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_runs_as_plain_torch_is_followed(change: str) -> None:
    model = make_net().eval()
    fast = fa.compile(model)
    before = gradient(fast, X, Y)[1]
    CHANGES[change](model)
    same, exact = kept(model), copy.deepcopy(model)
    leaf = X.clone().requires_grad_()
    nn.functional.cross_entropy(fast(leaf), Y, reduction="sum").backward()
    assert torch.equal(leaf.grad, gradient(exact, X, Y)[1])
    assert not torch.equal(leaf.grad, before)
    assert same()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_hook_on_the_compiled_model_itself_is_called() -> None:
    fast = fa.compile(make_net().eval())
    before = fast(X)
    fast.register_forward_hook(lambda module, given, result: result * 2)
    assert torch.equal(fast(X), before * 2)


def test_a_write_between_forward_and_backward_is_an_error() -> None:
    model = make_net().eval()
    leaf = X.clone().requires_grad_()
    y = fa.compile(model)(leaf)
    with torch.no_grad():
        model[3].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the outer one's
def test_an_outer_compile_sees_nothing_of_a_model_that_runs_as_plain_torch() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    for _ in range(10):  # more models than Dynamo compiles one function for
        model = make_net().eval()
        fast = fa.compile(model)
        outer = torch.compile(lambda x, fast=fast: fast(x * 2.0) * 2.0, backend=backend)
        leaf = X.clone().requires_grad_()
        outer(leaf).sum().backward()
        other = X.clone().requires_grad_()
        (fast(other * 2.0) * 2.0).sum().backward()
        assert torch.equal(leaf.grad, other.grad)
        assert all(p.grad is None for p in model.parameters())
    targets = {node.target for graph in graphs for node in graph.graph.nodes}
    assert not any("linear" in str(target) for target in targets)
    assert graphs
