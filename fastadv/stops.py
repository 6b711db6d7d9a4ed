"""Stops: samples that leave an attack before its last step, with what the last step would give.

"fooled": at the first iterate that fools the model. "cycle": where the iterates repeat. An attack
whose every step is one function of x_adv (fixed-step PGD) falls into a cycle, most samples within
tens of steps (2503.19347), and from there on each later iterate is known. "resolved": either.

To see that a sample is done is to wait for the device. The CPU has nothing to wait for, and drops
it at once; on other devices masks say who is done, and the batch is looked at every few steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastadv import ops
from fastadv.problem import Problem
from fastadv.reference import rows
from fastadv.rules import Auto, Rule

STOPS = (None, "fooled", "cycle", "resolved")
EVERY = {"cpu": 1}  # steps from one look at the batch to the next
OTHERS_EVERY = 8
AT_FOOLED, AT_CYCLE = ("fooled", "resolved"), ("cycle", "resolved")


def require_stop(stop: str | None, rule: Rule | Auto, mode: str) -> None:
    """Raises ValueError where `stop` does not go with the attack's rule or mode."""
    if stop and mode != "eval":
        raise ValueError(
            f"`stop` drops samples from the batch and needs mode='eval', got {mode!r}: "
            "batch norm in train mode would change the others, and dropout never repeats"
        )
    if stop in AT_CYCLE and (isinstance(rule, Auto) or not rule.is_memoryless):
        raise ValueError(
            f"`stop`={stop!r} needs iterates that follow from the last one alone, as those of "
            f"Steepest or Gradient with one step size do, got {rule}: take stop='fooled'"
        )


def ascend_until_done(
    problem: Problem, x_adv: Tensor, rule: Rule, steps: int, stop: str
) -> Tensor:  # (N, *shape)
    """x_adv <- P(x_adv + step_size * direction(grad)), each sample until it is done.

    Raises ValueError if a model whose cycles are looked for draws random numbers.
    """
    every = EVERY.get(x_adv.device.type, OTHERS_EVERY)
    cycles = Cycles(x_adv, steps, looks=every == 1) if stop in AT_CYCLE else None
    batch = _Batch(problem, x_adv, rule, cycles, looks=every == 1)
    numbers = rule.numbers_for(x_adv, steps)
    for k in range(steps):
        if cycles is not None:
            batch.finish(cycles.closed(k, batch.x_adv), cycles.final)
        if k and k % every == 0:
            batch.drop(batch.done, batch.final)
        if not len(batch.index):
            break
        grad, fooled = batch.gradient(first=k == 0)
        if stop in AT_FOOLED:
            stays = batch.finish(fooled, batch.x_adv)
            grad = grad if stays is None else grad[stays]
        if len(batch.index):
            p = batch.problem
            rule.step_(batch.state, numbers(k), batch.x_adv, grad, p.x, p.ball, p.radius)
    batch.drop_all()
    return batch.result


