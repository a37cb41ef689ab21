"""A whole round of rating: by people in a browser, through a crash, to labels that `adapt` reads."""

import base64
import csv
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import browser as chromium
import numpy as np
import pytest
import tiny_model
import tiny_ratings
from PIL import Image
from test_rating_server import run_server

from contrique.cli.main import main
from contrique.metrics import srcc
from contrique.rating.session import Store

PIXELS = """async () => {
    await Promise.all([...document.querySelectorAll("#stage img")].map(image => image.decode()));
    return [...document.querySelectorAll("#stage img")].map(image => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext("2d").drawImage(image, 0, 0);
        return canvas.toDataURL("image/png").split(",")[1];
    });
}"""
READY = ", ".join(f"body[data-view={view}]" for view in ("pause", "end", "ask"))
READY = READY.replace("[data-view=ask]", "[data-view=ask] #answers button:enabled")


@pytest.fixture(scope="module")
def browser():
    with chromium.launch_browser() as program:
        yield program


def digest(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


def look(page, names):
    """Names of the pictures on the page, by their pixels; empty for one that is damaged."""
    photos = [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")) for png in page.evaluate(PIXELS)]
    return [names.get(digest(picture), "") for picture in photos]


def wait(page):
    """Until a question can be answered, or there is none."""
    page.wait_for_selector(READY, state="attached")
    return page.evaluate("document.body.dataset.view")


@contextmanager
def process(port, *arguments):
    """`contrique rate`, answering; killed at the end."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "contrique.cli", "rate", *map(str, arguments), "--port", str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60).read()
                    break
                except urllib.error.URLError:  # not yet listening
                    assert child.poll() is None, child.stderr.read().decode()
                    time.sleep(0.1)
            yield child
        finally:
            child.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_sixty_pictures_three_raters_one_crash(browser, tmp_path, capsys, monkeypatch):
    """One rater answers at random; the server is killed while another one answers."""
    monkeypatch.chdir(tmp_path)
    levels = tiny_ratings.write(tmp_path / "pictures", 60)
    names = {digest(np.asarray(Image.open(tmp_path / "pictures" / name))): name for name in levels}
    parts = tiny_model.build(tmp_path / "model")
    port = free_port()
    arguments = ("pictures", "--model", parts.encoder.parent, "--set", "rating.grey_seconds=0")
    store = tmp_path / "ratings/pictures"

    def judge(page, rng, rater):
        (name,) = look(page, names)
        if rater == "random":
            return int(rng.integers(1, 6))
        quality = 5 - 0.8 * levels[name] if name else 1
        return int(np.clip(round(quality + rng.normal(0, 0.5)), 1, 5))

    def answer_all(page, rng, rater, limit=1000):
        count = 0
        while (view := wait(page)) != "end" and count < limit:
            if view == "pause":
                page.keyboard.press("Enter")
                continue
            page.keyboard.press(str(judge(page, rng, rater)))
            count += 1
        return count

    def begin(page, rater):
        page.fill("#rater", rater)
        page.keyboard.press("Enter")

    rngs = {rater: np.random.default_rng(seed) for seed, rater in enumerate(("anna", "ben", "random"))}
    address = f"http://127.0.0.1:{port}/"
    with process(port, *arguments) as child:
        with chromium.open_tab(browser, address, "desktop") as (page, faults):
            begin(page, "anna")
            total = answer_all(page, rngs["anna"], "anna")
            assert faults == []
        with chromium.open_tab(browser, address, "phone") as (page, _):
            begin(page, "ben")
            assert answer_all(page, rngs["ben"], "ben", 30) == 30
            wait(page)
            child.send_signal(signal.SIGKILL)
            child.wait(20)
            answer_count = len(Store(store).read("ben"))
            assert answer_count == 30
            page.keyboard.press("3")
            page.wait_for_selector("#again:not([hidden])")
            assert "server does not answer" in page.inner_text("#failure")
            with process(port, *arguments):
                page.click("#again")  # the answer that was on its way is sent again
                wait(page)
                assert len(Store(store).read("ben")) == 31
                page.reload()
                assert page.input_value("#rater") == "ben"
                page.keyboard.press("Enter")
                assert answer_all(page, rngs["ben"], "ben") == total - 31
                with chromium.open_tab(browser, address, "desktop") as (other, faults):
                    begin(other, "random")
                    assert answer_all(other, rngs["random"], "random") == total
                    assert faults == []
    assert [len(Store(store).read(rater)) for rater in rngs] == [total] * 3

    assert main(["rate", "pictures", "--export", "pictures/labels.csv"]) == 0
    output = capsys.readouterr().out
    assert "2 of 3 raters count" in output
    assert "left out: rater 'random': correlation" in output
    assert "rater 'anna': 60 answers" in output
    assert "3 of 3 golden pairs right" in output
    assert "half of that takes four times as many: 6 more a picture, 360 answers in all" in output
    with (tmp_path / "pictures/labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "mos", "interval", "n", "reference"]
    assert {row["image"] for row in rows} == set(levels)
    assert {row["n"] for row in rows} == {"2"}
    value = srcc([float(row["mos"]) for row in rows], [-levels[row["image"]] for row in rows])
    with capsys.disabled():
        print(f"\nSRCC of the exported MOS with the true order: {value:.3f}; {total} questions a rater\n{output}")
    assert value > 0.9

    assert (
        main(["adapt", "--labels", "pictures/labels.csv", "--model", str(parts.encoder.parent), "--out", "mine"]) == 0
    )
    output = capsys.readouterr().out
    assert "60 pictures of 60 contents" in output
    assert "as it is: SRCC" in output
    assert main(["score", "pictures/000.png", "--model", "mine"]) == 0


@pytest.mark.parametrize("method", ["acr", "pairs"])
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("screen", chromium.SCREENS)
def test_the_page_to_the_eye(browser, tmp_path, screen, colours, method):
    tiny_ratings.write(tmp_path / "p", 6)
    session = tiny_ratings.begin(tmp_path / "p", tmp_path / "s", method, rounds=1, training=2, break_every=3)
    with (
        run_server(session, tmp_path / "s") as port,
        chromium.open_tab(browser, f"http://127.0.0.1:{port}/?rater=anna", screen, colours) as (page, faults),
    ):
        views = []
        assert chromium.violations(page) == []
        page.keyboard.press("Enter")
        while True:
            views.append(wait(page))
            assert chromium.list_faults(page) + faults == []
            if views[-1] not in views[:-1]:
                assert chromium.violations(page) == []
            if views[-1] == "end":
                break
            if views[-1] == "pause":
                page.keyboard.press("Enter")
            else:
                page.keyboard.press("4" if method == "acr" else "ArrowRight")
        assert set(views) == {"ask", "pause", "end"}
        page.click("#back")
        page.wait_for_selector("body[data-view=ask]")
        assert wait(page) == "ask"


def test_undo_by_key_and_by_button(browser, tmp_path):
    tiny_ratings.write(tmp_path / "p", 6)
    session = tiny_ratings.begin(tmp_path / "p", tmp_path / "s")
    with (
        run_server(session, tmp_path / "s") as port,
        chromium.open_tab(browser, f"http://127.0.0.1:{port}/?rater=anna", "desktop") as (page, faults),
    ):
        page.keyboard.press("Enter")
        wait(page)
        assert page.is_disabled("#undo")
        first = page.evaluate(PIXELS)
        for way in ("Backspace", "u", "button"):
            page.keyboard.press("2")
            page.wait_for_selector("#progress[value='1']", state="attached")
            wait(page)
            page.click("#undo") if way == "button" else page.keyboard.press(way)
            page.wait_for_selector("#progress[value='0']", state="attached")
            wait(page)
            assert page.evaluate(PIXELS) == first
        page.click("#answers >> text=Good")
        page.wait_for_selector("#progress[value='1']", state="attached")
        wait(page)
        assert [answer.answer for answer in Store(tmp_path / "s").read("anna")] == [4]
        assert "Question 2 of" in page.inner_text("#status")
        assert faults == []


@pytest.mark.slow
def test_pixels_are_one_to_one_or_the_page_says_so(browser, tmp_path):
    (tmp_path / "p").mkdir()
    for seed in range(5):
        Image.fromarray(tiny_ratings.draw(seed, 0, 1200, 1600)).save(tmp_path / f"p/{seed}.png")
    session = tiny_ratings.begin(tmp_path / "p", tmp_path / "s")
    tiny_ratings.write(tmp_path / "q", 5)
    small = tiny_ratings.begin(tmp_path / "q", tmp_path / "t")
    for folder, place, density, note in (
        (session, "s", 1, "larger than the window"),
        (session, "s", 2, ""),
        (small, "t", 1, ""),
        (small, "t", 3, ""),
        (small, "t", 1.25, "set its zoom to 100 %"),
    ):
        with run_server(folder, tmp_path / place) as port:
            context = browser.new_context(viewport={"width": 1280, "height": 900}, device_scale_factor=density)
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{port}/?rater=anna")
            page.keyboard.press("Enter")
            wait(page)
            natural, width = page.evaluate(
                "(() => { const i = document.querySelector('#stage img'); "
                "return [i.naturalWidth, i.getBoundingClientRect().width * devicePixelRatio]; })()"
            )
            assert note in page.inner_text("#note") if note else page.is_hidden("#note")
            assert (abs(width - natural) < 0.02) == ("window" not in note)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(128, 128, 128)"
            page.keyboard.press("3")
            page.wait_for_selector("#progress[value='1']", state="attached")
            wait(page)
            scale = Store(tmp_path / place).read("anna")[0].scale
            assert (scale < 1) == ("window" in note)
            page.click("#undo")
            page.wait_for_selector("#progress[value='0']", state="attached")
            context.close()


def test_a_second_tab_and_a_picture_that_is_gone(browser, tmp_path):
    tiny_ratings.write(tmp_path / "p", 6)
    session = tiny_ratings.begin(tmp_path / "p", tmp_path / "s")
    with run_server(session, tmp_path / "s") as port:
        address = f"http://127.0.0.1:{port}/?rater=anna"
        with (
            chromium.open_tab(browser, address, "desktop") as (first, _),
            chromium.open_tab(browser, address, "phone") as (second, _),
        ):
            for page in (first, second):
                page.keyboard.press("Enter")
                wait(page)
            first.keyboard.press("2")
            first.wait_for_selector("#progress[value='1']", state="attached")
            second.keyboard.press("5")
            second.wait_for_selector("#failure:not([hidden])")
            assert "perhaps in another tab" in second.inner_text("#failure")
            wait(second)
            assert second.evaluate("document.querySelector('#progress').value") == 1
            assert [answer.answer for answer in Store(tmp_path / "s").read("anna")] == [2]
            for path in (tmp_path / "p").iterdir():
                path.rename(path.with_suffix(".away"))
            second.keyboard.press("5")  # the next one is here already
            wait(second)
            second.keyboard.press("5")
            second.wait_for_selector("#again:not([hidden])")
            assert "cannot be read" in second.inner_text("#failure")
            for path in (tmp_path / "p").iterdir():
                path.rename(path.with_suffix(".png"))
            second.click("#again")
            wait(second)
            assert second.is_hidden("#failure")


def test_the_command_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_ratings.write(tmp_path / "p", 6)
    (tmp_path / "other").mkdir()
    place = tmp_path / "ratings/p"
    tiny_ratings.begin(tmp_path / "p", place)
    for arguments, line in (
        (["p", "--rater", "../x"], "give a name of 1 to 40 letters"),
        (["p", "--method", "pairs"], "was begun with --method acr"),
        (["p", "--seed", "3"], "was begun with --seed 0"),
        (["other", "--session", str(place)], "is a session of the pictures in"),
        (["none", "--choose", "random"], "none: no folder"),
        (["p", "--export", "labels.csv"], "no picture of this session is rated yet"),
        (["other", "--export", "labels.csv"], "no session of `contrique rate`"),
        (["p", "--session", "/proc/x"], "/proc/x: cannot be written"),
    ):
        assert main(["rate", *arguments, "--port", "0"]) == 2
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1
