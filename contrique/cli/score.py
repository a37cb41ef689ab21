"""score, explain, compare, serve: what a model says of pictures."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique.cli.options import (
    UsageError,
    add_command,
    add_model,
    add_output,
    add_settings,
    load_backed_scorer,
    parse_integer,
    parse_path,
    print_line,
    read_picture,
    resolve_config,
)
from contrique.text import dump_json

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator, Sequence

    from contrique.scoring.overview import Observation
    from contrique.scoring.results import Failure, Score
    from contrique.scoring.scorer import Scorer
    from contrique.walk import Skipped

SOME_FAILED = 1
_LOOK_SECONDS = 2.0  # from one look at a watched folder to the next


def add_parsers(commands: Any) -> None:
    """Add the commands of this module."""
    command = add_command(
        commands,
        "score",
        score,
        "score pictures, 0 to 100, higher is better",
        "contrique score photo.jpg holiday/ 'scans/*.tif' --format json\n"
        "  contrique score holiday/ --report holiday.html --out holiday.parquet\n"
        "  contrique score camera/ --watch --report today.html\n\n"
        "exit status: 0 if every picture was scored, 1 if some were not, 2 if there is no model or the usage is wrong",
    )
    command.add_argument("paths", nargs="+", metavar="PATH", help="file, folder (all below it) or quoted glob")
    command.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    add_output(
        command, "--report", help="HTML page to write: histogram, best and worst, faults, copies, by folder and month"
    )
    add_output(command, "--out", help=".parquet, .csv or .json to write as well, with likeliest fault and day")
    command.add_argument(
        "--watch", action="store_true", help="go on with what comes later, and keep --report and --out up to date"
    )
    add_model(command)
    add_settings(command)

    command = add_command(
        commands,
        "explain",
        explain,
        "draw where a picture's quality is lost, and name the likeliest distortion",
        "contrique explain photo.jpg --out heat.png",
    )
    command.add_argument("image", type=parse_path, metavar="IMAGE")
    add_output(command, "--out", required=True, help="PNG to write: red is bad, blue is good")
    command.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    add_model(command)
    add_settings(command)

    command = add_command(
        commands,
        "compare",
        compare,
        "score versions of a picture beside their reference, 100 for identical pictures",
        "contrique compare original.png compressed/*.jpg",
    )
    command.add_argument("reference", type=parse_path, metavar="REFERENCE", help="the undistorted picture")
    command.add_argument("paths", nargs="+", metavar="PICTURE", help="versions of it: file, folder or quoted glob")
    command.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    command.add_argument("--model", default="", help="bundled, or a folder with full_reference.npz; default: bundled")
    add_settings(command)

    command = add_command(
        commands,
        "serve",
        serve,
        "open a page to drop pictures on, and answer programs in JSON",
        "contrique serve\n"
        "  contrique serve --model 3 --port 9000 --set serving.max_images=8\n\n"
        "The schema of the JSON is at /openapi.json. Limits are `serving` in contrique/config.py.",
    )
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, for this machine alone"
    )
    command.add_argument("--port", type=parse_integer(0, 65535), default=8080, help="0 for a free one; default: 8080")
    add_model(command)
    add_settings(command)


def score(options: argparse.Namespace) -> int:
    """Print the score of each picture; 1 if some have none."""
    from tqdm import tqdm

    from contrique.scoring.overview import FORMATS
    from contrique.scoring.results import write_results
    from contrique.walk import Skipped, summarize_skipped

    if options.out and options.out.suffix not in FORMATS:
        raise UsageError(f"--out {options.out}: expected a name that ends in {', '.join(FORMATS)}")
    model = load_backed_scorer(options)
    skipped: list[Skipped] = []
    results = _score_paths(model, options, skipped)
    hidden = True if options.watch or sys.stdout.isatty() else None  # on a terminal the results show the progress
    bar = tqdm(results, desc="score", unit="img", file=sys.stderr, disable=hidden)
    failures = write_results(bar, sys.stdout, options.format)
    if skipped:
        print(f"contrique: {summarize_skipped(skipped)}", file=sys.stderr)
    return SOME_FAILED if failures else 0


def _score_paths(model: "Scorer", options: argparse.Namespace, skipped: "list[Skipped]") -> "Iterator[Score | Failure]":
    """Results as they come; --report and --out are written at the end, or after each look of --watch."""
    from contrique.interrupts import catch_interrupt
    from contrique.scoring.inputs import find_images
    from contrique.scoring.overview import observe
    from contrique.scoring.results import Failure

    if not (options.watch or options.report or options.out):
        yield from model.score_paths(options.paths, skipped)
        return
    latest: dict[str, Observation | Failure] = {}
    with catch_interrupt() if options.watch else contextlib.nullcontext() as ended:
        for batch in _watch(options.paths, ended) if ended else [find_images(options.paths, skipped)]:
            for item in observe(model, batch):
                path, result = (item.path, item) if isinstance(item, Failure) else (item.score.path, item.score)
                latest[path] = item
                for folder in Path(path).parents:  # one that was empty is no longer
                    latest.pop(str(folder), None)
                yield result
                if ended and ended.is_set():
                    break
            _write_files(options, list(latest.values()), skipped)


def _watch(paths: "Sequence[str]", ended: "threading.Event") -> "Iterator[Iterable[Path | Failure]]":
    from contrique.scoring.watch import watch_images

    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print("contrique: watching; Ctrl+C ends it", file=sys.stderr)
    return watch_images(paths, _LOOK_SECONDS, ended.wait)


def _write_files(
    options: argparse.Namespace, results: "Sequence[Observation | Failure]", skipped: "list[Skipped]"
) -> None:
    from contrique.reports.overview import write_overview
    from contrique.scoring.overview import write_table
    from contrique.walk import summarize_skipped

    if options.report:
        write_overview(options.report, results, summarize_skipped(skipped) if skipped else "")
    if options.out:
        write_table(results, options.out)


def explain(options: argparse.Namespace) -> None:
    """Write the heat map of a picture and print its score and likeliest distortions."""
    from contrique import images
    from contrique.files import write_aside
    from contrique.scoring import explain
    from contrique.scoring.explain import explanation_as_dict, overlay
    from contrique.scoring.results import write_results

    picture = read_picture(str(options.image))
    explanation = explain.explain(load_backed_scorer(options), picture, str(options.image))
    with write_aside(options.out) as aside:
        aside.write_bytes(images.encode_png(overlay(picture, explanation.heat)))
    if options.format == "json":
        print(dump_json(explanation_as_dict(explanation), indent=2))
        return
    write_results([explanation.score], sys.stdout)
    low, high = explanation.heat.min(), explanation.heat.max()
    print_line(f"{options.out}: local scores {low:.1f} to {high:.1f}, red is low, blue is high")
    if explanation.suspects is None:
        print("this model was fitted without synthesized pictures: it cannot name distortions")
        return
    for suspect in explanation.suspects[:3]:
        level = f", level {suspect.level}" if suspect.level else ""
        print_line(f"{suspect.probability:6.1%}  {suspect.distortion}{level}")


def compare(options: argparse.Namespace) -> int:
    """Print how near each picture comes to the reference; 1 if some cannot be compared."""
    from dataclasses import asdict

    from contrique.registry.load import load_comparer
    from contrique.scoring.compare import compare
    from contrique.scoring.results import Failure

    scorer, head = load_comparer(options.model, resolve_config(options).registry)
    results = list(compare(scorer, head, options.reference, options.paths))
    if options.format == "json":
        print(dump_json([asdict(result) for result in results], indent=2))
    else:
        for result in results:
            if isinstance(result, Failure):
                print_line(f"     -  {result.error}")
            else:
                print_line(f"{result.score:6.1f}  {result.path}")
        print_line(f"compared with {options.reference} | 100 is identical | model {scorer.version}")
    return SOME_FAILED if any(isinstance(result, Failure) for result in results) else 0


def serve(options: argparse.Namespace) -> None:
    """Serve a model over HTTP until interrupted."""
    from importlib.util import find_spec

    if missing := [package for package in ("fastapi", "uvicorn") if not find_spec(package)]:
        raise UsageError(f"serve needs {', '.join(missing)}; run: pip install -e '.[serve]'")
    from contrique.serving import app
    from contrique.serving.app import listen

    limits = resolve_config(options).serving
    with listen(options.host, options.port) as listener:  # before the model: a wrong address is an error at once
        app.serve(load_backed_scorer(options), listener, limits, options.host)
