"""Does a server stay quick, right and small under load? `mlflow models serve` and `contrique serve`, side by side.

    python benchmarks/serve.py --requests 1000 --clients 8 --model adapted/ --pictures holiday/ --out serve.json

Each server is started on a free port of 127.0.0.1 and asked by CLIENTS threads at once, each with a connection of its
own. Every fifth request holds three pictures, of which one is bad; the others hold one, and a fifth of them a bad one
(cut off, no image, empty, too small, zeros, no base64). Every answer is compared with what the model says in this
process: a score farther off than TOLERANCE, other words of an error, a status other than 200 are wrong answers. Memory
is the resident one of the server and its children: when it has answered one request, after a quarter of the requests,
and at the end. Without --model and --pictures, a small model with random weights and random pictures serve.

    python benchmarks/serve.py --attacks --requests 200 --clients 8 --attackers 4

asks `contrique serve` alone: without an attack, then during each of benchmarks/attacks.py. The same process must answer
to the end; memory is then the highest that was seen. A request that is sent away (503) is sent again until it is
answered, and that time is its own.
"""

import argparse
import base64
import http.client
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attacks
import numpy as np
import psutil
import torch
from tqdm import tqdm

from contrique import images
from contrique.config import ServingLimits
from contrique.encoder.network import Encoder
from contrique.encoder.weights import save_encoder
from contrique.integrity import hash_model
from contrique.registry.model_server import _start_server, _wait_until_up
from contrique.regressor.head import Head, RegressorSummary
from contrique.regressor.ridge import Ridge
from contrique.scoring.inputs import find_images
from contrique.scoring.results import Failure, flatten
from contrique.scoring.scorer import TOLERANCE, Scorer

SCRIPT = Path(__file__).parents[1] / "contrique" / "serving" / "mlflow_model.py"
SIDE = 512  # of the random pictures, by 384
START = 180.0  # seconds


@dataclass(frozen=True)
class Request:
    """Encoded images and the rows that they must be answered with."""

    images: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Way:
    """How one server is started and asked."""

    start: Callable[[], Any]  # a context that gives a process and an address
    path: str
    body: Callable[[tuple[str, ...]], dict[str, Any]]


def random_model(folder: Path) -> None:
    """A ResNet-18 with random weights, and a ridge on its features."""
    encoder = Encoder("resnet18", seed=0).eval()
    save_encoder(encoder, folder / "encoder.safetensors")
    coef = np.random.default_rng(0).normal(size=2 * encoder.width)
    summary = RegressorSummary("weak", -5.0, 5.0, 1.0, 10, 4, 5, 0.5, len(coef))
    Head(Ridge(coef, 0.0, 1.0), summary).save(folder / "regressor")


def make_pictures(count: int) -> list[bytes]:
    """Waves under noise, as PNG."""
    entries = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0 : 3 * SIDE // 4, 0:SIDE] / 100
        waves = np.stack([np.sin(x * rng.uniform(1, 9) + y * rng.uniform(1, 9)) for _ in range(3)], axis=-1)
        noisy = 127 + 90 * waves + rng.normal(0, rng.uniform(0, 60), waves.shape)
        entries.append(images.encode_png(np.clip(noisy, 0, 255).astype(np.uint8)))
    return entries


