"""Which kernel serves a convolution, or its gradient, and why.

What a kernel cannot compute stands here; which of those that can is the fastest, and whether ATen
is faster, stands in the table of measured speeds (speeds.py). The choice is for a batch of its
compile's usual size, not for the one that came first: whatever came first, the same model is served
in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx

from fastadv.engine import speeds
from fastadv.engine.graph import (
    CONVOLUTION_BACKWARD,
    is_bias,
    is_channels_last,
    is_image,
    is_weight,
    size_at,
    value,
)
from fastadv.engine.reference_direct import Geometry
from fastadv.engine.speeds import ATEN, DEPTHWISE, DIRECT, FOLD, OWN, PLAIN, WINOGRAD, Call, Case
from fastadv.engine.spread import spreads

# ATen's call comes back to Python out of a plan, and the signs of the ReLU after it are one more
# pass: LeNet with its first layer by ATen, in .84 of that layer's time, was 1.15 times as slow.
NEAR = 1.25
_TAPS = 64  # at most, in the kernels of ours
_DEPTHWISE_TAPS, _DEPTHWISE_STRIDE = 32, 4  # at most, along an axis
_FEW = 8  # channels below which Winograd gains nothing worth its rounding: of an image's even
# background it makes numbers that differ in their last bit, and a pooling then takes others


class Choice(NamedTuple):
    kernel: str | None  # None: ATen serves
    why: str
    call: Call | None = None  # None: the table has nothing like it


def choose(conv: fx.Node, native: bool, bfloat16: bool, batch: int) -> Choice:
    """The kernel that serves a convolution or its gradient, for batches of about this size."""
    if not native:
        return Choice(None, "no compiled kernels")
    if why := _no_kernel_of_ours(conv):
        return Choice(None, why)
    x, y = _images(conv)
    if not is_image(x) or not is_channels_last(y):  # the kernels' calls turn x where they must
        return Choice(None, "its images are not float32 and channels last")
    if is_depthwise(conv):
        return _depthwise(conv, batch)
    geometry, channels = geometry_of(conv), int(_images(conv)[0].shape[1])
    no_winograd, no_direct = why_not_winograd(geometry, channels), why_not_direct(geometry)
    size = tuple(_images(conv)[0].shape[2:])
    if spreads(geometry, size, *value(weight_of(conv)[0]).shape[:2]):
        no_winograd = "all pixels in one product"
    able = [] if no_winograd else [WINOGRAD]
    able += [] if no_direct else [FOLD if is_gradient(conv) else DIRECT]
    if not able:
        return Choice(None, f"{no_winograd}, and {no_direct}")
    case, precision = case_of(conv), "bfloat16" if bfloat16 else "float32"
    kernel, why = fastest(able, case._replace(batch=size_at(case.batch, batch)), precision)
    said = ", ".join(part for part in (no_winograd, why) if part)
    return Choice(kernel, said, Call(kernel or ATEN, case, precision))


def _depthwise(conv: fx.Node, batch: int) -> Choice:
    """Of a convolution of each channel by itself: its sums are float32's in either precision."""
    (kernel, stride, _, _), case = geometry_of(conv), case_of(conv)
    if max(kernel) > _DEPTHWISE_TAPS or max(stride) > _DEPTHWISE_STRIDE:
        return Choice(None, "its kernel or its stride is too large")
    sized = case._replace(batch=size_at(case.batch, batch))
    chosen, why = fastest([DEPTHWISE], sized, "float32")
    return Choice(chosen, why, Call(chosen or ATEN, case, "float32"))


def fastest(able: Sequence[str], case: Case, precision: str) -> tuple[str | None, str]:
    """The fastest of some kernels by the table, and how it compares to ATen; None: ATen is faster,
    by more than NEAR."""
    table = speeds.current()
    aten = table.seconds(ATEN, case, precision)
    found = {kernel: table.seconds(kernel, case, precision) for kernel in able}
    measured = {kernel: seconds for kernel, seconds in found.items() if seconds is not None}
    if aten is None or not measured:
        return None, "the table has nothing like it"
    kernel = min(measured, key=lambda k: measured[k])
    if measured[kernel] >= NEAR * aten:
        return None, "ATen is faster by the table"
    return kernel, f"{aten / measured[kernel]:.1f} times ATen's speed by the table"


