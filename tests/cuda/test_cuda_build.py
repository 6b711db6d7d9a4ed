"""_C_cuda: it compiles and links without a GPU and without a torch with CUDA, registers every op,
and its machine code is what the kernels' first lines promise. Nothing of it runs here.

`make test` compiles it for one architecture (40 s of one core), `-m slow` for all (2 minutes).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call

ROOT = Path(__file__).resolve().parents[2]
OPS = ("step_linf_", "step_l2_", "step_l1_", "universal_linf_", "universal_l2_", "universal_l1_",
       "head", "digest", "uniform")  # fmt: skip


def find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def find_cuobjdump() -> str | None:
    """The toolkit's, or the one that Triton's wheel carries."""
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    return shutil.which("cuobjdump", path=str(Path(triton.__file__).parent / "backends/nvidia/bin"))


needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="there is no nvcc")
needs_cuobjdump = pytest.mark.skipif(find_cuobjdump() is None, reason="there is no cuobjdump")


def compiled(folder: Path, architectures: str = "") -> Path:
    """_C_cuda.so, as setup.py has CMake build it, and nothing beside it."""
    cmake = pytest.importorskip("cmake")
    ninja = pytest.importorskip("ninja")
    pybind11 = pytest.importorskip("pybind11")
    import torch

    program = str(Path(cmake.CMAKE_BIN_DIR) / "cmake")
    options = {
        "CMAKE_MAKE_PROGRAM": Path(ninja.BIN_DIR) / "ninja",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "FASTADV_TORCH_DIR": Path(torch.__file__).parent,
        "FASTADV_CUDA": "ON",
        "FASTADV_CUDA_ARCHITECTURES": architectures,
        "CMAKE_CUDA_COMPILER": find_nvcc(),
    }
    words = [f"-D{name}={value}" for name, value in options.items()]
    done = call(program, "-S", ROOT, "-B", folder, "-G", "Ninja", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = str(os.cpu_count() or 1)
    done = call(program, "--build", folder, "--target", "_C_cuda", "--parallel", jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout, done.stdout
    return folder / "fastadv" / "_C_cuda.so"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("sm_90"), "90-real")


@pytest.fixture(scope="module")
def all_architectures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("all"))


def cuobjdump(*arguments: object) -> str:
    command = [str(find_cuobjdump()), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# The one symbol that a torch without CUDA lacks, so that the module loads beside it.
STREAM = "int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }\n"
REGISTERED = """
import ctypes, sys, torch
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
import fastadv
has = torch._C._dispatch_has_kernel_for_dispatch_key
assert not any(has(f"fastadv::{op}", "CUDA") for op in sys.argv[3:])
torch.ops.load_library(sys.argv[2])
print([op for op in sys.argv[3:] if has(f"fastadv::{op}", "CUDA")])
"""


@needs_nvcc
def test_every_op_is_registered_for_cuda(library: Path, tmp_path: Path) -> None:
    import torch

    if torch.version.cuda:
        pytest.skip("torch has CUDA, and the symbol")
    source, stand_in = tmp_path / "stream.c", tmp_path / "stream.so"
    source.write_text(STREAM)
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", stand_in], check=True)
    done = call(sys.executable, "-c", REGISTERED, stand_in, library, *OPS, PYTHONPATH=str(ROOT),
                FASTADV_BACKEND="reference")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(list(OPS))


@needs_nvcc
def test_only_the_stream_is_missing_beside_a_torch_without_cuda(library: Path) -> None:
    import torch

    if torch.version.cuda:
        pytest.skip("torch has CUDA, and the symbol")
    done = call(
        sys.executable, "-c", "import ctypes, sys, torch; ctypes.CDLL(sys.argv[1])", library
    )
    missing = re.findall(r"undefined symbol: (\w+)", done.stderr)
    assert missing == ["aoti_torch_get_current_cuda_stream"]


def check_resources(library: Path, kernels: int) -> None:
    """No kernel spills, has a stack, or takes more shared memory than any device gives."""
    usage = re.findall(
        r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        cuobjdump("-res-usage", library),
    )
    assert len(usage) == kernels
    for name, registers, stack, shared, local in usage:
        assert int(registers) <= 255, name
        assert (int(stack), int(local)) == (0, 0), name
        assert int(shared) <= 48 * 1024, name


@needs_nvcc
@needs_cuobjdump
def test_nothing_spills(library: Path) -> None:
    check_resources(library, 110)


@needs_nvcc
@needs_cuobjdump
@pytest.mark.slow
def test_all_architectures(all_architectures: Path) -> None:
    check_resources(all_architectures, 3 * 110)
    cubins = cuobjdump("-lelf", all_architectures)
    assert set(re.findall(r"sm_\d+", cubins)) == {"sm_80", "sm_90", "sm_100"}
    assert set(re.findall(r"sm_\d+", cuobjdump("-lptx", all_architectures))) == {"sm_100"}


@pytest.fixture(scope="module")
def machine_code(library: Path) -> str:
    return cuobjdump("-sass", library)


def code_of(machine_code: str, name: str) -> list[str]:
    """A kernel's machine instructions."""
    start = machine_code.index(f"Function : {name}")
    end = machine_code.find("Function : ", start + 1)
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+([^;]+);", machine_code[start:end])


@needs_nvcc
@needs_cuobjdump
@pytest.mark.parametrize("dtype", ["f", "d", "NS_8bfloat16ES2_", "NS_7float16ES2_"])
def test_linf_moves_16_bytes_at_a_time(machine_code: str, dtype: str) -> None:
    """Three loads and one store of 128 bits, and beside them four scalars in the whole body."""
    both = dtype if dtype.startswith("N") else dtype * 2
    code = code_of(machine_code, f"_ZN7fastadv4cuda9step_linfI{both}Lb1ELb0EE")
    accesses = [line for line in code if re.search(r"\b(LDG|STG)\b", line)]
    whole = [line for line in accesses if ".128" in line]
    assert [bool(re.search(r"\bLDG", line)) for line in whole] == [True, True, True, False]
    body = code[first_of_body(code, whole) : code.index(whole[-1]) + 1]
    narrow = [line for line in body if re.search(r"\b(LDG|STG)\b", line) and ".128" not in line]
    assert len(narrow) == 4  # step size, radius, lower and upper: one each
    assert all("LDG" in line for line in narrow)


def first_of_body(code: list[str], whole: list[str]) -> int:
    """Where the code of whole vectors begins: after the last way out of the code before it."""
    before = code[: code.index(whole[0])]
    return max(i for i, line in enumerate(before) if re.match(r"(EXIT|BRA\b)", line.strip())) + 1


def refused(**more: str) -> str:
    """What setup.py says of a build that it refuses before it begins."""
    done = call(sys.executable, "setup.py", "-q", "build_ext", cwd=str(ROOT), **more)
    assert done.returncode != 0
    return done.stderr


def test_fastadv_cuda_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    assert "FASTADV_CUDA must be 0 or 1, got 'yes'" in refused(FASTADV_CUDA="yes")
    message = refused(FASTADV_CUDA="1", CUDACXX="no-such-nvcc")
    assert "FASTADV_CUDA=1, but CUDACXX must name nvcc, got 'no-such-nvcc'" in message
    (tmp_path / "include").mkdir()
    (tmp_path / "version.py").write_text("__version__ = '2.9.1'\n")
    message = refused(FASTADV_CUDA="1", FASTADV_TORCH_DIR=str(tmp_path))
    assert "FASTADV_CUDA=1, but torch must be 2.10 or newer, got 2.9.1" in message
