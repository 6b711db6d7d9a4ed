"""python -m fastadv: what it writes, how it goes on after an interruption, help and the demo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_folder import BASE, LINF, SAMPLES, Run, caller, data, model, settle
from safetensors.torch import load_file, save_file

import fastadv as fa
from fastadv.cli.arguments import number


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settle(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(capsys)


def test_attack_writes_what_the_attack_finds(here: Path, run: Run) -> None:
    code, out, error = run(*BASE, *LINF, "--seed", "3", "--batch-size", "8")
    assert (code, error) == (0, "")
    x, y = data(here)
    attack = fa.pgd(fa.Linf(0.1))
    expected = torch.cat([
        attack(model(here), x[k : k + 8], y[k : k + 8], offset=k,
               generator=torch.Generator().manual_seed(3))
        for k in (0, 8, 16)
    ])  # fmt: skip
    saved = np.load("out/attack/adversarial.npz")
    x_adv = torch.from_numpy(saved["x_adv"])
    assert torch.equal(x_adv, expected)
    verdict = fa.verify(model(here), x, x_adv, y, attack.ball)
    assert bool(verdict.feasible.all())
    assert np.array_equal(saved["success"], verdict.fooled.numpy())
    assert np.array_equal(saved["distance"], verdict.distance.numpy())
    assert np.array_equal(saved["y"], y.numpy())
    report = json.loads(Path("out/attack/report.json").read_text())
    assert report["clean_accuracy"] == 1
    assert report["attacks"][0]["robust_accuracy"] == pytest.approx(verdict.robust_accuracy)
    assert report["attacks"][0]["attack"] == repr(attack)
    assert report["seed"] == 3
    assert report["environment"]["backend"] == str(fa.backend())
    assert report["run"]["model"] == "own_net:Net"
    for part in ("PGD-10 linf 0.1", "clean", "100.0 %", "adversarial.npz", "own_net:Net with w.pt"):
        assert part in out
    assert sorted(p.name for p in Path("out/attack").iterdir()) == [
        "adversarial.npz",
        "report.json",
    ]


def test_a_targeted_attack(run: Run) -> None:
    code, out, _ = run(*BASE, *LINF, "--target-key", "target", "--attack", "mi_fgsm")
    assert code == 0
    assert "target" in out
    report = json.loads(Path("out/attack/report.json").read_text())
    success = np.load("out/attack/adversarial.npz")["success"]
    assert report["attacks"][0]["target_rate"] == pytest.approx(success.mean())


def test_without_labels_only_fooling_is_told(here: Path, run: Run) -> None:
    np.savez("bare.npz", x=data(here)[0].numpy())
    code, out, _ = run(*BASE[:-1], "bare.npz", *LINF)
    assert code == 0
    assert "predictions serve" in out
    assert "accuracy" not in out
    report = json.loads(Path("out/attack/report.json").read_text())
    assert report["clean_accuracy"] is None
    assert "y" not in np.load("out/attack/adversarial.npz")


@pytest.mark.parametrize("form", ["pt", "safetensors", "npy"])
def test_formats_layouts_and_pixels(here: Path, run: Run, form: str) -> None:
    x, y = data(here)
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    files = [f"images.{form}"]
    if form == "pt":
        torch.save((pixels, y), files[0])
    elif form == "safetensors":
        save_file({"x": pixels, "y": y}, files[0])
    else:
        files.append("labels.npy")
        np.save(files[0], pixels.numpy())
        np.save(files[1], y.numpy().astype("uint8"))
    code, out, error = run(
        *BASE[:-1], *files, *LINF, "--channels-last-data", "--format", "safetensors",
        "--norm", "l2", "--stop", "fooled",
    )  # fmt: skip
    assert (code, error) == (0, "")
    assert "divided by 255" in out
    found = load_file("out/attack/adversarial.safetensors")
    assert found["x_adv"].shape == pixels.shape
    change = (found["x_adv"].double() - (pixels.float() / 255).double()).flatten(1).norm(dim=1)
    assert torch.equal(change, found["distance"]) or torch.allclose(change, found["distance"])
    assert bool((found["distance"] <= 0.1).all())


OPTIONS = """
--dtype float64
--dtype bfloat16
--attack apgd --objective dlr --steps 5
--mean .5 .4 .3 --std 1/4 1/4 1/5
--norm l1 --radius 2 --bounds none
--bounds -1 1,1,2 --attack bim
--model own_net.py:Net
--model own_net:net
"""


@pytest.mark.parametrize("options", OPTIONS.strip().splitlines())
def test_options_work(run: Run, options: str) -> None:
    code, _, error = run(*BASE, *LINF, *options.split())
    assert (code, error) == (0, "")
    assert np.load("out/attack/adversarial.npz")["x_adv"].shape == (SAMPLES, 3, 4, 4)


def contents(folder: str) -> dict[str, np.ndarray]:
    with np.load(f"{folder}/adversarial.npz") as saved:
        return {name: saved[name] for name in saved.files}


def test_resume_gives_what_an_uninterrupted_run_gives(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import own_net

    options = (*LINF, "--batch-size", "6", "--restarts", "2")
    assert run(*BASE, *options, "--out", "whole")[0] == 0
    own_net.Net.forwards = 0
    monkeypatch.setenv("INTERRUPT_AT", "60")
    code, _, error = run(*BASE, *options, "--out", "halves")
    assert code == 130
    assert "--resume" in error
    assert not Path("halves/report.json").exists()
    done = sorted(path.name for path in Path("halves/unfinished").glob("*.safetensors"))
    assert 0 < len(done) < 4
    monkeypatch.delenv("INTERRUPT_AT")
    assert "holds an unfinished run" in run(*BASE, *options, "--out", "halves")[2]
    own_net.Net.forwards = 0
    code, _, error = run(*BASE, *options, "--out", "halves", "--resume")
    assert (code, error) == (0, "")
    assert own_net.Net.forwards < 100  # what was done is not done again
    whole, halves = contents("whole"), contents("halves")
    assert whole.keys() == halves.keys()
    assert all(np.array_equal(whole[name], halves[name]) for name in whole)
    one, other = (json.loads(Path(f, "report.json").read_text()) for f in ("whole", "halves"))
    for report in (one, other):
        report["attacks"][0].pop("seconds")
    assert one == other


def test_an_interrupt_from_the_keyboard(here: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastadv", *BASE, *LINF, "--batch-size", "2"],
        env=os.environ | {"SECONDS": "0.05"}, stderr=subprocess.PIPE, text=True, cwd=here,
        # A shell starts what it puts in the background with interrupts ignored: that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list(here.glob("out/attack/unfinished/*.safetensors")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "samples, which are kept" in error
    assert "Traceback" not in error


def test_results_are_not_overwritten(run: Run) -> None:
    assert run(*BASE, *LINF)[0] == 0
    before = Path("out/attack/adversarial.npz").read_bytes()
    Path("out/attack/notes.txt").write_text("mine")
    for options, code, message in (
        ((), 2, "holds results already"),
        (("--resume",), 0, "already"),
        (("--resume", "--seed", "1"), 2, "seed was 0, now it is 1"),
    ):
        found = run(*BASE, *LINF, *options)
        assert found[0] == code
        assert message in found[1] + found[2]
        assert Path("out/attack/adversarial.npz").read_bytes() == before
    assert run(*BASE, *LINF, "--seed", "1", "--overwrite")[0] == 0
    assert Path("out/attack/adversarial.npz").read_bytes() != before
    assert Path("out/attack/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.03", 0.03), ("1e-3", 1e-3), (" .5 / 255 ", 0.5 / 255), ("-1", -1.0)],
)
def test_fractions(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("command", [(), ("attack",), ("demo",)])
def test_help(run: Run, command: tuple[str, ...]) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert "python -m fastadv" in out
    if command:
        assert "examples:" in out
    assert max(map(len, out.splitlines())) <= 100


def test_no_command_shows_the_commands(run: Run) -> None:
    code, out, _ = run()
    assert code == 2
    assert "demo" in out
    assert "must be one of 'demo', 'attack'" in run("dmo")[2]


def test_demo_is_a_function_of_its_seed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from fastadv.cli import demo, trial

    little = trial.Effort(epochs=2, robust_epochs=2, steps=3, universal_epochs=1, points=2)
    monkeypatch.setattr(demo, "QUICK", little)
    seen = []
    for out in ("one", "two"):
        code, table, error = run("demo", "--quick", "--seed", "4", "--out", out)
        assert (code, error) == (0, "")
        assert Path(out, "figure.png").read_bytes()[:4] == b"\x89PNG"
        numbers = json.loads(Path(out, "report.json").read_text())
        for one in numbers["models"].values():
            one.pop("seconds")
            for row in one["attacks"]:
                row.pop("seconds")
                assert row["infeasible"] == 0
        seen.append(numbers)
        for part in ("natural", "robust", "PGD-3", "universal", "noise", "fools", "backend"):
            assert part in table
    assert seen[0] == seen[1]
    assert list(seen[0]["models"]) == ["natural", "robust"]
