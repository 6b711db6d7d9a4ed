"""Which cases bench.table measures: layers of nets for 28, 32 and 224 pixels, and some between.

Batches are those that fa.compile's three compiles are chosen for. Grid points are few where the
kernels' speed hardly changes, and cases of more than _MOST products are left out: their seconds
follow from smaller ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastadv.engine.speeds import Case

BATCHES = (1, 8, 32)
_MOST = 4e8

# (window, stride): inputs, outputs, and pixels a side of the output.
_CONVOLUTIONS: dict[tuple[int, int], tuple[tuple[int, int, int], ...]] = {
    (3, 1): (
        (1, 16, 28), (1, 32, 28), (3, 16, 32), (3, 64, 32), (3, 64, 56), (4, 8, 4), (8, 8, 16),
        (8, 16, 7), (16, 16, 28), (16, 16, 14), (16, 16, 8), (16, 32, 14), (32, 32, 32),
        (32, 32, 14), (32, 32, 7), (32, 64, 16), (64, 64, 56), (64, 64, 32), (64, 64, 16),
        (64, 64, 8), (64, 128, 8), (128, 128, 28), (128, 128, 16), (128, 128, 8), (128, 128, 4),
        (128, 256, 8), (256, 256, 14), (256, 256, 8), (256, 256, 4), (256, 512, 4),
        (512, 512, 14), (512, 512, 7), (512, 512, 4), (512, 512, 2),
    ),
    (3, 2): (
        (3, 32, 16), (8, 16, 8), (16, 32, 16), (16, 32, 7), (32, 64, 16), (32, 64, 7),
        (64, 128, 16), (64, 128, 8), (128, 256, 14), (128, 256, 8), (256, 512, 7), (256, 512, 4),
        (256, 512, 2),
    ),
    (1, 1): (
        (4, 8, 4), (16, 64, 16), (64, 16, 16), (64, 64, 16), (64, 256, 14), (256, 64, 14),
        (128, 512, 4), (512, 512, 4), (256, 1024, 7), (1024, 256, 7),
    ),
    (1, 2): ((16, 32, 8), (64, 128, 16), (128, 256, 8), (256, 512, 4), (256, 512, 14)),
    (5, 1): (
        (1, 6, 28), (1, 20, 24), (3, 32, 32), (3, 64, 32), (6, 16, 10), (16, 32, 14), (20, 50, 8),
        (32, 32, 14), (32, 64, 14), (64, 64, 16), (64, 64, 8), (64, 192, 8),
    ),
    (5, 2): ((3, 32, 14), (16, 32, 7), (32, 64, 7), (64, 128, 7)),
    (7, 1): ((3, 32, 16), (16, 16, 14), (64, 64, 8)),
    (7, 2): ((3, 64, 16), (3, 64, 56), (32, 64, 8)),
    (4, 4): ((3, 96, 14), (3, 192, 8), (64, 128, 7)),
    (2, 2): ((32, 64, 8), (96, 192, 7)),
}  # fmt: skip
# Of each channel by itself: (window, stride): channels, pixels a side of the output.
_DEPTHWISE: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {
    (3, 1): ((16, 32), (64, 32), (32, 56), (128, 16), (144, 28), (256, 8), (480, 14), (960, 7)),
    (3, 2): ((64, 16), (96, 28), (128, 8), (576, 7)),
    (5, 1): ((40, 28), (120, 14), (672, 7)),
    (5, 2): ((64, 14), (240, 7)),
    (7, 1): ((32, 16), (96, 28), (96, 8), (384, 14), (768, 7)),
}
# A linear layer's inputs and outputs; its rows are tokens.
_LINEAR = (
    (16, 16), (64, 10), (512, 10), (64, 64), (784, 512), (192, 192), (192, 768), (768, 192),
    (512, 512), (512, 1000), (768, 3072),
)  # fmt: skip
_ROWS = (1, 8, 64, 512, 2048)
_ATTENTION = ((12, 4, 64), (64, 3, 64), (64, 3, 17), (64, 6, 197))  # a head's width, heads, tokens
# (window, stride): channels, pixels a side of the output.
_POOLS: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {
    (2, 2): ((6, 14), (16, 14), (20, 12), (64, 16), (64, 8), (512, 2)),
    (3, 2): ((16, 14), (64, 28)),
}
_NORMS = ((8, 8), (16, 32), (64, 32), (64, 8), (256, 8), (512, 4))  # channels, pixels
_WIDTHS = (48, 192, 768)  # of a layer norm


def cases() -> list[Case]:
    """All of them, in the table's order."""
    return [case for case in _all() if case.work("") <= _MOST]


def _all() -> Iterator[Case]:
    for op in ("convolution", "gradient"):
        for form, layers in _CONVOLUTIONS.items():
            for inputs, outputs, pixels in layers:
                for batch in BATCHES:
                    yield Case(op, *form, inputs, outputs, pixels, pixels, batch)
    for op in ("depthwise", "depthwise gradient"):
        for form, images in _DEPTHWISE.items():
            for channels, pixels in images:
                for batch in BATCHES:
                    yield Case(op, *form, channels, channels, pixels, pixels, batch)
    for inputs, outputs, pixels in _CONVOLUTIONS[3, 1]:
        for batch in BATCHES:
            yield Case("weight gradient", 3, 1, inputs, outputs, pixels, pixels, batch)
    for form, layers in _CONVOLUTIONS.items():
        for inputs, outputs in sorted({layer[:2] for layer in layers}):
            yield Case("packing", *form, inputs, outputs, 1, 1, 1)
    for op in ("linear", "linear gelu", "linear times"):
        for inputs, outputs in _LINEAR if op == "linear" else _LINEAR[5:8]:
            for rows in _ROWS:
                yield Case(op, 1, 1, inputs, outputs, 1, 1, rows)
    for op in ("attention", "attention gradient"):
        for width, heads, tokens in _ATTENTION:
            for batch in BATCHES:
                yield Case(op, 1, 1, width, heads, tokens, tokens, batch)
    for op in ("pool", "pool gradient"):
        for form, images in _POOLS.items():
            for channels, pixels in images:
                for batch in BATCHES:
                    yield Case(op, *form, channels, channels, pixels, pixels, batch)
    for op in ("norm", "norm gradient"):
        for channels, pixels in _NORMS:
            for batch in BATCHES:
                yield Case(op, 1, 1, channels, channels, pixels, pixels, batch)
    for op in ("layer norm", "layer norm gradient"):
        for width in _WIDTHS:
            for rows in _ROWS[2:]:
                yield Case(op, 1, 1, width, width, 1, 1, rows)
