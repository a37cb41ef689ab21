"""Pretraining in several processes of a machine, and on several machines through a server that stands for Kubernetes'.

The jobs are those that the pipeline compiles in, and each is held against Kubeflow Trainer's own models. One is run for
real: by a torchrun for each machine, with what Kubeflow Trainer sets in their environment, from S3 to S3.
"""

import datetime
import http.server
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
import yaml
from kfp import dsl
from kubeflow_trainer_api import models
from safetensors.torch import load_file

from components.pretrain_encoder import pretrain_encoder
from contrique import s3 as s3_module
from contrique.artifacts import CHECKPOINTS, ENCODER, HISTORY, SUMMARY
from contrique.config import RegistryConfig
from contrique.encoder.network import Encoder
from contrique.encoder.weights import save_encoder
from contrique.errors import ContriqueError
from contrique.files import sha256
from contrique.pretraining import distributed, launch
from contrique.pretraining.launch import FOLDER, NAMESPACE, RESULT, LaunchError, fill_in
from contrique.tracking.runs import Runs
from contrique.tracking.store import Store
from pipelines.cluster.trainjob import manifest
from pipelines.laptop import runner

pytestmark = pytest.mark.timeout(1800)  # two minutes on quiet cores: many processes import torch

CONFIG = replace(tiny_training.CONFIG, images=12, authentic_share=0.25, steps=2)
OVERRIDES = json.loads(json.dumps({f"pretrain.{name}": value for name, value in asdict(CONFIG).items()}))
RUN = "0d9c4f7e-6a55-4b9f-8b0c-2f1d3f6f7a11"  # as KFP names a run
NAME = f"pretrain-{RUN}"
JOB = json.dumps(manifest("image@sha256:0", nodes=2, gpus=1))
PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/quality/trainjobs"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_training.picture_sets(tmp_path_factory.mktemp("dataset"), tmp_path_factory.mktemp("distorted"))


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTRIQUE_RUN", RUN)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(launch, "_POLL_SECONDS", 0.05)


def run_component(
    sets: tuple[Path, Path],
    out: Path,
    changes: dict[str, Any] | None = None,
    start: str = "",
    pin: str = "",
    **shape: Any,
) -> dsl.Model:
    """What the component makes of the sets, with seed 3."""
    dataset, distorted = (dsl.Dataset(name=path.name, uri=str(path)) for path in sets)
    encoder = dsl.Model(name="encoder", uri=str(out))
    pretrain_encoder.python_func(
        dataset=dataset, distorted=distorted, profile="demo", overrides=OVERRIDES | (changes or {}), seed=3,
        start=start, pin=pin, encoder=encoder, **shape,
    )  # fmt: skip
    return encoder


def read_loss() -> float:
    run = Runs(RegistryConfig()).open(RUN)
    loss: float = Store(RegistryConfig()).client.get_run(run.id).data.metrics["loss"]
    return loss


