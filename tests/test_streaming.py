"""No method keeps a loader's batches: data may be larger than memory; and each opens it once."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastadv as fa
from fastadv.evaluation import accuracy_by_radius

COUNT, SIZE, CLASSES = 7, 4, 3
BALL = fa.Linf(0.1)
universal, defence = fa.universal, fa.defence


class Stream:
    """Batches (x, y) that are made when they are asked for; how many were alive at once."""

    def __init__(self, maps: bool = False, labels: bool = True) -> None:
        self.maps, self.labels = maps, labels
        self.alive, self.most, self.opened, self.given = 0, 0, 0, 0

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        self.opened += 1
        return self._batches()

    def __len__(self) -> int:
        return COUNT

    def _batches(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for k in range(COUNT):
            memory = np.random.default_rng(k).random((SIZE, 3, 6, 6), dtype=np.float32)
            weakref.finalize(memory, self._died)  # with the last tensor that shares it
            self.alive, self.given = self.alive + 1, self.given + 1
            self.most = max(self.most, self.alive)
            shape = (SIZE, 6, 6) if self.maps else (SIZE,)
            y = torch.full(shape, k % CLASSES)
            yield (torch.from_numpy(memory), y) if self.labels else torch.from_numpy(memory)
            del memory

    def _died(self) -> None:
        self.alive -= 1


def net(maps: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = [nn.Conv2d(4, CLASSES, 1)] if maps else [nn.Flatten(), nn.Linear(144, CLASSES)]
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *head).eval()


def defended(model: nn.Module) -> defence.Defended:
    detector = defence.Detector((3, 6, 6))
    detector.fitted.fill_(True)
    return defence.Defended(model, nn.Identity(), detector)


UAP = fa.Perturbation(torch.full((3, 6, 6), 0.05), BALL)
SCENE = torch.arange(36).view(6, 6) % CLASSES
CLASSIFIER: dict[str, Callable[[nn.Module, Stream], object]] = {
    "gradient": lambda f, s: universal.gradient(fa.bim(BALL), f, s, 3),
    "gradient, layers": lambda f, s: universal.gradient(fa.pgd(BALL), f, s, 2, layers=["0"]),
    "moosavi": lambda f, s: universal.moosavi(BALL, f, s, passes=2, fooling_rate=1.0),
    "averaged": lambda f, s: universal.averaged(BALL, f, s, passes=2, fooling_rate=1.0),
    "validation": lambda f, s: universal.moosavi(BALL, f, [UAP.delta[None]], validation=s),
    "gd_uap": lambda f, s: universal.gd_uap(BALL, f, (3, 6, 6), steps=9, validation=s),
    "measure": lambda f, s: universal.measure(UAP, f, s),
    "evaluate": lambda f, s: fa.evaluate(f, s, [fa.bim(BALL, steps=2), UAP]),
    "accuracy_by_radius": lambda f, s: accuracy_by_radius(f, s, fa.bim(BALL), [0.1, 0.2]),
    "defence": lambda f, s: defence.Training(defence.Rectifier(3, 4), f, [UAP]).run(s, epochs=2),
    "defence's rates": lambda f, s: defence.measure(defended(f), [UAP], s),
}
SEGMENTER: dict[str, Callable[[nn.Module, Stream], object]] = {
    "static": lambda f, s: universal.segmentation(BALL, f, s, target=SCENE, steps=3),
    "dynamic": lambda f, s: universal.segmentation(BALL, f, s, target=universal.Remove(1), steps=2),
    "two batches": lambda f, s: universal.segmentation(BALL, f, s, batches=2, steps=9),
    "measure_pixels": lambda f, s: universal.measure_pixels(UAP, f, s, target=SCENE),
    "gradient of maps": lambda f, s: universal.gradient(fa.bim(BALL), f, s, 2),
    "evaluate maps": lambda f, s: fa.evaluate(f, s, fa.bim(BALL, steps=2)),
}


@pytest.mark.parametrize("name", [*CLASSIFIER, *SEGMENTER])
def test_at_most_two_batches_are_alive(name: str) -> None:
    """The one in use, and the next, which a loop takes before it lets go."""
    maps = name in SEGMENTER
    stream = Stream(maps)
    (CLASSIFIER | SEGMENTER)[name](net(maps), stream)
    assert stream.given >= COUNT
    assert stream.most <= 2
    # Each pass opens it once: of a DataLoader with workers a second iterator starts them again.
    assert stream.opened * COUNT == stream.given or name == "two batches"


def test_the_stream_counts() -> None:
    stream = Stream()
    kept = list(stream)
    assert (stream.most, stream.alive) == (COUNT, COUNT)
    del kept
    assert stream.alive == 0
    views = [x[:1].detach() for x, _ in stream]
    assert stream.alive == len(views)  # a view keeps it all
