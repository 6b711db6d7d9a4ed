"""An attack's step as it is captured: what it reads and writes stands in buffers of its own.

What differs from step to step is read from a table at a counter that the step itself moves on. The
host reads nothing; masks say which samples are done, and what they end on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastadv import ops
from fastadv.engine.cuda_graph import Graphs
from fastadv.reference import compute_dtype, rows
from fastadv.rules import Auto
from fastadv.stops import AT_CYCLE, AT_FOOLED

if TYPE_CHECKING:
    from fastadv.attack import Attack
    from fastadv.problem import Problem

Row = dict[str, Tensor]  # one row a sample


class CannotCapture(RuntimeError):
    """Why a step cannot be captured."""


class Cycles:
    """stops.Cycles in buffers that keep their place: see there. Each step compares its digests
    with those of all steps: 8 B a step and sample read."""

    def __init__(self, x_adv: Tensor, steps: int) -> None:
        self._steps, self._index = steps, torch.arange(steps, device=x_adv.device)
        self.history = self._index.new_zeros(len(x_adv), steps)
        self.period, self.since, self.ends = self._index.new_zeros(3, len(x_adv)).unbind()
        self.final = x_adv.clone()

    def rows(self) -> Row:
        names = ("history", "period", "since", "ends", "final")
        return {name: getattr(self, name) for name in names}

    def closed(self, k: Tensor, x_adv: Tensor) -> Tensor:  # k (1,) -> (N,) bool
        """Whose cycle iterate k confirms."""
        digest = ops.digest(x_adv)
        self.history.index_copy_(1, k, digest[:, None])
        expected = self.history.gather(1, (k - self.period)[:, None])[:, 0]
        self.period.mul_(digest == expected)
        same = (self.history == digest[:, None]) & (self._index < k)
        found = same.any(1) & (self.period == 0)
        period = k - torch.where(same, self._index, -1).amax(1)  # since the last time
        self.period.copy_(torch.where(found, period, self.period))
        self.since.copy_(torch.where(found, k, self.since))
        self.ends.copy_(torch.where(found, k + (self._steps - k) % period, self.ends))
        repeats = self.period > 0
        here = rows(repeats & (self.ends == k), x_adv)
        self.final.copy_(torch.where(here, x_adv, self.final))
        return repeats & (self.since + self.period == k)


class Program:
    """One captured step of an attack, on batches of one shape."""

    def __init__(self, attack: Attack, problem: Problem, logits: Tensor) -> None:
        """`problem` has met logits like these: its y and target are as the head takes them."""
        from fastadv.problem import Tally

        def kept(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.clone()

        assert not isinstance(attack.rule, Auto)
        x = problem.x
        self.attack, self.rule, self.logits = attack, attack.rule, logits
        self.problem = replace(
            problem, x=x.clone(), radius=problem.radius.clone(), y=kept(problem.y),
            target=kept(problem.target), tally=Tally(),
        )  # fmt: skip
        self.x_adv = x.clone()
        self.state = self.rule.start(self.x_adv)
        self.bounds = problem.ball.bounds_for(x)  # the graph reads it: it must stay
        table = [self.rule.numbers(k) for k in range(attack.steps)]
        self.numbers = torch.tensor(table, dtype=torch.float64).to(x.device, compute_dtype(x.dtype))
        self.k = torch.zeros(1, dtype=torch.long, device=x.device)
        self.bad = torch.zeros((), dtype=torch.bool, device=x.device)  # a NaN was met
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.final = self.x_adv.clone()  # what those end on
        self.cycles = Cycles(x, attack.steps) if attack.stop in AT_CYCLE else None
        self.replay: Callable[[], None] | None = None

    def step(self) -> None:
        """What is captured."""
        p = self.problem
        if self.cycles is not None:
            self._finish(self.cycles.closed(self.k, self.x_adv), self.cycles.final)
        _, grad, fooled = p.gradient(self.x_adv)
        for seen in p.tally.seen:
            self.bad.logical_or_(seen.isnan().any())
        p.tally.seen.clear()
        if self.attack.stop in AT_FOOLED:
            self._finish(fooled, self.x_adv)
        numbers = self.numbers.index_select(0, self.k)[0].unbind()
        self.rule.step_(self.state, numbers, self.x_adv, grad, p.x, p.ball, p.radius)
        self.k.add_(1)

    def _finish(self, done: Tensor, final: Tensor) -> None:
        new = rows(done & ~self.done, final)
        self.final.copy_(torch.where(new, final, self.final))
        self.done.logical_or_(done)

    def fill(self, problem: Problem, x_adv: Tensor) -> None:
        """Puts the attack at its start."""
        p = self.problem
        for buffer, value in (
            (self.x_adv, x_adv), (self.final, x_adv), (p.x, problem.x), (p.radius, problem.radius),
            (p.y, problem.y), (p.target, problem.target),
        ):  # fmt: skip
            if buffer is not None and value is not None:
                buffer.copy_(value)
        for name, value in self.rule.start(self.x_adv).items():
            self.state[name].copy_(value)
        flags = (self.k, self.bad, self.done)
        for buffer in flags if self.cycles is None else (*flags, *self.cycles.rows().values()):
            buffer.zero_()

    def take(self, larger: Program, index: Tensor) -> None:
        """Goes on where a larger batch stands, with its samples `index`."""
        theirs = larger.rows()
        for name, buffer in self.rows().items():
            buffer.copy_(theirs[name].index_select(0, index))
        self.k.copy_(larger.k)
        self.bad.copy_(larger.bad)
        if not self.problem.radius.dim():
            self.problem.radius.copy_(larger.problem.radius)

    def rows(self) -> Row:
        """The buffers that have one row a sample."""
        p = self.problem
        named = {"x": p.x, "y": p.y, "target": p.target, "x_adv": self.x_adv, "done": self.done}
        named |= {"final": self.final, "radius": p.radius if p.radius.dim() else None}
        named |= {f"state {name}": t for name, t in self.state.items()}
        if self.cycles is not None:
            named |= {f"cycles {name}": t for name, t in self.cycles.rows().items()}
        return {name: t for name, t in named.items() if t is not None}

    def ends(self) -> Tensor:  # (N, *shape)
        """Where the samples stand, or where they were done."""
        if not self.attack.stop:
            return self.x_adv.clone()
        return torch.where(rows(self.done, self.x_adv), self.final, self.x_adv)

    def capture(self, graphs: Graphs, model: nn.Module) -> None:
        """Rehearses the step and captures it. Raises CannotCapture where that cannot be."""
        state, buffers = dict(self.state), dict(model.named_buffers())
        try:
            for watched in (False, True):  # what is made once is made at the first one
                self.k.zero_()  # the table ends with the attack
                graphs.rehearse(self.step, watched)
            self.k.zero_()
            self.replay = graphs.capture(self.step)
        except RuntimeError as error:
            raise CannotCapture(str(error).split("\n")[0]) from error
        if any(self.state[name] is not t for name, t in state.items()):
            raise CannotCapture(f"{self.rule} replaces tensors of its state: it must write in them")
        after = dict(model.named_buffers())
        if changed := [name for name, t in buffers.items() if after.get(name) is not t]:
            raise CannotCapture(f"a forward puts a new tensor in the place of its {changed[0]}")
        if self.problem.ball.bounds_for(self.x_adv) is not self.bounds:
            raise CannotCapture("the ball's bounds were made anew meanwhile")
