"""Which models and attacks take dense_pgd_, what says so, and that weights are seen as they are."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import dense_plan

native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")

X, Y = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 4
ATTACK = fa.pgd(fa.L2(0.5), 0.1, 5, start="zero")


class Net(nn.Module):
    """A chain in a forward of its own; `kind` chooses one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.a, self.b = nn.Linear(12, 9), nn.Linear(9, 7, bias=False)
        self.c, self.drop = nn.Linear(7, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "views":
            x = torch.tanh(self.a(x.view(x.shape[0], -1)))
            return self.c(torch.sigmoid(self.b(self.drop(x)))).reshape(-1, 4)
        if self.kind == "functions":
            x = F.gelu(self.a(torch.flatten(x, 1)), approximate="tanh")
            return self.c(F.leaky_relu(self.b(x), 0.3))
        if self.kind == "in place":
            return self.c(self.b(self.a(x.flatten(1)).relu_()))
        x = F.gelu(self.a(x.flatten(1)))
        if self.kind == "residual":
            return self.c(self.b(x + self.drop(x)))
        if self.kind == "two activations":
            return self.c(self.b(x.tanh()))
        if self.kind == "softmax":
            return self.c(self.b(x)).log_softmax(1)
        if self.kind == "branch":
            return self.c(self.b(x)) if float(x.detach().sum()) > 0 else self.c(self.b(-x))
        if self.kind == "square":
            return self.c(self.b(x @ x.t() @ x))
        return self.c(self.b(x.flip(1) * 1))


def sequential() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(12, 9), nn.LeakyReLU(), nn.Dropout(0.5))
    return nn.Sequential(nn.Flatten(), inner, nn.Identity(), nn.Linear(9, 4), nn.Sigmoid())


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= 1e-5


@native
@pytest.mark.parametrize("make", [
    sequential,
    lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
    *[lambda kind=kind: Net(kind) for kind in ("views", "functions", "in place")],
])  # fmt: skip
def test_stacks_of_any_class_are_found(make: Callable[[], nn.Module]) -> None:
    model = make()
    fast = fa.compile(model)
    assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))
    assert "plain attacks take all steps in one call, float32 products" in str(fast.report())
    assert "step by step" not in str(fast.report())
    assert close(ATTACK(fast, X[:1], Y[:1]), ATTACK(model, X[:1], Y[:1]))
    fast.eval()
    logits = fast(leaf := X.clone().requires_grad_())  # and autograd serves, as before
    assert torch.equal(logits, model(X))
    logits.sum().backward()
    assert leaf.grad is not None
    assert all(p.grad is None for p in model.parameters())


@native
@pytest.mark.parametrize(
    "kind", ["residual", "two activations", "softmax", "branch", "square", "flip"]
)
def test_other_models_go_step_by_step(kind: str) -> None:
    model = Net(kind)
    fast = fa.compile(model)
    assert torch.equal(ATTACK(fast, X, Y), ATTACK(model, X, Y))
    assert "attacks step by step: it is no dense stack" in str(fast.report())


@native
def test_what_a_module_reads_is_guarded() -> None:
    model = Net("views")
    fast = fa.compile(model)
    assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))
    model.kind = "functions"
    assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))
    assert "gelu (tanh), leaky_relu" in str(fast.report())
    model.b = nn.Linear(9, 7)
    assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))
    model.kind = "softmax"
    assert torch.equal(ATTACK(fast, X, Y), ATTACK(model, X, Y))


@native
def test_hooks_and_training_dropout_are_seen() -> None:
    model = sequential()
    fast = fa.compile(model)
    ATTACK(fast, X, Y)
    assert "in one call" in str(fast.report())
    handle = model[3].register_forward_hook(lambda module, given, result: result.flip(1))
    assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))
    handle.remove()
    assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))
    assert "in one call" in str(fast.report())
    fa.pgd(fa.L2(0.5), 0.1, 5, mode="train")(fast, X, Y)
    assert "step by step: it is no dense stack" in str(fast.report())
    assert not ATTACK(fast, X, Y).equal(X)
    assert model[1][2].training  # type: ignore[index]  # as it was


