"""scikit-learn's digits, a small net and its training: for the demo and bench/agreement.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from fastadv.cli.arguments import Mistake

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, x, y) -> ()


@dataclass(frozen=True)
class Digits:
    """1,797 images (N, 1, 8, 8) in [0, 1], of which a fifth is for the test."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor

    def batches(self, size: int = 128, seed: int = 0) -> DataLoader[tuple[Tensor, ...]]:
        """The training set, shuffled."""
        order = torch.Generator().manual_seed(seed)
        data = TensorDataset(self.x, self.y)
        return DataLoader(data, batch_size=size, shuffle=True, generator=order)

    def test_batches(self, size: int = 128) -> list[tuple[Tensor, Tensor]]:
        """The test set, in order."""
        starts = range(0, len(self.y_test), size)
        return [(self.x_test[k : k + size], self.y_test[k : k + size]) for k in starts]


def load(seed: int = 0) -> Digits:
    """The digits, shuffled and split by `seed`."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise Mistake("the digits come with scikit-learn: pip install fastadv[demo]") from error
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(seed))
    x = torch.as_tensor(bunch.images / 16, dtype=torch.float32)[order, None]
    y = torch.as_tensor(bunch.target)[order]
    return Digits(x[360:], y[360:], x[:360], y[:360])


def make_model(seed: int = 0) -> nn.Module:
    """Two convolutions and two linear layers: 39,000 parameters, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip


def train(
    model: nn.Module, digits: Digits, loss: Loss, *, epochs: int, seed: int = 0, name: str = "train"
) -> nn.Module:
    """Adam, the learning rate up to 5e-3 and down again. loss(model, x, y): fa.training's, say."""
    batches = digits.batches(seed=seed)
    optimizer = torch.optim.Adam(model.parameters())
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    with tqdm(total=steps, desc=name, unit=" batches", disable=None, leave=False) as bar:
        for x, y in (batch for _ in range(epochs) for batch in batches):
            value = loss(model, x, y)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{value.item():.3f}", refresh=False)
    return model.eval()
