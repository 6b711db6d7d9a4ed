"""The benchmarks themselves: rows are whole, and a wrong kernel gets no figure."""

from __future__ import annotations

import csv
from dataclasses import dataclass

import pytest
import torch

import fastadv as fa
from bench import attacks, plot, run, store
from bench.timing import Times, interleave


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def measure(tmp_path, *arguments: str) -> int:
    return run.main([*arguments, "--seconds", "0.01", "--out", str(tmp_path)])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_step_stores_whole_rows(tmp_path, norm, dtype):
    options = ("--shape", "3x3x8x8", "--norm", norm, "--dtype", dtype, "--no-compile")
    assert measure(tmp_path, "step", *options) == 0
    assert measure(tmp_path, "step", *options) == 0
    with (tmp_path / "step.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cases = [row["case"] for row in rows]
    assert cases.count("fastadv") == cases.count("triad") == 2  # appended, under one header
    assert all(value for row in rows for value in row.values())
    ours = rows[0]
    assert float(ours["speedup_p50"]) == 1
    assert float(ours["p20_us"]) <= float(ours["p50_us"]) <= float(ours["p80_us"])
    assert ours["backend"] == str(fa.backend())


@pytest.mark.parametrize(
    "arguments",
    [
        ("universal", "--shape", "4x3x8x8", "--norm", "all", "--no-compile"),
        (
            "universal_gradient",
            "--images",
            "16",
            "--train-steps",
            "10",
            "--rounds",
            "1",
            "--rate",
            "0.1",
        ),
        ("universal_step", "--batch", "4", "--rounds", "2", "--compile"),
        ("head", "--shape", "16x10", "--objective", "dlr"),
        ("overhead", "--shape", "2x1x4x4"),
        ("moosavi", "--images", "30", "--train-steps", "20", "--rounds", "1", "--no-art"),
        ("stop", "--batch", "16", "--steps", "60", "--train-steps", "2"),
        ("layers", "--model", "lenet", "--batch", "4", "--rounds", "2"),
        ("train", "--model", "lenet", "--batch", "8", "--steps", "2", "--train-steps", "2"),
        ("step_scaling", "--batch", "1", "--batches", "1", "--depths", "1", "--steps", "1"),
    ],
)
def test_the_others_run(tmp_path, arguments):
    assert measure(tmp_path, *arguments) == 0
    assert (tmp_path / f"{arguments[0]}.csv").is_file()


@pytest.mark.filterwarnings("ignore:precision='bfloat16' is served in float32")
def test_dense_runs_and_a_wrong_attack_gets_no_figure(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(attacks, "LIBRARIES", {})
    options = ("--batch", "256", "--steps", "3", "--train-epochs", "4")
    assert measure(tmp_path, "dense", *options) == 0
    assert "GFLOP/s" in capsys.readouterr().out
    monkeypatch.setattr(attacks, "LIBRARIES", {"torch": lambda *given: lambda x, y: x})
    assert measure(tmp_path, "dense", *options) == 1
    assert "half a point" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("norm", "wrong"),
    [
        ("linf", lambda x_adv, x: x_adv.add_(1e-7)),  # not the reference's bits
        ("l2", lambda x_adv, x: x_adv.add_(1e-3)),  # not near float64
        ("l1", lambda x_adv, x: x_adv.copy_(x).flatten()[0].add_(1e-3)),
    ],
)
def test_a_wrong_kernel_gets_no_figure(tmp_path, monkeypatch, capsys, norm, wrong):
    right = fa.ops.step_

    def step_(x_adv, grad, x, **options):
        right(x_adv, grad, x, **options)
        if x.dtype == torch.float32:
            wrong(x_adv, x)
        return x_adv

    monkeypatch.setattr(fa.ops, "step_", step_)
    options = ("--shape", "3x3x8x8", "--norm", norm, "--no-compile")
    assert measure(tmp_path, "step", *options) == 1
    assert "gate red" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_point_outside_the_ball_is_red(tmp_path, monkeypatch, capsys):
    right = fa.ops.step_

    def step_(x_adv, grad, x, *, ball, **options):
        wider = type(ball)(ball.radius * (1 + 1e-4), ball.bounds)
        return right(x_adv, grad, x, ball=wider, **options)

    monkeypatch.setattr(fa.ops, "step_", step_)
    options = ("--shape", "3x3x8x8", "--norm", "l2", "--no-compile")
    assert measure(tmp_path, "step", *options) == 1
    assert "leaves the ball" in capsys.readouterr().err


def test_a_bad_shape_is_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        measure(tmp_path, "step", "--shape", "64")
    assert "must be like 64x3x224x224" in capsys.readouterr().err


def test_other_columns_are_not_mixed(tmp_path):
    (tmp_path / "overhead.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        measure(tmp_path, "overhead", "--shape", "2x1x4x4")
    assert (tmp_path / "overhead.csv").read_text() == "a,b\n1,2\n"


def test_other_tables_are_saved_with_the_machines_facts(tmp_path):
    @dataclass
    class Found:
        library: str
        accuracy: float

    path = tmp_path / "new" / "found.csv"
    for anew, expected in ((False, ["a"]), (False, ["a", "a"]), (True, ["a"])):
        store.save([Found("a", 0.5)], path, anew)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["library"] for row in rows] == expected
        assert all(row["commit"] and row["processor"] and row["torch"] for row in rows)
    assert list(rows[0])[-2:] == ["library", "accuracy"]


def test_plot_draws_the_roofline(tmp_path):
    (tmp_path / "roofline.csv").write_bytes((store.RESULTS / "roofline.csv").read_bytes())
    assert plot.main(tmp_path) == 0
    assert (tmp_path / "roofline.png").stat().st_size > 10_000


def test_plot_draws_what_was_stored(tmp_path, capsys):
    assert plot.main(tmp_path) == 1
    assert "no measurements" in capsys.readouterr().err
    assert measure(tmp_path, "step", "--shape", "3x3x8x8", "--norm", "linf", "--no-compile") == 0
    assert plot.main(tmp_path) == 0
    assert (tmp_path / "step.png").stat().st_size > 5000


def test_rounds_are_interleaved_and_compared_round_by_round():
    order: list[str] = []
    cases = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = interleave(cases, seconds=0, least_rounds=4)
    rounds = [sorted(order[k : k + 2]) for k in range(6, len(order), 2)]  # after three warm-ups
    assert rounds == [["a", "b"]] * 4
    assert order[6:] != ["a", "b"] * 4  # shuffled: neither always follows the other
    assert len(times["a"].rounds) == len(times["b"].rounds) == 4
    assert Times((2.0, 4.0, 6.0)).over(Times((1.0, 2.0, 2.0)))[1] == 2.0
