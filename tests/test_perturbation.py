"""Perturbation: apply, save, load."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import seeded
from safetensors.torch import save_file
from tolerance import DTYPES, assert_in_ball, assert_in_box

import fastadv as fa


def test_apply_is_a_clamped_sum() -> None:
    x, delta = torch.tensor([[0.1, 0.5, 0.9], [0.0, 1.0, 0.3]]), torch.tensor([-0.2, 0.25, 0.3])
    got = fa.Perturbation(delta, fa.Linf(0.3)).apply(x)
    torch.testing.assert_close(got, torch.tensor([[0, 0.75, 1], [0, 1, 0.6]]))
    free = fa.Perturbation(delta, fa.Linf(0.3, None)).apply(x)
    torch.testing.assert_close(free, x + delta)
    each = fa.Perturbation(delta, fa.Linf(0.3, ((0, 0.4, 0), (1, 1.1, 1)))).apply(x)
    torch.testing.assert_close(each[:, 1], torch.tensor([0.75, 1.1]))
    with pytest.raises(ValueError, match="`x` must lie within the ball's bounds"):
        fa.Perturbation(delta, fa.Linf(0.3)).apply(x + 0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_apply_keeps_dtype_and_box(dtype: torch.dtype) -> None:
    """0.1 rounds up in bfloat16, 0.8 down: neither bound may be passed."""
    for low, high in ((0.1, 0.8), (-0.8, -0.1), (-2.1179, 2.2489)):
        delta = 3 * torch.randn(3, 4, 5, generator=seeded(1))
        ball = fa.Linf(9.0, (low, high))
        x = torch.zeros(6, 3, 4, 5).uniform_(low, high, generator=seeded(2)).to(dtype)
        got = fa.Perturbation(delta, ball).apply(x)
        assert got.dtype == dtype
        assert_in_box(got, *ball.bounds_for(x))
        assert float((got - got.clamp(low, high)).abs().max()) < 1e-2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ball", [fa.Linf, fa.L2, fa.L1])
def test_what_delta_keeps_of_its_ball_x_adv_keeps_exactly(
    ball: type[fa.Ball], dtype: torch.dtype
) -> None:
    b = ball(8 / 255)
    zeros = torch.zeros(1, 40, dtype=torch.float32 if dtype != torch.float64 else dtype)
    delta = ball(8 / 255, None).project(torch.randn(1, 40, generator=seeded(4)).to(zeros), zeros)[0]
    x = torch.rand(5, 40, generator=seeded(5)).to(dtype)
    got = fa.Perturbation(delta, b).apply(x)
    assert_in_ball(got, x, 8 / 255, b.order)
    assert_in_box(got, 0.0, 1.0)
    moved = (got.double() - x.double()).abs().amax(1)
    assert bool((moved > 0.5 * float(delta.abs().max()) - torch.finfo(dtype).eps).all())
    leaf = x.clone().requires_grad_()  # under autograd: a plain sum, and its gradient
    summed = fa.Perturbation(delta, b).apply(leaf)
    summed.sum().backward()
    assert float((summed.detach() - got).abs().max()) <= 2 * torch.finfo(dtype).eps
    assert torch.equal(leaf.grad, ((x + delta.to(dtype)) >= 0).to(dtype) * ((x + delta) <= 1))


def test_apply_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"`x` must be \(N, 3, 4\), got \(5, 3\)"):
        fa.Perturbation(torch.zeros(3, 4), fa.L2(1.0)).apply(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="2 channels"):
        fa.Perturbation(torch.zeros(3), fa.L2(1.0, ((0, 0), (1, 1)))).apply(torch.zeros(5, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "ball",
    [
        fa.Linf(8 / 255), fa.L2(0.5, None), fa.L1(12.0, (-1, 2)),
        fa.Linf(math.inf, ((0.0, -0.1), (1.0, math.inf))),
    ],
)  # fmt: skip
def test_what_is_saved_is_loaded(ball: fa.Ball, dtype: torch.dtype, tmp_path: Path) -> None:
    delta = torch.randn(2, 5, generator=seeded(3)).to(dtype).T  # not contiguous
    saved = fa.Perturbation(delta.requires_grad_(), ball)
    for path in (tmp_path / "uap.safetensors", str(tmp_path / "other")):
        saved.save(path)
        saved.save(path)  # over itself
        loaded = fa.Perturbation.load(path)
        assert torch.equal(loaded.delta, delta)
        assert loaded.delta.dtype == dtype
        assert loaded.ball == ball
    assert len(list(tmp_path.iterdir())) == 2  # and no half-written file is left


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "uap"
    fa.Perturbation(torch.ones(3), fa.L2(1.0)).save(path)

    def full(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("fastadv.perturbation.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        fa.Perturbation(torch.zeros(3), fa.L2(2.0)).save(path)
    assert fa.Perturbation.load(path).delta.tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_load_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "uap"
    path.write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="`path` must be a safetensors file"):
        fa.Perturbation.load(path)
    save_file({"delta": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="`path` must be a saved Perturbation"):
        fa.Perturbation.load(path)
    with pytest.raises(FileNotFoundError):
        fa.Perturbation.load(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"`path` must be a saved .* got the folder"):
        fa.Perturbation.load(tmp_path)


def test_save_needs_a_folder(tmp_path: Path) -> None:
    uap = fa.Perturbation(torch.zeros(3), fa.L2(2.0))
    with pytest.raises(FileNotFoundError, match=r"`path` must be in a folder .* got '.*/none/uap'"):
        uap.save(tmp_path / "none" / "uap")
    with pytest.raises(FileNotFoundError, match=r"`path` must be a file's, got"):
        uap.save(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_norm_and_repr() -> None:
    uap = fa.Perturbation(torch.tensor([[3.0, -4.0]]), fa.L2(5.0))
    assert uap.norm() == 5.0
    assert repr(uap) == "Perturbation((1, 2), norm=5, ball=L2(radius=5.0, bounds=(0.0, 1.0)))"
