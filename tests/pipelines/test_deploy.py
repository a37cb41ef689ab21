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
def built() -> dict[str, dict[str, Any]]:
    """Each object of `kubectl kustomize deploy` by Kind/name."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", ROOT / "deploy"], capture_output=True, text=True, check=True)
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(done.stdout)}


def pod(thing: dict[str, Any]) -> dict[str, Any]:
    """The pod template of a workload."""
    spec = thing["spec"]["jobTemplate"]["spec"] if thing["kind"] == "CronJob" else thing["spec"]
    return spec["template"]


@pytest.fixture(scope="module")
def workloads(built) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: pod(one) for one in built.values() if "template" in str(one.get("spec", ""))}


def container(template: dict[str, Any]) -> dict[str, Any]:
    (only,) = template["spec"]["containers"]
    return only


def option(template: dict[str, Any], name: str) -> str:
    (value,) = [arg.partition("=")[2] for arg in container(template)["args"] if arg.startswith(f"--{name}=")]
    return value


def test_everything_is_there(built, workloads):
    assert set(workloads) == {"postgres", "seaweedfs", "mlflow", "training"}
    kinds = {name.partition("/")[0] for name in built}
    assert {"ResourceQuota", "NetworkPolicy", "Role", "RoleBinding", "ServiceAccount", "ConfigMap"} <= kinds
    assert {one["metadata"]["namespace"] for one in built.values()} == {"contrique"}


def test_the_namespace_keeps_the_label_that_kubeflow_admits_it_by(built):
    """Kubeflow's policies admit namespaces with `part-of: kubeflow-profile`, which a Profile's controller sets."""
    spaces = [one for one in built.values() if one["kind"] == "Namespace"]
    spaces += [yaml.safe_load((ROOT / "deploy" / "namespace" / f"{kind}.yaml").read_text()) for kind in NAMESPACES]
    assert {one["metadata"]["name"] for one in spaces} == {"contrique"}
    assert not [one for one in spaces if "app.kubernetes.io/part-of" in one["metadata"].get("labels", {})]
    kubernetes_validate.validate(next(one for one in spaces if one["kind"] == "Namespace"), KUBERNETES, strict=True)


def test_no_pod_gets_an_istio_sidecar(built, workloads):
    assert {name: template["metadata"]["labels"].get(SIDECAR) for name, template in workloads.items()} == dict.fromkeys(
        workloads, "false"
    )
    claims = [claim for one in built.values() for claim in one.get("spec", {}).get("volumeClaimTemplates", [])]
    assert not [claim for claim in claims if "labels" in claim["metadata"]], "a StatefulSet may not change them"


def test_valid_against_the_schemas(built):
    for one in built.values():
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_the_schemas_find_a_mistake(built):
    """Or the test above could pass on anything."""
    wrong = copy.deepcopy(built["Deployment/mlflow"])
    pod(wrong)["spec"]["containers"][0]["imagePullpolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullpolicy"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_no_secret_is_in_the_tree(built):
    assert not [name for name in built if name.startswith("Secret/")]
    secret_words = ("PASSWORD", "SECRET", "ACCESS_KEY")
    for template in map(pod, (one for one in built.values() if one["kind"] in ("Deployment", "StatefulSet"))):
        for variable in container(template)["env"]:
            if any(word in variable["name"] for word in secret_words):
                assert "secretKeyRef" in variable["valueFrom"], variable["name"]


def test_the_tasks_find_their_configmap_and_secrets(built, workloads):
    given = built[f"ConfigMap/{resources.ENDPOINTS}"]["data"]
    assert resources.S3_ENDPOINTS.keys() | resources.MLFLOW_ENDPOINTS.keys() <= given.keys()
    used = {
        (reference["name"], reference["key"])
        for template in workloads.values()
        for variable in container(template)["env"]
        if (reference := variable.get("valueFrom", {}).get("secretKeyRef"))
    }
    name, keys = resources.S3_SECRET
    secrets = {(secret, key) for secret in (name, "contrique-models") for key in keys}
    assert used == secrets | {("contrique-postgres", "password")}


@pytest.mark.parametrize(("key", "service"), [("s3-endpoint", "seaweedfs"), ("mlflow-uri", "mlflow")])
def test_endpoints_lead_to_services(built, workloads, key, service):
    host, _, port = built[f"ConfigMap/{resources.ENDPOINTS}"]["data"][key].removeprefix("http://").partition(":")
    assert host == f"{service}.contrique.svc.cluster.local"
    ports = built[f"Service/{service}"]["spec"]["ports"]
    assert [one["port"] for one in ports] == [int(port)]
    assert int(port) in [one["containerPort"] for one in container(workloads[service])["ports"]]
    selector = built[f"Service/{service}"]["spec"]["selector"]
    assert selector.items() <= workloads[service]["metadata"]["labels"].items()


def test_mlflow_accepts_the_names_it_is_called_by(built, workloads):
    """By MLflow's own check; a name that is not listed gets 403."""
    allowed = option(workloads["mlflow"], "allowed-hosts").split(",")
    uri = built[f"ConfigMap/{resources.ENDPOINTS}"]["data"]["mlflow-uri"]
    assert is_allowed_host_header(allowed, uri.removeprefix("http://"))
    for forwarded in ("localhost:5000", "127.0.0.1:5000"):
        assert is_allowed_host_header(allowed, forwarded), "a port-forward"
    assert not is_allowed_host_header(allowed, "evil.example.org")


