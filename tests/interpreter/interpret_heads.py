"""The heads against their definition in float64, in one tile of a row and in several."""

from __future__ import annotations

import pytest
import torch
from head_cases import DTYPES, EXTREMES, FORMS, Case, assert_close, defined, make, one_row
from torch import Tensor

from fastadv.kernels import tiles
from fastadv.kernels.head import head as kernel
from fastadv.reference_head import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, DLR, KL, MARGIN


def run(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    return kernel(case.logits, case.y, case.target, case.head, case.targeted)


@pytest.fixture(params=["held", "long"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows in one tile, as up to 8192 classes are; in tiles of 16."""
    if request.param == "long":
        for name in ("head", "labels_head"):
            monkeypatch.setattr(tiles, name, lambda *_: tiles.Rows(16, 16, 1, True))
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_matches_the_definition(head: int, targeted: bool, dtype: torch.dtype, form: str) -> None:
    for classes in (1, 3, 10, 129) if form == "held" else (4, 40):
        if defined(head, targeted, classes):
            assert_close(case := make(head, targeted, dtype, 9, classes), run(case))
            assert_close(case := make(head, targeted, dtype, 8, classes, ties=True), run(case))


@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_many_classes(head: int, targeted: bool) -> None:
    for classes in (1000, 32768):
        assert_close(case := make(head, targeted, torch.float32, 2, classes), run(case))


@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_labels_out_of_range(head: int, targeted: bool, form: str) -> None:
    case = make(head, targeted, torch.float32, 5, 20)
    if head == KL:
        case.y[:, 1] = -0.5
    elif head == BINARY_CROSS_ENTROPY:
        case.y[:, 1] = 0.5
    else:
        case.y[:] = torch.tensor([-1, 20, -(2**40), 2**40, 2**32])
    loss, grad, prediction = run(case)
    assert bool(loss.isnan().all())
    assert torch.equal(prediction, case.expected()[2])
    if head == BINARY_CROSS_ENTROPY:
        assert bool((grad[:, 1] == 0).all())
    elif head != KL:
        assert bool((grad == 0).all())
    if case.target is not None:  # the same for the target
        case.y, case.target = case.target, case.y
        assert bool(run(case)[0].isnan().all())


@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_nan_logits_reach_the_loss(head: int, targeted: bool, form: str) -> None:
    case = make(head, targeted, torch.float32, 12, 20)
    case.logits[torch.arange(6), torch.arange(6) * 7 % 20] = torch.nan
    case.logits[:3, 19] = torch.nan
    loss, _, prediction = run(case)
    assert torch.equal(loss.isnan(), torch.arange(12) < 6)
    assert torch.equal(prediction, case.expected()[2])  # the first NaN, as in torch.argmax


@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_extreme_logits(head: int, targeted: bool, form: str) -> None:
    """All rows and labels in one batch; 5 classes, or 20 in tiles."""
    for dtype in (torch.float32, torch.float64):
        copies = 1 if form == "held" else 4
        cases = [
            one_row(head, targeted, row * copies, y, dtype) for row in EXTREMES for y in range(5)
        ]
        logits, y = torch.cat([c.logits for c in cases]), torch.cat([c.y for c in cases])
        targets = [c.target for c in cases if c.target is not None]
        case = Case(logits, y, torch.cat(targets) if targets else None, head, targeted)
        (loss, grad, prediction), expected = run(case), case.expected()
        assert torch.equal(prediction, expected[2])
        assert_near(loss, expected[0])
        assert_near(grad[~loss.isnan()], expected[1][~loss.isnan()])


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=3e-6, atol=3e-6, equal_nan=True)


def test_a_sure_sample_keeps_its_loss_and_gradient(form: str) -> None:
    """In float32 log_softmax rounds a loss below 6e-8 to 0, and p_y - 1 with it."""
    for gap in (20.0, 60.0, 80.0):
        row = [0.0] * 40
        row[3] = gap
        loss, grad, _ = run(one_row(CROSS_ENTROPY, False, row, 3, torch.float32))
        rest = 39 * torch.exp(-torch.tensor(gap, dtype=torch.float64))
        torch.testing.assert_close(loss[0].double(), torch.log1p(rest), rtol=1e-5, atol=0)
        at_label = -rest / (1 + rest)
        torch.testing.assert_close(grad[0, 3].double(), at_label, rtol=1e-5, atol=0)


def test_no_samples() -> None:
    for head, targeted in FORMS:
        case = make(head, targeted, torch.float32, 0, 10)
        assert [t.shape for t in run(case)] == [t.shape for t in case.expected()]


def test_what_does_not_fit_is_refused() -> None:
    z, y = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    for args, message in (
        ((z, y[:3], None, MARGIN, False), r"`y` must be \(4,\), got \(3,\)"),
        ((z, y.int(), None, MARGIN, False), "`y` must be int64, got int32"),
        ((z, y, None, KL, False), r"`y` must be \(4, 5\) like `logits`, got \(4,\)"),
        ((z, z.double(), None, KL, False), "`y` must be float32, got float64"),
        ((z, y, None, DLR, True), "`target` must be given for the targeted dlr"),
        ((z, y, y[:3], DLR, True), r"`target` must be \(4,\), got \(3,\)"),
        ((z[0], y, None, MARGIN, False), r"`logits` must be \(N, classes\) and contiguous"),
        ((z[:, :3], y, None, MARGIN, False), r"`logits` must be \(N, classes\) and contiguous"),
        ((z[:, :3].clone(), y, y, DLR, True), "`logits` must have 4 classes or more, got 3"),
        ((z, y, None, 5, False), "`head` must be 0 to 4, got 5"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            kernel(*args)
