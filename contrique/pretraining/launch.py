"""Starts pretraining: in this process, in several processes of this machine, or on several machines.

Several machines are a TrainJob of Kubeflow Trainer. Data and results pass through S3, because all pods reach it. The
job is named after the pipeline run, so that a retry of the task finds it.
"""

import contextlib
import copy
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from contrique.artifacts import CHECKPOINTS, ENCODER
from contrique.config import Config
from contrique.errors import ContriqueError
from contrique.pretraining.start import Start, train_or_adopt

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
_SHORT_REQUEST_SECONDS = 0.8  # of a task that is told to end


class LaunchError(ContriqueError):
    """A TrainJob cannot be created, or failed; the message names it and the remedy."""


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
    start: Start | None = None,
) -> "PretrainSummary":
    """`contrique.pretraining.pretrain.pretrain` for the pipeline run `CONTRIQUE_RUN`, tracked in its MLflow run.

    Args:
        dataset, distorted: picture sets, as `contrique.pretraining.pretrain.pretrain` takes them.
        out: folder for `encoder.safetensors`, `history.jsonl` and `summary.json`.
        profile, overrides: of the configuration.
        seed: of the weights, the batches and the crops.
        processes: on this machine; if more than 1, each has a GPU of its own, or a share of the cores.
        job: a TrainJob as JSON, without name, arguments and run; empty to train on this machine.
        to: `s3://` prefix that the job's data, checkpoints and results go below.
        start: the encoder to start from, used as it is unless an override says how long to train on.
    Returns:
        the summary of the run.
    Raises:
        LaunchError: the job cannot be created, failed, or was deleted.
        ProcessFailed: one of several processes failed.
        ContriqueError: as `contrique.pretraining.pretrain.pretrain`.
    """
    from contrique.pretraining import distributed

    def train(config: Config, overrides: dict[str, Any]) -> "PretrainSummary":
        if not job:
            weights = start.file if start else None
            return distributed.run_processes(processes, _train, dataset, distorted, out, config, seed, weights)
        sets = {"dataset": dataset} | ({"distorted": distorted} if config.pretrain.synthesis == "stored" else {})
        with tempfile.TemporaryDirectory() as scratch:
            if start:  # under the name by which the machines look for it
                shutil.copyfile(start.file, Path(scratch, ENCODER))
                sets["encoder"] = Path(scratch)
            return _on_machines(sets, out, json.loads(job), to.rstrip("/"), profile, overrides, seed)

    summary = train_or_adopt(train, out, start, profile=profile, overrides=overrides)
    summary.save(out)
    return summary


def _train(
    dataset: Path, distorted: Path, out: Path, settings: Config, seed: int, start: Path | None
) -> "PretrainSummary":
    """The work of each process on this machine."""
    from contrique.pretraining import distributed
    from contrique.pretraining.pretrain import pretrain as train
    from contrique.tracking.runs import follow_training

    with distributed.process_group() as world:
        with follow_training(settings, dataset) if world.is_main else contextlib.nullcontext() as track:
            summary = train(
                dataset,
                distorted,
                out,
                config=settings.pretrain,
                seed=seed,
                track=track,
                synthesis=settings.synthesis,
                start=start,
            )
        if world.is_main and not settings.pretrain.checkpoints:  # no part of the encoder that later tasks fetch
            shutil.rmtree(out / CHECKPOINTS)
    return summary


