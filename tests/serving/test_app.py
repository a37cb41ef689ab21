"""`contrique serve`, run by a real server on a real port: its answers, its limits, and its page in Chromium."""

import base64
import dataclasses
import http.client
import json
import logging
import os
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

import bad_inputs
import browser as chromium
import jsonschema
import numpy as np
import pytest
import test_mlflow_model
import tiny_model
from PIL import Image
from test_browser import CONTRAST

from contrique import images
from contrique.cli.main import main
from contrique.config import ServingLimits
from contrique.regressor.diagnosis import ANY, Diagnosis
from contrique.regressor.head import Head
from contrique.regressor.reliability import Novelty
from contrique.scoring.explain import explain, overlay
from contrique.scoring.results import CSV_COLUMNS, Failure, flatten
from contrique.scoring.scorer import Scorer
from contrique.serving import app
from contrique.serving.app import ServiceError, listen, serve, socket
from contrique.serving.guard import list_hosts
from contrique.serving.schema import MAX_ROWS, Row

LIMITS = ServingLimits(seconds=30, max_request_bytes=3_000_000)
NAMES = ("jpeg", "lens_blur", "pristine")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model with everything that a score can come with: interval, novelty, a head of distortions."""
    model = tiny_model.build(tmp_path_factory.mktemp("model") / "parts")
    head = Head.load(model.regressor)
    scorer = Scorer(model.encoder, model.regressor)
    bank = np.stack([scorer.local(tiny_model.picture(i))[0] for i in range(6)])
    rng = np.random.default_rng(0)
    diagnosis = Diagnosis(
        rng.normal(size=(6, bank.shape[1])).astype(np.float32),
        np.zeros(6, np.float32),
        NAMES * 2,
        (ANY,) * 3 + (3, 5, 0),
    )
    summary = dataclasses.replace(head.summary, interval=11.0)
    Head(head.ridge, summary, Novelty(bank, 0.05), diagnosis).save(model.regressor)
    return model


@pytest.fixture(scope="module")
def scorer(parts):
    return Scorer(parts.encoder, parts.regressor)


@contextmanager
def run_server(scorer: Any, limits: ServingLimits = LIMITS, host: str = "127.0.0.1") -> Iterator[int]:
    """The port of a server in a thread of this process."""
    with listen(host, 0) as listener:
        server = app.server(scorer, limits, host)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(scorer):
    with run_server(scorer) as number:
        yield number


def ask(port: int, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of an answer; `body` as JSON, unless it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        names = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        connection.request("GET" if body is None else "POST", path, data, names)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def build_body(*pictures: bytes | str, names: tuple[str, ...] = ()) -> dict[str, Any]:
    strings = [value if isinstance(value, str) else base64.b64encode(value).decode() for value in pictures]
    return {
        "images": [{"image": value} | ({"name": names[i]} if names else {}) for i, value in enumerate(strings)],
    }


def png(seed: int = 0, *size: int) -> bytes:
    return images.encode_png(tiny_model.picture(seed, *size))


class TestAnswers:
    def test_the_corpus_is_answered_as_the_scorer_and_the_registered_model_do(self, port, parts, scorer, tmp_path):
        """Row for row and word for word, bad pictures among good ones."""
        paths = [path for path in bad_inputs.build(tmp_path / "corpus") if path.is_file()][: LIMITS.max_images]
        contents = [path.read_bytes() for path in paths]
        status, answer = ask(port, "/score", build_body(*contents))
        assert status == 200
        rows = answer["predictions"]
        expected = [flatten(scorer.judge(data, f"image {i}", LIMITS.max_pixels)) for i, data in enumerate(contents)]
        model = test_mlflow_model.load_model(test_mlflow_model.load_script(), parts)
        predictions = test_mlflow_model.ask(model, contents).to_dict("records")
        assert len(rows) == len(expected) == len(predictions)
        for row, ours, theirs in zip(rows, expected, predictions, strict=True):
            assert row.pop("name") == ""
            del ours["path"]
            assert row == json.loads(json.dumps(ours))
            assert row == theirs
        assert 10 < sum(row["error"] is not None for row in rows) < len(rows) - 10

    def test_clients_at_once_get_their_own_answers(self, port, scorer):
        contents = [png(i) for i in range(6)]
        expected = [scorer.judge(data, "x").score for data in contents]
        with ThreadPoolExecutor(6) as pool:
            answers = list(
                pool.map(lambda data: ask(port, "/score", build_body(data, "!"))[1]["predictions"], contents * 3)
            )
        assert [rows[0]["score"] for rows in answers] == expected * 3
        assert {rows[1]["error"] for rows in answers} == {"image 1: not base64; send the image file's bytes in base64"}

    def test_an_explanation_is_that_of_the_command(self, port, scorer):
        picture = tiny_model.picture(2, 150, 200)
        status, answer = ask(port, "/explain", {"image": base64.b64encode(images.encode_png(picture)).decode()})
        expected = explain(scorer, picture)
        assert status == 200
        assert (answer["score"], answer["interval_low"]) == (expected.score.score, expected.score.interval[0])
        np.testing.assert_allclose(answer["heat"], expected.heat, atol=0.006)
        np.testing.assert_array_equal(
            images.decode(base64.b64decode(answer["overlay"])).pixels, overlay(picture, expected.heat)
        )
        assert answer["suspects"] == [dataclasses.asdict(suspect) for suspect in expected.suspects]
        assert sum(suspect["probability"] for suspect in answer["suspects"]) == pytest.approx(1)

    @pytest.mark.parametrize("bad", [b"", b"GIF89a", png(0, 40, 50), png()[:300]])
    def test_what_cannot_be_explained_has_an_error_as_in_a_score(self, port, bad):
        value = base64.b64encode(bad).decode()
        status, answer = ask(port, "/explain", {"image": value})
        assert (status, answer["heat"], answer["overlay"], answer["suspects"]) == (200, None, None, None)
        assert answer["error"] == ask(port, "/score", build_body(bad))[1]["predictions"][0]["error"] is not None

    @pytest.mark.parametrize(
        "name", ["/etc/passwd", "../../x.png", "file:///etc/passwd", "<img src=x>", "\0", "ä" * 1000]
    )
    def test_a_name_is_echoed_and_is_no_path(self, port, tmp_path, name):
        (tmp_path / "real.png").write_bytes(png())
        body = build_body(png(), "", str(tmp_path / "real.png"), names=(name, name, str(tmp_path / "real.png")))
        status, answer = ask(port, "/score", body)
        good, empty, path = answer["predictions"]
        assert (status, good["name"], empty["name"]) == (200, name, name)
        assert good["score"] is not None
        assert empty["error"] == "image 1: the file is empty; replace it or remove its row"
        assert (path["score"], path["error"]) == (None, "image 2: not base64; send the image file's bytes in base64")

    def test_a_name_that_a_terminal_would_obey_is_escaped_on_its_way(self, port):
        name = "sky\x1b[2J\r\n\x9b31m\u202egnp.exe"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps(build_body("", names=(name,)))
        connection.request("POST", "/score", body, {"content-type": "application/json"})
        answer = connection.getresponse().read()
        connection.close()
        assert all(32 <= byte < 127 for byte in answer)
        assert json.loads(answer)["predictions"][0]["name"] == name

    def test_data_urls_are_taken(self, port):
        text = base64.b64encode(png()).decode()
        pictures = (f"data:image/png;base64,{text}", text, "data:image/png;base64,", "data:text/plain,x")
        first, second, empty, plain_text = ask(port, "/score", build_body(*pictures))[1]["predictions"]
        assert first["score"] == second["score"] is not None
        assert empty["error"].startswith("image 2: the file is empty")
        assert plain_text["error"].startswith("image 3: not base64")

    def test_health(self, port, scorer):
        status, answer = ask(port, "/health")
        assert (status, answer["status"], answer["model"], answer["labels"]) == (200, "ok", scorer.version, "human")


class TestLimits:
    def test_images_over_a_limit_fail_alone(self, scorer):
        good = png()
        limits = dataclasses.replace(LIMITS, max_images=3, max_bytes=len(good) + 9, max_pixels=80 * 100)
        with run_server(scorer, limits) as port:
            status, answer = ask(port, "/score", build_body(good, good + bytes(99), png(0, 64, 200)[: len(good)], good))
        errors = [row["error"] or "" for row in answer["predictions"]]
        assert status == 200
        assert errors[0] == ""
        assert "MB; send it smaller" in errors[1]
        assert "200x64 is over 0.008 megapixels" in errors[2]
        assert "over 3 images a request" in errors[3]

    def test_too_many_images_are_refused_before_they_are_looked_at(self, port):
        status, answer = ask(port, "/score", {"images": [{"image": ""}] * (MAX_ROWS + 1)})
        assert (status, "at most 1000" in answer["error"]) == (422, True)

    def test_a_body_that_says_it_is_too_large_is_refused_unread(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest("POST", "/score")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(10**12))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read()) == {"error": "the request is over 3 MB; send fewer pictures in one"}
        connection.close()

    def test_a_body_of_no_stated_length_is_cut_off_at_the_limit(self, port):
        chunks = [b'{"images": [{"image": "', *[b"A" * 100_000] * 30, b'"}]}']
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/score", iter(chunks), {"content-type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        assert ask(port, "/health")[0] == 200

    def test_json_that_would_fill_the_memory_is_not_parsed(self, port):
        refusal = {"error": "the request has too many parts; send fewer pictures in one"}
        assert ask(port, "/score", b"[" + b"[]," * 100_000 + b"[]]") == (413, refusal)

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"", "body: Invalid JSON"),
            (b"{", "body: Invalid JSON"),
            (b"[]", "body: Input should be an object"),
            ({}, "body.images: Field required"),
            ({"images": []}, "at least 1 item"),
            ({"images": [{"image": 3}]}, "body.images.0.image: Input should be a valid string"),
            ({"images": [{"image": "", "path": "/etc/passwd"}]}, "body.images.0.path: Extra inputs"),
            ({"images": [{"image": "", "name": "x" * 1001}]}, "at most 1000 characters"),
            (b'{"images": [{"image": "", "name": "\\ud800"}]}', "Invalid JSON"),
            ({"images": [{"image": "", "a\nb": 1}]}, r"body.images.0.a\nb: Extra inputs"),
            ({"images": [{"image": "", "x" * 1000: 1}]}, "x: Extra inputs"),
            (b"\xff\xfe", ""),
            (b"[" * 100_000, ""),
            (b'{"images": NaN}', "valid array"),
        ],
    )
    def test_what_is_no_request_is_refused_in_one_line(self, port, body, says):
        status, answer = ask(port, "/score", body)
        assert status in (400, 422)
        assert list(answer) == ["error"]
        assert says in answer["error"]
        assert "Traceback" not in answer["error"]
        assert len(answer["error"].splitlines()) == 1
        assert len(answer["error"]) < 300

    def test_a_form_of_another_site_is_refused(self, port):
        """What a browser sends without asking first: text."""
        status, answer = ask(port, "/score", json.dumps(build_body(png())).encode(), content_type="text/plain")
        assert (status, "send application/json" in answer["error"]) == (422, True)

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200),
            ("LOCALHOST:8080", 200),
            ("127.0.0.1:1", 200),
            ("[::1]:8080", 200),
            ("evil.example", 400),
            ("evil.example:8080", 400),
            ("127.0.0.1.evil.example", 400),
            ("10.0.0.1", 400),
            ("", 400),
        ],
    )
    def test_a_stranger_who_calls_himself_this_host_is_refused(self, port, host, status):
        assert ask(port, "/health", host=host)[0] == status

    def test_unknown_addresses_and_methods_are_told_in_json(self, port):
        assert ask(port, "/docs") == (404, {"error": "Not Found"})
        assert ask(port, "/../../etc/passwd")[0] == 404
        assert ask(port, "/score") == (405, {"error": "Method Not Allowed"})


_paths: list[str] | None = None  # while it is a list, every file that this process opens


def _record_path(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _paths is not None:
        _paths.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else "")


sys.addaudithook(_record_path)


def test_nothing_that_a_client_names_is_opened(port, tmp_path):
    """Seen by Python itself, which tells of every file that is opened."""
    global _paths
    path = tmp_path / "real.png"
    path.write_bytes(png())
    _paths = []
    try:
        path.open().close()
        answers = ask(port, "/score", build_body(str(path), f"file://{path}", png(), names=(str(path),) * 3))
        answers += ask(port, "/explain", {"image": str(path), "name": str(path)})
        answers += ask(port, f"/{path}"), ask(port, f"/..{path}"), ask(port, f"/?path={path}", {})
        paths = _paths
    finally:
        _paths = None
    assert answers[0] == answers[2] == 200
    assert [name for name in paths if "real.png" in name] == [str(path)]  # by this test, which shows that it is seen


class GatedModel:
    """A model that answers when it is let."""

    version, labels = "7", "human"

    def __init__(self) -> None:
        self.go, self.start, self.calls = threading.Event(), threading.Event(), []

    def judge_pixels(self, pixels: images.Picture, name: str) -> Failure:
        self.calls.append(pixels[0, 0, 0])
        self.start.set()
        assert self.go.wait(30)
        return Failure(name, "held")


def plain(level: int) -> str:
    """A picture of one level, which the model of `GatedModel` knows it by."""
    return base64.b64encode(images.encode_png(np.full((64, 64, 3), level, np.uint8))).decode()


def until_waiting(port: int, number: int) -> None:
    """Returns as soon as so many pictures are computed or wait their turn."""
    deadline = time.monotonic() + 20
    while ask(port, "/health")[1]["waiting"] != number:
        assert time.monotonic() < deadline


class TestTurns:
    def test_a_request_that_takes_too_long_is_told_so_and_leaves_nothing_behind(self):
        model = GatedModel()
        with run_server(model, dataclasses.replace(LIMITS, seconds=2.0)) as port, ThreadPoolExecutor(2) as pool:
            first = pool.submit(ask, port, "/score", build_body(plain(1), plain(1)))
            assert model.start.wait(10)
            second = pool.submit(ask, port, "/score", build_body(plain(2)))
            late = {"error": "not done within 2 s; try again, with fewer or smaller pictures"}
            assert first.result(20) == second.result(20) == (504, late)
            assert ask(port, "/health")[0] == 200
            model.go.set()
            assert ask(port, "/score", build_body(plain(3)))[0] == 200
        assert model.calls == [1, 3]

    def test_a_request_that_does_not_arrive_is_told_so(self):
        with run_server(GatedModel(), dataclasses.replace(LIMITS, seconds=0.5)) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.putrequest("POST", "/score")
            connection.putheader("content-type", "application/json")
            connection.putheader("content-length", "100")
            connection.endheaders(b"{")
            answer = connection.getresponse()
            assert (answer.status, "did not arrive within 0.5 s" in answer.read().decode()) == (408, True)
            connection.close()

    @pytest.mark.parametrize("limit", [{"max_requests": 2}, {"max_held_bytes": 600}])
    def test_too_many_requests_at_once_are_sent_away_and_the_others_answered(self, limit):
        model = GatedModel()
        with run_server(model, dataclasses.replace(LIMITS, **limit)) as port, ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(ask, port, "/score", build_body(plain(1))) for _ in range(2)]
            until_waiting(port, 2)
            refusal = {"error": "too many requests at once; try again in a second"}
            assert ask(port, "/score", build_body(plain(1))) == (503, refusal)
            assert ask(port, "/health")[0] == 200
            model.go.set()
            assert [future.result(20)[0] for future in futures] == [200, 200]
            assert ask(port, "/score", build_body(plain(1)))[0] == 200

    def test_what_is_left_of_a_request_whose_client_is_gone_is_not_computed(self):
        model = GatedModel()
        with run_server(model) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            body = json.dumps(build_body(*[plain(1)] * 20))
            connection.request("POST", "/score", body, {"Content-Type": "application/json"})
            assert model.start.wait(10)
            connection.close()
            until_waiting(port, 1)  # by then the server has heard of it
            model.go.set()
            until_waiting(port, 0)
        assert len(model.calls) == 1

    def test_a_large_request_does_not_keep_out_a_small_one(self):
        model = GatedModel()
        with run_server(model) as port, ThreadPoolExecutor(2) as pool:
            large = pool.submit(ask, port, "/score", build_body(*[plain(1)] * 20))
            assert model.start.wait(10)
            small = pool.submit(ask, port, "/score", build_body(plain(2)))
            until_waiting(port, 2)
            model.go.set()
            assert small.result(20)[0] == large.result(20)[0] == 200
        assert model.calls.index(2) < 5

    def test_a_fault_of_the_server_is_told_in_its_log_and_not_to_the_client(self, caplog):
        model = GatedModel()

        def judge(*_: Any) -> None:
            raise MemoryError("secret path /srv/model")

        model.judge_pixels = judge
        with run_server(model) as port, caplog.at_level(logging.ERROR):
            status, answer = ask(port, "/score", build_body(png()))
            model.version = object()  # which no answer can hold
            health = ask(port, "/health")
        assert status == 200
        assert answer["predictions"][0]["error"] == "image 0: could not be scored (an error of the server; see its log)"
        assert health == (500, {"error": "an error of the server; see its log"})
        assert "secret path" in caplog.text


class TestSchema:
    @pytest.fixture
    def schema(self, port):
        return ask(port, "/openapi.json")[1]

    def test_every_part_is_a_valid_schema_and_every_reference_leads_somewhere(self, schema):
        assert schema["openapi"].startswith("3.1")
        assert set(schema["paths"]) == {"/health", "/score", "/explain"}
        parts = schema["components"]["schemas"]
        for part in parts.values():
            jsonschema.Draft202012Validator.check_schema(part)
        text = json.dumps(schema)
        for name in text.split('"#/components/schemas/')[1:]:
            assert name.partition('"')[0] in parts
        assert "HTTPValidationError" not in {
            reference.partition('"')[0] for reference in text.split('"#/components/schemas/')
        }

    def test_answers_are_as_it_says(self, port, schema):
        def check(path: str, body: Any = None) -> None:
            status, answer = ask(port, path, body)
            response = schema["paths"][path]["get" if body is None else "post"]["responses"][str(status)]
            form = response["content"]["application/json"]["schema"]
            jsonschema.validate(answer, form | {"components": schema["components"]})

        check("/health")
        check("/score", build_body(png(), b"x", "!"))
        check("/score", {})
        check("/explain", {"image": base64.b64encode(png()).decode()})
        check("/explain", {"image": "!"})

    def test_a_row_is_the_contract(self):
        assert set(Row.model_fields) == {"name", *CSV_COLUMNS} - {"path"}


class TestCommand:
    def test_from_start_to_stop(self, parts, tmp_path):
        """The line that it prints leads to the page; Ctrl+C ends it."""
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "encoder.safetensors").symlink_to(parts.encoder)
        (folder / "regressor").symlink_to(parts.regressor)
        command = [sys.executable, "-m", "contrique.cli", "serve", "--model", str(folder), "--port", "0"]
        root = Path(__file__).parents[2]
        environment = os.environ | {"PYTHONPATH": str(root)}
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True) as server:
            try:
                line = server.stdout.readline()
                assert line.startswith("http://127.0.0.1:"), server.stderr.read()
                port = int(line.split("/")[2].partition(":")[2])
                assert ask(port, "/score", build_body(png()))[1]["predictions"][0]["model"] == str(folder)
                server.send_signal(signal.SIGINT)
                assert server.wait(20) == 0
                assert server.stderr.read() == ""
            finally:
                server.kill()

    def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(self, capsys):
        with listen("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
            assert main(["serve", "--model", "/nowhere", "--port", str(port)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"contrique: --host 127.0.0.1 --port {port}: cannot listen there")
        assert error.count("\n") == 1

    @pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("127.0.0.1", 99_999), ("192.0.2.1", 0)])
    def test_an_address_that_cannot_be_had_is_told(self, host, port):
        with pytest.raises(ServiceError, match="cannot listen there"):
            listen(host, port)

    def test_beyond_this_machine_only_when_told_and_with_a_warning(self, monkeypatch, capsys):
        class Nothing:
            def run(self, sockets: Any) -> None: ...

        monkeypatch.setattr(app, "server", lambda *_: Nothing())
        for host, warns in (("127.0.0.1", False), ("0.0.0.0", True)):
            with listen(host, 0) as listener:
                serve(GatedModel(), listener, LIMITS, host)
            out, err = capsys.readouterr()
            assert out.startswith(f"http://{host}:")
            assert (err.count("\n"), "no password" in err) == (warns, warns)

    def test_everywhere_it_answers_to_addresses_and_its_own_name_alone(self):
        hosts = list_hosts("0.0.0.0")
        assert all(hosts.know(name) for name in ("10.0.0.1:80", "[fe80::1]:80", socket.gethostname(), "localhost"))
        assert not hosts.know("evil.example")
        assert list_hosts("scores.example").know("scores.example:80")


@pytest.fixture(scope="module")
def browser():
    with chromium.launch_browser() as program:
        yield program


@pytest.fixture
def drop(tmp_path):
    """Pictures and what is none, by name."""
    contents = {
        "good.png": png(0, 120, 160),
        "other.jpg": b"",
        "<b>odd</b>\x1b\u202e.tif": b"",
        "broken.png": png()[:400],
        "empty.png": b"",
    }
    for name, kind in (("other.jpg", "JPEG"), ("<b>odd</b>\x1b\u202e.tif", "TIFF")):
        Image.fromarray(tiny_model.picture(1, 90, 140)).save(tmp_path / "x", kind)
        contents[name] = (tmp_path / "x").read_bytes()
    return [{"name": name, "mimeType": "", "buffer": data} for name, data in contents.items()]


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("screen", chromium.SCREENS)
def test_the_page_scores_what_is_chosen(browser, port, scorer, drop, screen, colours):
    with chromium.open_tab(browser, f"http://127.0.0.1:{port}/", screen, colours) as (page, faults):
        page.set_input_files("#files", drop)
        page.wait_for_selector("#cards > li:nth-child(5)[data-state=failed]")
        assert page.inner_text("#status") == "5 of 5 pictures done"
        cards = page.query_selector_all("#cards > li")
        assert [card.get_attribute("data-state") for card in cards] == ["scored"] * 3 + ["failed"] * 2
        assert [card.query_selector("h2").inner_text() for card in cards] == [
            file["name"].replace("\x1b", "\\u001b").replace("\u202e", "\\u202e") for file in drop
        ]
        results = [scorer.judge(file["buffer"], "x") for file in drop[:3]]
        assert any(expected.warning for expected in results)
        for card, expected in zip(cards[:3], results, strict=True):
            text = card.inner_text()
            assert f"{expected.score:.1f}" in text
            assert f"90 % interval: {expected.interval[0]:.1f} to {expected.interval[1]:.1f}" in text
            assert "looks like: " in text
            assert expected.warning in text
        assert "damaged or truncated" in cards[3].inner_text()
        assert "the file is empty" in cards[4].inner_text()
        assert "cannot show the file" in cards[2].inner_text()  # Chromium knows no TIFF
        thumbnails = [card.query_selector("img") for card in cards[:3]]
        before = thumbnails[0].evaluate("image => image.src")
        for card in cards[:3]:
            card.query_selector("button").click()
        page.evaluate("Promise.allSettled([...document.images].map(image => image.decode()))")
        # the pictures that Chromium cannot read have no pixels to see
        page.evaluate("document.querySelectorAll('[data-state=failed] img').forEach(image => image.remove())")
        assert chromium.list_faults(page) + faults == []
        assert page.evaluate(CONTRAST) == []
        cards[0].query_selector("button").click()
        assert thumbnails[0].evaluate("image => image.src") == before
        page.click("#clear")
        assert page.query_selector_all("#cards > li") == []
        assert page.inner_text("#status") == ""


def test_pictures_are_dropped_pasted_and_chosen_by_the_keyboard(browser, port):
    with chromium.open_tab(browser, f"http://127.0.0.1:{port}/", "desktop") as (page, faults):
        page.on("filechooser", lambda _: None)  # Chromium is told early to hand them over: it takes a moment
        data = base64.b64encode(png()).decode()
        for kind, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
            page.evaluate(
                """([kind, field, data]) => {
                    const transfer = new DataTransfer();
                    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
                    transfer.items.add(new File([bytes], `${kind}.png`, {type: "image/png"}));
                    const event = kind === "drop"
                        ? new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true})
                        : new ClipboardEvent(kind, {clipboardData: transfer, bubbles: true});
                    document.body.dispatchEvent(event);
                }""",
                [kind, field, data],
            )
        page.wait_for_selector("#cards > li:nth-child(2)[data-state=scored]")
        assert [title.inner_text() for title in page.query_selector_all("#cards h2")] == ["drop.png", "paste.png"]
        page.keyboard.press("Tab")
        assert page.get_by_label("Drop pictures or folders here").evaluate("field => field === document.activeElement")
        with page.expect_file_chooser():
            page.keyboard.press("Enter")
        assert faults == []


def test_the_page_tells_what_a_model_lacks(browser, tmp_path):
    parts = tiny_model.build(tmp_path / "plain", labels="weak")
    with (
        run_server(Scorer(parts.encoder, parts.regressor)) as port,
        chromium.open_tab(browser, f"http://127.0.0.1:{port}/", "phone") as (page, faults),
    ):
        page.set_input_files("#files", [{"name": "a.png", "mimeType": "image/png", "buffer": png()}])
        card = page.wait_for_selector("#cards > [data-state=scored]")
        assert "no interval: this model was fitted without one" in card.inner_text()
        assert "this model cannot name distortions" in card.inner_text()
        assert "learned from weak labels" in page.inner_text("header")
        assert chromium.list_faults(page) + faults == []


def test_the_page_waits_for_a_busy_server_and_tells_of_one_that_is_gone(browser, port):
    with chromium.open_tab(browser, f"http://127.0.0.1:{port}/", "desktop") as (page, _):
        turns = iter(["busy", "let", "gone"])

        def answer(route: Any) -> None:
            turn = next(turns)
            if turn == "busy":
                route.fulfill(status=503, headers={"retry-after": "0.1"}, json={"error": "busy"})
            elif turn == "gone":
                route.abort()
            else:
                route.continue_()

        page.route("**/explain", answer)
        files = [{"name": f"{i}.png", "mimeType": "image/png", "buffer": png()} for i in range(2)]
        page.set_input_files("#files", files)
        page.wait_for_selector("#cards > :nth-child(1)[data-state=scored]")
        card = page.wait_for_selector("#cards > :nth-child(2)[data-state=failed]")
        assert "the server does not answer; is it still running?" in card.inner_text()


def test_the_page_may_do_no_more_than_it_does(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/")
    answer = connection.getresponse()
    policy = answer.getheader("content-security-policy")
    text = answer.read().decode()
    connection.close()
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "innerHTML" not in text
    assert "http://" not in text + policy
    assert "https://" not in text + policy
    assert (answer.getheader("x-content-type-options"), answer.getheader("access-control-allow-origin")) == (
        "nosniff",
        None,
    )
