"""Nothing is reported of what is done with somebody's photographs: not over the network, and no identifier is kept."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny_model

from contrique import images
from contrique.telemetry import SWITCHES

ROOT = Path(__file__).parents[1]
CI = ("CI", "JENKINS_URL", "TF_BUILD")  # where these are set, libraries report nothing anyway


@pytest.fixture
def proxy():
    """Address of a proxy that refuses, and the first lines of the requests it gets."""
    requests = []

    def listen(server):
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return  # the test has ended
            with connection:
                connection.settimeout(10)
                requests.append(connection.recv(200).split(b"\r\n")[0])

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen, args=(server,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", requests
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def run(tmp_path, proxy):
    """Runs Python in a home of its own, as a user who has forbidden nothing; the files that it leaves there."""
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    switches = {*SWITCHES, *CI, "NO_PROXY", "no_proxy", *(name for name in os.environ if name.startswith("PYTEST"))}
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy[0])
    environment |= {"HOME": str(home), "TMPDIR": str(scratch), "CONTRIQUE_CACHE": str(tmp_path / "cache")}
    environment |= {"MPLCONFIGDIR": str(tmp_path / "fonts"), "PYTHONPATH": str(ROOT)}
    environment.pop("XDG_CACHE_HOME", None)

    def call(*arguments):
        command = [sys.executable, *arguments]
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return [path for folder in (home, scratch) for path in folder.rglob("*") if path.is_file()]

    return call


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_score_is_reported_to_nobody(run, proxy, tmp_path, backend):
    (tmp_path / "a.png").write_bytes(images.encode_png(tiny_model.picture(0)))
    assert run("-m", "contrique.cli", "score", "a.png", "--backend", backend) == []
    assert proxy[1] == []


@pytest.mark.slow
def test_a_run_of_mlflow_is_reported_to_nobody(run, proxy):
    script = """
from contrique.config import RegistryConfig
from contrique.tracking.store import Store
client = Store(RegistryConfig()).client
client.create_run(client.get_experiment_by_name("contrique").experiment_id)
"""
    assert run("-c", script) == []
    assert proxy[1] == []


def test_every_switch_is_set_by_the_package():
    script = "import contrique, json, os; print(json.dumps(dict(os.environ)))"
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    assert (
        json.loads(subprocess.check_output([sys.executable, "-c", script], env=environment)).items() >= SWITCHES.items()
    )


def test_a_users_own_wish_holds():
    script = "import contrique, os; print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "false"}
    assert subprocess.check_output([sys.executable, "-c", script], env=environment, text=True) == "false\n"


@pytest.mark.parametrize("name", SWITCHES)
def test_what_runs_without_the_package_is_told_so_too(name):
    """`make data` starts DVC, and an image may be asked to run anything."""
    assert re.search(rf"^export {name} := {SWITCHES[name]}$", (ROOT / "Makefile").read_text(), re.M)
    assert f"{name}={SWITCHES[name]}" in (ROOT / "Dockerfile").read_text()
