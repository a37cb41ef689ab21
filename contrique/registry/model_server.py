"""Ask a registered model as its users will: `mlflow models serve`, started for the purpose and killed after it."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

from contrique.tracking.store import RegistryError

_LOG_LINES = 8


class NotServed(RegistryError):
    """The server did not come up or did not answer in time; the message ends with the last lines of its log."""


def ask_server(model: str, images: Sequence[bytes], *, store: str, seconds: float) -> list[dict[str, Any]]:
    """Have MLflow's model server score images, pickles forbidden.

    The server has a process and a folder of its own and listens on a free port of 127.0.0.1. It and its children are
    killed before this returns, whatever happens.

    Args:
        model: MLflow's address of a registered model, such as `models:/contrique/3`.
        images: encoded image files.
        store: MLflow's tracking and registry store.
        seconds: for all of it; starting alone takes about ten.
    Returns:
        one answer an image, in order, with the columns of `scorer.CSV_COLUMNS` less the path.
    Raises:
        NotServed: no answer in time, or not one that can be read.
    """
    deadline = time.monotonic() + seconds
    rows = [[base64.b64encode(image).decode()] for image in images]
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with _start_server(model, store, log) as (server, address):
            try:
                _wait_until_up(server, address, deadline)
                answers = json.loads(_call(f"{address}/invocations", deadline, body))["predictions"]
                return [dict(answer) for answer in answers]
            except (OSError, HTTPException, ValueError, TypeError, KeyError) as error:
                code = server.poll()
                end = f"gave no answer within {seconds:g} s" if code is None else f"ended with status {code}"
                raise NotServed(
                    f"{model} cannot be served: `mlflow models serve` at {address} {end} ({error}); mend what its log "
                    f"says, or set registry.serve_seconds to more{_read_log_end(log)}"
                ) from error


def _read_log_end(log: Path) -> str:
    """The end of a log, without the frames of stack traces: the servers around the model add two of their own."""
    lines = log.read_text(errors="replace").splitlines()
    messages = [line for line in lines if line.strip() and not line[0].isspace() and not line.startswith("Traceback")]
    return "".join(f"\n  {line}" for line in messages[-_LOG_LINES:])


@contextmanager
def _start_server(model: str, store: str, log: Path) -> "Iterator[tuple[subprocess.Popen[bytes], str]]":
    """The server's process and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_REGISTRY_URI": store,
        "MLFLOW_TRACKING_URI": store,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts uvicorn by its name
        "TMPDIR": str(log.parent),  # where MLflow puts the model, and would leave it
    }
    with log.open("wb") as out:
        server = subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):  # all of it has ended
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_until_up(server: "subprocess.Popen[bytes]", address: str, deadline: float) -> None:
    while True:
        try:
            _call(f"{address}/ping", deadline)
            return
        except (OSError, HTTPException):
            if server.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _call(url: str, deadline: float, body: bytes | None = None) -> bytes:
    """GET, or POST of JSON, past any proxy."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=max(1.0, deadline - time.monotonic())) as answer:
        return bytes(answer.read())
