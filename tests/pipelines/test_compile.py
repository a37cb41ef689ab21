"""The compiled pipeline: deterministic, valid, what the golden file says, and fit for a cluster."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from kubeflow_trainer_api import models

from contrique.pretraining.launch import NAMESPACE, fill_in
from pipelines.__main__ import main
from pipelines.cluster.resources import STAGES

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHAPES = {
    "training_on_gpus": ("--gpus", "8"),
    "training_on_nodes": ("--nodes", "4", "--gpus", "8", "--to", "s3://contrique/pretraining"),
}


def compile_pipeline(out: Path, *options: str, **environment: str) -> bytes:
    """What `python -m pipelines compile` writes in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name != "CONTRIQUE_IMAGE"}
    command = [sys.executable, "-m", "pipelines", "compile", "--out", str(out), *options]
    subprocess.run(command, cwd=ROOT, env=clean | environment, check=True, stdout=subprocess.DEVNULL)
    return out.read_bytes()


@pytest.fixture(scope="module")
def document(tmp_path_factory) -> bytes:
    return compile_pipeline(tmp_path_factory.mktemp("compiled") / "training.yaml")


@pytest.fixture(scope="module")
def scoring(tmp_path_factory) -> bytes:
    return compile_pipeline(tmp_path_factory.mktemp("compiled") / "scoring.yaml", "--pipeline", "scoring")


@pytest.fixture(scope="module")
def fanned_out(tmp_path_factory) -> bytes:
    return compile_pipeline(tmp_path_factory.mktemp("compiled") / "fanned_out.yaml", "--shards", "3")


@pytest.fixture(scope="module")
def on_gpus(tmp_path_factory) -> bytes:
    return compile_pipeline(tmp_path_factory.mktemp("compiled") / "on_gpus.yaml", *SHAPES["training_on_gpus"])


@pytest.fixture(scope="module")
def on_nodes(tmp_path_factory) -> bytes:
    return compile_pipeline(tmp_path_factory.mktemp("compiled") / "on_nodes.yaml", *SHAPES["training_on_nodes"])


@pytest.fixture(scope="module")
def documents(document, scoring, fanned_out, on_gpus, on_nodes) -> dict[str, bytes]:
    return {
        "training": document,
        "scoring": scoring,
        "fanned out": fanned_out,
        "training_on_gpus": on_gpus,
        "training_on_nodes": on_nodes,
    }


@pytest.fixture(scope="module")
def spec(document):
    return yaml.safe_load_all(document).__next__()


@pytest.fixture(scope="module")
def containers(spec):
    return {
        name.removeprefix("exec-"): entry["container"] for name, entry in spec["deploymentSpec"]["executors"].items()
    }


@pytest.fixture(scope="module")
def pods(document):
    platform = list(yaml.safe_load_all(document))[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): pod for name, pod in platform.items()}


@pytest.fixture(scope="module")
def tasks(spec):
    """Every task of every DAG by name."""
    return tasks_of(spec)


def tasks_of(spec) -> dict:
    dags = [spec["root"], *spec["components"].values()]
    return {name: task for dag in dags for name, task in dag.get("dag", {}).get("tasks", {}).items()}


def test_compiling_twice_gives_the_same_bytes(document, tmp_path):
    """Whatever credentials the second one has at hand, none goes into the document."""
    environ = {"AWS_SECRET_ACCESS_KEY": "planted", "MLFLOW_TRACKING_PASSWORD": "planted", "AWS_ENDPOINT_URL": "planted"}
    assert compile_pipeline(tmp_path / "again.yaml", **environ) == document


@pytest.mark.parametrize("name", SHAPES)
def test_so_does_another_shape(name, documents, tmp_path):
    assert compile_pipeline(tmp_path / "again.yaml", *SHAPES[name]) == documents[name]


