"""The stack as a person runs it: `python -m pipelines stack up`, `env`, `down`, and what goes wrong."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg2
import pytest
from processes import VARIABLE, find_processes, survivors

from contrique import s3
from pipelines.laptop import stack
from pipelines.laptop.stack import Service, Stack, StackError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)  # starting the servers takes seconds on quiet cores, minutes on busy ones


@dataclass(frozen=True)
class Place:
    """A folder for a stack; every process started for it carries `mark` in its environment."""

    folder: Path
    mark: str

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "pipelines", "stack", *arguments, "--folder", str(self.folder)],
            cwd=ROOT,
            env=os.environ | {VARIABLE: self.mark},
            capture_output=True,
            text=True,
            timeout=900,
        )

    def environment(self) -> dict[str, str]:
        process = self.command("env")
        assert process.returncode == 0, process.stderr
        lines = (shlex.split(line)[1].partition("=") for line in process.stdout.splitlines())
        return {name: value for name, _, value in lines}


@pytest.fixture
def place(tmp_path):
    """Nothing that was started for it outlives the test."""
    place = Place(tmp_path / "my stack", uuid.uuid4().hex)
    yield place
    place.command("down")
    leftovers = survivors(place.mark)
    for process in leftovers:
        process.kill()
    assert not leftovers


def is_forbidden(address, **headers):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60)
    return error.value.code == 403


@pytest.mark.slow
def test_up_used_down_and_up_again(place, tmp_path, monkeypatch):
    assert "start it with: make stack" in place.command("env").stderr
    started = place.command("up", "--detach")
    assert started.returncode == 0, started.stderr
    environment = place.environment()
    assert environment["MLFLOW_TRACKING_URI"] in started.stdout
    second = place.command("up", "--detach")
    assert (second.returncode, second.stdout) == (0, started.stdout)
    assert "runs from" in place.command("up").stderr

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "picture").write_bytes(b"kept")
    s3.upload(tmp_path / "picture", "s3://contrique/a")
    assert is_forbidden(f"{environment['AWS_ENDPOINT_URL']}/contrique/a/picture")
    assert is_forbidden(f"{environment['MLFLOW_TRACKING_URI']}/", Host="elsewhere.example")
    secrets = json.loads((place.folder / "stack.json").read_text())
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(host="127.0.0.1", port=secrets["ports"]["database"], user="contrique", password="guess")
    assert (place.folder / "stack.json").stat().st_mode & 0o777 == 0o600
    words = " ".join(" ".join(process.cmdline()) for process in find_processes(place.mark))
    assert all(server in words for server in ("weed", "postgres", "mlflow"))
    assert not any(secret in words for secret in (secrets["password"], secrets["secret_key"]))

    assert place.command("down").stdout == "stopped\n"
    assert survivors(place.mark) == []
    assert place.command("down").stdout == f"no stack runs from {place.folder}\n"

    assert place.command("up", "--detach").returncode == 0
    assert place.environment() == environment
    s3.download("s3://contrique/a", tmp_path / "back")
    assert (tmp_path / "back" / "picture").read_bytes() == b"kept"


@pytest.mark.slow
def test_if_a_part_dies_the_rest_is_stopped_and_the_log_is_named(place):
    assert place.command("up", "--detach").returncode == 0
    (weed,) = [process for process in find_processes(place.mark) if process.name() == "weed"]
    (supervisor,) = [process for process in find_processes(place.mark) if "up" in process.cmdline()]
    weed.send_signal(signal.SIGKILL)
    supervisor.wait(300)
    log = place.folder.resolve() / "s3.log"
    assert f"error: s3: ended by itself; see {log}" in (place.folder / "stack.log").read_text()
    assert survivors(place.mark) == []
    assert "no stack runs" in place.command("env").stderr


def service(tmp_path, script, ready=lambda: False):
    return Service("part", ["bash", "-c", script], {}, tmp_path, ready)


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path):
    part = service(tmp_path, "echo started; echo no space left >&2; exit 3")
    part.start()
    with pytest.raises(StackError, match=r"part: ended by itself; see .*part\.log\n  started\n  no space left"):
        part.wait()
    part.stop()


def test_a_server_that_never_gets_ready_is_killed_with_its_children(tmp_path):
    def never() -> bool:
        while not (tmp_path / "part.log").read_text().endswith("\n"):  # or there would be no child yet
            time.sleep(0.01)
        return False

    part = service(tmp_path, "trap '' TERM; sleep 1000 & echo $!; sleep 1000", never)
    part.start()
    with pytest.raises(StackError, match=r"part: not ready after 1 s; see .*part\.log"):
        part.wait(1)
    child = psutil.Process(int((tmp_path / "part.log").read_text()))
    part.stop(0.2)
    with contextlib.suppress(psutil.NoSuchProcess):
        child.wait(60)


def test_a_port_that_others_took_is_replaced_and_the_rest_is_kept(tmp_path):
    before = Stack(tmp_path).settings
    assert Stack(tmp_path).settings == before
    assert len(set(before.ports.values())) == len(before.ports)
    with socket.socket() as other:
        other.bind(("127.0.0.1", before.ports["mlflow"]))
        other.listen()
        after = Stack(tmp_path).settings
    assert after.ports.pop("mlflow") != before.ports.pop("mlflow")
    assert after == before


def test_as_root_without_setpriv(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert stack._unprivileged()[1:3] == ["--reuid=65534", "--regid=65534"]
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StackError, match="PostgreSQL refuses to run as root, and `setpriv` is not installed"):
        stack._unprivileged()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert stack._unprivileged() == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "127.0.0.1,localhost"),
        (" intern.example.org, localhost", "intern.example.org,localhost,127.0.0.1"),
        ("*", "*"),
    ],
)
def test_clients_of_the_stack_need_no_proxy(tmp_path, monkeypatch, before, after):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", before)
    environment = Stack(tmp_path / "stack").environment
    assert (environment["NO_PROXY"], environment["no_proxy"]) == (after, after)
