"""rate: people judge pictures, and their answers become labels."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from contrique.cli.options import (
    UsageError,
    add_command,
    add_model,
    add_output,
    add_settings,
    load_scorer,
    parse_integer,
    parse_path,
    print_line,
    resolve_config,
)
from contrique.text import escape_control


def add_parsers(commands: Any) -> None:
    """Add the command of this module."""
    command = add_command(
        commands,
        "rate",
        rate,
        "open a page on which people rate pictures, and export their scores",
        "contrique rate holiday --rater anna\n"
        "  contrique rate holiday --export holiday/labels.csv && contrique adapt --labels holiday/labels.csv\n\n"
        "How many pictures, repeats and golden pairs there are: `rating` in contrique/config.py.",
    )
    command.add_argument("folder", type=parse_path, metavar="FOLDER", help="of the pictures")
    command.add_argument("--rater", default="", help="name that the page begins with; others can give theirs there")
    command.add_argument(
        "--method",
        choices=("acr", "pairs"),
        help="acr: one picture on five steps; pairs: the better one of two; default: acr, or that of the session",
    )
    command.add_argument(
        "--session", type=parse_path, help="folder that keeps the answers; default: ratings/NAME-OF-FOLDER"
    )
    command.add_argument(
        "--choose",
        choices=("model", "random"),
        help="who chooses the pictures of a new session; random needs no model; default: model",
    )
    command.add_argument("--count", type=parse_integer(5, 10**6), help="pictures that each rater judges; default: 100")
    command.add_argument(
        "--seed", type=parse_integer(0, 2**32 - 1), help="of choice and order; default: 0, or that of the session"
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, for this machine alone"
    )
    command.add_argument("--port", type=parse_integer(0, 65535), default=8080, help="0 for a free one; default: 8080")
    add_output(command, "--export", help="CSV of image, mos, interval and n to write, in place of asking")
    add_model(command)
    add_settings(command)


def rate(options: argparse.Namespace) -> None:
    """Ask people about the pictures of a folder, or write what they said."""
    place = options.session or Path("ratings") / (options.folder.resolve().name or "pictures")
    if options.export:
        _export(options, place)
    else:
        _ask(options, place)


def _ask(options: argparse.Namespace, place: Path) -> None:
    from importlib.util import find_spec

    if missing := [package for package in ("fastapi", "uvicorn") if not find_spec(package)]:
        raise UsageError(f"rate needs {', '.join(missing)}; run: pip install -e '.[rate]'")
    from contrique.rating import server
    from contrique.rating.candidates import check_folder
    from contrique.rating.interview import Interview
    from contrique.rating.session import check_rater, hold
    from contrique.serving.app import listen

    check_folder(options.folder)
    if options.rater:
        check_rater(options.rater)
    config = resolve_config(options)
    limits = config.serving
    with listen(options.host, options.port) as listener, hold(place):
        session = _open_session(options, place)
        interview = Interview(session, place, limits)
        server.serve(interview, listener, limits, options.host, config.rating.grey_seconds, options.rater)


def _open_session(options: argparse.Namespace, place: Path) -> Any:
    import dataclasses

    from contrique.rating import start
    from contrique.rating.questions import count_questions
    from contrique.walk import Skipped, summarize_skipped

    if start.exists(place):
        return _resume(options, place)
    config = resolve_config(options)
    rating = dataclasses.replace(config.rating, count=options.count) if options.count else config.rating
    skipped: list[Skipped] = []
    session = start.begin(
        options.folder,
        method=options.method or "acr",
        seed=options.seed or 0,
        choice=options.choose or "model",
        config=rating,
        limits=config.serving,
        load_scorer=lambda: load_scorer(options),
        skipped=skipped,
    )
    session.save(place)
    if skipped:
        print(f"contrique: {summarize_skipped(skipped)}", file=sys.stderr)
    print_line(
        f"{place}: {len(session.asked)} pictures, chosen by {session.model or 'chance'}; "
        f"{count_questions(session)} questions a rater"
    )
    return session


def _resume(options: argparse.Namespace, place: Path) -> Any:
    """The session of a folder; what would choose its pictures is said to have no effect."""
    from contrique.rating.start import resume

    session = resume(place, options.folder, options.method, options.seed)
    flags = [f"--{name}" for name in ("choose", "count", "model") if getattr(options, name)]
    flags += ["--set rating.count" for text in options.set if text.startswith("rating.count=")]
    if flags:
        text = f"{place} goes on with the pictures that it began with, whatever {', '.join(flags)} would choose"
        print(f"contrique: {escape_control(text)}", file=sys.stderr)
    return session


def _export(options: argparse.Namespace, place: Path) -> None:
    from contrique.rating.export import analyse, write_labels
    from contrique.rating.session import Store

    session = _resume(options, place)
    labels = analyse(session, Store(place), resolve_config(options).rating)
    base = write_labels(labels, options.folder, options.export)
    for note in labels.notes:
        print_line(note)
    words = ["contrique", "adapt", "--labels", str(options.export)]
    words += [] if base == options.export.parent else ["--images", str(base)]
    print_line(f"{options.export}: {len(labels.rows)} pictures; next: {shlex.join([*words, '--out', 'my_model'])}")
