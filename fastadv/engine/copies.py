"""Weights as a GPU reads them best: convolutions' channels last, and in bfloat16 where asked.

The copies keep their place in memory, so that a captured graph can read them. They are written
anew at the start of each attack, and before each forward outside of one: no sign of a change that
can be read without waiting for the device tells of all changes (see weights.py). That is one pass
over those weights, 45 MB read and 45 MB written for ResNet-18 in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_PRODUCTS = (nn.modules.conv._ConvNd, nn.Linear)  # what autocast runs in bfloat16


class Copies:
    """The copies of one model's weights; a parameter that is as it should be is lent itself."""

    def __init__(self, module: nn.Module, bfloat16: bool) -> None:
        self._module, self.bfloat16 = module, bfloat16
        self._kept: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def refresh(self) -> None:
        """Writes the copies of the parameters as they are now."""
        before, self._kept = self._kept, {}
        with torch.inference_mode(False), torch.no_grad():
            for parameter in self._parameters():
                wanted = self._wanted(parameter)
                if _has(parameter, wanted):
                    continue
                kept = before.get(id(parameter), (parameter, parameter))[1]
                same = kept.shape == parameter.shape and kept.device == parameter.device
                if not (same and _has(kept, wanted)):
                    kept = torch.empty(parameter.shape, device=parameter.device, **wanted)
                self._kept[id(parameter)] = parameter, kept
            if self._kept:
                parameters, copies = zip(*self._kept.values(), strict=True)
                torch._foreach_copy_(list(copies), [p.detach() for p in parameters])

    def lend(self, parameter: nn.Parameter) -> Tensor:
        """What a forward reads in the place of a parameter."""
        kept = self._kept.get(id(parameter))
        return parameter.detach() if kept is None else kept[1]

    @property
    def bytes(self) -> int:
        return sum(copy.numel() * copy.element_size() for _, copy in self._kept.values())

    @property
    def pointers(self) -> tuple[int, ...]:
        """Where they stand."""
        return tuple(copy.data_ptr() for _, copy in self._kept.values())

    def _parameters(self) -> Iterator[nn.Parameter]:
        """The weights and biases of convolutions and linear layers, each once."""
        seen = set()
        for module in self._module.modules():
            for name in ("weight", "bias") if isinstance(module, _PRODUCTS) else ():
                parameter = module._parameters.get(name)
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter

    def _wanted(self, parameter: Tensor) -> dict[str, Any]:
        half = self.bfloat16 and parameter.dtype == torch.float32
        return {
            "dtype": torch.bfloat16 if half else parameter.dtype,
            "memory_format": _FORMATS.get(parameter.dim(), torch.contiguous_format),
        }


def _has(t: Tensor, wanted: dict[str, Any]) -> bool:
    return t.dtype == wanted["dtype"] and t.is_contiguous(memory_format=wanted["memory_format"])
