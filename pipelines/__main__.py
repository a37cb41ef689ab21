"""Compile, run, submit, schedule and upload the pipelines: `python -m pipelines COMMAND --help`."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique.cli.boundary import run_command
from contrique.cli.options import (
    Parser,
    UsageError,
    add_minutes,
    add_output,
    add_seed,
    add_settings,
    parse_integer,
    parse_place,
    parse_settings,
)
from contrique.errors import ContriqueError

if TYPE_CHECKING:
    from kfp import dsl

    from pipelines.cluster.client import Cluster

_COUNT = parse_integer(1, 10_000)
# Arguments of each pipeline that have an option of their own, and what they are by default.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "training": {
        "data": "",
        "encoder": "",
        "revision": "",
        "pristine": [],
        "authentic": [],
        "profile": "demo",
        "seed": 0,
    },
    "scoring": {"data": "", "model": "champion", "fail_on_drift": True, "profile": "demo"},
}


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; 0 on success, 2 on a failure that the user can mend (3 on drift), told on stderr."""
    return run_command(build_parser, arguments, "error")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    compiling = commands.add_parser("compile", help="write a pipeline as YAML for Kubeflow")
    _add_pipeline(compiling)
    add_output(compiling, "--out", help="default: the pipeline's name with .yaml")
    compiling.set_defaults(command=compile_pipeline)

    running = commands.add_parser("run", help="run a pipeline on this machine; status 3: the scoring found drift")
    _add_arguments(running)
    add_output(running, "--runs", folder=True, default=Path("runs"), help="folder that keeps each run (default: runs)")
    running.add_argument(
        "--runner",
        choices=("subprocess", "docker"),
        default="subprocess",
        help="each task as a process of this environment, or as a container of the image (default: subprocess)",
    )
    running.add_argument(
        "--mount",
        type=parse_place,
        action="append",
        default=[],
        metavar="FOLDER",
        help="that containers may read, too; repeatable",
    )
    running.add_argument(
        "--direct", action="store_true", help="without the rules of a cluster's backend and its object store"
    )
    running.set_defaults(command=run)

    submitting = commands.add_parser("submit", help="start a run on a Kubeflow cluster")
    _add_run(submitting)
    submitting.add_argument("--wait", action="store_true", help="until the run ends; fail if it failed")
    submitting.set_defaults(command=submit)

    scheduling = commands.add_parser("schedule", help="make a recurring run on a Kubeflow cluster")
    _add_run(scheduling)
    scheduling.add_argument("--cron", required=True, help="'0 2 * * 0' (Sundays at 2), or six fields, seconds first")
    scheduling.set_defaults(command=schedule)

    uploading = commands.add_parser("upload", help="upload a version of a pipeline, to be run from the UI")
    _add_pipeline(uploading)
    _add_cluster(uploading)
    uploading.add_argument("--version", required=True, help="its name, new for this pipeline, such as 0.1.0")
    uploading.add_argument("--description", default="", help="shown beside the version")
    uploading.set_defaults(command=upload)

    checking = commands.add_parser("check", help="run the demo on a Kubeflow cluster, and say what held")
    _add_cluster(checking)
    checking.add_argument(
        "--data", required=True, help="rated pictures that its pods reach, such as s3://bucket/pictures"
    )
    checking.add_argument(
        "--artifacts", default="s3://contrique/kfp", help="where runs keep theirs (default: s3://contrique/kfp)"
    )
    checking.set_defaults(command=check)

    training = commands.add_parser("trainjob", help="write a Kubeflow Trainer job that pretrains on several machines")
    training.add_argument("--name", required=True, help="of the job and of its MLflow run")
    training.add_argument("--nodes", type=_COUNT, required=True, help="machines")
    training.add_argument("--gpus", type=_COUNT, default=8, help="on each machine (default: 8)")
    training.add_argument("--pristine", action="append", required=True, help="s3:// prefix of photographs; repeatable")
    training.add_argument("--authentic", action="append", required=True, help="likewise, taken as they are; repeatable")
    training.add_argument("--to", required=True, help="s3:// prefix for checkpoints, encoder and history")
    training.add_argument("--profile", default="paper", help="default: paper")
    training.add_argument("--encoder", default="", help="to train on from, as of `run`; every machine must reach it")
    add_seed(training)
    add_settings(training, "--param")
    add_output(training, "--out", default=Path("trainjob.yaml"), help="default: trainjob.yaml")
    training.set_defaults(command=trainjob)

    stacking = commands.add_parser("stack", help="S3, PostgreSQL and the MLflow server on this machine")
    stacking.add_argument("action", choices=("up", "down", "env"), help="env: shell commands that set its addresses")
    add_output(stacking, "--folder", folder=True, default=Path(".stack"), help="its data and logs (default: .stack)")
    stacking.add_argument("--detach", action="store_true", help="with up: run in the background, return when it works")
    stacking.set_defaults(command=stack)
    return parser


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", choices=tuple(ARGUMENTS), default="training", help="default: training")
    parser.add_argument(
        "--shards", type=_COUNT, default=1, help="tasks that synthesis and feature extraction fan out over (default: 1)"
    )
    parser.add_argument(
        "--gpus", type=_COUNT, default=1, help="that pretraining takes, one process each; on each node (default: 1)"
    )
    parser.add_argument(
        "--nodes", type=_COUNT, default=1, help="machines that pretrain together, as a TrainJob if over 1 (default: 1)"
    )
    parser.add_argument(
        "--to", default="", help="with --nodes: s3:// prefix for the job's data, checkpoints and results"
    )


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", required=True, help="address of the Kubeflow Pipelines API")
    parser.add_argument("--experiment", default="contrique", help="default: contrique")
    parser.add_argument("--namespace", default="", help="profile, in a Kubeflow that has them")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser)
    _add_cluster(parser)
    parser.add_argument("--name", default="", help="of the run; default: its data, revision, profile and time")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_pipeline(parser)
    parser.add_argument("--data", help="labelled data, or pictures to score: folder, git URL or s3:// prefix")
    parser.add_argument(
        "--encoder",
        help="to start from: bundled, a file or folder, s3://..., a version or alias of the registry; used as it is "
        "unless --minutes or --set pretrain.steps=N is given; default: random weights",
    )
    parser.add_argument("--revision", help="git revision of data.dvc (default: what the folder holds)")
    parser.add_argument("--pristine", action="append", help="folder of undistorted photographs; repeatable")
    parser.add_argument("--authentic", action="append", help="folder of camera photographs; repeatable")
    parser.add_argument("--profile", help="demo (minutes on a laptop), gpu or paper; default: demo")
    add_minutes(parser)
    parser.add_argument("--seed", type=parse_integer(0, 2**32 - 1), help="default: 0")
    add_settings(parser, "--param", also="an argument of the pipeline, such as profile=paper")


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the pipeline: a setting with a dot is an option of the configuration, one without an argument."""
    from contrique.config import parse_value, resolve, split_setting
    from contrique.sources.fetch import refuse_credentials

    defaults = ARGUMENTS[options.pipeline]
    values = {name: getattr(options, name, None) for group in ARGUMENTS.values() for name in group}
    for name, value in values.items():
        if value is not None and name not in defaults:
            raise UsageError(f"--{name}: the {options.pipeline} pipeline has no such argument; leave it out")
    arguments = defaults | {name: value for name, value in values.items() if value is not None}
    settings = [split_setting(text) for text in options.set]
    for name, value in settings:
        if "." not in name and name not in defaults:
            raise UsageError(f"--set {name}: neither an option of the configuration nor an argument of the pipeline")
        if "." not in name:
            kind = type(defaults[name])
            arguments[name] = parse_value(name, value, list[str] if kind is list else kind)
    options.set = [f"{name}={value}" for name, value in settings if "." in name]
    if options.minutes is not None and options.pipeline == "scoring":
        raise UsageError("--minutes: the scoring pipeline trains nothing; leave it out")
    arguments["overrides"] = parse_settings(options)
    if not arguments["data"]:
        raise UsageError("no data; give --data FOLDER (`--data .` here, after `make data`, for the sample photographs)")
    refuse_credentials(
        arguments["data"], arguments.get("encoder", ""), *arguments.get("pristine", ()), *arguments.get("authentic", ())
    )
    # a mistyped option is better found now than by a task
    config = resolve(arguments["profile"], arguments["overrides"])
    _check_divisible(config.pretrain.images, options)
    return arguments


def _check_divisible(images: int, options: argparse.Namespace) -> None:
    """Refuse numbers of machines and GPUs that a step's pictures do not divide by."""
    if images % (options.nodes * options.gpus):
        raise UsageError(
            f"{options.nodes} nodes x {options.gpus} GPUs: pretrain.images={images} does not divide by them"
        )


