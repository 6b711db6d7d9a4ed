"""Segmentation's verdicts and reports: confusion, pixel accuracy and mIoU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import seeded
from torch import Tensor, nn

import fastadv as fa
from fastadv.confusion import Confusion

BALL = fa.Linf(0.1, None)


def scenes() -> tuple[nn.Module, Tensor, Tensor]:
    """A 1x1 convolution, x (6, 3, 5, 4), and its predictions, some of them spoilt or void."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Conv2d(3, 4, 1).double()
    x = torch.randn(6, 3, 5, 4, generator=seeded(2), dtype=torch.float64)
    y = net(x).argmax(1)
    y[:, 0] = (y[:, 0] + 1) % 4
    y[:, 1] = 255
    return net, x, y


def by_hand(prediction: Tensor, y: Tensor, classes: int) -> tuple[float, list[float | None]]:
    """(pixel accuracy, IoU by class), pixel by pixel."""
    both = zip(y.flatten().tolist(), prediction.flatten().tolist(), strict=True)
    pairs = [(label, said) for label, said in both if label != 255]
    ious: list[float | None] = []
    for c in range(classes):
        union = sum(c in pair for pair in pairs)
        ious.append(sum(pair == (c, c) for pair in pairs) / union if union else None)
    return sum(a == b for a, b in pairs) / len(pairs), ious


def test_confusion_by_hand() -> None:
    g = seeded(3)
    prediction, y = (torch.randint(0, 5, (3, 6, 7), generator=g) for _ in range(2))
    y[y == 3] = 255
    prediction[prediction == 3] = 4  # class 3 nowhere
    got = Confusion.of(prediction, y.to(torch.uint8), y != 255, 5)
    accuracy, ious = by_hand(prediction, y, 5)
    assert got.pixel_accuracy == accuracy
    assert got.iou == tuple(ious)
    assert ious[3] is None
    there = [iou for iou in ious if iou is not None]
    assert got.miou == pytest.approx(sum(there) / 4)
    assert torch.equal((got + got).counts, 2 * got.counts)
    nothing = Confusion.of(prediction, y, y > 300, 5)
    assert nothing.pixel_accuracy is None
    assert nothing.miou is None


def test_verdict() -> None:
    net, x, y = scenes()
    x_adv = fa.bim(BALL)(net, x, y)
    verdict = fa.verify(net, x, x_adv, y, BALL)
    accuracy, ious = by_hand(net(x_adv).argmax(1), y, 4)
    assert verdict.confusion is not None
    assert verdict.confusion.pixel_accuracy == accuracy
    assert verdict.confusion.iou == tuple(ious)
    x_adv[2] += 1
    left = fa.verify(net, x, x_adv, y, BALL).confusion
    assert left is not None
    assert int(left.counts.sum()) == int((y != 255).sum()) * 5 // 6  # the feasible ones


def test_report(tmp_path: Path) -> None:
    net, x, y = scenes()
    attack = fa.bim(BALL)
    uap = fa.Perturbation(torch.full((3, 5, 4), 0.05).double(), BALL)
    far = fa.Perturbation(torch.ones(3, 5, 4).double(), BALL)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    report = fa.evaluate(net, batches, {"bim": attack, "uap": uap, "far": far})
    clean, ious = by_hand(net(x).argmax(1), y, 4)
    assert report.clean_pixels is not None
    assert report.clean_pixels.accuracy == clean == 0.75
    assert report.clean_pixels.iou == tuple(ious)
    assert report.clean_accuracy == 1  # by images: less than half of their pixels are wrong
    rows = {row.name: row for row in report.attacks}
    pixels = rows["bim"].pixels
    assert pixels is not None
    assert (pixels.accuracy, list(pixels.iou)) == by_hand(net(attack(net, x, y)).argmax(1), y, 4)
    assert pixels.accuracy is not None
    assert pixels.accuracy < clean
    assert rows["far"].infeasible == 6
    assert rows["far"].pixels == report.clean_pixels  # x in its place
    report.save(tmp_path / "report.json")
    plain = json.loads((tmp_path / "report.json").read_text())
    assert plain["clean_pixels"]["accuracy"] == clean
    assert plain["attacks"][0]["pixels"]["miou"] == pixels.miou
    assert "mIoU" in str(report)


def test_another_void_label() -> None:
    net, x, y = scenes()
    y[y == 255] = 4
    uap = fa.Perturbation(torch.zeros(3, 5, 4).double(), BALL)
    report = fa.evaluate(net, [(x, y)], uap, objective=fa.pixels(ignore_index=4))
    assert report.clean_pixels is not None
    assert report.clean_pixels.accuracy == 0.75
    with pytest.raises(ValueError, match=r"in \[0, 4\) or 255 \(ignored\), got 4"):
        fa.evaluate(net, [(x, y)], uap)


def test_classification_stays_as_it_was() -> None:
    net, x, y = scenes()
    flat = nn.Sequential(net, nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    report = fa.evaluate(flat, [(x, y[:, 2, 0])], fa.bim(BALL))
    plain = report.to_dict()
    assert "clean_pixels" not in plain
    assert "pixels" not in plain["attacks"][0]
    assert "mIoU" not in str(report)
    assert fa.verify(flat, x, x, y[:, 2, 0], BALL).confusion is None
