"""The Kubernetes side as kustomize builds it: valid against Kubernetes's schemas, and agreeing with the pipelines."""

import copy
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header

from contrique.pretraining import launch
from contrique.pretraining.launch import _KIND
from pipelines.__main__ import _parser
from pipelines.cluster import resources

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.37"


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
    spaces = {one["metadata"].get("namespace") for name, one in built.items() if name != "Namespace/contrique"}
    assert spaces == {"contrique"}


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
    assert used == {(name, key) for key in keys} | {("contrique-postgres", "password")}


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
    assert is_allowed_host_header(allowed, "localhost:5000"), "a port-forward"
    assert not is_allowed_host_header(allowed, "evil.example.org")


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
        assert name in ("server", "-logtostderr") or f"  {name}" in done.stdout + done.stderr, name


def test_pods_are_confined(workloads):
    for name, template in workloads.items():
        assert template["spec"]["securityContext"]["runAsNonRoot"], name
        assert template["spec"]["automountServiceAccountToken"] is False, name
        context = container(template)["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["capabilities"]["drop"]) == (False, ["ALL"]), name
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
        for server in ("seaweedfs", "mlflow"):
            assert of_runs in policies[f"NetworkPolicy/{server}"]["ingress"][0]["from"]


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
    options = _parser().parse_args([*submit["command"][3:], *submit["args"]])
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
        assert {one["name"] for one in theirs["env"]} - {"PGDATA"} == service["environment"].keys()
        assert "healthcheck" in service or "HEALTHCHECK" in (ROOT / service["build"]["dockerfile"]).read_text()
        secret = [value for key, value in service["environment"].items() if "PASSWORD" in key or "_KEY" in key]
        assert all(value.startswith("${") for value in secret)
