"""How a stack of linear layers is laid out for dense.py, and in which tiles it is walked through."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple


class Stack(NamedTuple):
    """A stack's layers in one buffer of weights and one of biases, padded with zeros.

    Layer l has a matrix (rows[l], widths[l]) at offsets[l]. The width, a power of two, is the side
    that stays in registers: the outputs of layers 0, 2, ..., the inputs of layers 1, 3, ...; the
    rows are walked through. Outputs stand at places[l] among the biases and the signs of a sample.
    """

    inputs: int
    classes: int
    rows: tuple[int, ...]
    widths: tuple[int, ...]
    offsets: tuple[int, ...]
    places: tuple[int, ...]
    outputs: int
    leaks: tuple[float, ...]  # 0: ReLU, 1: no activation


def _power(size: int) -> int:
    """The next power of two, at least 16: a tensor core's least."""
    return max(16, 1 << (size - 1).bit_length())


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of


def lay_out(sizes: tuple[int, ...], leaks: tuple[float, ...], piece: int, chunk: int) -> Stack:
    """sizes: inputs, each layer's outputs. The last layer's outputs are all taken at once."""
    rows, widths, outputs = [], [], []
    last = len(sizes) - 2
    for layer, (ins, outs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        if layer % 2 == 0:
            rows.append(_multiple(ins, piece if layer == 0 else chunk))
            widths.append(_power(outs))
            outputs.append(widths[-1])
        else:
            rows.append(_power(outs) if layer == last else _multiple(outs, chunk))
            widths.append(_power(ins))
            outputs.append(rows[-1])
    elements = [r * w for r, w in zip(rows, widths, strict=True)]
    return Stack(
        sizes[0],
        sizes[-1],
        tuple(rows),
        tuple(widths),
        tuple(accumulate(elements, initial=0))[:-1],
        tuple(accumulate(outputs, initial=0))[:-1],
        sum(outputs),
        leaks,
    )
