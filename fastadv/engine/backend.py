"""The compiler behind torch.compile: AOTAutograd's joint graph, rewritten, and run as it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew
from torch._functorch._aot_autograd.schemas import OutputType
from torch._functorch.partitioners import default_partition

from fastadv.engine.graph import source_of
from fastadv.engine.halves import Halves, joined
from fastadv.engine.report import Row
from fastadv.engine.reshaped import writes_on_copies
from fastadv.engine.rewrite import rewrite
from fastadv.engine.speeds import Call
from fastadv.engine.tracing import is_run
from fastadv.engine.weights import FUNCTIONS, Weights
from fastadv.engine.worth import calls_of


class Compiler:
    """Compiles the graphs of one model; `rows` says what serves those compiled last."""

    def __init__(self, weights: Weights, native: bool, bfloat16: bool, batch: int) -> None:
        self.weights = weights
        self.native = native
        self.bfloat16 = bfloat16
        self.batch = batch  # the size that kernels are chosen for
        self.rows: list[Row] = []
        self.graphs = 0
        self.calls: list[Call] = []  # whose seconds say whether the graphs are worth their own
        self._halves: Halves | None = None
        self.writes_on_copies = False  # where a view became one, if views were reshaped

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1
        self.writes_on_copies |= writes_on_copies(graph.graph)
        sources = [self._name(n) for n in graph.graph.nodes if n.op == "placeholder"]
        rewritten: list[bool] = []
        runners: list[tuple[Runner, fx.Graph]] = []
        simple = _is_whole_model()

        def partition(joint: fx.GraphModule, args: Any, **options: Any) -> Any:
            self._rewrite(joint, sources)
            rewritten.append(True)
            return default_partition(joint, args, **options)

        def forward(module: fx.GraphModule, args: Any) -> Callable[..., Any]:
            if not rewritten:  # no gradient is asked for: no joint graph, no partition
                self._rewrite(module, sources)
            runners.append((Runner(module, sources, self.weights), module.graph))
            return runners[0][0]

        def backward(module: fx.GraphModule, args: Any) -> Callable[..., Any]:
            donate_nothing()
            if simple and _is_plain_function():
                self._halves = joined(*runners[0], module, sources)
            return _boxed(module)

        compiled = aot_autograd(fw_compiler=forward, bw_compiler=backward, partition_fn=partition)
        with torch._functorch.config.patch(donated_buffer=False):
            return compiled(graph, inputs)

    @property
    def halves(self) -> Halves | None:
        """Those of what was compiled last, if that is one graph, and a function of x alone."""
        return self._halves if self.graphs == 1 else None

    def _name(self, placeholder: fx.Node) -> str | None:
        """A weight's name, the same in all graphs; of a part that Dynamo cut off, in this one."""
        source = source_of(placeholder)
        if source is None or source.startswith("L['module']"):
            return source
        return f"{self.graphs}:{source}"

    def _rewrite(self, module: fx.GraphModule, sources: list[str | None]) -> None:
        _mark_weights(module.graph, sources)
        rows = rewrite(module.graph, self.native, self.bfloat16, self.batch)
        self.rows += rows
        self.calls += [row.call for row in rows if row.call is not None] + calls_of(module.graph)
        module.graph.lint()
        module.recompile()


def _primals(graph: fx.Graph) -> list[fx.Node]:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    return [node for node in placeholders if not str(node.target).startswith("tangents")]


def _mark_weights(graph: fx.Graph, sources: list[str | None]) -> None:
    """Notes on each input that is a weight where it comes from.

    AOTAutograd passes the inputs on in their order, unless some share memory: then nothing is
    marked, and nothing that needs a weight is rewritten.
    """
    primals = _primals(graph)
    if len(primals) != len(sources):
        return
    for node, source in zip(primals, sources, strict=True):
        if source is not None:
            node.meta["source"] = source


