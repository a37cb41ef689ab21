"""Options that several commands share, each beside the function that reads it."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from contrique.config import Config, parse_overrides, resolve
from contrique.errors import ContriqueError
from contrique.text import escape_control

if TYPE_CHECKING:
    from contrique.images import Picture
    from contrique.scoring.scorer import Scorer


class UsageError(ContriqueError):
    """An argument that makes no sense; the message names it and what was expected."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with a remedy."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def print_line(text: str) -> None:
    """Print one line; names in it may be a stranger's, so a terminal gets nothing to obey."""
    print(escape_control(text))


def add_command(commands: Any, name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
    """Add a subcommand.

    Args:
        commands: the result of `add_subparsers`.
        name: of the command.
        run: function of the parsed options; it returns an exit status, or None for 0.
        text: one line for the help, in lower case.
        example: shown below the options.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=run)
    return command


def add_output(command: argparse.ArgumentParser, flag: str, *, folder: bool = False, **options: object) -> None:
    """Add an option for a file to write, or for a `folder`; whether that is possible is checked before the command."""
    action = command.add_argument(flag, type=parse_path, **options)  # type: ignore[arg-type]
    outputs = command.get_default("outputs") or ()
    command.set_defaults(outputs=(*outputs, (action.dest, folder)))


def parse_path(text: str) -> Path:
    """A path, not empty: that would be the working directory."""
    return Path(parse_place(text))


def parse_place(text: str) -> str:
    """A path or an address, not empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    return text


def parse_integer(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers in a range, for argparse."""

    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{number} is not from {low} to {high}")
        return number

    parse.__name__ = "whole number"  # argparse: invalid whole number value
    return parse


def add_settings(command: argparse.ArgumentParser, *aliases: str, also: str = "") -> None:
    """Add --set, which has some other names too; `also`: what else it takes, for the help."""
    command.add_argument(
        "--set",
        *aliases,
        dest="set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"an option of contrique/config.py, such as pretrain.steps=100{also and f', or {also}'}; repeatable",
    )


def add_minutes(command: argparse.ArgumentParser) -> None:
    """Add --minutes, which is short for the option pretrain.minutes."""
    command.add_argument(
        "--minutes", type=_parse_minutes, help="to pretrain for, instead of the steps or epochs of the profile"
    )


def _parse_minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{minutes:g}: give more than 0")
    return minutes


_parse_minutes.__name__ = "number"  # argparse: invalid number value


def parse_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Overrides of the configuration, as plain values: --set, and --minutes if the command has it."""
    overrides = parse_overrides(options.set)
    if getattr(options, "minutes", None) is not None:
        overrides["pretrain.minutes"] = options.minutes
    return overrides


def resolve_config(options: argparse.Namespace) -> Config:
    """The configuration: --profile, or demo, with the values of --set and --minutes."""
    return resolve(getattr(options, "profile", "demo"), parse_settings(options))


def add_seed(command: argparse.ArgumentParser, of: str = "") -> None:
    """Add --seed; `of`: what it is for, in the help."""
    command.add_argument("--seed", type=parse_integer(0, 2**32 - 1), default=0, help=f"{of}default: 0")


def add_model(command: argparse.ArgumentParser) -> None:
    """Add --model, --backend and --precision."""
    command.add_argument(
        "--model",
        default="",
        help="registry version, alias, `bundled`, or folder of `adapt`; default: the champion, or bundled if none",
    )
    add_backend(command)


def add_backend(command: argparse.ArgumentParser) -> None:
    """Add --backend and --precision."""
    command.add_argument(
        "--backend",
        choices=("auto", "torch", "onnx", "openvino"),
        default="auto",
        help="what runs the encoder; auto: the fastest one that agrees with PyTorch, measured once; default: auto",
    )
    command.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is faster and may move a score by up to 2 points; default: float32",
    )


def load_scorer(options: argparse.Namespace) -> "Scorer":
    """The version, alias or folder of `contrique adapt` that --model names."""
    from contrique.registry.load import load_model

    return load_model(options.model, resolve_config(options).registry)


def load_backed_scorer(options: argparse.Namespace, name: str | None = None) -> "Scorer":
    """The model of that name, or else the one that --model names, run by --backend in --precision."""
    from contrique.registry.load import load_model

    scorer = load_model(options.model if name is None else name, resolve_config(options).registry)
    scorer.use(options.backend, options.precision)
    return scorer


def read_picture(path: str) -> "Picture":
    """A picture large enough for the encoder.

    Raises:
        BadImage: it cannot be read; the message names the file.
        UsageError: it is too small; likewise.
    """
    from contrique.encoder.architectures import MIN_SIDE
    from contrique.images import read

    picture = read(path)
    if min(picture.shape[:2]) < MIN_SIDE:
        raise UsageError(
            f"{path}: {picture.shape[1]}x{picture.shape[0]} is under {MIN_SIDE} pixels a side; leave it out"
        )
    return picture
