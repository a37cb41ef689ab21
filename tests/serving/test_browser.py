"""The report and the model card in Debian's Chromium, on a desk and on a phone, by day and by night."""

from pathlib import Path
from typing import Any

import browser as chromium
import pytest
import tiny_model
import tiny_run
from PIL import Image

from contrique.evaluation.disagreement import LEVELS
from contrique.reports.card import model_card
from contrique.reports.disagreement import Disagreement, ScoredPair, ScoredPicture, write_page
from contrique.reports.report import write
from contrique.scoring.results import Failure

pytestmark = pytest.mark.timeout(300)

WHOLE = """<!doctype html><html lang="en"><title>x</title><link rel="icon" href="data:,"><body style="margin:0">
<svg role="img" width="200" height="100" aria-label="disc"><circle cx="50" cy="50" r="40"/></svg>"""
PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def browser():
    with chromium.launch_browser() as program:
        yield program


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tiny_run.build(tmp_path_factory.mktemp("run"), champion=True)
    trained = tiny_run.add_attacks(run["trained"], tmp_path_factory.mktemp("attacked"))
    return run | {"trained": trained}


@pytest.fixture(scope="module")
def page_of_run(browser, arguments, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out") / "report.html"
    write(out, **arguments)
    return chromium.address(out)


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("screen", chromium.SCREENS)
def test_the_report_is_whole(browser, page_of_run, screen, colours):
    with chromium.open_tab(browser, page_of_run, screen, colours) as (page, faults):
        assert chromium.list_faults(page) + faults == []
        assert len(page.query_selector_all("svg")) == 5
        assert len(page.query_selector_all("img")) > 20
        for details in page.query_selector_all("summary"):
            details.click()
        assert chromium.list_faults(page) + faults == []
        assert "# Model card" in page.inner_text("#card pre")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, page_of_run, colours):
    """Contrast of at least 4.5 to 1 (WCAG 2, level AA) for every colour of text, in figures too."""
    with chromium.open_tab(browser, page_of_run, "desktop", colours) as (page, _):
        poor = page.evaluate(CONTRAST)
    assert poor == []


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d");
    const light = colour => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = element => {
        for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (colour !== "rgba(0, 0, 0, 0)") return colour;
        }
        return "white";
    };
    const poor = new Set();
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!own || element.tagName === "style" || element.getAttribute("aria-hidden")) continue;
        const style = getComputedStyle(element);
        const text = element.closest("svg") ? style.fill : style.color;
        const [a, b] = [light(text), light(ground(element))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) poor.add(`${element.tagName} ${text} on ${ground(element)}`);
    }
    return [...poor];
}"""


@pytest.fixture(scope="module")
def page_of_pairs(browser, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    name = "a-name-without-a-place-to-break-it-" * 4
    pictures = [ScoredPicture(str(folder / f"{name}{i}.png"), (40.0, 10.0 * i)) for i in range(7)]
    for i, picture in enumerate(pictures):
        Image.fromarray(tiny_model.picture(i, 300, 400)).save(picture.path)
    pairs = [ScoredPair("A", "B", level, 60, pictures[0], picture) for level in LEVELS for picture in pictures[1:3]]
    pairs += [ScoredPair("B", "A", "high", 60, pictures[3], picture) for picture in pictures[4:]]
    failure = Failure("x", f"{name}: not an image")
    disagreement = Disagreement(("3", name), ("human", "weak"), 7, 0.5, 1.0, pairs, [failure])
    write_page(folder / "page.html", disagreement)
    return chromium.address(folder / "page.html")


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("screen", chromium.SCREENS)
def test_pairs_of_two_models_are_side_by_side(browser, page_of_pairs, screen, colours):
    with chromium.open_tab(browser, page_of_pairs, screen, colours) as (page, faults):
        assert chromium.list_faults(page) + faults == []
        assert page.evaluate(CONTRAST) == []
        pairs = page.query_selector_all(".pair")
        assert len(pairs) == 9
        for pair in pairs:
            left, right = (figure.bounding_box() for figure in pair.query_selector_all("figure"))
            assert left["y"] == right["y"]
            assert left["x"] + left["width"] <= right["x"]


def test_a_click_downloads_the_model_card(browser, page_of_run, arguments):
    with chromium.open_tab(browser, page_of_run, "desktop") as (page, _):
        with page.expect_download() as waiting:
            page.click("a[download]")
        assert waiting.value.suggested_filename == "model_card.md"
        assert Path(waiting.value.path()).read_text() == model_card(arguments["trained"])


def test_links_of_the_page_go_to_their_sections(browser, page_of_run):
    with chromium.open_tab(browser, page_of_run, "phone") as (page, _):
        for link in page.query_selector_all("nav a"):
            link.click()
            target = page.query_selector(link.get_attribute("href") + " h2")
            box = target.bounding_box()
            assert box["y"] < chromium.SCREENS["phone"][1], link.inner_text()


class TestWhatIsWrongIsSeen:
    """The checks themselves, on pages with one fault each."""

    @staticmethod
    def faults(browser, folder: Path, text: str) -> list[str]:
        (folder / "page.html").write_text(WHOLE + text)
        with chromium.open_tab(browser, chromium.address(folder / "page.html"), "desktop") as (page, errors):
            page.wait_for_timeout(100)  # for errors that come after the page
            return chromium.list_faults(page) + errors

    def test_nothing(self, browser, tmp_path):
        assert self.faults(browser, tmp_path, "") == []

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ('<div style="width: 2000px">wide</div>', "scrolls sideways"),
            (f'<img src="{PIXEL}" width="50" alt="plain">', "picture 'plain' is blank"),
            ('<img src="data:image/png;base64,AAAA" alt="broken">', "picture 'broken' is blank"),
            ('<svg width="200" height="100" aria-label="nothing"></svg>', "figure 'nothing' is blank"),
            ('<svg width="200" height="0" aria-label="flat"><circle r="9"/></svg>', "figure 'flat' is blank"),
            (f'<img src="{PIXEL}" width="50">', "image-alt"),
            ('<button type="button"></button>', "button-name"),
            ('<p style="color: #aaa; background: #fff">pale</p>', "color-contrast"),
            ("<script>console.error('oh no')</script>", "oh no"),
            ("<script>undefinedFunction()</script>", "undefinedFunction is not defined"),
            ('<img src="http://127.0.0.1:9/x.png" alt="away">', "requests http://127.0.0.1:9/x.png"),
        ],
    )
    def test_is_told(self, browser, tmp_path, text, fault):
        assert [line for line in self.faults(browser, tmp_path, text) if fault in line]


def test_a_missing_browser_fails_where_one_is_required(monkeypatch):
    monkeypatch.setattr(chromium, "PROGRAMS", ("no-such-browser",))
    monkeypatch.setenv("CONTRIQUE_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-browser"), chromium.launch_browser():
        pass
    monkeypatch.delenv("CONTRIQUE_REQUIRE_BROWSER")
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"), chromium.launch_browser():
        pass
