"""benchmark: an encoder on public rated sets."""

import argparse
from typing import Any

from contrique.cli.options import (
    add_command,
    add_output,
    add_seed,
    add_settings,
    load_scorer,
    parse_integer,
    parse_path,
    print_line,
    resolve_config,
)


def add_parsers(commands: Any) -> None:
    """Add the command of this module."""
    command = add_command(
        commands,
        "benchmark",
        benchmark,
        "judge an encoder on rated sets, own set and across sets, beside baselines and published figures",
        "contrique benchmark --data tid2013:tid2013/ --data koniq10k:koniq/ --encoder encoder.safetensors "
        "--baseline brisque --out benchmark/",
    )
    command.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="NAME:PATH",
        help="a public set as distributed, or any name for a folder with labels.csv or a picture set; repeatable",
    )
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--encoder", type=parse_path, help="a .safetensors file of a pretraining run")
    which.add_argument("--model", help="registry version, alias, or a folder of `adapt`, for its encoder")
    command.add_argument(
        "--baseline",
        action="append",
        default=[],
        choices=("untrained", "brisque"),
        help="untrained: the same network with random weights, three seeds; brisque: with an SVR; repeatable",
    )
    command.add_argument(
        "--distorted",
        type=parse_path,
        help="set of `contrique synthesize` or a run, to fit an opinion-unaware head on too",
    )
    command.add_argument(
        "--weak-pictures", type=parse_integer(1, 10**9), default=2000, help="how many of it; default: 2000"
    )
    add_output(command, "--out", folder=True, required=True, help="folder for benchmark.md, .json and .html")
    add_output(command, "--cache", folder=True, help="folder of features to keep and use; default: features in --out")
    add_seed(command, "of splits and intervals; ")
    add_settings(command)


def benchmark(options: argparse.Namespace) -> None:
    """Judge an encoder and write the tables."""
    import torch

    from contrique.benchmark.benchmark import MARKDOWN, run
    from contrique.encoder.weights import load_encoder

    if options.encoder:
        encoder = load_encoder(options.encoder).to("cuda" if torch.cuda.is_available() else "cpu")
    else:
        encoder = load_scorer(options).encoder
    result = run(
        options.data,
        encoder,
        options.out,
        config=resolve_config(options),
        distorted=options.distorted,
        weak_pictures=options.weak_pictures,
        baselines=options.baseline,
        cache=options.cache,
        seed=options.seed,
    )
    for method, evaluation in result.methods.items():
        for name, judgement in evaluation.own.items():
            srcc = judgement.metrics["srcc"]
            print_line(
                f"{name}: {method}: SRCC {srcc.value:.3f} [{srcc.low:.3f}, {srcc.high:.3f}], {judgement.n} pictures"
            )
    print_line(f"{options.out / MARKDOWN}: all figures, also as JSON and HTML")