def _pipeline(options: argparse.Namespace) -> "dsl.base_component.BaseComponent":
    shape = {"shards": options.shards, "gpus": options.gpus, "nodes": options.nodes}
    for name, number in shape.items():
        if number > 1 and options.pipeline == "scoring":
            raise UsageError(f"--{name}: the scoring pipeline is not fanned out; leave it out")
    if options.nodes > 1 and not options.to.startswith("s3://"):
        raise UsageError("--nodes: give --to s3://BUCKET/PREFIX too, which all machines reach")
    if options.nodes == 1 and options.to:
        raise UsageError("--to is for --nodes of 2 or more; leave it out")
    if options.pipeline == "scoring":
        from pipelines.scoring import scoring

        return scoring
    from pipelines.training import build

    return build(**shape, to=options.to)


class CheckFailed(ContriqueError):
    """A cluster that does not do what it should."""


def compile_pipeline(options: argparse.Namespace) -> None:
    """Write the compiled pipeline."""
    from kfp import compiler

    from components import IMAGE

    out = options.out or Path(f"{options.pipeline}.yaml")
    out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(_pipeline(options), str(out))
    print(f"{out}: upload it in the Kubeflow UI, or use `python -m pipelines submit`. Image: {IMAGE}")


def trainjob(options: argparse.Namespace) -> None:
    """Write the manifest of a pretraining job."""
    import yaml

    from components import IMAGE
    from contrique.config import resolve
    from contrique.files import write_aside
    from contrique.pretraining.launch import command, fill_in
    from contrique.pretraining.start import has_length
    from pipelines.cluster.trainjob import manifest

    overrides = parse_settings(options)
    _check_divisible(resolve(options.profile, overrides).pretrain.images, options)
    if options.encoder and not has_length(overrides):
        raise UsageError("--encoder: say how long to train on, by --set pretrain.minutes=N or pretrain.steps=N")
    for place in (*options.pristine, *options.authentic, options.to):
        if not place.startswith("s3://"):
            raise UsageError(f"{place}: every machine must reach it; give an s3:// prefix")
    out = options.to.rstrip("/")
    settings = {"pretrain.synthesis": "on_the_fly"} | overrides
    places = {"pristine": options.pristine, "authentic": options.authentic}
    places |= {"checkpoints": [f"{out}/checkpoints"], "publish": [out]}
    places |= {"encoder": [options.encoder]} if options.encoder else {}
    words = command(places, profile=options.profile, overrides=settings, seed=options.seed)
    job = fill_in(manifest(IMAGE, nodes=options.nodes, gpus=options.gpus), options.name, options.name, words)
    with write_aside(options.out) as aside:
        aside.write_text(yaml.safe_dump(job, sort_keys=False))
    start = f"kubectl -n NAMESPACE apply -f {options.out}"
    print(f"{options.out}: start it with `{start}`, where the Secrets are. Image: {IMAGE}")