@pytest.mark.parametrize("name", ["training", "scoring", *SHAPES])
def test_equals_the_golden_file(name, documents):
    """Whole documents, all but KFP's own version. If the change is meant:

    python -m pipelines compile --out tests/golden/training.yaml
    python -m pipelines compile --pipeline scoring --out tests/golden/scoring.yaml
    python -m pipelines compile --gpus 8 --out tests/golden/training_on_gpus.yaml
    python -m pipelines compile --nodes 4 --gpus 8 --to s3://contrique/pretraining \
        --out tests/golden/training_on_nodes.yaml
    """
    text, golden_bytes = documents[name], (GOLDEN / f"{name}.yaml").read_bytes()
    new, golden = (list(yaml.safe_load_all(each)) for each in (text, golden_bytes))
    assert new[0].pop("sdkVersion").startswith("kfp-")
    golden[0].pop("sdkVersion")
    assert new == golden


@pytest.mark.parametrize("name", ["training", "scoring", "fanned out", *SHAPES])
def test_parses_strictly(name, documents):
    spec, platform = yaml.safe_load_all(documents[name])
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec(), ignore_unknown_fields=False)
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        config = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        json_format.ParseDict(pod, config, ignore_unknown_fields=False)


def test_every_stage_has_a_title_and_its_resources(document, scoring, fanned_out):
    names = set()
    for text in (document, scoring, fanned_out):
        spec = next(yaml.safe_load_all(text))
        tasks = tasks_of(spec)
        for label, executor in spec["deploymentSpec"]["executors"].items():
            name = label.removeprefix("exec-")
            stage = STAGES[name.replace("-", "_")]
            assert tasks[name]["taskInfo"]["name"] == stage.title
            assert executor["container"]["resources"]["resourceCpuRequest"] == stage.cpu
            assert executor["container"]["resources"]["resourceMemoryLimit"] == stage.memory
            names.add(name.replace("-", "_"))
    assert names == set(STAGES)


def test_fanning_out(fanned_out):
    """Two loops over three parts, and each result gathered into what the next stage takes."""
    spec = next(yaml.safe_load_all(fanned_out))
    tasks = tasks_of(spec)
    loops = [task["parameterIterator"]["items"]["raw"] for task in tasks.values() if "parameterIterator" in task]
    assert loops == ["[0, 1, 2]"] * 2
    pictures = tasks["pretrain-encoder"]["inputs"]["artifacts"]["distorted"]["taskOutputArtifact"]
    assert pictures["producerTask"] == "gather-distortions"
    assert tasks["extract-features"]["inputs"]["parameters"]["parts"]["runtimeValue"]["constant"] == 3


def shape_of(text: bytes) -> tuple[dict, dict, dict]:
    """Of the pretraining task of a document: its inputs, its container's resources, its pod."""
    spec, platform = yaml.safe_load_all(text)
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    resources = spec["deploymentSpec"]["executors"]["exec-pretrain-encoder"]["container"]["resources"]
    return tasks_of(spec)["pretrain-encoder"]["inputs"]["parameters"], resources, pods["exec-pretrain-encoder"]


def test_several_gpus_have_a_process_each_and_as_much_again_of_the_rest(document, on_gpus):
    single, many = shape_of(document), shape_of(on_gpus)
    assert "processes" not in single[0]
    assert many[0]["processes"]["runtimeValue"]["constant"] == 8
    assert many[1]["accelerator"]["resourceCount"] == "8"
    for amount in ("cpuRequest", "memoryLimit"):
        assert many[1][amount] == pytest.approx(8 * single[1][amount])
    assert many[2]["emptyDirMounts"][0]["sizeLimit"] == "128Gi"


