"""What each stage asks of the cluster: every number in one place.

It stands here and not in `contrique.config` because it describes Kubernetes, not the science: `contrique` knows no
orchestrator, and none of these values changes a result.
"""

import re
from dataclasses import dataclass, replace

from kfp import dsl, kubernetes

from contrique.pretraining.launch import NAMESPACE

GPU = "nvidia.com/gpu"

# Kubernetes Secrets and the ConfigMap that a cluster provides (docs/kubeflow.md); nothing of them is a parameter.
# No name begins with AWS_: KFP's launcher runs in the task's container, and may read those for a store of its own.
S3_SECRET = ("contrique-s3", {"access-key": "CONTRIQUE_S3_ACCESS_KEY", "secret-key": "CONTRIQUE_S3_SECRET_KEY"})
MLFLOW_SECRET = ("contrique-mlflow", {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"})
S3_ENDPOINTS = {"s3-endpoint": "CONTRIQUE_S3_ENDPOINT", "s3-region": "CONTRIQUE_S3_REGION"}
MLFLOW_ENDPOINTS = {
    "mlflow-uri": "MLFLOW_TRACKING_URI",
    "mlflow-ui": "CONTRIQUE_MLFLOW_UI",  # the same server, as a person's browser reaches it
}
ENDPOINTS = "contrique-endpoints"


@dataclass(frozen=True)
class Stage:
    """Resources of one task.

    Attributes:
        title: what the run page calls the task.
        cpu, memory: requested; memory is the limit too, so that a leak kills the task and not its neighbours.
        hours: after which a try of the task is stopped: what it computes, and at least twice what its artifacts travel
            at 100 MB/s, at the sizes of docs/scaling.md.
        gpus: how many, of the kind GPU.
        shm: size of /dev/shm in memory, counted in `memory`; the container default of 64 MiB kills DataLoader workers.
        retries: after a failure, with exponential backoff; 0 where a second try can only fail alike.
        cache: whether the same inputs may reuse an earlier run's outputs.
        because: why it is cached or not.
        s3, mlflow: whether the task is given credentials and endpoint; MLflow's server hands artifacts on itself.
        jobs: whether it starts jobs, and so must know its namespace.
    """

    title: str
    cpu: str
    memory: str
    hours: int
    cache: bool
    because: str
    gpus: int = 0
    shm: str = ""
    retries: int = 2
    s3: bool = False
    mlflow: bool = False
    jobs: bool = False


STAGES: dict[str, Stage] = {
    "pin_data": Stage("Pin the data", "1", "1Gi", 1, False, "the same name can hold other data today", s3=True),
    "pin_encoder": Stage(
        "Pin the encoder", "1", "2Gi", 1, False, "the same name can hold another one today", s3=True, mlflow=True
    ),
    "fetch_data": Stage(
        "Fetch and prove the data", "2", "4Gi", 12, True, "the pin is an input, and names the content", s3=True
    ),
    "validate_data": Stage("Validate the data", "4", "8Gi", 6, True, "the same pictures meet the same expectations"),
    "accept_data": Stage("Accept the data", "1", "1Gi", 1, True, "a pure function of the findings", retries=0),
    "synthesize_distortions": Stage(
        "Synthesize distortions", "16", "16Gi", 48, True, "seeded: the same photographs give the same bytes"
    ),
    "gather_distortions": Stage("Gather the distortions", "4", "16Gi", 72, True, "as the parts"),
    "pretrain_encoder": Stage(
        "Pretrain the encoder",
        "12",
        "64Gi",
        96,
        True,
        "seeded, and the dearest stage by far",
        gpus=1,
        shm="16Gi",
        s3=True,
        mlflow=True,
    ),
    "extract_features": Stage(
        "Extract features", "8", "32Gi", 48, True, "a pure function of pictures and weights", gpus=1, shm="8Gi"
    ),
    "gather_features": Stage("Gather the features", "2", "32Gi", 2, True, "as the parts"),
    "fit_regressor": Stage("Fit the regressor", "4", "16Gi", 2, True, "a pure function of features and labels"),
    "evaluate_model": Stage(
        "Evaluate challenger and champion", "4", "16Gi", 48, False, "the champion may have changed", mlflow=True
    ),
    "decide_promotion": Stage(
        "Decide on promotion", "1", "2Gi", 1, False, "it follows the evaluation, which is never cached", retries=0
    ),
    "register_model": Stage(
        "Register the champion", "1", "4Gi", 1, False, "the registry must change in this run", mlflow=True
    ),
    "keep_champion": Stage("Keep the champion", "1", "2Gi", 1, False, "the hold belongs to this run", mlflow=True),
    "write_report": Stage("Write the report", "1", "4Gi", 1, False, "the report belongs to this run", mlflow=True),
    "close_run": Stage("Close the MLflow run", "1", "2Gi", 1, False, "it belongs to this run", mlflow=True),
    "score_pictures": Stage(
        "Score the pictures",
        "8",
        "16Gi",
        12,
        False,
        "the same name can hold other pictures today, and the champion may have changed",
        gpus=1,
        s3=True,
        mlflow=True,
    ),
    "detect_drift": Stage("Look for drift", "2", "8Gi", 1, True, "a pure function of the scores", retries=0),
    "raise_alarm": Stage("Raise the alarm", "1", "1Gi", 1, False, "the alarm belongs to this run", retries=0),
}
BACKOFF_SECONDS = 60  # before the second try; twice as long before each further one
_WAITING_HOURS = 24  # for a GPU: a pod that the quota holds back has begun, by Argo's clock


def pretraining(gpus: int = 1, nodes: int = 1) -> Stage:
    """The stage of pretraining, in the shape that was asked for.

    Args:
        gpus: of the task's own pod; each has its process, which starts loaders of its own and so needs as much again.
        nodes: with more than one the task has no GPU, but waits for a job, and has more hours: data must travel, too.
    """
    stage = STAGES["pretrain_encoder"]
    if nodes > 1:
        return replace(stage, cpu="1", memory="4Gi", hours=stage.hours + 12, gpus=0, shm="", jobs=True)
    cpu, memory, shm = (_times(gpus, amount) for amount in (stage.cpu, stage.memory, stage.shm))
    return replace(stage, cpu=cpu, memory=memory, shm=shm, gpus=gpus)


def _patience(stage: Stage) -> int:
    """Seconds after which nothing of a task is tried any more.

    Argo counts them from the beginning of the first try and ends later tries by them, too; so they must hold every try
    to its last hour, and the pauses between.
    """
    pauses = BACKOFF_SECONDS * (2**stage.retries - 1)
    return ((stage.retries + 1) * stage.hours + _WAITING_HOURS) * 3600 + pauses


def _times(factor: int, amount: str) -> str:
    """A quantity of Kubernetes, such as 64Gi, several times."""
    return re.sub(r"^\d+", lambda number: str(factor * int(number[0])), amount)


def equipped(task: dsl.PipelineTask, stage: Stage | None = None) -> dsl.PipelineTask:
    """The task with the resources, caching, retries, credentials and title of its stage, or of the one given."""
    stage = stage or STAGES[task.component_spec.name.replace("-", "_")]
    task.set_display_name(stage.title).set_caching_options(stage.cache)
    task.set_cpu_request(stage.cpu).set_memory_request(stage.memory).set_memory_limit(stage.memory)
    kubernetes.set_timeout(task, stage.hours * 3600)
    if stage.retries:
        task.set_retry(
            stage.retries,
            backoff_duration=f"{BACKOFF_SECONDS}s",
            backoff_factor=2.0,
            backoff_max_duration=f"{_patience(stage)}s",
        )
    if stage.gpus:
        task.set_accelerator_type(GPU).set_accelerator_limit(stage.gpus)
        kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
    if stage.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=stage.shm)
    if stage.s3:
        kubernetes.use_secret_as_env(task, *S3_SECRET)
        kubernetes.use_config_map_as_env(task, ENDPOINTS, S3_ENDPOINTS)
    if stage.mlflow:
        kubernetes.use_secret_as_env(task, *MLFLOW_SECRET, optional=True)
        kubernetes.use_config_map_as_env(task, ENDPOINTS, MLFLOW_ENDPOINTS)
        # An environment variable and not a parameter: a parameter that changes with each run would defeat the cache.
        kubernetes.use_field_path_as_env(task, "CONTRIQUE_RUN", "metadata.labels['pipeline/runid']")
    if stage.jobs:
        kubernetes.use_field_path_as_env(task, NAMESPACE, "metadata.namespace")
    return task
