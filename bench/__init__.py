"""Measurements, each behind a correctness gate: see README.md in this folder."""
