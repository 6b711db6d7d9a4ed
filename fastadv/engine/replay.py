"""An attack's step, captured once and replayed: forward, input gradient and update in one launch.

Launches bound small nets: eager PyTorch pays some 5 us for each of the hundreds of kernels of a
step, a replay pays once. What a step reads and writes stands in buffers of its own, which an attack
fills before its first step; what differs from step to step is read from a table at a counter that
the step itself moves on. Nothing is read on the host but, under a stop, whether all are done, every
few steps.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastadv.engine.copies import Copies
from fastadv.engine.cuda_graph import GRAPHS, Graphs
from fastadv.engine.dense_plan import Climb
from fastadv.reference import compute_dtype, rows
from fastadv.rules import Auto
from fastadv.stops import AT_CYCLE

if TYPE_CHECKING:
    from fastadv.attack import Attack
    from fastadv.problem import Problem

KEPT = 8  # captured steps of one model; each has buffers of the batch's size
EVERY = 8  # steps from one look at who is done to the next
REHEARSALS = 2
Key = tuple[Hashable, ...]


class CannotCapture(RuntimeError):
    """Why a step cannot be captured."""


class Program:
    """One captured step of an attack, on batches of one shape."""

    def __init__(self, attack: Attack, problem: Problem, logits: Tensor) -> None:
        """`problem` has met logits like these: its y and target are as the head takes them."""
        from fastadv.problem import Tally

        def kept(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.clone()

        assert not isinstance(attack.rule, Auto)
        self.attack, self.rule, self.logits = attack, attack.rule, logits
        self.problem = replace(
            problem, x=problem.x.clone(), radius=problem.radius.clone(), y=kept(problem.y),
            target=kept(problem.target), tally=Tally(),
        )  # fmt: skip
        x_adv = self.x_adv = problem.x.clone()
        self.state = self.rule.start(self.x_adv)
        self.bounds = problem.ball.bounds_for(x_adv)  # the graph reads it: it must stay
        table = [self.rule.numbers(k) for k in range(attack.steps)]
        sized = compute_dtype(x_adv.dtype)
        self.numbers = torch.tensor(table, dtype=torch.float64).to(x_adv.device, sized)
        self.k = torch.zeros(1, dtype=torch.long, device=x_adv.device)
        self.bad = torch.zeros((), dtype=torch.bool, device=x_adv.device)  # a NaN was met
        self.done = torch.zeros(len(x_adv), dtype=torch.bool, device=x_adv.device)
        self.final = self.x_adv.clone()  # what those end on
        self.replay: Callable[[], None] | None = None

    def step(self) -> None:
        """What is captured."""
        p = self.problem
        _, grad, fooled = p.gradient(self.x_adv)
        for seen in p.tally.seen:
            self.bad.logical_or_(seen.isnan().any())
        p.tally.seen.clear()
        if self.attack.stop:
            new = rows(fooled & ~self.done, self.x_adv)
            self.final.copy_(torch.where(new, self.x_adv, self.final))
            self.done.logical_or_(fooled)
        numbers = self.numbers.index_select(0, self.k)[0].unbind()
        self.rule.step_(self.state, numbers, self.x_adv, grad, p.x, p.ball, p.radius)
        self.k.add_(1)

    def fill(self, problem: Problem, x_adv: Tensor) -> None:
        """Puts the attack at its start."""
        ours = self.problem
        for buffer, value in (
            (self.x_adv, x_adv), (ours.x, problem.x), (ours.radius, problem.radius),
            (ours.y, problem.y), (ours.target, problem.target),
        ):  # fmt: skip
            if buffer is not None and value is not None:
                buffer.copy_(value)
        for name, value in self.rule.start(self.x_adv).items():
            self.state[name].copy_(value)
        self.final.copy_(self.x_adv)
        for flag in (self.k, self.bad, self.done):
            flag.zero_()

    def capture(self, graphs: Graphs, model: nn.Module) -> None:
        """Rehearses the step and captures it. Raises CannotCapture where that cannot be."""
        state = dict(self.state)
        before = _buffers(model)
        try:
            for _ in range(REHEARSALS):
                self.k.zero_()  # the table ends with the attack
                graphs.rehearse(self.step)
            self.k.zero_()
            self.replay = graphs.capture(self.step)
        except RuntimeError as error:
            raise CannotCapture(str(error).split("\n")[0]) from error
        if any(self.state[name] is not t for name, t in state.items()):
            raise CannotCapture(f"{self.rule} replaces tensors of its state: it must write in them")
        if changed := [n for n, t in before.items() if _buffers(model).get(n) is not t]:
            raise CannotCapture(f"a forward puts a new tensor in the place of its {changed[0]}")
        if self.problem.ball.bounds_for(self.x_adv) is not self.bounds:
            raise CannotCapture("the ball's bounds were made anew meanwhile")

    def run(self, problem: Problem, x_adv: Tensor) -> Tensor:
        """From x_adv to the attack's last iterate."""
        assert self.replay is not None
        self.fill(problem, x_adv)
        steps = self.attack.steps
        for k in range(steps):
            if self.attack.stop and k and k % EVERY == 0 and bool(self.done.all()):
                steps = k
                break
            self.replay()
        problem.tally.forwards += len(x_adv) * steps
        problem.tally.seen.append(torch.where(self.bad, torch.nan, 0.0)[None])
        if self.attack.stop:
            return torch.where(rows(self.done, x_adv), self.final, self.x_adv)
        return self.x_adv.clone()


