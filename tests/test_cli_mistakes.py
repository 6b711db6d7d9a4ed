"""What python -m fastadv attack says of mistakes: one sentence each, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_folder import BASE, LINF, Run, caller, data, settle


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settle(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(capsys)


MISTAKES = {
    "--data nope.npz": "--data must name an existing file, got 'nope.npz'",
    "--data own_net.py": "--data must end in .npz",
    "--data data.npz data.npz": "--data must be one file, or two .npy files",
    "--data text.npz": "must hold arrays of numbers",
    "--data text.pt": "must hold arrays of numbers",
    "--data objects.npz": "cannot be read",
    "--data words.npz": "x must hold numbers, got dtype <U1",
    "--data wide.npz": "`x` must lie within the ball's bounds",
    "--data nan.npz": "`x` must be finite",
    "--data whole.npz": "x must be floating or uint8 (pixels), got int64",
    "--data labels.npz": "`y` must be in [0, 4), got 4 for sample 0",
    "--data short.npz": "y must have 20 entries, one a sample of x, got shape (3,)",
    "--data flat.npz": "must take x of shape (1, 3), and fails",
    "--data empty.npz": "at least one sample",
    "--data data.npz --x-key images": "must hold the key 'images', got 'x', 'y', 'target'",
    "--data data.npz --y-key labels": "must hold the key 'labels'",
    "--data flat.npz --channels-last-data": "needs x of shape (N, H, W, C), got (20, 3)",
    "--weights none.pt": "--weights must name an existing file, got 'none.pt'",
    "--weights text.pt": "must hold tensors only",
    "--weights other.pt": "do not fit the model: 1 of another shape (1.weight (2, 2) for the",
    "--weights list.pt": "must hold a state_dict, got list",
    "--model own_net": "--model must be MODULE:NAME",
    "--model no_such_module:Net": "there is no module 'no_such_module'",
    "--model own_net:Nett": "names 'Nett', which own_net does not have: it has",
    "--model own_net:NUMBER": "or a class or function that gives one, got int",
    "--model own_net:make_two": "must give a torch.nn.Module, got tuple",
    "--model own_net:make_with": "is called without arguments, and fails: TypeError",
    "--model faulty:Net": "--model faulty could not be imported: SyntaxError",
    "--model missing.py:Net": "must name an existing file",
    "--model own_net:Broken --weights nothing.pt": "must give one row of logits a sample, got list",
    "--model own_net:make_detached": "`model` must be differentiable",
    "--norm l3": "--norm must be linf, l2 or l1, got 'l3'",
    "--radius 0": "--radius must be above 0, got '0'",
    "--radius -8/255": "--radius must be above 0, got '-8/255'",
    "--radius eight": "--radius must be a number or a fraction such as 8/255, got 'eight'",
    "--radius 1/0": "--radius must be a number or a fraction",
    "--steps 1.5": "--steps must be a whole number, at least 1, got '1.5'",
    "--steps 3 --attack fgsm": "--steps does not go with --attack fgsm",
    "--stop cycle --attack mi_fgsm": "`stop`='cycle' needs iterates that follow from the last one",
    "--restarts 2 --attack bim": "`restarts` needs start='uniform', as pgd has",
    "--attack apgd --norm l1": "`ball` must be Linf or L2 for apgd",
    "--objective ce": "--objective must be cross_entropy, binary_cross_entropy, margin, dlr or kl",
    "--bounds 1 0": "must have lower < upper",
    "--bounds 0": "--bounds must be LOWER UPPER or none, got 0",
    "--bounds a b": "--bounds must be a number or a fraction",
    "--mean 0": "--mean and --std go together",
    "--mean 0 --std 0": "`std` must be positive",
    "--mean 0 0 --std 1 1": "`mean` and `std` have 2 channels",
    "--device tpu9": "--device must be one of this machine's, got 'tpu9'",
    "--dtype int8": "--dtype must be float32, float64, bfloat16 or float16, got 'int8'",
    "--target-key goal": "must hold the key 'goal'",
    "--out w.pt": "--out must be a folder",
    "--resume --overwrite": "not allowed with",
    "--unknown": "unrecognized arguments: --unknown",
}


@pytest.fixture
def faulty_files(here: Path) -> None:
    x, y = (values.numpy() for values in data(here))
    np.savez("objects.npz", x=np.array([{}], dtype=object))
    np.savez("words.npz", x=np.array(["a"]))
    np.savez("wide.npz", x=x * 255, y=y)
    np.savez("nan.npz", x=x * np.nan, y=y)
    np.savez("whole.npz", x=(x * 255).astype("int64"), y=y)
    np.savez("labels.npz", x=x, y=y * 0 + 4)
    np.savez("short.npz", x=x, y=y[:3])
    np.savez("flat.npz", x=x[:, :, 0, 0], y=y)
    np.savez("empty.npz", x=x[:0], y=y[:0])
    for name in ("text.npz", "text.pt"):
        Path(name).write_text("not a file of arrays")
    state = torch.load("w.pt")
    torch.save(state | {"1.weight": torch.zeros(2, 2)}, "other.pt")
    torch.save([1, 2], "list.pt")
    torch.save({}, "nothing.pt")
    Path("faulty.py").write_text("def (")


@pytest.mark.usefixtures("faulty_files")
@pytest.mark.parametrize("options", MISTAKES, ids=lambda text: text.replace(" ", "_"))
def test_a_mistake_gets_one_sentence(run: Run, options: str) -> None:
    code, _, error = run(*BASE, *LINF, *options.split())
    assert code == 2
    assert MISTAKES[options] in error
    assert error.startswith("python -m fastadv")
    assert error.count("\n") == 1
    assert not Path("out/attack/report.json").exists()
