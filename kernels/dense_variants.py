"""What the launcher of dense_pgd compiles, as variants.py lists the others.

A stack's sizes are compiled in, so that no list is whole: here are every tile's own widths, on a
784-input classifier, and what else changes the code: l2, an even number of layers, odd sizes.
"""

from __future__ import annotations

from fastadv.kernels.dense import dense_pgd
from fastadv.kernels.dense_plan import TILES, Tile, lay_out
from fastadv.kernels.variant import Constant, Variant


def variant(
    sizes: tuple[int, ...], dtype: str, tile: Tile, norm: int = 0, head: int = 0
) -> Variant:
    """The kernel on a stack with ReLU between its layers."""
    data = ("x_adv", "seen", "x", "step_size", "radius", "box", "biases", "grads")
    signature = dict.fromkeys(data, "*fp32") | {"weights": f"*{dtype}", "kept": f"*{dtype}"}
    signature |= {"y": "*fp32" if head in (1, 4) else "*i64"}
    numbers = ("samples", "steps", "step_stride", "radius_stride", "zero")
    leaks = (0.0,) * (len(sizes) - 2) + (1.0,)
    constants: dict[str, Constant] = {
        "target": None, "STACK": lay_out(sizes, leaks, tile), "NORM": norm, "HEAD": head,
        "TARGETED": False, "ROWS": tile.rows, "PIECE": tile.piece, "CHUNK": tile.chunk,
        "STAGES": tile.stages, "PRODUCTS": "tf32",
    }  # fmt: skip
    if norm == 0:
        del signature["grads"]
        constants["grads"] = None
    name = "-".join(map(str, sizes))
    return Variant(
        f"dense.{dtype}.{name}.{('linf', 'l2')[norm]}.{tile.rows}" + f".head{head}" * bool(head),
        dense_pgd,
        signature | dict.fromkeys(numbers, "i32"),
        constants,
        tile.warps,
        tile.stages,
        divisible=tuple(signature),
    )


def variants() -> list[Variant]:
    """Every tile of the table, in linf."""
    found = []
    for (itemsize, width), tiles in TILES.items():
        dtype = {2: "bf16", 4: "fp32"}[itemsize]
        found += [variant((784, width, width, 10), dtype, tile) for tile in tiles]
    return found


def more() -> list[Variant]:
    """Harder ones: l2, heads, depths, odd sizes, the most classes."""
    wide, large, few = TILES[2, 256]
    return [
        variant((784, 256, 256, 10), "bf16", wide, norm=1),
        variant((785, 256, 300, 10), "bf16", large),
        variant((784, 64, 64, 10), "bf16", wide, head=4),
        variant((784, 256, 256, 10), "bf16", large, head=3),
        variant((785, 256, 256, 256, 128), "bf16", large),
        variant((785, 256, 256, 256, 128), "bf16", few, norm=1),
        variant((784, 512, 512, 512, 64), "bf16", TILES[2, 512][0]),
        variant((784, 256, 10), "fp32", TILES[4, 256][0], norm=1),
    ]
