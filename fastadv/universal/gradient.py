"""max over one delta of the mean over i of L(f(x_i + delta), y_i), by stochastic gradient ascent.

The update of universal adversarial training (Shafahi et al. 1811.11304, algorithm 2), theta fixed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastadv import _checks, ops
from fastadv._bar import along
from fastadv.attack import Attack
from fastadv.model import Model, crafting, held
from fastadv.objectives import as_objective
from fastadv.perturbation import Perturbation
from fastadv.problem import Problem, output
from fastadv.universal.ascent import Ascent
from fastadv.universal.batches import Batch, require_loader, require_some, unpack
from fastadv.universal.form import Form
from fastadv.universal.layers import Layers, chosen_layers, layer_gradient, layer_names
from fastadv.universal.penalty import Penalty
from fastadv.universal.ranks import Ranks
from fastadv.universal.state import State, digest, named, require_at_most

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@torch.inference_mode(False)  # where no gradient could be taken
def gradient(
    attack: Attack,
    model: Model,
    loader: Iterable[Batch],
    epochs: int = 1,
    *,
    loss_cap: float | None = None,
    target: int | None = None,
    classes: Sequence[int] | None = None,
    layers: Layers = None,
    penalty: Penalty | None = None,
    signs: bool = False,
    delta_shape: Sequence[int] | None = None,
    offset: Sequence[int] | None = None,
    mask: Tensor | None = None,
    per_class: int | None = None,
    init: Perturbation | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
    generator: torch.Generator | None = None,
    group: ProcessGroup | None = None,
) -> Perturbation:
    """Ascends the mean objective over the batches of `loader`, one step a batch.

    Of the attack it takes the ball, the rule (Steepest, Gradient, Momentum or Adam), the objective,
    the start and the mode; steps and restarts are a single sample's and play no part.

    loader: batches (x, y), or x alone, whose labels are then the model's predictions.
    loss_cap: beta; a sample whose loss exceeds it adds no gradient, so that no few dominate.
    target: a class that delta is to call forth on every input.
    classes: only these are to be fooled; samples of any other y are to keep their class, and their
    loss is descended (class-discriminative: Zhang et al. 2010.03300).
    layers: modules of the model, or names of them, in place of the attack's objective: ascends the
    sum over them of log mean |layer(x + delta) - layer(x)| (Fast Feature Fool's objective,
    1707.05572, of what delta changes in place of what it excites alone). At delta = 0 it has no
    gradient: start uniform, or from `init`.
    penalty: a norm of delta's in the objective; goes with the rule Gradient, whose steps it follows
    with its own, before the ball's projection.
    signs: sums the signs of the samples' gradients in place of the gradients.
    delta_shape: a smaller delta, repeated over the sample as tiles, over which its gradient is
    summed (Metzen et al. 1704.05712), or, with `offset`, a patch placed there once. It
    has as many dimensions as a sample; a 1 for the channels moves all alike.
    mask: a bool tensor that broadcasts to a sample, as (H, W): nothing moves but where it is true,
    and delta is (n,), the sample's numbers under it, in a ball of their own; `whole` places them.
    per_class: so many deltas, one for each label; each follows the samples of its own y alone, in
    a ball of its own, as if it had been run on them.
    init: goes on from there. progress: a bar with the share of inputs fooled so far.
    state: a file, written after each epoch; a run that finds it goes on from it, to the same result
    if the loader is made and seeded as it was.

    Under torch.distributed, once the caller has initialised it, the ranks of `group` (None: the
    default one) each give their shard of every global batch and all hold the same delta: a step
    sends one tensor, delta's size and a few counts, in float64. Shards may differ in size and in
    number of batches; a rank that has run out serves the others' steps. `state` is the first rank's
    file. `model` is the module itself, not DistributedDataParallel around it.

    The gradient is taken at clamp(x + delta) and passes the clamp unchanged: a pixel at its bound
    in one input still votes for where delta goes in the others.

    Raises ValueError for a loader without batches, a penalty with another rule, classes with a
    target or without class labels, layers with a target or from delta = 0, a delta or a mask that
    does not fit, tiles in another ball than linf, a `state` of another run, and where an attack
    would on a batch.
    """
    if epochs < 1:
        raise ValueError(f"`epochs` must be at least 1, got {epochs}")
    require_loader(loader)
    goal = _Goal(attack, model, target, classes, layers, loss_cap)
    form = Form.of(delta_shape, offset, per_class, mask)
    ascent = Ascent(attack, init, signs, generator, penalty, form, Ranks(group))
    if layers is not None and init is None and attack.start != "uniform":
        raise ValueError(f"`layers` need a start='uniform' or an `init`, got {attack.start!r}")
    settings = {
        "algorithm": "gradient", "attack": named(attack), "loss_cap": loss_cap, "target": target,
        "classes": classes and list(classes), "layers": goal.layer_names,
        "penalty": penalty, "signs": signs,
        "form": replace(form, mask=None), "mask": digest(form.mask),
        "init": digest(None if init is None else init.delta),
    }  # fmt: skip
    kept = State(state, {name: str(value) for name, value in settings.items()}, ascent.ranks)
    with crafting(model, attack.mode), held(model):
        for epoch in range(_resume(kept, goal, ascent, loader, epochs), epochs):
            hidden = not progress or ascent.ranks.rank > 0
            bar = along(loader, disable=hidden, desc=f"universal {epoch + 1}/{epochs}")
            require_some(_epoch(goal, ascent, bar), again=epoch > 0)
            tensors, facts = ascent.state
            kept.keep(tensors, {**facts, "done": epoch + 1})
    return ascent.perturbation


def _resume(kept: State, goal: _Goal, ascent: Ascent, loader: Iterable[Batch], epochs: int) -> int:
    """How many epochs are done; they are read again, so that the next is as it would have been."""
    found = kept.kept()
    if found is None:
        return 0
    tensors, facts = found
    require_at_most(facts["done"], epochs, "epochs")
    for epoch in range(facts["done"]):
        for k, batch in enumerate(loader):
            if epoch + k == 0:
                ascent.apply(*goal.labelled(*unpack(batch), ascent.form.classes is not None))
    ascent.go_on(tensors, facts)
    return int(facts["done"])


def _epoch(goal: _Goal, ascent: Ascent, bar: tqdm[Batch]) -> int:
    """A step a batch; of how many samples, on this rank."""
    seen, ascent.seen, ascent.fooled = 0, 0, 0
    for batch in bar:
        x, y = goal.labelled(*unpack(batch), always=ascent.form.classes is not None)
        point = ascent.apply(x, y)
        grad, weights, fooled = goal.pull(x, y, point)
        ascent.step(grad, weights, y, fooled)
        seen += len(x)
        bar.set_postfix(fooled=f"{ascent.fooled / max(ascent.seen, 1):.3f}", refresh=False)
    while ascent.idle():
        pass
    return seen


@dataclass(frozen=True)
class _Goal:
    """What is ascended: of which objective, with which sign and weight for which sample. The model
    is in the attack's mode while it is used."""

    attack: Attack
    model: Model
    target: int | None
    classes: Sequence[int] | None
    layers: Layers
    loss_cap: float | None

    def __post_init__(self) -> None:
        target = self.target
        if self.classes is not None and target is not None:
            raise ValueError("`classes` are to lose their own class: give no `target` with them")
        if target is not None and (isinstance(target, bool) or not isinstance(target, Integral)):
            got = type(target).__name__
            raise TypeError(f"`target` must be one class for all inputs, a whole number, got {got}")
        if self.layers is not None:
            if target is not None:
                raise ValueError("`layers` are the objective: give no `target` with them")
            chosen_layers(self.model, self.layers)

    @property
    def layer_names(self) -> list[str] | None:
        """None where the attack's objective is ascended."""
        model = self.model
        return layer_names(model, self.layers) if isinstance(model, torch.nn.Module) else None

    def labelled(self, x: Tensor, y: Tensor | None, always: bool) -> tuple[Tensor, Tensor | None]:
        """The batch, checked; predictions for y where it is needed and not given."""
        objective = as_objective(self.attack.objective)
        _checks.data(x, "x")
        _checks.inputs(x, self.attack.ball)
        if self.layers is not None:
            always |= self.classes is not None
        else:
            always |= self.target is None or objective.targeted_needs_y
        if y is None and always:
            with torch.no_grad():
                y = objective.predict(output(self.model, x.clone()))
        return x, y

    def pull(self, x: Tensor, y: Tensor | None, point: Tensor) -> tuple[Tensor, Tensor | None, int]:
        """(gradients at `point` (N, *shape), the samples' weights (N,), how many are fooled)."""
        with torch.no_grad():
            if self.layers is not None:
                chosen = chosen_layers(self.model, self.layers)
                assert isinstance(self.model, torch.nn.Module)
                loss, grad, hits = layer_gradient(self.model, chosen, x, point)
            else:
                problem = self._problem(x, y)
                loss, grad, hits = problem.gradient(point)
                problem.raise_if_nan()
                y = problem.y
        weights = None if self.classes is None else _signs(y, self.classes, loss)
        if self.loss_cap is not None:
            counts = loss <= self.loss_cap
            weights = counts if weights is None else weights * counts
        return grad, weights, int(hits.sum())

    def _radius(self, x: Tensor) -> Tensor:
        return ops.per_sample(self.attack.ball.radius, x, "radius", round_down=True)

    def _problem(self, x: Tensor, y: Tensor | None) -> Problem:
        attack, t = self.attack, self.target
        goal = None if t is None else torch.full((len(x),), t, device=x.device)
        return Problem(
            self.model, as_objective(attack.objective), attack.ball, x, self._radius(x), y, goal
        )


def _signs(y: Tensor | None, classes: Sequence[int], loss: Tensor) -> Tensor:  # (N,)
    """1 for the samples to fool, -1 for those to keep."""
    if y is None or y.dim() != 1 or y.is_floating_point() or len(classes) == 0:
        raise ValueError(
            f"`classes` must be one or more of an objective's class labels, got {classes}"
        )
    chosen = torch.isin(y, torch.tensor(list(classes), device=y.device))
    return torch.where(chosen, 1.0, -1.0).to(loss.dtype)
