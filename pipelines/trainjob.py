"""A TrainJob of Kubeflow Trainer: pretraining on several machines, as a manifest for `kubectl apply`.

Each pod fetches the photographs to its own disk and makes the distorted pictures as they are needed; checkpoints, the
encoder and the history go to S3. A pod that was moved goes on from the last checkpoint.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import resources

CONTAINER = "node"  # what the runtime torch-distributed calls its container and its replicated job
RUNTIME = "torch-distributed"  # of Kubeflow Trainer; runs the command on every node with torchrun's variables set
FOLDER = "/tmp/run"


def manifest(
    name: str,
    image: str,
    *,
    nodes: int,
    gpus: int,
    pristine: Sequence[str],
    authentic: Sequence[str],
    out: str,
    profile: str = "paper",
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The manifest of a pretraining job.

    Args:
        name: of the job, and of its MLflow run.
        image: the project's image, target gpu.
        nodes: machines.
        gpus: on each of them; one process each.
        pristine, authentic: `s3://` prefixes of photographs, to distort and to take as they are.
        out: `s3://` prefix for `checkpoints/`, `encoder.safetensors` and `history.jsonl`.
        profile, overrides, seed: as the pipeline `training` takes them.
    Returns:
        a TrainJob, ready for YAML or JSON.
    """
    stage = resources.STAGES["pretrain_encoder"]
    settings: dict[str, Any] = {"pretrain.synthesis": "on_the_fly", "pretrain.checkpoints": f"{out}/checkpoints"}
    settings |= overrides or {}
    words = ["-m", "contrique.cli", "pretrain", "--profile", profile, "--seed", str(seed), "--out", FOLDER]
    words += ["--publish", out]
    for option, places in (("--pristine", pristine), ("--authentic", authentic)):
        words += [word for place in places for word in (option, place)]
    for option, value in settings.items():
        words += ["--set", f"{option}={value if isinstance(value, str) else json.dumps(value)}"]
    amounts = {"cpu": stage.cpu, "memory": stage.memory, resources.GPU: str(gpus)}
    pod = {
        "tolerations": [{"key": resources.GPU, "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": stage.shm}}],
        "containers": [{"name": CONTAINER, "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}],
    }
    job = {"name": CONTAINER, "template": {"spec": {"template": {"spec": pod}}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "activeDeadlineSeconds": stage.hours * 3600,
            "trainer": {
                "image": image,
                "numNodes": nodes,
                "numProcPerNode": gpus,
                "command": ["torchrun"],
                "args": words,
                "env": _environment(name),
                "resourcesPerNode": {"requests": amounts, "limits": {k: v for k, v in amounts.items() if k != "cpu"}},
            },
            "runtimePatches": [
                {
                    "manager": "contrique.pipelines/trainjob",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
                }
            ],
        },
    }


def _environment(run: str) -> list[dict[str, Any]]:
    """Credentials and endpoints, by reference, and the name of the MLflow run."""
    secrets = [(*resources.S3_SECRET, False), (*resources.MLFLOW_SECRET, True)]
    found: list[dict[str, Any]] = [{"name": "CONTRIQUE_RUN", "value": run}]
    for secret, keys, optional in secrets:
        for key, variable in keys.items():
            reference = {"name": secret, "key": key} | ({"optional": True} if optional else {})
            found.append({"name": variable, "valueFrom": {"secretKeyRef": reference}})
    for keys in (resources.S3_ENDPOINTS, resources.MLFLOW_ENDPOINTS):
        for key, variable in keys.items():
            reference = {"name": resources.ENDPOINTS, "key": key}
            found.append({"name": variable, "valueFrom": {"configMapKeyRef": reference}})
    return found
