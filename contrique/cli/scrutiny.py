"""disagree, gaming: what an average does not show of a model."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from contrique.cli.options import (
    add_backend,
    add_command,
    add_model,
    add_output,
    add_seed,
    add_settings,
    load_backed_scorer,
    parse_integer,
    print_line,
    resolve_config,
)
from contrique.text import dump_json

if TYPE_CHECKING:
    from contrique.benchmark.gaming import AttackTable
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

    command = add_command(
        commands,
        "gaming",
        gaming,
        "measure how far a score can be raised without a better picture",
        "contrique gaming photographs/ --model 3 --set evaluation.gaming_pictures=36\n\n"
        "Of the pictures a sample is attacked, the middle of each at its own scale; how many and how large are\n"
        "evaluation.gaming_pictures and evaluation.gaming_side. Give pictures that need no mending: that sharpening\n"
        "and contrast make nothing better is presumed.\n"
        "exit status: 0 if every picture of the sample was read, 1 if some were not, 2 if there is no such model",
    )
    command.add_argument("paths", nargs="+", metavar="PATH", help="file, folder (all below it) or quoted glob")
    command.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    add_model(command)
    add_seed(command, "of the sample and of the intervals; ")
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


def gaming(options: argparse.Namespace) -> int:
    """Print how far attacks raise a model's scores; 1 if some pictures were not read."""
    from contrique.benchmark.gaming import attack_files
    from contrique.evaluation.gaming import ATTACKS, NAMES

    config = resolve_config(options).evaluation
    names = NAMES if config.gaming_gradient else tuple(ATTACKS)
    result = attack_files(load_backed_scorer(options), options.paths, config=config, seed=options.seed, names=names)
    if options.format == "json":
        print(dump_json(result.as_dict(), indent=2))
    else:
        _print_attacks(result)
    return SOME_FAILED if result.failures else 0


def _print_attacks(result: "AttackTable") -> None:
    from contrique.evaluation.gaming import RAISED

    print_line(f"attack                mean rise  {result.confidence:.0%} interval  over {RAISED:g}  fidelity")
    for name, rise in result.rises.items():
        mean, low, high = ("nan" if v is None else f"{v:+.1f}" for v in (rise.mean, rise.low, rise.high))
        fidelity = "-" if rise.fidelity is None else f"{rise.fidelity:.3f}"
        print_line(f"{name:20}  {mean:>9}  {low:>5} - {high:>5}  {rise.share:6.0%}  {fidelity:>8}")
    for failure in result.failures:
        print_line(f"not attacked: {failure.error}")
    print_line(
        f"{result.pictures} pictures, the middle of each of at most {result.side} pixels a side, "
        f"{len(result.failures)} not read | points of 100, not clipped | "
        f"model {result.model or 'unregistered'}, learned from {result.labels} labels"
    )