def test_several_nodes_are_a_job_that_a_light_task_waits_for(document, on_nodes):
    inputs, resources, pod = shape_of(on_nodes)
    assert "accelerator" not in resources
    assert resources["resourceCpuRequest"] == "1"
    assert not {"tolerations", "emptyDirMounts"} & pod.keys()
    job = json.loads(inputs["job"]["runtimeValue"]["constant"])
    job = fill_in(job, "pretrain-1", "1", ["-m", "contrique.cli"])
    assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (4, 8, "contrique-python:0.1.0")
    assert inputs["to"]["runtimeValue"]["constant"] == "s3://contrique/pretraining"
    assert int(pod["activeDeadlineSeconds"]) > job["spec"]["activeDeadlineSeconds"], "the task must outlast its job"
    assert {entry["name"] for entry in pod["fieldPathAsEnv"]} == {"CONTRIQUE_RUN", NAMESPACE}
    assert NAMESPACE not in {entry["name"] for entry in shape_of(document)[2]["fieldPathAsEnv"]}
    variables = {entry["name"] for entry in trainer["env"]}
    secrets = {entry["envVar"] for secret in pod["secretAsEnv"] for entry in secret["keyToEnv"]}
    endpoints = {entry["envVar"] for each in pod["configMapAsEnv"] for entry in each["keyToEnv"]}
    assert variables == secrets | endpoints | {"CONTRIQUE_RUN"}, "the machines reach what the task reaches"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "0"], "argument --gpus: 0 is not from 1 to 10000"),
        (["--nodes", "2"], "--nodes: give --to s3://BUCKET/PREFIX too"),
        (["--nodes", "2", "--to", "/here"], "--nodes: give --to s3://"),
        (["--to", "s3://b/p"], "--to is for --nodes of 2 or more"),
        (["--pipeline", "scoring", "--gpus", "2"], "--gpus: the scoring pipeline is not fanned out"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(options, message, tmp_path, capsys):
    assert main(["compile", "--out", str(tmp_path / "none.yaml"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none.yaml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "7"], "1 nodes x 7 GPUs: pretrain.images=60 does not divide by them"),
        (["--nodes", "2", "--to", "s3://b/p"], "--nodes: several machines are a cluster's; use `submit`"),
    ],
)
def test_runs_that_cannot_work_are_refused(options, message, tmp_path, capsys):
    assert main(["run", "--data", str(tmp_path), "--runs", str(tmp_path / "runs"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


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
    with_gpu = {name for name, container in containers.items() if "accelerator" in container["resources"]}
    assert with_gpu == {"pretrain-encoder", "extract-features"}


DOCUMENTS = ("training", "scoring", "fanned out", "training_on_gpus", "training_on_nodes")


def parts(text: bytes) -> tuple[dict, dict, dict]:
    """Of a document: its tasks, its executors and their pods, the last two by component."""
    spec, platform = yaml.safe_load_all(text)
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return (
        tasks_of(spec),
        {name.removeprefix("exec-"): entry["container"] for name, entry in spec["deploymentSpec"]["executors"].items()},
        {name.removeprefix("exec-"): entry for name, entry in pods.items()},
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_task_that_fails_in_its_last_hour_is_tried_again(name, documents):
    """Argo counts `backoffMaxDuration` from the beginning of the first try, and cuts later tries off by it."""
    tasks, _, pods = parts(documents[name])
    count = 0
    for label, task in tasks.items():
        if policy := task.get("retryPolicy"):
            tries, deadline = policy["maxRetryCount"], int(pods[label]["activeDeadlineSeconds"])
            first, longest = (int(policy[key].removesuffix("s")) for key in ("backoffDuration", "backoffMaxDuration"))
            pauses = sum(first * policy["backoffFactor"] ** k for k in range(tries))
            assert longest >= (tries + 1) * deadline + pauses, label
            assert (tries, first) == (2, 60), "what docs/kubeflow.md says"
            count += 1
    assert count


def test_what_would_be_refused_again_is_not_tried_again(documents):
    """Every other stage is tried three times, as docs/kubeflow.md says."""
    retryable = {name for text in documents.values() for name, task in parts(text)[0].items() if "retryPolicy" in task}
    stages = {name.replace("_", "-") for name in STAGES}
    assert stages - retryable == {"accept-data", "decide-promotion", "detect-drift", "raise-alarm"}


# Gigabytes of each output at the sizes of docs/scaling.md: 140,000 photographs in 126 versions and 620,000 of cameras,
# of .35 MB each; 10,000 rows of 4,096 features. What is not here is small.
GIGABYTES = {"dataset": 760_000 * 0.35e-3, "distorted": 6_200, "features": 0.2, "encoder": 0.2, "scores": 1}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_artifacts_travel_in_well_under_a_tasks_time(name, documents):
    """At 100 MB/s, in and out; a task on several machines hands the pictures on to S3 besides."""
    tasks, _, pods = parts(documents[name])
    for label, deadline in ((label, int(pod["activeDeadlineSeconds"])) for label, pod in pods.items()):
        component = next(iter(yaml.safe_load_all(documents[name])))["components"][f"comp-{label}"]
        outputs = component.get("outputDefinitions", {}).get("artifacts", {})
        inputs = tasks[label].get("inputs", {}).get("artifacts", {})
        sources = {source(artifact) for artifact in inputs.values()}
        gigabytes = sum(GIGABYTES.get(output, 0.1) for output in [*sources, *outputs])
        assert gigabytes * 1e9 / 100e6 <= deadline / 2, f"{label}: {gigabytes:.0f} GB in {deadline / 3600:.0f} h"


def source(artifact: dict) -> str:
    """The name of the output that an input is; a loop's, and its body's, without what KFP puts around it."""
    text = artifact.get("taskOutputArtifact", {}).get("outputArtifactKey") or artifact["componentInputArtifact"]
    return next((name for name in GIGABYTES if text.endswith(name)), text)


def test_only_stages_that_work_on_the_pictures_download_them(documents):
    """They may be terabytes: what comes after the judgement takes an extract."""
    for text in documents.values():
        for label, task in parts(text)[0].items():
            inputs = task.get("inputs", {}).get("artifacts", {})
            if label.replace("-", "_") in STAGES and {source(artifact) for artifact in inputs.values()} & {
                "dataset",
                "distorted",
            }:
                assert label in {
                    "validate-data",
                    "synthesize-distortions",
                    "gather-distortions",
                    "pretrain-encoder",
                    "extract-features",
                    "evaluate-model",
                }, label


@pytest.mark.parametrize("name", DOCUMENTS)
def test_kfp_and_argo_can_carry_the_document(name, documents):
    """Argo takes `{{` for its own, but for `{{$`; a component travels in one argument of a process, and in a pod."""
    spec, _ = yaml.safe_load_all(documents[name])
    assert not re.findall(r"\{\{[^$]", json.dumps(spec))
    for label, component in spec["components"].items():
        assert len(json.dumps(component)) < 128 * 1024, label
    for label, executor in spec["deploymentSpec"]["executors"].items():
        assert len(json.dumps(executor)) < 128 * 1024, label


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_leaves_a_group_of_tasks_is_made_in_it(name, documents):
    """OneOf and Collected: the backend looks for the producer among the tasks of the same DAG."""
    spec, _ = yaml.safe_load_all(documents[name])
    for component in [spec["root"], *spec["components"].values()]:
        dag = component.get("dag", {})
        tasks = dag.get("tasks", {})
        for output in dag.get("outputs", {}).get("parameters", {}).values():
            selectors = output.get("valueFromOneof", {}).get("parameterSelectors") or [output["valueFromParameter"]]
            assert {selector["producerSubtask"] for selector in selectors} <= tasks.keys()
        for output in dag.get("outputs", {}).get("artifacts", {}).values():
            assert {selector["producerSubtask"] for selector in output["artifactSelectors"]} <= tasks.keys()
        for task in tasks.values():
            for kind, key in (("artifacts", "taskOutputArtifact"), ("parameters", "taskOutputParameter")):
                for origin in task.get("inputs", {}).get(kind, {}).values():
                    if key in origin:
                        assert origin[key]["producerTask"] in tasks


def test_a_list_of_artifacts_goes_to_its_task_without_entering_a_group(fanned_out):
    """As an input of the group it would arrive as its last element (kubeflow/pipelines#13901).

    And loops are over constants: over a parameter they fail within an exit handler (kubeflow/pipelines#12390).
    """
    tasks = parts(fanned_out)[0]
    for label in ("gather-distortions", "gather-features"):
        assert "taskOutputArtifact" in tasks[label]["inputs"]["artifacts"]["parts"], label
    loops = [task["parameterIterator"]["items"] for task in tasks.values() if "parameterIterator" in task]
    assert loops == [{"raw": "[0, 1, 2]"}] * 2


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_variable_of_a_task_is_one_that_the_launcher_reads(name, documents):
    """It runs in the task's container: with `fromEnv` in the store's settings it takes AWS_* for its own uploads."""
    _, executors, pods = parts(documents[name])
    names = {entry["name"] for container in executors.values() for entry in container.get("env", [])}
    for pod in pods.values():
        for kind in ("secretAsEnv", "configMapAsEnv"):
            names |= {entry["envVar"] for each in pod.get(kind, []) for entry in each["keyToEnv"]}
        names |= {entry["name"] for entry in pod.get("fieldPathAsEnv", [])}
    assert {"MLFLOW_TRACKING_URI", "CONTRIQUE_S3_ENDPOINT", "CONTRIQUE_S3_SECRET_KEY"} <= names
    assert not [each for each in names if each.startswith(("AWS_", "MINIO_", "MLFLOW_S3_"))]


def test_caching_is_chosen_stage_by_stage(tasks):
    cacheable = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    stages = {name for name in tasks if name.replace("-", "_") in STAGES}
    assert cacheable & stages == {name for name in stages if STAGES[name.replace("-", "_")].cache}
    assert not cacheable & {"pin-data", "evaluate-model", "register-model", "keep-champion", "close-run"}
    assert {"fetch-data", "pretrain-encoder"} <= cacheable


def test_the_pin_is_what_fetching_is_cached_by(tasks):
    """It names the content; without it among the inputs, the cache would serve old data under the same name."""
    parameters = tasks["fetch-data"]["inputs"]["parameters"]
    assert parameters["pin"]["taskOutputParameter"]["producerTask"] == "pin-data"


def test_every_task_has_an_end(pods, containers):
    assert pods.keys() == containers.keys()
    assert all(int(pod["activeDeadlineSeconds"]) > 0 for pod in pods.values())


def test_credentials_come_from_secrets_alone(spec, pods):
    env = {entry["envVar"] for secret in pods["register-model"]["secretAsEnv"] for entry in secret["keyToEnv"]}
    assert env == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}, "models go through MLflow's server"
    endpoints = {entry["envVar"] for each in pods["register-model"]["configMapAsEnv"] for entry in each["keyToEnv"]}
    assert "MLFLOW_TRACKING_URI" in endpoints
    env = {entry["envVar"] for secret in pods["fetch-data"]["secretAsEnv"] for entry in secret["keyToEnv"]}
    assert env == {"CONTRIQUE_S3_ACCESS_KEY", "CONTRIQUE_S3_SECRET_KEY"}
    assert "secretAsEnv" not in pods["fit-regressor"], "a stage is given no credentials that it has no use for"
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert not [name for name in parameters if "secret" in name or "key" in name or "password" in name]


def test_parameters_are_typed_and_described(spec):
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    types = {name: parameter["parameterType"] for name, parameter in parameters.items()}
    assert types == {
        "data": "STRING",
        "encoder": "STRING",
        "revision": "STRING",
        "pristine": "LIST",
        "authentic": "LIST",
        "profile": "STRING",
        "overrides": "STRUCT",
        "seed": "NUMBER_INTEGER",
    }
    assert all(parameter["description"] for parameter in parameters.values())
    for name, parameter in parameters.items():
        assert "\n" not in parameter["description"].strip(), f"{name}: one line"
        assert len(parameter["description"]) < 120, name
        if parameter["parameterType"] in ("LIST", "STRUCT"):
            example = parameter["description"].rstrip(".").partition("such as ")[2]
            assert isinstance(json.loads(example), list if parameter["parameterType"] == "LIST" else dict), name


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
    text = compile_pipeline(tmp_path / "pinned.yaml", CONTRIQUE_IMAGE=digest)
    executors = next(yaml.safe_load_all(text))["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {digest}


def test_nothing_is_installed_when_a_task_starts(document):
    assert b"pip install" not in document
