"""Gates the kernels that could serve a case, then measures them, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from bench import gate, table_learning
from bench.table_convolutions import Convolution
from bench.table_depthwise import Depthwise
from bench.table_passes import pair
from bench.timing import Clock, interleave
from fastadv.engine.speeds import LEARNING, OWN, PLAIN, Case

Call = Callable[[], Tensor]
# Of the result's norm: float32's roundings, Winograd's among them; bfloat16's factors have 8 bits.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-2}
_LEAST = 5  # rounds


def measure(
    case: Case, precisions: Sequence[str], seconds: float, clock: Clock
) -> dict[str, dict[str, float]]:
    """Seconds of a call by precision and kernel. Raises GateError where a kernel is wrong."""
    if case.op in LEARNING:
        timed = interleave(table_learning.gated(case), seconds, _LEAST, warm_up=0, clock=clock)
        return {"float32": {kernel: times.quantile(50) for kernel, times in timed.items()}}
    find = _FIND.get(case.op, _other)
    ours, torchs = find(case, precisions)
    given = {**ours, **{("", kernel): call for kernel, call in torchs.items()}}
    named = {" ".join(key): call for key, call in given.items()}
    times = interleave(named, seconds, _LEAST, warm_up=0, clock=clock)  # the gate called them
    medians = {key: times[" ".join(key)].quantile(50) for key in given}
    shared = {kernel: medians["", kernel] for kernel in torchs}
    if not ours:  # a pass of torch's that is not run at all
        shared[OWN] = 0.0
    return {p: {**shared, **{k: medians[q, k] for q, k in ours if q == p}} for p in precisions}


Found = tuple[dict[tuple[str, str], Call], dict[str, Call]]  # ours by precision and name; torch's


def _convolution(case: Case, precisions: Sequence[str]) -> Found:
    convolution, gradient = Convolution(case), case.op == "gradient"
    run = convolution.gradient if gradient else convolution.forward
    ours = {(p, k): call for p in precisions for k, call in run(p == "bfloat16").items()}
    torchs = convolution.atens_gradient() if gradient else convolution.atens_forward()
    exact, ends = convolution.exact(gradient), [0, -1]
    for (precision, kernel), call in ours.items():
        gate.relative(f"{kernel} of {case}", call()[ends], exact, _TOLERANCE[precision])
    for kernel, call in torchs.items():  # that the same thing is measured
        gate.relative(f"{kernel} of {case}", call()[ends], exact, _TOLERANCE["float32"])
    return ours, torchs


def _depthwise(case: Case, precisions: Sequence[str]) -> Found:
    depthwise, gradient = Depthwise(case), case.op == "depthwise gradient"
    own, torchs = depthwise.gradient() if gradient else depthwise.forward()
    exact = depthwise.exact(gradient)
    for kernel, call in (own | torchs).items():
        gate.relative(f"{kernel} of {case}", call()[[0, -1]], exact, _TOLERANCE["float32"])
    return {(p, k): call for p in precisions for k, call in own.items()}, torchs


def _other(case: Case, precisions: Sequence[str]) -> Found:
    ours: dict[tuple[str, str], Call] = {}
    for precision in precisions:
        calls = pair(case, precision == "bfloat16")
        exact = calls.exact()
        gate.relative(f"torch's {case}", calls.plain(), exact, _TOLERANCE["float32"])
        if calls.own is not None:
            gate.relative(str(case), calls.own(), exact, _TOLERANCE[precision])
            ours[precision, OWN] = calls.own
    return ours, {PLAIN: calls.plain}


_FIND = {
    "convolution": _convolution, "gradient": _convolution,
    "depthwise": _depthwise, "depthwise gradient": _depthwise,
}  # fmt: skip
