"""The page's endpoints by a real server on a real port: turns, hostile requests, and what a picture gives away."""

import http.client
import io
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import tiny_ratings
from PIL import Image

from contrique.config import ServingLimits
from contrique.rating.interview import Interview
from contrique.rating.server import application
from contrique.rating.session import Store
from contrique.serving.app import create_server, listen

LIMITS = ServingLimits(decoders=1, seconds=30)


@contextmanager
def run_server(session, place):
    """The port of a server in a thread of this process."""
    with listen("127.0.0.1", 0) as listener:
        server = create_server(application(Interview(session, place, LIMITS), LIMITS), LIMITS)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def ask(port, path, body=None, **headers):
    """Status and content of an answer; `body` as JSON unless it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        names = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection.request("GET" if body is None else "POST", path, data, names)
        answer = connection.getresponse()
        content = answer.read()
        is_json = answer.getheader("content-type") == "application/json"
        return answer.status, json.loads(content) if is_json else content
    finally:
        connection.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rate") / "pictures"
    tiny_ratings.write(path, 12)
    return path


@pytest.fixture(params=["acr"])
def method(request):
    return request.param


@pytest.fixture
def place(tmp_path):
    return tmp_path / "session"


@pytest.fixture
def session(folder, place, method):
    return tiny_ratings.begin(folder, place, method, rounds=3)


@pytest.fixture
def port(session, place):
    with run_server(session, place) as number:
        yield number


def say(view, answer=3, **changes):
    values = {"rater": view["rater"], "question": view["question"], "answer": answer}
    return values | {"pictures": [picture["key"] for picture in view["pictures"]]} | changes


def test_one_question_after_another_until_the_end(port, session, place):
    _, view = ask(port, "/question?rater=Anna")
    assert (view["rater"], view["question"], view["training"], view["pause"]) == ("anna", 0, True, False)
    total = view["total"]
    for number in range(total):
        assert view["question"] == number
        status, view = ask(port, "/answer", say(view))
        assert status == 200
        assert len(Store(place).read("anna")) == number + 1, "on disk before the next question"
    assert view["pictures"] == []
    assert ask(port, "/answer", say(view | {"pictures": [{"key": "x"}]})) == (
        409,
        {"error": "every question is answered"},
    )
    status, view = ask(port, "/undo", {"rater": "anna", "question": total})
    assert (status, view["question"]) == (200, total - 1)


def test_a_reload_goes_on_and_raters_are_apart(port):
    _, view = ask(port, "/question?rater=anna")
    _, after = ask(port, "/answer", say(view))
    assert ask(port, "/question?rater=anna")[1] == after
    assert ask(port, "/question?rater=ben")[1]["question"] == 0


def test_breaks_come_after_training(folder, place):
    session = tiny_ratings.begin(folder, place, training=2, break_every=4)
    with run_server(session, place) as port:
        _, view = ask(port, "/question?rater=anna")
        pauses = []
        while view["pictures"]:
            pauses += [view["question"]] * view["pause"]
            _, view = ask(port, "/answer", say(view))
    assert pauses == [6, 10, 14, 18]


@pytest.mark.parametrize("method", ["acr", "pairs"], indirect=True)
def test_nothing_tells_what_a_question_is_for_or_what_the_model_thinks(port, session, folder):
    _, view = ask(port, "/question?rater=anna")
    pictures, keys = set(), set()
    while view["pictures"]:
        assert set(view) == {"rater", "question", "total", "training", "pause", "pictures", "ahead"}
        for picture in view["pictures"]:
            assert set(picture) == {"key", "width", "height"}
            keys.add(picture["key"])
        _, view = ask(port, "/answer", say(view, 1))
    originals = {(folder / p.image).read_bytes(): np.asarray(Image.open(folder / p.image)) for p in session.pictures}
    damage_count = 0
    for key in keys:
        status, data = ask(port, f"/picture/{key}")
        assert status == 200
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        same = [np.array_equal(pixels, original) for original in originals.values()]
        damage_count += not any(same)
        pictures.add(data)
    assert damage_count == len(session.golden) == 3
    assert len(pictures) == len(keys)


class TestHostile:
    def test_answers_out_of_order_are_refused(self, port, place):
        _, first = ask(port, "/question?rater=anna")
        _, second = ask(port, "/answer", say(first))
        for view, line in ((first, "question 1 is answered already"), (second | {"question": 5}, "is not asked yet")):
            status, response = ask(port, "/answer", say(view))
            assert status == 409
            assert line in response["error"]
        status, response = ask(port, "/answer", say(second, pictures=[first["pictures"][0]["key"]]))
        assert (status, response["error"]) == (409, "question 2 shows other pictures; load the page again")
        assert len(Store(place).read("anna")) == 1

    def test_a_second_tab_finds_the_answer_of_the_first(self, port):
        _, tab = ask(port, "/question?rater=anna")
        ask(port, "/answer", say(tab))
        status, response = ask(port, "/answer", say(tab, 1))
        assert status == 409
        assert "perhaps in another tab" in response["error"]
        status, response = ask(port, "/undo", {"rater": "anna", "question": 0})
        assert status == 409
        assert "question 2 is the next one" in response["error"]

    def test_many_at_once_keep_one_answer(self, port, place):
        _, view = ask(port, "/question?rater=anna")
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda i=i: statuses.append(ask(port, "/answer", say(view, i % 5 + 1))[0]))
            for i in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200] + [409] * 11
        assert len(Store(place).read("anna")) == 1

    @pytest.mark.parametrize("name", ["..%2Fx", "", "a%00b", "%3Cscript%3E", "x" * 50, "a%2Fb"])
    def test_names_that_are_none(self, port, place, name):
        status, response = ask(port, f"/question?rater={name}")
        assert status == 422
        assert "give a name of 1 to 40 letters" in response["error"]
        assert not list(place.rglob("*.jsonl"))

    @pytest.mark.parametrize("answer", [0, 6, -1, 2.5, "3", None, 10**30])
    def test_answers_that_are_none(self, port, place, answer):
        _, view = ask(port, "/question?rater=anna")
        status, response = ask(port, "/answer", say(view, answer))
        assert status == 422
        assert response["error"].count("\n") == 0
        assert not list(place.rglob("*.jsonl"))

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"[]", b"null", b'{"rater": "a"}', b"\xff", b'{"rater":"a","question":0,"pictures":[],"answer":1}'],
    )
    def test_bodies_that_are_none(self, port, body):
        status, response = ask(port, "/answer", body)
        assert status == 422
        assert "error" in response

    def test_large_bodies_and_other_types_are_refused(self, port):
        assert ask(port, "/answer", b"x" * 20_000)[0] == 413
        _, view = ask(port, "/question?rater=anna")
        assert ask(port, "/answer", say(view), content_type="text/plain")[0] == 422

    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": "http://127.0.0.1:1"},
            {"host": "evil.example"},
        ],
    )
    @pytest.mark.parametrize("path", ["/answer", "/undo"])
    def test_another_page_cannot_answer(self, port, place, path, headers):
        _, view = ask(port, "/question?rater=anna")
        status, response = ask(port, path, say(view), **headers)
        assert status in (400, 403)
        assert "error" in response
        assert not list(place.rglob("*.jsonl"))
        own = {"origin": f"http://127.0.0.1:{port}"}
        assert ask(port, "/answer", say(view), **own)[0] == 200

    @pytest.mark.parametrize(
        "path", ["/picture/x", "/picture/..%2F..%2Fetc%2Fpasswd", "/picture/000.png", "/../session.json", "/docs", "/x"]
    )
    def test_nothing_else_can_be_asked_for(self, port, path):
        status, response = ask(port, path)
        assert status == 404
        assert "error" in response

    def test_a_picture_that_changed_or_vanished_is_one_clear_error(self, tmp_path):
        folder, place = tmp_path / "p", tmp_path / "s"
        tiny_ratings.write(folder, 6)
        session = tiny_ratings.begin(folder, place)
        with run_server(session, place) as port:
            _, view = ask(port, "/question?rater=anna")
            path = folder / session.pictures[session.training[0]].image
            Image.fromarray(tiny_ratings.draw(99, 0)).save(path)
            status, response = ask(port, f"/picture/{view['pictures'][0]['key']}")
            assert status == 422
            assert "changed since the session began" in response["error"]
            path.unlink()
            status, response = ask(port, f"/picture/{view['pictures'][0]['key']}")
            assert status == 422
            assert "cannot be read" in response["error"]

    def test_answers_of_another_session_are_one_clear_error(self, port, place):
        lines = '{"question": 0, "part": "test", "images": ["zzz.png"], "damaged": [false], "answer": 3, '
        (place / "answers").mkdir()
        (place / "answers/eve.jsonl").write_text(lines + '"seconds": 1.0, "scale": 1.0, "time": ""}\n')
        status, response = ask(port, "/question?rater=eve")
        assert status == 422
        assert "not to this session's questions" in response["error"]


def test_the_page_may_do_no_more_than_it_does(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/")
    answer = connection.getresponse()
    policy, text = answer.getheader("content-security-policy"), answer.read().decode()
    connection.close()
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "innerHTML" not in text
    assert "://" not in text
