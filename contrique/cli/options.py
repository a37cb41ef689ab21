"""Options that several commands share, each beside the function that reads it."""

import argparse
import json
from typing import TYPE_CHECKING, Any, NoReturn

from contrique.config import Config, resolve
from contrique.errors import ContriqueError

if TYPE_CHECKING:
    from contrique.images import Picture
    from contrique.scoring.scorer import Scorer


class UsageError(ContriqueError):
    """An argument that makes no sense; the message names it and what was expected."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with a remedy."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


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


def add_settings(command: argparse.ArgumentParser) -> None:
    """Add --set."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of contrique/config.py, such as pretrain.steps=100; repeatable",
    )


def resolve_config(options: argparse.Namespace) -> Config:
    """The configuration: --profile, or demo, with the values of --set."""
    overrides = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected NAME=VALUE, such as pretrain.steps=100")
        try:
            overrides[name] = json.loads(value)
        except ValueError:  # a bare word, such as resnet18
            overrides[name] = value
    return resolve(getattr(options, "profile", "demo"), overrides)


def add_seed(command: argparse.ArgumentParser, of: str = "") -> None:
    """Add --seed; `of`: what it is for, in the help."""
    command.add_argument("--seed", type=int, default=0, help=f"{of}default: 0")


def add_model(command: argparse.ArgumentParser) -> None:
    """Add --model, --backend and --precision."""
    command.add_argument(
        "--model",
        default="",
        help="registry version, alias, `bundled`, or folder of `adapt`; default: the champion, or bundled if none",
    )
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
