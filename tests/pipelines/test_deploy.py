"""The Kubernetes side as kustomize builds it: valid against Kubernetes's schemas, and agreeing with the pipelines."""

import copy
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import kubernetes_validate
import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request

from contrique.pretraining import launch
from contrique.pretraining.launch import _KIND
from pipelines.__main__ import build_parser
from pipelines.cluster import resources

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.37"
NAMESPACES = ("plain", "profile")
SIDECAR = "sidecar.istio.io/inject"


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """Each object of `kubectl kustomize deploy` by Kind/name."""
    kubectl = Path(sys.executable).with_name("kubectl")
    process = subprocess.run([kubectl, "kustomize", ROOT / "deploy"], capture_output=True, text=True, check=True)
    return {
        f"{manifest['kind']}/{manifest['metadata']['name']}": manifest
        for manifest in yaml.safe_load_all(process.stdout)
    }


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    """The pod template of a workload."""
    spec = manifest["spec"]["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else manifest["spec"]
    return spec["template"]


@pytest.fixture(scope="module")
def workloads(manifests) -> dict[str, dict[str, Any]]:
    return {
        manifest["metadata"]["name"]: pod(manifest)
        for manifest in manifests.values()
        if "template" in str(manifest.get("spec", ""))
    }


def container(template: dict[str, Any]) -> dict[str, Any]:
    (only,) = template["spec"]["containers"]
    return only


def option(template: dict[str, Any], name: str) -> str:
    (value,) = [arg.partition("=")[2] for arg in container(template)["args"] if arg.startswith(f"--{name}=")]
    return value


def test_everything_is_there(manifests, workloads):
    assert set(workloads) == {"postgres", "seaweedfs", "mlflow", "training"}
    kinds = {name.partition("/")[0] for name in manifests}
    assert {"ResourceQuota", "NetworkPolicy", "Role", "RoleBinding", "ServiceAccount", "ConfigMap"} <= kinds
    assert {manifest["metadata"]["namespace"] for manifest in manifests.values()} == {"contrique"}


def test_the_namespace_keeps_the_label_that_kubeflow_admits_it_by(manifests):
    """Kubeflow's policies admit namespaces with `part-of: kubeflow-profile`, which a Profile's controller sets."""
    spaces = [manifest for manifest in manifests.values() if manifest["kind"] == "Namespace"]
    spaces += [yaml.safe_load((ROOT / "deploy" / "namespace" / f"{kind}.yaml").read_text()) for kind in NAMESPACES]
    assert {manifest["metadata"]["name"] for manifest in spaces} == {"contrique"}
    assert not [
        manifest for manifest in spaces if "app.kubernetes.io/part-of" in manifest["metadata"].get("labels", {})
    ]
    kubernetes_validate.validate(
        next(manifest for manifest in spaces if manifest["kind"] == "Namespace"), KUBERNETES, strict=True
    )


def test_no_pod_gets_an_istio_sidecar(manifests, workloads):
    assert {name: template["metadata"]["labels"].get(SIDECAR) for name, template in workloads.items()} == dict.fromkeys(
        workloads, "false"
    )
    claims = [
        claim for manifest in manifests.values() for claim in manifest.get("spec", {}).get("volumeClaimTemplates", [])
    ]
    assert not [claim for claim in claims if "labels" in claim["metadata"]], "a StatefulSet may not change them"


def test_valid_against_the_schemas(manifests):
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_schemas_find_a_mistake(manifests):
    """Or the test above could pass on anything."""
    wrong = copy.deepcopy(manifests["Deployment/mlflow"])
    pod(wrong)["spec"]["containers"][0]["imagePullpolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullpolicy"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_no_secret_is_in_the_tree(manifests):
    assert not [name for name in manifests if name.startswith("Secret/")]
    secret_words = ("PASSWORD", "SECRET", "ACCESS_KEY")
    for template in map(
        pod, (manifest for manifest in manifests.values() if manifest["kind"] in ("Deployment", "StatefulSet"))
    ):
        for variable in container(template)["env"]:
            if any(word in variable["name"] for word in secret_words):
                assert "secretKeyRef" in variable["valueFrom"], variable["name"]


def test_the_tasks_find_their_configmap_and_secrets(manifests, workloads):
    data = manifests[f"ConfigMap/{resources.ENDPOINTS}"]["data"]
    assert resources.S3_ENDPOINTS.keys() | resources.MLFLOW_ENDPOINTS.keys() <= data.keys()
    references = {
        (reference["name"], reference["key"])
        for template in workloads.values()
        for variable in container(template)["env"]
        if (reference := variable.get("valueFrom", {}).get("secretKeyRef"))
    }
    name, keys = resources.S3_SECRET
    secrets = {(secret, key) for secret in (name, "contrique-models") for key in keys}
    assert references == secrets | {("contrique-postgres", "password")}


@pytest.mark.parametrize(("key", "service"), [("s3-endpoint", "seaweedfs"), ("mlflow-uri", "mlflow")])
def test_endpoints_lead_to_services(manifests, workloads, key, service):
    host, _, port = manifests[f"ConfigMap/{resources.ENDPOINTS}"]["data"][key].removeprefix("http://").partition(":")
    assert host == f"{service}.contrique.svc.cluster.local"
    ports = manifests[f"Service/{service}"]["spec"]["ports"]
    assert [entry["port"] for entry in ports] == [int(port)]
    assert int(port) in [entry["containerPort"] for entry in container(workloads[service])["ports"]]
    selector = manifests[f"Service/{service}"]["spec"]["selector"]
    assert selector.items() <= workloads[service]["metadata"]["labels"].items()


def test_mlflow_accepts_the_names_it_is_called_by(manifests, workloads):
    """By MLflow's own check; a name that is not listed gets 403."""
    hosts = option(workloads["mlflow"], "allowed-hosts").split(",")
    uri = manifests[f"ConfigMap/{resources.ENDPOINTS}"]["data"]["mlflow-uri"]
    assert is_allowed_host_header(hosts, uri.removeprefix("http://"))
    for name in ("localhost:5000", "127.0.0.1:5000"):
        assert is_allowed_host_header(hosts, name), "a port-forward"
    assert not is_allowed_host_header(hosts, "evil.example.org")


def test_the_ui_of_mlflow_may_post_from_where_it_is_said_to_be(manifests, workloads):
    """By MLflow's own check. Behind an ingress its origin must be listed, and there is a place for it."""
    origins = option(workloads["mlflow"], "cors-allowed-origins").split(",")
    ui = manifests[f"ConfigMap/{resources.ENDPOINTS}"]["data"]["mlflow-ui"]
    assert ui in origins
    assert not should_block_cors_request(ui, "POST", origins)
    assert should_block_cors_request("https://mlflow.example.org", "POST", origins), "until it is added"
    assert not should_block_cors_request("https://mlflow.example.org", "POST", [*origins, "https://mlflow.example.org"])


def test_mlflow_understands_its_options(workloads):
    help_text = subprocess.run(
        [Path(sys.executable).with_name("mlflow"), "server", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for argument in container(workloads["mlflow"])["args"]:
        assert argument.partition("=")[0] in help_text
    assert "MLFLOW_BACKEND_STORE_URI" in [entry["name"] for entry in container(workloads["mlflow"])["env"]]


def test_seaweedfs_understands_its_options(workloads):
    process = subprocess.run(
        [Path(sys.executable).with_name("weed"), "server", "-h"], capture_output=True, text=True, check=False
    )
    for argument in container(workloads["seaweedfs"])["args"]:
        name = argument.partition("=")[0]
        assert f"  {name}" in process.stdout + process.stderr, name


KEYS = {
    "TASKS_ACCESS_KEY": "tasks",
    "TASKS_SECRET_KEY": "tasks-secret",
    "MODELS_ACCESS_KEY": "models",
    "MODELS_SECRET_KEY": "models-secret",
}


def started(folder: Path, keys: dict[str, str]) -> tuple["subprocess.Popen[bytes]", str]:
    """`deploy/seaweedfs.sh` as its pod starts it, on ports of this test, and the address of its S3."""
    parts = ("s3", "master", "volume", "filer")
    ports = {name: free_port() for part in parts for name in (f"{part}.port", f"{part}.port.grpc")}
    options = [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    options += ["-volume.max=20", "-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-volume.preStopSeconds=0"]
    options += [f"-{name}={port}" for name, port in ports.items()]
    command = ["sh", ROOT / "deploy" / "seaweedfs.sh", *options]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    master = f"{ports['master.port']}.{ports['master.port.grpc']}"
    environment = {"PATH": path, "HOME": str(folder), "MASTER_PORT": master} | keys
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0
    )
    return server, f"http://127.0.0.1:{ports['s3.port']}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Iterator[dict[str, Any]]:
    """Clients of a store with both buckets, by whose keys they have."""
    server, address = started(tmp_path_factory.mktemp("s3"), KEYS)
    threading.Thread(target=server.stderr.read, daemon=True).start()
    settings = {"endpoint_url": address, "region_name": "us-east-1"}
    try:
        clients = {
            who: boto3.client("s3", aws_access_key_id=who, aws_secret_access_key=f"{who}-secret", **settings)
            for who in ("tasks", "models")
        }
        deadline = time.monotonic() + 120
        while not all(try_write(client, bucket) for client, bucket in zip(clients.values(), BUCKETS, strict=True)):
            assert time.monotonic() < deadline, "the buckets are not there"
            time.sleep(0.2)
        yield clients
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


BUCKETS = ("contrique", "contrique-models")


def try_write(client: Any, bucket: str) -> bool:
    try:
        client.put_object(Bucket=bucket, Key="kept", Body=b"kept")
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("who", "own", "other"), [("tasks", *BUCKETS), ("models", *reversed(BUCKETS))])
def test_whoever_has_one_key_of_the_store_has_not_the_other_bucket(stores, who, own, other):
    """So a task cannot put another encoder in the place of a registered one."""
    client = stores[who]
    client.put_object(Bucket=own, Key="a/b", Body=b"mine")
    assert client.get_object(Bucket=own, Key="a/b")["Body"].read() == b"mine"
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket=own, Prefix="a/")["Contents"]] == ["a/b"]
    attempts = {
        "write": lambda: client.put_object(Bucket=other, Key="kept", Body=b"mine"),
        "read": lambda: client.get_object(Bucket=other, Key="kept"),
        "delete": lambda: client.delete_object(Bucket=other, Key="kept"),
        "copy": lambda: client.copy_object(Bucket=own, Key="copy", CopySource=f"{other}/kept"),
        "list": lambda: client.list_objects_v2(Bucket=other),
        "make a bucket": lambda: client.create_bucket(Bucket="third"),
    }
    for what, attempt in attempts.items():
        with pytest.raises(botocore.exceptions.ClientError) as error:
            attempt()
        assert error.value.response["Error"]["Code"] == "AccessDenied", what


@pytest.mark.parametrize("secret", ["", 'a"b', "a b"])
def test_the_store_does_not_start_with_a_secret_that_its_configuration_cannot_hold(tmp_path, secret):
    server, _ = started(tmp_path, KEYS | {"MODELS_SECRET_KEY": secret})
    error = server.communicate(timeout=60)[1].decode()
    assert server.returncode == 1
    assert error.startswith("error: MODELS_SECRET_KEY is empty, or holds other characters"), error


def test_tasks_and_models_have_different_keys(workloads):
    """What a task is given opens nothing that MLflow keeps models in."""
    name, _ = resources.S3_SECRET
    keys = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"]["name"]
        for variable in container(workloads["mlflow"])["env"]
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    assert name not in keys.values()
    assert option(workloads["mlflow"], "artifacts-destination").startswith(f"s3://{BUCKETS[1]}/")


def test_runs_keep_their_artifacts_in_the_products_bucket(manifests):
    """By keys of a Secret: with `fromEnv` the launcher would use whatever the task's environment holds."""
    data = manifests["ConfigMap/kfp-launcher"]["data"]
    assert data["defaultPipelineRoot"].startswith(f"s3://{BUCKETS[0]}/")
    (kind,) = yaml.safe_load(data["providers"]).values()
    default = kind["default"]
    endpoint = manifests[f"ConfigMap/{resources.ENDPOINTS}"]["data"]["s3-endpoint"]
    assert (default["endpoint"], default["disableSSL"]) == (endpoint, endpoint.startswith("http://"))
    name, keys = resources.S3_SECRET
    reference = default["credentials"]["secretRef"]
    assert default["credentials"]["fromEnv"] is False
    assert (reference["secretName"], {reference["accessKeyKey"], reference["secretKeyKey"]}) == (name, keys.keys())


def test_pods_are_confined(workloads):
    for name, template in workloads.items():
        assert template["spec"]["securityContext"]["runAsNonRoot"], name
        assert template["spec"]["automountServiceAccountToken"] is False, name
        context = container(template)["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["capabilities"]["drop"]) == (False, ["ALL"]), name
        assert context["readOnlyRootFilesystem"] is True, name
        assert container(template)["resources"].keys() == {"requests", "limits"}, name


def test_images_are_pinned(workloads):
    for name, template in workloads.items():
        _, colon, tag = container(template)["image"].rpartition(":")
        assert colon, name
        assert tag != "latest", name


def test_each_server_has_a_policy_and_only_mlflow_reaches_the_database(manifests, workloads):
    policies = {name: manifest["spec"] for name, manifest in manifests.items() if name.startswith("NetworkPolicy/")}
    for server in ("postgres", "seaweedfs", "mlflow"):
        spec = policies[f"NetworkPolicy/{server}"]
        assert spec["podSelector"]["matchLabels"].items() <= workloads[server]["metadata"]["labels"].items()
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    ((rule,),) = (entry["from"] for entry in policies["NetworkPolicy/postgres"]["ingress"])
    assert rule == {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mlflow"}}}
    for label in ("pipeline/runid", "jobset.sigs.k8s.io/jobset-name"):  # pods of runs, and of their TrainJobs
        of_runs = {"podSelector": {"matchExpressions": [{"key": label, "operator": "Exists"}]}}
        in_kubeflow = of_runs | {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}}
        for server in ("seaweedfs", "mlflow"):
            peers = policies[f"NetworkPolicy/{server}"]["ingress"][0]["from"]
            assert of_runs in peers
            assert in_kubeflow in peers, "where runs live without profiles"


def test_nobody_reaches_anything_that_no_policy_names(manifests, workloads):
    """Denied both ways by default; each pod, and each kind of pod that Kubeflow makes here, has a policy of its own."""
    deny = manifests["NetworkPolicy/default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    policies = [manifest["spec"] for name, manifest in manifests.items() if name.startswith("NetworkPolicy/")]
    selectors = [
        policy["podSelector"].get("matchLabels", {}) for policy in policies if "Ingress" in policy["policyTypes"]
    ]
    for name, template in workloads.items():
        assert any(labels and labels.items() <= template["metadata"]["labels"].items() for labels in selectors), name
    keys = {rule["key"] for policy in policies for rule in policy["podSelector"].get("matchExpressions", [])}
    assert {"pipeline/runid", "jobset.sigs.k8s.io/jobset-name"} <= keys
    assert {"app": "ml-pipeline-ui-artifact"} in selectors
    for policy in policies:
        for rule in policy.get("ingress", []):
            assert rule.get("from"), "from anywhere"


def test_runs_may_do_with_trainjobs_what_launch_does(manifests):
    (rule,) = manifests["Role/contrique-trainjobs"]["rules"]
    assert (rule["apiGroups"], rule["resources"]) == ([_KIND["group"]], [_KIND["plural"]])
    verbs = set(re.findall(r"self\.api\.(\w+)_namespaced_custom_object", inspect.getsource(launch)))
    assert set(rule["verbs"]) == verbs
    binding = manifests["RoleBinding/contrique-trainjobs"]
    assert binding["roleRef"]["name"] == "contrique-trainjobs"
    accounts = {(subject["name"], subject["namespace"]) for subject in binding["subjects"]}
    assert accounts == {("default-editor", "contrique"), ("pipeline-runner", "contrique")}


def test_the_quota_lets_one_run_through(manifests):
    (quota,) = (manifest["spec"]["hard"] for name, manifest in manifests.items() if name.startswith("ResourceQuota/"))
    assert int(quota[f"requests.{resources.GPU}"]) >= max(stage.gpus for stage in resources.STAGES.values())


def test_the_schedule_is_a_command_that_pipelines_understands(manifests, workloads):
    submit = container(workloads["training"])
    assert submit["command"][:3] == ["python", "-m", "pipelines"]
    options = build_parser().parse_args([*submit["command"][3:], *submit["args"]])
    assert options.namespace == "contrique"
    environment = {entry["name"]: entry["value"] for entry in submit["env"]}
    assert environment["CONTRIQUE_IMAGE"] == submit["image"]
    (mount,) = [entry for entry in submit["volumeMounts"] if entry["name"] == "token"]
    assert environment["KF_PIPELINES_SA_TOKEN_PATH"] == f"{mount['mountPath']}/token"
    account = workloads["training"]["spec"]["serviceAccountName"]
    assert manifests["RoleBinding/contrique-scheduler"]["subjects"][0]["name"] == account
    assert f"ServiceAccount/{account}" in manifests
    assert f"Role/{manifests['RoleBinding/contrique-scheduler']['roleRef']['name']}" in manifests


def test_a_schedule_that_is_not_set_up_does_not_run(manifests):
    assert manifests["CronJob/training"]["spec"]["suspend"] is True
    assert "example.org" in json.dumps(manifests["CronJob/training"])


def test_the_compose_file_runs_the_same_servers(workloads):
    """Images, options and environment agree, but for the names that each is called by."""
    services = yaml.safe_load((ROOT / "mlflow" / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        theirs = container(workloads[name])
        assert service["image"] == theirs["image"]
        options = [
            {text for text in words if not text.startswith("--allowed-hosts")}
            for words in (service.get("command", []), theirs.get("args", []))
        ]
        assert options[0] == options[1], name
        assert service.get("entrypoint", theirs.get("command")) == theirs.get("command"), name
        assert {variable["name"] for variable in theirs["env"]} - {"PGDATA"} == service["environment"].keys()
        assert "healthcheck" in service or "HEALTHCHECK" in (ROOT / service["build"]["dockerfile"]).read_text()
        secret = [value for key, value in service["environment"].items() if "PASSWORD" in key or "_KEY" in key]
        assert all(value.startswith("${") for value in secret)
