"""Dense stacks on CUDA: what takes all steps in one launch, and what says why not.

The CPU stands in for the device, and its op for the launch; tests/emulator runs the launcher.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from stand_in import standing_in
from test_dense_models import Net
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine.reference_dense import dense_pgd_

pytest.importorskip("triton")
from fastadv.kernels import dense_launch

X, Y = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 4
ATTACK = fa.pgd(fa.L2(0.5), 0.1, 5, start="zero")
TAKEN = "plain attacks take all steps in one launch, bfloat16 products"


def relus() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The dtypes of the weights that the op gets; the definition serves it."""
    found: list[str] = []

    class Ops:
        @staticmethod
        def dense_pgd_(*args: Any) -> None:
            found.append(str(args[9][0].dtype))
            dense_pgd_(*args)

    monkeypatch.setattr("fastadv.engine.dense.torch", _With(Ops))
    with standing_in():
        yield found


class _With:
    """torch, whose ops are a stand-in's."""

    def __init__(self, ops: Any) -> None:
        self.ops = type("ops", (), {"fastadv": ops})

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().median()) <= 1e-2


def test_one_launch_with_bfloat16_products(launches: list[str]) -> None:
    model = relus()
    fast = fa.compile(model, precision="bfloat16")
    assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))
    assert launches == ["torch.bfloat16"]
    assert TAKEN in str(fast.report())
    with torch.no_grad():
        model[1].weight.mul_(-1)  # seen at the next attack
    assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))


def test_any_class_of_module(launches: list[str]) -> None:
    model = Net("in place")
    fast = fa.compile(model, precision="bfloat16")
    assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))
    assert launches == ["torch.bfloat16"]


def test_float32_is_taken_where_torch_may_use_tf32(launches: list[str]) -> None:
    model, matmul = relus(), torch.backends.cuda.matmul
    fast = fa.compile(model)
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        ATTACK(fast, X, Y)
        assert "was not taken in one launch: its products are of float32" in str(fast.report())
        assert launches == []
        matmul.fp32_precision = "tf32"
        assert close(ATTACK(fast, X, Y), ATTACK(model, X, Y))
        assert launches == ["torch.float32"]
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize(("attack", "why"), [
    (fa.pgd(fa.L1(1.0), 0.1, 2), "its ball is l1"),
    (fa.mi_fgsm(fa.Linf(0.1), steps=2), "its rule is Momentum"),
])  # fmt: skip
def test_other_attacks_say_why(launches: list[str], attack: fa.Attack, why: str) -> None:
    model = relus()
    fast = fa.compile(model, precision="bfloat16", graph=False)
    attack(fast, X, Y)
    assert f"the last attack was not taken in one launch: {why}" in str(fast.report())
    assert launches == []


def test_what_the_kernel_has_no_room_for() -> None:
    why_not = dense_launch.why_not
    assert why_not([784, 256, 256, 10], [1, 1, 0], [0, 0, 0], 0, True) is None
    for sizes, activations, leaks, why in (
        ([784, 1024, 10], [1, 0], [0, 0], "1024 outputs"),
        ([784, 256, 1000], [1, 0], [0, 0], "1000 classes"),
        ([784, 512, 128], [1, 0], [0, 0], "last layer's matrix takes 131072 bytes"),
        ([784, 256, 10], [5, 0], [0, 0], "tanh"),
        ([784, 256, 10], [2, 0], [-0.1, 0], "slope of -0.1"),
    ):
        assert why in str(why_not(sizes, activations, leaks, 0, True))
    assert "sigmoid" in str(why_not([12, 9, 4], [2, 6], [0.01, 0.0], 0, True))


@pytest.mark.parametrize(("wrong", "why"), [
    ({"head": 7}, "`head`"), ({"y": torch.zeros(4)}, "`y`"), ({"y": torch.arange(3)}, "`y`"),
    ({"norm": 2}, "l1"), ({"x": torch.rand(4, 5)}, "`x`"), ({"seen": torch.zeros(3)}, "`seen`"),
    ({"sizes": [7, 5, 3]}, "`sizes`"), ({"radius": torch.rand(3)}, "`radius`"),
    ({"bounds": torch.zeros(3)}, "`bounds`"),
])  # fmt: skip
def test_the_launcher_stays_in_its_memory(wrong: dict[str, Any], why: str) -> None:
    from fastadv.engine.reference_dense import pack, pack_bias

    weights = [torch.rand(5, 6), torch.rand(3, 5)]
    given: dict[str, Any] = {
        "x_adv": torch.rand(4, 6), "seen": torch.zeros(4), "x": torch.rand(4, 6),
        "step_size": torch.tensor(0.1), "radius": torch.tensor(0.1), "bounds": None, "norm": 0,
        "top": 0.1, "steps": 1, "weights": [pack(w, True) for w in weights], "gradients": [],
        "biases": [pack_bias(None, w) for w in weights], "sizes": [6, 5, 3],
        "activations": [1, 0], "leaks": [0.0, 0.0], "y": torch.arange(4) % 3, "target": None,
        "head": 0, "targeted": False,
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=why):
        dense_launch.dense_pgd_(**{**given, **wrong})
