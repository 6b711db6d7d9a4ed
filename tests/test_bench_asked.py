"""Benchmarks of what the project asks of itself: whole rows, and what is not as asked is red."""

from __future__ import annotations

import csv
import dataclasses
import math
import sys

import pytest
import torch

import fastadv as fa
from bench import (
    attacks,
    first_gradient,
    flips,
    fresh,
    gate,
    gradients,
    memory,
    precision,
    run,
    step_memory,
    warmup,
    zoo,
)
from bench.nets import NETS, image_shape
from fastadv.engine.dense_plan import multiplies_bfloat16

SHARED = ("shape", "float32", "a net", 1)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def measure(tmp_path, name, *arguments):
    """The exit code, and the rows."""
    code = run.main([name, *arguments, "--seconds", "0.01", "--out", str(tmp_path)])
    with (tmp_path / f"{name}.csv").open(newline="") as file:
        return code, list(csv.DictReader(file))


@pytest.mark.parametrize("name", NETS)
def test_nets_take_their_images(name):
    if name == "wideresnet28_10":
        pytest.skip("36 million weights, for nothing")
    logits = NETS[name]().eval()(torch.rand(2, *image_shape(name)))
    assert logits.shape == (2, 10)


def test_zoo_has_a_row_for_each_loop_and_batch(tmp_path):
    pytest.importorskip("sklearn")
    _, rows = measure(tmp_path, "zoo", "--models", "tiny_cnn", "linear", "--batches", "1", "2")
    ours = [row for row in rows if row["case"] == "fa.pgd"]
    assert [row["shape"] for row in ours] == ["1x3x32x32", "2x3x32x32"] * 2
    assert {row["served_by"] for row in ours} == {"plain torch", "dense stack"}
    assert all(float(row["ratio_p20"]) <= float(row["ratio_p80"]) for row in rows)


