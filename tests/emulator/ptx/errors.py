"""The one exception of the emulator."""

from __future__ import annotations


class PtxError(Exception):
    """What a program does that it must not, or what the emulator does not know."""
