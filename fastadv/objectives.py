"""Objectives: what an attack maximises. Frozen values that are called (logits, y) -> (N,).

    cross_entropy         -log p_y
    binary_cross_entropy  the same for one logit, or summed over many labels
    margin                max_{j != y} z_j - z_y; positive where y is not predicted
    dlr                   the margin over z_1st - z_3rd: scale-free (2003.01690)
    kl                    KL(y || p) to given probabilities (TRADES, 1901.08573)

p = softmax(z), z the logits. `targeted` is an objective's own targeted form, maximised too:
-cross_entropy, z_t - max_{j != t} z_j, the targeted dlr, -binary_cross_entropy, -kl. Each is plain
differentiable torch here, computed in float32 for half precision, and has a fused head with the
same loss and gradient. Wherever an objective is taken, so is any callable: see as_objective.

cross_entropy, margin and dlr take segmentation's logits (N, C, H, W) with y (N, H, W) as well: a
sample's loss is then the mean over its pixels that count (ClassLabels; `pixels` sets which). kl
takes them with probabilities (N, C, H, W), and the mean over all pixels.

At the edges: the first of equal logits takes the gradient; a logit of -inf is a class of
probability 0; NaN or +inf gives a NaN cross-entropy and kl, as in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastadv import _losses, _pixels, ops, reference_head
from fastadv._checks import text
from fastadv.labels import BinaryLabels, ClassLabels, Fault, Labels, Probabilities
from fastadv.reference import compute_dtype

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits, y) -> (N,)
TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, target, y) -> (N,)

_CLASS_LABELS = ClassLabels()


@dataclass(frozen=True, repr=False)
class Objective:
    """A loss per sample, its targeted form, and what its labels are.

    name: what it prints as. fn: (logits, y) -> (N,), maximised.
    labels: what y is, how predictions are read and what fooled means (labels.py).
    targeted_fn: (logits, target, y) -> (N,); None: -fn(logits, target), and y plays no part.
    head_number: of its fused head; None: autograd serves.
    least_classes: the fewest that it is defined for, untargeted and targeted.
    """

    name: str
    fn: Loss
    labels: Labels = _CLASS_LABELS
    targeted_fn: TargetedLoss | None = None
    head_number: int | None = None
    least_classes: tuple[int, int] = (1, 1)

    def __repr__(self) -> str:
        return self.name

    @property
    def targeted_needs_y(self) -> bool:
        """Whether the targeted form compares the target with y."""
        return self.targeted_fn is not None

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:  # -> (N,)
        """The loss of each sample, to be maximised."""
        return self._loss(self.fn, logits, y)

    def targeted(self, logits: Tensor, target: Tensor, y: Tensor | None = None) -> Tensor:  # (N,)
        """The targeted form, to be maximised. The targeted dlr needs y as well."""
        if self.targeted_fn is None:
            return -self(logits, target)
        if y is None:
            raise ValueError(f"`y` must be given: the targeted {self} compares it with the target")
        return self._loss(self.targeted_fn, logits, target, y)

    def prediction(self, logits: Tensor) -> Tensor:
        """What the model says: classes (N,), or one bool a label, shaped like the logits."""
        return self.labels.prediction(logits)

    def predict(self, logits: Tensor) -> Tensor:
        """The y that y=None stands for: the prediction; for kl, softmax(logits)."""
        return self.labels.predict(logits)

    def fooled(self, prediction: Tensor, y: Tensor, targeted: bool = False) -> Tensor:  # (N,) bool
        """Which samples are fooled. `targeted`: y is the target, and fooled is to predict it.

        Of many labels one wrong is enough; a target is met by all of them.
        """
        return self.labels.fooled(prediction, y, targeted)

    def check(self, logits: Tensor, y: Tensor | None, target: Tensor | None = None) -> None:
        """Raises TypeError or ValueError for logits, y and target that do not go together.

        Reads from the device (one synchronisation): it belongs before a loop.
        """
        if not logits.is_floating_point():
            raise TypeError(f"`model(x)` must be floating, got {str(logits.dtype)[6:]}")
        self.labels.check_logits(logits)
        self._check_classes(logits, target is not None)
        if y is None and (target is None or self.targeted_needs_y):
            raise ValueError(f"`y` must be given for the objective {self}")
        z = logits.detach()
        bad = (z.isnan() | z.isposinf()).any()
        faults: list[Fault] = [(bad, lambda: "`model(x)` must be numbers, got NaN or +inf")]
        for name, labels in (("y", y), ("target", target)):
            if labels is not None:
                if labels.device != z.device:
                    raise ValueError(
                        f"`{name}` must be on {z.device} like `model(x)`, got {labels.device}"
                    )
                faults.extend(self.labels.faults(z, labels, name))
        wrong = torch.stack([fault for fault, _ in faults]).tolist()
        for (_, sentence), is_wrong in zip(faults, wrong, strict=True):
            if is_wrong:
                raise ValueError(sentence())

    def prepare(
        self, logits: Tensor, y: Tensor | None, target: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(y, target) as `head` takes them, checked: once, before the loop."""
        self.check(logits, y, target)
        return (
            None if y is None else self.labels.prepare(logits, y),
            None if target is None else self.labels.prepare(logits, target),
        )

    def head(
        self, logits: Tensor, y: Tensor | None, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss (N,), the summed loss's gradient of the logits, fooled (N,)); no synchronisation.

        y and target as `prepare` gave them; with a target all three are of the targeted form. The
        objectives of this module take one fused op, others one pass of autograd through `fn`.
        """
        logits, targeted = logits.detach(), target is not None
        labels = target if targeted else y
        assert labels is not None
        if self.head_number is None:
            loss, grad = self._differentiate(logits, y, target)
            return loss, grad, self.fooled(self.prediction(logits), labels, targeted)
        first, second = self.given(y, target)
        if (kind := self._of_pixels(logits)) is not None:
            counted = kind.counted(first)
            counted = counted if second is None else counted & kind.counted(second)
            number = self.head_number
            loss, grad, prediction = _pixels.head(logits, first, second, counted, number, targeted)
        else:
            z = logits if logits.dim() == 2 else logits[:, None]
            loss, grad, prediction = ops.head(z, first, second, self.head_number, targeted)
            grad = grad.view(logits.shape)
        return loss, grad, self.fooled(prediction, labels, targeted)

    def given(self, y: Tensor | None, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The labels as fused heads take them: without y where a targeted form plays without."""
        alone = target is not None and not self.targeted_needs_y
        first, second = (target, None) if alone else (y, target)
        assert first is not None
        return first, second

    def _of_pixels(self, logits: Tensor) -> ClassLabels | Probabilities | None:
        """The labels, where the loss is the mean over pixels: a callable takes maps as they are."""
        own = self.head_number is not None and logits.dim() == 4
        return self.labels if own and isinstance(self.labels, ClassLabels | Probabilities) else None

    def _loss(self, fn: Callable[..., Tensor], logits: Tensor, *labels: Tensor) -> Tensor:  # (N,)
        """fn's, one a sample: of maps the mean over the pixels."""
        kind = self._of_pixels(logits)
        if kind is None:
            loss = fn(logits, *labels)
        else:
            counted = torch.stack([kind.counted(y) for y in labels]).all(0)
            loss = _pixels.loss(fn, logits, labels, counted)
        if loss.shape != logits.shape[:1]:
            raise ValueError(
                f"the objective {self} must return one loss a sample, {text(logits.shape[:1])}, "
                f"got {text(loss.shape)}: a torch loss does so with reduction='none'"
            )
        return loss

    def _differentiate(
        self, logits: Tensor, y: Tensor | None, target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = logits.requires_grad_()
            if target is not None:
                loss = self.targeted(leaf, target, y)
            else:
                assert y is not None
                loss = self(leaf, y)
            if not loss.requires_grad:
                raise ValueError(f"the objective {self} must be differentiable in the logits")
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach().to(compute_dtype(logits.dtype)), grad

    def _check_classes(self, logits: Tensor, targeted: bool) -> None:
        least = self.least_classes[targeted]
        classes = logits.shape[1] if logits.dim() > 1 else 1
        if classes < least:
            hint = ": one logit a sample goes with binary_cross_entropy" if classes == 1 else ""
            kind = "targeted " if targeted else ""
            raise ValueError(f"the {kind}{self} needs {least} classes or more, got {classes}{hint}")


ObjectiveLike = Objective | Loss


def as_objective(fn: ObjectiveLike) -> Objective:
    """`fn` itself if it is an objective, else the callable (logits, y) -> (N,) as one.

    Its y are class labels and its targeted form is -fn(logits, target); for other labels or another
    targeted form make an Objective. Two wraps of one function are equal.
    """
    if isinstance(fn, Objective):
        return fn
    if not callable(fn):
        raise TypeError(f"`objective` must be callable, (logits, y) -> (N,), got {fn!r}")
    return Objective(getattr(fn, "__name__", type(fn).__name__), fn)


def pixels(
    objective: Objective | None = None, *, ignore_index: int = 255, share: float = 0.5
) -> Objective:
    """cross_entropy (None), margin or dlr of segmentation's pixels.

    ignore_index: the label of pixels that count for nothing; it may be one of the classes.
    share: fooled is at least that share of the counted pixels wrong; targeted: as the target.
    Raises ValueError for another objective, and a share outside (0, 1].
    """
    base = cross_entropy if objective is None else objective
    if not isinstance(base, Objective) or base.head_number is None or base.labels != _CLASS_LABELS:
        raise ValueError(f"`objective` must be cross_entropy, margin or dlr, got {base!r}")
    name = f"{base.name}(ignore_index={ignore_index}, share={share:g})"
    return replace(base, name=name, labels=ClassLabels(ignore_index, share))


cross_entropy = Objective(
    "cross_entropy",
    _losses.cross_entropy,
    head_number=reference_head.CROSS_ENTROPY,
    least_classes=(2, 2),
)
binary_cross_entropy = Objective(
    "binary_cross_entropy",
    _losses.binary_cross_entropy,
    BinaryLabels(),
    head_number=reference_head.BINARY_CROSS_ENTROPY,
)
margin = Objective(
    "margin", _losses.margin, head_number=reference_head.MARGIN, least_classes=(2, 2)
)
dlr = Objective(
    "dlr",
    _losses.dlr,
    targeted_fn=_losses.targeted_dlr,
    head_number=reference_head.DLR,
    least_classes=(3, 4),
)
kl = Objective(
    "kl", _losses.kl, Probabilities(), head_number=reference_head.KL, least_classes=(2, 2)
)

BY_NAME = {o.name: o for o in (cross_entropy, binary_cross_entropy, margin, dlr, kl)}
