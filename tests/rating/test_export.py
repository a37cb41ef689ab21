"""From answers on disk to labels: simulated raters of both methods, odd names, tables that `adapt` reads."""

import csv
import dataclasses
import math
import shutil

import numpy as np
import pytest
import tiny_ratings
from PIL import Image

from contrique.config import RatingConfig
from contrique.metrics import srcc
from contrique.rating.candidates import RatingError
from contrique.rating.export import analyse, write_labels
from contrique.rating.questions import list_questions
from contrique.rating.session import Answer, Store
from contrique.sources.labels import read_labels

CONFIG = RatingConfig()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "pictures"
    tiny_ratings.write(path, 24)
    return path


def rate(session, store, rater, noise, limit=10_000, scale=1.0):
    """Answers of somebody who sees the level through noise; None answers at random."""
    rng = np.random.default_rng([ord(char) for char in rater])
    quality = {picture.image: 5 - 0.8 * (int(picture.image[:3]) % 6) for picture in session.pictures}
    answers = store.read(rater)
    while len(answers) < min(limit, len(questions := list_questions(session, rater, answers))):
        question = questions[len(answers)]
        names = tuple(session.pictures[i].image for i, _ in question.items)
        damage_flags = tuple(is_damaged for _, is_damaged in question.items)
        qualities = [
            (1.0 if is_damaged else quality[name]) + rng.normal(0, noise or 0)
            for name, is_damaged in zip(names, damage_flags, strict=True)
        ]
        if session.method == "pairs":
            value = int(rng.integers(2)) if noise is None else int(qualities[1] > qualities[0])
        else:
            value = int(rng.integers(1, 6)) if noise is None else int(np.clip(round(qualities[0]), 1, 5))
        store.append(rater, Answer(len(answers), question.part, names, damage_flags, value, 2.0, scale, ""))


@pytest.mark.parametrize(("method", "reason"), [("acr", "correlation"), ("pairs", "may be chance")])
def test_the_random_rater_is_named_and_the_order_is_found(folder, tmp_path, method, reason):
    session = tiny_ratings.begin(folder, tmp_path, method)
    store = Store(tmp_path)
    for rater, noise in (("anna", 0.5), ("ben", 0.5), ("chance", None)):
        rate(session, store, rater, noise)
    labels = analyse(session, store, CONFIG)
    assert [bool(rater.reason) for rater in labels.raters] == [False, False, True]
    assert reason in labels.raters[2].reason
    assert any("left out: rater 'chance'" in note for note in labels.notes)
    assert any("2 of 3 raters count" in note for note in labels.notes)
    assert any("3 of 3 golden pairs right" in note for note in labels.notes if "anna" in note)
    levels = [int(image[:3]) % 6 for image, *_ in labels.rows]
    assert srcc([value for _, value, *_ in labels.rows], [-level for level in levels]) > 0.9
    assert all(width > 0 for _, _, width, *_ in labels.rows)
    assert len({content for *_, content in labels.rows}) == 24
    counts = {n for *_, n, _ in labels.rows}
    assert counts == ({2} if method == "acr" else {12})
    assert sum("half of that takes four times as many" in note for note in labels.notes) == 1


@pytest.mark.parametrize("method", ["acr", "pairs"])
def test_one_rater_and_unfinished_rounds_are_believed_with_a_note(folder, tmp_path, method):
    session = tiny_ratings.begin(folder, tmp_path, method)
    store = Store(tmp_path)
    rate(session, store, "anna", 0.5, limit=15 if method == "acr" else 10)
    labels = analyse(session, store, CONFIG)
    assert any("nobody can be screened: that takes 3 raters, here are 1" in note for note in labels.notes)
    assert not any("BT.500" in note for note in labels.notes)
    assert 0 < len(labels.rows) < 24
    if method == "acr":
        assert all(math.isnan(width) for _, _, width, *_ in labels.rows)
        assert any(note.startswith("no intervals") for note in labels.notes)
        rate(session, store, "anna", 0.5)
        assert all(width > 0 for _, _, width, *_ in analyse(session, store, CONFIG).rows)


def test_failed_golden_pairs_repeats_and_scaled_answers_are_reported(folder, tmp_path):
    session = dataclasses.replace(tiny_ratings.begin(folder, tmp_path), repeats=0.5)
    session.save(tmp_path)
    store = Store(tmp_path)
    rate(session, store, "chance", None, scale=0.5)
    (note,) = (note for note in analyse(session, store, CONFIG).notes if note.startswith("rater 'chance'"))
    assert "12 repeats 1." in note
    assert "INCONSISTENT" in note
    assert "39 answers about pictures that the browser had scaled" in note
    answers = [dataclasses.replace(answer, answer=5) for answer in store.read("chance")]
    (tmp_path / "answers/chance.jsonl").unlink()
    store = Store(tmp_path)
    for answer in answers:
        store.append("always five", answer)
    # the order is the rater's own, but what was asked is the same
    (note,) = (note for note in analyse(session, store, CONFIG).notes if note.startswith("rater 'always"))
    assert "0 of 3 golden pairs right, FAILED" in note


def test_nothing_rated_and_foreign_answers_are_one_clear_error(folder, tmp_path):
    session = tiny_ratings.begin(folder, tmp_path)
    with pytest.raises(RatingError, match="no picture of this session is rated yet"):
        analyse(session, Store(tmp_path), CONFIG)
    Store(tmp_path).append("eve", Answer(0, "test", ("zzz.png",), (False,), 3, 1.0, 1.0, ""))
    with pytest.raises(RatingError, match="no picture of this session"):
        analyse(session, Store(tmp_path), CONFIG)


ODD = ("=1+1.png", "-a.png", "@b.png", "sep=;.png", "a,b;\"c'.png", "<b>&amp.png", "ü/日本 語.png", "'q.png")


@pytest.fixture
def odd(tmp_path):
    folder = tmp_path / "odd folder"
    (folder / "ü").mkdir(parents=True)
    for seed, name in enumerate(ODD):
        Image.fromarray(tiny_ratings.draw(seed, 0)).save(folder / name)
    session = tiny_ratings.begin(folder, tmp_path / "s")
    store = Store(tmp_path / "s")
    answers = []
    for question in list_questions(session, "anna", answers):
        names = tuple(session.pictures[i].image for i, _ in question.items)
        damage_flags = tuple(is_damaged for _, is_damaged in question.items)
        store.append("anna", Answer(len(answers), question.part, names, damage_flags, 4, 1.0, 1.0, ""))
        answers = store.read("anna")
    return folder, analyse(session, store, CONFIG)


@pytest.mark.parametrize(("place", "base"), [("odd folder", "odd folder"), (".", "."), ("elsewhere", "odd folder")])
def test_tables_of_odd_names_are_read_as_they_were_written(odd, tmp_path, place, base):
    folder, labels = odd
    out = tmp_path / place / "labels.csv"
    relative = write_labels(labels, folder, out)
    assert relative.resolve() == (tmp_path / base).resolve()
    rows = read_labels(out, relative)
    images = {(relative / row["image"]).resolve() for row in rows}
    assert images == {(folder / name).resolve() for name in ODD}
    assert {row["mos"] for row in rows} == {4.0}
    with out.open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


def test_labels_beside_a_moved_folder(odd, tmp_path):
    folder, labels = odd
    write_labels(labels, folder, folder / "labels.csv")
    shutil.move(folder, tmp_path / "moved")
    assert len(read_labels(tmp_path / "moved/labels.csv")) == len(ODD)
