"""Submitting through KFP's real client, to a server that holds each request against the API's own models."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import kfp_server_api
import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.__main__ import main

RUN = "11111111-2222-3333-4444-555555555555"
MODELS = {"experiments": kfp_server_api.V2beta1Experiment, "runs": kfp_server_api.V2beta1Run}


class Server(http.server.ThreadingHTTPServer):
    """The part of the Kubeflow Pipelines API that a submission needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: dict[str, dict[str, Any]] = {}
        self.states: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/apis/v2beta1/")
        if path == "healthz":
            self.answer({"multi_user": False})
        elif path == "experiments":
            self.answer({"experiments": []})
        elif path == f"runs/{RUN}":
            self.answer({"run_id": RUN, "state": self.server.states.pop(0)})
        else:
            self.answer({"error": f"unexpected GET {self.path}"}, 404)

    def do_POST(self) -> None:
        kind = self.path.partition("?")[0].removeprefix("/apis/v2beta1/")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        unknown = set(body) - set(MODELS[kind].attribute_map.values())
        if unknown:
            self.answer({"error": f"unknown fields {unknown}"}, 400)
            return
        self.server.received[kind] = body
        self.answer(body | {"experiment_id": "e-1", "run_id": RUN})

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


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


def submit(server: Server, *options: str) -> int:
    host = f"http://127.0.0.1:{server.server_port}"
    return main(["submit", "--host", host, "--experiment", "quality", *options])


def test_sends_the_pipeline_and_its_arguments(server, capsys):
    options = ["--param", "profile=paper", "--param", "pretrain.steps=7", "--revision", "v2", "--name", "tuesday"]
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
        "overrides": {"pretrain.steps": 7},
        "seed": 0,
    }
    sent = run["pipeline_spec"]
    spec = json_format.ParseDict(sent["pipeline_spec"], pipeline_spec_pb2.PipelineSpec(), ignore_unknown_fields=False)
    assert spec.pipeline_info.name == "contrique-training"
    assert "pretrain-encoder" in json.dumps(sent["platform_spec"])


def test_a_path_of_this_machine_is_not_touched(server):
    """Only `run` makes paths absolute: on a cluster they mean something else."""
    assert submit(server, "--data", "data/live") == 0
    assert server.received["runs"]["runtime_config"]["parameters"]["data"] == "data/live"


@pytest.mark.parametrize(("state", "status"), [("SUCCEEDED", 0), ("FAILED", 2), ("CANCELED", 2)])
def test_waits_and_fails_as_the_run_did(server, state, status, capsys, monkeypatch):
    server.states = ["PENDING", "RUNNING", state]
    monkeypatch.setattr("pipelines.__main__._POLL_SECONDS", 0)
    assert submit(server, "--data", "s3://bucket/data", "--wait") == status
    assert not server.states
    assert state in "".join(capsys.readouterr())


def test_no_server_there(capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # KFP's client waits between five tries
    assert main(["submit", "--host", "http://127.0.0.1:9", "--data", "s3://bucket/data"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"error: http://127\.0\.0\.1:9: the Kubeflow Pipelines API did not do as asked .*\n$", error)
    assert "Traceback" not in error
