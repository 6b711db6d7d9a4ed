"""How robust a model is: accuracy under attack, by the caller's own model. One file an idea."""

from fastadv.evaluation.accuracy import accuracy_by_radius, evaluate
from fastadv.evaluation.report import AttackReport, Report

__all__ = ["AttackReport", "Report", "accuracy_by_radius", "evaluate"]
