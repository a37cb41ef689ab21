"""The client of the cluster: KFP's own, against a server that holds each request against the API's own models."""

import json
import re
from collections.abc import Iterator

import kfp_server_api
import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.__main__ import main
from pipelines.cluster.client import title
from tests.kubeflow_api import RUN, Server, conform


@pytest.fixture
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # KFP's client keeps a context file there
    monkeypatch.setattr("kfp.client.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))


@pytest.fixture
def server(home) -> Iterator[Server]:
    with Server() as api:
        yield api


@pytest.fixture
def with_profiles(home) -> Iterator[Server]:
    """A Kubeflow where somebody else's pipeline of the same name is shared with all."""
    with Server(multi_user=True) as api:
        yield api


def ask(command: str, server: Server, *options: str) -> int:
    return main([command, "--host", server.address, "--experiment", "quality", *options])


def submit(server: Server, *options: str) -> int:
    return ask("submit", server, *options)


def test_sends_the_pipeline_and_its_arguments(server, capsys):
    options = ["--param", "profile=paper", "--param", "pretrain.steps=7", "--minutes", "90"]
    options += ["--revision", "v2", "--name", "tuesday"]
    assert submit(server, "--data", "s3://bucket/data", *options) == 0
    assert f"/#/runs/details/{RUN}" in capsys.readouterr().out
    assert server.requests["experiments"]["display_name"] == "quality"
    run = server.requests["runs"]
    assert (run["display_name"], run["experiment_id"]) == ("tuesday", "e-1")
    assert run["runtime_config"]["parameters"] == {
        "data": "s3://bucket/data",
        "encoder": "",
        "revision": "v2",
        "pristine": [],
        "authentic": [],
        "profile": "paper",
        "overrides": {"pretrain.steps": 7, "pretrain.minutes": 90.0},
        "seed": 0,
    }
    document = run["pipeline_spec"]
    spec = json_format.ParseDict(
        document["pipeline_spec"], pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False
    )
    assert spec.pipeline_info.name == "contrique-training"
    assert "pretrain-encoder" in json.dumps(document["platform_spec"])


def test_the_server_refuses_what_the_models_do_not_know():
    """Or the tests here could pass on anything."""
    conform({"display_name": "a", "runtime_config": {"parameters": {}}}, kfp_server_api.V2beta1Run)
    with pytest.raises(ValueError, match="nickname"):
        conform({"nickname": "a"}, kfp_server_api.V2beta1Run)
    with pytest.raises(ValueError, match="root"):
        conform({"runtime_config": {"root": ""}}, kfp_server_api.V2beta1Run)
    with pytest.raises(ValueError, match="MAYBE"):
        conform({"mode": "MAYBE"}, kfp_server_api.V2beta1RecurringRun)


def test_a_run_is_named_for_people(server):
    assert submit(server, "--data", "https://git.example.org/pictures.git", "--revision", "v3") == 0
    name = server.requests["runs"]["display_name"]
    assert re.fullmatch(r"pictures\.git @ v3, demo, \d{4}-\d\d-\d\d \d\d:\d\d", name)
    assert title({"data": "s3://bucket/incoming/", "profile": "paper"}).startswith("incoming, paper, ")


def test_the_scoring_pipeline(server):
    assert submit(server, "--pipeline", "scoring", "--data", "s3://bucket/new", "--param", "model=previous") == 0
    run = server.requests["runs"]
    assert run["runtime_config"]["parameters"] == {
        "data": "s3://bucket/new",
        "model": "previous",
        "fail_on_drift": True,
        "profile": "demo",
        "overrides": {},
    }
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "contrique-scoring"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--revision", "v3"), "has no such argument"),
        (("--shards", "2"), "is not fanned out"),
        (("--minutes", "5"), "trains nothing"),
    ],
)
def test_an_option_of_the_other_pipeline_is_refused(server, capsys, option, message):
    assert submit(server, "--pipeline", "scoring", "--data", "s3://bucket/new", *option) == 2
    assert f"{option[0]}: the scoring pipeline {message}" in capsys.readouterr().err
    assert not server.requests


