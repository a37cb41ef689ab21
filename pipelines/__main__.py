"""Compile, run and submit the pipelines: `python -m pipelines compile|run|submit --help`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from contrique.errors import ContriqueError

_ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}  # states of a run in KFP's API
_POLL_SECONDS = 10


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; 0 on success, 2 on a failure that the user can mend, whose message goes to stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except ContriqueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    compiling = commands.add_parser("compile", help="write the pipeline as YAML for Kubeflow")
    compiling.add_argument("--out", type=Path, default=Path("training.yaml"), help="default: training.yaml")
    compiling.set_defaults(command=compile_pipeline)

    running = commands.add_parser("run", help="run the pipeline on this machine")
    _add_arguments(running)
    running.add_argument("--runs", type=Path, default=Path("runs"), help="folder that keeps each run (default: runs)")
    running.set_defaults(command=run)

    submitting = commands.add_parser("submit", help="start a run on a Kubeflow cluster")
    _add_arguments(submitting)
    submitting.add_argument("--host", required=True, help="address of the Kubeflow Pipelines API")
    submitting.add_argument("--experiment", default="contrique", help="default: contrique")
    submitting.add_argument("--name", help="of the run; default: the pipeline's name and the time")
    submitting.add_argument("--wait", action="store_true", help="until the run ends; fail if it failed")
    submitting.set_defaults(command=submit)
    return parser


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="", help="folder, git URL or s3:// prefix of the labelled data")
    parser.add_argument("--revision", default="", help="git revision of data.dvc (default: what the folder holds)")
    parser.add_argument("--pristine", action="append", default=[], help="folder of undistorted photographs; repeatable")
    parser.add_argument("--authentic", action="append", default=[], help="folder of camera photographs; repeatable")
    parser.add_argument("--profile", default="demo", help="demo (minutes on a laptop) or paper; default: demo")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="K=V",
        help="an option of the configuration, such as pretrain.steps=100; repeatable",
    )


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `training`: a --param with a dot is an option of the configuration, one without an argument."""
    from contrique.config import resolve

    names = ("data", "revision", "pristine", "authentic", "profile", "seed")
    arguments = {name: getattr(options, name) for name in names} | {"overrides": {}}
    for text in options.param:
        name, equals, value = text.partition("=")
        if not equals or ("." not in name and name not in arguments):
            raise UsageError(f"--param {text}: expected NAME=VALUE, such as pretrain.steps=100 or profile=paper")
        target = arguments["overrides"] if "." in name else arguments
        target[name] = _value(value)
    if not arguments["data"]:
        raise UsageError("no data; give --data FOLDER (`--data .` here, after `make data`, for the sample photographs)")
    resolve(arguments["profile"], arguments["overrides"])  # a mistyped option is better found now than by a task
    return arguments


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a bare word, such as resnet18


class UsageError(ContriqueError):
    """A command-line argument that makes no sense."""


class SubmitFailed(ContriqueError):
    """The cluster cannot be reached, refuses, or the run failed there."""


def compile_pipeline(options: argparse.Namespace) -> None:
    """Write the compiled pipeline."""
    from kfp import compiler

    from components import IMAGE
    from pipelines.training import training

    options.out.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(training, str(options.out))
    print(f"{options.out}: upload it in the Kubeflow UI, or use `python -m pipelines submit`. Image: {IMAGE}")


def run(options: argparse.Namespace) -> None:
    """Run on this machine and print what came of it."""
    from pipelines import local
    from pipelines.summary import summary

    arguments = _arguments(options)
    arguments["data"] = _absolute(arguments["data"])
    for name in ("pristine", "authentic"):
        arguments[name] = [_absolute(path) for path in arguments[name]]
    print(summary(local.run(arguments, options.runs)))


def _absolute(location: str) -> str:
    """A path that exists, made absolute, for a task need not share this directory; a URL as it is."""
    from contrique.public_sets import split_name

    name, given = split_name(location)
    path = Path(given).expanduser()
    if not path.exists():
        return location
    return f"{name}:{path.resolve()}" if name else str(path.resolve())


def submit(options: argparse.Namespace) -> None:
    """Start a run on a cluster, and wait for it if asked to."""
    import logging
    import time
    import warnings

    import kfp
    import kfp_server_api
    import urllib3

    from pipelines.training import training

    arguments = _arguments(options)
    warnings.simplefilter("ignore", FutureWarning)  # KFP's client warns of servers older than 2.0 in any case
    logging.disable(logging.ERROR)  # and logs a traceback for each try to reach the server
    try:
        client = kfp.Client(host=options.host)
        started = client.create_run_from_pipeline_func(
            training, arguments=arguments, run_name=options.name, experiment_name=options.experiment
        )
        if not options.wait:
            return
        # not KFP's own wait_for_run_completion: it waits on for a run that was cancelled
        while (ended := client.get_run(started.run_id)).state not in _ENDED:
            time.sleep(_POLL_SECONDS)
    except (TimeoutError, kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SubmitFailed(
            f"{options.host}: the Kubeflow Pipelines API did not do as asked ({reason}); check --host and the login"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    print(f"run {started.run_id}: {ended.state}")
    if ended.state != "SUCCEEDED":
        raise SubmitFailed(f"run {started.run_id} ended as {ended.state}; the address above shows where")


if __name__ == "__main__":
    sys.exit(main())
