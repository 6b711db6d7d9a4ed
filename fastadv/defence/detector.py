"""Which images were perturbed, from what the rectifier changes in them; and the whole defence."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fastadv import _checks
from fastadv._bar import along
from fastadv.defence.rectifier import choose, perturbed
from fastadv.defence.synthetic import require_perturbations
from fastadv.evaluation.accuracy import device_of
from fastadv.model import Model, crafting
from fastadv.perturbation import Perturbation
from fastadv.reference import rows
from fastadv.universal.batches import Batch, require_loader, samples

_FORMAT = "fastadv.detector.1"
FLOOR = 1e-4  # added to |DCT| before its logarithm: below it a coefficient says nothing


def dct2(x: Tensor) -> Tensor:  # (..., H, W)
    """The orthonormal 2-D DCT-II over the last two dimensions: scipy.fft.dctn(norm="ortho").

    Raises TypeError unless x is floating, ValueError for fewer dimensions.
    """
    if _checks.data(x, "x").dim() < 2:
        raise ValueError(f"`x` must be (..., H, W), got {_checks.text(x.shape)}")
    matrix = _cosines if type(x) is Tensor else _cosines.__wrapped__  # a fake one is not to be kept
    height, width = (matrix(size, x.dtype, x.device) for size in x.shape[-2:])
    return height @ x @ width.T


@lru_cache(maxsize=16)
def _cosines(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:  # (size, size)
    with torch.inference_mode(False):
        k = torch.arange(size, dtype=torch.float64, device=device)
        matrix = torch.cos(math.pi / size * (k + 0.5) * k[:, None]) * math.sqrt(2 / size)
        matrix[0] /= math.sqrt(2)
        return matrix.to(dtype)


class Detector(nn.Module):
    """A linear SVM on log |DCT| of the rectifier's output minus its input (Akhtar et al.
    1711.05929), each channel by itself.

    shape: of one image, (C, H, W). Its numbers are buffers: they go where .to() sends them and
    stand in the state_dict. Only `fit` needs scikit-learn.
    """

    weight: Tensor
    bias: Tensor
    fitted: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(int(size) for size in shape)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"`shape` must be (C, H, W), got {tuple(shape)}")
        self.register_buffer("weight", torch.zeros(self.shape, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def features(self, residual: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W), float64
        """log(|DCT| + 1e-4) of residual, the rectifier's output minus its input."""
        if residual.shape[1:] != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(
                f"`residual` must be (N, {wanted}), got {_checks.text(residual.shape)}"
            )
        return (dct2(residual.double()).abs() + FLOOR).log()

    def score(self, residual: Tensor) -> Tensor:  # (N, C, H, W) -> (N,)
        """Above 0 for what was perturbed. Raises RuntimeError before `fit` or `load`."""
        if not bool(self.fitted):
            raise RuntimeError("the detector has not been fitted: call fit, or load a fitted one")
        weight, bias = self.weight.double(), self.bias.double()
        return (self.features(residual) * weight).flatten(1).sum(1) + bias

    def predict(self, residual: Tensor) -> Tensor:  # (N, C, H, W) -> (N,) bool
        """Which of the images were perturbed."""
        return self.score(residual) > 0

    def forward(self, residual: Tensor) -> Tensor:
        return self.predict(residual)

    @torch.inference_mode(False)
    def fit(
        self,
        rectifier: nn.Module,
        loader: Iterable[Batch],
        perturbations: Sequence[Perturbation],
        *,
        penalty: float = 0.01,
        seed: int = 0,
        progress: bool = False,
    ) -> Detector:
        """Fits scikit-learn's LinearSVC to each image of `loader` twice, clean and with one of
        `perturbations`, drawn by `seed`, and gives itself.

        penalty: LinearSVC's C, on standardised features. All features are held in memory: 16 bytes
        a value of x. Raises ModuleNotFoundError without scikit-learn, ValueError for no samples.
        """
        svm, scaler = _sklearn()
        require_loader(loader)
        chosen, generator = require_perturbations(perturbations), torch.Generator()
        generator.manual_seed(seed)
        found: list[Tensor] = []
        with torch.no_grad(), crafting(rectifier, "eval"):
            for x, _ in samples(
                along(loader, disable=not progress, desc="detector"), chosen[0].ball
            ):
                x = x.to(device_of(rectifier) or x.device)
                kinds = choose(len(x), len(chosen), 0.0, generator)
                both = torch.cat([x, perturbed(x, chosen, kinds)])
                values = self.features(rectifier(both) - both).flatten(1).cpu()
                found.append(values.reshape(2, len(x), -1))
        both = torch.cat(found, 1)  # (2, N, features)
        label = torch.arange(2).repeat_interleave(both.shape[1]).numpy()
        scale = scaler().fit(both.flatten(0, 1).numpy())
        inputs = scale.transform(both.flatten(0, 1).numpy())
        fit = svm(C=penalty, dual="auto", random_state=seed, max_iter=10_000).fit(inputs, label)
        weight = torch.as_tensor(fit.coef_[0] / scale.scale_)
        self.weight.copy_(weight.reshape(self.shape))
        self.bias.fill_(float(fit.intercept_[0]) - float(weight @ torch.as_tensor(scale.mean_)))
        self.fitted.fill_(True)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file; an existing one is replaced only once the new one is whole."""
        if not bool(self.fitted):
            raise RuntimeError("the detector has not been fitted: there is nothing to save")
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        tensors = {"weight": self.weight.cpu().contiguous(), "bias": self.bias.cpu()}
        try:
            save_file(tensors, partial, {"format": _FORMAT})
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Detector:
        """Reads what `save` wrote, onto the CPU. Raises ValueError for any other file."""
        name = os.fspath(path)
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("format") != _FORMAT:
                    raise ValueError(f"`path` must be a saved Detector, got {name!r}")
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        except SafetensorError as error:
            raise ValueError(f"`path` must be a safetensors file, got {name!r}: {error}") from error
        detector = cls(weight.shape)
        detector.weight.copy_(weight)
        detector.bias.copy_(bias)
        detector.fitted.fill_(True)
        return detector


class Defended(nn.Module):
    """model(rectifier(x)) where the detector finds a perturbation in x, else model(x): x
    (N, C, H, W) to the model's logits, for any attack or evaluation."""

    def __init__(self, model: Model, rectifier: nn.Module, detector: Detector) -> None:
        super().__init__()
        self.model, self.rectifier, self.detector = model, rectifier, detector

    def rectify(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, C, H, W), (N,) bool
        """(the rectifier's output for every image, which of them are found perturbed)."""
        rectified = self.rectifier(x)
        return rectified, self.detector.predict((rectified - x).detach())

    def forward(self, x: Tensor) -> Tensor:
        rectified, found = self.rectify(x)
        return self.model(torch.where(rows(found, x), rectified, x))


def _sklearn() -> tuple[Any, Any]:
    try:
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "fitting a Detector needs scikit-learn: pip install fastadv[defence]", name=error.name
        ) from error
    return LinearSVC, StandardScaler
