"""Python run in a clone's folder finds the clone's fastadv/ before the installed copy, and the
clone's may have no compiled extension, or one of half a build. A copy is whole once it has
_build.json; where this one has none and another has, the other serves."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path


def package_path(path: list[str]) -> list[str]:
    """Where fastadv's modules are taken from: `path`, or the built copy that it hides."""
    chosen = _whole_copy(path)
    _find_kernels(Path(chosen[0]).resolve())
    return chosen


def _whole_copy(path: list[str]) -> list[str]:
    here = Path(path[0]).resolve()
    if (here / "_build.json").is_file():
        return path
    others = [entry for entry in sys.path if (Path(entry) / "fastadv").resolve() != here]
    for finder in sys.meta_path:  # editable installs have finders of their own
        find_spec = getattr(finder, "find_spec", None)
        spec = find_spec and find_spec("fastadv", others if finder is PathFinder else None)
        places = list(spec.submodule_search_locations or ()) if spec else []
        if places and Path(places[0]).resolve() != here and _built(places[0]):
            return places
    return path


def _built(place: str) -> bool:
    return (Path(place) / "_build.json").is_file()


class _Checkout:
    """Finds fastadv.kernels in a checkout, where it stands beside fastadv/ and not in it."""

    def __init__(self, kernels: Path) -> None:
        self.kernels = kernels

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != "fastadv.kernels":
            return None
        start = self.kernels / "__init__.py"
        return spec_from_file_location(name, start, submodule_search_locations=[str(start.parent)])


def _find_kernels(package: Path) -> None:
    """Lets `import fastadv.kernels` find those of the same checkout.

    Before all other finders: an editable install of another checkout knows other kernels.
    """
    if not (package / "kernels").exists() and (package.parent / "setup.py").is_file():
        sys.meta_path.insert(0, _Checkout(package.parent / "kernels"))
