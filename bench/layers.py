"""A net's layers one by one: what serves each, how fast, and against what the core can do.

Times are those of the kernels' calls inside whole gradients of the compiled net, the fastest of
--rounds; GFLOP/s are direct-equivalent: of the products that the plain convolution or
linear layer has, whatever the kernel does in their place. The peak is that of one large product of
matrices in fastadv's own dense kernel, in the same run. The gate of `pgd` runs first.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastadv as fa
from bench import machine
from bench.nets import NETS
from bench.pgd import check_gradient, trained
from bench.store import Row, rows
from bench.timing import Times
from fastadv.engine import calls
from fastadv.engine.reference_winograd import PLAIN

YARDSTICK = "none"
_SIZE = 1024
_KERNELS = (
    "winograd_", "winograd_gradient_", "direct_", "fold_", "depthwise_", "depthwise_gradient_",
    "linear_",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `layers`."""
    parser.add_argument("--model", choices=NETS, default="resnet18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")


def run(args: argparse.Namespace) -> list[list[Row]]:
    """One table: a row a kernel and shape, the slowest first; "fastadv" is the whole gradient."""
    model, x, y = trained(args.model, 1, args.batch)
    fast = fa.compile(model, precision=args.precision)
    if args.precision == "float32":
        check_gradient(model, fast, x, y)
    peak = _peak(args.precision == "bfloat16")
    calls_of: dict[str, list[list[float]]] = defaultdict(list)
    products: dict[str, float] = {}
    whole = []
    _gradient(fast, x, y)  # it packs the weights
    for _ in range(args.rounds + 1):
        with _Clock() as clock:
            began = time.perf_counter()
            _gradient(fast, x, y)
            whole.append(time.perf_counter() - began)
        for name, (seconds, count) in clock.seen.items():
            calls_of[name].append(seconds)
            products[name] = count
    times = {"fastadv": Times(tuple(whole[1:]))}
    for name, rounds in sorted(calls_of.items(), key=lambda item: -min(map(sum, item[1]))):
        times[_title(name, rounds, products[name], peak)] = Times(tuple(map(sum, rounds[1:])))
    fixed: dict[str, str | int] = {
        "benchmark": "layers", "shape": "x".join(map(str, x.shape)), "dtype": args.precision,
        "norm": f"{args.model}, peak {peak / 1e9:.0f} GFLOP/s", "threads": args.threads,
        "working_set": machine.fits(sum(p.numel() * 4 for p in model.parameters())),
    }  # fmt: skip
    return [rows(times, {}, YARDSTICK, fixed)]


def _title(name: str, rounds: list[list[float]], products: float, peak: float) -> str:
    count, least = len(rounds[0]), min(map(sum, rounds))
    if not products:
        return f"{count} x {name}"
    speed = 2 * products * count / least
    return f"{count} x {name}: {speed / 1e9:.0f} GFLOP/s, {speed / peak:.0%}"


class _Clock:
    """While it is entered, the engine's ops are timed: seconds and products by name and shape."""

    def __enter__(self) -> _Clock:
        self.seen: dict[str, tuple[list[float], float]] = {}
        self.ops: Any = calls._ops
        calls._ops = self  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        calls._ops = self.ops

    def __getattr__(self, name: str) -> Any:
        op = getattr(self.ops, name)

        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            result = op(*args)
            seconds = time.perf_counter() - began
            first = next(a for a in args if isinstance(a, Tensor))
            key = f"{name.rstrip('_')} {_text(first)}"
            if name in _KERNELS:
                key += f" of {_given(name, args).shape[-1]}{_window(name, args)}"
            spent, _ = self.seen.setdefault(key, ([], _products(name, args)))
            spent.append(seconds)
            return result

        return timed


def _text(image: Tensor) -> str:
    return "x".join(map(str, image.shape))


def _given(name: str, args: tuple[Any, ...]) -> Tensor:
    """What a kernel reads: x, or the gradient of an output."""
    x: Tensor = args[1 if name == "fold_" or name.endswith("_gradient_") else 2]
    return x


def _window(name: str, args: tuple[Any, ...]) -> str:
    """The kernel's size and its stride, so that calls of one name have the same products."""
    if name == "linear_":
        return ""
    if name.startswith("winograd"):
        return ", stride 2" if args[7] != PLAIN else ""
    (height, width), stride = args[6:8]
    return f", {height}x{width}" + (f", stride {stride[0]}" if stride[0] > 1 else "")


def _products(name: str, args: tuple[Any, ...]) -> float:
    """A plain convolution's, of which a gradient's are as many."""
    if name not in _KERNELS:
        return 0.0
    y, x = args[0], _given(name, args)
    if name == "linear_":
        return float(y.numel() * x.shape[1])
    if name.startswith("winograd"):
        pixels = min(y.numel() // y.shape[3], x.numel() // x.shape[3])  # a gradient's y has more
        return float(9 * pixels * y.shape[3] * x.shape[3])
    if name.startswith("depthwise"):
        return float(math.prod(args[6]) * (x if name.endswith("_gradient_") else y).numel())
    if name == "direct_":
        return float(math.prod(args[6]) * y.numel() * x.shape[3])
    return float(math.prod(args[6]) * x.numel() * y.shape[3])


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(functional.cross_entropy(model(leaf), y), leaf)[0]


def _peak(half: bool) -> float:
    """Operations a second of a large product, the fastest of some."""
    a = torch.randn(_SIZE, _SIZE)
    packed = calls.linear_weights(torch.randn(_SIZE, _SIZE), False, half)
    least = math.inf
    for _ in range(7):
        began = time.perf_counter()
        calls.linear(a, packed, None, _SIZE)
        least = min(least, time.perf_counter() - began)
    return 2.0 * _SIZE**3 / least
