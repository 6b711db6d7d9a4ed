"""The kernels in Triton's interpreter, which a process has to choose before it imports Triton:
test_interpreted.py runs the interpret_*.py in a process of their own."""

from __future__ import annotations

import os

import numpy as np

if os.environ.get("TRITON_INTERPRET") == "1":
    import corrections

    corrections.install()
    np.seterr(all="ignore")  # numpy warns where arithmetic overflows, as it does in these tests
