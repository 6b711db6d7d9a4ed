"""Defence against universal perturbations: a network that rectifies, a detector that says when."""

from fastadv.defence.detector import Defended, Detector, dct2
from fastadv.defence.metrics import Outcomes, measure
from fastadv.defence.rectifier import Rectifier, Training
from fastadv.defence.synthetic import split, synthetic

__all__ = [
    "Defended",
    "Detector",
    "Outcomes",
    "Rectifier",
    "Training",
    "dct2",
    "measure",
    "split",
    "synthetic",
]