def test_in_a_pod_the_service_accounts_token_goes_along(server, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("of-the-pod")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert submit(server, "--data", "s3://bucket/data") == 0
    assert server.tokens == {"Bearer of-the-pod"}


@pytest.mark.parametrize(("cron", "expected"), [("0 2 * * 0", "0 0 2 * * 0"), ("30 0 2 * * 0", "30 0 2 * * 0")])
def test_schedule(server, cron, expected, capsys):
    assert ask("schedule", server, "--data", "s3://bucket/data", "--cron", cron, "--name", "sundays") == 0
    job = server.requests["recurringruns"]
    assert job["trigger"]["cron_schedule"]["cron"] == expected
    assert (job["display_name"], job["experiment_id"], job["mode"]) == ("sundays", "e-1", "ENABLE")
    assert (job["max_concurrency"], job["no_catchup"]) == (1, True)
    assert job["description"].startswith("Train, judge, gate")
    assert job["runtime_config"]["parameters"]["data"] == "s3://bucket/data"
    assert "pretrain-encoder" in json.dumps(job["pipeline_spec"])
    assert "r-1" in capsys.readouterr().out


def test_a_schedule_that_is_no_cron(server, capsys):
    assert ask("schedule", server, "--data", "s3://bucket/data", "--cron", "sundays") == 2
    assert "sundays" in capsys.readouterr().err
    assert not server.requests


def test_upload(server, capsys):
    """The pipeline itself if it is new, and a version of it in any case."""
    assert ask("upload", server, "--version", "0.1.0", "--description", "the first", "--shards", "2") == 0
    assert ask("upload", server, "--version", "0.2.0") == 0
    (pipeline,) = server.objects["pipelines"]
    assert pipeline["display_name"] == "contrique-training"
    assert pipeline["description"].startswith("Train, judge, gate")
    first, second = server.objects["versions"]
    assert (first["display_name"], first["description"], first["pipeline_id"]) == ("0.1.0", "the first", "p-1")
    assert (second["display_name"], second["pipeline_id"]) == ("0.2.0", "p-1")
    assert "comp-gather-distortions" in next(yaml.safe_load_all(first["document"]))["components"]
    assert "version 0.1.0" in capsys.readouterr().out


def test_a_version_that_is_there_already(server, capsys):
    assert ask("upload", server, "--version", "0.1.0") == 0
    assert ask("upload", server, "--version", "0.1.0") == 2
    assert "0.1.0 already exists" in capsys.readouterr().err


class TestProfiles:
    """Namespaces are kept apart: each command twice in one, and once in another."""

    SPACES = ("contrique", "contrique", "other")

    def test_upload(self, with_profiles):
        for number, space in enumerate(self.SPACES):
            assert ask("upload", with_profiles, "--namespace", space, "--version", f"0.{number}.0") == 0
        pipelines = [
            (pipeline["namespace"], pipeline["pipeline_id"]) for pipeline in with_profiles.objects["pipelines"]
        ]
        assert pipelines == [("contrique", "p-1"), ("other", "p-2")]
        assert [pipeline["pipeline_id"] for pipeline in with_profiles.objects["versions"]] == ["p-1", "p-1", "p-2"]

    def test_a_shared_pipeline_of_the_same_name_is_left_alone(self, with_profiles):
        assert ask("upload", with_profiles, "--version", "1.0.0") == 0
        assert ask("upload", with_profiles, "--namespace", "contrique", "--version", "0.1.0") == 0
        assert [entry["namespace"] for entry in with_profiles.objects["pipelines"]] == ["", "contrique"]
        assert [entry["pipeline_id"] for entry in with_profiles.objects["versions"]] == ["p-1", "p-2"]

    @pytest.mark.parametrize(
        ("command", "kind", "options"),
        [("submit", "runs", []), ("schedule", "recurringruns", ["--cron", "0 2 * * 0"])],
    )
    def test_runs(self, with_profiles, command, kind, options):
        for space in self.SPACES:
            assert ask(command, with_profiles, "--namespace", space, "--data", "s3://bucket/data", *options) == 0
        experiments = [(entry["namespace"], entry["experiment_id"]) for entry in with_profiles.objects["experiments"]]
        assert experiments == [("contrique", "e-1"), ("other", "e-2")]
        assert [entry["experiment_id"] for entry in with_profiles.objects[kind]] == ["e-1", "e-1", "e-2"]

    def test_without_a_namespace_it_says_so(self, with_profiles, capsys):
        assert submit(with_profiles, "--data", "s3://bucket/data") == 2
        assert "namespace" in capsys.readouterr().err


COMMANDS = {
    "submit": ["--data", "s3://bucket/data"],
    "schedule": ["--data", "s3://bucket/data", "--cron", "0 2 * * 0"],
    "upload": ["--version", "0.1.0"],
}


class TestVersions:
    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize(
        ("version", "shape", "minimum"),
        [
            ("2.13.0", [], "2.14 or newer, for the run's end is told to its last task"),
            ("2.0.0-alpha.5", [], "2.14 or newer"),
            ("2.15.2", ["--shards", "2"], "2.16 or newer, for the loops have names"),
        ],
    )
    def test_an_older_server_is_refused(self, home, command, version, shape, minimum, capsys):
        with Server(version) as server:
            assert ask(command, server, *COMMANDS[command], *shape) == 2
        error = capsys.readouterr().err
        assert f"error: {server.address} is Kubeflow Pipelines {version}, and this document needs {minimum}" in error
        assert error.count("\n") == 1
        assert not server.requests

    @pytest.mark.parametrize("version", ["2.14.0", "2.17.0", "3.0.0", "v2.16.1", "unknown", "master", ""])
    def test_a_newer_one_or_one_that_does_not_tell_is_not(self, home, version):
        with Server(version) as server:
            assert submit(server, *COMMANDS["submit"]) == 0


def test_a_path_of_this_machine_is_not_touched(server):
    """Only `run` makes paths absolute: on a cluster they mean something else."""
    assert submit(server, "--data", "data/live") == 0
    assert server.requests["runs"]["runtime_config"]["parameters"]["data"] == "data/live"


@pytest.mark.parametrize(("state", "status"), [("SUCCEEDED", 0), ("FAILED", 2), ("CANCELED", 2)])
def test_waits_and_fails_as_the_run_did(server, state, status, capsys, monkeypatch):
    server.states = ["PENDING", "RUNNING", state]
    monkeypatch.setattr("pipelines.cluster.client._POLL_SECONDS", 0)
    assert submit(server, "--data", "s3://bucket/data", "--wait") == status
    assert not server.states
    assert state in "".join(capsys.readouterr())


def test_no_server_there(capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # KFP's client waits between five tries
    assert main(["submit", "--host", "http://127.0.0.1:9", "--data", "s3://bucket/data"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"error: http://127\.0\.0\.1:9: the Kubeflow Pipelines API did not do as asked .*\n$", error)
    assert "Traceback" not in error
