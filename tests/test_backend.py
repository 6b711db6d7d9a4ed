"""FASTADV_BACKEND and FASTADV_CPU_CAPABILITY: what is asked for serves, or an error comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastadv as fa

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
    assert "FASTADV_BACKEND must be native or reference, got 'fast'" in done.stderr


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
