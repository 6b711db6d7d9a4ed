"""What a forward borrows and gives back: a model's parameters, and the warnings' filters.

Forwards may run side by side in threads, on models that share modules. So a loan is counted: the
first to come takes, those that follow share, and the last to go gives back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from torch import Tensor, nn

Place = dict[str, Any]
Saved = tuple[tuple[Place, Place], ...]  # where, and what stood there
Lend = Callable[[nn.Parameter], Tensor]  # what stands in the place of a parameter


def alias(parameter: nn.Parameter) -> Tensor:
    """The parameter's own memory, without its gradient."""
    return parameter.detach()


@dataclass
class _Loans:
    """The modules whose parameters are detached now: how many borrow each, and what it had."""

    lock: Lock = field(default_factory=Lock)
    modules: dict[nn.Module, tuple[int, Saved, Lend]] = field(default_factory=dict)
    tensors: dict[int, tuple[nn.Parameter, Tensor]] = field(default_factory=dict)

    def take(self, module: nn.Module, lend: Lend) -> None:
        lent = self.modules.get(module)
        if lent is None:
            place: Place = module._parameters
            saved: Saved = ((place, place.copy()),)
            given: list[Place] = [
                {name: self._lent(p, lend) for name, p in place.items() if p is not None}
            ]
            if module.training:
                buffers = module._buffers
                saved = (*saved, (buffers, buffers.copy()))
                given.append(
                    {name: b.detach().clone() for name, b in buffers.items() if b is not None}
                )
            self.modules[module] = 1, saved, lend  # what may fail has been done
            for (at, _), tensors in zip(saved, given, strict=True):
                at.update(tensors)
        elif lent[2] != lend:
            raise RuntimeError(
                "two compiled models that share this model ran in two threads at once, on copies "
                "of its weights in two precisions: let one thread run them in turn"
            )
        else:
            self.modules[module] = lent[0] + 1, *lent[1:]

    def _lent(self, parameter: nn.Parameter, lend: Lend) -> Tensor:
        """One tensor for one parameter, wherever it stands: Dynamo sees that weights are tied."""
        kept = self.tensors.get(id(parameter))
        if kept is None:
            kept = self.tensors[id(parameter)] = parameter, lend(parameter)
        return kept[1]

    def give_back(self, module: nn.Module) -> None:
        borrowers, saved, lend = self.modules.pop(module)
        if borrowers > 1:
            self.modules[module] = borrowers - 1, saved, lend
            return
        for place, values in saved:
            place.update(values)
        if not self.modules:
            self.tensors.clear()


_loans = _Loans()


class detached:
    """The model with its parameters detached, and with copies of the buffers that it may update.

    They share the parameters' memory, or are what `lend` gives for each. Nothing of the caller's
    changes. Meanwhile no other thread may train the model itself.

    All that a model costs that runs as plain torch: 20 us on a net of three layers, whose forward
    takes 85. Hence a class, where a generator would be shorter.
    """

    def __init__(self, model: nn.Module, lend: Lend = alias) -> None:
        self.model, self.lend = model, lend
        self.taken: list[nn.Module] = []

    def __enter__(self) -> None:
        try:
            with _loans.lock:
                for module in modules_of(self.model):
                    if module._parameters or (module._buffers and module.training):
                        _loans.take(module, self.lend)
                        self.taken.append(module)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with _loans.lock:
            for module in self.taken:
                _loans.give_back(module)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Each of its modules once; `modules()` nests a generator a level, in three times the time."""
    found, seen = [model], {model}
    for module in found:  # it grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


def trains(model: nn.Module) -> bool:
    """Whether a forward may change a buffer."""
    return any(module.training for module in modules_of(model))


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
