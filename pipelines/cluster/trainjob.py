"""A TrainJob of Kubeflow Trainer: pretraining on several machines.

Each pod fetches the pictures to its own disk; checkpoints, the encoder and the history go to S3. A pod that was moved
goes on from the last checkpoint.
"""

from typing import Any

from pipelines.cluster import resources

CONTAINER = "node"  # what the runtime torch-distributed calls its container and its replicated job
RUNTIME = "torch-distributed"  # of Kubeflow Trainer; runs the command on every node with torchrun's variables set


def manifest(image: str, *, nodes: int, gpus: int) -> dict[str, Any]:
    """A pretraining job that `contrique.pretraining.launch.fill_in` completes by its name, arguments and MLflow run.

    Args:
        image: the project's image, target gpu.
        nodes: machines.
        gpus: on each of them; one process each.
    Returns:
        a TrainJob, ready for YAML or JSON.
    """
    stage = resources.pretraining(gpus)
    amounts = {"cpu": stage.cpu, "memory": stage.memory, resources.GPU: str(gpus)}
    # Istio's sidecar keeps a job from ending, and deploy/network.yaml lets none out
    outside = {"labels": {"sidecar.istio.io/inject": "false"}}
    pod = {
        "tolerations": [{"key": resources.GPU, "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": stage.shm}}],
        "containers": [{"name": CONTAINER, "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}],
    }
    job = {"name": CONTAINER, "template": {"spec": {"template": {"metadata": outside, "spec": pod}}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "spec": {
            "runtimeRef": {"name": RUNTIME},
            "activeDeadlineSeconds": stage.hours * 3600,
            "trainer": {
                "image": image,
                "numNodes": nodes,
                "numProcPerNode": gpus,
                "command": ["torchrun"],
                "env": _environment(),
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


def _environment() -> list[dict[str, Any]]:
    """Credentials and endpoints, by reference."""
    secrets = [(*resources.S3_SECRET, False), (*resources.MLFLOW_SECRET, True)]
    variables: list[dict[str, Any]] = []
    for secret, keys, optional in secrets:
        for key, variable in keys.items():
            reference = {"name": secret, "key": key} | ({"optional": True} if optional else {})
            variables.append({"name": variable, "valueFrom": {"secretKeyRef": reference}})
    for keys in (resources.S3_ENDPOINTS, resources.MLFLOW_ENDPOINTS):
        for key, variable in keys.items():
            reference = {"name": resources.ENDPOINTS, "key": key}
            variables.append({"name": variable, "valueFrom": {"configMapKeyRef": reference}})
    return variables
