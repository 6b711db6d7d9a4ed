"""A network before a frozen classifier that takes universal perturbations out of its input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from fastadv import _checks
from fastadv.defence.synthetic import require_perturbations
from fastadv.model import Model, crafting
from fastadv.perturbation import Perturbation
from fastadv.problem import NO_GRADIENT, output
from fastadv.universal.batches import Batch, require_loader, samples
from fastadv.universal.rates import predictions


class Block(nn.Module):
    """x + conv(relu(conv(relu(x)))), 3x3: (N, width, H, W) to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(F.relu(x))))
        return out


class Rectifier(nn.Module):
    """The Perturbation Rectifying Network (Akhtar et al. 1711.05929): images
    (N, channels, H, W) to rectified images of the same shape, through `blocks` residual blocks.

    What it gives is x plus what its last convolution says, which begins at 0: before training, x
    itself. It has no batch norm, so that an image's rectification depends on neither its batch nor
    a mode. seed: of its weights; torch's random state is left alone.
    """

    def __init__(self, channels: int, width: int = 32, blocks: int = 5, seed: int = 0) -> None:
        for name, value in (("channels", channels), ("width", width), ("blocks", blocks)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        super().__init__()
        self.channels = channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.enter = nn.Conv2d(channels, width, 3, padding=1)
            self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
            self.leave = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"`x` must be (N, {self.channels}, H, W), got {_checks.text(x.shape)}")
        out: Tensor = x + self.leave(F.relu(self.blocks(self.enter(x))))
        return out


class Training:
    """The rectifier learns to give each image, clean or perturbed, the label that the classifier
    predicts on the clean one: cross-entropy, Adam (Akhtar et al. 1711.05929).

    perturbations: to train on, real and synthetic; keep others for the test (`split`). clean: the
    share of images that stay clean. optimizer: of the rectifier's parameters; None is Adam(lr).
    seed: of which image gets which perturbation; it and the epoch decide.

    The model runs in eval mode and stays as it is: parameters, their gradients, buffers, modes. Its
    parameters and the rectifier's must be on one device, to which the images are moved.

    `state_dict` holds all that a run needs to go on, in the middle of an epoch too, to the result
    that it would have had. The epochs that are done are then read again, not computed: a loader
    that shuffles, made anew and seeded as it was, gives the next one the order that it had.
    """

    def __init__(
        self,
        rectifier: nn.Module,
        model: Model,
        perturbations: Sequence[Perturbation],
        *,
        clean: float = 0.5,
        lr: float = 1e-3,
        optimizer: torch.optim.Optimizer | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= clean < 1:
            raise ValueError(f"`clean` must be in [0, 1), got {clean}")
        self.perturbations = require_perturbations(perturbations)
        self.rectifier, self.model, self.clean, self.seed = rectifier, model, clean, seed
        self._trained = [p for p in rectifier.parameters() if p.requires_grad]
        if not self._trained:
            raise ValueError("`rectifier` must have parameters that require grad, got none")
        self.optimizer = torch.optim.Adam(self._trained, lr) if optimizer is None else optimizer
        self.epochs, self.batches = 0, 0  # that are done, the latter of the epoch under way
        self._unread = 0  # epochs that another run did

    def run(self, loader: Iterable[Batch], epochs: int, progress: bool = False) -> nn.Module:
        """Trains until `epochs` in all are done, and gives the rectifier, in eval mode.

        loader: batches (x, y), or x alone; y plays no part. Raises ValueError for a loader without
        samples, a model that gives NaN or no gradient, and where a perturbation would on x.
        """
        if epochs < 1:
            raise ValueError(f"`epochs` must be at least 1, got {epochs}")
        require_loader(loader)
        while self._unread:
            for _ in loader:
                pass
            self._unread -= 1
        while self.epochs < epochs:
            title = f"rectifier {self.epochs + 1}/{epochs}"
            with tqdm(disable=not progress, desc=title, unit=" batches") as bar:
                for loss in self._epoch(loader):
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                    bar.update()
        return self.rectifier.eval()

    def state_dict(self) -> dict[str, Any]:
        """The rectifier, the optimizer and how far they are: for torch.save."""
        return {
            "rectifier": self.rectifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epochs": self.epochs,
            "batches": self.batches,
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there. Raises ValueError for a state of another seed."""
        if state["seed"] != self.seed:
            raise ValueError(f"`state` must be of seed {self.seed}, got {state['seed']}")
        self.rectifier.load_state_dict(state["rectifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epochs, self.batches = state["epochs"], state["batches"]
        self._unread = self.epochs

    @torch.inference_mode(False)
    def _epoch(self, loader: Iterable[Batch]) -> Iterator[float]:
        """The losses of the batches that are left of an epoch, one step each."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epochs)
        bounds, again = self.perturbations[0].ball, self.epochs > 0
        for k, (x, _) in enumerate(samples(loader, bounds, again=again)):
            chosen = choose(len(x), len(self.perturbations), self.clean, generator)
            if k >= self.batches:
                loss = self._step(x.to(self._trained[0].device), chosen)
                self.batches = k + 1
                yield loss
        self.epochs, self.batches = self.epochs + 1, 0

    def _step(self, x: Tensor, chosen: Tensor) -> float:
        self.rectifier.train()
        with crafting(self.model, "eval"):
            with torch.no_grad():
                given = perturbed(x, self.perturbations, chosen)
                label = predictions(self.model, x)
            with torch.enable_grad():
                rectified = self.rectifier(given)
                _checks.like(rectified.detach(), "rectifier(x)", x, "x")
                loss = F.cross_entropy(output(self.model, rectified), label)
                if not loss.requires_grad:
                    raise ValueError(NO_GRADIENT)
                # By the rectifier's parameters alone: the model's get no gradient.
                grads = torch.autograd.grad(loss, self._trained, allow_unused=True)
        value = float(loss.detach())
        if value != value:
            raise ValueError("`model(rectifier(x))` must be numbers, got NaN")
        for parameter, grad in zip(self._trained, grads, strict=True):
            parameter.grad = grad
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value


def choose(count: int, kinds: int, clean: float, generator: torch.Generator) -> Tensor:  # (count,)
    """For each image which perturbation it gets, or -1 for none, with probability `clean`."""
    kind = torch.randint(kinds, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < clean, -1, kind)


def perturbed(x: Tensor, perturbations: Sequence[Perturbation], chosen: Tensor) -> Tensor:
    """x (N, *shape), each image with the perturbation of its number in chosen (N,), or as it is."""
    shape = perturbations[0].delta.shape
    if x.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"`x` must be (N, {wanted}), got {_checks.text(x.shape)}")
    out, at = x.clone(), chosen.to(x.device)
    for k in sorted(set(chosen.tolist())):
        if k >= 0:
            out[at == k] = perturbations[k].apply(x[at == k])
    return out
