"""What the build leaves, with and without a compiler or torch, and which copy is imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call

from fastadv import _build_info

ROOT = Path(__file__).resolve().parents[1]
REASON = {"torch": "must name torch's package folder", "compiler": "there is no C++ compiler"}

Build = Callable[..., subprocess.CompletedProcess[str]]


def opening() -> str:
    """fastadv/__init__.py down to where it has settled which copy's modules it imports."""
    text = (ROOT / "fastadv/__init__.py").read_text()
    start, line, _ = re.split(r"^(__path__ = .*\n)", text, maxsplit=1, flags=re.M)
    return start + line


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with sources that compile in a second, so that the build itself is tested."""
    pytest.importorskip("pybind11")
    pytest.importorskip("cmake")
    tree = tmp_path_factory.mktemp("clone")
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    shutil.copytree(
        ROOT / "kernels", tree / "kernels", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tree / "fastadv").mkdir()
    for name in ("_locate.py", "_build_info.py", "_native.pyi", "py.typed"):
        shutil.copy(ROOT / "fastadv" / name, tree / "fastadv" / name)
    (tree / "fastadv/__init__.py").write_text(opening() + '__version__ = "0.1.0"\n')
    (tree / "fastadv/engine").mkdir()
    (tree / "fastadv/engine/__init__.py").write_text("")
    shutil.copy(ROOT / "fastadv/engine/speeds.csv", tree / "fastadv/engine/speeds.csv")
    (tree / "README.md").write_text("A stand-in.\n")
    (tree / "csrc/cpu").mkdir(parents=True)
    for name in (
        "cpu/dispatch.cpp",
        "cpu/plan.cpp",
        "cpu/run.cpp",
        "cpu/run_convolution.cpp",
        "cpu/table.cpp",
        "register.cpp",
        "python.cpp",
    ):
        (tree / "csrc" / name).write_text("// nothing\n")
    return tree


@pytest.fixture
def build(tree: Path) -> Build:
    def build(**more: str) -> subprocess.CompletedProcess[str]:
        return call(sys.executable, "setup.py", "-q", "build_ext", "-i", cwd=str(tree), **more)

    return build


def built(tree: Path) -> tuple[list[str], _build_info.BuildInfo]:
    """The extensions that lie there, and what _build.json says."""
    package = tree / "fastadv"
    return sorted(f.name.split(".")[0] for f in package.glob("*.so")), _build_info.read(package)


def test_builds_both_extensions(tree: Path, build: Build) -> None:
    done = build()
    assert done.returncode == 0, done.stdout + done.stderr
    names, info = built(tree)
    assert names == ["_C", "_native"]
    assert info.reason is None
    assert "baseline" in info.isas
    assert info.torch is not None
    assert info.path("_C") == tree / "fastadv/_C.so"
    assert info.path("_D") is None


def test_cuda_is_built_where_it_is_asked_for(tree: Path, build: Build) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    shutil.copytree(ROOT / "cmake", tree / "cmake")
    (tree / "csrc/cuda").mkdir()
    (tree / "csrc/cuda/launch.cu").write_text("// nothing\n")
    done = build(FASTADV_CUDA="1", CUDACXX=nvcc)
    assert done.returncode == 0, done.stdout + done.stderr
    names, info = built(tree)
    assert names == ["_C", "_C_cuda", "_native"]
    assert info.path("_C_cuda") == tree / "fastadv/_C_cuda.so"
    assert (info.cuda_reason, info.cuda_architectures[:2]) == (None, ("80-real", "90-real"))
    build(FASTADV_CUDA="0")
    names, info = built(tree)
    assert names == ["_C", "_native"]
    assert (info.cuda_reason, info.cuda_architectures) == ("FASTADV_CUDA=0", ())


def test_without_torch_native_is_built_and_the_old_ops_go(tree: Path, build: Build) -> None:
    build()
    done = build(FASTADV_TORCH_DIR="/nowhere")
    assert done.returncode == 0
    names, info = built(tree)
    assert names == ["_native"]
    assert info.path("_C") is None
    assert REASON["torch"] in (info.reason or "")
    assert "/nowhere" in done.stderr


def test_old_torch_is_refused(tree: Path, build: Build, tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    build(FASTADV_TORCH_DIR=str(tmp_path))
    assert "torch must be 2.10 or newer, got 2.9.1+cpu" in (built(tree)[1].reason or "")


@pytest.mark.parametrize("required", [False, True])
def test_without_a_compiler(tree: Path, build: Build, required: bool) -> None:
    build()
    done = build(PATH="/nowhere", FASTADV_REQUIRE_NATIVE=str(int(required)))
    assert REASON["compiler"] in done.stderr
    names, info = built(tree)
    assert names == []
    if required:
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert not (tree / "fastadv/_build.json").exists()
    else:
        assert done.returncode == 0
        assert REASON["compiler"] in (info.reason or "")


def test_a_failure_half_way_leaves_nothing_stale(tree: Path, build: Build) -> None:
    build()
    source = tree / "csrc/register.cpp"
    source.write_text("#error half way\n")
    try:
        done = build()
    finally:
        source.write_text("// nothing\n")
    assert done.returncode == 0
    names, info = built(tree)
    assert names == []
    assert "half way" in (info.reason or "")


def test_wheel_holds_the_package_and_serves_beside_a_clone(
    tree: Path, build: Build, tmp_path: Path
) -> None:
    build()  # an in-place build must not travel in the wheel
    (tree / "fastadv/_C.so").write_text("stale")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-build-isolation", "--no-deps", "--no-index"]
    done = call(*pip, "wheel", *options, "-w", tmp_path, tree)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("fastadv-0.1.0-*.whl")
    assert "none-any" not in wheel.name
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    facts = json.loads((site / "fastadv/_build.json").read_text())
    held = {f"fastadv/{name}" for name in ("__init__.py", "py.typed", "_native.pyi", "_build.json")}
    held |= {f"fastadv/{name}" for name in facts["extensions"]} | {"fastadv/kernels/__init__.py"}
    held.add("fastadv/engine/speeds.csv")
    assert held <= set(names)
    assert (site / "fastadv/_C.so").read_bytes()[1:4] == b"ELF"
    assert not any(name.startswith(("csrc", "tests", "build")) for name in names)

    clone = tmp_path / "clone"
    shutil.copytree(
        tree / "fastadv", clone / "fastadv", ignore=shutil.ignore_patterns("*.so", "_b*.json")
    )
    assert served_from(clone, site) == str(site / "fastadv")


def served_from(clone: Path, *installed: Path) -> str:
    """Where fastadv's submodules come from for Python run in `clone`."""
    program = "import fastadv, fastadv._build_info as m, os; print(os.path.dirname(m.__file__))"
    done = call(
        sys.executable,
        "-S",
        "-c",
        program,
        cwd=str(clone),
        PYTHONPATH=os.pathsep.join(map(str, installed)),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def copies(tmp_path: Path) -> Callable[..., Path]:
    """Makes one more copy of the package, built (it has _build.json) or not."""

    def copy(name: str, *, is_built: bool) -> Path:
        package = tmp_path / name / "fastadv"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(opening())
        for module in ("_locate.py", "_build_info.py"):
            shutil.copy(ROOT / "fastadv" / module, package)
        if is_built:
            (package / "_build.json").write_text("{}")
        return package.parent

    return copy


@pytest.mark.parametrize(
    ("clone_is_built", "installed_is_built", "serves"),
    [
        (False, True, "installed"),
        (True, True, "clone"),
        (False, False, "clone"),
        (False, None, "clone"),
    ],
)
def test_an_unbuilt_clone_gives_way_to_a_built_copy(
    copies: Callable[..., Path],
    clone_is_built: bool,
    installed_is_built: bool | None,
    serves: str,
) -> None:
    clone = copies("clone", is_built=clone_is_built)
    installed = []
    if installed_is_built is not None:
        installed = [copies("installed", is_built=installed_is_built)]
    assert served_from(clone, *installed) == str(clone.parent / serves / "fastadv")


def test_a_copy_never_built_says_so(tmp_path: Path) -> None:
    info = _build_info.read(tmp_path)
    assert "has not been built" in (info.reason or "")
    assert info.path("_C") is None


# Loads `_native` by itself, so that nothing of fastadv or torch is imported.
LOAD_NATIVE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("fastadv._native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
assert "torch" not in sys.modules
print(native.capability())
facts = native.processor()
assert facts["isa"] == native.capability() and facts["isa"] in facts["available"], facts
assert facts["available"][0] == "baseline" and facts["cores"] >= 1, facts
assert native.build_facts()["standard"] >= 202002, native.build_facts()
"""


def capability(name: str) -> subprocess.CompletedProcess[str]:
    native = _build_info.read().path("_native")
    if native is None:
        pytest.skip(f"_native is not built: {_build_info.read().reason}")
    return call(sys.executable, "-c", LOAD_NATIVE, native, FASTADV_CPU_CAPABILITY=name)


def test_capability_is_the_best_there_is_unless_named() -> None:
    best = capability("")
    assert best.returncode == 0, best.stderr
    assert best.stdout.strip() in ("baseline", "avx2", "avx512")
    assert capability("baseline").stdout.strip() == "baseline"


def test_an_unknown_capability_is_an_error() -> None:
    message = "FASTADV_CPU_CAPABILITY must be baseline, avx2 or avx512, got 'sse9'"
    assert message in capability("sse9").stderr
