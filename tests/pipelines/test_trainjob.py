"""The TrainJob: valid by Kubeflow Trainer's own models, and its command does what it says."""

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from contrique import images
from contrique import s3 as s3_module
from contrique.cli.main import build_parser
from contrique.cli.main import main as contrique
from contrique.config import RegistryConfig
from contrique.encoder.weights import load_encoder
from contrique.pretraining.launch import FOLDER
from contrique.tracking.runs import Runs
from contrique.tracking.store import Store
from pipelines.__main__ import main

COMMAND = ["trainjob", "--name", "big", "--nodes", "4", "--pristine", "s3://b/p", "--authentic", "s3://b/a"]


def write_job(tmp_path: Path, *words: str) -> dict:
    out = tmp_path / "job.yaml"
    assert main([*COMMAND, "--to", "s3://b/run/", "--out", str(out), *words]) == 0
    job: dict = yaml.safe_load(out.read_text())
    return job


def test_is_a_trainjob_and_nothing_of_it_is_unknown(tmp_path):
    job = write_job(tmp_path)
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 8)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "8"
    names = [variable["name"] for variable in trainer["env"]]
    assert {"CONTRIQUE_S3_ACCESS_KEY", "CONTRIQUE_S3_ENDPOINT", "MLFLOW_TRACKING_URI", "CONTRIQUE_RUN"} <= set(names)
    assert len(names) == len(set(names))
    assert not [variable for variable in trainer["env"] if "value" in variable and variable["name"] != "CONTRIQUE_RUN"]


def test_its_pods_are_kubernetess_and_get_no_istio_sidecar(tmp_path):
    """What the job patches into the runtime's pods and asks for each, put together as Kubeflow Trainer does."""
    spec = write_job(tmp_path)["spec"]
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = replicated["template"]["spec"]["template"]
    assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    trainer = spec["trainer"]
    (container,) = template["spec"]["containers"]
    container |= {name: trainer[name] for name in ("image", "command", "args", "env")}
    container["resources"] = trainer["resourcesPerNode"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"} | template["metadata"]}
    kubernetes_validate.validate(pod | {"spec": template["spec"]}, "1.37", strict=True)
    assert spec["activeDeadlineSeconds"] > 0


def test_a_misspelt_field_would_be_found(tmp_path):
    job = write_job(tmp_path)
    job["spec"]["trainer"]["numNode"] = 4
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() != job


def test_command_is_one_that_contrique_understands(tmp_path):
    job = write_job(tmp_path, "--param", "pretrain.images=64", "--param", "synthesis.levels=[1,5]")
    trainer = job["spec"]["trainer"]
    assert trainer["command"] == ["torchrun"]
    assert trainer["args"][:2] == ["-m", "contrique.cli"]
    options = build_parser().parse_args(trainer["args"][2:])
    assert options.pristine == ["s3://b/p"]
    assert options.publish == "s3://b/run"
    assert {"pretrain.images=64", "synthesis.levels=[1, 5]", "pretrain.synthesis=on_the_fly"} <= set(options.set)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "s3://b/run", "--gpus", "7"], "does not divide"),
        (["--to", "/run"], "/run: every machine must reach it"),
        (["--to", "s3://b/run", "--param", "pretrain.stepz=1"], "pretrain.stepz"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, capsys, words, message):
    assert main([*COMMAND, "--out", str(tmp_path / "job.yaml"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "job.yaml").exists()


@pytest.mark.slow
def test_command_trains_from_s3_to_s3(tmp_path, s3, monkeypatch):
    import numpy as np

    rng = np.random.default_rng(0)
    for kind in ("pristine", "authentic"):
        for number in range(2):
            pixels = images.as_uint8(rng.random((30, 40, 3)).repeat(4, 0).repeat(4, 1))
            path = tmp_path / kind / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(images.encode_png(pixels))
        s3_module.upload(tmp_path / kind, f"{s3.bucket}/photographs/{kind}")
    small = {"images": 8, "steps": 2, "threads": 1, "workers": 0, "log_every": 1, "contents_per_class": 1, "crop": 32}
    words = ["trainjob", "--name", "big", "--nodes", "2", "--gpus", "2", "--profile", "demo"]
    for kind in ("pristine", "authentic"):
        words += [f"--{kind}", f"{s3.bucket}/photographs/{kind}"]
    words += ["--to", f"{s3.bucket}/trained", "--out", str(tmp_path / "job.yaml"), "--param", "synthesis.levels=[5]"]
    words += ["--param", 'synthesis.distortions=["jpeg","white_noise"]']
    words += [f"--param=pretrain.{name}={json.dumps(value)}" for name, value in small.items()]
    assert main(words) == 0
    args = yaml.safe_load((tmp_path / "job.yaml").read_text())["spec"]["trainer"]["args"][2:]
    args[args.index(FOLDER)] = str(tmp_path / "run")
    monkeypatch.setenv("CONTRIQUE_RUN", "big")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    assert contrique(args) == 0
    assert s3_module.list_names(f"{s3.bucket}/trained/checkpoints") == ["step-00000002"]
    s3_module.download(f"{s3.bucket}/trained", tmp_path / "back")
    assert load_encoder(tmp_path / "back" / "encoder.safetensors").arch == "resnet18"
    run = Runs(RegistryConfig()).open("big")
    assert Store(RegistryConfig()).client.get_run(run.id).data.metrics["loss"] > 0
