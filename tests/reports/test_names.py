"""Names of distortions, sets, licences and splits are a stranger's: report, card and figures show them, and no more."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import mistune
import pytest
import tiny_run

from contrique.reports import figures
from contrique.reports.card import model_card
from contrique.reports.report import write

HOSTILE = {
    "mathematics": ("price $\\frac{", "# <img src=x onerror=alert(1)> [a](javascript:alert(2))"),
    "markup": ("a | b\n# heading\n\n    code", "</svg><script>alert(3)</script> www.evil.test <!--"),
    "controls": ("\x1b[2J\u202egnp.exe", "1. ![x](https://evil.test/x.png) `" + "long" * 5000),
}
LINEAGE = {
    "counts": {"train/<script>alert(4)</script>": 2, "# heading": 1},
    "sources": {"![x](https://evil.test)": "abc.dir", "<b>": "abd.dir"},
    "licences": {"[free](https://evil.test)": 45, "<iframe src=//evil.test>": 1},
    "source": "s3://b/p\n# heading $x$",
    "revision": "<u>main</u>",
}


@pytest.fixture(scope="module", params=HOSTILE)
def run(request, tmp_path_factory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_run, "NAMES", HOSTILE[request.param])
        arguments = tiny_run.build(tmp_path_factory.mktemp("hostile"))
    place = arguments["trained"].extract / "lineage.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | LINEAGE))
    return arguments


class Elements(html.parser.HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            self.handlers += [name] * name.startswith("on")
            self.addresses += [str(value)] * (name in ("src", "href", "xlink:href"))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_card_has_no_heading_link_or_picture_of_a_stranger(run):
    card = model_card(run["trained"])
    render = mistune.create_markdown(escape=False, plugins=["url", "table", "strikethrough", "footnotes", "math"])
    page = Elements(render(card))
    assert set(page.tags) <= {
        "h1",
        "h2",
        "h3",
        "p",
        "ul",
        "li",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "code",
    }
    assert page.tags.count("h1") == 1
    headings = re.findall(r"^## (.*)$", card, re.M)
    assert page.tags.count("h2") == len(headings)
    assert "heading" not in " ".join(headings)
    assert not page.addresses
    assert all(char.isprintable() or char == "\n" for char in card)
    assert "evil.test" in page.text
    assert len(card) < 30_000


def test_the_page_shows_names_and_obeys_none(run, tmp_path):
    write(tmp_path / "report.html", **run)
    page = Elements((tmp_path / "report.html").read_text())
    assert not page.handlers
    assert not {"script", "iframe", "b", "u"} & set(page.tags)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


@pytest.mark.parametrize("name", ["price $\\frac{", "$x$ $$", "50 % \\alpha_{", "a\nb\x1b[2J"])
def test_a_figure_draws_a_name_as_it_is(name):
    estimate = {"value": 0.5, "low": 0.1, "high": 0.9}
    bars = figures.svg(figures.slice_bars({name: {"n": 9, "srcc": estimate}}), "slices", name)
    text = figures.readable(name)
    assert f"{text} (9)" in Elements(bars).text
    places = figures.embed(figures.np.random.default_rng(0).normal(size=(6, 3)).astype("float32"), 0)
    assert figures.svg(figures.feature_map(places, [name] * 6), "features", name)
    assert figures.svg(figures.score_scatter(_scores(), name), "scatter", name)


def _scores() -> Any:
    import pandas as pd

    return pd.DataFrame({"challenger": [1.0, 2, 3, 4, 5, 6], "label": [1.0, 2, 3, 4, 5, 7]})


def test_long_names_keep_a_figure_small(tmp_path: Path):
    estimate = {"value": 0.5, "low": 0.1, "high": 0.9}
    slices = {"x" * 30_000 + str(i): {"n": 9, "srcc": estimate} for i in range(3)}
    assert len(figures.svg(figures.slice_bars(slices), "slices", "bars")) < 100_000