class Replays:
    """The captured steps of one model; `notes` says what became of the last attack."""

    def __init__(self, module: nn.Module, copies: Copies, wanted: bool | None) -> None:
        self.wanted = wanted
        self.notes: list[str] = []
        self._module, self._copies = module, copies
        self._programs: OrderedDict[Key, Program] = OrderedDict()
        self._graphs: dict[torch.device, Graphs] = {}
        self._refused: dict[Key, str] = {}
        self._lock = RLock()
        self._met: dict[Key, set[Hashable]] = {}  # the sizes of batches

    def plan(self, attack: Attack, problem: Problem) -> Climb | None:
        """x_adv to the attack's last iterate by replays; None: it goes step by step.

        The first batch's size is captured at once, another one when it comes a second time: the
        last batch of a loader, and those that a stop leaves, may never come again.
        Raises RuntimeError where graph=True and it cannot be captured.
        """
        with self._lock:
            what = self._what(attack, problem)
            return self._plan(attack, problem, what, (what, self._where()))

    def _plan(self, attack: Attack, problem: Problem, what: Key, key: Key) -> Climb | None:
        why = _why_not(attack) or self._refused.get(what)
        if self.wanted is False:
            why = "graph=False"
        elif why is None and not self._due(what):
            why = "its batch has this size for the first time"
        elif why is None and key not in self._programs:
            why = self._capture(attack, problem, key)
            if why is not None:
                self._refused[what] = why
        if why is None:
            size = "x".join(map(str, problem.x.shape))
            self.notes = [f"the last attack replayed a captured step, for x of {size}"]
            return partial(self._climb, self._programs[key], problem)
        if self.wanted:
            raise RuntimeError(f"graph=True, but the step of {attack} cannot be captured: {why}")
        self.notes = [f"the last attack went step by step, not captured: {why}"]
        return None

    def _climb(self, program: Program, problem: Problem, x_adv: Tensor) -> Tensor:
        with self._lock:
            graphs = self._on(x_adv.device)
            problem.prepare(program.logits)
            graphs.enter()
            try:
                return program.run(problem, x_adv)
            finally:
                graphs.leave()

    def _capture(self, attack: Attack, problem: Problem, key: Key) -> str | None:
        """Captures and keeps a step; returns why it cannot be."""
        graphs = self._on(problem.x.device)
        random, saved = graphs.random_state(), _buffers(self._module, copied=True)
        try:
            program = Program(attack, problem, _first(problem))
            program.capture(graphs, self._module)
        except CannotCapture as error:
            if not self.wanted:
                warnings.warn(
                    f"the attack's step cannot be captured in a CUDA graph, and goes step by step: "
                    f"{error}. fa.compile(model, graph=False) asks for no capture",
                    stacklevel=2,
                )
            return str(error)
        finally:
            graphs.set_random_state(random)
            for name, buffer in _buffers(self._module).items():
                buffer.copy_(saved[name])
        self._programs[key] = program
        while len(self._programs) > KEPT:
            self._programs.popitem(last=False)
        return None

    def _due(self, what: Key) -> bool:
        """Whether a batch of this size is to be captured now."""
        size, *rest = what
        sizes = self._met.setdefault(tuple(rest), set())
        due = self.wanted is True or not sizes or size in sizes
        sizes.add(size)
        return due

    def _what(self, attack: Attack, problem: Problem) -> Key:
        """What a captured step depends on; first the batch's size."""
        x, radius = problem.x, problem.radius
        return (
            len(x), replace(attack, start="zero", restarts=1), x.shape[1:], x.stride()[1:],
            x.dtype, x.device, radius.dim(), problem.y is None, problem.target is None,
            tuple(module.training for module in self._module.modules()), _settings(),
        )  # fmt: skip

    def _where(self) -> Key:
        """The memory that a captured step reads the model from."""
        tensors = (*self._module.parameters(), *self._module.buffers())
        return *(t.data_ptr() for t in tensors), *self._copies.pointers

    def _on(self, device: torch.device) -> Graphs:
        if device not in self._graphs:
            self._graphs[device] = GRAPHS[device.type](device)
        return self._graphs[device]


def _why_not(attack: Attack) -> str | None:
    """Why the steps of an attack are not captured, whatever the model."""
    if isinstance(attack.rule, Auto):
        return "apgd goes by the losses of its steps"
    if attack.stop in AT_CYCLE:
        return f"stop={attack.stop!r} keeps a history of its steps"
    return None if attack.steps else "it has no steps"


def _first(problem: Problem) -> Tensor:
    """A first gradient, as the ordinary loop takes it: it compiles the model, and checks y and
    target, which the problem then has as the head takes them. Returns zeros like the logits."""
    from fastadv.problem import Tally, output

    seen: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        seen.append(output(problem.model, x))
        return seen[0]

    trial = replace(problem, model=model, tally=Tally())
    trial.gradient(problem.x.clone())
    problem.y, problem.target, problem.checked = trial.y, trial.target, True
    return torch.zeros_like(seen[0].detach())


def _buffers(model: nn.Module, copied: bool = False) -> dict[str, Tensor]:
    return {name: t.clone() if copied else t for name, t in model.named_buffers()}


def _settings() -> Key:
    """What of torch's own settings chooses kernels."""
    return (
        torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic, torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu"),
    )  # fmt: skip
