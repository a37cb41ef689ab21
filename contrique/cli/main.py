"""The command line. What a command needs is imported inside its function, so that help is instant."""

import argparse
from collections.abc import Sequence

from contrique import __version__
from contrique.cli import benchmark, data, models, rate, score, scrutiny, training
from contrique.cli.boundary import run_command
from contrique.cli.options import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; that of the process by default.
    Returns:
        exit status: 0; 1 if some pictures could not be scored; 2 for a failure that the user can mend, with one line on
        stderr; 130 after Ctrl-C.
    """
    return run_command(build_parser, arguments, "contrique")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="contrique",
        description="No-reference image quality: score pictures with the champion, look after the registry of models,\n"
        "and run single stages by hand. The whole training pipeline: python -m pipelines --help",
        epilog="The registry is mlruns/mlflow.db under the working directory, or where MLFLOW_TRACKING_URI points.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"contrique {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for theme in (score, rate, scrutiny, models, data, training, benchmark):
        theme.add_parsers(commands)
    return parser
