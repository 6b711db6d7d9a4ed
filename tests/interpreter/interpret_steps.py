"""The steps: linf bit for bit, l2 and l1 against the reference in float64, all exactly feasible."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from cases import Case, all_cases, make
from tolerance import DTYPES, assert_in_ball, assert_in_box, assert_near, bits
from torch import Tensor

from fastadv import reference
from fastadv.kernels import step, tiles

MORE = {"linf": (), "l2": (), "l1": (0.2,)}
OP = {order: getattr(step, f"step_{order}_") for order in MORE}
REFERENCE = {order: getattr(reference, f"step_{order}_") for order in MORE}


def stepped(function: Callable[..., None], case: Case, *rule: object) -> Tensor:
    args = case.args()
    assert function(*args, *rule) is None
    return args[0]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, but for the payload of a NaN, which is the processor's."""
    one, other = (torch.where(t.isnan(), torch.full_like(t, math.nan), t) for t in (a, b))
    return torch.equal(bits(one), bits(other))


@pytest.mark.parametrize("steepest", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linf_is_its_reference_to_the_bit(dtype: torch.dtype, steepest: bool) -> None:
    for case in all_cases(dtype)[steepest::2]:
        got = stepped(OP["linf"], case, steepest)
        assert same_bits(got, stepped(REFERENCE["linf"], case, steepest))
        assert got.stride() == case.x_adv.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linf_bits_at_the_ends_of_arithmetic(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    ends = [0.0, -0.0, 1.0, -1.0, info.max, -info.max, info.tiny, -subnormal, subnormal, 0.1, -0.9]
    grads = [*ends, math.nan, -math.nan, math.inf, -math.inf]
    points = torch.tensor(ends, dtype=dtype)
    grid = torch.cartesian_prod(points, points, torch.tensor(grads, dtype=dtype))
    x_adv, x, grad = (column.contiguous()[None] for column in grid.unbind(1))
    wide = reference.compute_dtype(dtype)
    for radius in (0.0, 8 / 255, 3e38, math.inf):
        for step_size in (1e-40, 0.3):
            for bounds in (None, (-1.0, 1.0), (0.1, 0.7), (-math.inf, 0.5)):
                numbers = (torch.tensor(v, dtype=wide) for v in (step_size, radius))
                box = None if bounds is None else torch.tensor(bounds, dtype=wide)
                case = Case(x_adv, grad, x, *numbers, box)
                got, expected = (stepped(f["linf"], case, True) for f in (OP, REFERENCE))
                assert same_bits(got, expected), (radius, step_size, bounds)


FORMS = [("l2", "held"), ("l2", "walked"), ("l2", "split"), ("l1", "held"), ("l1", "walked")]
in_l2 = pytest.mark.parametrize("form", ["held", "walked", "split"], indirect=True)
in_every_form = pytest.mark.parametrize(("order", "form"), FORMS, indirect=["form"])


@pytest.fixture
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Samples in registers; walked over in small tiles; the same by several programs each."""
    if request.param != "held":
        monkeypatch.setattr(tiles, "held", lambda *_: False)
        monkeypatch.setattr(tiles, "long_search", lambda *_: tiles.Tile(64, 1))
        share = 10**6 if request.param == "walked" else 1

        def walk(samples: int, size: int, itemsize: int) -> tiles.Walk:
            return tiles.Walk(tiles.Tile(16, 1), -(-size // (16 * share)), share)

        monkeypatch.setattr(tiles, "long_sample", walk)
    return str(request.param)


SMALL = [i for i, case in enumerate(all_cases(torch.float32)) if case.x[0].numel() < 200]


@in_every_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_step_is_its_reference_in_float64(order: str, dtype: torch.dtype, form: str) -> None:
    cases = all_cases(dtype)
    every = {("l1", "walked"): 16, ("l1", "held"): 8}.get((order, form), 4)
    for number, i in enumerate(SMALL[DTYPES.index(dtype) % every :: every]):
        case, steepest = cases[i], number % 3 != 0
        got = stepped(OP[order], case, steepest, *MORE[order])
        expected = stepped(REFERENCE[order], case.double(), steepest, *MORE[order])
        raw = case.step_size.reshape(-1, 1) * case.grad.double().reshape(len(case.x), -1)
        scale = 2.0 if steepest else max(2.0, float(raw.abs().max()))
        assert_near(got, expected, case.x[0].numel(), scale)
        assert_in_ball(got, case.x, case.radius, order)
        assert_in_box(got, *case.box())
        assert got.stride() == case.x_adv.stride()


@pytest.mark.parametrize("order", ["l2", "l1"])
def test_samples_of_thousands(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the launchers lay them out: registers, one program a sample, several."""
    monkeypatch.setattr(tiles, "FEW_SAMPLES", 2)
    shapes = ((2, 3072), (1, 4097)) if order == "l1" else ((2, 3072), (1, 9001), (2, 4112))
    for shape in shapes:
        case = make(shape, torch.float32, radius=0.7, step=0.4)
        got = stepped(OP[order], case, True, *MORE[order])
        expected = stepped(REFERENCE[order], case.double(), True, *MORE[order])
        assert_near(got, expected, shape[1], 2.0)
        assert_in_ball(got, case.x, case.radius, order)


@pytest.mark.parametrize(("order", "form"), [("linf", "held"), *FORMS], indirect=["form"])
def test_a_step_of_zero_gradient_moves_nothing(order: str, form: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = make((2, 40), dtype, "one", radius=0.5)
        inside = stepped(OP[order], case, True, *MORE[order])
        rest = (case.x, case.step_size, case.radius * 1.1, case.bounds, True, *MORE[order])
        got = inside.clone()
        OP[order](got, torch.zeros_like(got), *rest)
        assert torch.equal(bits(got), bits(inside))


@in_l2
@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_gradients_whose_squares_are_no_numbers(size: float, form: str) -> None:
    g = torch.Generator().manual_seed(2)
    case = make((3, 40), torch.float64, "none")
    case.grad = torch.randint(-4, 5, (3, 40), generator=g).double()
    expected = stepped(OP["l2"], case, True)
    case.grad = case.grad * size
    torch.testing.assert_close(stepped(OP["l2"], case, True), expected, rtol=0, atol=1e-15)


@in_l2
def test_a_step_that_cancels_is_measured(form: str) -> None:
    """d and the step nearly cancel: the three sums alone would be off by all of ||v||."""
    x = torch.zeros(1, 40)
    grad = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    x_adv = -(1 + 1e-6) * grad / grad.norm()
    number = torch.tensor(1.0)
    case = Case(x_adv, grad, x, number, torch.tensor(1e-8), None)
    got = stepped(OP["l2"], case, True)
    assert_in_ball(got, x, case.radius, "l2")
    assert float(got.double().norm()) > 0.9e-8


@pytest.mark.parametrize("order", MORE)
def test_a_nan_stays_in_its_sample(order: str) -> None:
    case = make((3, 20), torch.float32, "one")
    expected = stepped(OP[order], case, True, *MORE[order])
    case.grad[1, 4] = math.nan
    got = stepped(OP[order], case, True, *MORE[order])
    assert torch.equal(got[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("order", MORE)
def test_empty_batches(order: str) -> None:
    number = torch.tensor(0.1)
    for shape in ((0, 3, 4, 4), (2, 3, 0), (0,)):
        x = torch.empty(shape)
        OP[order](x, x.clone(), x.clone(), number, number, None, True, *MORE[order])


def test_what_does_not_fit_is_refused() -> None:
    x, r = torch.rand(4, 3, 2, 2), torch.tensor(0.1)
    good = {"x_adv": x, "grad": x.clone(), "x": x.clone(), "step_size": r, "radius": r}
    good |= {"bounds": None, "steepest": True}
    last = x.clone().contiguous(memory_format=torch.channels_last)
    bad: list[tuple[dict[str, object], type[Exception], str]] = [
        ({"grad": x[:2].clone()}, ValueError, r"`grad` must be \(4, 3, 2, 2\) like `x_adv`, got"),
        ({"grad": x.double()}, TypeError, "`grad` must be float32, got float64"),
        ({"x": last}, ValueError, "`x` must have the memory format of `x_adv`"),
        ({"x": x}, ValueError, "`x_adv` is updated in place and must share no memory with `x`"),
        ({"radius": r.expand(3)}, ValueError, r"`radius` must be \(\) or \(4,\), got \(3,\)"),
        ({"step_size": r.double()}, TypeError, "`step_size` must be float32, got float64"),
        ({"bounds": torch.zeros(2, 4)}, ValueError, r"`bounds` must be \(2,\) or \(2, 3\), got"),
        ({"x_adv": x.transpose(0, 2)}, ValueError, "`x_adv` must be contiguous or channels_last"),
        ({"x_adv": x.int()}, TypeError, "`x_adv` must be float32, float64, bfloat16 or float16"),
    ]
    for change, kind, message in bad:
        with pytest.raises(kind, match=message):
            step.step_linf_(**(good | change))
    with pytest.raises(ValueError, match="`top` must be in"):
        step.step_l1_(*good.values(), 0.0)
