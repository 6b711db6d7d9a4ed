"""The ops as torch sees them: schemas, fakes, torch.compile without a graph break; every ISA."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import make
from tolerance import DTYPES, bits
from torch._subclasses.fake_tensor import FakeTensorMode

import fastadv as fa
from fastadv import ops

TESTS = Path(__file__).parent
OP_TESTS = ("test_step.py", "test_universal_op.py", "test_digest.py", "test_random.py")
STEPS = {"linf": (), "l2": (), "l1": (0.2,)}


def other_isas() -> list[str]:
    """The instruction sets that run here and that this process does not use."""
    if not ops.backend().is_native or os.environ.get("FASTADV_CPU_CAPABILITY"):
        return []
    from fastadv import _native

    facts = _native.processor()
    return [isa for isa in facts["available"] if isa != facts["isa"]]


@pytest.mark.parametrize("isa", other_isas())
def test_ops_on_every_instruction_set(isa: str) -> None:
    check = f"import fastadv; assert fastadv.backend().cpu == 'native ({isa})'"
    run = f"{check}; import pytest, sys; sys.exit(pytest.main({['-q', '-x', *OP_TESTS]!r}))"
    environment = {**os.environ, "FASTADV_CPU_CAPABILITY": isa}
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=TESTS, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def calls(dtype: torch.dtype) -> list[tuple[object, tuple[object, ...]]]:
    """(op, arguments) of every op once."""
    case = make((3, 2, 4, 4), dtype, "each")
    wide = case.radius.dtype
    found = []
    for order, more in STEPS.items():
        found.append((getattr(torch.ops.fastadv, f"step_{order}_"), (*case.args(), True, *more)))
        delta, velocity = case.x[0].clone(), torch.zeros(case.x[0].shape, dtype=wide)
        numbers = (case.step_size[:1].clone(), case.radius[:1].clone(), 0.9, False, True)
        universal = getattr(torch.ops.fastadv, f"universal_{order}_")
        weights = torch.ones(3, dtype=wide)
        found.append((universal, (delta, velocity, case.grad, weights, *numbers, *more)))
    logits, y = case.x.flatten(1), torch.zeros(3, dtype=torch.long)
    found.append((torch.ops.fastadv.head, (logits, y, None, 0, False)))
    found.append((torch.ops.fastadv.head, (logits, y + 1, y, 3, True)))
    found.append((torch.ops.fastadv.head, (logits, (logits > 0).to(wide), None, 1, False)))
    found.append((torch.ops.fastadv.digest, (case.x,)))
    found.append((torch.ops.fastadv.uniform, (case.x, 1, 2, 3)))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    for op, args in calls(dtype):
        torch.library.opcheck(op.default, args)


def test_schemas_say_what_is_written() -> None:
    for order in STEPS:
        step = getattr(torch.ops.fastadv, f"step_{order}_").default._schema
        written = [a.name for a in step.arguments if a.alias_info and a.alias_info.is_write]
        assert written == ["x_adv"]
        universal = getattr(torch.ops.fastadv, f"universal_{order}_").default._schema
        written = [a.name for a in universal.arguments if a.alias_info and a.alias_info.is_write]
        assert written == ["delta", "velocity"]


def update(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A step and a universal step in one graph, between other work."""
    number = torch.full((), 0.1)
    bounds = torch.stack([number * 0, number * 10])
    torch.ops.fastadv.step_linf_(x_adv, grad * 2, x, number, number, bounds, True)
    delta = torch.zeros_like(x[0])
    torch.ops.fastadv.universal_l2_(delta, None, grad, None, number, number, 0.0, False, True)
    return x_adv + delta


def update_all(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Every op in one graph."""
    moved, number = update(x_adv, grad, x), torch.full((), 0.1)
    torch.ops.fastadv.step_l2_(x_adv, grad, x, number, number, None, True)
    torch.ops.fastadv.step_l1_(x_adv, grad, x, number, number, None, True, 0.1)
    y = torch.zeros(len(x), dtype=torch.long)
    loss, logits_grad, _ = torch.ops.fastadv.head(x_adv.flatten(1), y, None, 0, False)
    start = torch.ops.fastadv.uniform(x, 3, 0, 0)
    return moved + start + loss.sum() + logits_grad.sum() + torch.ops.fastadv.digest(x).sum()


@pytest.mark.parametrize(("backend", "function"), [("eager", update_all), ("inductor", update)])
@pytest.mark.filterwarnings("default")  # inductor's own
def test_compile_without_a_graph_break(backend: str, function: Callable[..., torch.Tensor]) -> None:
    torch._dynamo.reset()
    case = make((3, 2, 4, 4), torch.float32, "one", per_sample=False)
    own, given = case.x_adv.clone(), case.x_adv.clone()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    got, expected = compiled(given, case.grad, case.x), function(own, case.grad, case.x)
    torch.testing.assert_close(got, expected)
    assert torch.equal(bits(given), bits(own))  # the update in place is seen outside


def test_numbers_met_under_a_fake_mode_are_not_kept() -> None:
    ball = fa.Linf(0.123, (-0.5, 1.5))
    with FakeTensorMode():
        fake = torch.rand(2, 3)
        ops.step_(fake, fake.clone(), fake.clone(), ball=ball, step_size=0.0456)
    x = torch.rand(2, 3)
    ops.step_(x.clone(), x, x, ball=ball, step_size=0.0456)


def test_numbers_met_under_inference_mode_are_not_kept() -> None:
    ball = fa.L2(0.321, (-0.25, 1.25))
    with torch.inference_mode():
        x = torch.rand(2, 3)
        ops.step_(x, x.clone(), x.clone(), ball=ball, step_size=0.0654)
    assert not ops.per_sample(0.0654, torch.rand(2, 3), "step_size").is_inference()
    assert not ball.bounds_for(torch.rand(2, 3)).is_inference()
