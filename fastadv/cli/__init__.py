"""The command line, python -m fastadv COMMAND: one module a command, each with `add` and `run`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastadv.cli import attack as attack
from fastadv.cli import demo as demo
from fastadv.cli import universal as universal
from fastadv.cli.arguments import Help, Mistake, Parser

COMMANDS = (demo, attack, universal)

_ABOUT = """\
Adversarial examples, universal perturbations and adversarial training on fused kernels.

The same from Python, with every option:

    import fastadv as fa
    attack = fa.pgd(fa.Linf(8 / 255), step_size=2 / 255, steps=10)
    x_adv = attack(model, x, y)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command: 0 when done, 2 for a mistake in what was asked for, 130 when interrupted."""
    parser = Parser(prog="python -m fastadv", description=_ABOUT, formatter_class=Help)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for command in COMMANDS:
        command.add(commands)
    given = parser.parse_args(arguments)
    if not hasattr(given, "run"):
        parser.print_help()
        return 2
    try:
        return int(given.run(given))
    except Mistake as mistake:
        print(f"{parser.prog} {given.command}: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog} {given.command}: interrupted", file=sys.stderr)
        return 130