@native
@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (fa.mi_fgsm(fa.Linf(0.1)), "its rule is Momentum"),
        (fa.apgd(fa.Linf(0.1), 5), "its rule is Auto"),
        (fa.pgd(fa.Linf(0.1), stop="fooled"), "it stops at 'fooled'"),
        (
            fa.pgd(fa.Linf(0.1), objective=lambda z, y: z.logsumexp(1)),
            "its objective <lambda> has no kernel",
        ),
    ],
)
def test_other_attacks_go_step_by_step(attack: fa.Attack, why: str) -> None:
    model = sequential()
    fast = fa.compile(model)
    g = [torch.Generator().manual_seed(7) for _ in "ab"]
    assert torch.equal(attack(fast, X, Y, generator=g[0]), attack(model, X, Y, generator=g[1]))
    assert f"the last attack went step by step: {why}" in str(fast.report())


@native
def test_other_data_goes_step_by_step() -> None:
    model = sequential().double()
    fast = fa.compile(model)
    assert torch.equal(ATTACK(fast, X.double(), Y), ATTACK(model, X.double(), Y))
    assert "its weights are float64 on cpu" in str(fast.report())
    wrong = nn.Sequential(nn.Linear(12, 4))  # (N, 3, 2, 2) is not (N, 12)
    with pytest.raises(RuntimeError):
        ATTACK(fa.compile(wrong), X, Y)


def _through_numpy(model: nn.Sequential) -> None:
    model[3].weight.detach().numpy()[1, 2] += 1.0


def _through_data(model: nn.Sequential) -> None:
    model[3].bias.data.mul_(-1.5)


def _optimizer(model: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()


def _loaded(model: nn.Sequential) -> None:
    model.load_state_dict({k: v * -0.5 for k, v in model.state_dict().items()})


@native
@pytest.mark.parametrize("change", [_through_numpy, _through_data, _optimizer, _loaded])
def test_changed_weights_are_seen(change: Callable[[nn.Sequential], None]) -> None:
    model = sequential()
    fast = fa.compile(model)
    before = ATTACK(fast, X, Y)
    change(model)
    after = ATTACK(fast, X, Y)
    assert not torch.equal(before, after)
    assert close(after, ATTACK(model, X, Y))


@native
def test_tied_weights() -> None:
    torch.manual_seed(0)
    same = nn.Linear(12, 12)
    model = nn.Sequential(nn.Flatten(), same, nn.Tanh(), same, nn.Tanh(), nn.Linear(12, 4))
    assert close(ATTACK(fa.compile(model), X, Y), ATTACK(model, X, Y))


@pytest.mark.filterwarnings("ignore:precision='bfloat16' is served in float32")
def test_bfloat16() -> None:
    model = sequential()
    fast = fa.compile(model, precision="bfloat16")
    found, expected = ATTACK.run(fast, X, Y), ATTACK.run(model, X, Y)
    assert float((found.loss - expected.loss).abs().max()) <= 1e-3
    if dense_plan.multiplies_bfloat16():
        assert "bfloat16 products" in str(fast.report())
        assert not torch.equal(found.x_adv, expected.x_adv)
    if fa.backend().is_native:
        again = pickle.loads(pickle.dumps(fast))
        assert torch.equal(ATTACK(again, X, Y), found.x_adv)


def test_precisions_that_a_model_cannot_have() -> None:
    with pytest.raises(
        ValueError, match="must be 'float32' for this model, got 'bfloat16': it has"
    ):
        fa.compile(nn.Sequential(nn.Flatten(), nn.LayerNorm(12)), precision="bfloat16")
    with pytest.raises(ValueError, match=r"`precision` must be one of .*got 'float16'"):
        fa.compile(sequential(), precision="float16")


def test_without_bfloat16_products_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_plan, "multiplies_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="served in float32"):
        fast = fa.compile(sequential(), precision="bfloat16")
    expected = ATTACK(fa.compile(sequential()), X, Y)
    assert torch.equal(ATTACK(fast, X, Y), expected)
    if fa.backend().is_native:
        assert "served in float32" in str(fast.report())
