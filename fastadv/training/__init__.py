"""Adversarial training: losses for anyone's loop. One file a method."""

from fastadv.training.madry import Madry
from fastadv.training.universal import Universal

__all__ = ["Madry", "Universal"]