def test_the_ui_of_mlflow_may_post_from_where_it_is_said_to_be(built, workloads):
    """By MLflow's own check. Behind an ingress its origin must be listed, and there is a place for it."""
    allowed = option(workloads["mlflow"], "cors-allowed-origins").split(",")
    ui = built[f"ConfigMap/{resources.ENDPOINTS}"]["data"]["mlflow-ui"]
    assert ui in allowed
    assert not should_block_cors_request(ui, "POST", allowed)
    assert should_block_cors_request("https://mlflow.example.org", "POST", allowed), "until it is added"
    assert not should_block_cors_request("https://mlflow.example.org", "POST", [*allowed, "https://mlflow.example.org"])


def test_mlflow_understands_its_options(workloads):
    told = subprocess.run(
        [Path(sys.executable).with_name("mlflow"), "server", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for argument in container(workloads["mlflow"])["args"]:
        assert argument.partition("=")[0] in told
    assert "MLFLOW_BACKEND_STORE_URI" in [one["name"] for one in container(workloads["mlflow"])["env"]]


def test_seaweedfs_understands_its_options(workloads):
    done = subprocess.run(
        [Path(sys.executable).with_name("weed"), "server", "-h"], capture_output=True, text=True, check=False
    )
    for argument in container(workloads["seaweedfs"])["args"]:
        name = argument.partition("=")[0]
        assert f"  {name}" in done.stdout + done.stderr, name


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
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


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
        while not all(written(client, bucket) for client, bucket in zip(clients.values(), BUCKETS, strict=True)):
            assert time.monotonic() < deadline, "the buckets are not there"
            time.sleep(0.2)
        yield clients
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


BUCKETS = ("contrique", "contrique-models")


def written(client: Any, bucket: str) -> bool:
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
    assert [one["Key"] for one in client.list_objects_v2(Bucket=own, Prefix="a/")["Contents"]] == ["a/b"]
    attempts = {
        "write": lambda: client.put_object(Bucket=other, Key="kept", Body=b"mine"),
        "read": lambda: client.get_object(Bucket=other, Key="kept"),
        "delete": lambda: client.delete_object(Bucket=other, Key="kept"),
        "copy": lambda: client.copy_object(Bucket=own, Key="copy", CopySource=f"{other}/kept"),
        "list": lambda: client.list_objects_v2(Bucket=other),
        "make a bucket": lambda: client.create_bucket(Bucket="third"),
    }
    for what, attempt in attempts.items():
        with pytest.raises(botocore.exceptions.ClientError) as refused:
            attempt()
        assert refused.value.response["Error"]["Code"] == "AccessDenied", what


@pytest.mark.parametrize("secret", ["", 'a"b', "a b"])
def test_the_store_does_not_start_with_a_secret_that_its_configuration_cannot_hold(tmp_path, secret):
    server, _ = started(tmp_path, KEYS | {"MODELS_SECRET_KEY": secret})
    said = server.communicate(timeout=60)[1].decode()
    assert server.returncode == 1
    assert said.startswith("error: MODELS_SECRET_KEY is empty, or holds other characters"), said


def test_tasks_and_models_have_different_keys(workloads):
    """What a task is given opens nothing that MLflow keeps models in."""
    name, _ = resources.S3_SECRET
    used = {
        variable["name"]: variable["valueFrom"]["secretKeyRef"]["name"]
        for variable in container(workloads["mlflow"])["env"]
        if "secretKeyRef" in variable.get("valueFrom", {})
    }
    assert name not in used.values()
    assert option(workloads["mlflow"], "artifacts-destination").startswith(f"s3://{BUCKETS[1]}/")


def test_runs_keep_their_artifacts_in_the_products_bucket(built):
    """By keys of a Secret: with `fromEnv` the launcher would use whatever the task's environment holds."""
    data = built["ConfigMap/kfp-launcher"]["data"]
    assert data["defaultPipelineRoot"].startswith(f"s3://{BUCKETS[0]}/")
    (kind,) = yaml.safe_load(data["providers"]).values()
    default = kind["default"]
    endpoint = built[f"ConfigMap/{resources.ENDPOINTS}"]["data"]["s3-endpoint"]
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


def test_each_server_has_a_policy_and_only_mlflow_reaches_the_database(built, workloads):
    policies = {name: one["spec"] for name, one in built.items() if name.startswith("NetworkPolicy/")}
    for server in ("postgres", "seaweedfs", "mlflow"):
        spec = policies[f"NetworkPolicy/{server}"]
        assert spec["podSelector"]["matchLabels"].items() <= workloads[server]["metadata"]["labels"].items()
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    ((rule,),) = (one["from"] for one in policies["NetworkPolicy/postgres"]["ingress"])
    assert rule == {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mlflow"}}}
    for label in ("pipeline/runid", "jobset.sigs.k8s.io/jobset-name"):  # pods of runs, and of their TrainJobs
        of_runs = {"podSelector": {"matchExpressions": [{"key": label, "operator": "Exists"}]}}
        in_kubeflow = of_runs | {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}}
        for server in ("seaweedfs", "mlflow"):
            admitted = policies[f"NetworkPolicy/{server}"]["ingress"][0]["from"]
            assert of_runs in admitted
            assert in_kubeflow in admitted, "where runs live without profiles"


def test_nobody_reaches_anything_that_no_policy_names(built, workloads):
    """Denied both ways by default; each pod, and each kind of pod that Kubeflow makes here, has a policy of its own."""
    deny = built["NetworkPolicy/default-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    policies = [one["spec"] for name, one in built.items() if name.startswith("NetworkPolicy/")]
    chosen = [policy["podSelector"].get("matchLabels", {}) for policy in policies if "Ingress" in policy["policyTypes"]]
    for name, template in workloads.items():
        assert any(labels and labels.items() <= template["metadata"]["labels"].items() for labels in chosen), name
    keys = {rule["key"] for policy in policies for rule in policy["podSelector"].get("matchExpressions", [])}
    assert {"pipeline/runid", "jobset.sigs.k8s.io/jobset-name"} <= keys
    assert {"app": "ml-pipeline-ui-artifact"} in chosen
    for policy in policies:
        for rule in policy.get("ingress", []):
            assert rule.get("from"), "from anywhere"


def test_runs_may_do_with_trainjobs_what_launch_does(built):
    (rule,) = built["Role/contrique-trainjobs"]["rules"]
    assert (rule["apiGroups"], rule["resources"]) == ([_KIND["group"]], [_KIND["plural"]])
    called = set(re.findall(r"self\.api\.(\w+)_namespaced_custom_object", inspect.getsource(launch)))
    assert set(rule["verbs"]) == called
    binding = built["RoleBinding/contrique-trainjobs"]
    assert binding["roleRef"]["name"] == "contrique-trainjobs"
    accounts = {(one["name"], one["namespace"]) for one in binding["subjects"]}
    assert accounts == {("default-editor", "contrique"), ("pipeline-runner", "contrique")}


def test_the_quota_lets_one_run_through(built):
    (quota,) = (one["spec"]["hard"] for name, one in built.items() if name.startswith("ResourceQuota/"))
    assert int(quota[f"requests.{resources.GPU}"]) >= max(stage.gpus for stage in resources.STAGES.values())


def test_the_schedule_is_a_command_that_pipelines_understands(built, workloads):
    submit = container(workloads["training"])
    assert submit["command"][:3] == ["python", "-m", "pipelines"]
    options = build_parser().parse_args([*submit["command"][3:], *submit["args"]])
    assert options.namespace == "contrique"
    environment = {one["name"]: one["value"] for one in submit["env"]}
    assert environment["CONTRIQUE_IMAGE"] == submit["image"]
    (mount,) = [one for one in submit["volumeMounts"] if one["name"] == "token"]
    assert environment["KF_PIPELINES_SA_TOKEN_PATH"] == f"{mount['mountPath']}/token"
    account = workloads["training"]["spec"]["serviceAccountName"]
    assert built["RoleBinding/contrique-scheduler"]["subjects"][0]["name"] == account
    assert f"ServiceAccount/{account}" in built
    assert f"Role/{built['RoleBinding/contrique-scheduler']['roleRef']['name']}" in built


def test_a_schedule_that_is_not_set_up_does_not_run(built):
    assert built["CronJob/training"]["spec"]["suspend"] is True
    assert "example.org" in json.dumps(built["CronJob/training"])


def test_the_compose_file_runs_the_same_servers(workloads):
    """Images, options and environment agree, but for the names that each is called by."""
    services = yaml.safe_load((ROOT / "mlflow" / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        theirs = container(workloads[name])
        assert service["image"] == theirs["image"]
        options = [
            {text for text in one if not text.startswith("--allowed-hosts")}
            for one in (service.get("command", []), theirs.get("args", []))
        ]
        assert options[0] == options[1], name
        assert service.get("entrypoint", theirs.get("command")) == theirs.get("command"), name
        assert {one["name"] for one in theirs["env"]} - {"PGDATA"} == service["environment"].keys()
        assert "healthcheck" in service or "HEALTHCHECK" in (ROOT / service["build"]["dockerfile"]).read_text()
        secret = [value for key, value in service["environment"].items() if "PASSWORD" in key or "_KEY" in key]
        assert all(value.startswith("${") for value in secret)
