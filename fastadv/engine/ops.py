"""The engine's ops: schemas, fakes, and the functions that the engine's graphs call.

The ops themselves write into tensors that they are given; the functions lease those from a pool
(pool.py). Images are (N, H, W, C), contiguous, unless a function says otherwise.
"""

from __future__ import annotations

from fastadv._fakes import no_result
from fastadv.engine import (
    reference,
    reference_activations,
    reference_dense,
    reference_direct,
    reference_pool,
    reference_tokens,
    reference_winograd,
)
from fastadv.ops import _define

_define(
    "winograd_",
    "(Tensor(a!) y, Tensor(b!)? kept, Tensor x, Tensor weights, Tensor? bias, Tensor? residual, "
    "int padding, int form, int activation, float[] numbers) -> ()",
    reference_winograd.winograd_,
    no_result,
)
_define(
    "winograd_gradient_",
    "(Tensor(a!) y, Tensor x, Tensor weights, Tensor? residual, Tensor? slopes, float leak, "
    "int padding, int form) -> ()",
    reference_winograd.winograd_gradient_,
    no_result,
)
_define(
    "winograd_weights_",
    "(Tensor(a!) weights, Tensor weight, Tensor? scale, bool gradient, bool strided) -> ()",
    reference_winograd.winograd_weights_,
    no_result,
)
_define(
    "winograd_weight_gradient_",
    "(Tensor(a!) weight, Tensor(b!) scratch, Tensor x, Tensor grad, int padding) -> ()",
    reference_winograd.winograd_weight_gradient_,
    no_result,
)
_define(
    "direct_",
    "(Tensor(a!) y, Tensor(b!)? kept, Tensor x, Tensor weights, Tensor? bias, Tensor? residual, "
    "int[] kernel, int[] stride, int[] padding, int[] dilation, int activation, "
    "float[] numbers) -> ()",
    reference_direct.direct_,
    no_result,
)
_define(
    "fold_",
    "(Tensor(a!) y, Tensor x, Tensor weights, Tensor? residual, Tensor? slopes, float leak, "
    "int[] kernel, int[] stride, int[] padding, int[] dilation) -> ()",
    reference_direct.fold_,
    no_result,
)
_define(
    "depthwise_",
    "(Tensor(a!) y, Tensor(b!)? kept, Tensor x, Tensor weights, Tensor? bias, Tensor? residual, "
    "int[] kernel, int[] stride, int[] padding, int[] dilation, int activation, "
    "float[] numbers) -> ()",
    reference_direct.depthwise_,
    no_result,
)
_define(
    "depthwise_gradient_",
    "(Tensor(a!) y, Tensor x, Tensor weights, Tensor? residual, Tensor? slopes, float leak, "
    "int[] kernel, int[] stride, int[] padding, int[] dilation) -> ()",
    reference_direct.depthwise_gradient_,
    no_result,
)
_define(
    "linear_",
    "(Tensor(a!) y, Tensor(b!)? slopes, Tensor x, Tensor weights, Tensor? bias, Tensor? residual, "
    "int finish) -> ()",
    reference_tokens.linear_,
    no_result,
)
_define(
    "attention_",
    "(Tensor(a!) o, Tensor(b!) p, Tensor q, Tensor k, Tensor v, float scale) -> ()",
    reference_tokens.attention_,
    no_result,
)
_define(
    "attention_gradient_",
    "(Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor grad, Tensor p, Tensor q, Tensor k, "
    "Tensor v, float scale) -> ()",
    reference_tokens.attention_gradient_,
    no_result,
)
_define(
    "norm_",
    "(Tensor(a!) y, Tensor(b!) kept, Tensor x, Tensor? gamma, Tensor? beta, float eps) -> ()",
    reference_tokens.norm_,
    no_result,
)
_define(
    "norm_gradient_",
    "(Tensor(a!) y, Tensor grad, Tensor kept, Tensor x, Tensor? gamma, Tensor? residual) -> ()",
    reference_tokens.norm_gradient_,
    no_result,
)
_define(
    "max_pool_",
    "(Tensor(a!) y, Tensor(b!) taken, Tensor x, int[] kernel, int[] stride, int[] padding) -> ()",
    reference_pool.max_pool_,
    no_result,
)
_define(
    "max_pool_gradient_",
    "(Tensor(a!) y, Tensor x, Tensor taken, Tensor? residual, Tensor? slopes, float leak, "
    "int[] kernel, int[] stride, int[] padding) -> ()",
    reference_pool.max_pool_gradient_,
    no_result,
)
_define(
    "mean_",
    "(Tensor(a!) y, Tensor x, bool gradient) -> ()",
    reference_pool.mean_,
    no_result,
)
_define(
    "activate_",
    "(Tensor(a!) y, Tensor(b!)? kept, Tensor x, Tensor? other, Tensor? scale, Tensor? shift, "
    "int activation, float[] numbers) -> ()",
    reference_activations.activate_,
    no_result,
)
_define(
    "activate_gradient_",
    "(Tensor(a!) y, Tensor x, Tensor slopes, float leak, Tensor? other, Tensor? scale, "
    "Tensor? residual) -> ()",
    reference_activations.activate_gradient_,
    no_result,
)
_define(
    "watch_",
    "(Tensor(a!) met, Tensor x, bool infinite) -> ()",
    reference.watch_,
    no_result,
)
_define(
    "fingerprint",
    "(Tensor x) -> int",
    reference.fingerprint,
    lambda x: 0,
)
_define(
    "dense_pgd_",
    "(Tensor(a!) x_adv, Tensor(b!) seen, Tensor x, Tensor step_size, Tensor radius, "
    "Tensor? bounds, int norm, float top, int steps, Tensor[] weights, Tensor[] gradients, "
    "Tensor[] biases, int[] sizes, int[] activations, float[] leaks, Tensor y, Tensor? target, "
    "int head, bool targeted) -> ()",
    reference_dense.dense_pgd_,
    no_result,
)
_define(
    "dense_pass_",
    "(Tensor(a!) to, Tensor(b!) slopes, Tensor from_, Tensor[] weights, Tensor[] gradients, "
    "Tensor[] biases, int[] sizes, int[] activations, float[] leaks, bool gradient) -> ()",
    reference_dense.dense_pass_,
    no_result,
)
