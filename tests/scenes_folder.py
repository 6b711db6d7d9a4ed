"""A folder with a segmentation model and scenes of a person's own, for the command line's tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

N, H, W, VOID = 20, 8, 10, 255
SEGMENTER = """
import os
from torch import nn

class Segmenter(nn.Sequential):
    forwards = 0
    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 1))
    def forward(self, x):
        Segmenter.forwards += 1
        if Segmenter.forwards == int(os.environ.get("INTERRUPT_AT", 0)):
            raise KeyboardInterrupt
        return super().forward(x)

def make_classifier():
    return nn.Sequential(nn.Flatten(), nn.Linear(240, 4))
"""
MODEL = ("--model", "scenes_net:Segmenter", "--weights", "w.pt", "--data", "data.npz")
LINF = ("--norm", "linf", "--radius", "1/10")
ATTACK, UNIVERSAL = ("attack", *MODEL, *LINF), ("universal", *MODEL)
SEGMENT = (*UNIVERSAL, *LINF, "--method", "segmentation", "--batch-size", "8")
OUT = Path("out/universal")


def settle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model, its weights, and scenes with a row of void and some labels that it gets wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("scenes_net.py").write_text(SEGMENTER)
    monkeypatch.delitem(sys.modules, "scenes_net", raising=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        import scenes_net

        net = scenes_net.Segmenter()
    net[2].weight.data *= 6
    torch.save(net.state_dict(), "w.pt")
    x = torch.rand(N, 3, H, W, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1).to(torch.uint8)
    y[:, 0], y[:, 1] = VOID, (y[:, 1] + 1) % 4
    target = (y.long() + 1).clamp(max=3)
    np.savez("data.npz", x=x.numpy(), y=y.numpy(), target=target.numpy())


def own() -> tuple[torch.nn.Module, Tensor, Tensor]:
    import scenes_net

    net = scenes_net.Segmenter()
    net.load_state_dict(torch.load("w.pt"))
    with np.load("data.npz") as saved:
        return net.eval(), torch.from_numpy(saved["x"]), torch.from_numpy(saved["y"]).long()


def report(folder: Path | str) -> dict:
    return json.loads(Path(folder, "report.json").read_text())
