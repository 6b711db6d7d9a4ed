"""The options of python -m fastadv attack, and their documentation."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastadv.cli.arguments import (
    Commands,
    Help,
    Parser,
    label,
    number,
    numbers,
    one_of,
    positive,
    whole,
)
from fastadv.model import MODES
from fastadv.objectives import BY_NAME
from fastadv.stops import STOPS

_ABOUT = """\
Find adversarial examples for your own model and data: x_adv with ||x_adv - x|| <= radius that the
model gets wrong. Each is scored again by your model in float32, and measured in float64; the table
counts nothing else.
"""

_MORE = """\
units:
  Radius, step size and bounds are in the units of x after loading: pixels in [0, 1] for images,
  which uint8 data are divided to. Each takes fractions: --radius 8/255.

what is written, into the folder --out:
  adversarial.npz   x_adv (N, ...), success (N,), distance (N,), and y where it was given
  report.json       accuracy, fooling rate, distances, seconds, versions, seed, the attack itself;
                    for segmentation (y is (N, H, W)) also pixel accuracy, IoU by class and mIoU
  A run that is interrupted keeps its finished batches; --resume goes on from them, to the same
  result as a run that was not.

examples:
  PGD at the usual radius for CIFAR-10, on a model made by make_model() in my_module.py:
    python -m fastadv attack --model my_module:make_model --weights w.pt --data x.npz \\
        --norm linf --radius 8/255 --step-size 2/255 --steps 10

  A model that wants normalised input; the radius stays in pixels:
    python -m fastadv attack --model torchvision.models:resnet18 --weights resnet18.pth \\
        --mean .485 .456 .406 --std .229 .224 .225 --data x.npy y.npy --norm l2 --radius 0.5

  The strongest here: APGD on the DLR loss, 5 random starts, done with a sample once it is fooled:
    python -m fastadv attack --model net.py:Net --weights w.safetensors --data x.npz --norm linf \\
        --radius 8/255 --attack apgd --objective dlr --restarts 5 --stop fooled
"""


def add(commands: Commands[Parser]) -> Parser:
    """The command's parser."""
    parser = commands.add_parser(
        "attack",
        help="find adversarial examples for your own model and data",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=Help,
    )
    for group in (what, ball, _how, where, _output):
        group(parser)
    return parser


class _Bounds(argparse.Action):
    """--bounds LOWER UPPER, or --bounds none."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(values, list)
        try:
            bounds = None if values == ["none"] else tuple(numbers(value) for value in values)
        except argparse.ArgumentTypeError as error:
            parser.error(f"--bounds {error}")
        if bounds is not None and len(bounds) != 2:
            parser.error(f"--bounds must be LOWER UPPER or none, got {' '.join(values)}")
        setattr(namespace, self.dest, bounds)


def what(parser: argparse.ArgumentParser, targets: bool = True) -> None:
    """The model and the data."""
    group = parser.add_argument_group("the model and the data")
    group.add_argument(
        "--model", required=True, metavar="MODULE:NAME",
        help="a torch.nn.Module, or a class or function that makes one without arguments; MODULE "
        "can be imported from here, or is a .py file",
    )  # fmt: skip
    group.add_argument(
        "--weights", metavar="FILE",
        help="its state_dict, .pt or .safetensors; every key has to fit. Nothing else in the file "
        "is ever run (weights_only=True)",
    )  # fmt: skip
    group.add_argument(
        "--no-strict", action="store_true", help="let keys of the weights be missing or unknown"
    )
    group.add_argument(
        "--mean", nargs="+", type=number, metavar="M",
        help="with --std: the model takes (x - mean) / std, one value or one a channel",
    )  # fmt: skip
    group.add_argument("--std", nargs="+", type=number, metavar="S", help="see --mean")
    group.add_argument(
        "--data", required=True, nargs="+", metavar="FILE",
        help="x (N, ...) and, if it is there, y: one .npz, .pt or .safetensors file with keys, or "
        "two .npy files. uint8 values are divided by 255. Without y the model's predictions serve",
    )  # fmt: skip
    group.add_argument("--x-key", metavar="KEY", help="the key of x (default: x)")
    group.add_argument("--y-key", metavar="KEY", help="the key of y (default: y, if it is there)")
    if targets:
        group.add_argument(
            "--target-key", metavar="KEY",
            help="the key of the labels to reach: a targeted attack",
        )  # fmt: skip
    group.add_argument(
        "--channels-last-data", action="store_true",
        help="x is (N, H, W, C), and the model takes (N, C, H, W)",
    )  # fmt: skip


def ball(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The ball."""
    group = parser.add_argument_group("the ball, where x_adv may be")
    group.add_argument(
        "--norm", required=required, type=one_of("linf", "l2", "l1"), metavar="NORM",
        help="linf (the largest change of a pixel), l2, or l1",
    )  # fmt: skip
    group.add_argument(
        "--radius", required=required, type=positive, metavar="R",
        help="the largest ||x_adv - x||, such as 8/255",
    )  # fmt: skip
    group.add_argument(
        "--bounds", nargs="+", action=_Bounds, default=(0.0, 1.0), metavar="B",
        help="LOWER UPPER of x_adv (default: 0 1), each a number or one a channel with commas; or "
        "none",
    )  # fmt: skip