def left_to_aten(cases: Sequence[Case], bfloat16: bool) -> str | None:
    """Why the only kernel of ours for some calls does not serve them, or None.

    ATen must be faster by more than NEAR and by more than the calls cost: ours were measured as
    calls, too, but a plan makes none, and ATen's leave it.
    """
    table, precision = speeds.current(), "bfloat16" if bfloat16 else "float32"
    found = [(table.seconds(OWN, c, precision), table.seconds(PLAIN, c, "float32")) for c in cases]
    own, plain = (sum(each or math.nan for each in seconds) for seconds in zip(*found, strict=True))
    calls = len(cases) * (table.seconds(OWN, Case("layer", *[1] * 7), "float32") or 0.0)
    slower = own > max(NEAR * plain, plain + calls)  # never where one was not measured
    return "ATen is faster by the table" if slower else None


def case_of(conv: fx.Node) -> Case:
    """What the table is asked for; the batch as it stands in the graph."""
    (height, width), stride, _, _ = geometry_of(conv)
    outputs, inputs = value(weight_of(conv)[0]).shape[:2]
    y = value(conv.args[0]) if is_gradient(conv) else value(conv)
    window, step = math.sqrt(height * width), math.sqrt(stride[0] * stride[1])
    op = "gradient" if is_gradient(conv) else "convolution"
    if is_depthwise(conv):
        op, inputs = "depthwise gradient" if is_gradient(conv) else "depthwise", outputs
    n, _, rows, columns = y.shape
    return Case(op, window, step, int(inputs), int(outputs), int(rows), int(columns), n)


def is_gradient(conv: fx.Node) -> bool:
    return conv.target is CONVOLUTION_BACKWARD


def is_depthwise(conv: fx.Node) -> bool:
    """Whether each channel is convolved by itself, into one."""
    weight, groups = value(weight_of(conv)[0]), _groups(conv)
    return bool(groups > 1 and groups == weight.shape[0] and weight.shape[1] == 1)


def _groups(conv: fx.Node) -> Any:
    return conv.args[9 if is_gradient(conv) else 8]


def weight_of(conv: fx.Node) -> tuple[Any, Any]:
    """The convolution's own weight, and what a folded norm scales it by."""
    own: tuple[Any, Any] = (conv.args[2 if is_gradient(conv) else 1], None)
    folded: tuple[Any, Any] = conv.meta.get("norm", own)
    return folded


def geometry_of(conv: fx.Node) -> Geometry:
    given: Any = conv.args[4 if is_gradient(conv) else 3 :][:3]
    sizes = value(weight_of(conv)[0]).shape[2:]
    kernel, stride, padding, dilation = ((int(p[0]), int(p[1])) for p in (sizes, *given))
    return kernel, stride, padding, dilation


def _images(conv: fx.Node) -> tuple[Any, Any]:
    """What the kernel reads, and what it writes: for a gradient the output's, and the input's."""
    return value(conv.args[0]), value(conv)[0] if is_gradient(conv) else value(conv)


def _no_kernel_of_ours(conv: fx.Node) -> str | None:
    backward = is_gradient(conv)
    weight = weight_of(conv)[0]
    transposed = conv.args[7 if backward else 6]
    if value(weight) is None or value(weight).dim() != 4:
        return "is not of images"
    if transposed or (_groups(conv) != 1 and not is_depthwise(conv)):
        return "is transposed" if transposed else f"has {_groups(conv)} groups"
    if not is_weight(weight) or not (backward or "norm" in conv.meta or is_weight(conv.args[2])):
        return "its weights are computed"
    bias = None if backward or "norm" in conv.meta else value(conv.args[2])
    if bias is not None and not is_bias(bias, value(weight).shape[0]):
        return "its bias is not one contiguous number an output"
    return None


def has_kernel_of_ours(conv: fx.Node) -> bool:
    """Whether a kernel could serve it, if its images were channels last."""
    return _no_kernel_of_ours(conv) is None


def why_not_winograd(geometry: Geometry, channels: int) -> str | None:
    """Why Winograd's kernel cannot read `channels` for a convolution, or its gradient."""
    kernel, stride, padding, dilation = geometry
    if kernel != (3, 3):
        return "is not 3x3"
    if stride not in ((1, 1), (2, 2)) or dilation != (1, 1):
        return f"stride {list(stride)}, dilation {list(dilation)}"
    if padding not in ((0, 0), (1, 1), (2, 2)) or (stride == (2, 2) and padding != (1, 1)):
        return f"padding {list(padding)}, stride {list(stride)}"
    return f"{channels} channels are too few for a transform" if channels < _FEW else None


def why_not_direct(geometry: Geometry) -> str | None:
    """Why the direct kernel cannot."""
    kernel, _, _, _ = geometry
    return "its kernel is too large" if kernel[0] * kernel[1] > _TAPS else None