def _is_whole_model() -> bool:
    """Whether what Dynamo compiles now is all that the model does: no part of it runs in Python,
    before the graph or after it, and nothing that was there before is changed."""
    frame = InstructionTranslator.current_tx()
    reason = frame.output.compile_subgraph_reason
    if not is_run(frame.f_code) or reason is None or reason.graph_break:
        return False
    effects = frame.output.side_effects
    changed = [
        thing for thing in effects.id_to_variable.values()
        if not isinstance(thing.mutation_type, (AttributeMutationNew, ValueMutationNew))
        and effects.is_modified(thing)
    ]  # fmt: skip
    return not (changed or effects.tensor_hooks or effects.save_for_backward)


def _is_plain_function() -> bool:
    """Whether the graph that AOTAutograd compiles now writes on no input, and gives one tensor that
    shares no memory."""
    context = torch._guards.TracingContext.try_get()
    found = context.fw_metadata if context is not None else None
    return (
        found is not None
        and not any(info.mutates_data or info.mutates_metadata for info in found.input_info)
        and [info.output_type for info in found.output_info] == [OutputType.non_alias]
        and not (found.num_intermediate_bases or found.tokens or found.num_graphsafe_rng_states)
    )


def donate_nothing() -> None:
    """No buffer is a backward's to write to: graphs may be kept, and run again."""
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.fw_metadata is not None:
        context.fw_metadata.bw_donated_idxs = []


def _boxed(run: Any) -> Callable[..., Any]:
    def call(args: list[Any]) -> Any:
        given = list(args)
        args.clear()
        return run(*given)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


class Runner:
    """A forward graph whose functions of weights alone are taken out, and their values kept."""

    _boxed_call = True

    def __init__(self, module: fx.GraphModule, sources: list[str | None], weights: Weights) -> None:
        self.weights = weights
        nodes = _primals(module.graph)
        graph = module.graph
        functions = [node for node in graph.nodes if node.target in FUNCTIONS]
        self.sources = {
            arg: str(arg.meta["source"]) for f in functions for arg in f.all_input_nodes
            if arg.op == "placeholder"
        }  # fmt: skip
        self.index = {node: i for i, node in enumerate(nodes)}
        self.plan = [_Function(node, self.sources) for node in functions]
        self.module = _without(module, functions)

    def __call__(self, args: list[Any]) -> Any:
        given = list(args)
        args.clear()
        return self.module(*given, *self.kept(given))

    def kept(self, given: list[Any]) -> list[Tensor]:
        """The functions' values, for the weights among the inputs."""
        with self.weights.lock:
            held = self.weights.held
            kept = held.get(self) if held is not None else None
            if kept is None:
                kept = self._values(given)
                if held is not None:
                    held[self] = kept
        return kept

    def _values(self, given: list[Any]) -> list[Tensor]:
        tensors = {node: given[self.index[node]] for node in self.sources}
        counts = {
            node: self.weights.count(name, tensors[node]) for node, name in self.sources.items()
        }
        values: dict[fx.Node, Tensor] = dict(tensors)
        for function in self.plan:
            values[function.node] = function.value(self.weights, values, counts)
        return [values[function.node] for function in self.plan]


class _Function:
    """One function of weights: its key names the function, its weights and its numbers."""

    def __init__(self, node: fx.Node, sources: dict[fx.Node, str]) -> None:
        self.node = node
        self.inputs: list[fx.Node] = []
        self.key = self._key(node, sources)

    def _key(self, node: object, sources: dict[fx.Node, str]) -> Any:
        if not isinstance(node, fx.Node):
            return node
        if node in sources:
            self.inputs.append(node)
            return sources[node]
        return node.target, *(self._key(arg, sources) for arg in node.args)

    def value(
        self, weights: Weights, values: dict[fx.Node, Tensor], counts: dict[fx.Node, int]
    ) -> Tensor:
        args = [values[a] if isinstance(a, fx.Node) else a for a in self.node.args]
        compute: Any = self.node.target
        with torch.no_grad():
            changed = tuple(counts[node] for node in self.inputs)
            return weights.value(self.key, changed, lambda: compute(*args))


def _without(module: fx.GraphModule, functions: list[fx.Node]) -> fx.GraphModule:
    """The graph with the functions' values as further inputs, in their order."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    for i, node in enumerate(functions):
        copies[node] = graph.placeholder(f"kept_{i}")
    for node in module.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return fx.GraphModule(module, graph)
