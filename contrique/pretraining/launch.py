"""Pretraining where it was asked for: in this process, in several of this machine, or on several machines.

Several machines are a TrainJob of Kubeflow Trainer. Data and results pass through S3, because that is what all pods
reach; the job is named after the pipeline run, so that a retry finds the one that it made.
"""

import contextlib
import copy
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from contrique.config import Config, resolve
from contrique.errors import ContriqueError

if TYPE_CHECKING:
    from contrique.pretraining.pretrain import PretrainSummary


T = TypeVar("T")
FOLDER = "/tmp/run"  # of the run, in each pod
NAMESPACE = "CONTRIQUE_NAMESPACE"  # environment variable: where this task runs, and its job shall
RESULT = "result"  # below a job's prefix: encoder, history and summary
_KIND = {"group": "trainer.kubeflow.org", "version": "v1alpha1", "plural": "trainjobs"}
_POLL_SECONDS = 15.0
_PATIENCE_SECONDS = 600.0  # with an API server that is away, and with a job that is being deleted
_REQUEST_SECONDS = 60.0


class LaunchError(ContriqueError):
    """A TrainJob that cannot be made or failed; the message names it and the remedy."""


def pretrain(
    dataset: Path,
    distorted: Path,
    out: Path,
    *,
    profile: str,
    overrides: Mapping[str, Any],
    seed: int,
    processes: int = 1,
    job: str = "",
    to: str = "",
) -> "PretrainSummary":
    """`contrique.pretraining.pretrain.pretrain` for the pipeline run `CONTRIQUE_RUN`, tracked in its MLflow run.

    Args:
        dataset, distorted: picture sets, as `contrique.pretraining.pretrain.pretrain` takes them.
        out: folder for `encoder.safetensors` and `history.jsonl`.
        profile, overrides: of the configuration.
        seed: of the weights, the batches and the crops.
        processes: of this machine; with more than one, each has a GPU of its own, or a part of the cores.
        job: a TrainJob as JSON, without name, arguments and run; empty to train on this machine.
        to: `s3://` prefix that the job's data, checkpoints and results go below.
    Returns:
        what was done.
    Raises:
        LaunchError: the job cannot be made, failed, or was deleted.
        ProcessFailed: one of several processes failed.
        ContriqueError: as `contrique.pretraining.pretrain.pretrain`.
    """
    from contrique.pretraining import distributed

    settings = resolve(profile, overrides)
    if not job:
        return distributed.run_processes(processes, _train, dataset, distorted, out, settings, seed)
    sets = {"dataset": dataset} | ({"distorted": distorted} if settings.pretrain.synthesis == "stored" else {})
    return _on_machines(sets, out, json.loads(job), to.rstrip("/"), profile, overrides, seed)


def _train(dataset: Path, distorted: Path, out: Path, settings: Config, seed: int) -> "PretrainSummary":
    """What each process of this machine does."""
    from contrique.artifacts import CHECKPOINTS
    from contrique.pretraining import distributed
    from contrique.pretraining.pretrain import pretrain as train
    from contrique.tracking.runs import open_current_run

    with distributed.process_group() as world:
        made = train(
            dataset,
            distorted,
            out,
            config=settings.pretrain,
            seed=seed,
            track=open_current_run(settings).track if world.is_main else None,
            synthesis=settings.synthesis,
        )
        if world.is_main and not settings.pretrain.checkpoints:  # no part of the encoder that later tasks fetch
            shutil.rmtree(out / CHECKPOINTS)
    return made


