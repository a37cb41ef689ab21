"""What a cluster really does: a run of the demo profile, looked at from every side that can be reached.

Nothing here stands for anything else: what cannot be reached from this machine is said to be unproven.
"""

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from contrique import s3
from contrique.config import RegistryConfig
from contrique.errors import ContriqueError
from contrique.registry.versions import Registry
from contrique.tracking.runs import PIPELINE_RUN
from contrique.tracking.store import Store
from pipelines.cluster.client import Cluster
from pipelines.training import training

T = TypeVar("T")
_ENDED_WELL = {
    "SUCCEEDED",
    "SKIPPED",
}  # states of a task in KFP's API; SKIPPED is the branch that the gate did not take
_S3 = ("CONTRIQUE_S3_ENDPOINT", "AWS_ENDPOINT_URL")
_MARKS = {True: "✓", False: "✗", None: "-"}


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        what: was looked at.
        holds: whether it does; None if it was not looked at.
        detail: what was there, or why nothing was.
    """

    what: str
    holds: bool | None
    detail: str

    def __str__(self) -> str:
        return f"{_MARKS[self.holds]} {self.what:<48} {self.detail}"


class _Absent(ContriqueError):
    """Something that should be there."""


def check(cluster: Cluster, data: str, artifacts: str, tell: Callable[[Finding], None]) -> list[Finding]:
    """Upload the training pipeline, run its demo profile, wait, and look at what is there then.

    Args:
        cluster: where to.
        data: rated pictures that its pods reach.
        artifacts: `s3://` prefix where runs keep their artifacts (deploy/launcher.yaml).
        tell: called with each finding as it is made.
    Returns:
        all of them.
    """
    findings: list[Finding] = []

    def note(what: str, holds: bool | None, detail: str) -> None:
        findings.append(Finding(what, holds, detail))
        tell(findings[-1])

    def look(what: str, action: Callable[[], T], detail: Callable[[T], str]) -> T | None:
        try:
            value = action()
        except ContriqueError as error:
            note(what, False, str(error).splitlines()[0])
            return None
        note(what, True, detail(value))
        return value

    name = f"check-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    arguments = {"data": data, "profile": "demo", "overrides": {}}
    if look("the API answers", cluster.version, lambda version: f"version {version or 'unknown'}") is None:
        return findings
    look("the pipeline uploads", lambda: cluster.upload(training, name, "make kubeflow-check"), lambda _: name)
    run = look("a run starts", lambda: cluster.submit(training, arguments, name), str)
    if run is None:
        return findings
    look("the run succeeds", lambda: cluster.wait(run), lambda _: "SUCCEEDED")
    states = look(
        "the API tells how its tasks ended", lambda: cluster.task_states(run), lambda states: f"{len(states)} tasks"
    )
    bad = {title: state for title, state in (states or {}).items() if state not in _ENDED_WELL}
    note("every task ended well", not bad if states else None, ", ".join(f"{k}: {v}" for k, v in bad.items()))
    if any(os.environ.get(variable) for variable in _S3):
        look("its report is in the product's bucket", lambda: _report(run, artifacts), str)
    else:
        note("its report is in the product's bucket", None, f"not looked: set {_S3[0]} and the keys of contrique-s3")
    if os.environ.get("MLFLOW_TRACKING_URI"):
        look("its MLflow run is FINISHED", lambda: _mlflow_run(run), str)
        look("a champion is registered", _champion, str)
    else:
        note("its MLflow run is FINISHED", None, "not looked: set MLFLOW_TRACKING_URI")
    return findings


def _report(run: str, artifacts: str) -> str:
    """Where the report of a run lies: below the pipeline's name, the run, the task, and a number."""
    place = f"{artifacts}/{training.name}/{run}"
    names = s3.list_names(place)
    if "write-report" not in names:
        raise _Absent(
            f"{place}: no write-report among {names or 'no objects'}; is the kfp-launcher ConfigMap in force?"
        )
    return f"{place}/write-report"


def _mlflow_run(run: str) -> str:
    store = Store(RegistryConfig())
    runs = store.client.search_runs([store.experiment_id()], f"tags.`{PIPELINE_RUN}` = '{run}'")
    if [item.info.status for item in runs] != ["FINISHED"]:
        raise _Absent(f"{len(runs)} MLflow runs of it, {[item.info.status for item in runs]}; see the log of close_run")
    return str(runs[0].info.run_id)


def _champion() -> str:
    config = RegistryConfig()
    for model in Registry(config).list_versions():
        if config.alias in model.aliases:
            return f"{config.model} version {model.version}"
    raise _Absent(f"no version of {config.model} has the alias {config.alias}; see the verdict in the run's report")
