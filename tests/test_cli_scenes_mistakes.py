"""Mistakes on segmentation models: one sentence each, before anything is searched or written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_folder import Run, caller
from safetensors.torch import save_file
from scenes_folder import ATTACK, LINF, MODEL, OUT, SEGMENT, UNIVERSAL, N, settle


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settle(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(capsys)


CLASSIFIER = ("--model", "scenes_net.py:make_classifier", "--data", "flat.npz", *LINF)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("universal", *MODEL, *LINF, "--method", "moosavi"),
         "--method gradient, segmentation, fast-feature-fool, gd-uap take these"),
        (("universal", *CLASSIFIER, "--method", "segmentation"),
         "takes logits (N, classes, H, W), but --model scenes_net.py:make_classifier gives (1, 4)"),
        (("universal", *CLASSIFIER, "--method", "gradient", "--ignore-index", "3"),
         "--ignore-index goes with logits (N, classes, H, W)"),
        ((*SEGMENT, "--scene", "20"), "--scene must be from 0 to 19, a sample's, got 20"),
        ((*SEGMENT, "--scene", "sky"), "a sample's number or an existing .npy file, got 'sky'"),
        ((*SEGMENT, "--scene", "x.npy"), "must hold whole numbers (H, W), got float32 (3, 8)"),
        ((*SEGMENT, "--scene", "text.npy"), "--scene text.npy cannot be read"),
        ((*SEGMENT, "--scene", "narrow.npy"), "--scene: `target` must be (1, 8, 10)"),
        ((*SEGMENT, "--scene", "1", "--y-key", "classes"), "--data has no label maps (N, H, W)"),
        ((*SEGMENT, "--scene", "1", "--remove", "1"), "two targets: give one of them"),
        ((*SEGMENT, "--remove", "7"), "--remove: `label` must be in [0, 4), got 7"),
        ((*UNIVERSAL, "--apply", "text.npy"), "--apply: `path` must be a safetensors file"),
        ((*UNIVERSAL, "--apply", "bare.safetensors"), "--apply: `path` must be a saved Perturb"),
        ((*SEGMENT, "--tile", "9", "9"), "`tile` must fit into a sample (3, 8, 10)"),
        ((*SEGMENT, "--confidence", "half"), "--confidence must be a number or a fraction"),
        ((*SEGMENT, "--ignore-index", "-1"), "or -1 (ignored), got 255"),
        ((*SEGMENT, "--passes", "2"), "--passes does not go with --method segmentation"),
        (("universal", *MODEL, *LINF, "--method", "gradient", "--scene", "1"),
         "--scene does not go with --method gradient"),
        ((*ATTACK, "--share", "2"), "`share` of the pixels must be in (0, 1], got 2"),
        ((*ATTACK, "--ignore-index", "x"), "--ignore-index must be a whole number, got 'x'"),
        ((*ATTACK, "--objective", "binary_cross_entropy"), "`model(x)` must be (N,)"),
        ((*ATTACK, "--y-key", "classes"), "one label a pixel"),
        ((*ATTACK, "--target-key", "far"), "`target` must be in [0, 4) or 255 (ignored), got 9"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], words: str, run: Run) -> None:
    np.savez("flat.npz", x=np.zeros((20, 3, 8, 10), np.float32))
    with np.load("data.npz") as saved:
        arrays = dict(saved)
    np.savez("data.npz", **arrays, classes=np.arange(N) % 4, far=arrays["target"] * 0 + 9)
    save_file({"w": torch.zeros(2)}, "bare.safetensors")
    np.save("x.npy", np.zeros((3, 8), np.float32))
    np.save("narrow.npy", np.zeros((8, 9), np.uint8))
    Path("text.npy").write_text("no labels")
    code, _, error = run(*arguments)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("key", ["far", "cut", "float"])
def test_labels_are_refused_before_the_search_and_its_folder(key: str, run: Run) -> None:
    """Not after hours of steps, when only the rates are to be counted."""
    y = np.load("data.npz")["y"].astype(np.int64)
    wrong = {"far": np.where(np.arange(N)[:, None, None] < N - 1, y, 9), "cut": y[:, 1:],
             "float": y / 1.0}[key]  # fmt: skip
    np.savez("data.npz", x=np.load("data.npz")["x"], y=wrong)
    code, _, error = run(*SEGMENT, "--remove", "1", "--steps", "2")
    assert (code, "--data: `y` must be" in error) == (2, True)
    assert not OUT.exists()
