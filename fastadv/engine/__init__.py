"""The engine: models compiled for attacks, forward and input gradient on kernels of our own."""

from fastadv.engine import ops as ops  # declares the engine's ops
from fastadv.engine.capture import Compiled
from fastadv.engine.entry import compile
from fastadv.engine.report import Report, Row

__all__ = ["Compiled", "Report", "Row", "compile"]
