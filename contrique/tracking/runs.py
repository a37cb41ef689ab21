"""The one MLflow run of a pipeline run."""

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contrique.config import Config, RegistryConfig
from contrique.tracking.client import (
    STORE_REMEDY,
    RegistryError,
    connect,
    hold_lock,
    mask_password,
    read_code_revision,
    store_exists,
    store_uri,
    translate_errors,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient


PIPELINE_RUN = "contrique.pipeline_run"  # tag of an MLflow run


class Run:
    """The one MLflow run of a pipeline run. Make it with `open_run`.

    Attributes:
        id: of the MLflow run.
    """

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.id = run_id
        self._client = client

    def log_config(self, config: Config) -> None:
        """Log the resolved configuration: as `config.json` and, option by option, as parameters."""
        from mlflow.entities import Param

        values = dataclasses.asdict(config)
        options = {f"{stage}.{name}": value for stage, section in values.items() for name, value in section.items()}
        with translate_errors("logging the configuration", STORE_REMEDY):
            self._client.log_dict(self.id, values, "config.json")
        with translate_errors("logging the configuration"):
            self._client.log_batch(self.id, params=[Param(name, str(value)) for name, value in options.items()])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        with translate_errors("logging metrics"):
            self._client.log_batch(
                self.id, metrics=[Metric(name, float(value), now, step) for name, value in values.items()]
            )

    def track(self, values: dict[str, float], step: int) -> None:
        """`log_metrics` in the form that `pretrain` calls."""
        self.log_metrics(values, step)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run."""
        with translate_errors(f"logging {path.name}", STORE_REMEDY):
            self._client.log_artifact(self.id, str(path), folder or None)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; values are written as text."""
        from mlflow.entities import RunTag

        with translate_errors("tagging the run"):
            self._client.log_batch(self.id, tags=[RunTag(name, str(value)[:5000]) for name, value in tags.items()])

    def close(self, status: Literal["FINISHED", "FAILED"] = "FINISHED") -> None:
        """Say that the pipeline run is over. Logging afterwards still works."""
        with translate_errors("closing the run"):
            self._client.set_terminated(self.id, status)


def open_run(pipeline_run: str, config: RegistryConfig) -> Run:
    """Find the MLflow run of a pipeline run, or make it.

    Args:
        pipeline_run: identifies the pipeline run (KFP's run id).
        config: names.
    Returns:
        the same run for every step that asks with the same name, also for steps that ask at the same time.
    Raises:
        RegistryError: MLflow cannot be reached, or `pipeline_run` is empty.
    """
    if not pipeline_run or "'" in pipeline_run:
        raise RegistryError(f"pipeline run {pipeline_run!r}: needs a name without quotes")
    client = connect(config)
    with translate_errors("opening the run"):
        experiment = experiment_id(client, config)
        run_id = _find_run_id(client, experiment, pipeline_run)
        if not run_id:
            with hold_lock(client, f"{config.experiment}.runs"):
                run_id = _find_run_id(client, experiment, pipeline_run)
                if not run_id:
                    tags = {PIPELINE_RUN: pipeline_run, "code.revision": read_code_revision()}
                    run_id = client.create_run(experiment, tags=tags, run_name=pipeline_run).info.run_id
        return Run(client, run_id)


def current_pipeline_run() -> str:
    """The pipeline run that this process is a step of, from `CONTRIQUE_RUN`.

    It is no parameter of a step, because one that changes with each run would defeat the orchestrator's cache.

    Raises:
        RegistryError: the variable is not set.
    """
    if not (run := os.environ.get("CONTRIQUE_RUN")):
        raise RegistryError("CONTRIQUE_RUN is not set; set it to a name of the pipeline run")
    return run


def open_current_run(config: Config) -> Run:
    """The MLflow run of `this_pipeline_run`, the resolved configuration logged to it."""
    run = open_run(current_pipeline_run(), config.registry)
    run.log_config(config)
    return run


def close_failed(run: str, *, config: RegistryConfig, state: str) -> None:
    """Close the MLflow run of a pipeline run that did not succeed; nothing to do if it did, or opened none.

    Args:
        run: the pipeline run, as given to `open_run`.
        config: names.
        state: how it ended, in KFP's words: SUCCEEDED, FAILED or CANCELLED.
    Raises:
        RegistryError: MLflow cannot be reached.
    """
    if state == "SUCCEEDED" or not store_exists(store_uri()):
        return
    client = connect(config)
    with translate_errors("closing the run"):
        run_id = _find_run_id(client, experiment_id(client, config), run)
    if run_id:
        failed = Run(client, run_id)
        failed.set_tags({"pipeline.state": state})
        failed.close("FAILED")


def describe_run(run: str, config: RegistryConfig) -> str:
    """Where a person finds the MLflow run of a pipeline run, in Markdown.

    `CONTRIQUE_MLFLOW_UI` is the address for people, where it differs from the one for programs.

    Raises:
        RegistryError: as `open_run`.
    """
    mlrun = open_run(run, config)
    base = mask_password(os.environ.get("CONTRIQUE_MLFLOW_UI") or store_uri())
    if not base.startswith("http"):
        return f"MLflow run `{mlrun.id}` in `{base}`: `make ui` shows it.\n"
    with translate_errors("opening the run"):
        experiment = experiment_id(connect(config), config)
    return f"[MLflow run {mlrun.id}]({base.rstrip('/')}/#/experiments/{experiment}/runs/{mlrun.id})\n"


def experiment_id(client: "MlflowClient", config: RegistryConfig) -> str:
    return str(client.get_experiment_by_name(config.experiment).experiment_id)


def _find_run_id(client: "MlflowClient", experiment: str, pipeline_run: str) -> str:
    found = client.search_runs([experiment], f"tags.`{PIPELINE_RUN}` = '{pipeline_run}'", order_by=["start_time ASC"])
    return found[0].info.run_id if found else ""


def search_tags(client: "MlflowClient", experiment: str, query: str) -> list[dict[str, str]]:
    """Tags of every run that fits, page by page."""
    found, token = [], None
    while True:
        page = client.search_runs([experiment], query, max_results=1000, page_token=token)
        found += [dict(run.data.tags) for run in page]
        if not (token := page.token):
            return found
