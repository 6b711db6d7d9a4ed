"""Adversarial examples, universal perturbations and adversarial training on fused kernels."""

from fastadv._locate import package_path

__path__ = package_path(__path__)  # before any other import: see _locate.py

__version__ = "0.1.0"
