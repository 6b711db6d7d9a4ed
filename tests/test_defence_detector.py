"""fa.defence: the DCT, the detector, the whole defence, the metrics."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import seeded
from defence_cases import planes
from torch import Tensor, nn

import fastadv as fa
from fastadv.defence import Defended, Detector, Outcomes


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (3, 5, 7), (2, 1, 28, 28)])
def test_dct_is_scipys(shape: tuple[int, ...]) -> None:
    fft = pytest.importorskip("scipy.fft")
    x = torch.rand(shape, generator=seeded(0), dtype=torch.float64)
    expected = torch.as_tensor(fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho"))
    torch.testing.assert_close(fa.defence.dct2(x), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(fa.defence.dct2(x.float()), expected.float(), rtol=0, atol=1e-5)


def test_what_dct_refuses() -> None:
    with pytest.raises(ValueError, match=re.escape("`x` must be (..., H, W), got (3,)")):
        fa.defence.dct2(torch.rand(3))
    with pytest.raises(TypeError, match="`x` must be float32"):
        fa.defence.dct2(torch.ones(2, 2, dtype=torch.long))


class Blur(nn.Module):
    """Every pixel the mean of the 3x3 around it: it takes out what varies fast."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), "replicate"), 3, 1)


def fitted() -> tuple[Defended, list[Tensor], fa.Perturbation]:
    pytest.importorskip("sklearn")
    model, x, delta = planes()
    detector = Detector((1, 8, 8)).fit(Blur(), x[:2], [delta])
    return Defended(model, Blur(), detector), x, delta


def test_the_detector_finds_planted_perturbations_in_unseen_images() -> None:
    defended, x, delta = fitted()
    clean, attacked = x[2], delta.apply(x[2])
    rectified, found = defended.rectify(torch.cat([clean, attacked]))
    assert found.tolist() == [False] * 20 + [True] * 20
    expected = defended.model(torch.cat([clean, rectified[20:]]))
    assert torch.equal(defended(torch.cat([clean, attacked])), expected)
    leaf = attacked.clone().requires_grad_()
    defended(leaf).sum().backward()
    assert leaf.grad is not None


def test_a_detector_comes_back_from_its_file(tmp_path: Path) -> None:
    defended, x, _ = fitted()
    detector, residual = defended.detector, Blur()(x[0]) - x[0]
    detector.save(tmp_path / "d.safetensors")
    for copy in (Detector.load(tmp_path / "d.safetensors"), Detector((1, 8, 8))):
        copy.load_state_dict(detector.state_dict())
        assert torch.equal(copy.score(residual), detector.score(residual))
    loaded = Detector.load(tmp_path / "d.safetensors")
    assert torch.equal(loaded.score(residual), detector.score(residual))
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]
    fa.Perturbation(x[0][0], fa.Linf(1)).save(tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="`path` must be a saved Detector"):
        Detector.load(tmp_path / "p.safetensors")
    (tmp_path / "text").write_text("not one")
    with pytest.raises(ValueError, match="`path` must be a safetensors file"):
        Detector.load(tmp_path / "text")


def test_what_the_detector_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, x, delta = planes()
    detector = Detector((1, 8, 8))
    with pytest.raises(RuntimeError, match="has not been fitted"):
        detector.predict(x[0])
    with pytest.raises(RuntimeError, match="nothing to save"):
        detector.save(tmp_path / "d")
    with pytest.raises(ValueError, match=re.escape("must be (N, 1, 8, 8), got (20, 1, 8, 4)")):
        detector.features(x[0][..., :4])
    with pytest.raises(ValueError, match=re.escape("`shape` must be (C, H, W), got (8, 8)")):
        Detector((8, 8))
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install fastadv\[defence\]"):
        detector.fit(Blur(), x, [delta])


def table() -> Outcomes:
    """Four images, of which the classifier knows three, under two perturbations."""
    return Outcomes(
        label=torch.tensor([0, 1, 2, 3]),
        clean=torch.tensor([0, 1, 2, 0]),
        clean_rectified=torch.tensor([0, 2, 2, 3]),
        perturbed=torch.tensor([[0, 0, 0, 0], [1, 1, 1, 3]]),
        perturbed_rectified=torch.tensor([[0, 1, 2, 1], [0, 1, 1, 0]]),
        alarms=torch.tensor([False, True, False, False]),
        detected=torch.tensor([[True, True, False, True], [True, True, True, False]]),
    )


def test_the_metrics_of_a_table() -> None:
    outcomes = table()
    # Perturbed: right are 1 and 2 of 4; rectified: 3 and 2. As on the clean image: 2, 1; 3, 3.
    assert outcomes.agreement == (3 / 8, 6 / 8)
    assert outcomes.gain == 2 / 8
    assert outcomes.restoration == pytest.approx((5 / 8) / (3 / 4))
    assert outcomes.detection == 6 / 8
    assert outcomes.false_alarms == 1 / 4
    # All of it: clean 0 2 2 0, two right; perturbed 0 1 0 1 and 0 1 1 3, two and three right.
    assert outcomes.defence == pytest.approx((2 / 4 + 5 / 8) / 2 / (3 / 4))
    assert "agreement 0.375 -> 0.750, gain 0.250" in str(outcomes)
    never = replace(outcomes, clean=torch.tensor([1, 0, 0, 0]))
    assert math.isnan(never.defence)
    with pytest.raises(ValueError, match=re.escape("`alarms` must be (4,), got (3,)")):
        replace(outcomes, alarms=outcomes.alarms[:3])
    with pytest.raises(ValueError, match=re.escape("`detected` must be (2, 4), got (1, 4)")):
        replace(outcomes, detected=outcomes.detected[:1])


def test_measure_is_what_the_parts_say() -> None:
    defended, x, delta = fitted()
    defended.train()
    weak = fa.Perturbation(0 * delta.delta, delta.ball)
    y = torch.zeros(20, dtype=torch.long)
    outcomes = fa.defence.measure(defended, [delta, weak], [(x[1], y), (x[2], y)])
    assert all(module.training for module in defended.modules())
    assert outcomes.label.tolist() == [0] * 40
    assert outcomes.perturbed.shape == outcomes.detected.shape == (2, 40)
    assert outcomes.detection == 0.5
    assert outcomes.false_alarms == 0
    assert torch.equal(outcomes.perturbed[1], outcomes.clean)
    assert outcomes.perturbed[0].tolist() == [
        int(k) for k in defended.model(delta.apply(torch.cat(x[1:]))).argmax(1)
    ]
    alone = fa.defence.measure(defended, [delta], x[1:])
    assert torch.equal(alone.label, alone.clean)
    with pytest.raises(ValueError, match=r"\(x, y\) in every batch or in none"):
        fa.defence.measure(defended, [delta], [x[1], (x[2], y)])
