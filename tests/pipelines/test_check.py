"""`make kubeflow-check`: every line of it, held and not, against a server that answers as Kubeflow's does."""

import os
from collections.abc import Iterator

import pytest

from contrique.config import RegistryConfig
from contrique.tracking.runs import Runs
from pipelines.__main__ import main
from tests.kubeflow_api import RUN, Server


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    """A cluster whose run succeeds, with nothing else that can be reached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("kfp.client.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr("pipelines.cluster.client._POLL_SECONDS", 0)
    for name in [name for name in os.environ if name.startswith(("AWS_", "CONTRIQUE_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    with Server() as api:
        api.states = ["RUNNING", "SUCCEEDED"]
        api.tasks = {"Pin the data": "SUCCEEDED", "hold": "SKIPPED"}
        yield api


def run_check(server: Server, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, str], str]:
    """Exit status, the table by what was looked at, standard error."""
    status = main(["check", "--host", server.address, "--data", "s3://contrique/pictures", *options])
    output = capsys.readouterr()
    table = {line[2:50].strip(): line[0] + line[50:] for line in output.out.splitlines() if line[0] in "✓✗-"}
    return status, table, output.err


def test_what_holds_and_what_is_not_looked_at(server, capsys):
    status, table, _ = run_check(server, capsys)
    assert status == 0
    assert table.pop("its report is in the product's bucket").startswith("- not looked: set CONTRIQUE_S3_ENDPOINT")
    assert table.pop("its MLflow run is FINISHED") == "- not looked: set MLFLOW_TRACKING_URI"
    assert len(table) == 6
    assert all(line.startswith("✓") for line in table.values())
    assert table["the API answers"] == "✓ version 2.17.0"
    assert RUN in table["a run starts"]
    parameters = server.requests["runs"]["runtime_config"]["parameters"]
    assert parameters == {"data": "s3://contrique/pictures", "profile": "demo", "overrides": {}}


def test_with_everything_in_reach(server, s3, capsys, monkeypatch, tmp_path):
    """A run without a verdict and without artifacts: both are missed."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    status, table, err = run_check(server, capsys, "--artifacts", f"{s3.bucket}/none")
    assert status == 2
    assert "no write-report among no objects" in table["its report is in the product's bucket"]
    assert "0 MLflow runs of it" in table["its MLflow run is FINISHED"]
    assert table["a champion is registered"].startswith("✗ no version of contrique has the alias champion")
    assert err == "error: 3 of 9 did not hold; each ✗ above says what to look at\n"


def test_the_run_and_its_report_are_found(server, s3, capsys, monkeypatch, tmp_path):
    from contrique.s3 import connect

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Runs(RegistryConfig()).open(RUN).close()
    bucket = s3.bucket.removeprefix("s3://")
    connect().put_object(Bucket=bucket, Key=f"kfp/contrique-training/{RUN}/write-report/7/report", Body=b"<p>")
    _, table, _ = run_check(server, capsys, "--artifacts", f"{s3.bucket}/kfp")
    assert table["its report is in the product's bucket"].endswith(f"/kfp/contrique-training/{RUN}/write-report")
    assert table["its MLflow run is FINISHED"].startswith("✓")


def test_a_task_that_failed_is_named(server, capsys):
    server.states, server.tasks = ["FAILED"], {"Pin the data": "SUCCEEDED", "Fetch and prove the data": "FAILED"}
    status, table, _ = run_check(server, capsys)
    assert status == 2
    assert table["the run succeeds"].startswith("✗ run 11111111")
    assert table["every task ended well"] == "✗ Fetch and prove the data: FAILED"


def test_an_older_cluster(home, capsys):
    with Server("2.5.0") as server:
        status, table, _ = run_check(server, capsys)
    assert status == 2
    assert "and this document needs 2.14 or newer" in table["the pipeline uploads"]
    assert "a run starts" in table
    assert "the run succeeds" not in table


@pytest.fixture
def home(server) -> None:
    """The environment of `server`, for another one."""
