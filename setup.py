"""Builds fastadv's compiled parts with one CMake call; every other fact stands in pyproject.toml.

Without a C++ compiler or without torch the build goes on and installs the Python package, which
then runs on reference.py. fastadv/_build.json says what was built, or why something was not.

Environment:
    FASTADV_REQUIRE_NATIVE=1  a missing extension is an error (the Makefile and CI set it)
    FASTADV_CUDA              1: build _C_cuda, or say why not; 0: do not; else it is built where
                              nvcc and a torch with CUDA are found
    FASTADV_CUDA_ARCHITECTURES  as CMake takes them, as in "90-real"; else sm_80, sm_90, sm_100, PTX
    CUDACXX, CUDA_HOME        where nvcc is, if not in PATH or /usr/local/cuda
    FASTADV_TORCH_DIR         torch's package folder, where it is not found by itself
    CXX, CXXFLAGS             as CMake reads them
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)  # the first with parallel_for in its stable ABI


class Unavailable(Exception):
    """Why something cannot be built, in a sentence that a person can act on."""


def site_packages() -> Iterator[Path]:
    """Where the interpreter that will run fastadv keeps its packages, likeliest first.

    An isolated build cannot import them, and under `python -m build` it even is another
    environment: then the active one, and the interpreter that it was made from, are tried.
    """
    yield from (Path(sysconfig.get_path(kind)) for kind in ("platlib", "purelib"))
    yield from map(Path, site.getsitepackages())
    if active := os.environ.get("VIRTUAL_ENV"):
        yield from Path(active).glob("lib/python*/site-packages")
    yield Path(site.getusersitepackages())
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    yield from (Path(sysconfig.get_path(kind, vars=base)) for kind in ("platlib", "purelib"))


def find_torch() -> tuple[Path, str]:
    """torch's package folder and version. Any of at least 2.10 serves: the ABI used is stable."""
    if named := os.environ.get("FASTADV_TORCH_DIR"):
        folder = Path(named)
        if not (folder / "include").is_dir():
            raise Unavailable(
                f"FASTADV_TORCH_DIR must name torch's package folder, which has include/ in it, "
                f"got {named!r}"
            )
    else:
        found = (place / "torch" for place in site_packages())
        folder = next((place for place in found if (place / "include").is_dir()), Path())
        if folder == Path():
            raise Unavailable(
                "torch is not installed where the build looks: install torch first, then fastadv "
                "(or set FASTADV_TORCH_DIR to torch's package folder)"
            )
    text = (folder / "version.py").read_text() if (folder / "version.py").is_file() else ""
    match = re.search(r"__version__ = ['\"]((\d+)\.(\d+)[^'\"]*)", text)
    if not match or (int(match[2]), int(match[3])) < OLDEST_TORCH:
        version = match[1] if match else "one of unknown version"
        raise Unavailable(f"torch must be 2.10 or newer, got {version} in {folder}")
    return folder.resolve(), match[1]


def find_nvcc() -> str:
    """CUDA's compiler."""
    if named := os.environ.get("CUDACXX"):
        if path := shutil.which(named):
            return path
        raise Unavailable(f"CUDACXX must name nvcc, got {named!r}, which is not there")
    folders = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [str(Path(folder) / "bin") for folder in folders if folder]
    path = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(places))
    if not path:
        raise Unavailable(
            "nvcc is missing: install the CUDA toolkit, and name its folder in CUDA_HOME if it "
            "is neither in PATH nor /usr/local/cuda"
        )
    return path


