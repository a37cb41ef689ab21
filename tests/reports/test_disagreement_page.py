"""Two models on one folder: the pairs are those of the scores, and the page shows what it names and nothing else."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_model
from PIL import Image

from contrique.evaluation.disagreement import find_pairs
from contrique.metrics import EvaluationError
from contrique.reports.disagreement import find_disagreement, write_page
from contrique.scoring.scorer import Scorer

HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Scorer, Scorer]:
    folder = tmp_path_factory.mktemp("models")
    parts = [tiny_model.build(folder / f"model-{seed}", seed) for seed in (0, 1)]
    return tuple(
        Scorer(each.encoder, each.regressor, name) for each, name in zip(parts, ("3", "<b>mine</b>"), strict=True)
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Thirty pictures, one of them with a hostile name, one damaged and one too small."""
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(30):
        Image.fromarray(tiny_model.picture(i)).save(folder / (HOSTILE if i == 7 else f"{i:02}.png"))
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    Image.fromarray(tiny_model.picture(0)[:32]).save(folder / "small.png")
    return folder


@pytest.fixture(scope="module")
def result(models, photographs):
    return find_disagreement(models, [photographs], tolerance=20)


def test_pairs_are_those_of_the_two_models_scores(models, photographs, result):
    paths = sorted(path for path in photographs.iterdir() if path.name not in ("damaged.jpg", "small.png"))
    scores = [model.score([np.asarray(Image.open(path)) for path in paths]) for model in models]
    assert result.pictures == 30
    assert result.models == ("3", "<b>mine</b>")
    places = {str(path): i for i, path in enumerate(paths)}
    for defender, name in ((0, "A"), (1, "B")):
        expected = find_pairs(scores[defender], scores[1 - defender], tolerance=20)
        pairs = [pair for pair in result.pairs if pair.defender == name]
        assert len(pairs) >= 3
        assert [(places[p.worse.path], places[p.better.path], p.level) for p in pairs] == [
            (p.worse, p.better, p.level) for p in expected
        ]
        for pair in pairs:
            assert pair.worse.scores == pytest.approx([s[places[pair.worse.path]] for s in scores], abs=0.01)


def test_what_cannot_be_scored_is_named(result):
    assert sorted(Path(failure.path).name for failure in result.failures) == ["damaged.jpg", "small.png"]


def test_models_that_change_places_change_their_tables(models, photographs, result):
    other = find_disagreement(models[::-1], [photographs], tolerance=20)
    assert [(p.defender, p.worse.path, p.better.path) for p in other.pairs] == [
        ("BA"["AB".index(p.defender)], p.worse.path, p.better.path)
        for p in sorted(result.pairs, key=lambda pair: pair.defender, reverse=True)
    ]


def test_a_model_against_itself_has_no_pairs(models, photographs):
    result = find_disagreement((models[0], models[0]), [photographs])
    assert (result.pairs, result.srcc) == ([], pytest.approx(1))


@pytest.mark.parametrize("names", [["00.png"], ["damaged.jpg", "small.png"]])
def test_fewer_than_two_pictures_are_an_error(models, photographs, names):
    with pytest.raises(EvaluationError, match="both models score"):
        find_disagreement(models, [photographs / name for name in names])


@pytest.fixture(scope="module")
def page(result, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "page.html"
    write_page(out, result)
    return out.read_text()


def test_the_page_loads_nothing_and_shows_each_picture_of_a_pair(page, result, photographs):
    addresses = re.findall(r'(?:src|href)="([^"]*)"', re.sub("&lt;.*?&gt;", "", page))
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in page
    sources = [address for address in addresses if address.startswith("data:image")]
    pictures = [picture for pair in result.pairs for picture in (pair.worse, pair.better)]
    assert len(sources) == 2 * len(pictures), "whole and middle"
    for picture, middle in zip(pictures, sources[1::2], strict=True):
        pixels = np.array(Image.open(io.BytesIO(base64.b64decode(middle.partition(",")[2]))).convert("L"), np.int64)
        original = np.asarray(Image.open(picture.path).convert("L"), np.int64)
        assert np.abs(pixels - original).mean() < 3, picture.path


def test_the_page_says_models_scores_and_failures_and_obeys_no_name(page, result):
    assert "&lt;b&gt;mine&lt;/b&gt;, learned from human labels" in page
    assert "<b>mine" not in page
    assert "<img src=x" not in page
    assert "damaged.jpg" in page
    for pair in result.pairs:
        a, b = pair.worse.scores
        assert f"A <strong>{a:.1f}</strong>, B <strong>{b:.1f}</strong>" in page
        assert f"{pair.gap:.1f} points above" in page


def test_the_same_pairs_give_the_same_bytes(page, result, tmp_path):
    write_page(tmp_path / "page.html", result)
    assert (tmp_path / "page.html").read_text() == page


def test_json_holds_everything(result):
    plain = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert plain["pictures"] == 30
    assert plain["pairs"][0]["worse"].keys() == {"path", "scores"}
