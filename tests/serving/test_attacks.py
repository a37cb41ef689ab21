"""`contrique serve` as a process, attacked while honest clients ask: they are answered, and nothing is left behind."""

import base64
import http.client
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import attacks

from contrique.config import ServingLimits
from contrique.images import BadImage
from contrique.serving import decoder
from contrique.serving.decoder import Decoders

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SETTINGS = {"decode_seconds": 1, "decode_bytes": 500_000_000, "header_seconds": 3, "max_connections": 96}
DESCRIPTORS = 256


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[int, psutil.Process]]:
    """Port and process, with few descriptors."""
    folder = tmp_path_factory.mktemp("serve")
    tiny_model.build(folder / "model")
    command = [sys.executable, "-m", "contrique.cli", "serve", "--model", str(folder / "model"), "--port", "0"]
    command += [part for name, value in SETTINGS.items() for part in ("--set", f"serving.{name}={value}")]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=(folder / "log").open("wb"),
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)),
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("http://"), (folder / "log").read_text()
            port = int(line.split("/")[2].partition(":")[2])
            ask(port, attacks.body(attacks.photograph()))
            yield port, psutil.Process(process.pid)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert "Traceback" not in (folder / "log").read_text()
        finally:
            process.kill()


def ask(port: int, body: bytes | None, path: str = "/score") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=200)
    try:
        connection.request("GET" if body is None else "POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@contextmanager
def honest_clients(port: int, count: int = 3) -> Iterator[None]:
    """Clients that ask for a picture's score, and for the server's health, until the attack is over; all is right."""
    body = attacks.body(attacks.photograph())
    expected = ask(port, body)[1]["predictions"][0]["score"]
    over, answers = threading.Event(), []

    def client() -> None:
        while True:
            status, answer = ask(port, body)
            prediction = answer["predictions"][0] if status == 200 else {"error": answer}
            answers.append((status, prediction["error"] or prediction["score"]))
            answers.append((ask(port, None, "/health")[0], expected))
            if over.is_set():
                return

    with ThreadPoolExecutor(count) as pool:
        clients = [pool.submit(client) for _ in range(count)]
        try:
            yield
        finally:
            over.set()
        for future in clients:
            future.result(200)
    assert set(answers) == {(200, expected)}
    assert len(answers) >= 2 * count


def memory(process: psutil.Process) -> float:
    """Of the server and its decoders, in MB."""
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 1e6


def check_nothing_is_left(process: psutil.Process, before: float) -> None:
    """The same process, no more children than decoders, no more memory than before, give or take."""
    assert process.is_running()
    deadline = time.monotonic() + 60
    while (children := process.children(recursive=True)) and time.monotonic() < deadline:
        if len(children) <= ServingLimits().decoders and all(c.status() != psutil.STATUS_ZOMBIE for c in children):
            break
        time.sleep(0.2)
    assert len(children) <= ServingLimits().decoders
    assert memory(process) < before + 500


PICTURES = {
    "400 scans": (lambda: attacks.jpeg_of_scans(400, 1024), "over 100 scans"),
    "90 scans of 16 megapixels": (
        lambda: attacks.jpeg_of_scans(90, 4096),
        "damaged or truncated|takes over 1 s to decode",
    ),
    # a fast machine decodes it within its second
    "millions of empty chunks": (lambda: attacks.png_of_chunks(2_600_000), "takes over 1 s to decode|None"),
    "text of comments": (lambda: attacks.ppm_of_comments(10_000_000), "P1 to P3"),
    "a header of comments": (lambda: attacks.ppm_with_long_header(10_000_000), "no header"),
    "a tile of 676 megapixels": (lambda: attacks.tiff_of_one_tile(26_000), "tiles of 26000x26000"),
    "49 megapixels with alpha": (lambda: attacks.png_of_megapixels(7000, 7000), "memory"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_hostile_picture_stops_nobody(server, kind):
    port, process = server
    make, says = PICTURES[kind]
    body, before = attacks.body(make()), memory(process)
    with honest_clients(port), ThreadPoolExecutor(4) as pool:
        for status, answer in pool.map(lambda _: ask(port, body), range(6)):
            assert status == 200
            assert re.search(says, str(answer["predictions"][0]["error"]))
    check_nothing_is_left(process, before)


BODIES = {
    "white space": (lambda: attacks.body_of_spaces(60_000_000), 200),
    "escapes": (lambda: attacks.body_of_escapes(60_000_000), 200),
    "names": (lambda: attacks.body_of_names(5_000_000), 200),
    "deep JSON": (lambda: b'{"images": ' + b"[" * 90_000, 422),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_hostile_body_stops_nobody_and_stays_small(server, kind):
    port, process = server
    make, expected = BODIES[kind]
    body, before = make(), memory(process)
    peak, over = [before], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak.append(memory(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with honest_clients(port):
            for _ in range(2):
                status, answer = ask(port, body)
                assert status == expected, answer
    finally:
        over.set()
        watcher.join()
    assert max(peak) < before + 900
    check_nothing_is_left(process, before)


@pytest.mark.parametrize("text", [attacks.HALF_A_HEADER, b"", b"GET /health HTTP/1.1\r\n", attacks.HALF_A_BODY])
def test_connections_that_never_ask_keep_nobody_out_and_are_closed(server, text):
    port, process = server
    with attacks.half_sent(port, 300, text) as connections:
        with honest_clients(port):
            assert process.num_fds() < DESCRIPTORS - 20
        deadline = time.monotonic() + 60
        for connection in connections if text != attacks.HALF_A_BODY else connections[:200]:
            connection.settimeout(max(1, deadline - time.monotonic()))
            try:
                assert connection.recv(1) == b""
            except ConnectionError:  # closed with our text unread
                continue
    check_nothing_is_left(process, memory(process))


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(ServingLimits(decoders=1, decode_seconds=0.5, decode_bytes=500_000_000))
    yield decoders
    decoders.close()


class TestDecoders:
    def test_a_decoder_that_was_killed_is_replaced(self, decoders):
        assert decoders.decode(attacks.photograph(), "good").shape == (80, 96, 3)
        for kind, says in (("millions of empty chunks", "takes over 0.5 s"), ("49 megapixels with alpha", "takes")):
            with pytest.raises(BadImage, match=f"^bad: .*{says}"):
                decoders.decode(PICTURES[kind][0](), "bad")
            assert decoders.decode(attacks.photograph(), "good").shape == (80, 96, 3)

    def test_a_decoder_that_somebody_kills_is_replaced(self, decoders):
        decoders.decode(attacks.photograph(), "good")
        (child,) = decoders._children
        os.kill(child._process.pid, signal.SIGKILL)
        with pytest.raises(BadImage, match="takes more time or memory"):
            decoders.decode(attacks.photograph(), "good")
        assert decoders.decode(attacks.photograph(), "good") is not None

    def test_a_decoder_that_gets_no_processor_for_a_while_still_answers(self):
        decoders = Decoders(ServingLimits(decoders=1, decode_seconds=0.1))
        decoders.start()
        (child,) = decoders._children
        os.kill(child._process.pid, signal.SIGSTOP)
        resume = threading.Timer(3, os.kill, (child._process.pid, signal.SIGCONT))
        resume.start()
        try:
            assert decoders.decode(attacks.photograph(), "good").shape == (80, 96, 3)
        finally:
            resume.join()
            decoders.close()

    def test_one_picture_leaves_the_next_one_no_limit_of_its_own(self, decoders):
        decoders.decode(attacks.photograph(), "good")
        with pytest.raises(BadImage, match="no header"):
            decoders.decode(attacks.ppm_with_long_header(10_000_000), "bad")
        (child,) = decoders._children
        assert psutil.Process(child._process.pid).rlimit(psutil.RLIMIT_CPU)[0] == psutil.RLIM_INFINITY

    @pytest.mark.parametrize(("seconds", "least"), [(0.1, 0.1), (1, 1), (3, 1), (10, 2)])
    def test_a_small_picture_has_a_second_at_least_if_any_has(self, seconds, least):
        """However much of its current second the process has used up; it may use up to one more."""
        script = f"""
import json, resource, sys
from contrique.config import ServingLimits
from contrique.serving import decoder
limits, header = ServingLimits(decode_seconds={seconds}), {{"task": "decode", "name": "x", "text": True, "large": True}}
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
left = []
for part in range(5):
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    start = used()
    while used() < start + 0.23:
        pass
    decoder._do(header, bytearray(b"!"), limits)
    left.append(resource.getrlimit(resource.RLIMIT_CPU)[0] - used())
print(json.dumps(left))
"""
        left = json.loads(subprocess.check_output([sys.executable, "-c", script], text=True))
        assert all(least - 0.1 <= each <= least + 1 for each in left)

    def test_a_decoder_that_never_answers_is_ended(self, monkeypatch):
        monkeypatch.setattr(decoder, "_LEAST_WALL", 1.0)
        decoders = Decoders(ServingLimits(decoders=1, decode_seconds=0.1))
        decoders.start()
        (child,) = decoders._children
        os.kill(child._process.pid, signal.SIGSTOP)
        with pytest.raises(BadImage, match=r"takes over 0\.1 s to decode"):
            decoders.decode(attacks.photograph(), "stuck")
        assert decoders.decode(attacks.photograph(), "good") is not None
        decoders.close()

    def test_none_is_left_behind(self):
        decoders = Decoders(ServingLimits(decoders=2))
        decoders.start()
        children = [psutil.Process(child._process.pid) for child in decoders._children]
        assert len(children) == 2
        decoders.close()
        assert psutil.wait_procs(children, timeout=30)[1] == []

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("data:image/png;base64,", "the file is empty"),
            ("data:image/png,abc", "not base64"),
            ("DATA:;BASE64,!", "not base64"),
            ("data:", "not base64"),
            ("", "the file is empty"),
        ],
    )
    def test_data_urls_without_a_picture(self, decoders, text, says):
        with pytest.raises(BadImage, match=says):
            decoders.decode(text, "image 0")

    @pytest.mark.parametrize("head", ["", "data:image/png;base64,", "data:;base64,", "Data:image/png;name=a b;BASE64,"])
    def test_base64_and_data_urls_are_decoded(self, decoders, head):
        text = head + base64.encodebytes(attacks.photograph()).decode()
        assert decoders.decode(text, "image 0").shape == (80, 96, 3)
