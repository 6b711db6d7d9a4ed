"""What the commands share: a parser that answers in one sentence, and the kinds of values."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

Commands = argparse._SubParsersAction  # argparse gives this type no public name


class Mistake(Exception):
    """What a person can put right: one sentence, exit code 2, no traceback."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one sentence, without the usage above it."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | options)  # type: ignore[arg-type]
        self._negative_number_matcher = re.compile(r"-\.?\d")  # -1/255 and -1e-3 are values too

    def error(self, message: str) -> NoReturn:
        choice = re.match(r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", message)
        if choice:
            message = f"{choice[1]} must be one of {choice[3]}, got {choice[2]}"
        sentence = re.sub(r"^argument (\S+): ", r"\1 ", message)
        self.exit(2, f"{self.prog}: {sentence} (try {self.prog} --help)\n")


class Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as written, options in a column of their own, 100 characters at most."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Errors that fastadv raises about values become mistakes in `what`."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise Mistake(f"{what}: {error}") from error


def number(text: str) -> float:
    """A number, or a fraction such as 8/255."""
    above, slash, below = text.partition("/")
    try:
        return float(Fraction(above.strip()) / Fraction(below.strip() if slash else 1))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"must be a number or a fraction such as 8/255, got {text!r}"
        ) from None


def positive(text: str) -> float:
    """A number above 0."""
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text!r}")
    return value


def whole(least: int) -> Callable[[str], int]:
    """A whole number, at least `least`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text.strip()) or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number, at least {least}, got {text!r}"
            )
        return int(text)

    return parse


def label(text: str) -> int:
    """A whole number, of any sign."""
    if not re.fullmatch(r"[+-]?\d+", text.strip()):
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
    return int(text)


def one_of(*choices: str) -> Callable[[str], str]:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in choices:
            *most, last = choices
            some = f"{', '.join(most)} or {last}" if most else last
            raise argparse.ArgumentTypeError(f"must be {some}, got {text!r}")
        return text

    return parse


def numbers(text: str) -> float | tuple[float, ...]:
    """A number, or several with commas between: one a channel."""
    values = tuple(number(part) for part in text.split(","))
    return values if len(values) > 1 else values[0]


def console() -> Console:
    """Where results are printed: as wide as the terminal, 100 characters where there is none."""
    from rich.console import Console

    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=100)
