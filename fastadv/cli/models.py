"""A person's own model: --model MODULE:NAME, and --weights."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastadv.cli.arguments import Mistake


def load(spec: str, weights: str | None, strict: bool = True) -> nn.Module:
    """The model that MODULE:NAME or FILE.py:NAME makes, with its weights."""
    place, colon, name = spec.rpartition(":")
    if not (place and colon and name):
        raise Mistake(f"--model must be MODULE:NAME, such as my_module:make_model, got {spec!r}")
    model = _made(_attribute(_module(place), place, name), spec)
    if weights is not None:
        _put(model, _state(Path(weights)), weights, strict)
    return model


def digest(model: nn.Module) -> str:
    """Of every parameter and buffer: two models of one digest are the same."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode())
        if isinstance(value, Tensor):
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def tensors(path: Path) -> Any:
    """What torch.save wrote, if it holds nothing but tensors; raises UnpicklingError for others."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError):
        raise
    except Exception as error:  # the unpickler meets other files with any error
        raise pickle.UnpicklingError(str(error)) from error


def _module(place: str) -> ModuleType:
    try:
        if place.endswith(".py"):
            return _from_file(Path(place))
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or place
        if place == missing or place.startswith(f"{missing}."):
            raise Mistake(
                f"--model must name a module that can be imported from {Path.cwd()}, "
                f"got {place!r}: there is no module {missing!r}"
            ) from error
        raise Mistake(f"--model {place} needs {missing!r}, which is not installed") from error
    except Mistake:
        raise
    except Exception as error:
        raise Mistake(f"--model {place} could not be imported: {_short(error)}") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Mistake(f"--model must name an existing file, got {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, place: str, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            have = [n for n, value in vars(module).items() if _makes_models(value, module)]
            hint = f": it has {', '.join(have[:5])}" if have else ""
            raise Mistake(f"--model names {name!r}, which {place} does not have{hint}")
        found = getattr(found, part)
    return found


def _makes_models(value: object, module: ModuleType) -> bool:
    own = getattr(value, "__module__", None) == module.__name__
    return isinstance(value, nn.Module) or (callable(value) and own)


def _made(found: Any, spec: str) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise Mistake(
            f"--model {spec} must be a torch.nn.Module, or a class or function that gives one, "
            f"got {type(found).__name__}"
        )
    try:
        model = found()
    except Exception as error:
        raise Mistake(f"--model {spec} is called without arguments, and fails: {_short(error)}") \
            from error  # fmt: skip
    if not isinstance(model, nn.Module):
        raise Mistake(f"--model {spec} must give a torch.nn.Module, got {type(model).__name__}")
    return model


def _state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise Mistake(f"--weights must name an existing file, got {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = tensors(path)
    except pickle.UnpicklingError as error:
        raise Mistake(
            f"--weights {path} must hold tensors only, as torch.save(model.state_dict(), path) "
            "writes them: it is no such file, or holds other objects"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise Mistake(f"--weights {path} cannot be read: {_short(error)}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not (isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values())):
        raise Mistake(f"--weights {path} must hold a state_dict, got {type(state).__name__}")
    return state


def _put(model: nn.Module, state: Mapping[str, Tensor], weights: str, strict: bool) -> None:
    own = model.state_dict()
    both = [name for name in own if name in state]
    shapes = [
        f"{name} {tuple(state[name].shape)} for the model's {tuple(own[name].shape)}"
        for name in both
        if state[name].shape != own[name].shape
    ]
    faults = [_some("of another shape", shapes)]
    if strict:
        faults.append(_some("missing", [name for name in own if name not in state]))
        faults.append(_some("unknown to the model", [name for name in state if name not in own]))
    if any(faults):
        raise Mistake(
            f"--weights {weights} do not fit the model: {'; '.join(filter(None, faults))}"
        )
    if own and not both:
        raise Mistake(f"--weights {weights} must share names with the model, got none of them")
    model.load_state_dict(state, strict=strict)


def _some(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {what} ({shown})" if names else ""


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
