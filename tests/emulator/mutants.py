"""Kernels with a bug: copies of fastadv.kernels with one piece of text changed, and PTX without one
of its barriers."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType

from fastadv import kernels

_numbers = count()
_BARRIER = re.compile(r"(?:bar\.sync|barrier\.sync|bar\.warp\.sync)[^;]*;")


@contextmanager
def mutated(folder: Path, file: str, old: str, new: str) -> Iterator[Callable[[str], ModuleType]]:
    """Imports modules of a copy of fastadv.kernels in which `old` is `new` in one file."""
    name = f"mutant_{next(_numbers)}"
    package = folder / name
    package.mkdir()
    (package / "__init__.py").touch()
    for source in Path(kernels.__path__[0]).glob("*.py"):
        if source.name == "__init__.py":
            continue
        text = source.read_text()
        if source.name == file:
            assert text.count(old) >= 1, f"{file} no longer has {old!r}"
            text = text.replace(old, new)
        (package / source.name).write_text(text.replace("fastadv.kernels", name))
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield lambda module: importlib.import_module(f"{name}.{module}")
    finally:
        sys.path.remove(str(folder))
        for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[loaded]


def barriers(ptx: str) -> int:
    return len(_BARRIER.findall(ptx))


def entry(ptx: str) -> str:
    """The name of a module's kernel."""
    found = re.search(r"\.entry\s+(\w+)", ptx)
    assert found
    return found[1]


def without_barrier(kernel: str, number: int) -> Callable[[str], str]:
    """Drops one barrier of one kernel."""

    def edit(ptx: str) -> str:
        if entry(ptx) != kernel:
            return ptx
        match = list(_BARRIER.finditer(ptx))[number]
        return ptx[: match.start()] + ptx[match.end() :]

    return edit