class TestSeveralProcesses:
    @pytest.mark.slow
    def test_they_train_as_those_of_torchrun_do(self, sets, tmp_path):
        """test_distributed.py shows that these compute what one process would."""
        encoder = run_component(sets, tmp_path / "component", processes=2)
        child = tiny_training.start(tiny_training.command("pretrain", sets, tmp_path / "torchrun", CONFIG, ranks=2))
        _, output = child.communicate(timeout=500)
        assert child.returncode == 0, output
        encoders = [(tmp_path / which / ENCODER).read_bytes() for which in ("component", "torchrun")]
        assert encoders[0] == encoders[1]
        assert not (tmp_path / "component" / CHECKPOINTS).exists(), "no part of what later tasks fetch"
        assert encoder.metadata["steps"] == 2
        assert read_loss() == pytest.approx(encoder.metadata["loss_last"])

    @pytest.mark.slow
    def test_through_kfps_local_runner(self, sets, tmp_path):
        """Each process imports the task's program anew; an error of one is what a person is told."""

        @dsl.pipeline(name="pretraining-alone")
        def alone(dataset: str, distorted: str, overrides: dict) -> None:
            importers = [dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset) for uri in (dataset, distorted)]
            pictures = {"dataset": importers[0].output, "distorted": importers[1].output}
            pretrain_encoder(**pictures, profile="demo", overrides=overrides, seed=3, processes=2, start="", pin="")

        places = dict(zip(("dataset", "distorted"), map(str, sets), strict=True))
        result = runner.run(alone, {**places, "overrides": OVERRIDES}, tmp_path / "runs", io.StringIO())
        assert json.loads((result.artifacts["pretrain_encoder"]["encoder"] / SUMMARY).read_text())["steps"] == 2
        reason = r"^Pretrain the encoder: process [01] of 2: DatasetError: pretrain.images=13 cannot be shared"
        wrong = OVERRIDES | {"pretrain.images": 13}
        with pytest.raises(runner.RunFailed, match=reason) as error:
            runner.run(alone, {**places, "overrides": wrong}, tmp_path / "runs", io.StringIO())
        assert error.value.exit_status == ContriqueError.exit_status

    def test_a_process_that_is_killed_ends_the_others(self):
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(distributed.ProcessFailed, match=r"process 1 of 2: Signal 9"):
            distributed.run_processes(2, kill_the_second, 60)
        assert signal.getsignal(signal.SIGTERM) is before

    def test_fewer_gpus_than_processes_are_refused(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(distributed.ProcessFailed, match="2 processes need a GPU each, and 1 can be seen"):
            distributed.run_processes(2, kill_the_second, 60)


def kill_the_second(seconds: float) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(seconds)


class Kubernetes(http.server.ThreadingHTTPServer):
    """The part of the Kubernetes API that makes, shows and deletes TrainJobs of one namespace.

    Attributes:
        jobs: by name.
        conditions: what becomes of a job, each told by one GET; the last one stays.
        answers: statuses to answer the next requests with, 0 to answer as usual.
        work: what runs a new job; it is complete when that returns.
        requests: in order.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.conditions: list[str] = []
        self.answers: list[int] = []
        self.work: Callable[[dict[str, Any]], None] | None = None
        self.requests: list[str] = []
        self.failure: BaseException | None = None

    def make(self, job: dict[str, Any]) -> None:
        now = datetime.datetime.now(datetime.UTC)
        job["metadata"]["creationTimestamp"] = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        self.jobs[job["metadata"]["name"]] = job

    def run(self, job: dict[str, Any]) -> None:
        assert self.work
        try:
            self.work(job)
            become(job, "Complete")
        except BaseException as failure:
            self.failure = failure
            become(job, "Failed", str(failure))


def become(job: dict[str, Any], condition: str, why: str = "") -> None:
    """A status as Kubeflow Trainer writes it, by its own model."""
    counts = dict.fromkeys(("active", "ready", "succeeded", "failed", "suspended"), 0)
    status: dict[str, Any] = {"jobsStatus": [{"name": "node", **counts, "active": 1}]}
    if condition != "Running":
        when = job["metadata"]["creationTimestamp"]
        record = {"type": condition, "status": "True", "reason": "Told", "message": why or f"it is {condition}"}
        status["conditions"] = [record | {"lastTransitionTime": when}]
    models.TrainerV1alpha1TrainJobStatus.from_dict(status)
    job["status"] = status


class Handler(http.server.BaseHTTPRequestHandler):
    server: Kubernetes

    def _parse_request(self) -> str | None:
        """The name in the path; None if this request has been answered."""
        path, _, query = self.path.partition("?")
        self.server.requests.append(f"{self.command} {query}".strip())
        assert self.headers["Authorization"] == "Bearer let-me-in"
        assert path.startswith(PATH)
        if self.server.answers and (status := self.server.answers.pop(0)):
            self.answer({"kind": "Status", "message": f"as asked, {status}"}, status)
            return None
        return path.removeprefix(PATH).removeprefix("/")

    def do_GET(self) -> None:
        name = self._parse_request()
        if name is None:
            return
        if name not in self.server.jobs:
            self.answer({"kind": "Status", "message": f"{name} not found"}, 404)
            return
        if self.server.conditions:
            conditions = self.server.conditions
            become(self.server.jobs[name], conditions.pop(0) if len(conditions) > 1 else conditions[0])
        self.answer(self.server.jobs[name])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._parse_request() is None:
            return
        if models.TrainerV1alpha1TrainJob.from_dict(body).to_dict() != body:
            self.answer({"kind": "Status", "message": "no TrainJob"}, 422)
        elif body["metadata"]["name"] in self.server.jobs:
            self.answer({"kind": "Status", "message": "already exists"}, 409)
        elif "dryRun=All" in self.path:
            self.answer(body, 201)
        else:
            self.server.make(body)
            if self.server.work:
                threading.Thread(target=self.server.run, args=(body,)).start()
            self.answer(body, 201)

    def do_DELETE(self) -> None:
        name = self._parse_request()
        if name is not None:
            job = self.server.jobs.pop(name, None)
            self.answer({"kind": "Status"}, 200 if job else 404)

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    with Kubernetes() as server:
        address = f"http://127.0.0.1:{server.server_port}"
        settings = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "users": [{"name": "task", "user": {"token": "let-me-in"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "task"}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(settings))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv(NAMESPACE, "quality")
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def prefix(s3, tmp_path: Path) -> str:
    """An S3 prefix of this test's own."""
    return f"{s3.bucket}/{tmp_path.name}"


def machines(folder: Path) -> Callable[[dict[str, Any]], None]:
    """Runs a job's own command once for each machine, with the environment that Kubeflow Trainer gives them."""

    def work(job: dict[str, Any]) -> None:
        trainer = job["spec"]["trainer"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = {entry["name"]: entry["value"] for entry in trainer["env"] if "value" in entry}
        variables |= {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
        variables |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
        started = []
        for rank in range(trainer["numNodes"]):
            words = [str(folder / f"machine {rank}") if word == FOLDER else word for word in trainer["args"]]
            program = Path(sys.executable).with_name(trainer["command"][0])
            environment = os.environ | variables | {"PET_NODE_RANK": str(rank)}
            with (folder / f"machine {rank}.log").open("w") as log:
                started.append(subprocess.Popen([program, *words], env=environment, stdout=log, stderr=log))
        try:
            statuses = [process.wait(timeout=1500) for process in started]
        finally:
            for process in started:
                process.kill()
        assert not any(statuses), "\n".join(path.read_text() for path in folder.glob("machine *.log"))

    return work


def published(prefix: str, folder: Path) -> None:
    """What a job that is complete has left in S3."""
    folder.mkdir()
    summary = {"steps": 7, "crops": 1, "loss_first": 2.0, "loss_last": 1.0, "minutes": 1.0, "wait_share": 0.0}
    for name, text in ((ENCODER, "weights"), (HISTORY, "{}\n"), (SUMMARY, json.dumps(summary))):
        (folder / name).write_text(text)
    s3_module.upload(folder, f"{prefix}/{NAME}/{RESULT}")


def job_of_this_run() -> dict[str, Any]:
    return fill_in(json.loads(JOB), NAME, RUN, [])


class TestSeveralMachines:
    @pytest.mark.slow
    def test_two_train_as_two_processes_of_one_do(self, sets, tmp_path, kubernetes, prefix, capsys):
        kubernetes.work = machines(tmp_path)
        changes = {"pretrain.checkpoint_every": 1.0}  # as a cluster gives numbers
        far = run_component(sets, tmp_path / "far", changes, job=JOB, to=f"{prefix}/")
        assert kubernetes.failure is None
        loss = read_loss()
        near = run_component(sets, tmp_path / "near", changes, processes=2)  # in the same MLflow run: one configuration
        weights = [load_file(tmp_path / which / ENCODER) for which in ("far", "near")]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert {path.name for path in (tmp_path / "far").iterdir()} == {ENCODER, HISTORY, SUMMARY}
        same = ("steps", "crops", "loss_first", "loss_last")
        assert [far.metadata[name] for name in same] == [near.metadata[name] for name in same]
        assert loss == pytest.approx(far.metadata["loss_last"])
        assert not kubernetes.jobs
        assert s3_module.list_names(f"{prefix}/{NAME}") == ["checkpoints", "result"]
        output = capsys.readouterr().out
        assert f"TrainJob quality/{NAME} made" in output
        assert f"TrainJob quality/{NAME}: Complete, 1 active" in output

    def test_distortions_on_the_fly_need_no_distorted_set(self, sets, tmp_path, kubernetes, prefix):
        def work(job: dict[str, Any]) -> None:
            assert s3_module.list_names(f"{prefix}/{NAME}") == ["dataset"]
            assert "--distorted" not in job["spec"]["trainer"]["args"]
            published(prefix, tmp_path / "published")

        kubernetes.work = work
        run_component(sets, tmp_path / "out", {"pretrain.synthesis": "on_the_fly"}, job=JOB, to=prefix)
        assert kubernetes.failure is None

    @pytest.mark.slow
    def test_they_train_on_from_the_same_encoder(self, sets, tmp_path, kubernetes, prefix):
        """It travels through S3, as the pictures do; nothing of it stays there."""
        start = tmp_path / "mine.safetensors"
        save_encoder(Encoder("resnet18", seed=7), start)
        kubernetes.work = machines(tmp_path)
        far = run_component(sets, tmp_path / "far", start=str(start), job=JOB, to=prefix)
        assert kubernetes.failure is None
        near = run_component(sets, tmp_path / "near", start=str(start), processes=2)
        weights = [load_file(tmp_path / which / ENCODER) for which in ("far", "near")]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert far.metadata["start"] == near.metadata["start"] == sha256(start)
        assert far.metadata["start_name"] == near.metadata["start_name"] == str(start)
        assert s3_module.list_names(f"{prefix}/{NAME}") == ["checkpoints", "result"]

    def test_a_failed_job_is_named_and_kept(self, sets, tmp_path, kubernetes, prefix):
        kubernetes.conditions = ["Running", "Failed"]
        with pytest.raises(LaunchError) as error:
            run_component(sets, tmp_path / "out", job=JOB, to=prefix)
        message = str(error.value)
        assert message.startswith(f"TrainJob quality/{NAME} failed (Told: it is Failed); ")
        assert f"kubectl -n quality describe trainjob {NAME}" in message
        assert f"logs --prefix --tail=50 -l jobset.sigs.k8s.io/jobset-name={NAME}" in message
        assert NAME in kubernetes.jobs
        assert not (tmp_path / "out").exists()

    def test_a_retry_waits_for_the_job_that_is_there(self, sets, tmp_path, kubernetes, prefix):
        kubernetes.make(job_of_this_run())
        kubernetes.conditions = ["Running", "Running", "Complete"]
        published(prefix, tmp_path / "published")
        encoder = run_component(sets, tmp_path / "out", job=JOB, to=prefix)
        assert encoder.metadata["steps"] == 7
        assert (tmp_path / "out" / ENCODER).read_text() == "weights"
        assert not [request for request in kubernetes.requests if request.startswith("POST")]
        assert s3_module.list_names(f"{prefix}/{NAME}") == ["result"], "nothing was uploaded again"

    def test_a_job_made_meanwhile_is_as_good(self, sets, tmp_path, kubernetes, prefix):
        kubernetes.make(job_of_this_run())
        kubernetes.conditions = ["Complete"]
        kubernetes.answers = [404]
        published(prefix, tmp_path / "published")
        run_component(sets, tmp_path / "out", job=JOB, to=prefix)
        assert [request for request in kubernetes.requests if request.startswith("POST")] == ["POST dryRun=All"]
        assert s3_module.list_names(f"{prefix}/{NAME}") == ["result"], "nothing was uploaded beside it"

    def test_a_retry_replaces_the_job_that_failed(self, sets, tmp_path, kubernetes, prefix, capsys):
        job = job_of_this_run()
        kubernetes.make(job)
        become(job, "Failed")
        kubernetes.work = lambda _: published(prefix, tmp_path / "published")
        run_component(sets, tmp_path / "out", job=JOB, to=prefix)
        assert "ended in an earlier attempt: made anew" in capsys.readouterr().out
        assert "DELETE propagationPolicy=Foreground" in kubernetes.requests

    def test_a_retry_replaces_the_job_that_is_being_deleted(self, sets, tmp_path, kubernetes, prefix):
        kubernetes.make(job_of_this_run())
        kubernetes.jobs[NAME]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        kubernetes.work = lambda _: published(prefix, tmp_path / "published")
        run_component(sets, tmp_path / "out", job=JOB, to=prefix)
        assert "POST" in kubernetes.requests

    def test_a_server_that_is_away_for_a_while_is_asked_again(self, sets, tmp_path, kubernetes, prefix, capsys):
        kubernetes.make(job_of_this_run())
        kubernetes.conditions = ["Running", "Running", "Complete"]
        kubernetes.answers = [0, 0, 503, 429]
        published(prefix, tmp_path / "published")
        run_component(sets, tmp_path / "out", job=JOB, to=prefix)
        assert capsys.readouterr().err.count("asking again") == 2

    def test_a_server_that_stays_away_is_told(self, sets, tmp_path, kubernetes, prefix, monkeypatch):
        monkeypatch.setattr(launch, "_PATIENCE_SECONDS", 0.5)
        kubernetes.make(job_of_this_run())
        kubernetes.answers = [0, *[503] * 1000]
        with pytest.raises(LaunchError, match=rf"quality/{NAME}: Kubernetes did not get it \(503"):
            run_component(sets, tmp_path / "out", job=JOB, to=prefix)

    @pytest.mark.parametrize(
        ("status", "remedy"),
        [(403, r"deploy/rbac\.yaml"), (404, "install Kubeflow Trainer"), (422, "compiled pipeline")],
    )
    def test_a_refusal_has_its_remedy(self, sets, tmp_path, kubernetes, prefix, status, remedy):
        kubernetes.answers = [0, status]
        with pytest.raises(LaunchError, match=rf"did not create it \({status} .*as asked, {status}.*; .*{remedy}"):
            run_component(sets, tmp_path / "out", job=JOB, to=prefix)
        assert s3_module.list_names(f"{prefix}/{NAME}") == [], "it is told before anything is uploaded"

    def test_a_job_that_somebody_deleted_is_told(self, sets, tmp_path, kubernetes, prefix):
        kubernetes.make(job_of_this_run())
        kubernetes.answers = [0, 404]
        with pytest.raises(LaunchError, match="is gone: somebody deleted it"):
            run_component(sets, tmp_path / "out", job=JOB, to=prefix)

    def test_a_cancelled_task_takes_its_job_with_it(self, sets, tmp_path, kubernetes, prefix):
        before = signal.getsignal(signal.SIGTERM)
        kubernetes.make(job_of_this_run())

        def cancel() -> None:
            while len(kubernetes.requests) < 2:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=cancel, daemon=True).start()
        with pytest.raises(SystemExit) as error:
            run_component(sets, tmp_path / "out", job=JOB, to=prefix)
        assert error.value.code == 128 + signal.SIGTERM
        assert not kubernetes.jobs
        assert signal.getsignal(signal.SIGTERM) is before

    def test_a_task_that_dies_a_second_later_has_taken_its_job_with_it(self, sets, tmp_path, kubernetes, prefix):
        """KFP's launcher dies of SIGTERM, and its container with it, whatever the task is about: here, uploading."""
        code = (
            "import sys, time, contrique.s3 as s3\n"
            "from contrique.pretraining.launch import pretrain\n"
            "def upload(*_):\n"
            "    try:\n"
            "        print('uploading', flush=True)\n"
            "        time.sleep(60)\n"
            "    except SystemExit:\n"
            "        time.sleep(60)\n"  # as a pool of threads does, that waits for its own
            "s3.upload = upload\n"
            "from pathlib import Path\n"
            "pretrain(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), profile='demo', overrides={}, seed=0,"
            " job=sys.argv[4], to=sys.argv[5])\n"
        )
        command = [sys.executable, "-c", code, *map(str, sets), str(tmp_path / "out"), JOB, prefix]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as task:
            while task.stdout.readline() != "uploading\n":
                assert task.poll() is None
            kubernetes.make(job_of_this_run())  # as if by a try that was cut off
            task.terminate()
            time.sleep(1)
            task.kill()
        assert not kubernetes.jobs
        assert kubernetes.requests[-1].startswith("DELETE")

    def test_without_a_cluster(self, sets, tmp_path, monkeypatch, prefix):
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.delenv(NAMESPACE, raising=False)
        with pytest.raises(LaunchError, match="CONTRIQUE_NAMESPACE is not set"):
            run_component(sets, tmp_path / "out", job=JOB, to=prefix)
        monkeypatch.setenv(NAMESPACE, "quality")
        with pytest.raises(LaunchError, match="no Kubernetes cluster to run a TrainJob in"):
            run_component(sets, tmp_path / "out", job=JOB, to=prefix)