def choose_cuda(torch: Path | None, reason: str | None) -> tuple[str | None, str | None]:
    """nvcc if `_C_cuda` is to be built, else None and why not. FASTADV_CUDA=1 asks for it.

    `reason`: why there is no torch.
    """
    asked = os.environ.get("FASTADV_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"fastadv: FASTADV_CUDA must be 0 or 1, got {asked!r}")
    if asked == "0":
        return None, "FASTADV_CUDA=0"
    try:
        if torch is None:
            raise Unavailable(str(reason))
        version = (torch / "version.py").read_text()
        if not asked and not re.search(r"^cuda: .*= ['\"]", version, re.M):
            raise Unavailable("torch was built without CUDA (FASTADV_CUDA=1 compiles it even so)")
        return find_nvcc(), None
    except Unavailable as why:
        if asked:
            raise SystemExit(f"fastadv: FASTADV_CUDA=1, but {why}") from why
        return None, str(why)


def find_compiler() -> str:
    """The C++ compiler that CMake will take."""
    if sys.platform == "win32":
        raise Unavailable("the kernels are built on Linux and macOS only")
    named = os.environ.get("CXX")
    choices = shlex.split(named)[:1] if named else ["c++", "g++", "clang++"]
    for name in choices:
        if path := shutil.which(name):
            return path
    if named:
        raise Unavailable(f"CXX must name a C++ compiler, got {named!r}, which is not there")
    raise Unavailable(
        "there is no C++ compiler: install one (Debian, Ubuntu: apt-get install g++; "
        "Fedora: dnf install gcc-c++; macOS: xcode-select --install), then install fastadv again"
    )


def find_headers() -> None:
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise Unavailable(
            f"Python's own headers are missing (Python.h): install python{sys.version_info[0]}."
            f"{sys.version_info[1]}-dev (Fedora: python3-devel), then install fastadv again"
        )


def find_tool(name: str) -> str:
    """A build tool: the one that pip installed beside this interpreter, else the system's."""
    if spec := find_spec(name):
        for folder in spec.submodule_search_locations or ():
            for path in (Path(folder) / "data" / "bin" / name, Path(folder) / "bin" / name):
                if path.is_file():
                    return str(path)
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.is_file() else shutil.which(name)
    if not path:
        raise Unavailable(f"{name} is missing: pip install {name}, or build with isolation")
    return path


def find_pybind11() -> str:
    try:
        import pybind11
    except ImportError as error:
        raise Unavailable(
            "pybind11 is missing: pip install pybind11, or build with isolation"
        ) from error
    return pybind11.get_cmake_dir()


def call(command: list[str]) -> None:
    """Runs a command with its output shown, and raises with the output's own error if it fails."""
    print("fastadv:", shlex.join(command), flush=True)
    last: deque[str] = deque(maxlen=200)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(line.strip())
    if process.returncode:
        error = next((line for line in last if re.search(r"\berror\b", line, re.I)), last[-1])
        raise Unavailable(f"the C++ build failed: {error} (`pip install -v` shows all of it)")


def configure_and_compile(torch: Path | None, nvcc: str | None) -> tuple[Path, dict[str, object]]:
    """One CMake build of everything; returns where the results are, and the facts."""
    compiler = find_compiler()
    find_headers()
    # CMake keeps its first compiler and source folder for good, so each pair has a build folder.
    key = hashlib.sha256(f"{ROOT} {compiler} {os.environ.get('CXX')} {nvcc}".encode()).hexdigest()[
        :8
    ]
    folder = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{key}"
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    configure += [
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={find_pybind11()}",
        f"-DFASTADV_TORCH_DIR={torch or ''}",
        f"-DFASTADV_CUDA={'ON' if nvcc else 'OFF'}",
    ]
    if nvcc:
        architectures = os.environ.get("FASTADV_CUDA_ARCHITECTURES", "")
        configure += [
            f"-DCMAKE_CUDA_COMPILER={nvcc}",
            f"-DFASTADV_CUDA_ARCHITECTURES={architectures}",
        ]
    try:
        call(configure)
    except Unavailable:  # a folder that an older CMake or another Python left behind
        shutil.rmtree(folder, ignore_errors=True)
        call(configure)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    call([cmake, "--build", str(folder), "--parallel", jobs])
    return folder / "fastadv", json.loads((folder / "facts.json").read_text())


class BuildExtensions(build_ext):
    """`_C`, `_native`, `_C_cuda` and _build.json, placed so that no stop leaves a mixture."""

    def run(self) -> None:
        facts: dict[str, object] = {"extensions": [], "reason": None, "torch": None}
        torch, results = None, Path()
        try:
            try:
                torch, facts["torch"] = find_torch()
            except Unavailable as reason:  # `_native` needs no torch
                facts["reason"] = str(reason)
            why = facts["reason"]
            nvcc, facts["cuda_reason"] = choose_cuda(torch, why if isinstance(why, str) else None)
            try:
                results, built = configure_and_compile(torch, nvcc)
            except Unavailable as reason:
                if nvcc is None or os.environ.get("FASTADV_CUDA"):
                    raise
                facts["cuda_reason"] = str(reason)
                results, built = configure_and_compile(torch, None)
            facts |= built
        except Unavailable as reason:
            if os.environ.get("FASTADV_CUDA") == "1":
                raise SystemExit(f"fastadv: FASTADV_CUDA=1, but {reason}") from reason
            facts["reason"] = str(reason)
        self.place(results, facts)

    def target(self) -> Path:
        return ROOT / "fastadv" if self.inplace else Path(self.build_lib) / "fastadv"

    def place(self, results: Path, facts: dict[str, object]) -> None:
        """_build.json goes first and comes last: what it names is there, whole and of one build."""
        target = self.target()
        target.mkdir(parents=True, exist_ok=True)
        for old in [target / "_build.json", *target.glob("_C*.so"), *target.glob("_native*.so")]:
            old.unlink(missing_ok=True)
        if reason := facts["reason"]:
            if os.environ.get("FASTADV_REQUIRE_NATIVE", "0") not in ("", "0"):
                raise SystemExit(f"fastadv: {reason}")
            print(f"fastadv: installed without its compiled kernels: {reason}", file=sys.stderr)
        names = facts["extensions"]
        assert isinstance(names, list)
        for name in names:
            shutil.copy(results / name, target / name)
        draft = target / "_build.json.part"
        draft.write_text(json.dumps(facts, indent=1) + "\n")
        draft.replace(target / "_build.json")

    def get_outputs(self) -> list[str]:
        target = self.target()
        files = [target / "_build.json", *target.glob("_C*.so"), *target.glob("_native*.so")]
        return [str(file) for file in files]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildPython(build_py):
    def run(self) -> None:
        # setuptools keeps its build folder: a module removed since would be installed again.
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "fastadv", ignore_errors=True)
        super().run()


setup(
    packages=[*find_packages(include=["fastadv", "fastadv.*"]), "fastadv.kernels"],
    package_dir={"fastadv.kernels": "kernels"},
    ext_modules=[Extension("fastadv._native", sources=[])],  # so that wheels name the platform
    cmdclass={"build_ext": BuildExtensions, "build_py": BuildPython},
)
