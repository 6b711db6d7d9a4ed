"""What y is, and how a prediction is read off the logits: a class (of a sample, or of each pixel),
yes or no, or probabilities.

Each kind checks labels, predicts them where y is None, prepares them for the fused head, and says
which samples are fooled. Only the faults are ever read from the device, and only before a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv._checks import text
from fastadv.reference import compute_dtype

# Whether something is wrong, () bool on the device, and the sentence that says what.
Fault = tuple[Tensor, Callable[[], str]]


@dataclass(frozen=True)
class ClassLabels:
    """y (N,): integers in [0, C). Fooled: predicts another class; targeted: predicts the target.

    Of segmentation's logits (N, C, H, W), y (N, H, W): integers in [0, C), or `ignore_index` at the
    pixels that count for nothing (255, since uint8 label maps cannot hold torch's -100). Fooled: at
    least `share` of the pixels that count are wrong; targeted: predict the target. A sample that
    has none is never fooled.
    """

    ignore_index: int = 255
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` of the pixels must be in (0, 1], got {self.share}")

    def check_logits(self, logits: Tensor) -> None:
        if logits.dim() in (2, 4):
            return
        hint = ": one logit a sample goes with binary_cross_entropy" if logits.dim() == 1 else ""
        raise ValueError(
            f"`model(x)` must be (N, classes) or (N, classes, H, W), got {text(logits.shape)}{hint}"
        )

    def faults(self, logits: Tensor, y: Tensor, name: str) -> Iterator[Fault]:
        classes = logits.shape[1]
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            hint = ": probabilities go with kl" if y.shape == logits.shape else ""
            hint = _one_hot_hint(y, name, logits) or hint
            raise TypeError(f"`{name}` must be integers (class labels), got {_name(y)}{hint}")
        hint = _one_hot_hint(y, name, logits)
        if logits.dim() == 4 and y.dim() == 1:
            hint = ": one label a pixel; a classifier's logits are (N, classes)"
        _same_shape(y, name, (len(logits), *logits.shape[2:]), logits, hint)
        bad, void = (y < 0) | (y >= classes), ""
        if logits.dim() == 4:
            bad, void = bad & self.counted(y), f" or {self.ignore_index} (ignored)"
        yield bad.any(), lambda: f"`{name}` must be in [0, {classes}){void}, got {_first(y, bad)}"

    def counted(self, y: Tensor) -> Tensor:  # (N, H, W) -> (N, H, W) bool
        """The pixels that count."""
        return y.long() != self.ignore_index  # long: a uint8 takes -100 for 156

    def prediction(self, logits: Tensor) -> Tensor:  # (N, C) -> (N,), (N, C, H, W) -> (N, H, W)
        return logits.detach().argmax(1)

    def predict(self, logits: Tensor) -> Tensor:  # as prediction
        return self.prediction(logits)

    def prepare(self, logits: Tensor, y: Tensor) -> Tensor:  # -> int64
        return y.detach().long().contiguous()

    def fooled(self, prediction: Tensor, y: Tensor, targeted: bool) -> Tensor:  # -> (N,)
        hits = prediction == y if targeted else prediction != y
        if hits.dim() < 2:
            return hits
        counted = self.counted(y)
        hit, total = (t.flatten(1).sum(1) for t in (hits & counted, counted))
        return (hit >= self.share * total.double()) & (total > 0)


@dataclass(frozen=True)
class BinaryLabels:
    """y (N,) or (N, L): 0 or 1, of any dtype. Fooled: any of a sample's labels is wrong; targeted:
    all are the target's."""

    def check_logits(self, logits: Tensor) -> None:
        if logits.dim() not in (1, 2):
            raise ValueError(
                f"`model(x)` must be (N,), (N, 1) or (N, labels), got {text(logits.shape)}"
            )

    def faults(self, logits: Tensor, y: Tensor, name: str) -> Iterator[Fault]:
        one = logits.dim() == 1 or logits.shape[1] == 1
        if not (one and y.shape in ((len(logits),), (len(logits), 1))):
            _same_shape(y, name, tuple(logits.shape), logits)
        bad = (y != 0) & (y != 1)
        yield bad.any(), lambda: f"`{name}` must be 0 or 1, got {_first(y, bad)}"

    def prediction(self, logits: Tensor) -> Tensor:  # (N, L) -> (N, L) bool
        return logits.detach() > 0

    def predict(self, logits: Tensor) -> Tensor:
        return self.prediction(logits)

    def prepare(self, logits: Tensor, y: Tensor) -> Tensor:  # -> (N, L), compute dtype
        labels = logits.shape[1] if logits.dim() == 2 else 1
        return y.detach().to(compute_dtype(logits.dtype)).reshape(len(logits), labels).contiguous()

    def fooled(self, prediction: Tensor, y: Tensor, targeted: bool) -> Tensor:
        same = prediction == (y != 0).reshape(prediction.shape)
        rows = same.reshape(len(same), same.shape[1] if same.dim() == 2 else 1)
        return rows.all(1) if targeted else ~rows.all(1)


@dataclass(frozen=True)
class Probabilities:
    """y (N, C): rows of probabilities. Fooled: another class is the likeliest than y's; targeted:
    y's likeliest. Of segmentation's logits (N, C, H, W): y as they are, and half of the pixels."""

    def check_logits(self, logits: Tensor) -> None:
        ClassLabels().check_logits(logits)

    def counted(self, y: Tensor) -> Tensor:  # (N, C, H, W) -> (N, H, W) bool
        """The pixels that count: all."""
        return torch.ones_like(y[:, 0], dtype=torch.bool)

    def faults(self, logits: Tensor, y: Tensor, name: str) -> Iterator[Fault]:
        if not y.is_floating_point():
            classes = y.dim() == logits.dim() - 1
            hint = ": class labels go with cross_entropy" if classes else ""
            raise TypeError(f"`{name}` must be probabilities (floating), got {_name(y)}{hint}")
        _same_shape(y, name, tuple(logits.shape), logits)
        # A softmax in bfloat16 is off by 2^-9 an entry.
        tolerance = 1e-3 if y.dtype in (torch.float32, torch.float64) else 2e-2
        total = y.detach().double().sum(1)
        bad = ~((y >= 0).all(1) & ((total - 1).abs() <= tolerance))
        yield (
            bad.any(),
            lambda: (
                f"`{name}` must hold probabilities, at least 0 and of sum 1 in each row, got a sum "
                f"of {_first(total, bad)} and a least entry of {y.min().item():.6g}"
            ),
        )

    def prediction(self, logits: Tensor) -> Tensor:  # (N, C) -> (N,), (N, C, H, W) -> (N, H, W)
        return logits.detach().argmax(1)

    def predict(self, logits: Tensor) -> Tensor:  # like the logits
        return logits.detach().to(compute_dtype(logits.dtype)).softmax(1)

    def prepare(self, logits: Tensor, y: Tensor) -> Tensor:  # -> compute dtype
        return y.detach().to(compute_dtype(logits.dtype)).contiguous()

    def fooled(self, prediction: Tensor, y: Tensor, targeted: bool) -> Tensor:
        return ClassLabels(ignore_index=-1).fooled(prediction, y.argmax(1), targeted)


Labels = ClassLabels | BinaryLabels | Probabilities


def _same_shape(
    y: Tensor, name: str, expected: tuple[int, ...], logits: Tensor, hint: str = ""
) -> None:
    if tuple(y.shape) != expected:
        raise ValueError(
            f"`{name}` must be {text(expected)} to go with `model(x)` {text(logits.shape)}, "
            f"got {text(y.shape)}{hint}"
        )


def _one_hot_hint(y: Tensor, name: str, logits: Tensor) -> str:
    """Where to go from rows of one 1 each; reads from the device, and only where y does not fit."""
    if y.shape != logits.shape or not bool((((y != 0).sum(1) == 1) & (y.sum(1) == 1)).all()):
        return ""
    return f": take the classes of one-hot rows, {name}.int().argmax(1)"


def _first(values: Tensor, bad: Tensor) -> str:
    """The first bad value and where it stands; reads from the device."""
    where = bad.nonzero()[0].tolist()
    value = values[tuple(where)].item()
    number = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"{number} for sample {where[0]}"


def _name(t: Tensor) -> str:
    return f"{str(t.dtype)[6:]} of shape {text(t.shape)}"
