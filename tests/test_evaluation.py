"""Accuracy under attack: closed forms, worst case, fooling against accuracy, reports, figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch
from conftest import LinearPair, image_net, seeded
from torch import Tensor

import fastadv as fa
from fastadv.evaluation import accuracy_by_radius, evaluate, plots
from fastadv.evaluation.accuracy import with_radius
from fastadv.evaluation.names import label

FREE = fa.Linf(0.1, bounds=None)


@pytest.fixture
def linear() -> tuple[LinearPair, Tensor, Tensor]:
    """A linear model, x (40, 6), and its own predictions as y, but for the first four."""
    g = seeded(7)
    model = LinearPair(torch.randn(6, generator=g).double())
    x = torch.randn(40, 6, generator=g).double()
    y = model(x).argmax(1)
    y[:4] = 1 - y[:4]
    return model, x, y


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(x[k : k + size], y[k : k + size]) for k in range(0, len(x), size)]


def exact(model: LinearPair, x: Tensor, y: Tensor, radius: float) -> float:
    """The linf robust accuracy of a linear model: the margin exceeds radius * ||w||_1."""
    margin = (2 * y - 1) * model(x)[:, 1]
    return float((margin > radius * model.w.detach().abs().sum()).double().mean())


def test_robust_accuracy_of_a_linear_model_is_exact(
    linear: tuple[LinearPair, Tensor, Tensor],
) -> None:
    model, x, y = linear
    report = evaluate(model, batches(x, y, 16), fa.pgd(FREE))
    (row,) = report.attacks
    assert report.samples == 40
    assert report.clean_accuracy == pytest.approx(0.9)
    assert row.robust_accuracy == pytest.approx(exact(model, x, y, 0.1))
    assert report.worst_case_accuracy == row.robust_accuracy
    assert 0 < (row.robust_accuracy or 0) < 0.9
    assert row.mean_distance == pytest.approx(0.1)
    assert row.max_distance <= 0.1
    assert row.infeasible == 0
    assert row.forwards == 40 * 11


def test_the_batches_do_not_matter(linear: tuple[LinearPair, Tensor, Tensor]) -> None:
    model, x, y = linear
    attacks = [fa.pgd(fa.L2(0.2, None), steps=3), fa.apgd(FREE, steps=5)]
    seen = [
        [replace(row, seconds=0) for row in evaluate(model, batches(x, y, size), attacks).attacks]
        for size in (40, 7)
    ]
    assert seen[0] == seen[1]


def test_fooling_is_a_change_of_prediction_and_not_an_error() -> None:
    model = LinearPair(torch.tensor([1.0]))
    x = torch.tensor([[0.5], [0.5], [-0.5], [-0.5]])
    y = torch.tensor([1, 0, 0, 1])  # the model errs on the second and the last
    shift = fa.Perturbation(torch.tensor([1.0]), fa.Linf(1.0, None))
    report = evaluate(model, [(x, y)], {"shift": shift})
    (row,) = report.attacks
    assert row.name == "shift"
    assert report.clean_accuracy == 0.5
    assert row.fooling_rate == 0.5  # the last two
    assert row.robust_accuracy == 0.5  # the first and the last, which it puts right
    assert report.worst_case_accuracy == 0.25  # the first alone is right on x and on x + 1


def test_the_worst_case_is_taken_sample_by_sample() -> None:
    model = LinearPair(torch.tensor([1.0, 0.0]))
    x = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [3.0, 0.0]])
    y = torch.tensor([1, 0, 1])
    ball = fa.Linf(1.0, None)
    down, up = (fa.Perturbation(torch.tensor([d, 0.0]), ball) for d in (-1.0, 1.0))
    report = evaluate(model, [(x, y)], [down, up])
    assert [row.robust_accuracy for row in report.attacks] == pytest.approx([2 / 3, 2 / 3])
    assert report.worst_case_accuracy == pytest.approx(1 / 3)
    assert [row.name for row in report.attacks] == ["universal linf 1", "universal linf 1 (2)"]


def test_what_leaves_the_ball_does_not_count() -> None:
    model = LinearPair(torch.tensor([1.0]))
    x, y = torch.tensor([[0.5]]), torch.tensor([1])
    outside = fa.Perturbation(torch.tensor([-1.0]), fa.Linf(0.9, None))
    (row,) = evaluate(model, [(x, y)], [outside]).attacks
    assert (row.infeasible, row.robust_accuracy, row.fooling_rate) == (1, 1.0, 0.0)


def test_accuracy_by_radius_is_exact_on_a_linear_model(
    linear: tuple[LinearPair, Tensor, Tensor],
) -> None:
    model, x, y = linear
    radii = (0.0, 0.05, 0.1, 0.3)
    found = accuracy_by_radius(model, batches(x, y, 16), fa.pgd(FREE), radii)
    assert found == pytest.approx([exact(model, x, y, radius) for radius in radii])


def test_steps_are_scaled_with_the_radius() -> None:
    wider = with_radius(fa.pgd(fa.L2(0.5), step_size=(0.1, 0.05)), 1.0)
    assert wider == fa.pgd(fa.L2(1.0), step_size=(0.2, 0.1))
    assert with_radius(fa.apgd(fa.L2(0.5)), 1.0) == fa.apgd(fa.L2(1.0))


def test_many_labels() -> None:
    g = seeded(8)
    model = torch.nn.Linear(6, 3)
    x = torch.rand(9, 6, generator=g)
    y = (model(x) > 0).float()
    attack = fa.pgd(fa.Linf(0.2), objective=fa.binary_cross_entropy)
    report = evaluate(model, [(x, y)], attack)
    assert report.clean_accuracy == 1
    assert report.attacks[0].fooling_rate == pytest.approx(
        1 - (report.attacks[0].robust_accuracy or 0)
    )


def test_nothing_of_the_callers_is_touched(images: tuple[Tensor, Tensor]) -> None:
    model = image_net()
    before = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    evaluate(model, [images], [fa.pgd(fa.Linf(0.1)), fa.apgd(fa.L2(1.0), steps=3)])
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "`loader` must give at least one sample, got none"),
        ([torch.zeros(2, 6)], r"batches \(x, y\) of two tensors, got a Tensor"),
        ([(torch.zeros(2, 6),)], "got a tuple of Tensor"),
        ([(torch.zeros(2, 6), [0, 1])], "got a tuple of Tensor, list"),
        ([{"x": 0}], "got a dict"),
    ],
)
def test_a_loader_that_is_none(loader: list[object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(torch.nn.Linear(6, 2), loader, fa.pgd(FREE))  # type: ignore[arg-type]


def test_an_attack_that_is_none() -> None:
    with pytest.raises(TypeError, match="`attacks` must hold Attacks or Perturbations, got str"):
        evaluate(torch.nn.Linear(6, 2), [], ["pgd"])  # type: ignore[list-item]


def test_a_loader_that_gives_its_batches_once(linear: tuple[LinearPair, Tensor, Tensor]) -> None:
    model, x, y = linear

    def once() -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches(x, y, 16)

    report = evaluate(model, once(), [fa.fgsm(FREE), fa.pgd(FREE)])
    assert report.samples == 40
    assert report.attacks[0].robust_accuracy == report.attacks[1].robust_accuracy


def test_the_report_is_a_value_that_prints_and_saves(
    linear: tuple[LinearPair, Tensor, Tensor], tmp_path: Path
) -> None:
    model, x, y = linear
    attack = fa.pgd(FREE)
    report = evaluate(model, [(x, y)], [attack, fa.apgd(FREE)], seed=3)
    with pytest.raises(FrozenInstanceError):
        report.seed = 4  # type: ignore[misc]
    text = str(report)
    for part in ("40 samples", "seed 3", "clean", "90.0 %", "PGD-10 linf 0.1", "worst case"):
        assert part in text
    assert str(fa.backend()) in text
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == report.to_dict()
    assert saved["attacks"][0]["attack"] == repr(attack)
    assert saved["environment"]["torch"] == torch.__version__
    assert saved["environment"]["fastadv"] == fa.__version__
    assert saved["environment"]["backend"] == str(fa.backend())
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (fa.pgd(fa.Linf(8 / 255)), "PGD-10 linf 8/255"),
        (fa.pgd(fa.Linf(0.2), restarts=5), "PGD-10 x5 linf 0.2"),
        (fa.fgsm(fa.L2(0.5)), "FGSM l2 0.5"),
        (fa.apgd(fa.L2(0.5), objective=fa.dlr), "APGD-100 dlr l2 0.5"),
        (fa.mi_fgsm(fa.L1(12)), "MI-FGSM-10 l1 12"),
        (fa.Attack(fa.L2(1), fa.Adam(0.1), steps=7), "Adam-7 l2 1"),
    ],
)
def test_short_names(attack: fa.Attack, name: str) -> None:
    assert label(attack) == name


def test_without_attacks_it_is_the_clean_accuracy() -> None:
    x, y = torch.rand(9, 6, generator=seeded(4)), torch.zeros(9, dtype=torch.long)
    model = torch.nn.Linear(6, 2)
    report = evaluate(model, [(x, y)])
    assert report.clean_accuracy == float((model(x).argmax(1) == y).double().mean())
    assert not report.attacks


def test_the_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    x = torch.rand(3, 5, 5, generator=seeded(9))
    examples = {"PGD": {"net": plots.Example(x, 0.1 - 0 * x, x, 3, 4)}}
    curve = plots.Curve("linf", (0.0, 0.1), {"net": (0.9, 0.2)}, marked=0.1)
    path = plots.save(plots.draw("title", examples, [curve]), tmp_path / "figure.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert list(tmp_path.iterdir()) == [path]


def test_the_figure_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install fastadv\[demo\]"):
        plots.draw("title", {}, [])