def requests(scorer: Scorer, good: list[bytes], count: int) -> list[Request]:
    """Different requests in a fixed order, each with its answer."""
    small = images.encode_png(np.zeros((40, 90, 3), np.uint8))
    bad = [good[0][: len(good[0]) // 2], b"GIF89a", b"", small, b"\0" * 5000]
    rng = random.Random(0)
    files = [*good, *bad]
    # as sent, with what is judged of it; errors call an image by its place, so each is judged for each place
    strings = [base64.b64encode(data).decode() for data in files] + ["!"]
    answers = [
        [flatten(scorer.judge(data, f"image {place}", ServingLimits().max_pixels)) for place in range(3)]
        for data in tqdm(files, desc="expected")
    ]
    answers.append(
        [
            flatten(Failure("", f"image {place}: not base64; send the image file's bytes in base64"))
            for place in range(3)
        ]
    )
    entries = []
    for number in range(count):
        any_good, any_bad = lambda: rng.randrange(len(good)), lambda: rng.randrange(len(good), len(strings))
        if number % 5 == 0:
            picks = rng.sample([any_good(), any_good(), any_bad()], 3)
        else:
            picks = [any_bad() if rng.random() < 0.2 else any_good()]
        entries.append(
            Request(tuple(strings[i] for i in picks), tuple(answers[i][place] for place, i in enumerate(picks)))
        )
    return entries


def wrong(status: int, content: bytes, request: Request) -> str:
    """What is wrong with an answer; empty if it is right."""
    if status != 200:
        return f"status {status}: {content[:200]!r}"
    rows = json.loads(content)["predictions"]
    if len(rows) != len(request.rows):
        return f"{len(rows)} rows for {len(request.rows)} pictures"
    for row, expected in zip(rows, request.rows, strict=True):
        if row["error"] != expected["error"]:
            return f"error {row['error']!r} instead of {expected['error']!r}"
        if expected["error"] is None and not math.isclose(
            row["score"], expected["score"], rel_tol=0, abs_tol=TOLERANCE
        ):
            return f"score {row['score']} instead of {expected['score']}"
    return ""


def resident(process: int) -> float:
    """Of a process and its children, in MiB."""
    parent = psutil.Process(process)
    total = 0
    for each in [parent, *parent.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:  # a decoder that was killed just now
            continue
    return total / 2**20


def load(process: int, address: str, way: Way, entries: list[Request], clients: int) -> dict[str, Any]:
    """Ask everything once, and measure."""
    latencies, faults, memory = [0.0] * len(entries), list[str](), dict[str, float]()
    numbers, lock = iter(range(len(entries))), threading.Lock()
    bar = tqdm(total=len(entries), desc=way.path, mininterval=5)
    host = address.removeprefix("http://").rstrip("/")

    def client() -> None:
        connection = http.client.HTTPConnection(host, timeout=300)
        while True:
            with lock:
                number = next(numbers, None)
                if number is None:
                    break
                if number == len(entries) // 4:
                    memory["quarter_mib"] = resident(process)
            body = json.dumps(way.body(entries[number].images))
            start = time.perf_counter()
            try:
                status, content = 503, b""
                while status == 503:
                    connection.request("POST", way.path, body, {"Content-Type": "application/json"})
                    answer = connection.getresponse()
                    status, content = answer.status, answer.read()
                    time.sleep(0.2 if status == 503 else 0)
                fault = wrong(status, content, entries[number])
            except Exception as error:  # whatever it is, it is no right answer
                connection.close()
                fault = f"no answer: {error!r}"
            latencies[number] = time.perf_counter() - start
            with lock:
                bar.update()
                if fault:
                    faults.append(f"request {number}: {fault}")
        connection.close()

    first = http.client.HTTPConnection(host, timeout=300)
    first.request("POST", way.path, json.dumps(way.body(entries[1].images)), {"Content-Type": "application/json"})
    first.getresponse().read()
    first.close()
    memory["start_mib"] = resident(process)
    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    bar.close()
    memory["end_mib"] = resident(process)
    p50, p99 = np.percentile(latencies, [50, 99])
    return {
        "requests": len(entries),
        "pictures": sum(len(request.images) for request in entries),
        "bad_pictures": sum(row["error"] is not None for request in entries for row in request.rows),
        "clients": clients,
        "wrong": len(faults),
        "first_faults": faults[:5],
        "p50_ms": 1000 * float(p50),
        "p99_ms": 1000 * float(p99),
        "requests_per_second": len(entries) / seconds,
        **memory,
    }


@contextmanager
def by_mlflow(model: Path, folder: Path) -> "Iterator[tuple[int, str]]":
    """`mlflow models serve` on the model saved as the registry saves it."""
    import mlflow

    mlflow.pyfunc.save_model(
        folder / "saved",
        python_model=str(SCRIPT),
        artifacts={"encoder": str(model / "encoder.safetensors"), "regressor": str(model / "regressor")},
        model_config=hash_model(model / "encoder.safetensors", model / "regressor"),
        code_paths=[str(SCRIPT.parents[1] / "contrique")],
        pip_requirements=[],
    )
    store = f"sqlite:///{folder}/none.db"
    with _start_server(str(folder / "saved"), store, folder / "log") as (server, address):
        _wait_until_up(server, address, time.monotonic() + START)
        yield server.pid, address


@contextmanager
def by_contrique(model: Path, folder: Path, backend: str) -> "Iterator[tuple[int, str]]":
    """`contrique serve`, which tells its address once it listens."""
    command = [sys.executable, "-m", "contrique.cli", "serve", "--model", str(model), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [*command, "--backend", backend], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield server.pid, server.stdout.readline().split()[0]
        finally:
            server.send_signal(signal.SIGINT)


def resist(
    process: int, address: str, way: Way, entries: list[Request], clients: int, attackers: int
) -> dict[str, dict[str, Any]]:
    """Load without an attack, then during each of them."""
    port = int(address.rstrip("/").rpartition(":")[2])
    results = {"no attack": watch(process, lambda: load(process, address, way, entries, clients))}
    for name, attack in attacks.list_attacks().items():
        with attacks.under_attack(attack, port, attackers):
            results[name] = watch(process, lambda: load(process, address, way, entries, clients))
        assert psutil.pid_exists(process), f"the server ended during: {name}"
    return results


def watch(process: int, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` measures, with the highest memory meanwhile."""
    peak, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            peak.append(resident(process))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        return work() | {"peak_mib": max(peak)}
    finally:
        over.set()
        watcher.join()


def table(results: dict[str, dict[str, Any]]) -> str:
    """For people, in Markdown."""
    head = "| | requests | of which wrong | p50 | p99 | requests/s | memory: first, after a quarter, last; peak |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for name, row in results.items():
        memory = ", ".join(f"{row[when]:.0f}" for when in ("start_mib", "quarter_mib", "end_mib"))
        memory += f"; {row['peak_mib']:.0f}" if "peak_mib" in row else ""
        total = f"{row['requests']} ({row['pictures']} pictures, {row['bad_pictures']} bad), {row['clients']} clients"
        times = f"{row['p50_ms']:.0f} ms | {row['p99_ms']:.0f} ms | {row['requests_per_second']:.1f}"
        lines.append(f"| {name} | {total} | {row['wrong']} | {times} | {memory} MiB |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="to each server; default: 1000")
    parser.add_argument("--clients", type=int, default=8, help="at once; default: 8")
    parser.add_argument("--model", type=Path, help="folder with encoder.safetensors and regressor, as of `adapt`")
    parser.add_argument("--pictures", type=Path, help="folder of photographs; 20 of them are sent")
    parser.add_argument("--backend", default="torch", help="of `contrique serve`; default: torch")
    parser.add_argument("--only", choices=("mlflow", "contrique"), help="one of the two; default: both")
    parser.add_argument("--attacks", action="store_true", help="ask `contrique serve` while it is attacked")
    parser.add_argument("--attackers", type=int, default=4, help="at once; default: 4")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model.absolute() if arguments.model else folder / "model"
        if not arguments.model:
            model.mkdir()
            random_model(model)
        paths = find_images([arguments.pictures]) if arguments.pictures else []
        good = [path.read_bytes() for path in paths if isinstance(path, Path)][:20] or make_pictures(20)
        entries = requests(Scorer(model / "encoder.safetensors", model / "regressor"), good, arguments.requests)
        ways = {
            "mlflow models serve": Way(
                lambda: by_mlflow(model, folder),
                "/invocations",
                lambda batch: {"dataframe_split": {"columns": ["image"], "data": [[image] for image in batch]}},
            ),
            "contrique serve": Way(
                lambda: by_contrique(model, folder, arguments.backend),
                "/score",
                lambda batch: {"images": [{"image": image} for image in batch]},
            ),
        }
        if arguments.attacks:
            way = ways["contrique serve"]
            with way.start() as (process, address):
                results = resist(process, address, way, entries, arguments.clients, arguments.attackers)
        for title, way in ways.items():
            if not arguments.attacks and (not arguments.only or title.startswith(arguments.only)):
                with way.start() as (process, address):
                    results[title] = load(process, address, way, entries, arguments.clients)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    for title, figures in results.items():
        for fault in figures["first_faults"]:
            print(f"{title}: {fault}", file=sys.stderr)
    return 1 if any(figures["wrong"] for figures in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
