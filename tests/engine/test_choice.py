"""Which kernel serves a convolution: what it can compute, and then the table."""

from __future__ import annotations

from typing import Any

import pytest
import tables
import torch
from torch import nn

from bench.nets import NETS
from fastadv.engine import choice, learning_choice, speeds
from fastadv.engine.speeds import ATEN, DIRECT, FOLD, ISAS, WINOGRAD, Case, Speeds

ABLE = {"convolution": (WINOGRAD, DIRECT), "gradient": (WINOGRAD, FOLD)}


def chosen(
    monkeypatch: pytest.MonkeyPatch, table: Speeds, bfloat16: bool = False, **conv: Any
) -> choice.Choice:
    monkeypatch.setattr(speeds, "current", lambda: table)
    return choice.choose(tables.convolution(**conv), True, bfloat16, 8)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    ("seconds", "kernel", "why"),
    [
        ((2e-6, 3e-6, 6e-6), WINOGRAD, "3.0 times ATen's speed by the table"),
        ((3e-6, 2e-6, 5e-6), DIRECT, "2.5 times ATen's speed by the table"),
        ((3e-6, 4e-6, 2e-6), None, "ATen is faster by the table"),
        ((2.6e-6, 2.6e-6, 2e-6), None, "ATen is faster by the table"),
        ((3e-6, 2.4e-6, 2e-6), "direct", "0.8 times ATen's speed by the table"),
    ],
)
def test_the_fastest_by_the_table_serves(
    monkeypatch: pytest.MonkeyPatch, gradient: bool, seconds: tuple[float, float, float],
    kernel: str | None, why: str,
) -> None:  # fmt: skip
    winograd, direct, aten = seconds
    op = "gradient" if gradient else "convolution"
    other = FOLD if gradient else DIRECT
    table = tables.of(op, winograd=winograd, aten=aten, **{other: direct})
    found = chosen(monkeypatch, table, gradient=gradient)
    assert (found.kernel, found.why) == (other if kernel == DIRECT else kernel, why)
    assert found.call is not None
    assert found.call.kernel == (found.kernel or ATEN)
    assert found.call.case == tables.CASE._replace(op=op)


@pytest.mark.parametrize(
    ("conv", "kernel", "why"),
    [
        ({"window": 5}, DIRECT, "is not 3x3, "),
        ({"stride": 3}, DIRECT, "stride [3, 3], dilation [1, 1], "),
        ({"dilation": 2, "padding": 2}, DIRECT, "stride [1, 1], dilation [2, 2], "),
        ({"padding": 3}, DIRECT, "padding [3, 3], stride [1, 1], "),
        ({"stride": 2, "padding": 0}, DIRECT, "padding [0, 0], stride [2, 2], "),
        ({"window": 9, "pixels": 12}, None, "is not 3x3, and its kernel is too large"),
        ({"groups": 2}, None, "has 2 groups"),
    ],
)
def test_what_a_kernel_cannot_compute_it_never_serves(
    monkeypatch: pytest.MonkeyPatch, conv: dict[str, int], kernel: str | None, why: str
) -> None:
    table = tables.of("convolution", winograd=1e-7, direct=2e-6, aten=4e-6)
    found = chosen(monkeypatch, table, **conv)
    assert found.kernel == kernel
    assert found.why.startswith(why)


def test_what_the_table_does_not_know_is_left_to_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    table = tables.of("convolution", winograd=1e-6, direct=1e-6, aten=2e-6)
    assert chosen(monkeypatch, table, bfloat16=True).kernel is None
    assert chosen(monkeypatch, Speeds({})).why == "the table has nothing like it"
    assert choice.choose(tables.convolution(), False, False, 8).why == "no compiled kernels"


