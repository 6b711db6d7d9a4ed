"""python -m fastadv attack and universal on segmentation models: y and logits are maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_folder import Run, caller
from safetensors import safe_open
from scenes_folder import ATTACK, LINF, OUT, SEGMENT, UNIVERSAL, VOID, H, W, own, report, settle

import fastadv as fa
from fastadv.cli import universal
from fastadv.cli.universal_methods import Batches
from fastadv.evaluation import plots


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settle(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(universal, "_figure", lambda *_: None)


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(capsys)


def test_attack_reports_pixels(run: Run) -> None:
    code, out, error = run(*ATTACK, "--batch-size", "8")
    assert (code, error) == (0, "")
    net, _, y = own()
    saved = np.load("out/attack/adversarial.npz")
    said, found = net(torch.from_numpy(saved["x_adv"])).argmax(1), report("out/attack")
    counts = y != VOID
    right = float((said == y)[counts].double().mean())
    assert found["attacks"][0]["pixels"]["accuracy"] == pytest.approx(right, abs=1e-12)
    assert found["clean_pixels"]["accuracy"] == pytest.approx(6 / 7)
    assert right < 6 / 7
    assert np.array_equal(saved["y"], y.numpy())
    each = ((said != y) & counts).flatten(1).sum(1) >= 0.5 * counts.flatten(1).sum(1)
    assert np.array_equal(saved["success"], each.numpy())
    for word in ("pixels", "mIoU", "85.7 %"):
        assert word in out


@pytest.mark.parametrize(
    "options",
    [
        "--attack apgd --objective dlr --steps 3",
        "--objective margin --share 0.2 --stop fooled --restarts 2",
        "--target-key target --attack bim",
        "--dtype bfloat16 --stop resolved",
    ],
)
def test_attack_options(options: str, run: Run) -> None:
    code, out, error = run(*ATTACK, *options.split())
    assert (code, error) == (0, "")
    assert "share=" not in out.split("device")[1]  # the table's names stay short
    assert report("out/attack")["attacks"][0]["pixels"]["miou"] < 0.85


def test_attack_resumes_with_its_pixels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import scenes_net

    options = (*ATTACK, "--batch-size", "6", "--restarts", "2")
    assert run(*options, "--out", "whole")[0] == 0
    scenes_net.Segmenter.forwards = 0
    monkeypatch.setenv("INTERRUPT_AT", "60")
    assert run(*options, "--out", "halves")[0] == 130
    monkeypatch.delenv("INTERRUPT_AT")
    assert list(Path("halves/unfinished").glob("0*.safetensors"))
    assert run(*options, "--out", "halves", "--resume")[0] == 0
    whole, halves = report("whole"), report("halves")
    assert halves["clean_pixels"] == whole["clean_pixels"]
    assert halves["attacks"][0]["pixels"] == whole["attacks"][0]["pixels"]


@pytest.mark.parametrize("kind", ["scene", "file", "remove", "labels"])
def test_segmentation_is_what_the_function_finds(
    kind: str, run: Run, request: pytest.FixtureRequest
) -> None:
    if kind != "remove":  # one figure is enough to draw
        request.getfixturevalue("undrawn")
    net, x, y = own()
    np.save("scene.npy", y[3].numpy().astype(np.uint8))
    remove = int(net(x).argmax(1).flatten().mode().values)
    options, target = {
        "scene": (("--scene", "3", "--confidence", "0.6"), y[3]),
        "file": (("--scene", "scene.npy", "--tile", "3", "4"), y[3]),
        "remove": (("--remove", str(remove), "--batches", "1"), fa.universal.Remove(remove)),
        "labels": (("--confidence", "none", "--step-size", "1/50"), None),
    }[kind]
    how = {
        "scene": {"confidence": 0.6}, "file": {"tile": (3, 4)}, "remove": {"batches": 1},
        "labels": {"confidence": None, "step_size": 1 / 50},
    }[kind]  # fmt: skip
    code, out, error = run(*SEGMENT, *options, "--steps", "5", "--seed", "3")
    assert (code, error) == (0, "")
    batches = Batches(x[:16], y[:16], 8, torch.device("cpu"), 3)
    uap = fa.universal.segmentation(fa.Linf(0.1), net, batches, target=target, steps=5, **how)
    saved = fa.Perturbation.load(OUT / "uap.safetensors")
    assert torch.equal(saved.delta, uap.delta)
    assert saved.place == uap.place
    found = report(OUT)
    both = [(x[16:], y[16:])]
    rates = fa.universal.measure_pixels(uap, net, both, target=target)
    unseen = found["rates"]["perturbation"]["unseen"]
    assert unseen["success"] == rates.success
    assert (unseen["accuracy"], unseen["miou"]) == (rates.accuracy, rates.miou)
    assert unseen["clean_accuracy"] == pytest.approx(6 / 7)
    noise = found["rates"]["noise"]["searched"]
    assert found["rates"]["perturbation"]["searched"]["success"] > noise["success"]
    assert (unseen["hidden"] is None) == (kind != "remove")
    drawn = ["uap.png"] if kind == "remove" else []
    assert sorted(p.name for p in OUT.iterdir()) == ["report.json", *drawn, "uap.safetensors"]
    for word in ("success", "mIoU", "clean", "noise", "uap.safetensors"):
        assert word in out
    # Applied to other data, it is measured by the target that it was made for.
    code, out, error = run(*UNIVERSAL, "--apply", str(OUT / "uap.safetensors"), "--out", "applied")
    assert (code, error) == (0, "")
    rates = fa.universal.measure_pixels(uap, net, [(x, y)], target=target)
    assert report("applied")["rates"]["perturbation"]["all"]["success"] == rates.success
    arrays = np.load("applied/adversarial.npz")
    said = net(uap.apply(x)).argmax(1)
    assert np.array_equal(arrays["prediction"], said.numpy())


@pytest.mark.usefixtures("undrawn")
def test_another_target_for_apply_and_what_is_saved(run: Run) -> None:
    net, x, y = own()
    assert run(*SEGMENT, "--scene", "0", "--steps", "2", "--ignore-index", "3")[0] == 2
    assert run(*SEGMENT, "--scene", "0", "--steps", "2", "--overwrite")[0] == 0
    file = str(OUT / "uap.safetensors")
    with safe_open(file, framework="pt") as saved:
        facts = saved.metadata()
    assert (facts["method"], facts["ignore_index"]) == ("segmentation", "255")
    assert json.loads(facts["rates"]) == report(OUT)["rates"]
    code, out, _ = run(*UNIVERSAL, "--apply", file, "--remove", "1", "--out", "applied")
    assert code == 0
    assert "hidden" in out
    uap, remove = fa.Perturbation.load(file), fa.universal.Remove(1)
    rates = fa.universal.measure_pixels(uap, net, [(x, y)], target=remove)
    assert report("applied")["rates"]["perturbation"]["all"]["hidden"] == rates.hidden


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("method", ["segmentation", "gradient"])
def test_an_interrupted_search_goes_on_to_the_same_result(
    method: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import scenes_net

    more = ("--steps", "6", "--scene", "2") if method == "segmentation" else ("--passes", "6")
    options = (*UNIVERSAL, *LINF, "--method", method, "--batch-size", "8", *more)
    assert run(*options, "--out", "whole")[0] == 0
    scenes_net.Segmenter.forwards = 0
    monkeypatch.setenv("INTERRUPT_AT", "9")
    code, _, error = run(*options, "--out", "parts")
    assert code == 130
    assert "what is done is kept: the same command with --resume goes on" in error
    monkeypatch.delenv("INTERRUPT_AT")
    if method == "segmentation":
        other = run(*options[:-1], "3", "--out", "parts", "--resume")
        assert (other[0], "options was {'scene': '2'" in other[2]) == (2, True)
    assert run(*options, "--out", "parts", "--resume")[0] == 0
    whole, parts = (fa.Perturbation.load(f"{name}/uap.safetensors") for name in ("whole", "parts"))
    assert torch.equal(whole.delta, parts.delta)
    assert report("whole")["rates"] == report("parts")["rates"]


@pytest.mark.usefixtures("undrawn")
def test_gradient_and_data_free_on_maps(run: Run) -> None:
    for method in ("gradient", "gd-uap"):
        more = ("--steps", "3") if method == "gd-uap" else ("--passes", "2")
        code, out, error = run(*UNIVERSAL, *LINF, "--method", method, *more, "--overwrite")
        assert (code, error) == (0, "")
        assert "mIoU" in out
        rates = report(OUT)["rates"]["perturbation"]["unseen"]
        assert rates["success"] == pytest.approx(1 - rates["accuracy"])


def test_a_mask_is_applied_and_drawn_as_a_sample_meets_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, drawn = torch.zeros(H, W, dtype=torch.bool), []
    mask[2:5, 3:] = True
    delta = torch.linspace(-0.1, 0.1, 63)
    uap = fa.Perturbation(delta, fa.Linf(0.1), mask)
    uap.save("mask.safetensors")
    scenes = plots.scenes
    monkeypatch.setattr(plots, "scenes", lambda v, *more: drawn.append(v) or scenes(v, *more))
    code, _, error = run(*UNIVERSAL, "--apply", "mask.safetensors")
    assert (code, error) == (0, "")
    assert torch.equal(drawn[0], uap.whole((3, H, W)))
    assert (OUT / "uap.png").exists()
    _, x, _ = own()
    assert np.array_equal(np.load(OUT / "adversarial.npz")["x_adv"], uap.apply(x).numpy())
