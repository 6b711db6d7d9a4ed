"""A step of adversarial training, PGD and the update of the weights, on a net of `pgd`'s.

Every case has a copy of the net and an SGD of its own, and takes its steps on the same batch, from
x. Before any figure each takes one step, and the losses, recomputed by the eager model on its
examples, must agree within a hundredth. Weights are packed anew in each step: that is in the time.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import attacks, gate, machine
from bench.nets import NETS
from bench.pgd import BALL, STEP_SIZE, trained
from bench.store import Row, rows
from bench.timing import interleave
from fastadv.engine import Compiled

YARDSTICK = "none"
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of the examples crafted, to be minimised


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train`."""
    parser.add_argument("--model", choices=NETS, default="resnet18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="0: a step of plain training")
    parser.add_argument("--train-steps", type=int, default=10, help="of the net before, batch 32")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table: compiled, not compiled, plain torch and torchattacks."""
    model, x, y = trained(args.model, args.train_steps, args.batch)
    losses_of = LOSSES if args.steps else PLAIN_LOSSES
    there = importlib.util.find_spec("torchattacks") is not None
    names = [name for name in losses_of if there or name != "torchattacks"]
    learners = {name: _Learner(model, losses_of[name](args.steps)) for name in names}
    losses = torch.tensor([learner.step(x, y) for learner in learners.values()])
    gate.close("the loss of a step", losses, losses[:1].expand_as(losses), 1e-2)
    cases = {name: lambda one=one: one.step(x, y) for name, one in learners.items()}
    times = interleave(cases, args.seconds, least_rounds=3, warm_up=1)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed: dict[str, str | int] = {
        "benchmark": "train", "shape": "x".join(map(str, x.shape)), "dtype": "float32",
        "norm": f"linf, {args.model}, {args.steps} steps", "threads": args.threads,
        "working_set": machine.fits(size),
    }  # fmt: skip
    return [rows(times, {}, YARDSTICK, fixed)]


class _Learner:
    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = copy.deepcopy(model), loss
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def step(self, x: Tensor, y: Tensor) -> float:
        self.model.train()
        loss = self.loss(self.model, x, y)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())


def _learning(steps: int) -> Loss:
    compiled: dict[nn.Module, Compiled] = {}

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        fast = compiled.setdefault(model, fa.compile(model))
        return functional.cross_entropy(fast.learn(x), y)

    return loss


def _fastadv(steps: int, precision: str | None = None) -> Loss:
    robust = fa.training.Madry(fa.pgd(BALL, STEP_SIZE, steps, start="zero"))
    compiled: dict[nn.Module, nn.Module] = {}

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if precision is not None and model not in compiled:
            compiled[model] = fa.compile(model, precision=precision)
        return robust(compiled.get(model, model), x, y)

    return loss


def _plain(steps: int) -> Loss:
    """As written by hand: in eval mode, gradients by x alone."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        x_adv = x
        for _ in range(steps):
            leaf = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(functional.cross_entropy(model(leaf), y), leaf)
            x_adv = leaf.detach() + STEP_SIZE * grad.sign()
            x_adv = torch.clamp(x + (x_adv - x).clamp(-BALL.radius, BALL.radius), 0, 1)
        model.train()
        return functional.cross_entropy(model(x_adv), y)

    return loss


def _torchattacks(steps: int) -> Loss:
    library = importlib.import_module("torchattacks")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        craft = attacks.LIBRARIES["torchattacks"](library, model, BALL.radius, STEP_SIZE, steps)
        x_adv = craft(x, y)
        model.train()
        return functional.cross_entropy(model(x_adv), y)

    return loss


LOSSES: dict[str, Callable[[int], Loss]] = {
    "fastadv": lambda steps: _fastadv(steps, "float32"),
    "fastadv, bfloat16": lambda steps: _fastadv(steps, "bfloat16"),
    "fastadv, plain model": _fastadv,
    "plain torch": _plain,
    "torchattacks": _torchattacks,
}
PLAIN_LOSSES: dict[str, Callable[[int], Loss]] = {"fastadv": _learning, "plain torch": _plain}