class Cycles:
    """The digests of each sample's iterates, and the repeat that is being confirmed.

    Where iterate k has the digest of iterate k - p, one further period must have equal digests too,
    or the repeat was a collision of two digests. While it passes, every iterate of the cycle comes
    by, and with it the one that `steps` steps end on: no forward is spent on getting there.

    The digest is an op of its own: 0.3 ns an element, half of a linf step in or out of its kernel,
    and 0.2% of a step of a small MNIST net. The history takes 8 B a step and sample. looks: whether
    it may look at the samples to spare work, and so wait for the device.
    """

    def __init__(self, x_adv: Tensor, steps: int, looks: bool = True) -> None:
        none = torch.zeros(len(x_adv), dtype=torch.long, device=x_adv.device)
        self._steps, self._looks = steps, looks
        self._history = none.repeat(min(steps, 64), 1)  # row k: the digests of iterate k
        self._period = none  # 0: no repeat so far
        self._since = self._ends = none  # the iterate that repeated; the one to end on
        self.final = x_adv.clone()  # (N, *shape): what to end on, for samples that are closed

    def closed(self, k: int, x_adv: Tensor) -> Tensor:
        """(N,) bool: whose cycle iterate k confirms. To be told of every iterate, from 0."""
        digest = self._remember(k, x_adv)
        expected = self._history.gather(0, (k - self._period)[None])[0]
        self._period = torch.where(digest == expected, self._period, 0)
        self._look_for_repeats(k, digest)
        repeats = self._period > 0
        here = repeats & (self._ends == k)
        if not self._looks or bool(here.any()):
            self.final = torch.where(rows(here, x_adv), x_adv, self.final)
        return repeats & (self._since + self._period == k)

    def keep(self, index: Tensor) -> None:
        """Forgets all samples but `index`, (M,) of int64."""
        self._history = self._history[:, index]
        self._period, self._since = self._period[index], self._since[index]
        self._ends, self.final = self._ends[index], self.final[index]

    def _remember(self, k: int, x_adv: Tensor) -> Tensor:
        if k == len(self._history):  # doubled, so that few samples carry a long history
            self._history = torch.cat([self._history, torch.empty_like(self._history)])
        self._history[k] = ops.digest(x_adv)
        return self._history[k]

    def _look_for_repeats(self, k: int, digest: Tensor) -> None:
        same = self._history[:k] == digest
        found = same.any(0) & (self._period == 0)
        if k == 0 or (self._looks and not bool(found.any())):
            return
        index = torch.arange(k, device=digest.device)[:, None]
        period = k - torch.where(same, index, -1).amax(0)  # since the last time
        self._period = torch.where(found, period, self._period)
        self._since = torch.where(found, k, self._since)
        self._ends = torch.where(found, k + (self._steps - k) % period, self._ends)


class _Batch:
    """The samples that still climb, and what those that left ended on."""

    def __init__(
        self, problem: Problem, x_adv: Tensor, rule: Rule, cycles: Cycles | None, looks: bool
    ) -> None:
        self.problem, self.x_adv, self.cycles, self.looks = problem, x_adv, cycles, looks
        self.index = torch.arange(len(x_adv), device=x_adv.device)
        self.state = rule.start(x_adv)
        self.result = x_adv.clone()
        self.done = torch.zeros_like(self.index, dtype=torch.bool)  # and still in the batch
        self.final = self.result if looks else x_adv.clone()  # what those end on

    def finish(self, done: Tensor, final: Tensor) -> Tensor | None:
        """Ends the samples `done` (M,) on their rows of `final`: now, if it may look who they are,
        and it then returns who stays; or else when they are dropped."""
        if self.looks:
            return self.drop(done, final)
        self.final = torch.where(rows(done & ~self.done, final), final, self.final)
        self.done = self.done | done
        return None

    def drop(self, done: Tensor, final: Tensor) -> Tensor | None:
        """Takes the samples `done` (M,) out of the batch; returns who stays, if any go."""
        if not bool(done.any()):
            return None
        self.result[self.index[done]] = final[done]
        stays = (~done).nonzero()[:, 0]
        self.index, self.x_adv = self.index[stays], self.x_adv[stays]
        if not self.looks:
            self.done, self.final = self.done[stays], self.final[stays]
        self.problem = self.problem.take(stays)
        self.state = {name: values[stays] for name, values in self.state.items()}
        if self.cycles is not None:
            self.cycles.keep(stays)
        return stays

    def drop_all(self) -> None:
        """Ends all that are left: where they stand, or where they were done."""
        self.result[self.index] = (
            self.x_adv if self.looks
            else torch.where(rows(self.done, self.x_adv), self.final, self.x_adv)
        )  # fmt: skip

    def gradient(self, first: bool) -> tuple[Tensor, Tensor]:
        """(grad (M, *shape), fooled (M,)) where the samples are."""
        before = _random_state(self.x_adv) if first and self.cycles is not None else None
        _, grad, fooled = self.problem.gradient(self.x_adv)
        if before is not None and not torch.equal(before, _random_state(self.x_adv)):
            raise ValueError(
                "`model` must be deterministic where its cycles end the attack, but its forward "
                "draws random numbers: is there a dropout in train mode, or noise, in it?"
            )
        return grad, fooled


def _random_state(x: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()
