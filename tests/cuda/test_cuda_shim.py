"""csrc/cuda on fibers: the results of the CPU's kernels, whatever the schedule, and clean under
AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer. Emulated on the CPU, not a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import BOUNDS, Case, all_cases, make
from head_cases import FORMS, defined, one_row
from head_cases import make as make_head
from shimmed import COMPILER, NORMS, ORDERS, Shim, build
from tolerance import DTYPES, assert_in_ball, assert_near, bits
from torch import Tensor

from fastadv import reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++")
TOP = {"linf": (), "l2": (), "l1": (0.2,)}


@pytest.fixture(scope="module", params=("asan", "tsan"))
def shim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shim:
    folder = tmp_path_factory.mktemp(request.param)
    return Shim(build(folder / "build", request.param), folder, "random")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Shim:
    folder = tmp_path_factory.mktemp("plain")
    return Shim(build(folder / "build", "plain"), folder)


def served(norm: str, case: Case, steepest: bool) -> tuple[Tensor, list[Tensor | None]]:
    """What the CPU's kernel makes of a case, and the arguments again."""
    args = case.args()
    getattr(torch.ops.fastadv, f"step_{norm}_")(*args, steepest, *TOP[norm])
    assert args[0] is not None
    return args[0], list(case.args())


def check_step(shim: Shim, norm: str, case: Case, steepest: bool) -> None:
    """linf has the CPU's bits; the others its numbers, up to the order of their sums."""
    expected, args = served(norm, case, steepest)
    shim.step(norm, *args, steepest, *TOP[norm])
    got = args[0]
    if norm == "linf":
        assert torch.equal(bits(got), bits(expected))
    else:
        near = case.double().args()
        getattr(reference, f"step_{norm}_")(*near, steepest, *TOP[norm])
        # A raw step may be long: its coordinates carry roundings of that length.
        raw = case.step_size.reshape(-1, 1) * case.grad.double().reshape(len(case.x), -1)
        scale = 2.0 if steepest else max(2.0, float(raw.abs().max()))
        assert_near(got, near[0], case.x[0].numel(), scale)
        assert_in_ball(got, case.x, case.radius, norm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_steps_have_the_results_of_the_cpu(plain: Shim, norm: str, dtype: torch.dtype) -> None:
    """Every shape, layout and kind of bounds in linf, and some of them in the others, whose
    fibers switch more often; the schedules take turns."""
    some = 1 if norm == "linf" else 3 if dtype == torch.float32 else 5
    for i, case in enumerate(all_cases(dtype)[::some]):
        check_step(plain.ordered(ORDERS[i % 3]), norm, case, i % 5 != 0)


@pytest.mark.parametrize("norm", NORMS)
def test_long_samples_and_the_longest_that_registers_hold(plain: Shim, norm: str) -> None:
    for size, dtype in ((4095, torch.float32), (4096, torch.bfloat16), (9001, torch.float32)):
        check_step(plain, norm, make((2, size), dtype, "each"), True)


@pytest.mark.parametrize("norm", NORMS)
def test_a_result_does_not_depend_on_the_schedule(plain: Shim, norm: str) -> None:
    case = make((3, 3, 30, 30), torch.float32, "each")
    found = []
    for order in ORDERS:
        args = case.args()
        plain.ordered(order).step(norm, *args, True, *TOP[norm])
        found.append(bits(args[0]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("norm", NORMS)
def test_arrays_that_begin_anywhere(plain: Shim, norm: str) -> None:
    shifted = Shim(plain.driver, plain.folder, "forward", shift=4)
    for bounds in BOUNDS:
        check_step(shifted, norm, make((3, 5, 7), torch.float32, bounds), True)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_l2_of_gradients_whose_squares_are_no_numbers(plain: Shim, scale: float) -> None:
    case = make((2, 33), torch.float32)
    case.grad *= scale / case.grad.abs().max()
    check_step(plain, "l2", case, True)


def test_l2_that_nearly_cancels(plain: Shim) -> None:
    """d and the step leave almost nothing: ||v|| is measured, not put together from sums."""
    case = make((2, 33), torch.float32, "none", per_sample=False, radius=1e-5)
    d = (case.x_adv - case.x).double()
    case.grad = -d.float()
    case.step_size = (d.norm(dim=1) * (1 + 1e-6)).float()
    expected, args = served("l2", case, True)
    plain.step("l2", *args, True)
    assert torch.equal(args[0], expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("special", [torch.nan, torch.inf, 0.0])
def test_gradients_of_nan_infinity_and_zero(plain: Shim, norm: str, special: float) -> None:
    case = make((3, 40), torch.float32)
    case.grad[0], case.grad[1, 3] = special, special
    expected, args = served(norm, case, True)
    plain.step(norm, *args, True, *TOP[norm])
    assert torch.equal(args[0].isnan(), expected.isnan())
    close = (args[0] - expected).abs().nan_to_num() <= 1e-6
    assert bool((close | expected.isnan()).all())


def universal_args(n: int, size: int, dtype: torch.dtype, moving: bool) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(n)
    wide = reference.compute_dtype(dtype)
    weights = torch.rand(n, generator=g).to(wide)
    weights[0] = 0
    velocity = torch.randn(size, generator=g).to(wide) / size if moving else None
    delta = (torch.rand(size, generator=g) - 0.5).to(dtype)
    grads = torch.randn(n, size, generator=g).to(dtype)
    if n > 1:
        grads[0] = torch.inf  # of weight 0: it does not count
    step, radius = torch.tensor(0.1, dtype=wide), torch.tensor(0.4, dtype=wide)
    return [delta, velocity, grads, weights if n > 1 else None, step, radius]


def check_universal(shim: Shim, norm: str, args: list[Tensor | None], *rule: object) -> None:
    expected = [None if t is None else t.clone() for t in args]
    delta, velocity, grads = args[:3]
    assert delta is not None
    assert grads is not None
    getattr(torch.ops.fastadv, f"universal_{norm}_")(*expected, *rule, *TOP[norm])
    shim.universal(norm, *args, *rule, *TOP[norm])  # type: ignore[arg-type]
    assert_near(delta, expected[0], grads.numel(), 1.0)
    if velocity is not None:
        assert_near(velocity, expected[1], grads.numel(), 1.0)
    assert_in_ball(delta[None], torch.zeros_like(delta)[None], args[5], norm)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_universal_has_the_results_of_the_cpu(plain: Shim, norm: str, dtype: torch.dtype) -> None:
    shapes = ((1, 7), (5, 33), (70, 600), (16, 1))
    for i, (signs, moving) in enumerate(itertools.product((False, True), (False, True))):
        args = universal_args(*shapes[i], dtype, moving)
        check_universal(plain.ordered(ORDERS[i % 3]), norm, args, 0.9, signs, True)


def check_head(shim: Shim, head: int, targeted: bool, dtype: torch.dtype, n: int, c: int) -> None:
    case = make_head(head, targeted, dtype, n, c, ties=n % 2 == 0)
    loss, grad, prediction = case.expected()
    got = shim.head(case.logits, case.y, case.target, head, targeted)
    assert_near(got[0], loss, c, max(1.0, float(loss.abs().max())))
    assert_near(got[1], grad, c, max(1.0, float(grad.abs().max())))
    assert torch.equal(got[2], prediction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_heads_are_their_reference(
    plain: Shim, head: int, targeted: bool, dtype: torch.dtype
) -> None:
    for n, classes in ((1, 1), (6, 2), (5, 10), (9, 33), (2, 1000), (3, 1300)):
        if defined(head, targeted, classes):
            check_head(plain.ordered(ORDERS[n % 3]), head, targeted, dtype, n, classes)


@pytest.mark.parametrize(("head", "targeted"), FORMS)
def test_heads_at_the_edges_are_the_cpus(plain: Shim, head: int, targeted: bool) -> None:
    """NaN, infinities, labels that are no class."""
    inf, nan = torch.inf, torch.nan
    rows = ([1.0, nan, 2.0, 0.5, nan], [inf, 1.0, 0.0, -inf, 2.0], [-inf, -inf, 0.0, 1.0, -inf],
            [3.0, 3.0, 3.0, 3.0, 3.0], [80.0, -80.0, 0.0, 1.0, -1.0])  # fmt: skip
    for row, y in itertools.product(rows, (0, 3)):
        case = one_row(head, targeted, row, y, torch.float32)
        got = plain.head(case.logits, case.y, case.target, head, targeted)
        for mine, theirs in zip(got, case.run(), strict=True):
            if mine.is_floating_point() and not bool(theirs.isnan().any()):
                assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-30)
    if head not in (1, 4):
        for y in (-1, 5, 2**40):
            case = one_row(head, targeted, rows[4], 0, torch.float32)
            loss, grad, _ = plain.head(case.logits, torch.tensor([y]), case.target, head, targeted)
            assert bool(loss.isnan().all())
            assert not bool(grad.any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_digest_and_uniform_have_the_bits_of_the_cpu(plain: Shim, dtype: torch.dtype) -> None:
    for shape in ((1, 1), (3, 7), (2, 33), (2, 1100)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        assert torch.equal(plain.digest(x), torch.ops.fastadv.digest(x))
        for seed in ((5, 2**33, 1), (-7, 0, 3)):
            drawn = torch.ops.fastadv.uniform(x, *seed)
            assert torch.equal(plain.uniform(x, *seed), drawn)


def test_sanitizers_find_nothing(shim: Shim) -> None:
    """Sizes that begin and end inside a vector, in registers and from memory."""
    for norm in NORMS:
        for shape, bounds in (((3, 3, 5, 5), "each"), ((1, 4200), "one")):
            check_step(shim, norm, make(shape, torch.float32, bounds), True)
        check_step(shim, norm, make((3, 19), torch.bfloat16), False)
        check_universal(shim, norm, universal_args(20, 33, torch.float32, True), 0.9, False, True)
    for head, targeted in FORMS:
        for classes in (10, 1300):
            check_head(shim, head, targeted, torch.float32, 3, classes)
    x = torch.randn(3, 19, generator=torch.Generator().manual_seed(1))
    assert torch.equal(shim.digest(x), torch.ops.fastadv.digest(x))
    assert torch.equal(shim.uniform(x, 1, 2, 3), torch.ops.fastadv.uniform(x, 1, 2, 3))