def _how(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the attack")
    group.add_argument(
        "--attack", default="pgd", metavar="NAME",
        type=one_of("pgd", "apgd", "bim", "mi_fgsm", "fgsm"),
        help="pgd (default; 1706.06083), apgd (finds its step sizes; 2003.01690), bim (pgd "
        "from x), mi_fgsm (momentum; 1710.06081), fgsm (one step)",
    )  # fmt: skip
    group.add_argument(
        "--steps", type=whole(1), metavar="K", help="gradients (default: 10; apgd: 100)"
    )
    group.add_argument(
        "--step-size", type=positive, metavar="S",
        help="of each step (default: 2.5 * radius / steps; mi_fgsm: radius / steps)",
    )  # fmt: skip
    group.add_argument(
        "--restarts", type=whole(1), default=1, metavar="N",
        help="random starts, of which each sample keeps the best (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--objective", default="cross_entropy", type=one_of(*BY_NAME), metavar="NAME",
        help=f"the loss that is maximised: {', '.join(BY_NAME)} (default: cross_entropy)",
    )  # fmt: skip
    group.add_argument(
        "--share", type=positive, metavar="SHARE",
        help="segmentation: an image is fooled once so many of its pixels are wrong (default: 0.5)",
    )  # fmt: skip
    ignore_index(group)
    group.add_argument(
        "--stop", type=one_of(*(stop for stop in STOPS if stop)), metavar="WHEN",
        help="fooled: a sample is done at its first mistake, which saves time; cycle: when its "
        "iterates repeat, with the same result (pgd and bim); resolved: at either",
    )  # fmt: skip
    group.add_argument(
        "--mode", default="eval", type=one_of(*MODES), metavar="MODE",
        help="the model's mode while x_adv is sought: eval (default), train, or keep (as it is "
        "made). It is always judged in eval mode",
    )  # fmt: skip


def ignore_index(group: argparse._ArgumentGroup) -> None:
    """The label of pixels that count for nothing."""
    group.add_argument(
        "--ignore-index", type=label, metavar="LABEL",
        help="segmentation: the label of pixels that count for nothing (default: 255)",
    )  # fmt: skip


def where(parser: argparse.ArgumentParser) -> None:
    """How it runs."""
    group = parser.add_argument_group("how it runs")
    group.add_argument(
        "--batch-size",
        type=whole(1),
        default=128,
        metavar="N",
        help="samples at once (default: 128)",
    )
    group.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:1 (default: cuda, or cpu)"
    )
    group.add_argument(
        "--dtype", default="float32", metavar="DTYPE",
        type=one_of("float32", "float64", "bfloat16", "float16"),
        help="float32 (default), or float64; in bfloat16 or float16 only the model computes, while "
        "x_adv is sought",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=whole(0), default=0, metavar="N",
        help="of the random starts (default: 0), which depend on it and the sample's index alone",
    )  # fmt: skip


def _output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--out", type=Path, default=Path("out/attack"), metavar="DIR",
        help="the folder for the results (default: out/attack)",
    )  # fmt: skip
    group.add_argument(
        "--format", default="npz", type=one_of("npz", "safetensors"), metavar="FORMAT",
        help="of the adversarial examples: npz (default) or safetensors",
    )  # fmt: skip
    either = group.add_mutually_exclusive_group()
    either.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    either.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run in --out"
    )
