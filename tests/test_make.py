"""What stops `make` where something is missing: a sentence to act on, before any download."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from commands import call

ROOT = Path(__file__).resolve().parents[1]


def make(tmp_path: Path, *arguments: str, **more: str) -> str:
    """The messages of a `make` that must fail, in a copy of the Makefile."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "setup.py", "CMakeLists.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "csrc").mkdir()
    done = call("make", *arguments, cwd=str(tmp_path), **more)
    assert done.returncode != 0
    return done.stderr


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_make_names_a_missing_python(tmp_path: Path) -> None:
    assert "there is no 'no-such-python'" in make(tmp_path, "PYTHON=no-such-python")


def test_make_names_an_old_python(tmp_path: Path) -> None:
    old = script(tmp_path / "old", '[ "$1" = --version ] && echo "Python 3.9.1" || exit 1')
    assert "is Python 3.9.1" in make(tmp_path, f"PYTHON={old}")


def test_make_names_a_missing_venv_module(tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", 'case "$2" in *ensurepip*) exit 1;; esac')
    assert "python3-venv" in make(tmp_path, f"PYTHON={bare}")


def test_make_names_a_missing_compiler(tmp_path: Path) -> None:
    script(tmp_path / ".venv/.created", "")
    assert "there is no 'no-such-g++'" in make(tmp_path, CXX="no-such-g++")


def test_make_names_a_missing_index(tmp_path: Path) -> None:
    script(tmp_path / ".venv/.created", "")
    script(tmp_path / ".venv/bin/python", "echo 'No matching distribution' >&2; exit 1")
    assert "If it found no package index" in make(tmp_path, CXX="sh")


def test_make_installs_the_build_requirements() -> None:
    makefile = (ROOT / "Makefile").read_text()
    tools = re.search(r"^BUILD_TOOLS := (.*)$", makefile, re.M)
    requires = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert tools is not None
    assert requires is not None
    assert tools[1].split() == re.findall(r'"([a-z0-9]+)', requires[1])
