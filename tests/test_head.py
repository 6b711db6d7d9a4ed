"""The fused heads: torch.ops.fastadv.head against its definition in float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch
from head_cases import DTYPES, EXTREMES, FORMS, Case, assert_close, defined, make, one_row
from torch import Tensor

from fastadv import ops
from fastadv.reference_head import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, DLR, KL, MARGIN

# Around every width of register (4 to 16 lanes), and around 128, where classes become lanes.
CLASSES = (1, 2, 3, 4, 5, 8, 10, 16, 17, 33, 100, 128, 129, 143, 1000)

native = pytest.mark.skipif(
    not ops.backend().cpu.startswith("native"), reason="the reference serves the ops"
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_matches_the_definition(head: int, targeted: bool, dtype: torch.dtype) -> None:
    for classes in CLASSES:
        if defined(head, targeted, classes):
            for samples in (1, 21):
                assert_close(make(head, targeted, dtype, samples, classes))
            assert_close(make(head, targeted, dtype, 32, classes, ties=True))


@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_many_classes(head: int, targeted: bool) -> None:
    assert_close(make(head, targeted, torch.float32, 3, 32768))
    assert_close(make(head, targeted, torch.bfloat16, 2, 32768))


@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_opcheck(head: int, targeted: bool) -> None:
    case = make(head, targeted, torch.float32, 7, 10)
    args = (case.logits, case.y, case.target, head, targeted)
    torch.library.opcheck(torch.ops.fastadv.head.default, args)


@native
@pytest.mark.parametrize("classes", [10, 200])
@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_a_sample_does_not_depend_on_its_batch(head: int, targeted: bool, classes: int) -> None:
    case = make(head, targeted, torch.float32, 37, classes)
    whole = case.run()
    for rows in (slice(0, 1), slice(5, 22), slice(36, 37)):
        target = None if case.target is None else case.target[rows]
        part = Case(case.logits[rows], case.y[rows], target, head, targeted).run()
        for some, all_of in zip(part, whole, strict=True):
            assert torch.equal(some, all_of[rows])


@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_no_samples(head: int, targeted: bool) -> None:
    loss, grad, prediction = make(head, targeted, torch.float32, 0, 10).run()
    assert loss.shape == (0,)
    assert grad.shape == (0, 10)
    assert len(prediction) == 0


@pytest.mark.parametrize("classes", [5, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_labels_out_of_range(head: int, targeted: bool, dtype: torch.dtype, classes: int) -> None:
    case = make(head, targeted, dtype, 20, classes)
    if head == KL:
        case.y[:, 1] = -0.5
    elif head == BINARY_CROSS_ENTROPY:
        case.y[:, 1] = 0.5
    else:
        case.y[:] = torch.tensor([-1, classes, -(2**40), 2**40, 2**32]).repeat(4)
    loss, grad, prediction = case.run()
    assert bool(loss.isnan().all())
    assert torch.equal(prediction, case.expected()[2])
    if head == BINARY_CROSS_ENTROPY:
        assert bool((grad[:, 1] == 0).all())
    elif head != KL:
        assert bool((grad == 0).all())
    if case.target is not None:  # the same for the target
        case.y, case.target = case.target, case.y
        assert bool(case.run()[0].isnan().all())


@pytest.mark.parametrize("classes", [6, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_nan_logits_reach_the_loss(
    head: int, targeted: bool, dtype: torch.dtype, classes: int
) -> None:
    case = make(head, targeted, dtype, 40, classes)
    case.logits[torch.arange(20), torch.arange(20) * 7 % classes] = torch.nan
    case.logits[:5, classes - 1] = torch.nan
    loss, _, prediction = case.run()
    assert torch.equal(loss.isnan(), torch.arange(40) < 20)
    assert torch.equal(prediction, case.expected()[2])  # the first NaN, as in torch.argmax


@pytest.mark.parametrize("row", EXTREMES, ids=str)
@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_extreme_logits(head: int, targeted: bool, row: list[float]) -> None:
    for y, dtype, copies in itertools.product(range(5), (torch.float32, torch.float64), (1, 40)):
        case = one_row(head, targeted, row * copies, y, dtype)  # 5 and 200 classes: both layouts
        loss, grad, prediction = case.run()
        expected_loss, expected_grad, expected_prediction = case.expected()
        assert torch.equal(prediction, expected_prediction)
        assert_near(loss, expected_loss)
        if not bool(loss.isnan()):
            assert_near(grad, expected_grad)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=3e-6, atol=3e-6, equal_nan=True)


@native
@pytest.mark.parametrize("classes", [10, 200])
def test_a_sure_sample_keeps_its_loss_and_gradient(classes: int) -> None:
    """In float32 log_softmax rounds a loss below 6e-8 to 0, and p_y - 1 with it."""
    for head in (CROSS_ENTROPY, BINARY_CROSS_ENTROPY):
        for gap in (20.0, 60.0, 80.0):
            row = [0.0] * classes
            row[3] = gap
            if head == BINARY_CROSS_ENTROPY:
                row = [-gap] * classes
                row[3] = gap
            case = one_row(head, False, row, 3, torch.float32)
            loss, grad, _ = case.run()
            z = torch.tensor(gap, dtype=torch.float64)
            rest = (classes - 1) * torch.exp(-z)
            if head == BINARY_CROSS_ENTROPY:
                rest = classes * torch.exp(-z)
            torch.testing.assert_close(loss[0].double(), torch.log1p(rest), rtol=1e-5, atol=0)
            at_label = -torch.exp(-z) if head == BINARY_CROSS_ENTROPY else -rest / (1 + rest)
            torch.testing.assert_close(grad[0, 3].double(), at_label, rtol=1e-5, atol=0)


@native
def test_the_op_refuses_what_does_not_fit() -> None:
    z, y = torch.randn(4, 5), torch.zeros(4, dtype=torch.long)
    for args, message in (
        ((z, y[:3], None, MARGIN, False), "`y`"),
        ((z, y.int(), None, MARGIN, False), "`y`"),
        ((z, y, None, KL, False), "`y`"),
        ((z, z.double(), None, KL, False), "`y`"),
        ((z, y, None, DLR, True), "`target`"),
        ((z, y, y[:3], DLR, True), "`target`"),
        ((z[0], y, None, MARGIN, False), "`logits`"),
        ((z, y, None, 5, False), "`head`"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.fastadv.head(*args)


@native
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa: str) -> None:
    """The numbers once more, in a process of their own with a smaller instruction set."""
    from fastadv import _native

    if isa not in _native.processor()["available"]:
        pytest.skip(f"no {isa} here")
    tests = "definition or many or batch or range or nan or extreme or sure"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", tests],
        env={**os.environ, "FASTADV_CPU_CAPABILITY": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
