"""The options of python -m fastadv universal, and their documentation."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastadv.cli import attack_options
from fastadv.cli.arguments import Commands, Help, Parser, one_of, positive, whole
from fastadv.cli.universal_methods import METHODS
from fastadv.universal.passes import COUNTS

_ABOUT = """\
Find one perturbation that fools your own model on most inputs, or apply one that was found. Its
rates are counted on data that it was found on and, apart, on data that it never saw, beside those
of noise at the ball's edge; fooled (another prediction than on x) and wrong (another than y) are
two columns. Of segmentation, logits (N, classes, H, W), they are counted in pixels: those that are
as the target has them, pixel accuracy and mIoU.
"""

_MORE = """\
methods:
  moosavi            Algorithm 1 of 1610.08401: a smallest step for each sample not fooled yet
  averaged           the same steps, a whole batch's at once
  gradient           ascends the mean loss, a batch a step (1811.11304); the fastest
  segmentation       makes a segmentation model see one --scene everywhere, or nothing of a class
                     (--remove), or without either anything but y (1704.05712)
  fast-feature-fool  without data: excites the convolutions (1707.05572)
  gd-uap             the same with energies (1801.08092)
  The last two use --data for their rates alone.

units:
  Radius, step size and bounds are in the units of x after loading: pixels in [0, 1] for images,
  which uint8 data are divided to. `--bounds none` clips no image, as 1610.08401 has it.

what is written, into the folder --out:
  uap.safetensors   the perturbation, its ball, and where it came from; --apply takes it
  uap.png           the perturbation, amplified, and a few images with it (with matplotlib); of
                    segmentation what is seen without it, with it, and what was to be seen
  report.json       rates, norm, seconds, versions, seed, the run
  with --apply      adversarial.npz (x_adv, fooled or of segmentation prediction, y), uap.png and
                    report.json
  moosavi, averaged and gradient keep their state after each pass, segmentation after each step,
  the last two every 100 steps; --resume goes on from it, to the same result as a run that was not
  interrupted.

examples:
  python -m fastadv universal --method moosavi --model my_module:make_model --weights w.pt \\
        --data x.npz --norm linf --radius 10/255
  python -m fastadv universal --method segmentation --scene 12 --model my_module:make_segmenter \\
        --weights w.pt --data scenes.npz --norm linf --radius 10/255
  python -m fastadv universal --apply out/universal/uap.safetensors --model my_module:make_model \\
        --weights w.pt --data other.npz --out out/applied
"""


def add(commands: Commands[Parser]) -> Parser:
    """The command's parser."""
    parser = commands.add_parser(
        "universal",
        help="find one perturbation for all of your data, or apply one",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=Help,
    )
    _task(parser)
    attack_options.what(parser, targets=False)
    attack_options.ball(parser, required=False)
    _how(parser)
    _scenes(parser)
    attack_options.where(parser)
    _output(parser)
    return parser


def _task(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to do")
    either = group.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "--method", type=one_of(*METHODS), metavar="METHOD", help=f"one of {', '.join(METHODS)}"
    )
    either.add_argument(
        "--apply", metavar="FILE", help="a perturbation that was saved: measure it on other data"
    )


def _how(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the search")
    group.add_argument(
        "--holdout", type=positive, default=0.2, metavar="SHARE",
        help="of the data, its last part, that the search never sees (default: 0.2)",
    )  # fmt: skip
    group.add_argument(
        "--passes", type=whole(1), metavar="N",
        help="over the data, at most (moosavi, averaged: 10; gradient: 5)",
    )  # fmt: skip
    group.add_argument(
        "--fooling-rate", type=positive, metavar="SHARE",
        help="moosavi, averaged: stop when so many are fooled (default: 0.8)",
    )  # fmt: skip
    group.add_argument(
        "--count", type=one_of(*COUNTS), metavar="WHAT",
        help="moosavi, averaged: fooled (default), or wrong, by the labels of --data",
    )  # fmt: skip
    group.add_argument(
        "--step-size", type=positive, metavar="S",
        help="gradient, segmentation: of each step (default: radius / 10); data-free: Adam's "
        "(radius / 100)",
    )  # fmt: skip
    group.add_argument(
        "--steps", type=whole(1), metavar="K",
        help="data-free: gradients, at most (default: 3000); segmentation: over all data (60)",
    )  # fmt: skip
    group.add_argument(
        "--target", type=whole(0), metavar="CLASS", help="gradient: the class to call forth"
    )


def _scenes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("segmentation")
    group.add_argument(
        "--scene", metavar="WHAT",
        help="what every input is to be seen as: an .npy file of labels (H, W), or the number of "
        "the sample in --data, from 0, whose y it is",
    )  # fmt: skip
    group.add_argument(
        "--remove", type=whole(0), metavar="CLASS",
        help="a class to be seen nowhere: its pixels as the nearest other class, the rest as it is",
    )  # fmt: skip
    group.add_argument(
        "--tile", nargs=2, type=whole(1), metavar=("H", "W"),
        help="the size of a tile that is repeated over the image (default: the image's)",
    )  # fmt: skip
    group.add_argument(
        "--confidence", type=_confidence, metavar="P",
        help="pixels that are as they are to be with more than that count for nothing in a step "
        "(default: 0.75), or none",
    )  # fmt: skip
    group.add_argument(
        "--batches", type=whole(1), metavar="N",
        help="of the data to a step (default: all, as published)",
    )  # fmt: skip
    attack_options.ignore_index(group)


def _confidence(text: str) -> float | str:
    return text if text == "none" else positive(text)


def _output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--out", type=Path, default=Path("out/universal"), metavar="DIR",
        help="the folder for the results (default: out/universal)",
    )  # fmt: skip
    either = group.add_mutually_exclusive_group()
    either.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    either.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run in --out"
    )
