"""The one MLflow run of a pipeline run."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from contrique.config import Config, RegistryConfig
from contrique.text import mask_secrets
from contrique.tracking.datasets import Context, describe_dataset, name_dataset, read_lineage
from contrique.tracking.revision import read_code_revision
from contrique.tracking.store import STORE_REMEDY, RegistryError, Store, current_user

PIPELINE_RUN = "contrique.pipeline_run"  # tag of an MLflow run
DESCRIPTION_TAG = "mlflow.note.content"  # tag of a run that MLflow shows as its description, in Markdown
_TRAINING_VIEW = "workflowType=machine_learning"  # without it MLflow 3.17 shows a newcomer the view of language models
SUCCESS = ("SUCCEEDED", "COMPLETE", "CACHED")  # of a pipeline: in the words of KFP's API, and of its metadata store


class Run:
    """The one MLflow run of a pipeline run, as `Runs.open` gives it.

    Args:
        store: where it is.
        run_id: of the MLflow run.

    Attributes:
        id: of the MLflow run.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self.id = run_id
        self._store = store

    def log_config(self, config: Config) -> None:
        """Log the resolved configuration: as `config.json` and, option by option, as parameters."""
        from mlflow.entities import Param

        values = dataclasses.asdict(config)
        options = {f"{stage}.{name}": value for stage, section in values.items() for name, value in section.items()}
        with self._store.translate_errors("logging the configuration", STORE_REMEDY):
            self._store.client.log_dict(self.id, values, "config.json")
        with self._store.translate_errors("logging the configuration"):
            self._store.client.log_batch(self.id, params=[Param(name, str(value)) for name, value in options.items()])

    def log_metrics(
        self,
        values: Mapping[str, float],
        step: int = 0,
        model: str | None = None,
        dataset: Mapping[str, Any] | None = None,
    ) -> None:
        """Log numbers.

        Args:
            values: by name.
            step: of the training; 0 for what is measured once.
            model: identifier in MLflow of the logged model that they are figures of.
            dataset: lineage of the picture set whose test part they were measured on.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        name, digest = name_dataset(dataset, "evaluation") if dataset else (None, None)
        metrics = [
            Metric(key, float(value), now, step, model_id=model, dataset_name=name, dataset_digest=digest)
            for key, value in values.items()
        ]
        with self._store.translate_errors("logging metrics"):
            self._store.client.log_batch(self.id, metrics=metrics)

    def log_dataset(self, lineage: Mapping[str, Any], context: Context) -> None:
        """Log a picture set as an input; a second time changes nothing.

        Args:
            lineage: content of its `lineage.json`; nothing is logged of a set without.
            context: what it is used for.
        """
        if lineage:
            with self._store.translate_errors("logging the dataset"):
                self._store.client.log_inputs(self.id, [describe_dataset(lineage, context)])

    @contextmanager
    def monitor_system(self) -> Iterator[None]:
        """Log processor, memory, disk, network and GPUs of this machine while the block runs: metrics `system/...`.

        Without a reachable MLflow the block goes on, and what was measured meanwhile is lost: the library warns.
        """
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        with self._store.translate_errors("reading the run"):
            monitor = SystemMetricsMonitor(self.id, resume_logging=True, tracking_uri=self._store.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run."""
        with self._store.translate_errors(f"logging {path.name}", STORE_REMEDY):
            self._store.client.log_artifact(self.id, str(path), folder or None)

    def log_page(self, page: Path, name: str) -> None:
        """Keep an HTML page with the run, under a name by which MLflow knows that it can show it."""
        with self._store.translate_errors(f"logging {name}", STORE_REMEDY):
            self._store.client.log_text(self.id, page.read_text(encoding="utf-8"), name)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; values are written as text."""
        from mlflow.entities import RunTag

        with self._store.translate_errors("tagging the run"):
            self._store.client.log_batch(
                self.id, tags=[RunTag(name, str(value)[:5000]) for name, value in tags.items()]
            )

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Say that the pipeline run is over. Logging afterwards still works."""
        with self._store.translate_errors("closing the run"):
            self._store.client.set_terminated(self.id, status)


