"""Activations as torch calls them, and as the engine's kernels are told of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastadv.engine.reference_activations import NAMES, Activation


def of(name: str, *numbers: float) -> Activation:
    return (NAMES.index(name), *numbers)


def softplus(z: Tensor) -> Tensor:
    return F.softplus(z, 2.0, 3.0)


ALL: dict[str, tuple[Callable[[Tensor], Tensor], Activation]] = {
    "relu": (torch.relu, of("relu")),
    "leaky_relu": (F.leaky_relu, of("leaky_relu", 0.01)),
    "leaky_relu -2": (lambda z: F.leaky_relu(z, -2.0), of("leaky_relu", -2.0)),
    "relu6": (F.relu6, of("hardtanh", 0.0, 6.0)),
    "hardtanh": (lambda z: F.hardtanh(z, -0.5, 1.5), of("hardtanh", -0.5, 1.5)),
    "gelu": (F.gelu, of("gelu")),
    "gelu tanh": (lambda z: F.gelu(z, approximate="tanh"), of("gelu (tanh)")),
    "tanh": (torch.tanh, of("tanh")),
    "sigmoid": (torch.sigmoid, of("sigmoid")),
    "silu": (F.silu, of("silu")),
    "mish": (F.mish, of("mish")),
    "elu": (F.elu, of("elu", 1.0, 1.0, 1.0)),
    "selu": (F.selu, of("elu", 1.6732632423543772, 1.0507009873554805, 1.0)),
    "celu": (lambda z: F.celu(z, 0.5), of("elu", 0.5, 1.0, 2.0)),
    "softplus": (F.softplus, of("softplus", 1.0, 20.0)),
    "softplus 2": (softplus, of("softplus", 2.0, 3.0)),
    "hardsigmoid": (F.hardsigmoid, of("hardsigmoid")),
    "hardswish": (F.hardswish, of("hardswish")),
}
each = pytest.mark.parametrize("name", ALL)