def run(options: argparse.Namespace) -> None:
    """Run on this machine and print what came of it."""
    from pipelines.laptop import runner
    from pipelines.laptop.summary import summary

    if options.nodes > 1:
        raise UsageError("--nodes: several machines are a cluster's; use `submit`")
    arguments = _arguments(options)
    for name in ("data", "encoder", "pristine", "authentic"):
        if location := arguments.get(name):
            arguments[name] = (
                _absolute(location) if isinstance(location, str) else [_absolute(each) for each in location]
            )
    mounts = [str(Path(folder).resolve()) for folder in options.mount] if options.runner == "docker" else None
    print(summary(runner.run(_pipeline(options), arguments, options.runs, mounts=mounts, direct=options.direct)))


def _absolute(location: str) -> str:
    """A path that exists, made absolute, for a task need not share this directory; a URL as it is."""
    from contrique.sources.public_sets import split_name

    name, folder = split_name(location)
    path = Path(folder).expanduser()
    if not path.exists():
        return location
    return f"{name}:{path.resolve()}" if name else str(path.resolve())


def stack(options: argparse.Namespace) -> None:
    """Start or stop the stack of a folder, or print how to use it."""
    from pipelines.laptop import stack

    if options.action == "env":
        print(stack.exports(options.folder))
    elif options.action == "down":
        stack.down(options.folder)
    else:
        (stack.up_detached if options.detach else stack.up)(options.folder)


def submit(options: argparse.Namespace) -> None:
    """Start a run on a cluster, and wait for it if asked to."""
    arguments = _arguments(options)
    cluster = _cluster(options)
    run_id = cluster.submit(_pipeline(options), arguments, options.name)
    if options.wait:
        cluster.wait(run_id)


def check(options: argparse.Namespace) -> None:
    """Run the demo on a cluster and print what held, line by line."""
    from pipelines.cluster.check import check as check_cluster

    tell = partial(print, flush=True)
    findings = check_cluster(_cluster(options), options.data, options.artifacts, tell)
    failures = sum(finding.holds is False for finding in findings)
    if failures:
        raise CheckFailed(f"{failures} of {len(findings)} did not hold; each ✗ above says what to look at")


def schedule(options: argparse.Namespace) -> None:
    """Make a recurring run on a cluster."""
    if len(options.cron.split()) not in (5, 6):
        raise UsageError(f"--cron '{options.cron}': expected five fields, or six with seconds first")
    run_id = _cluster(options).schedule(_pipeline(options), _arguments(options), options.cron, options.name)
    print(f"recurring run {run_id}: it starts by `{options.cron}`")


def upload(options: argparse.Namespace) -> None:
    """Upload a version of a pipeline."""
    version_id = _cluster(options).upload(_pipeline(options), options.version, options.description)
    print(f"version {options.version}: {version_id}")


def _cluster(options: argparse.Namespace) -> "Cluster":
    from pipelines.cluster.client import Cluster

    return Cluster(options.host, options.experiment, options.namespace)


if __name__ == "__main__":
    sys.exit(main())
