"""Which compile serves a forward: what a graph depends on, and what the report calls it."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from fastadv.engine import inductor, speeds
from fastadv.engine.halves import autocasts
from fastadv.engine.loans import modes_of

_ANY = 1 << 40
_BATCHES = ((1, 1), (2, 15), (16, _ANY))  # one compile each
_USUAL = (1, 8, 32)  # for which its kernels are chosen: whichever came first, they are the same
# Sizes from which a compile may be worth what it costs: none of a class is larger than twice that
# of the one before, but for those that are so large that the rest does not matter.
_LEAST = ((1,), (2, 4, 8), (16, 32, 64, 128, 256))
Key = tuple[Hashable, ...]


def key_of(
    module: nn.Module,
    x: Tensor,
    static_batch: bool,
    size: int | None = None,
    grad: tuple[bool, bool, bool] | None = None,
) -> Key:
    """What a graph depends on; of the batch's size only which of _BATCHES it is in, and of the
    number of threads only which of the table's counts it is, since that chooses the kernels."""
    size = x.size(0) if size is None else size
    number = size if static_batch else batch_class(size)
    if grad is None:
        grad = torch.is_grad_enabled(), x.requires_grad, torch.is_inference_mode_enabled()
    modes, cast, threads = modes_of(module), autocasts(), speeds.threads()
    return x.stride()[1:], number, x.shape[1:], x.dtype, x.device, modes, cast, grad, threads


def case_of(module: nn.Module, x: Tensor) -> Hashable:
    """All that a key without its layout depends on, x on the CPU: it takes 9 us in an attack's
    loop, a key 20."""
    return (
        x.shape, x.dtype, x.requires_grad, torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.get_num_threads(), autocasts(), modes_of(module),
    )  # fmt: skip


def without_layout(key: Key) -> Key:
    return key[1:]


def batch_class(size: int) -> int:
    return 0 if size == 1 else 1 if size < 16 else 2


def usual(size: int, static_batch: bool) -> int:
    """The batch that the kernels of a compile are chosen for."""
    return size if static_batch else _USUAL[batch_class(size)]


def sizes(size: int, static_batch: bool) -> tuple[int, ...]:
    """The batches of a compile's from which it may be worth what it costs."""
    return (size,) if static_batch else _LEAST[batch_class(size)]


def marked(x: Tensor, static_batch: bool) -> Tensor:
    """x, of which only the batch's size may differ in a compile."""
    x = torch.ops.aten.alias(x)  # a view gives one sample strides that are not channels last
    least, most = _BATCHES[batch_class(len(x))]
    if inductor.serves(x):
        return x  # inductor compiles the first size by itself, and a second one for any
    if not static_batch and most != 1 and x.dim():
        torch._dynamo.mark_dynamic(x, 0, min=least, max=most)
    return x


def name_of(module: nn.Module, x: Tensor, static_batch: bool, graphs: int) -> str:
    """What the report calls the compile that serves x."""
    least, most = (len(x), len(x)) if static_batch else _BATCHES[batch_class(len(x))]
    upper = "any" if most == _ANY else str(most)
    batch = f"{least}" if least == most else f"{least} to {upper}"
    mode = "train" if module.training else "eval"
    grad = "with" if x.requires_grad else "without"
    shape = "x".join(str(size) for size in x.shape[1:])
    return f"batch {batch} of {shape}, {mode} mode, {grad} gradient, {graphs} graph(s)"
