"""What a person has: a model, weights and data in a folder, and the command line to call there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastadv.cli import main

Run = Callable[..., tuple[int, str, str]]  # arguments: exit code, standard output and error

NET = """
import os, time
import torch
from torch import nn

class Net(nn.Sequential):
    forwards = 0
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 4))
    def forward(self, x):
        Net.forwards += 1
        if Net.forwards == int(os.environ.get("INTERRUPT_AT", 0)):
            raise KeyboardInterrupt
        time.sleep(float(os.environ.get("SECONDS", 0)))
        return super().forward(x)

class Broken(nn.Module):
    def forward(self, x):
        return [x]

def make_detached():
    net = Net()
    net.register_forward_hook(lambda module, args, out: out.detach())
    return net

def make_two(): return Net(), Net()
def make_with(size): return Net()
net = Net()
NUMBER = 3
"""
SAMPLES = 20

BASE = ("attack", "--model", "own_net:Net", "--weights", "w.pt", "--data", "data.npz")
LINF = ("--norm", "linf", "--radius", "1/10")


def model(folder: Path) -> torch.nn.Module:
    import own_net

    net = own_net.Net()
    net.load_state_dict(torch.load(folder / "w.pt"))
    return net.eval()


def data(folder: Path) -> tuple[Tensor, Tensor]:
    with np.load(folder / "data.npz") as saved:
        return torch.from_numpy(saved["x"]), torch.from_numpy(saved["y"])


def settle(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Puts the model, weights and data into `folder` and makes it the current one."""
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))
    (folder / "own_net.py").write_text(NET)
    patch.delitem(sys.modules, "own_net", raising=False)
    g = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        import own_net

        net = own_net.Net()
    torch.save(net.state_dict(), "w.pt")
    x = torch.rand(SAMPLES, 3, 4, 4, generator=g)
    y = net(x).argmax(1)
    np.savez("data.npz", x=x.numpy(), y=y.numpy(), target=((y + 1) % 4).numpy())
    own_net.Net.forwards = 0


def caller(capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the command line: (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run
