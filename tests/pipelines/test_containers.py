"""The pipeline in containers, by KFP's DockerRunner: needs a Docker daemon and a base image, and is skipped without.

`make containers` brings both. The image is the base with this environment mounted into it, so that nothing of several
gigabytes is built.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from test_run import TINY, picture_set

ROOT = Path(__file__).parents[2]
BASE = os.environ.get("CONTRIQUE_TEST_BASE", "localhost/python:3.11-bookworm")
IMAGE = "localhost/contrique-test:environment"
MOUNTS = [str(ROOT), str(Path(sys.executable).resolve().parents[1]), str(Path(sys.prefix))]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    try:
        docker_client = docker.from_env()
        docker_client.images.get(BASE)
    except docker.errors.DockerException as error:
        if "CONTRIQUE_REQUIRE_DOCKER" in os.environ:
            raise
        pytest.skip(f"no Docker daemon with an image {BASE}: {error}")
    dockerfile = f"FROM {BASE}\nENV PATH={sys.prefix}/bin:/usr/bin:/bin\n"
    docker_client.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=IMAGE)
    yield docker_client
    docker_client.images.remove(IMAGE, force=True)
    docker_client.close()


def run(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", "run", "--runner", "docker", *options]
    mounts = [f"--mount={folder}" for folder in MOUNTS]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    environment |= {"CONTRIQUE_IMAGE": IMAGE, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *mounts], cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_a_failing_task_fails(client, tmp_path):
    """Where KFP's own function can take a container that is gone for a success."""
    (tmp_path / "empty").mkdir()
    process = run(tmp_path, "--data", str(tmp_path / "empty"))
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("error: Fetch and prove the data: ")
    assert "run.log" in process.stderr.splitlines()[-1]
    assert [line[0] for line in process.stdout.splitlines()] == ["✓", "✓", "✗", "✓"]
    assert not client.containers.list(all=True, filters={"ancestor": IMAGE}), "containers are removed"


def test_a_container_that_ends_at_once_has_its_status(client):
    """The bug that the function replaced here has: kubeflow/pipelines#13332."""
    from pipelines.laptop.runner import Terminal

    executor_input = json.dumps({"outputs": {"outputFile": "/run/fit-regressor/executor_output.json"}})
    for code in (0, 7):
        terminal = Terminal(io.StringIO(), io.StringIO(), {})
        command = ["sh", "-c", f"exit {code}", "--executor_input", executor_input]
        assert terminal.run_container(client, IMAGE, command, {}) == code
        assert bool(terminal.reason) == bool(code)


def test_an_image_that_is_not_there(client, tmp_path):
    from pipelines.laptop.runner import RunFailed, Terminal

    with pytest.raises(RunFailed, match="make image"):
        Terminal(io.StringIO(), io.StringIO(), {}).run_container(client, "localhost/nothing:0", ["true"], {})


@pytest.mark.pipeline
def test_the_whole_training(client, tmp_path):
    data = picture_set(tmp_path / "pictures")
    params = [f"--param={name}={json.dumps(value)}" for name, value in (TINY | {"gate.floor": -1.0}).items()]
    process = run(tmp_path, "--data", str(data), *params)
    assert process.returncode == 0, process.stderr
    assert "Registry  contrique version 1, alias champion" in process.stdout
    assert len([line for line in process.stdout.splitlines() if line.startswith("✓")]) == 14
