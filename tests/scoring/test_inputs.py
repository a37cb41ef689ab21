"""The table of docs/inputs.md, held true on files made anew."""

import re
from pathlib import Path

import bad_inputs
import pytest
import tiny_model

from contrique.scoring.inputs import find_images
from contrique.scoring.results import Failure, Score
from contrique.scoring.scorer import TOLERANCE, Scorer

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
TABLE = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", PAGE.read_text().partition("## A corpus")[2], re.MULTILINE))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs") / "corpus"
    bad_inputs.build(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    parts = tiny_model.build(tmp_path_factory.mktemp("model") / "parts")
    return Scorer(parts.encoder, parts.regressor)


@pytest.fixture(scope="module")
def alone(corpus, scorer):
    return {name: list(scorer.score_paths([corpus / name])) for name in TABLE}


def test_the_table_names_every_file_of_the_corpus(corpus):
    assert set(TABLE) == {path.name for path in corpus.iterdir()}
    assert len(TABLE) >= 40


@pytest.mark.parametrize("name", TABLE)
def test_each_file_gives_what_the_table_says(alone, corpus, name):
    (item,) = alone[name]
    (same,) = alone["same_png.png"]
    assert item.path == str(corpus / name)
    if TABLE[name] in ("same", "score"):
        assert isinstance(item, Score), item
        assert TABLE[name] == "score" or item.score == same.score
    else:
        assert isinstance(item, Failure)
        assert item.error.startswith(f"{corpus / name}: {TABLE[name]}")
        assert "\n" not in item.error


def test_a_bad_file_does_not_fail_its_neighbours(alone, corpus, scorer):
    paths = sorted(corpus.iterdir())
    together = list(scorer.score_paths(paths))
    assert [item.path for item in together] == [str(path) for path in paths]
    for item in together:
        (single,) = alone[Path(item.path).name]
        assert type(item) is type(single)
        if isinstance(item, Score):
            assert abs(item.score - single.score) <= TOLERANCE
        else:
            assert item == single


def test_a_folder_gives_its_image_files_and_names_what_it_cannot_read(corpus):
    skipped = []
    items = list(find_images([corpus], skipped))
    files = {item.name for item in items if isinstance(item, Path)}
    failures = {Path(item.path).name: item.error for item in items if isinstance(item, Failure)}
    assert {"same_png.png", "text.png"} <= files
    assert not {"loop.png", "pipe.png", "folder.png", "archive.zip"} & files
    assert "not a regular file" in failures["pipe.png"]
    assert "links to nothing" in failures["dangling.png"]
    assert "a format that is not supported (.heic" in failures["phone.heic"]
    assert {entry.path.name for entry in skipped} >= {"archive.zip", "film.mp4"}


def test_a_folder_is_walked_through_links_and_every_suffix(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "in").mkdir()
    for name in ("other/a.jfif", "other/b.gif", "in/c.jp2", "in/D.JPE"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in" / "year").symlink_to("../other")
    names = [str(path.relative_to(tmp_path / "in")) for path in find_images([tmp_path / "in"])]
    assert names == ["D.JPE", "c.jp2", "year/a.jfif", "year/b.gif"]


def test_an_empty_path_is_not_the_folder_around(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    assert list(find_images([""])) == [Failure("", "a path is empty; give a file, a folder or a pattern")]
