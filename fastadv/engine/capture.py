"""A compiled model: its variants, what serves each, and what attacks and autograd ask of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import RLock, local
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastadv.engine import inductor, variants, worth
from fastadv.engine.copies import Copies
from fastadv.engine.dense import Layers
from fastadv.engine.dense_plan import Climb, Plans
from fastadv.engine.formats import (
    ChannelsLast,
    guarded,
    in_dtype_of,
    in_format_of,
    is_gray,
    is_image,
)
from fastadv.engine.halves import Halves, autocasts, has_hooks
from fastadv.engine.learning import Learning
from fastadv.engine.loans import lent, modes_of
from fastadv.engine.loop import Loops
from fastadv.engine.replay import Replays
from fastadv.engine.report import Report, Row, report_of
from fastadv.engine.tracing import call, fresh_run, limits
from fastadv.engine.variants import Key, key_of, without_layout
from fastadv.engine.weights import Weights
from fastadv.engine.worth import Verdict
from fastadv.model import Pull, Steady
from fastadv.ops import backend

if TYPE_CHECKING:
    from fastadv.attack import Attack
    from fastadv.engine.backend import Compiler
    from fastadv.problem import Problem


class Compiled(Steady):
    """`module`, run on kernels that compute gradients with respect to the input alone.

    An ordinary module under autograd: any library's attack runs on it. The parameters are seen as
    they are at each forward, and get no gradient: to train, call `learn`, or `.module` itself.
    """

    module: nn.Module

    def __init__(
        self,
        module: nn.Module,
        print_report: bool = False,
        precision: str = "float32",
        graph: bool | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.training = module.training
        self._weights = Weights()
        self._lock = RLock()
        self._variants: dict[Hashable, Callable[[nn.Module, Tensor], Any]] = {}
        self._graphs: dict[str, tuple[Row, ...]] = {}
        self._bypass = worth.why_bypass(module, precision)
        self._compilers: dict[Hashable, Compiler | inductor.Inductor] = {}  # of the variants
        self._sure: dict[Hashable, bool] = {}  # whether a variant's guards held in this attack
        self._mine = local()  # how often this thread is inside `held`
        self._verdicts: dict[Hashable, Verdict] = {}  # of the variants not worth their calls
        self._cases: set[Hashable] = set()  # of those, in which plain torch serves
        self._plans = Plans(module, precision, self._weights)
        self._copies = Copies(module, precision == "bfloat16")  # for devices of inductor's
        self._held = 0  # attacks under way, for which the copies are as they should be
        self._replays = Replays(module, self._copies, graph, self._lock)
        self._loops = Loops()
        self._static_batch = False
        self._reshaped = False  # whether views of the model's own need another layout,
        self._contiguous = False  # and whether it writes on them: then images stay as they are
        self._learning = Learning(module)
        self._print = print_report
        # An outer torch.compile breaks its graph there. No decorator: it imports Dynamo, 1.5 s.
        self._unseen = torch.compiler.disable(call)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        from fastadv.engine.entry import compile

        return compile, (self.module, self._plans.precision, self._print, self._replays.wanted)

    def report(self) -> Report:
        """What serves each layer, and why, for all that was compiled so far."""
        return report_of(self)

    def attack_plan(self, attack: Attack, problem: Problem) -> Climb | None:
        """All steps of an attack, from x_adv to its last iterate: as one call, as a noted step
        again and again, or as replays of a captured one; None: there is no plan, and the attack
        goes step by step. `report()` says why."""
        with self._lock:
            plan = self._plans.attack(attack, problem, self._read_graph)
            if plan is None and (inductor.serves(problem.x) or self._replays.wanted):
                plan = self._replays.plan(attack, problem)
            elif plan is None and not (self._plans.found or self._bypass):
                plan = self._loops.plan(attack, problem)
            return plan

    def learn(self, x: Tensor) -> Any:
        """module(x) in the module's own mode, with gradients by its weights too, and its statistics
        updated: what to train by. Convolutions run on kernels of ours, where those are faster."""
        if torch.compiler.is_dynamo_compiling():
            return self._unseen(self.learn, x)
        with self._lock:  # no forward has lent the weights meanwhile
            return self.module(x) if self._bypass else self._learning(x)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The weights stay as they are: what is computed from them alone is computed once, and once
        more where another thread enters, which may have changed them."""
        mine = getattr(self._mine, "depth", 0)
        with self._lock:
            if not self._held and any(map(inductor.serves, self.module.parameters())):
                self._replays.wait()
                self._copies.refresh()
            if not mine:
                self._weights.hold()
                self._sure.clear()
            self._held += 1
        self._mine.depth = mine + 1
        try:
            yield
        finally:
            self._mine.depth = mine
            with self._lock:
                self._held -= 1
                if not self._held:
                    self._weights.held = None

    def vjp(self, x: Tensor, rows: int = 1, probe: bool = False) -> tuple[Tensor, Pull] | None:
        """(logits at x (N, *shape), their pullback) inside `held`, without Dynamo and autograd.

        The pullback takes (N * R, classes), R tangents a sample; `rows` says how many are likely.
        None: no forward with gradient of N * rows samples was seen yet, by which Dynamo looks
        whether the graph still fits (`probe` makes one), or the model is no such graph.
        """
        usable = x.is_floating_point() and not x.requires_grad and len(x)
        if self._bypass or not self._held or not usable or has_hooks(self) or autocasts():
            return None
        with self._lock, torch.no_grad():
            key = without_layout(self._key(x, len(x) * rows, (True, True, False)))
            if key not in self._sure and probe:
                self._sure[key] = False
                self._with_gradient(x.repeat_interleave(rows, 0))
            halves = self._halves(key, len(x) * rows) if self._sure.get(key) else None
            if halves is None or not halves.agree(self.module, self._with_gradient, x, rows):
                return None
            return halves.vjp(self.module, x, rows)

    def _with_gradient(self, x: Tensor) -> Any:
        with torch.enable_grad():
            return self.forward(x.detach().requires_grad_())

    def _read_graph(self, x: Tensor) -> Layers | str:
        with torch.no_grad(), limits():
            return lent(self.module, None, self._layers, x.detach())

    def _layers(self, x: Tensor) -> Layers | str:
        from fastadv.engine.dense_graph import GraphReader

        key = "dense", self._key(x)
        if key not in self._variants:
            self._variants[key] = GraphReader(fresh_run())
        given = variants.marked(x, self._static_batch)
        layers: Layers | str = self._variants[key](self.module, given)
        return layers

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return self._unseen(self.forward, x, *more, **named)
        if more or named:
            raise TypeError("`model` must be called with x alone: bind its other arguments first")
        if not isinstance(x, Tensor):
            raise TypeError(f"`x` must be a torch.Tensor, got {type(x).__name__}")
        y = None if self._plans.refuses(x) else self._by_stack(x)
        if y is None:
            y = self._by_torch(x) if self._is_plain(x) else self._by_engine(x)
        return y if x.requires_grad or not torch.is_grad_enabled() else guarded(self.module, y)

    def _by_torch(self, x: Tensor) -> Any:
        model: Any = self._modules["module"]  # self.module takes 2 us more in an attack's loop
        if not torch.is_grad_enabled() and True not in modes_of(model):
            return model(x)
        with self._lock:
            return lent(model, None, model, x)

    def _by_stack(self, x: Tensor) -> Any:
        with self._lock:
            return None if inductor.serves(x) else self._plans.forward(x, self._read_graph)

    def _by_engine(self, x: Tensor) -> Any:
        lend = self._copies.lend if inductor.serves(x) else None
        with self._lock:
            if lend is not None and not self._held:
                self._copies.refresh()
            return lent(self.module, lend, self._on_kernels, x)

    def _on_kernels(self, x: Tensor) -> Any:
        turned = is_image(x) and not self._contiguous
        y = self._run(ChannelsLast.apply(x) if turned else x)  # type: ignore[no-untyped-call]
        return in_format_of(x, in_dtype_of(x, y) if inductor.serves(x) else y)

    def _is_plain(self, x: Tensor) -> bool:
        if inductor.serves(x):
            return not len(x) or inductor.why_plain() is not None
        if self._bypass or not x.is_cpu or not x.numel():
            return True
        if not self._verdicts:
            return False
        case = variants.case_of(self.module, x)
        if self._held or case not in self._cases:
            key = without_layout(self._key(x))
            if len(x) >= self._verdicts.get(key, Verdict()).graph:
                return False
            # In an attack the calls that cost more are made once, its other steps go without.
            if self._held:
                return self._halves(key, len(x)) is None
            self._cases.add(case)
        return True

    def _halves(self, key: Key, size: int) -> Halves | None:
        """A variant's halves, if it is worth to call them for a batch of this size: by a plan they
        always are."""
        halves = self._compilers[key].halves
        by_layer = halves is not None and halves.plans.why_not is not None
        return None if by_layer and size < self._verdicts.get(key, Verdict()).layers else halves

    def _run(self, x: Tensor) -> Any:
        key = self._key(x)
        variant = self._variants.get(key)
        if variant is not None:
            with limits(self._reshaped):
                y = variant(self.module, self._given(x))
            self._sure[without_layout(key)] = True
            return y
        try:
            return self._compile(key, x)
        except torch._dynamo.exc.UserError:
            if self._static_batch:
                raise
            self._static_batch = True
            self._cases.clear()
        except torch._dynamo.exc.TorchRuntimeError as error:
            if self._reshaped or "Cannot view" not in str(error):
                self.module(x)  # the model's own error, in place of Dynamo's page, where it has one
                raise
            self._reshaped = True
        return self._run(x)

    def _key(
        self, x: Tensor, size: int | None = None, grad: tuple[bool, bool, bool] | None = None
    ) -> Key:
        return key_of(self.module, x, self._static_batch, size, grad)

    def _given(self, x: Tensor) -> Tensor:
        given = x.permute(0, 2, 3, 1) if self._takes_rows(x) else x
        return variants.marked(given, self._static_batch)

    def _takes_rows(self, x: Tensor) -> bool:
        return is_gray(x) and not inductor.serves(x) and not self._contiguous

    def _compile(self, key: Key, x: Tensor) -> Any:
        compiler, cast = self._compiler(x), inductor.serves(x) and self._copies.bfloat16
        run = fresh_run(cast, self._takes_rows(x))
        variant: Callable[..., Any] = torch.compile(run, backend=compiler)
        with limits(self._reshaped):
            y = variant(self.module, self._given(x))
        if self._reshaped and compiler.writes_on_copies:
            self._reshaped, self._contiguous = False, True
            return self._run(x.contiguous())
        self._variants[key] = variant
        self._compilers[without_layout(key)] = compiler
        self._sure[without_layout(key)] = True
        name = variants.name_of(self, x, self._static_batch, compiler.graphs)
        if not isinstance(compiler, inductor.Inductor):  # whose calls cost less than what it fuses
            given = compiler.calls, compiler.graphs, len(compiler.rows)
            verdict = worth.verdict(*given, variants.sizes(len(x), self._static_batch))
            if verdict.said:
                self._verdicts[without_layout(key)] = verdict
            name += verdict.said
        self._graphs[name] = tuple(compiler.rows)
        if self._print:
            print(self.report())
        return y

    def _compiler(self, x: Tensor) -> Compiler | inductor.Inductor:
        from fastadv.engine.backend import Compiler

        if inductor.serves(x):
            return inductor.Inductor(self._copies.bfloat16)
        batch = variants.usual(len(x), self._static_batch)
        return Compiler(self._weights, backend().is_native, self._plans.bfloat16, batch)
