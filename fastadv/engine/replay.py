"""An attack's step, captured once and replayed: forward, input gradient and update in one launch.

Launches bound small nets: eager PyTorch pays some 5 us for each of the hundreds of kernels of a
step, a replay pays once. Nothing is read on the host but, under a stop, how many samples are left,
every few steps.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastadv.engine import inductor
from fastadv.engine.copies import Copies
from fastadv.engine.cuda_graph import GRAPHS, Graphs
from fastadv.engine.dense_plan import Climb
from fastadv.engine.program import CannotCapture, Program
from fastadv.rules import Auto
from fastadv.stops import AT_CYCLE, OTHERS_EVERY, require_deterministic

if TYPE_CHECKING:
    from fastadv.attack import Attack
    from fastadv.problem import Problem

KEPT = 16  # captured steps of one model; each has buffers of the batch's size
LEAST = 16  # samples: a smaller batch takes a device as long
_WARNING = (
    "the attack's step cannot be captured in a CUDA graph, and goes step by step: {}. "
    "fa.compile(model, graph=False) asks for no capture"
)
_REFUSED = "graph=True, but the step of {} cannot be captured: {}"
Key = tuple[Hashable, ...]


class Replays:
    """The captured steps of one model; `notes` says what became of the last attack."""

    def __init__(
        self, module: nn.Module, copies: Copies, wanted: bool | None, lock: RLock
    ) -> None:  # lock: the model's, so that two threads never wait for each other's
        self.wanted = wanted
        self.notes: list[str] = []
        self._module, self._copies = module, copies
        self._programs: OrderedDict[Key, Program] = OrderedDict()
        self._graphs: dict[torch.device, Graphs] = {}
        self._refused: dict[Key, str] = {}
        self._lock = lock
        self._met: dict[Key, set[Hashable]] = {}  # the sizes of batches

    def wait(self) -> None:
        """The work that follows waits for all replays, on whatever stream they were launched."""
        with self._lock:
            for graphs in self._graphs.values():
                graphs.enter()

    def plan(self, attack: Attack, problem: Problem) -> Climb | None:
        """x_adv to the attack's last iterate by replays; None: it goes step by step.

        The first batch's size is captured at once, another one when it comes a second time: the
        last batch of a loader, and those that a restart takes on, may never come again.
        Raises RuntimeError where graph=True and it cannot be captured.
        """
        if not inductor.serves(problem.x):
            raise RuntimeError(
                _REFUSED.format(attack, f"`x` is on {problem.x.device}, not on CUDA")
            )
        with self._lock:
            what = self._what(attack, problem)
            why: str | Program = self._why_not(attack, what) or self._program(attack, problem, what)
            if isinstance(why, Program):
                size = "x".join(map(str, problem.x.shape))
                self.notes = [f"the last attack replayed a captured step, for x of {size}"]
                return partial(self._climb, why, problem, what)
        if self.wanted:
            raise RuntimeError(_REFUSED.format(attack, why))
        self.notes = [f"the last attack went step by step, not captured: {why}"]
        return None

    def _why_not(self, attack: Attack, what: Key) -> str | None:
        if self.wanted is False:
            return "graph=False"
        if isinstance(attack.rule, Auto):
            return "apgd goes by the losses of its steps"
        if not attack.steps:
            return "it has no steps"
        if torch.is_autocast_enabled("cuda"):
            return "autocast is on, and keeps copies of weights that a replay would not renew"
        return None if self._due(what) else "its batch has this size for the first time"

    def _climb(self, program: Program, problem: Problem, what: Key, x_adv: Tensor) -> Tensor:
        with self._lock:
            graphs = self._on(x_adv.device)
            problem.prepare(program.logits)
            graphs.enter()
            try:
                program.fill(problem, x_adv)
                return self._run(program, problem, what)
            finally:
                graphs.leave()

    def _run(self, program: Program, problem: Problem, what: Key) -> Tensor:
        """From the program's start to the attack's last iterate. Under a stop, batches of half as
        many samples go on with those that are left, as soon as they hold them."""
        result = torch.empty_like(program.x_adv)
        index = torch.arange(len(problem.x), device=result.device)
        for k in range(program.attack.steps):
            if program.attack.stop and k and k % OTHERS_EVERY == 0:
                left = len(index) - int(program.done.sum())
                if not left:
                    break
                if (smaller := self._smaller(program, left, what)) is not None:
                    result[index] = program.ends()
                    order = program.done.argsort(stable=True)[: len(smaller.done)]
                    smaller.take(program, order)
                    program, index = smaller, index[order]
            assert program.replay is not None
            program.replay()
            problem.tally.forwards += len(index)
        problem.tally.seen.append(torch.where(program.bad, torch.nan, 0.0)[None])
        result[index] = program.ends()
        return result

    def _smaller(self, program: Program, left: int, what: Key) -> Program | None:
        """A captured step for half as many samples, or a quarter, ..., that holds those left."""
        size = chosen = len(program.done)
        while -(-chosen // 2) >= max(left, LEAST):
            chosen = -(-chosen // 2)
        if chosen == size:
            return None
        found = self._program(program.attack, _part(program.problem, chosen), (chosen, *what[1:]))
        if isinstance(found, str) and self.wanted:
            raise RuntimeError(_REFUSED.format(program.attack, found))
        return found if isinstance(found, Program) else None

    def _program(self, attack: Attack, problem: Problem, what: Key) -> Program | str:
        """A captured step, kept or new, or why there can be none."""
        if (why := self._refused.get(what)) is not None:
            return why
        key = what, self._where()
        if key not in self._programs:
            try:
                self._programs[key] = self._captured(attack, problem)
            except CannotCapture as error:
                self._refused[what] = str(error)
                if not self.wanted:
                    warnings.warn(_WARNING.format(error), stacklevel=2)
                return str(error)
        self._programs.move_to_end(key)
        while len(self._programs) > KEPT:
            self._programs.popitem(last=False)
        return self._programs[key]

    def _captured(self, attack: Attack, problem: Problem) -> Program:
        """The model and the default generator are left as they were."""
        graphs = self._on(problem.x.device)
        random = graphs.random_state()
        saved = {name: t.clone() for name, t in self._module.named_buffers()}
        try:
            logits = _first(problem)
            if attack.stop in AT_CYCLE:
                require_deterministic(random, graphs.random_state())
            program = Program(attack, problem, logits)
            program.capture(graphs, self._module)
        finally:
            graphs.set_random_state(random)
            for name, buffer in self._module.named_buffers():
                if name in saved:  # not of those that this forward has made
                    buffer.copy_(saved[name])
        return program

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
        modules = (
            (id(m), len(m._forward_hooks), len(m._forward_pre_hooks))
            for m in self._module.modules()
        )
        return *modules, *(t.data_ptr() for t in tensors), *self._copies.pointers

    def _on(self, device: torch.device) -> Graphs:
        if device not in self._graphs:
            self._graphs[device] = GRAPHS[device.type](device)
        return self._graphs[device]


def _part(problem: Problem, n: int) -> Problem:
    """The problem of the first n samples, in the same memory format."""

    def first(t: Tensor | None) -> Tensor | None:
        return None if t is None else t[:n]

    radius = problem.radius[:n] if problem.radius.dim() else problem.radius
    y, target = first(problem.y), first(problem.target)
    return replace(problem, x=problem.x[:n], radius=radius, y=y, target=target)


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


def _settings() -> Key:
    """What of torch's own settings chooses kernels."""
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    return (
        cuda.matmul.fp32_precision,
        cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.fp32_precision,  # type: ignore[attr-defined]
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
    )
