"""What a forward borrows and gives back: a model's parameters, and the warnings' filters.

Forwards may run side by side in threads, on models that share modules. So a loan is shared: the
first to come takes, and the last to go gives back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

T = TypeVar("T")
Place = dict[str, Any]
Lend = Callable[[nn.Parameter], Tensor] | None  # what stands in the place of a parameter
_TWO_PRECISIONS = (
    "two compiled models that share this model ran in two threads at once, on copies of its "
    "weights in two precisions: let one thread run them in turn"
)


class _Loan:
    """One forward's: the places where tensors stand in for others, and what stood there."""

    turn = Lock()
    current: ClassVar[list[_Loan]] = []

    def __init__(self, model: nn.Module, lend: Lend) -> None:
        self.lend = lend
        self.taken: dict[int, tuple[Place, Place]] = {}  # by id
        self.given: dict[int, tuple[nn.Parameter, Tensor]] = {}
        with self.turn:
            try:
                for module in modules_of(model):
                    self._take(module._parameters, self._instead_of)
                    if module.training:
                        self._take(module._buffers, lambda buffer: buffer.detach().clone())
            except BaseException:
                self._give_back()
                raise
            self.current.append(self)

    def _take(self, place: Place, make: Callable[[Any], Tensor]) -> None:
        for other in self.current:
            if id(place) in other.taken:
                if other.lend != self.lend:
                    raise RuntimeError(_TWO_PRECISIONS)
                self.taken[id(place)] = other.taken[id(place)]
                self.given |= other.given
                return
        saved = place.copy()
        self.taken[id(place)] = place, saved
        place.update({name: make(tensor) for name, tensor in saved.items() if tensor is not None})

    def _instead_of(self, parameter: nn.Parameter) -> Tensor:
        """One tensor for one parameter, wherever it stands: Dynamo sees that weights are tied."""
        for loan in (self, *self.current):
            if id(parameter) in loan.given:
                return loan.given[id(parameter)][1]
        tensor = parameter.detach() if self.lend is None else self.lend(parameter)
        self.given[id(parameter)] = parameter, tensor
        return tensor

    def end(self) -> None:
        with self.turn:
            self.current.remove(self)
            self._give_back()

    def _give_back(self) -> None:
        for at, (place, saved) in self.taken.items():
            if not any(at in other.taken for other in self.current):
                place.update(saved)


def lent_in_python(model: nn.Module, lend: Lend, run: Callable[[Tensor], T], x: Tensor) -> T:
    """run(x), while the model has its parameters detached, and copies of the buffers that it may
    update.

    They share the parameters' memory, or are what `lend` gives for each. Nothing of the caller's
    changes. Meanwhile no other thread may train the model itself.
    """
    loan = _Loan(model, lend)
    try:
        return run(x)
    finally:
        loan.end()


def modes_in_python(model: nn.Module) -> tuple[bool, ...]:
    """Of each of its modules, whether it trains."""
    return tuple(module.training for module in modules_of(model))


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Each of its modules once; `modules()` nests a generator a level, in three times the time."""
    found, seen = [model], {model}
    for module in found:  # it grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


# All that a model costs that runs as plain torch: see csrc/loans.h.
try:
    from fastadv._native import lent as lent
    from fastadv._native import modes_of as modes_of
except ImportError:
    lent, modes_of = lent_in_python, modes_in_python


class _Quiet:
    """One warning of Dynamo's, about the inputs that it traces with, is ignored."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.borrowers = 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.borrowers:
                self.before = warnings.catch_warnings()
                self.before.__enter__()
                message = "The .grad attribute of a Tensor that is not a leaf"
                warnings.filterwarnings("ignore", message)
            self.borrowers += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.borrowers -= 1
            if not self.borrowers:
                self.before.__exit__(None, None, None)


quiet = _Quiet()
