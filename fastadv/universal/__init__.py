"""Universal perturbations: one delta for all inputs. One file an algorithm."""

from fastadv.universal.averaged import averaged
from fastadv.universal.data_free import fast_feature_fool, gd_uap
from fastadv.universal.gradient import gradient
from fastadv.universal.moosavi import moosavi
from fastadv.universal.passes import Pass
from fastadv.universal.penalty import Penalty
from fastadv.universal.rates import Rates, measure
from fastadv.universal.scenes import PixelRates, Remove, measure_pixels
from fastadv.universal.segmentation import segmentation

__all__ = [
    "Pass",
    "Penalty",
    "PixelRates",
    "Rates",
    "Remove",
    "averaged",
    "fast_feature_fool",
    "gd_uap",
    "gradient",
    "measure",
    "measure_pixels",
    "moosavi",
    "segmentation",
]