class Runs:
    """The MLflow runs of the experiment that a configuration names.

    Args:
        config: names.

    Attributes:
        store: where they are.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self.store = Store(config)

    def open(self, pipeline_run: str) -> Run:
        """Find the MLflow run of a pipeline run, or make it.

        Args:
            pipeline_run: identifies the pipeline run (KFP's run id).
        Returns:
            the same run for every step that asks with the same name, also for steps that ask at the same time.
        Raises:
            RegistryError: MLflow cannot be reached, or `pipeline_run` is empty.
        """
        if not pipeline_run or "'" in pipeline_run:
            raise RegistryError(f"pipeline run {pipeline_run!r}: needs a name without quotes")
        client = self.store.client
        with self.store.translate_errors("opening the run"):
            if run := self._find(pipeline_run):
                return run
            with self.store.hold_lock(f"{self.store.config.experiment}.runs"):
                if run := self._find(pipeline_run):
                    return run
                revision = read_code_revision()
                tags = {
                    PIPELINE_RUN: pipeline_run,
                    "code.revision": revision,
                    "mlflow.user": current_user(),
                    "mlflow.source.name": "contrique training pipeline",
                    "mlflow.source.type": "PROJECT",
                    "mlflow.source.git.commit": revision.removesuffix("+"),
                }
                created = client.create_run(self.store.experiment_id(), tags=tags, run_name=pipeline_run)
                return Run(self.store, created.info.run_id)

    def close_failed(self, pipeline_run: str, state: str) -> None:
        """Close the MLflow run of a pipeline run that did not succeed; nothing to do if it did, or opened none.

        A run that is FINISHED stays so: its verdict stands, whatever became of the report after it. On a cluster the
        state is RUNNING too where nobody was left to write another one, also at the end of some runs that succeeded.

        Args:
            pipeline_run: as `open` takes it.
            state: how it ended: one of SUCCESS, FAILED (then the MLflow run is FAILED), or another word for a run that
                was ended from outside (KILLED).
        Raises:
            RegistryError: MLflow cannot be reached.
        """
        if state in SUCCESS or not self.store.exists:
            return
        with self.store.translate_errors("closing the run"):
            run = self._find(pipeline_run)
            if not run or self.store.client.get_run(run.id).info.status == "FINISHED":
                return
        run.set_tags({"pipeline.state": state})
        run.close("FAILED" if state == "FAILED" else "KILLED")

    def describe(self, pipeline_run: str) -> str:
        """Where a person finds the MLflow run of a pipeline run, in Markdown.

        `CONTRIQUE_MLFLOW_UI` is the address for people, where it differs from the one for programs.

        Raises:
            RegistryError: as `open`.
        """
        run = self.open(pipeline_run)
        base = mask_secrets(os.environ.get("CONTRIQUE_MLFLOW_UI") or self.store.uri)
        if not base.startswith("http"):
            return f"MLflow run `{run.id}` in `{base}`: `make ui` shows it.\n"
        with self.store.translate_errors("opening the run"):
            experiment = self.store.experiment_id()
        return f"[MLflow run {run.id}]({base.rstrip('/')}/#/experiments/{experiment}/runs/{run.id}?{_TRAINING_VIEW})\n"

    def search_tags(self, query: str) -> list[dict[str, str]]:
        """Tags of every run that fits MLflow's query, page by page."""
        tags: list[dict[str, str]] = []
        token = None
        with self.store.translate_errors("searching runs"):
            experiment = self.store.experiment_id()
            while True:
                page = self.store.client.search_runs([experiment], query, max_results=1000, page_token=token)
                tags += [dict(run.data.tags) for run in page]
                if not (token := page.token):
                    return tags

    def _find(self, pipeline_run: str) -> Run | None:
        query = f"tags.`{PIPELINE_RUN}` = '{pipeline_run}'"
        matches = self.store.client.search_runs([self.store.experiment_id()], query, order_by=["start_time ASC"])
        return Run(self.store, matches[0].info.run_id) if matches else None


def current_pipeline_run() -> str:
    """The pipeline run that this process is a step of, from `CONTRIQUE_RUN`.

    It is no parameter of a step, because one that changes with each run would defeat the orchestrator's cache.

    Raises:
        RegistryError: the variable is not set.
    """
    if not (run := os.environ.get("CONTRIQUE_RUN")):
        raise RegistryError("CONTRIQUE_RUN is not set; set it to a name of the pipeline run")
    return run


@contextmanager
def follow_training(config: Config, dataset: Path) -> Iterator[Callable[[dict[str, float], int], None]]:
    """Track a training in the MLflow run of `current_pipeline_run`: configuration, picture set, load of this machine.

    Args:
        config: resolved configuration.
        dataset: picture set that it trains on.
    Yields:
        what takes the values of a step, with the step.
    """
    run = open_current_run(config)
    run.log_dataset(read_lineage(dataset), "training")
    with run.monitor_system():
        yield run.log_metrics


def open_current_run(config: Config) -> Run:
    """The MLflow run of `current_pipeline_run`, the resolved configuration logged to it."""
    run = Runs(config.registry).open(current_pipeline_run())
    run.log_config(config)
    return run
