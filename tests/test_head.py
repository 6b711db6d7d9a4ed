"""The fused heads: torch.ops.fastadv.head against its definition in float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastadv import ops
from fastadv.reference_head import BINARY_CROSS_ENTROPY, CROSS_ENTROPY, DLR, KL, MARGIN
from fastadv.reference_head import head as reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HEADS = (CROSS_ENTROPY, BINARY_CROSS_ENTROPY, MARGIN, DLR, KL)
FORMS = [(head, targeted) for head in HEADS for targeted in (False, True)]
# Around every width of register (4 to 16 lanes), and around 128, where classes become lanes.
CLASSES = (1, 2, 3, 4, 5, 8, 10, 16, 17, 33, 100, 128, 129, 143, 1000)

native = pytest.mark.skipif(
    not ops.backend().cpu.startswith("native"), reason="the reference serves the ops"
)


@dataclass
class Case:
    """One call's arguments."""

    logits: Tensor
    y: Tensor
    target: Tensor | None
    head: int
    targeted: bool

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.fastadv.head(self.logits, self.y, self.target, self.head, self.targeted)

    def expected(self) -> tuple[Tensor, Tensor, Tensor]:
        y = self.y.double() if self.y.is_floating_point() else self.y
        return reference(self.logits.double(), y, self.target, self.head, self.targeted)


def defined(head: int, targeted: bool, classes: int) -> bool:
    return classes >= {MARGIN: 2, DLR: 4 if targeted else 3}.get(head, 1)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def make(
    head: int, targeted: bool, dtype: torch.dtype, samples: int, classes: int, ties: bool = False
) -> Case:
    generator = torch.Generator().manual_seed(1000 * classes + samples)
    logits = 4 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(0, classes, (samples,), generator=generator)
    target = torch.randint(0, classes, (samples,), generator=generator)
    if head == BINARY_CROSS_ENTROPY:
        y = torch.randint(0, 2, (samples, classes), generator=generator).to(compute_dtype(dtype))
    elif head == KL:
        y = torch.randn(samples, classes, generator=generator).softmax(1).to(compute_dtype(dtype))
        y[:, -1] = 0
    logits = (logits.round() if ties else logits).to(dtype)
    return Case(logits, y, target if head == DLR and targeted else None, head, targeted)


def assert_close(case: Case) -> None:
    """Compares with the definition in float64, within the roundings that can have happened.

    A sum over C classes in lanes of at least 4 is off by (C / 4 + a few) eps, the exponent of e^d
    by |d| eps, and dlr's divisor by eps * max |z| before it divides.
    """
    loss, grad, prediction = case.run()
    expected_loss, expected_grad, expected_prediction = case.expected()
    z = case.logits.double()
    assert loss.dtype == compute_dtype(case.logits.dtype)
    assert grad.dtype == case.logits.dtype
    assert torch.equal(prediction, expected_prediction)
    roundings = torch.finfo(loss.dtype).eps * (16 + z.shape[1] / 4)
    size = 1 + z.abs().amax(1)
    if case.head == DLR:
        size = size * (1 + expected_grad.abs().amax(1))
    elif case.head == MARGIN:
        assert torch.equal(grad.double(), expected_grad)
    off = (loss.double() - expected_loss).abs()
    assert bool((off <= roundings * (size + expected_loss.abs())).all())
    stored = torch.finfo(case.logits.dtype)
    allowed = roundings * size[:, None] + stored.eps * expected_grad.abs()
    if case.head == DLR:
        allowed = allowed * (1 + expected_grad.abs().amax(1, keepdim=True))
    assert bool(((grad.double() - expected_grad).abs() <= allowed + stored.smallest_normal).all())


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


def one_row(head: int, targeted: bool, row: list[float], y: int, dtype: torch.dtype) -> Case:
    logits = torch.tensor([row], dtype=dtype)
    label = torch.tensor([y])
    if head in (BINARY_CROSS_ENTROPY, KL):
        one_hot = torch.nn.functional.one_hot(label, len(row))
        label = one_hot.to(compute_dtype(dtype))
    target = torch.tensor([(y + 1) % len(row)]) if head == DLR and targeted else None
    return Case(logits, label, target, head, targeted)


INF = torch.inf
EXTREMES = (
    [1e30, -1e30, 1e30, 0.0, 5.0],
    [-1e30, -1e30, -1e30, -1e30, 1e30],
    [0.0, 0.0, 0.0, 0.0, 0.0],
    [3.0, 3.0, 3.0, 3.0, 1.0],
    [-INF, 1.0, 2.0, -INF, 0.5],
    [-INF, -INF, -INF, -INF, 2.0],
    [-INF, -INF, -INF, -INF, -INF],
    [INF, 1.0, 2.0, 3.0, 4.0],
    [INF, INF, 2.0, 3.0, -INF],
    [100.0, 0.0, -3.0, -2.0, 99.0],
    [1e-30, 2e-30, -1e-30, 0.0, 3e-30],
)


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


rows = st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=150)
law = settings(max_examples=80, deadline=None)


def call(head: int, row: Tensor, y: int, targeted: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    return one_row(head, targeted, row.tolist(), y % len(row), row.dtype).run()


@law
@given(rows, st.integers(0, 149), st.floats(-100, 100))
def test_cross_entropy_ignores_a_shift(row: list[float], y: int, shift: float) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    torch.testing.assert_close(
        call(CROSS_ENTROPY, z + shift, y)[0], call(CROSS_ENTROPY, z, y)[0], rtol=1e-11, atol=1e-11
    )


@law
@given(rows, st.integers(0, 149), st.sampled_from([CROSS_ENTROPY, MARGIN, DLR, KL]), st.booleans())
def test_gradients_sum_to_zero(row: list[float], y: int, head: int, targeted: bool) -> None:
    grad = call(head, torch.tensor(row, dtype=torch.float64), y, targeted)[1]
    assert abs(grad.sum().item()) <= 1e-13 * (1 + grad.abs().sum().item())


@law
@given(rows, st.integers(0, 149), st.sampled_from([MARGIN, DLR]))
def test_positive_means_misclassified(row: list[float], y: int, head: int) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    loss, _, prediction = call(head, z, y)
    label = y % len(row)
    if bool(loss > 0):
        assert prediction.item() != label
    elif bool(loss < 0):
        assert prediction.item() == label
    else:
        assert z[prediction] == z[label]
    assert not loss.isnan()


@law
@given(
    st.lists(st.integers(-1000, 1000), min_size=4, max_size=150),
    st.integers(0, 149),
    st.integers(-50, 50),
    st.floats(0.01, 100),
    st.booleans(),
)
def test_dlr_ignores_shift_and_scale(
    row: list[int], y: int, shift: int, scale: float, targeted: bool
) -> None:
    z = torch.tensor(row, dtype=torch.float64)
    loss, grad, _ = call(DLR, z, y, targeted)
    first, _, third, fourth = z.sort(descending=True).values[:4].tolist()
    if first == (third + fourth) / 2 if targeted else first == third:
        assert loss == (z[(y + 1) % len(z)] if targeted else z.max()) - z[y % len(z)] or loss <= 0
        return
    moved, moved_grad, _ = call(DLR, scale * (z + shift), y, targeted)
    torch.testing.assert_close(moved, loss, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved_grad * scale, grad, rtol=1e-9, atol=1e-9)


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