def test_zoo_goes_on_after_a_wrong_gradient(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")

    def wrong(*_):
        raise gate.GateError("it is wrong")

    monkeypatch.setattr(zoo, "check_gradient", wrong)
    code, rows = measure(tmp_path, "zoo", "--models", "tiny_cnn", "linear", "--batches", "1")
    assert code == 1
    assert [row["case"] for row in rows] == ["gate red: it is wrong"] * 2
    assert capsys.readouterr().err.count("red: ") == 4


def test_zoo_is_red_where_most_rounds_are_slower():
    row = zoo.Row("zoo", *SHARED, "fa.pgd", "engine", 1.0, 1.0, 1.02, 1.05, 1.2)
    slower = dataclasses.replace(row, ratio_p20=1.031)
    wrong = dataclasses.replace(row, ratio_p20=math.nan)
    assert len(zoo.red([[row, slower], [wrong]])) == 2
    assert not zoo.red([[row]])


@pytest.mark.parametrize("name", ["lenet", "unruly"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # Dynamo's, of an autograd op
def test_gradients_of_ours_and_of_torch(tmp_path, name):
    pytest.importorskip("sklearn")
    options = ("--models", name, "--batch", "2", "--train-steps", "1")
    code, rows = measure(tmp_path, "gradients", *options)
    assert code == 0
    assert [row["case"] for row in rows] == ["fastadv", "plain torch"]
    assert all(0 < float(row["median"]) <= float(row["worst"]) < 1e-2 for row in rows)


def test_gradients_are_red_by_their_median_or_their_worst():
    row = gradients.Row("gradients", *SHARED, "fastadv", 1e-6, 1e-3, 1e-5)
    for wrong in ({"median": 1.1e-5}, {"worst_with_masks": 1.1e-4}, {"median": math.nan}):
        assert gradients.red([[row, dataclasses.replace(row, **wrong)]])
    theirs = dataclasses.replace(row, case="plain torch", median=1.0)
    assert not gradients.red([[row, theirs]])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_step(tmp_path):
    _, rows = measure(tmp_path, "memory", "--model", "lenet", "--batch", "32")
    peak = {row["case"]: float(row["peak_mib"]) for row in rows}
    assert peak["plain torch"] > 4 * 32 * 20 * 24 * 24 / 2**20  # its first activations
    assert peak["the model's weights"] == pytest.approx(1.6, abs=0.1)
    if fa.backend().is_native:
        assert 0 < peak["fastadv"] < peak["plain torch"]
        assert peak["packed weights"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_counts_what_is_held_at_once():
    def step() -> None:
        torch.ones(4 << 20)
        torch.ones(8 << 20)  # where malloc keeps the first one, the process has 48 MiB

    assert step_memory._allocated(step) == 32 << 20
    peak = step_memory.in_a_thread(lambda: step_memory._peak(step))
    assert 31 << 20 <= peak < 56 << 20


def test_memory_is_red_over_a_half():
    row = memory.Row("memory", *SHARED, "fastadv", 50.0, 40.0, 0.5)
    assert not memory.red([[row, dataclasses.replace(row, case="plain torch", of_plain=1.0)]])
    assert memory.red([[dataclasses.replace(row, of_plain=0.51)]])


def test_warmup_says_what_it_is_made_of(tmp_path):
    options = ("--model", "lenet", "--batch", "2", "--processes", "2")
    _, rows = measure(tmp_path, "warmup", *options)
    seconds = {row["case"]: 1e-6 * float(row["p50_us"]) for row in rows}
    assert 0 < seconds["of that, forward"] < seconds["fastadv"]
    assert seconds["fastadv, second gradient"] < seconds["fastadv"]
    assert seconds["plain torch"] > 0


def test_warmup_wants_a_process_that_has_not_imported_dynamo():
    with pytest.raises(RuntimeError, match="Dynamo was imported"):
        first_gradient.measured("lenet", 1, 1, True)


def test_warmup_is_red_over_five_seconds():
    times = [4.9e6, 5.0e6, 5.1e6, 0, 0, 0, 0, 0, 0]
    names = [f.name for f in dataclasses.fields(warmup.Row)][6:-1]
    row = warmup.Row(
        "warmup", *SHARED, "fastadv", working_set="L3", **dict(zip(names, times, strict=True))
    )
    assert not warmup.red([[row]])
    assert warmup.red([[dataclasses.replace(row, p50_us=5.01e6)]])


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match="'no_such_net'"):
        fresh.measure("first_gradient", model="no_such_net", batch=1, threads=1, compiled=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what it imports
def test_adv_lib_steps_as_the_others_do():
    pytest.importorskip("adv_lib")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(27, 3))
    x, y = torch.rand(8, 3, 3, 3), torch.arange(8) % 3
    ball, size = fa.Linf(0.3), 0.1
    craft = attacks.peers(model, ball, size, 4, ("adv_lib",))["adv_lib"]
    assert "visdom" not in sys.modules
    found = craft(x, y)
    fooled = (found - x).flatten(1).abs().amax(1) > 0
    ours = [fa.pgd(ball, size, k, start="zero")(model, x, y) for k in range(4)]
    assert fooled.any()
    for i in fooled.nonzero().flatten():  # the last iterate that fools, before the last step
        fools = [o[i] for o in ours if int(model(o[i : i + 1]).argmax()) != int(y[i])]
        torch.testing.assert_close(found[i], fools[-1])


def test_gradients_of_samples_that_a_net_is_sure_of():
    """p - 1 is -1e-6 here: in float32 its rounding alone is a relative error of 5%."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False), torch.nn.Flatten())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[14.0, 0, 0, 0], [0, 1, 0, 0]]))
    x = torch.tensor([[1.0, 0.2, 0.3, 0.4]])
    assert float(flips.errors(model, model, x, torch.tensor([0]))) < 1e-5


def test_precision_has_both_on_both_nets(tmp_path):
    code, rows = measure(tmp_path, "precision", "--train-steps", "20", "--images", "40")
    assert [row["case"] for row in rows] == ["float32", "bfloat16"] * 2
    assert all(0 <= float(row["robust"]) <= float(row["clean"]) <= 1 for row in rows)
    if multiplies_bfloat16():
        assert [int(row["narrow"]) > 0 for row in rows] == [False, True] * 2
    apart = [abs(float(a["robust"]) - float(b["robust"])) for a, b in (rows[:2], rows[2:])]
    assert code == (max(apart) > precision.APART or not multiplies_bfloat16())


def test_precision_is_red_beyond_half_a_point():
    row = precision.Row("precision", *SHARED, "float32", 0.9, 0.5, 0)
    half = dataclasses.replace(row, narrow=1)
    assert not precision.red([[row, dataclasses.replace(half, robust=0.505)]])
    assert precision.red([[row, row]])
    assert precision.red([[row, dataclasses.replace(half, robust=0.494)]])
    assert precision.red([[row, dataclasses.replace(half, robust=math.nan)]])
