"""python -m fastadv universal: what it finds and writes, resuming, --apply, mistakes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_folder import LINF, SAMPLES, Run, caller, data, model, settle
from safetensors import safe_open

import fastadv as fa
from fastadv.cli import digits
from fastadv.cli.universal_methods import METHODS, Batches

BASE = ("universal", "--model", "own_net:Net", "--weights", "w.pt", "--data", "data.npz")
OUT = Path("out/universal")
SWEEP = ("--passes", "3", "--fooling-rate", "1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settle(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(capsys)


def test_moosavi_finds_and_writes_what_the_function_does(here: Path, run: Run) -> None:
    options = ("--method", "moosavi", "--seed", "3", "--batch-size", "8", *SWEEP)
    code, out, error = run(*BASE, *LINF, *options)
    assert (code, error) == (0, "")
    x, y = data(here)
    batches = Batches(x[:16], y[:16], 8, torch.device("cpu"), 3)
    net = model(here)
    uap = fa.universal.moosavi(fa.Linf(0.1), net, batches, passes=3, fooling_rate=1.0)
    saved = fa.Perturbation.load(OUT / "uap.safetensors")
    assert torch.equal(saved.delta, uap.delta)
    assert saved.ball == uap.ball
    report = json.loads((OUT / "report.json").read_text())
    rates = report["rates"]["perturbation"]
    assert rates["unseen"]["samples"] == 4
    assert rates["searched"]["fooled"] == fa.universal.measure(uap, net, [x[:16]]).fooled
    assert rates["unseen"]["wrong"] == fa.universal.measure(uap, net, [(x[16:], y[16:])]).wrong
    assert report["rates"]["noise"]["searched"]["samples"] == 16
    assert report["run"]["method"] == "moosavi"
    assert report["norm"] == uap.norm()
    with safe_open(OUT / "uap.safetensors", framework="pt") as file:
        facts = file.metadata()
    assert json.loads(facts["rates"]) == report["rates"]
    assert facts["data_sha256"] == report["run"]["data_sha256"]
    assert (facts["model"], facts["method"], facts["seed"]) == ("own_net:Net", "moosavi", "3")
    assert {p.name for p in OUT.iterdir()} == {"uap.safetensors", "uap.png", "report.json"}
    for word in ("perturbation", "noise", "unseen", "uap.safetensors"):
        assert word in out


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if 2 in m.logits])
def test_every_method(method: str, run: Run) -> None:
    if method in ("fast-feature-fool", "gd-uap"):  # the net of the other tests has no convolution
        more = ("--steps", "5")
        Path("conv.py").write_text("from fastadv.cli.digits import make_model\n")
        digit = digits.load()
        np.savez("data.npz", x=digit.x[:20].numpy(), y=digit.y[:20].numpy())
        base = ("universal", "--model", "conv.py:make_model", "--data", "data.npz")
    else:
        more, base = ("--passes", "1"), BASE
    code, _, error = run(*base, "--method", method, "--norm", "l2", "--radius", "1/2", *more)
    assert (code, error) == (0, "")
    assert 0 < fa.Perturbation.load(OUT / "uap.safetensors").norm() <= 0.5


def test_apply(here: Path, run: Run) -> None:
    x, y = data(here)
    uap = fa.Perturbation(torch.full((3, 4, 4), 0.4), fa.Linf(0.4))
    uap.save("uap.safetensors")
    applied = ("--apply", "uap.safetensors", "--batch-size", "7")
    assert run(*BASE, *applied)[0] == 0
    saved = np.load(OUT / "adversarial.npz")
    assert torch.equal(torch.from_numpy(saved["x_adv"]), uap.apply(x))
    fooled = model(here)(uap.apply(x)).argmax(1) != y  # y are the predictions
    assert np.array_equal(saved["fooled"], fooled.numpy())
    assert np.array_equal(saved["y"], y.numpy())
    rates = json.loads((OUT / "report.json").read_text())["rates"]["perturbation"]["all"]
    assert rates == {
        "fooled": fooled.double().mean(), "wrong": fooled.double().mean(), "samples": SAMPLES
    }  # fmt: skip
    code, _, error = run(*BASE, *applied)
    assert (code, "holds results already" in error) == (2, True)
    assert run(*BASE, *applied, "--resume")[0] == 0
    fa.Perturbation(-uap.delta, uap.ball).save("uap.safetensors")
    code, _, error = run(*BASE, *applied, "--resume")
    assert (code, "the values of the perturbation are not the same" in error) == (2, True)
    assert run(*BASE, *applied, "--overwrite")[0] == 0


def test_apply_a_tile(here: Path, run: Run) -> None:
    x, _ = data(here)
    for place in ("tiles", (0, 1, 2)):
        uap = fa.Perturbation(torch.full((3, 3, 2), 0.4), fa.Linf(0.4), place)
        uap.save("uap.safetensors")
        applied = ("--apply", "uap.safetensors", "--overwrite")
        assert run(*BASE, *applied)[0] == 0
        saved = np.load(OUT / "adversarial.npz")
        assert torch.equal(torch.from_numpy(saved["x_adv"]), uap.apply(x))
    for other, words in (
        (fa.Perturbation(torch.zeros(3, 5, 4), fa.Linf(0.4), "tiles"), "`delta` must fit into"),
        (fa.Perturbation(torch.zeros(4, 3, 4, 4), fa.Linf(0.4), per_class=True), "got one a class"),
    ):
        other.save("uap.safetensors")
        code, _, error = run(*BASE, *applied)
        assert (code, words in error) == (2, True), error


@pytest.mark.parametrize("method", ["moosavi", "averaged"])
def test_an_interrupted_search_goes_on_to_the_same_result(
    method: str, here: Path, run: Run
) -> None:
    import own_net

    options = (*BASE, *LINF, "--method", method, "--batch-size", "8", *SWEEP)
    assert run(*options, "--out", "whole")[0] == 0
    made, own_net.Net.forwards = own_net.Net.forwards, 0
    os.environ["INTERRUPT_AT"] = str(int(made * 0.6))
    try:
        code, _, error = run(*options, "--out", "parts")
    finally:
        del os.environ["INTERRUPT_AT"]
    assert code == 130
    assert "the same command with --resume goes on" in error
    assert not Path("parts/uap.safetensors").exists()
    assert "unfinished run" in run(*options, "--out", "parts")[2]
    other = run(*options, "--out", "parts", "--resume", "--seed", "9")
    assert (other[0], "seed was 0, now it is 9" in other[2]) == (2, True)
    assert run(*options, "--out", "parts", "--resume")[0] == 0
    whole, parts = (fa.Perturbation.load(f"{name}/uap.safetensors") for name in ("whole", "parts"))
    assert torch.equal(whole.delta, parts.delta)
    assert not Path("parts/unfinished").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--method --apply is required"),
        (("--method", "deepfool", *LINF), "--method must be moosavi, averaged, gradient"),
        (("--method", "moosavi", "--norm", "linf"), "--radius must be given with --method moosavi"),
        (("--method", "moosavi", "--radius", "1"), "--norm must be given"),
        (("--method", "moosavi", *LINF, "--target", "1"), "--target does not go with"),
        (("--method", "gd-uap", *LINF, "--passes", "1"), "--passes does not go with --method gd"),
        (("--method", "gd-uap", *LINF), "`layers` must be given for a model without convolutions"),
        (("--method", "moosavi", *LINF, "--holdout", "1"), "--holdout must be below 1"),
        (("--method", "moosavi", *LINF, "--fooling-rate", "2"), "`fooling_rate` must be in (0, 1]"),
        (("--method", "gradient", *LINF, "--target", "9"), "`target` must be in [0, 4)"),
        (("--method", "moosavi", *LINF, "--bounds", "0", "0.1"), "`x` must lie within"),
        (("--apply", "none.safetensors"), "--apply must name an existing file"),
        (("--apply", "w.pt"), "--apply: `path` must be a safetensors file"),
        (("--apply", "uap.safetensors", "--passes", "1"), "--passes does not go with --apply"),
        (("--apply", "uap.safetensors", *LINF), "--norm does not go with --apply"),
        (("--apply", "uap.safetensors"), "is for samples of (5,), got data of (3, 4, 4)"),
    ],
)
def test_mistakes_are_one_sentence(options: tuple[str, ...], words: str, run: Run) -> None:
    fa.Perturbation(torch.zeros(5), fa.Linf(0.1)).save("uap.safetensors")
    code, _, error = run(*BASE, *options)
    assert code == 2
    assert words in error
    assert "Traceback" not in error
    assert error.count("\n") == 1
