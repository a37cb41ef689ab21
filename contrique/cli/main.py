"""The command line. What a command needs is imported inside its function, so that help is instant."""

import argparse
import os
import sys
from collections.abc import Sequence

from contrique import __version__
from contrique.cli import benchmark, data, models, score, training
from contrique.cli.options import Parser
from contrique.errors import ContriqueError

REFUSED = 2  # as argparse exits on a usage error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; that of the process by default.
    Returns:
        exit status: 0; 1 if some pictures could not be scored; 2 for a failure that the user can mend, told in one
        line on stderr.
    """
    for stream in (sys.stdout, sys.stderr):  # a file name need not be valid UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        options = build_parser().parse_args(arguments)
        status: int = options.command(options) or 0
        sys.stdout.flush()
        return status
    except ContriqueError as error:
        print(f"contrique: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt:
        print("contrique: interrupted", file=sys.stderr)
        return 128 + 2


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
    for theme in (score, models, data, training, benchmark):
        theme.add_parsers(commands)
    return parser
