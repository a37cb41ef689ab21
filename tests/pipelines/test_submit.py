"""The client of the cluster: KFP's own, against a server that holds each request against the API's own models."""

import email
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import kfp_server_api
import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.__main__ import main
from pipelines.cluster.client import title

RUN = "11111111-2222-3333-4444-555555555555"
MODELS = {
    "experiments": kfp_server_api.V2beta1Experiment,
    "runs": kfp_server_api.V2beta1Run,
    "recurringruns": kfp_server_api.V2beta1RecurringRun,
}
IDS = {"experiment_id": "e-1", "run_id": RUN, "recurring_run_id": "r-1", "pipeline_id": "p-1"}


class Server(http.server.ThreadingHTTPServer):
    """The part of the Kubeflow Pipelines API that the client needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: dict[str, dict[str, Any]] = {}
        self.uploaded: list[tuple[str, dict[str, str], str]] = []
        self.states: list[str] = []
        self.pipelines: list[dict[str, str]] = []
        self.tokens: set[str | None] = set()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/apis/v2beta1/")
        self.server.tokens.add(self.headers["Authorization"])
        if path == "healthz":
            self.answer({"multi_user": False})
        elif path == "experiments":
            self.answer({"experiments": []})
        elif path == "pipelines":
            self.answer({"pipelines": self.server.pipelines})
        elif path == f"runs/{RUN}":
            self.answer({"run_id": RUN, "state": self.server.states.pop(0)})
        else:
            self.answer({"error": f"unexpected GET {self.path}"}, 404)

    def do_POST(self) -> None:
        kind, _, query = self.path.partition("?")
        kind = kind.removeprefix("/apis/v2beta1/")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if kind.startswith("pipelines/upload"):
            self.upload(kind, dict(urllib.parse.parse_qsl(query)), data)
            return
        body = json.loads(data)
        try:
            conform(body, MODELS[kind])
        except (ValueError, TypeError) as error:
            self.answer({"error": str(error)}, 400)
            return
        self.server.received[kind] = body
        self.answer(body | IDS)

    def upload(self, kind: str, query: dict[str, str], data: bytes) -> None:
        header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        (part,) = email.message_from_bytes(header + data).get_payload()
        self.server.uploaded.append((kind, query, part.get_payload(decode=True).decode()))
        self.answer({"pipeline_id": "p-1", "pipeline_version_id": f"v-{len(self.server.uploaded)}"})

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def conform(body: dict[str, Any], model: type) -> None:
    """Raise unless every field is one of the model's, and every value one that the model takes, down to the leaves."""
    unknown = set(body) - set(model.attribute_map.values())
    if unknown:
        raise ValueError(f"{model.__name__} has no fields {unknown}")
    for name, json_name in model.attribute_map.items():
        kind = getattr(kfp_server_api, model.openapi_types[name], None)
        if json_name in body and hasattr(kind, "openapi_types") and kind.openapi_types:
            conform(body[json_name], kind)
        elif json_name in body and hasattr(kind, "allowable_values") and body[json_name] not in kind.allowable_values:
            raise ValueError(f"{json_name}: {body[json_name]} is none of {kind.allowable_values}")


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(tmp_path))  # KFP's client keeps a context file there
    monkeypatch.setattr("kfp.client.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(command: str, server: Server, *options: str) -> int:
    host = f"http://127.0.0.1:{server.server_port}"
    return main([command, "--host", host, "--experiment", "quality", *options])


def submit(server: Server, *options: str) -> int:
    return ask("submit", server, *options)


def test_sends_the_pipeline_and_its_arguments(server, capsys):
    options = ["--param", "profile=paper", "--param", "pretrain.steps=7", "--minutes", "90"]
    options += ["--revision", "v2", "--name", "tuesday"]
    assert submit(server, "--data", "s3://bucket/data", *options) == 0
    assert f"/#/runs/details/{RUN}" in capsys.readouterr().out
    assert server.received["experiments"]["display_name"] == "quality"
    run = server.received["runs"]
    assert (run["display_name"], run["experiment_id"]) == ("tuesday", "e-1")
    assert run["runtime_config"]["parameters"] == {
        "data": "s3://bucket/data",
        "revision": "v2",
        "pristine": [],
        "authentic": [],
        "profile": "paper",
        "overrides": {"pretrain.steps": 7, "pretrain.minutes": 90.0},
        "seed": 0,
    }
    sent = run["pipeline_spec"]
    spec = json_format.ParseDict(sent["pipeline_spec"], pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
    assert spec.pipeline_info.name == "contrique-training"
    assert "pretrain-encoder" in json.dumps(sent["platform_spec"])


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
    name = server.received["runs"]["display_name"]
    assert re.fullmatch(r"pictures\.git @ v3, demo, \d{4}-\d\d-\d\d \d\d:\d\d", name)
    assert title({"data": "s3://bucket/incoming/", "profile": "paper"}).startswith("incoming, paper, ")


def test_the_scoring_pipeline(server):
    assert submit(server, "--pipeline", "scoring", "--data", "s3://bucket/new", "--param", "model=previous") == 0
    run = server.received["runs"]
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
    assert not server.received


def test_in_a_pod_the_service_accounts_token_goes_along(server, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("of-the-pod")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert submit(server, "--data", "s3://bucket/data") == 0
    assert server.tokens == {"Bearer of-the-pod"}


@pytest.mark.parametrize(("cron", "sent"), [("0 2 * * 0", "0 0 2 * * 0"), ("30 0 2 * * 0", "30 0 2 * * 0")])
def test_schedule(server, cron, sent, capsys):
    assert ask("schedule", server, "--data", "s3://bucket/data", "--cron", cron, "--name", "sundays") == 0
    job = server.received["recurringruns"]
    assert job["trigger"]["cron_schedule"]["cron"] == sent
    assert (job["display_name"], job["experiment_id"], job["mode"]) == ("sundays", "e-1", "ENABLE")
    assert (job["max_concurrency"], job["no_catchup"]) == (1, True)
    assert job["description"].startswith("Train, judge, gate")
    assert job["runtime_config"]["parameters"]["data"] == "s3://bucket/data"
    assert "pretrain-encoder" in json.dumps(job["pipeline_spec"])
    assert "r-1" in capsys.readouterr().out


def test_a_schedule_that_is_no_cron(server, capsys):
    assert ask("schedule", server, "--data", "s3://bucket/data", "--cron", "sundays") == 2
    assert "sundays" in capsys.readouterr().err
    assert not server.received


@pytest.mark.parametrize("known", [True, False])
def test_upload(server, known, capsys):
    """The pipeline itself if it is new, and a version of it in any case."""
    server.pipelines = [{"pipeline_id": "p-1", "display_name": "contrique-training"}] if known else []
    assert ask("upload", server, "--version", "0.1.0", "--description", "the first", "--shards", "2") == 0
    *first, (kind, query, text) = server.uploaded
    assert [each[0] for each in first] == ([] if known else ["pipelines/upload"])
    assert kind == "pipelines/upload_version"
    assert query == {"name": "0.1.0", "pipelineid": "p-1", "description": "the first"}
    assert "comp-gather-distortions" in next(yaml.safe_load_all(text))["components"]
    assert "version 0.1.0" in capsys.readouterr().out


def test_a_path_of_this_machine_is_not_touched(server):
    """Only `run` makes paths absolute: on a cluster they mean something else."""
    assert submit(server, "--data", "data/live") == 0
    assert server.received["runs"]["runtime_config"]["parameters"]["data"] == "data/live"


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
