"""Adversarial examples, universal perturbations and adversarial training on fused kernels."""

from fastadv._locate import package_path

__path__ = package_path(__path__)  # before any other import: see _locate.py

from fastadv import defence, evaluation, numpy, ops, training, universal
from fastadv.attack import Attack, AttackResult
from fastadv.balls import L1, L2, Ball, Linf
from fastadv.deepfool import DeepFool, DeepFoolResult
from fastadv.engine import compile
from fastadv.evaluation import evaluate
from fastadv.model import normalized
from fastadv.objectives import (
    Objective,
    binary_cross_entropy,
    cross_entropy,
    dlr,
    kl,
    margin,
    pixels,
)
from fastadv.ops import backend
from fastadv.perturbation import Perturbation
from fastadv.recipes import apgd, bim, deepfool, fgsm, mi_fgsm, pgd
from fastadv.rules import Adam, Auto, Gradient, Momentum, Steepest
from fastadv.verify import Verdict, verify

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "Adam",
    "Attack",
    "AttackResult",
    "Auto",
    "Ball",
    "DeepFool",
    "DeepFoolResult",
    "Gradient",
    "Linf",
    "Momentum",
    "Objective",
    "Perturbation",
    "Steepest",
    "Verdict",
    "apgd",
    "backend",
    "bim",
    "binary_cross_entropy",
    "compile",
    "cross_entropy",
    "deepfool",
    "defence",
    "dlr",
    "evaluate",
    "evaluation",
    "fgsm",
    "kl",
    "margin",
    "mi_fgsm",
    "normalized",
    "numpy",
    "ops",
    "pgd",
    "pixels",
    "training",
    "universal",
    "verify",
]
