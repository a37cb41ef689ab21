"""The compiled pipeline: deterministic, valid, what the golden file says, and fit for a cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.resources import STAGES

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "training.yaml"


def compiled(out: Path, **environment: str) -> bytes:
    """What `python -m pipelines compile` writes in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name != "CONTRIQUE_IMAGE"}
    command = [sys.executable, "-m", "pipelines", "compile", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env=clean | environment, check=True, stdout=subprocess.DEVNULL)
    return out.read_bytes()


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> bytes:
    return compiled(tmp_path_factory.mktemp("compiled") / "training.yaml")


@pytest.fixture(scope="module")
def spec(document):
    return yaml.safe_load_all(document).__next__()


@pytest.fixture(scope="module")
def containers(spec):
    return {name.removeprefix("exec-"): one["container"] for name, one in spec["deploymentSpec"]["executors"].items()}


@pytest.fixture(scope="module")
def pods(document):
    platform = list(yaml.safe_load_all(document))[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): one for name, one in platform.items()}


@pytest.fixture(scope="module")
def tasks(spec):
    """Every task of every DAG by name."""
    dags = [spec["root"], *spec["components"].values()]
    return {name: task for dag in dags for name, task in dag.get("dag", {}).get("tasks", {}).items()}


def test_compiling_twice_gives_the_same_bytes(document, tmp_path):
    assert compiled(tmp_path / "again.yaml") == document


def test_equals_the_golden_file(document):
    """Whole documents, all but KFP's own version. If the change is meant:

    python -m pipelines compile --out tests/golden/training.yaml
    """
    new, golden = (list(yaml.safe_load_all(text)) for text in (document, GOLDEN.read_bytes()))
    assert new[0].pop("sdkVersion").startswith("kfp-")
    golden[0].pop("sdkVersion")
    assert new == golden


def test_parses_strictly(document):
    spec, platform = yaml.safe_load_all(document)
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec(), ignore_unknown_fields=False)
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        config = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        json_format.ParseDict(pod, config, ignore_unknown_fields=False)


def test_every_stage_is_there_with_a_title_and_its_resources(tasks, containers):
    assert {name.replace("-", "_") for name in containers} == set(STAGES)
    for name, container in containers.items():
        stage = STAGES[name.replace("-", "_")]
        assert tasks[name]["taskInfo"]["name"] == stage.title
        assert container["resources"]["resourceCpuRequest"] == stage.cpu
        assert container["resources"]["resourceMemoryLimit"] == stage.memory


@pytest.mark.parametrize("name", ["pretrain-encoder", "extract-features"])
def test_gpu_and_shared_memory(name, containers, pods):
    accelerator = containers[name]["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
    assert pods[name]["tolerations"][0]["key"] == "nvidia.com/gpu"
    (mount,) = pods[name]["emptyDirMounts"]
    assert (mount["mountPath"], mount["medium"]) == ("/dev/shm", "Memory")


def test_only_those_two_ask_for_a_gpu(containers):
    asking = {name for name, container in containers.items() if "accelerator" in container["resources"]}
    assert asking == {"pretrain-encoder", "extract-features"}


def test_retries_back_off(tasks):
    policy = tasks["pretrain-encoder"]["retryPolicy"]
    assert policy["maxRetryCount"] == 2
    assert policy["backoffFactor"] > 1
    assert policy["backoffDuration"] != "0s"
    assert "retryPolicy" not in tasks["validate-data"]


def test_caching_is_chosen_stage_by_stage(tasks):
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    stages = {name for name in tasks if name.replace("-", "_") in STAGES}
    assert cached & stages == {name for name in stages if STAGES[name.replace("-", "_")].cache}
    assert not cached & {"fetch-data", "evaluate-model", "register-model", "keep-champion"}
    assert "pretrain-encoder" in cached


def test_every_task_has_an_end(pods, containers):
    assert pods.keys() == containers.keys()
    assert all(int(pod["activeDeadlineSeconds"]) > 0 for pod in pods.values())


def test_credentials_come_from_secrets_alone(spec, pods):
    env = {one["envVar"] for secret in pods["register-model"]["secretAsEnv"] for one in secret["keyToEnv"]}
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"} <= env
    endpoints = {one["envVar"] for each in pods["register-model"]["configMapAsEnv"] for one in each["keyToEnv"]}
    assert {"MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"} <= endpoints
    assert "secretAsEnv" in pods["fetch-data"]
    assert "secretAsEnv" not in pods["fit-regressor"], "a stage is given no credentials that it has no use for"
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert not [name for name in parameters if "secret" in name or "key" in name or "password" in name]


def test_parameters_are_typed_and_described(spec):
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    types = {name: one["parameterType"] for name, one in parameters.items()}
    assert types == {
        "data": "STRING",
        "revision": "STRING",
        "pristine": "LIST",
        "authentic": "LIST",
        "profile": "STRING",
        "overrides": "STRUCT",
        "seed": "NUMBER_INTEGER",
    }
    assert all(one["description"] for one in parameters.values())


def test_the_gate_branches_on_the_one_returned_value(tasks):
    conditions = {
        name: task["triggerPolicy"]["condition"]
        for name, task in tasks.items()
        if "condition" in task.get("triggerPolicy", {})
    }
    assert len(conditions) == 2
    promote, hold = sorted(conditions.values(), key=len)
    assert promote == "inputs.parameter_values['pipelinechannel--decide-promotion-Output'] == 'promote'"
    assert hold == f"!({promote})"


def test_the_image_is_a_compile_time_constant(tmp_path, containers):
    assert {container["image"] for container in containers.values()} == {"contrique-python:0.1.0"}
    digest = "registry.example/contrique-python@sha256:" + "0" * 64
    text = compiled(tmp_path / "pinned.yaml", CONTRIQUE_IMAGE=digest)
    executors = next(yaml.safe_load_all(text))["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {digest}


def test_nothing_is_installed_when_a_task_starts(document):
    assert b"pip install" not in document
