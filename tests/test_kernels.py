"""The Triton kernels from outside: registration, and a table that says what launchers compile."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from head_cases import FORMS
from head_cases import make as make_head

import fastadv.kernels

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
IMAGENET = (3, 224, 224)


class Library:
    """What torch.library.Library takes."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Any, str]] = {}

    def impl(self, name: str, function: Any, key: str) -> None:
        self.found[name] = (function, key)


@needs_triton
def test_every_op_is_served_with_its_own_signature() -> None:
    library = Library()
    fastadv.kernels.register(library)
    ops = {name for name in dir(torch.ops.fastadv) if name.startswith(("step_", "universal_"))}
    assert ops | {"head", "digest", "uniform"} <= set(library.found)
    for name, (function, key) in library.found.items():
        schema = getattr(torch.ops.fastadv, name).default._schema
        assert list(inspect.signature(function).parameters) == [a.name for a in schema.arguments]
        assert key == "CUDA"


def test_importing_the_package_needs_no_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, fastadv, fastadv.kernels\n"
        "try: fastadv.kernels.register(torch.library.Library('fastadv', 'IMPL'))\n"
        "except ModuleNotFoundError as error: assert 'triton' in str(error), error\n"
        "else: raise SystemExit('registered kernels that cannot run')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


@needs_triton
def test_the_table_gives_every_argument_of_every_kernel() -> None:
    from fastadv.kernels.variants import variants

    table = variants()
    assert len({variant.name for variant in table}) == len(table)
    for variant in table:
        names = variant.kernel.arg_names
        assert sorted([*variant.signature, *variant.constants]) == sorted(names), variant.name
        for parameter in variant.kernel.params:
            kind = variant.signature.get(parameter.name, "*")
            if kind[0] != "*":  # a launch would compile for the annotated type
                assert parameter.annotation_type == kind, (variant.name, parameter.name)
            elif parameter.name in variant.signature:
                assert parameter.name in variant.divisible


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, dict[str, Any]]]]:
    """(kernel, arguments) of each launch, none of which runs."""
    from triton.runtime.jit import JITFunction

    found: list[tuple[Any, dict[str, Any]]] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append((self, dict(zip(self.arg_names, args, strict=False)) | options))

    monkeypatch.setattr(JITFunction, "run", record)
    yield found
    assert found


def assert_in_table(launches: list[tuple[Any, dict[str, Any]]]) -> None:
    """Each launch is a row of the table, in all that is compiled in."""
    from fastadv.kernels.variants import variants

    table = variants()
    for kernel, given in launches:
        pointers = {n: _pointer(v) for n, v in given.items() if isinstance(v, torch.Tensor)}
        rows = [v for v in table if v.kernel is kernel and v.options.items() <= given.items()]
        rows = [v for v in rows if pointers.items() <= v.signature.items()]
        assert any(all(given[n] == c for n, c in v.constants.items()) for v in rows), (
            kernel.__name__, pointers, {n: v for n, v in given.items() if n not in pointers},
        )  # fmt: skip


def _pointer(t: torch.Tensor) -> str:
    kinds = {
        torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16",
        torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32", torch.int16: "i16",
        torch.bool: "i1",
    }  # fmt: skip
    return f"*{kinds[t.dtype]}"


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_launchers_choose_what_the_table_lists(
    dtype: torch.dtype, launches: list[tuple[Any, dict[str, Any]]]
) -> None:
    from fastadv.kernels import launch

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    number, box = torch.tensor(0.1, dtype=wide), torch.tensor([0.0, 1.0], dtype=wide)
    for shape in ((128, 3, 32, 32), (128, 1, 28, 28), (1, *IMAGENET), (64, *IMAGENET)):
        x_adv, grad, x = (torch.empty(shape, dtype=dtype) for _ in range(3))
        args = (x_adv, grad, x, number, number, box, True)
        for name, more in (("linf", ()), ("l2", ()), ("l1", (0.05,))):
            launch.IMPLEMENTATIONS[f"step_{name}_"](*args, *more)
    grads = torch.empty(8, *IMAGENET, dtype=dtype)
    velocity, weights = torch.empty(IMAGENET, dtype=wide), torch.empty(8, dtype=wide)
    delta = torch.empty(IMAGENET, dtype=dtype)
    for signs, v, w in ((False, velocity, weights), (True, None, None)):
        for name, more in (("linf", ()), ("l2", ()), ("l1", (0.05,))):
            step = launch.IMPLEMENTATIONS[f"universal_{name}_"]
            step(delta, v, grads, w, number, number, 0.9, signs, True, *more)
    for x in (grads, torch.empty(128, 784, dtype=dtype)):
        launch.IMPLEMENTATIONS["digest"](x)
        launch.IMPLEMENTATIONS["uniform"](x, 0, 0, 0)
    for head, targeted in FORMS:
        for classes in (10, 1000, 32768):
            case = make_head(head, targeted, dtype, 2, classes)
            launch.IMPLEMENTATIONS["head"](case.logits, case.y, case.target, head, targeted)
    assert_in_table(launches)


@needs_triton
def test_a_step_of_an_attack_is_two_launches(launches: list[tuple[Any, dict[str, Any]]]) -> None:
    """Outside the model: the head, and the step."""
    from fastadv.kernels import launch

    number, box = torch.tensor(0.1), torch.tensor([0.0, 1.0])
    for shape in ((128, 3, 32, 32), (64, *IMAGENET)):
        args = [torch.empty(shape) for _ in range(3)]
        for name, more in (("linf", ()), ("l2", ()), ("l1", (0.05,))):
            launches.clear()
            case = make_head(0, False, torch.float32, len(args[0]), 10)
            launch.IMPLEMENTATIONS["head"](case.logits, case.y, None, 0, False)
            launch.IMPLEMENTATIONS[f"step_{name}_"](*args, number, number, box, True, *more)
            assert len(launches) == 2
