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
GOLDEN = ROOT / "tests" / "golden"


def compiled(out: Path, *options: str, **environment: str) -> bytes:
    """What `python -m pipelines compile` writes in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name != "CONTRIQUE_IMAGE"}
    command = [sys.executable, "-m", "pipelines", "compile", "--out", str(out), *options]
    subprocess.run(command, cwd=ROOT, env=clean | environment, check=True, stdout=subprocess.DEVNULL)
    return out.read_bytes()


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> bytes:
    return compiled(tmp_path_factory.mktemp("compiled") / "training.yaml")


@pytest.fixture(scope="module")
def scoring(tmp_path_factory) -> bytes:
    return compiled(tmp_path_factory.mktemp("compiled") / "scoring.yaml", "--pipeline", "scoring")


@pytest.fixture(scope="module")
def fanned_out(tmp_path_factory) -> bytes:
    return compiled(tmp_path_factory.mktemp("compiled") / "fanned_out.yaml", "--shards", "3")


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
    return tasks_of(spec)


def tasks_of(spec) -> dict:
    dags = [spec["root"], *spec["components"].values()]
    return {name: task for dag in dags for name, task in dag.get("dag", {}).get("tasks", {}).items()}


def test_compiling_twice_gives_the_same_bytes(document, tmp_path):
    """Whatever credentials the second one has at hand, none goes into the document."""
    planted = {"AWS_SECRET_ACCESS_KEY": "planted", "MLFLOW_TRACKING_PASSWORD": "planted", "AWS_ENDPOINT_URL": "planted"}
    assert compiled(tmp_path / "again.yaml", **planted) == document


@pytest.mark.parametrize("name", ["training", "scoring"])
def test_equals_the_golden_file(name, document, scoring):
    """Whole documents, all but KFP's own version. If the change is meant:

    python -m pipelines compile --out tests/golden/training.yaml
    python -m pipelines compile --pipeline scoring --out tests/golden/scoring.yaml
    """
    text, kept = {"training": document, "scoring": scoring}[name], (GOLDEN / f"{name}.yaml").read_bytes()
    new, golden = (list(yaml.safe_load_all(each)) for each in (text, kept))
    assert new[0].pop("sdkVersion").startswith("kfp-")
    golden[0].pop("sdkVersion")
    assert new == golden


@pytest.mark.parametrize("name", ["training", "scoring", "fanned out"])
def test_parses_strictly(name, document, scoring, fanned_out):
    spec, platform = yaml.safe_load_all({"training": document, "scoring": scoring, "fanned out": fanned_out}[name])
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec(), ignore_unknown_fields=False)
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        config = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        json_format.ParseDict(pod, config, ignore_unknown_fields=False)


def test_every_stage_has_a_title_and_its_resources(document, scoring, fanned_out):
    seen = set()
    for text in (document, scoring, fanned_out):
        spec = next(yaml.safe_load_all(text))
        tasks = tasks_of(spec)
        for label, executor in spec["deploymentSpec"]["executors"].items():
            name = label.removeprefix("exec-")
            stage = STAGES[name.replace("-", "_")]
            assert tasks[name]["taskInfo"]["name"] == stage.title
            assert executor["container"]["resources"]["resourceCpuRequest"] == stage.cpu
            assert executor["container"]["resources"]["resourceMemoryLimit"] == stage.memory
            seen.add(name.replace("-", "_"))
    assert seen == set(STAGES)


def test_fanning_out(fanned_out):
    """Two loops over three parts, and each result gathered into what the next stage takes."""
    spec = next(yaml.safe_load_all(fanned_out))
    tasks = tasks_of(spec)
    loops = [task["parameterIterator"]["items"]["raw"] for task in tasks.values() if "parameterIterator" in task]
    assert loops == ["[0, 1, 2]"] * 2
    pictures = tasks["pretrain-encoder"]["inputs"]["artifacts"]["distorted"]["taskOutputArtifact"]
    assert pictures["producerTask"] == "gather-distortions"
    assert tasks["extract-features"]["inputs"]["parameters"]["parts"]["runtimeValue"]["constant"] == 3


def test_a_failed_run_is_closed_in_mlflow(tasks, spec):
    close = spec["root"]["dag"]["tasks"]["close-run"]
    assert close["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    (body,) = [name for name in spec["root"]["dag"]["tasks"] if name != "close-run"]
    assert close["inputs"]["parameters"]["status"]["taskFinalStatus"]["producerTask"] == body


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
    assert not cached & {"pin-data", "evaluate-model", "register-model", "keep-champion", "close-run"}
    assert {"fetch-data", "pretrain-encoder"} <= cached


def test_the_pin_is_what_fetching_is_cached_by(tasks):
    """It names the content; without it among the inputs, the cache would serve old data under the same name."""
    given = tasks["fetch-data"]["inputs"]["parameters"]
    assert given["pin"]["taskOutputParameter"]["producerTask"] == "pin-data"


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
