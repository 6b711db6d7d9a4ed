"""The objectives: values, closed forms, targeted forms, labels, and the errors of bad input."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastadv.objectives import (
    BY_NAME,
    Objective,
    as_objective,
    binary_cross_entropy,
    cross_entropy,
    dlr,
    kl,
    margin,
)

ALL = list(BY_NAME.values())
CLASSES = [cross_entropy, margin, dlr]
N, C = 9, 6


def logits(samples: int = N, classes: int = C, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)).to(dtype)


def labels(objective: Objective, samples: int = N, classes: int = C, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if objective is binary_cross_entropy:
        return torch.randint(0, 2, (samples, classes), generator=generator)
    if objective is kl:
        scores = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
        return scores.softmax(1)
    return torch.randint(0, classes, (samples,), generator=generator)


def test_closed_forms_of_torch() -> None:
    z, y = logits(), labels(cross_entropy)
    close = torch.testing.assert_close
    close(cross_entropy(z, y), functional.cross_entropy(z, y, reduction="none"))
    many = labels(binary_cross_entropy)
    each = functional.binary_cross_entropy_with_logits(z, many.double(), reduction="none")
    close(binary_cross_entropy(z, many), each.sum(1))
    p = labels(kl)
    close(kl(z, p), functional.kl_div(z.log_softmax(1), p, reduction="none").sum(1))
    close(kl(z, z.softmax(1)), torch.zeros(N, dtype=torch.float64))


def test_margin_sample_by_sample() -> None:
    z, y = logits(), labels(margin)
    for loss, row, label in zip(margin(z, y).tolist(), z.tolist(), y.tolist(), strict=True):
        others = [value for j, value in enumerate(row) if j != label]
        assert loss == max(others) - row[label]


def test_dlr_sample_by_sample() -> None:
    z, y, target = logits(), labels(dlr), labels(dlr, seed=2)
    for i, row in enumerate(z.tolist()):
        ranked, label = sorted(row, reverse=True), int(y[i])
        other = ranked[1] if row[label] == ranked[0] else ranked[0]
        untargeted = -(row[label] - other) / (ranked[0] - ranked[2])
        assert dlr(z, y)[i].item() == pytest.approx(untargeted, rel=1e-14)
        spread = ranked[0] - (ranked[2] + ranked[3]) / 2
        targeted = -(row[label] - row[int(target[i])]) / spread
        assert dlr.targeted(z, target, y)[i].item() == pytest.approx(targeted, rel=1e-14)


@pytest.mark.parametrize("objective", [cross_entropy, binary_cross_entropy, margin, kl], ids=str)
def test_targeted_is_the_negative_at_the_target(objective: Objective) -> None:
    z, target = logits(), labels(objective)
    assert torch.equal(objective.targeted(z, target), -objective(z, target))


def test_targeted_margin_is_positive_where_the_target_is_predicted() -> None:
    z, target = logits(), labels(margin)
    assert torch.equal(margin.targeted(z, target) > 0, z.argmax(1) == target)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("objective", ALL, ids=str)
def test_gradients(objective: Objective, targeted: bool) -> None:
    z, y, target = logits().requires_grad_(), labels(objective), labels(objective, seed=2)

    def loss(z: Tensor) -> Tensor:
        return objective.targeted(z, target, y) if targeted else objective(z, y)

    assert torch.autograd.gradcheck(loss, z)
    assert torch.autograd.gradgradcheck(loss, z)


def test_kl_is_differentiable_in_y() -> None:
    z, natural = logits(), logits().flip(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda natural: kl(z, natural.softmax(1)), natural)
    natural = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)  # probabilities of exactly 0
    (grad,) = torch.autograd.grad(kl(z[:1, :3], natural.softmax(1)).sum(), natural)
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("objective", ALL, ids=str)
def test_the_head_is_the_objective(
    objective: Objective, targeted: bool, dtype: torch.dtype
) -> None:
    z, y, target = logits(dtype=dtype), labels(objective), labels(objective, seed=2)
    goal = target if targeted else None
    loss, grad, fooled = objective.head(z, *objective.prepare(z, y, goal))
    leaf = z.clone().requires_grad_()
    plain = objective.targeted(leaf, target, y) if targeted else objective(leaf, y)
    (plain_grad,) = torch.autograd.grad(plain.sum(), leaf)
    assert loss.dtype == plain.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        grad, plain_grad, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )
    prediction = objective.prediction(z)
    assert torch.equal(fooled, objective.fooled(prediction, target if targeted else y, targeted))
    assert not z.requires_grad


def test_ties_and_infinities() -> None:
    z = torch.tensor([[2.0, 2.0, 2.0, 2.0], [3.0, 3.0, 3.0, 1.0], [1.0, -torch.inf, 0.0, 0.5]])
    y = torch.tensor([1, 3, 2])
    leaf = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(margin(leaf, y).sum(), leaf)
    assert grad.tolist() == [[1.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, -1.0], [1.0, 0.0, -1.0, 0.0]]
    assert dlr(z, y).tolist() == [0.0, 2.0, 1.0]  # the first two have no spread: the margin
    assert dlr.targeted(z[:1], y[:1] + 1, y[:1]).tolist() == [0.0]
    for objective in CLASSES:
        loss = objective(leaf, y)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        assert bool(loss.isfinite().all())
        assert bool(grad.isfinite().all())
    p = torch.tensor([[0.5, 0.0, 0.25, 0.25]])
    (grad,) = torch.autograd.grad(kl(leaf[2:], p).sum(), leaf)
    assert bool(kl(z[2:], p).isfinite().all())
    assert bool(grad.isfinite().all())
    sure = torch.tensor([-torch.inf, torch.inf, 500.0])
    assert binary_cross_entropy(sure, torch.tensor([0, 1, 1])).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("objective", ALL, ids=str)
def test_is_a_value(objective: Objective) -> None:
    assert str(objective) == repr(objective) == objective.name
    assert BY_NAME[objective.name] is objective
    for twin in (pickle.loads(pickle.dumps(objective)), copy.deepcopy(objective)):
        assert twin == objective
        assert hash(twin) == hash(objective)
    assert len({*ALL, objective}) == 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.name = "other"  # type: ignore[misc]


def square(z: Tensor, y: Tensor) -> Tensor:
    return (z**2).sum(1) * (y + 1)


def test_any_callable() -> None:
    objective = as_objective(square)
    assert as_objective(objective) is objective
    assert objective == as_objective(square)
    assert pickle.loads(pickle.dumps(objective)) == objective
    assert repr(objective) == "square"
    z, y = logits(), labels(objective)
    assert torch.equal(objective(z, y), square(z, y))
    assert torch.equal(objective.targeted(z, y), -square(z, y))
    with torch.no_grad():
        loss, grad, fooled = objective.head(z, *objective.prepare(z, y))
        torch.testing.assert_close(loss, square(z, y))
        torch.testing.assert_close(grad, 2 * z * (y + 1)[:, None])
        assert torch.equal(fooled, z.argmax(1) != y)
        loss, _, fooled = objective.head(z, *objective.prepare(z, None, y))
        torch.testing.assert_close(loss, -square(z, y))
        assert torch.equal(fooled, z.argmax(1) == y)
    assert repr(as_objective(torch.nn.CrossEntropyLoss(reduction="none"))) == "CrossEntropyLoss"
    mean = as_objective(torch.nn.CrossEntropyLoss())
    with pytest.raises(
        ValueError, match=r"must return one loss a sample, \(9,\), got \(\).*'none'"
    ):
        mean(z, y)
    with pytest.raises(ValueError, match="must be differentiable in the logits"):
        as_objective(lambda z, y: y.double()).head(z, y)
    with pytest.raises(TypeError, match="`objective` must be callable"):
        as_objective("cross_entropy")  # type: ignore[arg-type]


def test_predictions_and_fooled() -> None:
    z = torch.tensor([[1.0, 2.0, 0.0], [3.0, 3.0, 0.0]])
    for objective in (*CLASSES, kl):
        assert objective.prediction(z).tolist() == [1, 0]
    assert cross_entropy.predict(z).tolist() == [1, 0]
    torch.testing.assert_close(kl.predict(z), z.softmax(1))
    y = torch.tensor([1, 1])
    assert cross_entropy.fooled(cross_entropy.prediction(z), y).tolist() == [False, True]
    assert cross_entropy.fooled(cross_entropy.prediction(z), y, targeted=True).tolist() == [
        True,
        False,
    ]
    p = torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.5, 0.3]])
    assert kl.fooled(kl.prediction(z), p).tolist() == [False, True]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("label_shape", [(4,), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32], ids=str)
def test_one_logit(
    shape: tuple[int, ...], label_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    z = torch.tensor([-1.0, 2.0, 0.0, -3.0]).reshape(shape)
    y = torch.tensor([0, 0, 1, 1], dtype=dtype).reshape(label_shape)
    expected = functional.softplus(torch.tensor([-1.0, 2.0, 0.0, 3.0]))
    torch.testing.assert_close(binary_cross_entropy(z, y), expected)
    torch.testing.assert_close(binary_cross_entropy.targeted(z, y), -expected)
    loss, grad, fooled = binary_cross_entropy.head(z, *binary_cross_entropy.prepare(z, y))
    torch.testing.assert_close(loss, expected)
    assert grad.shape == z.shape
    assert fooled.tolist() == [False, True, True, True]
    prediction = binary_cross_entropy.prediction(z)
    assert binary_cross_entropy.fooled(prediction, y).tolist() == fooled.tolist()
    assert torch.equal(binary_cross_entropy.predict(z), z > 0)
    _, _, met = binary_cross_entropy.head(z, *binary_cross_entropy.prepare(z, None, y))
    assert met.tolist() == [True, False, False, False]


def test_many_labels() -> None:
    z = torch.tensor([[-1.0, 2.0], [-1.0, 2.0], [1.0, -2.0]])
    y = torch.tensor([[0, 1], [0, 0], [0, 1]])
    prediction = binary_cross_entropy.prediction(z)
    assert binary_cross_entropy.fooled(prediction, y).tolist() == [False, True, True]
    assert binary_cross_entropy.fooled(prediction, y, True).tolist() == [True, False, False]


@pytest.mark.parametrize("objective", ALL, ids=str)
def test_no_samples(objective: Objective) -> None:
    z, y = logits(0), labels(objective, 0)
    assert objective(z, y).shape == (0,)
    loss, grad, fooled = objective.head(z, *objective.prepare(z, y))
    assert (loss.shape, grad.shape, fooled.shape) == ((0,), (0, C), (0,))


def test_targeted_dlr_needs_y() -> None:
    with pytest.raises(ValueError, match="`y` must be given: the targeted dlr"):
        dlr.targeted(logits(), labels(dlr))


def test_probabilities_of_half_precision_pass() -> None:
    half = logits(classes=200).softmax(1).bfloat16()
    prepared, _ = kl.prepare(logits(classes=200, dtype=torch.bfloat16), half)
    assert prepared is not None
    assert prepared.dtype == torch.float32