@pytest.mark.parametrize("isa", ISAS)
def test_no_choice_is_slower_than_another_by_the_checked_in_table(
    monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    for (name, threads), part in speeds.table().items():
        if name != isa:
            continue
        table = speeds._speeds(isa, isa, threads)
        monkeypatch.setattr(speeds, "current", lambda found=table: found)
        for (op, precision), rows in part.items():
            for case, seconds in rows if op in ABLE else ():
                for batch in (case.batch, 3 * case.batch):  # measured, and not
                    asked = case._replace(batch=batch)
                    able = [kernel for kernel in ABLE[op] if kernel in seconds]
                    kernel, _ = choice.fastest(able, asked, precision)
                    times = {k: table.seconds(k, asked, precision) for k in able}
                    aten = table.seconds(ATEN, asked, precision)
                    assert aten is not None
                    if kernel is None:
                        assert min(times.values()) >= choice.NEAR * aten, (isa, asked)
                    else:
                        assert times[kernel] == min(times.values()) < choice.NEAR * aten


def layers_of(model: nn.Module, *shape: int) -> dict[str, Case]:
    """The cases of a net's convolutions."""
    found: dict[str, Case] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def hook(conv: nn.Conv2d, _: Any, y: torch.Tensor, name: str = name) -> None:
                window, stride = conv.kernel_size[0], conv.stride[0]
                sizes = conv.in_channels, conv.out_channels, y.shape[2], y.shape[3], len(y)
                found[name] = Case("convolution", window, stride, *sizes)

            module.register_forward_hook(hook)
    model.eval()(torch.empty(shape, device="meta"))
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resnet18s_kernels_on_avx512(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    table = speeds._speeds("avx512", "avx512", 1)
    monkeypatch.setattr(speeds, "current", lambda: table)
    with torch.device("meta"):
        model = NETS["resnet18"]()
    layers = layers_of(model, 32, 3, 32, 32)
    assert len(layers) == 20
    for case in layers.values():
        for op, other in (("convolution", DIRECT), ("gradient", FOLD)):
            able = ABLE[op] if case.window == 3 else (other,)
            kernel, _ = choice.fastest(able, case._replace(op=op), precision)
            if case.window == 3 and case.stride == 1 and case.inputs > 3:
                assert kernel == WINOGRAD, case
            if case.inputs == 3:
                assert kernel is not None, case


@pytest.mark.parametrize(
    ("own", "plain", "left"),
    [(10e-6, 9e-6, False), (30e-6, 20e-6, True), (26e-6, 25e-6, False), (12e-6, 4e-6, False)],
)
def test_the_only_kernel_of_ours_serves_unless_atens_is_faster_by_more_than_a_call(
    monkeypatch: pytest.MonkeyPatch, own: float, plain: float, left: bool
) -> None:
    layer = Case("layer", 1, 1, 1, 1, 1, 1, 1)
    case = tables.CASE._replace(op="linear")
    table = Speeds(
        {
            ("linear", "float32"): tables.rows(case, own=own, plain=plain),
            ("layer", "float32"): [speeds.Measured(layer, {"own": 9e-6})],
        }
    )
    monkeypatch.setattr(speeds, "current", lambda: table)
    expected = "ATen is faster by the table" if left else None
    assert choice.left_to_aten([case], False) == expected
    assert choice.left_to_aten([case, case], False) == expected
    assert choice.left_to_aten([case._replace(op="attention")], False) is None  # not measured


@pytest.mark.parametrize(
    ("seconds", "packing", "expected"),
    [
        ({"winograd": 2e-6, "direct": 3e-6, "aten": 5e-6, "plain": 5e-6}, 2e-6, WINOGRAD),
        ({"winograd": 2e-6, "direct": 3e-6, "aten": 5e-6, "plain": 5e-6}, 4e-6, ATEN),
        ({"winograd": 2e-6, "direct": 3e-6, "aten": 5e-6, "plain": 4.5e-6}, 4e-6, ATEN),
        ({"winograd": 2e-6, "direct": 3e-6, "aten": 5e-6, "plain": 3e-6}, 4e-6, "plain"),
        ({"aten": 5e-6, "plain": 5e-6}, 1e-6, ATEN),
    ],
)
def test_packing_counts_where_weights_learn(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], packing: float, expected: str
) -> None:
    pack = tables.CASE._replace(op="packing", height=1, width=1, batch=1)
    packs = dict.fromkeys(("winograd", "direct"), packing)
    table = Speeds(
        {
            ("convolution", "float32"): tables.rows(tables.CASE, **seconds),
            ("packing", "float32"): [speeds.Measured(pack, packs)],
        }
    )
    monkeypatch.setattr(speeds, "current", lambda: table)
    assert learning_choice._fastest([WINOGRAD, DIRECT], tables.CASE)[0] == expected
