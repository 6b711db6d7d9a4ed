"""FASTADV_BACKEND and FASTADV_CPU_CAPABILITY: what is asked for serves, or an error comes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastadv as fa
import fastadv.kernels
from fastadv.deferred import Deferred

TESTS = Path(__file__).parent
native = pytest.mark.skipif(not fa.backend().is_native, reason="there are no compiled kernels here")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FASTADV_")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS, env=clean | environment, capture_output=True,
        text=True,
    )  # fmt: skip


def test_the_reference_passes_the_same_tests() -> None:
    """Ops, NumPy entry points, attacks and universal perturbations, without a kernel."""
    names = ("test_written_radius_holds_exactly", "test_laws_of_a_step")
    files = ["test_numpy.py", "test_attack.py", "test_rules.py", "test_universal.py"]
    files += [f"test_step.py::{name}" for name in names]
    code = (
        "import fastadv, pytest, sys; assert fastadv.backend().cpu == 'reference'; "
        "assert 'FASTADV_BACKEND=reference' in str(fastadv.backend()); "
        f"sys.exit(pytest.main(['-q', '-x', *{files!r}]))"
    )
    done = run(code, FASTADV_BACKEND="reference")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@native
def test_native_serves_by_itself_and_on_request() -> None:
    code = "import fastadv; print(fastadv.backend().cpu)"
    for environment in ({"FASTADV_BACKEND": "native"}, {"FASTADV_BACKEND": ""}):
        done = run(code, **environment)
        assert done.stdout.startswith("native ("), done.stderr
    done = run(code, FASTADV_CPU_CAPABILITY="baseline")
    assert done.stdout.strip() == "native (baseline)"


def test_wrong_values_raise() -> None:
    done = run("import fastadv", FASTADV_BACKEND="fast")
    assert done.returncode == 1
    assert "must be native, triton, cuda or reference, got 'fast'" in done.stderr


@native
def test_wrong_capabilities_raise() -> None:
    done = run("import fastadv", FASTADV_CPU_CAPABILITY="sse9")
    assert done.returncode == 1
    assert "FASTADV_CPU_CAPABILITY must be baseline, avx2 or avx512" in done.stderr
    assert "got 'sse9'" in done.stderr


def test_a_missing_native_backend_raises() -> None:
    code = """
import importlib.util, pathlib, sys, types
package = types.ModuleType("fastadv")  # its modules without its __init__, which would load
package.__path__ = importlib.util.find_spec("fastadv").submodule_search_locations
sys.modules["fastadv"] = package
import fastadv._build_info as info
info.read = lambda: info.BuildInfo(pathlib.Path("."), reason="there is no compiler")
import fastadv.backend
print(fastadv.backend.load())
"""
    done = run(code, FASTADV_BACKEND="native")
    assert done.returncode == 1
    assert "but there are no compiled kernels: there is no compiler" in done.stderr
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "cpu: reference (there is no compiler)" in done.stdout


HIDE = "import sys; sys.modules['triton'] = None  # as if it were not installed\n"
SERVED = """
import torch
key = torch._C._dispatch_has_kernel_for_dispatch_key
print(fastadv.backend().cuda, key("fastadv::step_linf_", "CUDA"), "triton" in sys.modules)
"""


def test_triton_serves_cuda_where_it_is_installed_and_is_not_imported() -> None:
    pytest.importorskip("triton")
    for environment in ({}, {"FASTADV_BACKEND": "triton"}):
        done = run("import fastadv, sys\n" + SERVED, **environment)
        assert done.stdout.split() == ["triton", "True", "False"], done.stderr
    done = run("import fastadv, sys\n" + SERVED, FASTADV_BACKEND="reference")
    assert done.stdout.split() == ["reference", "False", "False"], done.stderr


def test_without_triton_the_reference_serves_cuda_and_says_why() -> None:
    done = run(HIDE + "import fastadv\n" + SERVED + "print(fastadv.backend())")
    assert done.stdout.startswith("reference False"), done.stderr
    assert "cuda: reference (Triton is not installed, and _C_cuda is not built" in done.stdout


def test_a_missing_cuda_backend_raises_at_import() -> None:
    done = run(HIDE + "import fastadv", FASTADV_BACKEND="triton")
    assert done.returncode == 1
    assert "FASTADV_BACKEND=triton, but Triton is not installed" in done.stderr
    done = run("import fastadv", FASTADV_BACKEND="cuda")
    if done.returncode:
        assert "FASTADV_BACKEND=cuda, but there are no compiled CUDA kernels" in done.stderr


class Registry(Deferred):
    """Registers in a dict what torch's dispatcher would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatched: dict[str, Callable[..., object]] = {}

    def serve_here(self, name: str, defined_by: Callable[..., object]) -> None:
        def impl(name: str, kernel: Callable[..., object], key: str) -> None:
            assert key == "CUDA"
            self.dispatched[name] = kernel

        self.serve(SimpleNamespace(impl=impl), name, defined_by)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Two ops, and a CPU in the place of the device."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    registry = Registry()
    registry.serve_here("double", lambda x: ("definition", x))
    registry.serve_here("triple", lambda x: ("definition", x))
    return registry


def test_kernels_are_registered_once_at_the_first_call(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def register(library: Deferred) -> None:
        calls.append(library)
        library.impl("double", lambda x: ("kernel", x), "CUDA")

    monkeypatch.setattr("fastadv.kernels.register", register, raising=False)
    x = torch.zeros(1)
    assert not calls
    for _ in range(2):
        assert registry.dispatched["double"](x) == ("kernel", x)
        assert registry.dispatched["triple"](x) == ("definition", x)  # it has no kernel
    assert calls == [registry]
    with pytest.raises(ValueError, match="got 'halve' and 'CUDA'"):
        registry.impl("halve", print, "CUDA")


def test_every_kernel_of_tritons_is_an_ops() -> None:
    pytest.importorskip("triton")
    from fastadv import ops

    found = []
    library = SimpleNamespace(impl=lambda name, kernel, key: found.append((name, key)))
    fastadv.kernels.register(library)
    assert {key for _, key in found} == {"CUDA"}
    assert {name for name, _ in found} <= set(ops._deferred._kernels)
    assert {"step_linf_", "step_l2_", "step_l1_", "head", "digest"} <= {name for name, _ in found}


def test_a_triton_that_does_not_load_raises_at_each_call(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(library: Deferred) -> None:
        raise ImportError("libtriton is broken")

    monkeypatch.setattr("fastadv.kernels.register", register, raising=False)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not load: libtriton is broken"):
            registry.dispatched["double"](torch.zeros(1))


def test_a_kernel_runs_on_the_device_of_its_tensors(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []
    monkeypatch.setattr("fastadv.kernels.register", lambda library: None, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda d: nullcontext(entered.append(d)))
    x = torch.zeros(1)
    registry.dispatched["double"](x)
    assert entered == [x.device]
