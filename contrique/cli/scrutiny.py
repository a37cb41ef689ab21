"""disagree: what an average does not show of a model."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from contrique.cli.options import (
    add_backend,
    add_command,
    add_output,
    add_settings,
    load_backed_scorer,
    parse_integer,
    print_line,
)
from contrique.text import dump_json

if TYPE_CHECKING:
    from contrique.reports.disagreement import Disagreement

SOME_FAILED = 1


def add_parsers(commands: Any) -> None:
    """Add the commands of this module."""
    command = add_command(
        commands,
        "disagree",
        disagree,
        "show the pairs of pictures that one model calls equal and the other puts farthest apart",
        "contrique disagree bundled 3 holiday/ --report page.html\n\n"
        "exit status: 0 if both models scored every picture, 1 if some were not, 2 if there is no such model",
    )
    for name in ("model_a", "model_b"):
        command.add_argument(
            name, metavar=name.upper(), help="registry version, alias, `bundled`, or folder of `adapt`"
        )
    command.add_argument("paths", nargs="+", metavar="PATH", help="file, folder (all below it) or quoted glob")
    add_output(command, "--report", help="HTML page to write, with the pictures side by side")
    command.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    command.add_argument(
        "--tolerance", type=_parse_points, default=1.0, help="points within which two scores are equal; default: 1"
    )
    command.add_argument(
        "--pairs", type=parse_integer(1, 100), default=3, help="for each model and each third of its scores; default: 3"
    )
    add_backend(command)
    add_settings(command)


def _parse_points(text: str) -> float:
    points = float(text)
    if not 0 <= points < math.inf:
        raise argparse.ArgumentTypeError(f"{points:g}: give 0 or more")
    return points


_parse_points.__name__ = "number"  # argparse: invalid number value


def disagree(options: argparse.Namespace) -> int:
    """Print the pairs on which two models differ most; 1 if some pictures were not scored."""
    from contrique.reports.disagreement import find_disagreement, write_page

    models = load_backed_scorer(options, options.model_a), load_backed_scorer(options, options.model_b)
    result = find_disagreement(models, options.paths, tolerance=options.tolerance, count=options.pairs)
    if options.report:
        write_page(options.report, result)
    if options.format == "json":
        print(dump_json(result.as_dict(), indent=2))
    else:
        _print_pairs(result)
        if options.report:
            print_line(f"{options.report}: {len(result.pairs)} pairs, side by side")
    return SOME_FAILED if result.failures else 0


def _print_pairs(result: "Disagreement") -> None:
    from contrique.reports.disagreement import NAMES

    for name, model, labels in zip(NAMES, result.models, result.labels, strict=True):
        print_line(f"{name}  {model or 'unregistered model'}, learned from {labels} labels")
    for defender, attacker in (NAMES, NAMES[::-1]):
        print_line(f"{defender} calls equal, within {result.tolerance:g}, and {attacker} tells apart:")
        print_line("level        A             B        gap  pictures")
        pairs = [pair for pair in result.pairs if pair.defender == defender]
        for pair in pairs:
            a, b = ([picture.scores[i] for picture in (pair.worse, pair.better)] for i in (0, 1))
            names = f"{pair.worse.path} | {pair.better.path}"
            print_line(f"{pair.level:6}  {a[0]:5.1f} {a[1]:5.1f}  {b[0]:5.1f} {b[1]:5.1f}  {pair.gap:5.1f}  {names}")
        if not pairs:
            print_line("none")
    for failure in result.failures:
        print_line(f"not scored: {failure.error}")
    agreement = "undefined" if result.srcc is None else f"{result.srcc:.3f}"
    print_line(f"{result.pictures} pictures, {len(result.failures)} not scored | SRCC of A and B {agreement}")