def command(places: Mapping[str, Sequence[str]], *, profile: str, overrides: Mapping[str, Any], seed: int) -> list[str]:
    """What torchrun is told on every machine: `contrique pretrain`, from S3 to S3.

    Args:
        places: option of `contrique pretrain` to the `s3://` prefixes that it is given.
        profile, overrides, seed: as the pipeline takes them.
    """
    words = ["-m", "contrique.cli", "pretrain", "--profile", profile, "--seed", str(seed), "--out", FOLDER]
    words += [word for option, given in places.items() for place in given for word in (f"--{option}", place)]
    for option, value in overrides.items():
        words += ["--set", f"{option}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def fill_in(job: Mapping[str, Any], name: str, run: str, words: Sequence[str]) -> dict[str, Any]:
    """A copy of a TrainJob that has its name, torchrun's arguments, and the name of its MLflow run."""
    whole: dict[str, Any] = copy.deepcopy(dict(job))
    whole["metadata"] = {"name": name}
    trainer = whole["spec"]["trainer"]
    trainer["args"] = list(words)
    trainer["env"] = [{"name": "CONTRIQUE_RUN", "value": run}, *trainer["env"]]
    return whole


def _on_machines(
    sets: Mapping[str, Path],
    out: Path,
    job: Mapping[str, Any],
    to: str,
    profile: str,
    overrides: Mapping[str, Any],
    seed: int,
) -> "PretrainSummary":
    from contrique import s3
    from contrique.artifacts import SUMMARY
    from contrique.pretraining.pretrain import PretrainSummary
    from contrique.tracking.runs import current_pipeline_run

    run = current_pipeline_run()
    name = f"pretrain-{run}"
    place = f"{to}/{name}"
    jobs = _Jobs.of_this_namespace()

    places = {kind: [f"{place}/{kind}"] for kind in (*sets, "checkpoints")} | {"publish": [f"{place}/{RESULT}"]}
    whole = fill_in(job, name, run, command(places, profile=profile, overrides=overrides, seed=seed))
    with _deleted_with_this_task(jobs, name):
        found = jobs.get(name)
        if found is not None and _is_over(found):
            print(f"{jobs.called(name)} ended in an earlier attempt: made anew, from its last checkpoint", flush=True)
            jobs.delete(name)
            found = None
        if found is None and jobs.create(whole, dry_run="All"):  # a refusal comes before hours of uploading
            for kind, folder in sets.items():
                s3.upload(folder, f"{place}/{kind}")
            jobs.create(whole)
        _follow_job(jobs, name)
    s3.download(f"{place}/{RESULT}", out)
    for kind in sets:  # the checkpoints stay: with them a retry that finds no job is a matter of minutes
        s3.remove(f"{place}/{kind}")
    jobs.delete(name, wait=False)  # last: until then a retry finds a complete job, and but fetches
    summary = out / SUMMARY
    done = PretrainSummary(**json.loads(summary.read_text()))
    summary.unlink()
    return done


@contextlib.contextmanager
def _deleted_with_this_task(jobs: "_Jobs", name: str) -> Iterator[None]:
    """SIGTERM deletes the job: a run that was cancelled must not hold machines for days; a retry has the checkpoints.

    A task that is killed outright leaves the job, and a retry goes on waiting for it.
    """

    def end(number: int, _: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit:
        jobs.delete(name, wait=False)
        print(f"{jobs.called(name)} deleted, because this task was told to end", file=sys.stderr, flush=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _follow_job(jobs: "_Jobs", name: str) -> None:
    """Until the job is complete, what becomes of it told as it changes."""
    told, answered = "", time.monotonic()
    while True:
        try:
            job = jobs.get(name)
        except _Away as error:
            if time.monotonic() - answered > _PATIENCE_SECONDS:
                raise
            print(f"{error}; asking again", file=sys.stderr, flush=True)
            time.sleep(_POLL_SECONDS)
            continue
        answered = time.monotonic()
        if job is None:
            raise LaunchError(f"{jobs.called(name)} is gone: somebody deleted it; run the pipeline again")
        ended = _conditions(job)
        if (state := _state(job)) != told:
            print(f"{jobs.called(name)}: {state}", flush=True)
            told = state
        if "Complete" in ended:
            return
        if "Failed" in ended:
            why = f"{ended['Failed'].get('reason', '')}: {ended['Failed'].get('message', '')}"
            raise LaunchError(f"{jobs.called(name)} failed ({why}); {jobs.remedy(name)}")
        time.sleep(_POLL_SECONDS)


def _is_over(job: Mapping[str, Any]) -> bool:
    """Whether nothing more will come of a job: it failed, or is being deleted."""
    return "Failed" in _conditions(job) or "deletionTimestamp" in job["metadata"]


def _conditions(job: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions that hold, by type."""
    conditions = job.get("status", {}).get("conditions", [])
    return {condition["type"]: condition for condition in conditions if condition["status"] == "True"}


def _state(job: Mapping[str, Any]) -> str:
    """A job's status in one line."""
    words = [*_conditions(job)]
    for part in job.get("status", {}).get("jobsStatus", []):
        words += [f"{part[kind]} {kind}" for kind in ("active", "ready", "succeeded", "failed") if part.get(kind)]
    return ", ".join(words) or "waiting for its machines"


class _Away(LaunchError):
    """The API server does not answer, or says that it cannot now."""


@dataclass(frozen=True)
class _Jobs:
    """The TrainJobs of a namespace, through the Kubernetes API."""

    api: Any
    namespace: str

    @classmethod
    def of_this_namespace(cls) -> "_Jobs":
        """By the pod's service account, or out of a cluster by KUBECONFIG."""
        from kubernetes import client, config

        if not (namespace := os.environ.get(NAMESPACE)):
            raise LaunchError(f"{NAMESPACE} is not set; set it to the namespace that the TrainJob shall run in")
        settings = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST"):
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
        except config.ConfigException as error:
            raise LaunchError(
                f"no Kubernetes cluster to run a TrainJob in ({error}); submit the pipeline to one, or train with "
                "one node"
            ) from error
        return cls(client.CustomObjectsApi(client.ApiClient(settings)), namespace)

    def called(self, name: str) -> str:
        """A job's name, for people."""
        return f"TrainJob {self.namespace}/{name}"

    def remedy(self, name: str) -> str:
        """Where to look for what went wrong."""
        return (
            f"look at `kubectl -n {self.namespace} describe trainjob {name}` and `kubectl -n {self.namespace} logs "
            f"--prefix --tail=50 -l jobset.sigs.k8s.io/jobset-name={name}`"
        )

    def get(self, name: str) -> dict[str, Any] | None:
        """The job, or None."""
        found: dict[str, Any] | None = self._ask("get", self.api.get_namespaced_custom_object, name, absent=404)
        return found

    def create(self, job: dict[str, Any], **options: str) -> bool:
        """Make a job, unless there is one, made by a task that was cut off: it is as good.

        Args:
            job: the manifest.
            options: of the request; `dry_run="All"` only asks whether it would be made.
        Returns:
            whether there was none.
        """
        name = job["metadata"]["name"]
        made = self._ask("create", self.api.create_namespaced_custom_object, name, absent=409, body=job, **options)
        if not options:
            print(f"{self.called(name)} {'was there' if made is None else 'made'}", flush=True)
        return made is not None

    def delete(self, name: str, *, wait: bool = True) -> None:
        """Delete a job with its pods; nothing to do if it is not there. `wait`: return when it is gone."""
        delete = self.api.delete_namespaced_custom_object
        self._ask("delete", delete, name, absent=404, propagation_policy="Foreground")
        until = time.monotonic() + _PATIENCE_SECONDS
        while wait and self.get(name) is not None:
            if time.monotonic() > until:
                raise LaunchError(f"{self.called(name)} was deleted and is still there; {self.remedy(name)}")
            time.sleep(min(1.0, _POLL_SECONDS))

    def _ask(self, verb: str, call: Callable[..., T], name: str, *, absent: int, **arguments: Any) -> T | None:
        """What the API answers; None where it answers with the status `absent`."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        named = arguments if "body" in arguments else arguments | {"name": name}
        try:
            return call(namespace=self.namespace, _request_timeout=_REQUEST_SECONDS, **_KIND, **named)
        except HTTPError as error:
            raise _Away(f"{self.called(name)}: the Kubernetes API does not answer ({error})") from error
        except ApiException as error:
            if error.status == absent:
                return None
            reason = f"{error.status} {error.reason}: {_describe_failure(error)}"
            why = f"{self.called(name)}: Kubernetes did not {verb} it ({reason})"
            if error.status >= 500 or error.status == 429:
                raise _Away(why) from error
            remedy = _REMEDIES.get(error.status, "check the TrainJob in the compiled pipeline")
            raise LaunchError(f"{why}; {remedy}") from error


_REMEDIES = {
    401: "let the task's service account have a token",
    403: "let the task's service account create, get and delete trainjobs (deploy/rbac.yaml)",
    404: "install Kubeflow Trainer 2.2 or newer, and see that the namespace is there",
}


def _describe_failure(error: Any) -> str:
    """The message in the body of an answer, or the body's beginning."""
    text = str(error.body)
    with contextlib.suppress(ValueError):
        body = json.loads(text)
        text = str(body.get("message", text)) if isinstance(body, dict) else text
    return " ".join(text.split())[:300]
