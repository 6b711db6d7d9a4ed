"""What the build left beside this file: _build.json, written by setup.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class BuildInfo:
    """The compiled parts of one installed copy, and why one is missing."""

    folder: Path
    extensions: tuple[str, ...] = ()  # file names beside _build.json
    reason: str | None = None  # why `_C` or `_native` is missing; None where both are there
    isas: tuple[str, ...] = ()  # instruction sets that the kernels were built for
    compiler: str | None = None
    flags: str | None = None
    torch: str | None = None  # the version whose headers `_C` was built with
    cuda_reason: str | None = None  # why `_C_cuda` is missing; None where it is there
    cuda_architectures: tuple[str, ...] = ()  # CMake's: "80-real" is code, "100" PTX too

    def path(self, name: str) -> Path | None:
        """The file of an extension ("_C", "_native", "_C_cuda"), or None if it was not built."""
        files = (self.folder / file for file in self.extensions if file.split(".")[0] == name)
        return next((file for file in files if file.is_file()), None)


def read(folder: Path = _HERE) -> BuildInfo:
    """Reads _build.json in `folder`; a copy that was never built gets a reason that says so."""
    try:
        facts = json.loads((folder / "_build.json").read_text())
    except FileNotFoundError:
        return BuildInfo(folder, reason="this copy has not been built: run `make`, or pip install")
    return BuildInfo(
        folder,
        extensions=tuple(facts["extensions"]),
        reason=facts["reason"],
        isas=tuple(facts.get("isas", ())),
        compiler=facts.get("compiler"),
        flags=facts.get("flags"),
        torch=facts["torch"],
        cuda_reason=facts.get("cuda_reason"),
        cuda_architectures=tuple(facts.get("cuda_architectures", ())),
    )