def command(places: Mapping[str, Sequence[str]], *, profile: str, overrides: Mapping[str, Any], seed: int) -> list[str]:
    """Arguments of torchrun on every machine: `contrique pretrain`, from S3 to S3.

    Args:
        places: options of `contrique pretrain` with their `s3://` prefixes.
        profile, overrides, seed: as the pipeline takes them.
    """
    words = ["-m", "contrique.cli", "pretrain", "--profile", profile, "--seed", str(seed), "--out", FOLDER]
    words += [word for option, prefixes in places.items() for prefix in prefixes for word in (f"--{option}", prefix)]
    for option, value in overrides.items():
        words += ["--set", f"{option}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def fill_in(job: Mapping[str, Any], name: str, run: str, words: Sequence[str]) -> dict[str, Any]:
    """A copy of a TrainJob with its name, torchrun's arguments and the name of its MLflow run."""
    manifest: dict[str, Any] = copy.deepcopy(dict(job))
    manifest["metadata"] = {"name": name}
    trainer = manifest["spec"]["trainer"]
    trainer["args"] = list(words)
    trainer["env"] = [{"name": "CONTRIQUE_RUN", "value": run}, *trainer["env"]]
    return manifest


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
    from contrique.pretraining.pretrain import PretrainSummary
    from contrique.tracking.runs import current_pipeline_run

    run = current_pipeline_run()
    name = f"pretrain-{run}"
    prefix = f"{to}/{name}"
    jobs = _Jobs.of_this_namespace()

    places = {kind: [f"{prefix}/{kind}"] for kind in (*sets, "checkpoints")} | {"publish": [f"{prefix}/{RESULT}"]}
    manifest = fill_in(job, name, run, command(places, profile=profile, overrides=overrides, seed=seed))
    with _delete_on_sigterm(name):
        previous = jobs.get(name)
        if previous is not None and _is_over(previous):
            print(f"{jobs.called(name)} ended in an earlier attempt: made anew, from its last checkpoint", flush=True)
            jobs.delete(name)
            previous = None
        if previous is None and jobs.create(manifest, dry_run="All"):  # a refusal comes before hours of uploading
            for kind, folder in sets.items():
                s3.upload(folder, f"{prefix}/{kind}")
            jobs.create(manifest)
        _follow_job(jobs, name)
    s3.download(f"{prefix}/{RESULT}", out)
    for kind in sets:  # the checkpoints stay: with them a retry that finds no job is a matter of minutes
        s3.remove(f"{prefix}/{kind}")
    jobs.delete(name, wait=False)  # last: until then a retry finds a complete job, and but fetches
    return PretrainSummary.load(out)


@contextlib.contextmanager
def _delete_on_sigterm(name: str) -> Iterator[None]:
    """Delete the job on SIGTERM: a cancelled run must not hold machines for days. A retry resumes from the checkpoints.

    KFP's launcher dies of the signal, and its container with it a moment later: so one short request goes out before
    anything else, from within the handler. A task that is killed outright leaves the job, and a retry goes on waiting
    for it.
    """
    jobs = _Jobs.of_this_namespace()  # a client of its own: the other may be in the middle of a request

    def end(number: int, _: Any) -> None:
        with contextlib.suppress(LaunchError):
            jobs.delete(name, wait=False, seconds=_SHORT_REQUEST_SECONDS)
            # not by print, in the middle of which this may be
            os.write(2, f"{jobs.called(name)} deleted, because this task was told to end\n".encode())
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _follow_job(jobs: "_Jobs", name: str) -> None:
    """Print each change of the job's state until it is complete."""
    printed, answered = "", time.monotonic()
    while True:
        try:
            job = jobs.get(name)
        except _Unavailable as error:
            if time.monotonic() - answered > _PATIENCE_SECONDS:
                raise
            print(f"{error}; asking again", file=sys.stderr, flush=True)
            time.sleep(_POLL_SECONDS)
            continue
        answered = time.monotonic()
        if job is None:
            raise LaunchError(f"{jobs.called(name)} is gone: somebody deleted it; run the pipeline again")
        conditions = _conditions(job)
        if (state := _state(job)) != printed:
            print(f"{jobs.called(name)}: {state}", flush=True)
            printed = state
        if "Complete" in conditions:
            return
        if "Failed" in conditions:
            why = f"{conditions['Failed'].get('reason', '')}: {conditions['Failed'].get('message', '')}"
            raise LaunchError(f"{jobs.called(name)} failed ({why}); {jobs.remedy(name)}")
        time.sleep(_POLL_SECONDS)


def _is_over(job: Mapping[str, Any]) -> bool:
    """Whether a job failed or is being deleted."""
    return "Failed" in _conditions(job) or "deletionTimestamp" in job["metadata"]


def _conditions(job: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Conditions with status True, by type."""
    conditions = job.get("status", {}).get("conditions", [])
    return {condition["type"]: condition for condition in conditions if condition["status"] == "True"}


def _state(job: Mapping[str, Any]) -> str:
    """Status of a job in one line."""
    words = [*_conditions(job)]
    for part in job.get("status", {}).get("jobsStatus", []):
        words += [f"{part[kind]} {kind}" for kind in ("active", "ready", "succeeded", "failed") if part.get(kind)]
    return ", ".join(words) or "waiting for its machines"


class _Unavailable(LaunchError):
    """The API server does not answer, or cannot at the moment."""


@dataclass(frozen=True)
class _Jobs:
    """The TrainJobs of a namespace, through the Kubernetes API."""

    api: Any
    namespace: str

    @classmethod
    def of_this_namespace(cls) -> "_Jobs":
        """Connect by the pod's service account, or outside a cluster by KUBECONFIG."""
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
        """Commands that show what went wrong."""
        return (
            f"look at `kubectl -n {self.namespace} describe trainjob {name}` and `kubectl -n {self.namespace} logs "
            f"--prefix --tail=50 -l jobset.sigs.k8s.io/jobset-name={name}`"
        )

    def get(self, name: str) -> dict[str, Any] | None:
        """The job, or None."""
        job: dict[str, Any] | None = self._ask("get", self.api.get_namespaced_custom_object, name, absent=404)
        return job

    def create(self, job: dict[str, Any], **options: Any) -> bool:
        """Create a job, unless an interrupted task created it before.

        Args:
            job: the manifest.
            options: of the request; `dry_run="All"` only checks whether it would be created.
        Returns:
            whether it is new.
        """
        name = job["metadata"]["name"]
        created = self._ask("create", self.api.create_namespaced_custom_object, name, absent=409, body=job, **options)
        if not options:
            print(f"{self.called(name)} {'was there' if created is None else 'made'}", flush=True)
        return created is not None

    def delete(self, name: str, *, wait: bool = True, seconds: float = _REQUEST_SECONDS) -> None:
        """Delete a job with its pods, if it exists.

        Args:
            name: of the job.
            wait: return when it is gone.
            seconds: for the request.
        """
        delete = self.api.delete_namespaced_custom_object
        self._ask("delete", delete, name, absent=404, seconds=seconds, propagation_policy="Foreground")
        until = time.monotonic() + _PATIENCE_SECONDS
        while wait and self.get(name) is not None:
            if time.monotonic() > until:
                raise LaunchError(f"{self.called(name)} was deleted and is still there; {self.remedy(name)}")
            time.sleep(min(1.0, _POLL_SECONDS))

    def _ask(
        self,
        verb: str,
        call: Callable[..., T],
        name: str,
        *,
        absent: int,
        seconds: float = _REQUEST_SECONDS,
        **arguments: Any,
    ) -> T | None:
        """Answer of the API; None for the status `absent`."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        parameters = arguments if "body" in arguments else arguments | {"name": name}
        try:
            return call(namespace=self.namespace, _request_timeout=seconds, **_KIND, **parameters)
        except HTTPError as error:
            raise _Unavailable(f"{self.called(name)}: the Kubernetes API does not answer ({error})") from error
        except ApiException as error:
            if error.status == absent:
                return None
            reason = f"{error.status} {error.reason}: {_describe_failure(error)}"
            why = f"{self.called(name)}: Kubernetes did not {verb} it ({reason})"
            if error.status >= 500 or error.status == 429:
                raise _Unavailable(why) from error
            remedy = _REMEDIES.get(error.status, "check the TrainJob in the compiled pipeline")
            raise LaunchError(f"{why}; {remedy}") from error


_REMEDIES = {
    401: "let the task's service account have a token",
    403: "let the task's service account create, get and delete trainjobs (deploy/rbac.yaml)",
    404: "install Kubeflow Trainer 2.2 or newer, and see that the namespace is there",
}


def _describe_failure(error: Any) -> str:
    """Message in the body of an answer, or the beginning of the body."""
    text = str(error.body)
    with contextlib.suppress(ValueError):
        body = json.loads(text)
        text = str(body.get("message", text)) if isinstance(body, dict) else text
    return " ".join(text.split())[:300]
