"""What the page of `contrique serve` does beyond scoring one picture after the other: compare, folders, CSV."""

import base64
import csv
import io

import browser as chromium
import pytest
import tiny_model
from test_app import png, run_server
from test_browser import CONTRAST

from contrique import images
from contrique.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    parts = tiny_model.build(tmp_path_factory.mktemp("page") / "model")
    return Scorer(parts.encoder, parts.regressor, "bundled")


@pytest.fixture(scope="module")
def port(scorer):
    with run_server(scorer) as number:
        yield number


@pytest.fixture(scope="module")
def browser():
    with chromium.launch_browser() as program:
        yield program


def upload(name: str, seed: int, *size: int) -> dict[str, object]:
    return {"name": name, "mimeType": "image/png", "buffer": png(seed, *size)}


def wait_for_cards(page, count: int) -> None:
    page.wait_for_selector(f"#cards > li:nth-child({count}):is([data-state=scored], [data-state=failed])")


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("screen", chromium.SCREENS)
def test_two_pictures_behind_one_boundary(browser, port, scorer, screen, colours):
    with chromium.open_tab(browser, f"http://127.0.0.1:{port}/", screen, colours) as (page, faults):
        assert "model bundled" in page.inner_text("header")
        assert "comes with the package" in page.inner_text("header")
        page.set_input_files("#files", [upload(f"{i}.png", i, 96 + 32 * i, 160) for i in range(3)])
        wait_for_cards(page, 3)
        scores = [scorer.judge(png(i, 96 + 32 * i, 160), "x").score for i in range(3)]
        boxes = page.query_selector_all("#cards .compare")
        boxes[0].check()
        assert page.is_hidden("#comparison")
        boxes[1].check()
        assert page.is_visible("#comparison")
        better = "left" if scores[0] > scores[1] else "right"
        words = f"left: 0.png, {scores[0]:.1f}; right: 1.png, {scores[1]:.1f}; {better} is better by "
        assert page.inner_text("#difference").startswith(words)
        page.focus("#boundary")
        page.keyboard.press("Home")
        clip = "document.querySelector('#pair > :last-child').style.clipPath"
        assert page.evaluate(clip) in ("inset(0px)", "inset(0px 0px 0px 0%)")
        page.keyboard.press("End")
        assert "100%" in page.evaluate(clip)
        assert page.get_attribute("#pair > :first-child", "alt") == "0.png"
        page.press("#heats", "Enter")
        assert page.get_attribute("#pair > :first-child", "alt") == "heat map of 0.png"
        assert page.get_attribute("#pair > :last-child", "src").startswith("data:image/png;base64,")
        page.evaluate("Promise.allSettled([...document.images].map(image => image.decode()))")
        assert chromium.list_faults(page) + faults == []
        assert page.evaluate(CONTRAST) == []
        boxes[2].check()  # takes the place of the first
        assert not boxes[0].is_checked()
        assert page.inner_text("#difference").startswith("left: 1.png")
        boxes[2].uncheck()
        assert page.is_hidden("#comparison")
        page.click("#clear")
        assert page.query_selector_all("#cards > li") == []


def test_a_folder_by_the_button_and_by_the_hand(browser, port, tmp_path):
    root = tmp_path / "holiday"
    (root / "wood").mkdir(parents=True)
    for number, name in enumerate(("b10.png", "b9.png", "wood/fern.PNG")):
        (root / name).write_bytes(png(number))
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    with chromium.open_tab(browser, f"http://127.0.0.1:{port}/", "desktop") as (page, faults):
        page.set_input_files("#folder", root)
        wait_for_cards(page, 3)
        names = [title.inner_text() for title in page.query_selector_all("#cards h2")]
        assert names == ["holiday/b9.png", "holiday/b10.png", "holiday/wood/fern.PNG"]
        assert page.inner_text("#status").startswith("3 of 3 pictures done")
        page.click("#clear")
        # A page cannot make a folder to drop: these entries are what Chromium gives of one, 2 names in each piece.
        page.evaluate(
            """data => {
                const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
                const leaf = path => ({isFile: true, fullPath: path,
                    file: done => done(new File([bytes], path.split("/").pop(), {type: "image/png"}))});
                const folder = (path, inner) => ({isDirectory: true, fullPath: path, createReader: () => {
                    const left = [...inner];
                    return {readEntries: done => setTimeout(() => done(left.splice(0, 2)))};
                }});
                const tree = folder("/trip", [leaf("/trip/1.png"), leaf("/trip/a.txt"),
                    folder("/trip/sub", [leaf("/trip/sub/2.png")]), leaf("/trip/3.png")]);
                const event = new DragEvent("drop", {bubbles: true, cancelable: true});
                Object.defineProperty(event, "dataTransfer", {value: {files: [],
                    items: [{webkitGetAsEntry: () => tree}]}});
                document.body.dispatchEvent(event);
            }""",
            base64.b64encode(png()).decode(),
        )
        wait_for_cards(page, 3)
        names = [title.inner_text() for title in page.query_selector_all("#cards h2")]
        assert names == ["trip/1.png", "trip/3.png", "trip/sub/2.png"]
        assert page.inner_text("#status") == "3 of 3 pictures done; 1 other file left out"
        assert faults == []


def test_rows_are_copied_as_csv_and_none_is_a_formula(browser, port, scorer):
    with chromium.open_tab(browser, f"http://127.0.0.1:{port}/", "desktop") as (page, faults):
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        damage = {"name": 'say "b".png', "mimeType": "image/png", "buffer": png()[:300]}
        page.set_input_files("#files", [upload("=1+1.png", 1), upload("a,\n.png", 2), damage])
        wait_for_cards(page, 3)
        page.click("#copy")
        page.get_by_text("3 rows copied").wait_for()
        table = list(csv.DictReader(io.StringIO(page.evaluate("navigator.clipboard.readText()"))))
        assert [row["name"] for row in table] == ["'=1+1.png", r"a,\u000a.png", 'say "b".png']
        for row, seed in zip(table[:2], (1, 2), strict=True):
            expected = scorer.judge_pixels(images.decode(png(seed), "x").pixels, "x")
            assert float(row["score"]) == pytest.approx(expected.score, abs=1e-6)
            assert row["model"] == "bundled"
        assert table[2]["score"] == ""
        assert "damaged or truncated" in table[2]["error"]
        assert faults == []
