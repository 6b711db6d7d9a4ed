"""The engine's ops: schemas, fakes, and the functions that the engine's graphs call.

The ops themselves write into tensors that they are given; the functions lease those from a pool
(pool.py). Images are (N, H, W, C), contiguous, unless a function says otherwise.
"""

from __future__ import annotations

from fastadv.engine import reference
from fastadv.ops import _define, _no_result

_define(
    "winograd_",
    "(Tensor(a!) y, Tensor(b!)? signs, Tensor x, Tensor weights, Tensor? bias, Tensor? residual, "
    "Tensor? mask, int padding, bool relu) -> ()",
    reference.winograd_,
    _no_result,
)
_define(
    "winograd_weights_",
    "(Tensor(a!) weights, Tensor weight, Tensor? scale, bool gradient) -> ()",
    lambda weights, *given: weights.copy_(reference.winograd_weights(*given)),
    _no_result,
)
_define(
    "relu_",
    "(Tensor(a!) y, Tensor(b!)? signs, Tensor x, Tensor? residual, Tensor? mask) -> ()",
    reference.relu_,
    _no_result,
)
_define(
    "fingerprint",
    "(Tensor x) -> int",
    reference.fingerprint,
    lambda x: 0,
)
