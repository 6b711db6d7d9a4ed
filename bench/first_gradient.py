"""The first gradient of this process: bench.warmup starts it, a process for each."""

from __future__ import annotations

import sys
import time

import torch

from bench import fresh
from bench.nets import NETS, image_shape


def measured(model: str, batch: int, threads: int, compiled: bool) -> dict[str, float]:
    """Seconds of each part, of the whole, and of a second gradient; and the first one's error."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = NETS[model]().eval()
    x, y = torch.rand(batch, *image_shape(model)), torch.arange(batch) % 10
    if "torch._dynamo" in sys.modules:
        raise RuntimeError("Dynamo was imported before the clock started")
    began, busy = time.perf_counter(), time.process_time()
    import fastadv as fa

    imported = time.perf_counter()
    target = fa.compile(net) if compiled else net
    parts = {"import fastadv": imported - began, "fa.compile": time.perf_counter() - imported}
    _, forward, backward = _gradient(target, x, y)
    first = {"forward": forward, "backward": backward, "whole": time.perf_counter() - began}
    first["processor time"] = time.process_time() - busy  # less than the whole: neighbours
    grad, *again = _gradient(target, x, y)
    return parts | first | {"second": sum(again), "error": _error(net, x, y, grad)}


def _gradient(
    model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, float, float]:
    began = time.perf_counter()
    leaf = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(leaf), y, reduction="sum")
    middle = time.perf_counter()
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad, middle - began, time.perf_counter() - middle


def _error(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, grad: torch.Tensor) -> float:
    from bench import flips

    exact = flips.gradient(model.double(), x.double(), y)[1]
    return float(flips.error(grad, exact).median())


if __name__ == "__main__":
    fresh.answer(measured)
