"""Universal perturbations: one delta for all inputs. One file an algorithm."""

from fastadv.universal.gradient import gradient

__all__ = ["gradient"]
