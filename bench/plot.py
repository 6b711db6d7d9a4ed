"""python -m bench.plot: draws the latest run of every table in bench/results/*.csv."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.store import RESULTS

OURS, THEIRS, YARDSTICK = "#c44e38", "#8a9aa8", "#24698f"
TABLE = ("shape", "dtype", "norm", "threads")


def main(folder: Path = RESULTS) -> int:
    """One figure a benchmark: the median microseconds of each case, with p20 to p80 as whiskers."""
    drawn = 0
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
        columns = found[0] if found else {}
        if "p50_us" in columns or "h100_us" in columns:
            (draw if "p50_us" in columns else draw_roofline)(found, path.with_suffix(".png"))
            print(f"drew {path.with_suffix('.png')}")
            drawn += 1
    if not drawn:
        print(f"{folder} has no measurements: run python -m bench.run first", file=sys.stderr)
    return 0 if drawn else 1


def draw(found: list[dict[str, str]], path: Path) -> None:
    """A panel a table, of which the last run counts."""
    tables: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in found:
        key = tuple(row[column] for column in TABLE)
        if row["case"] == "fastadv":  # opens a run
            tables[key] = {}
        tables.setdefault(key, {})[row["case"]] = row
    heights = [len(cases) + 1.5 for cases in tables.values()]
    figure, panels = plt.subplots(
        len(tables), 1, figsize=(8, 0.34 * sum(heights) + 0.4), squeeze=False,
        gridspec_kw={"height_ratios": heights}, layout="constrained",
    )  # fmt: skip
    for (shape, dtype, norm, threads), panel in zip(tables, panels[:, 0], strict=True):
        cases = list(tables[shape, dtype, norm, threads].values())
        _panel(panel, cases)
        panel.set_title(
            f"{cases[0]['benchmark']} {norm}, {shape} {dtype}, {threads} thread(s)", fontsize=10
        )
    figure.supxlabel("microseconds a call (log scale): median, p20 to p80", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_roofline(found: list[dict[str, str]], path: Path) -> None:
    """Counted, not timed: each op's bytes, of fastadv's kernels and of eager torch's."""
    ops: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in found:
        ops.setdefault((row["op"], row["shape"], row["dtype"]), {})[row["written_by"]] = row
    names = list(ops)[::-1]
    figure, panel = plt.subplots(figsize=(8, 0.42 * len(names) + 1), layout="constrained")
    for y, name in enumerate(names):
        for case, colour, shift in (("fastadv", OURS, 0.2), ("eager torch", THEIRS, -0.2)):
            if case in ops[name]:
                row = ops[name][case]
                element = float(row["bytes_element"])
                panel.barh(y + shift, element, height=0.38, color=colour, label=case)
                text = f" {element:.1f} B, {row['launches']} launches, {row['h100_us']} us"
                panel.text(element, y + shift, text, va="center", fontsize=7)
    panel.set_yticks(range(len(names)), [" ".join(name) for name in names], fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.3)
    handles, labels = panel.get_legend_handles_labels()
    first = dict(zip(labels[::-1], handles[::-1], strict=True))
    panel.legend(first.values(), first.keys(), fontsize=8)
    panel.set_xlabel("bytes an element, counted; us: at an H100's datasheet bandwidth, not timed")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _panel(panel: Axes, cases: list[dict[str, str]]) -> None:
    names = [row["case"] for row in cases][::-1]
    middle = [float(row["p50_us"]) for row in cases][::-1]
    low = [m - float(row["p20_us"]) for m, row in zip(middle, cases[::-1], strict=True)]
    high = [float(row["p80_us"]) - m for m, row in zip(middle, cases[::-1], strict=True)]
    yardsticks = ("triad", "copy", "sum over the batch", "detach")
    colours = [OURS if n == "fastadv" else YARDSTICK if n in yardsticks else THEIRS for n in names]
    panel.barh(names, middle, color=colours, xerr=[low, high], error_kw={"ecolor": "#444", "lw": 1})
    panel.set_xscale("log")
    panel.set_xlim(min(middle) / 3, max(middle) * 4)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    for y, value in enumerate(middle):
        panel.text(max(middle) * 3.8, y, f"{value:,.1f}", va="center", ha="right", fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
