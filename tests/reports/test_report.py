"""The report and the model card: complete, self-contained, honest about their labels, the same bytes each time."""

import base64
import dataclasses
import hashlib
import html.parser
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_run
from PIL import Image

from contrique import images
from contrique.config import resolve
from contrique.data.manifest import as_manifest, read_manifest, write_manifest
from contrique.evaluation.extract import EXTREMES, pick_disagreements
from contrique.reports.card import model_card
from contrique.reports.facts import METRICS, ReportError, list_rules
from contrique.reports.report import write
from contrique.reports.tiles import TILE, contact_sheet, extremes

VOID = {"meta", "img", "br", "link", "input", "hr"}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_run.build(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module")
def human(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_run.build(tmp_path_factory.mktemp("human"), "mos", champion=True)


def pictures(arguments: dict[str, Any]) -> Path:
    """The picture set that the run distorted."""
    return arguments["trained"].extract.parent / "distorted"


def write_page(folder: Path, arguments: dict[str, Any], **changes: Any) -> str:
    write(folder / "report.html", **(arguments | changes))
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def page(arguments, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("out"), arguments)


@pytest.fixture(scope="module")
def human_page(human, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("out"), human)


def load(arguments: dict[str, Any], name: str) -> Any:
    path = {"evaluation": arguments["trained"].evaluation / "evaluation.json", "verdict": arguments["trained"].verdict}[
        name
    ]
    return json.loads(path.read_text())


class Structure(html.parser.HTMLParser):
    """Checks that tags nest, and collects what would be loaded, what pictures say, and ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.descriptions: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: str(value) for name, value in attrs}
        self.addresses += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag in ("img", "svg"):
            self.descriptions.append(values.get("alt" if tag == "img" else "aria-label", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_is_one_file_that_loads_nothing(page):
    structure = Structure(page)
    assert not structure.open
    assert structure.addresses
    assert all(address.startswith(("data:", "#")) for address in structure.addresses)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "<script" not in page


def test_links_inside_the_page_lead_somewhere(page):
    structure = Structure(page)
    assert {address[1:] for address in structure.addresses if address.startswith("#")} <= set(structure.ids)


def test_two_figures_share_no_id_but_of_one_marker(page):
    structure = Structure(page)
    twice = {name for name in structure.ids if structure.ids.count(name) > 1}
    shapes = {re.search(rf'<path id="{name}" d="([^"]*)"', page).group(1) for name in twice}
    assert len(shapes) == len(twice), "an id names two different shapes"


def test_every_figure_says_what_it_shows(page):
    descriptions = Structure(page).descriptions
    assert len(descriptions) > 20
    assert all(descriptions)


def test_colours_follow_the_page(page):
    """No ink or line of a figure keeps a colour that vanishes on a dark page."""
    assert "prefers-color-scheme: dark" in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(svgs) == 5
    for svg in svgs:
        assert "var(--ink)" in svg
        assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]|#000000|#ffffff", svg)


def test_gives_every_figure_with_its_interval(page, arguments):
    evaluation = load(arguments, "evaluation")
    for name, judgement, between in (
        ("protocol", evaluation["protocol"], '</td><td class="number">'),
        ("challenger", evaluation["challenger"], '<br><span class="muted">'),
    ):
        for estimate in judgement["metrics"].values():
            cells = f"{estimate['value']:.3f}{between}[{estimate['low']:.3f}, {estimate['high']:.3f}]"
            assert cells in page, name
    assert "leave-one-content-out" in page
    assert load(arguments, "verdict")["reason"].partition(": ")[2] in page


def test_says_weak_labels_and_never_mos_of_them(page, arguments):
    assert "Judged against weak labels" in page
    for text in (re.sub(r"data:[^\"]*", "", page), model_card(arguments["trained"])):
        assert "weak label" in text
        assert "MOS" not in text
        assert "human opinion" not in text


def test_says_human_scores_of_human_scores(human_page, human):
    assert "Agreement with human opinion scores" in human_page
    for text in (human_page, model_card(human["trained"])):
        assert "weak label" not in text
    assert re.search(r">MOS <strong>", human_page)


def test_compares_with_the_champion(human_page, human):
    numbers, champion = load(human, "verdict")["numbers"], load(human, "evaluation")["champion"]
    assert "champion<br>version 7" in human_page
    assert f"challenger minus champion {numbers['difference']:.3f}" in human_page
    for name in ("jpeg", "white noise"):
        assert f"fall of SRCC on {name} (8 pictures)" in human_page
    assert f"{champion['metrics']['krcc']['value']:.3f}<br>" in human_page


def test_shows_the_pairs_on_which_challenger_and_champion_differ_most(human_page, human, page):
    scores = pd.read_parquet(human["trained"].evaluation / "test_scores.parquet")
    pairs = pick_disagreements(scores)
    assert pairs
    section = human_page.partition('<section id="disagreements">')[2].partition("</section>")[0]
    assert section.count('<div class="pair">') == len(pairs)
    for defender, pair in pairs:
        equal, apart = (
            scores[f"{name}_points"] for name in (("challenger", "champion"), ("champion", "challenger"))[defender]
        )
        assert abs(equal[pair.worse] - equal[pair.better]) <= 1 < apart[pair.better] - apart[pair.worse]
        for number in (pair.worse, pair.better):
            row = scores.iloc[number]
            assert f"challenger <strong>{row['challenger_points']:.1f}</strong>" in section
            assert f"champion <strong>{row['champion_points']:.1f}</strong>, MOS <strong>{row['label']:.2f}<" in section
            assert row["reference"] in section
    assert "disagreements" not in page, "there is no champion"


def test_text_from_outside_is_escaped(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_lineage_and_registry(page, arguments):
    digest = hashlib.sha256((arguments["trained"].encoder / "encoder.safetensors").read_bytes()).hexdigest()
    for fact in ("abc.dir", "a-run", "c0de", digest, "contrique version 3", "seed 5", "&#34;steps&#34;: 29"):
        assert fact in page, fact


def test_same_run_same_bytes(page, arguments, tmp_path):
    assert write_page(tmp_path, arguments) == page


def test_stays_small(page):
    assert len(page) < 3_000_000


class TestRules:
    def test_are_those_of_the_verdict(self, human):
        verdict = load(human, "verdict")
        rules = list(list_rules(verdict))
        assert [rule.observed for rule in rules[:2]] == [
            verdict["numbers"]["challenger_srcc"],
            verdict["numbers"]["difference_low"],
        ]
        assert len(rules) == 2 + len(tiny_run.NAMES)
        assert all(rule.met for rule in rules) == verdict["promote"]

    @pytest.mark.parametrize(
        ("part", "expected"),
        [({"fall": 0.15}, True), ({"fall": 0.16}, False), ({"fall": None}, False), ({"n": 3}, None)],
    )
    def test_a_slice_is_judged_as_the_gate_judges_it(self, human, part, expected):
        verdict = load(human, "verdict")
        whole = {"n": 4, "challenger": 0.5, "champion": 0.6, "fall": 0.1}
        verdict["numbers"]["slices"] = {"jpeg": whole | part}
        assert [rule.met for rule in list(list_rules(verdict))[2:]] == ([] if expected is None else [expected])


def test_a_hold_without_a_champion(arguments, tmp_path):
    verdict = load(arguments, "verdict") | {"promote": False, "reason": "hold: no"}
    verdict["numbers"] = {"n": 4, "contents": 2}  # the challenger could not be judged
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    trained = dataclasses.replace(arguments["trained"], verdict=tmp_path / "verdict.json")
    text = write_page(tmp_path, arguments, trained=trained, outcome={})
    assert "There is no champion yet" in text
    assert "undefined" in text
    assert "✗ not met" in text


def test_the_cross_set_matrix_is_put_in_as_it_is(arguments, page, tmp_path):
    (tmp_path / "matrix.html").write_text("<table><tr><td>TID2013 on LIVE</td></tr></table>")
    assert "<td>TID2013 on LIVE</td>" in write_page(tmp_path, arguments, cross_set=tmp_path / "matrix.html")
    assert "cross-set" not in page


def test_the_interval_of_a_score_is_told_in_points(arguments, tmp_path):
    folder = tmp_path / "regressor"
    shutil.copytree(arguments["trained"].regressor, folder)
    document = json.loads((folder / "regressor.json").read_text())
    width = document["label_high"] - document["label_low"]
    (folder / "regressor.json").write_text(json.dumps(document | {"interval": 0.25 * width, "interval_n": 77}))
    card = model_card(dataclasses.replace(arguments["trained"], regressor=folder))
    assert "| 90% conformal, ± 25.0 points, from 77 residuals out of fold |" in card
    (folder / "regressor.json").write_text(json.dumps(document | {"interval": None}))
    assert "conformal" not in model_card(dataclasses.replace(arguments["trained"], regressor=folder))


def test_a_run_without_probes_has_one_curve(arguments, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(arguments["trained"].encoder, folder)
    (folder / "history.jsonl").write_text('{"step": 1, "loss": 2.0, "lr": 0.1}\n')
    text = write_page(tmp_path, arguments, trained=dataclasses.replace(arguments["trained"], encoder=folder))
    assert len(re.findall("<svg", text)) == 4
    assert "linear probe" not in text


@pytest.mark.parametrize("frozen", [True, False])
def test_page_and_card_say_whose_encoder_it_was(arguments, frozen, tmp_path):
    """Also if its name is markup, and how to make the model again."""
    folder = tmp_path / "encoder"
    shutil.copytree(arguments["trained"].encoder, folder)
    origin = {"start": "ab" * 32, "start_name": "runs/<b>mine</b>", "frozen": frozen, "steps": 300}
    (folder / "summary.json").write_text(json.dumps(origin))
    if frozen:
        (folder / "history.jsonl").write_text("")
    trained = dataclasses.replace(arguments["trained"], encoder=folder, config=resolve("demo"))
    card, text = model_card(trained), write_page(tmp_path, arguments, trained=trained)
    assert f"SHA-256 {'ab' * 32}, {'used as it is' if frozen else 'trained on from'} |" in card
    assert ("nothing was pretrained" in text) == frozen
    assert "<b>mine" not in text
    (command,) = (line for line in card.splitlines() if "--encoder 'runs/" in line)
    assert "<b>mine" not in card.replace(command, ""), "but in code"
    assert ("--set pretrain.steps=300" in card) != frozen


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("encoder", "encoder.safetensors"),
        ("extract", "lineage.json"),
        ("evaluation", "evaluation.json"),
        ("regressor", "regressor.json"),
    ],
)
def test_a_missing_file_is_named(arguments, name, file, tmp_path):
    trained = dataclasses.replace(arguments["trained"], **{name: tmp_path})
    with pytest.raises(ReportError, match=file):
        write(tmp_path / "report.html", **(arguments | {"trained": trained}))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("text", ['{"step": 1, "loss": 2.0, "lr": 0.1}\n{"step": 2, "lo', "[1, 2"])
def test_a_damaged_file_is_named(arguments, text, tmp_path):
    shutil.copytree(arguments["trained"].encoder, tmp_path / "encoder")
    (tmp_path / "encoder" / "history.jsonl").write_text(text)
    with pytest.raises(ReportError, match=r"history\.jsonl: not valid JSON"):
        model_card(dataclasses.replace(arguments["trained"], encoder=tmp_path / "encoder"))


class TestContactSheet:
    def test_shows_the_middle_of_the_pictures_by_rising_level(self, arguments):
        sheet = contact_sheet(pictures(arguments))
        assert {name: [level for level, _ in tiles] for name, tiles in sheet.rows.items()} == {
            name: [1, 2, 3, 4] for name in tiny_run.NAMES
        }
        assert list(sheet.rows) == ["jpeg", "white_noise"], "in the order of the bank"
        for name, tiles in sheet.rows.items():
            for level, uri in tiles:
                tile = decode(uri)
                assert tile.shape == (100, TILE[0], 3)
                assert likest(tile, pictures(arguments), slice(24, 216)) == f"0{tiny_run.NAMES.index(name)}-{level}"

    def test_begins_with_the_photograph(self, arguments):
        tile = decode(contact_sheet(pictures(arguments)).photograph)
        assert likest(tile, pictures(arguments)) == "0-0"

    def test_of_photographs_alone_is_none(self, arguments, tmp_path):
        manifest = read_manifest(pictures(arguments))
        write_manifest(manifest.assign(distortion="", level=0), tmp_path)
        assert contact_sheet(tmp_path) is None


Pixels = np.ndarray[Any, np.dtype[Any]]


def decode(uri: str) -> Pixels:
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def likest(tile: Pixels, folder: Path, columns: slice = slice(None)) -> str:
    """The picture of a folder, cut to some columns, that a JPEG of it is likest to."""
    likeness = {
        path.stem: np.corrcoef(tile.mean(axis=2).ravel(), images.read(path)[:, columns].mean(axis=2).ravel())[0, 1]
        for path in folder.glob("*.png")
    }
    return max(likeness, key=lambda name: likeness[name])


@pytest.fixture(scope="module")
def scores(arguments) -> pd.DataFrame:
    return pd.read_parquet(arguments["trained"].evaluation / "test_scores.parquet")


@pytest.fixture(scope="module")
def card(arguments) -> str:
    return model_card(arguments["trained"])


class TestExtremes:
    def test_are_what_the_scores_say(self, arguments, scores):
        best, worst, far = extremes(scores, pictures(arguments)).values()
        ranking = scores.sort_values("challenger")
        assert [picture.predicted for picture in worst] == list(ranking["challenger"][:EXTREMES])
        assert [picture.predicted for picture in best] == list(ranking["challenger"][::-1][:EXTREMES])
        error = np.sort(np.abs(scores["challenger"] - scores["label"]))[::-1]
        assert [abs(picture.predicted - picture.label) for picture in far] == pytest.approx(list(error[:EXTREMES]))

    def test_show_the_picture_that_they_name(self, arguments, scores):
        rows = scores[scores["distortion"] == "jpeg"].nlargest(1, "challenger")
        (picture, *_), *_ = extremes(rows, pictures(arguments)).values()
        name = rows["image"].iloc[0].removesuffix(".png")
        assert picture.version == f"jpeg {name[-1]}"
        assert likest(decode(picture.uri), pictures(arguments)) == name

    def test_of_a_picture_that_is_nowhere(self, arguments, scores, tmp_path):
        write_manifest(as_manifest([]), tmp_path)
        with pytest.raises(ReportError, match="in none of"):
            extremes(scores, tmp_path)


def with_attacks(run: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Card and page of a run whose models were attacked."""
    trained = tiny_run.add_attacks(run["trained"], folder)
    return model_card(trained), write_page(folder, run, trained=trained)


class TestModelCard:
    def test_is_the_one_that_the_page_carries(self, page, card):
        (uri,) = re.findall(r'href="(data:text/markdown[^"]*)" download="model_card.md"', page)
        assert base64.b64decode(uri.partition(",")[2]).decode() == card

    def test_has_every_section(self, card):
        sections = re.findall(r"^## (.*)$", card, re.M)
        assert sections == [
            *("Intended use", "Score", "Data", "Training", "Figures", "Limits", "Verdict", "Licence", "Reproduce")
        ]

    def test_every_table_is_one(self, card):
        """Each row has as many cells as its header."""
        for table in re.findall(r"(?:^\|.*\n)+", card, re.M):
            header, rule, *rows = table.splitlines()
            assert set(rule) <= set("|-")
            assert rows
            for row in rows:
                assert len(re.findall(r"(?<!\\)\|", row)) == header.count("|"), row

    def test_has_the_attacks_of_an_evaluation(self, human, tmp_path):
        card, page = with_attacks(human, tmp_path)
        sections = re.findall(r"^## (.*)$", card, re.M)
        assert sections.index("Gaming the score") == sections.index("Figures") + 1
        assert "| attack | mean rise | interval | rise by more than 5 | champion's mean rise |" in card
        assert "| black border | +12.5 | [+10.0, +15.0] | 75 % | -3.0 |" in card
        assert "| gradient | undefined | [undefined, undefined] | 0 % | -3.0 |" in card
        self.test_every_table_is_one(card)
        section = page.partition('<section id="gaming">')[2].partition("</section>")[0]
        assert "+12.5<br>" in section
        assert "rise by black border beyond the champion&#39;s, lower bound (points)" in page

    def test_has_none_where_no_attack_was_tried(self, card, page):
        assert "Gaming" not in card
        assert 'id="gaming"' not in page

    def test_figures_come_with_intervals(self, card, arguments):
        for judgement in (load(arguments, "evaluation")["protocol"], load(arguments, "evaluation")["challenger"]):
            for name, estimate in judgement["metrics"].items():
                interval = f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"
                assert f"| {METRICS[name]} | {estimate['value']:.3f} | {interval} |" in card

    def test_says_range_and_direction(self, card):
        assert "| direction | higher is better |" in card
        assert "| range | 0 to 100 |" in card

    def test_limits_follow_from_the_slices(self, arguments, tmp_path):
        evaluation = load(arguments, "evaluation")
        estimate = evaluation["protocol"]["metrics"]["srcc"]
        evaluation["protocol"]["slices"] = {
            name: {"n": 9, "srcc": srcc}
            for name, srcc in (
                ("jpeg", estimate | {"low": 0.2}),
                ("sharpen", estimate | {"low": -0.2}),
                ("lens_blur", None),
            )
        }
        shutil.copytree(arguments["trained"].evaluation, tmp_path / "evaluation")
        (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation))
        card = model_card(dataclasses.replace(arguments["trained"], evaluation=tmp_path / "evaluation"))
        assert "is above zero) for: jpeg.\n" in card
        assert "(the interval reaches zero) for: sharpen.\n" in card
        assert "It is undefined for: lens blur.\n" in card
        assert re.search(r"none of the judged pictures has: gaussian blur, .*contrast\.\n", card)

    def test_the_command_makes_the_same_run_again(self, card):
        import shlex

        import pipelines.__main__

        (command,) = re.findall(r"^    (python -m pipelines .*)$", card, re.M)
        options = pipelines.__main__.build_parser().parse_args(shlex.split(command)[3:])
        assert (options.profile, options.seed) == ("demo", 5)
        assert options.data == "<script>alert(1)</script>"
        assert resolve("demo", dict([options.set[0].split("=")])) == resolve("demo", {"pretrain.steps": 29})

    def test_says_the_licences_that_the_manifest_says(self, card):
        assert "Code: Apache-2.0." in card
        assert "| CC0-1.0 | 45 |" in card

    def test_is_the_same_each_time(self, card, arguments):
        assert model_card(arguments["trained"]) == card


def test_every_metric_has_a_name(arguments):
    assert set(load(arguments, "evaluation")["protocol"]["metrics"]) <= METRICS.keys()
