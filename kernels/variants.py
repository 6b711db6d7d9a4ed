"""Every (kernel, dtype, tile) that a launcher would choose, as it would be compiled.

Ahead-of-time compilation, the machine-code table and the PTX emulator read this list, which takes
its tiles from the same place as the launchers, tiles.py. It needs Triton, but no driver.
"""

from __future__ import annotations

from fastadv.kernels import variants_batches, variants_heads, variants_steps
from fastadv.kernels.variant import Variant

__all__ = ["Variant", "variants"]


def variants() -> list[Variant]:
    """All of them."""
    parts = (variants_steps.steps, variants_batches.batches, variants_heads.heads)
    return [variant for part in parts for variant in part()]
