"""The extract: the same pictures as the sets hold, few of them, and all that later stages show or ask for."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_run

from contrique.data.manifest import read_manifest, read_picture
from contrique.encoder.feature_set import load_set
from contrique.evaluation import extract
from contrique.evaluation.extract import FEATURE_SAMPLE, SHEET, TEST_PICTURES, ExtractError, keep_extract, pick_sample


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose extract `tiny_run` keeps."""
    arguments: dict[str, Any] = tiny_run.build(tmp_path_factory.mktemp("run"))
    return arguments["trained"].extract.parent


def keep(run: Path, out: Path) -> int:
    return keep_extract(run / "features", run / "evaluation", [run / "dataset", run / "distorted"], out, seed=1)


def test_the_sheet_is_one_photograph_with_all_that_was_made_of_it(run):
    rows, whole = read_manifest(run / "extract" / SHEET), read_manifest(run / "distorted")
    assert set(rows["reference"]) == {"scene 0"}
    assert len(rows) == (whole["reference"] == "scene 0").sum() == 9


def test_the_pictures_are_the_same(run):
    sets = [run / "dataset", run / "distorted"]
    places = {row.sha256: (place, row) for place in sets for row in read_manifest(place).itertuples()}
    for name in (SHEET, TEST_PICTURES):
        folder = run / "extract" / name
        rows = read_manifest(folder)
        assert len(rows)
        for row in rows.itertuples():
            place, source = places[row.sha256]
            assert row.image == source.image
            assert np.array_equal(read_picture(folder, row), read_picture(place, source))


def test_every_picture_that_is_shown_or_asked_for_is_there(run):
    scores = pd.read_parquet(run / "evaluation" / "test_scores.parquet")
    rows = pd.concat([extract.pick_known_pictures(scores), *extract.pick_extremes(scores).values()])
    assert set(read_manifest(run / "extract" / TEST_PICTURES)["image"]) == set(rows["image"])


def test_pairs_of_challenger_and_champion_are_there(tmp_path):
    run = tiny_run.build(tmp_path, champion=True)
    scores = pd.read_parquet(run["trained"].evaluation / "test_scores.parquet")
    pairs = extract.pick_disagreements(scores)
    assert 1 <= len(pairs) <= extract.DISAGREEMENTS
    images = {scores["image"][number] for _, pair in pairs for number in (pair.worse, pair.better)}
    assert images <= set(read_manifest(tmp_path / "extract" / TEST_PICTURES)["image"])


def test_pairs_need_a_champion_whose_scores_are_numbers(run):
    scores = pd.read_parquet(run / "evaluation" / "test_scores.parquet")
    points = np.arange(len(scores)) * 5.0
    assert extract.pick_disagreements(scores) == []
    assert extract.pick_disagreements(scores.drop(columns=["challenger_points", "champion_points"])) == []
    rivals = scores.assign(challenger_points=50.0, champion_points=points)
    assert len(extract.pick_disagreements(rivals)) == extract.DISAGREEMENTS
    assert extract.pick_disagreements(rivals.assign(champion_points=np.where(points == 5, np.nan, points))) == []


def test_few_objects_and_few_bytes(run):
    """Of what it is taken from, whose size it does not follow."""
    files = [path for path in (run / "extract").rglob("*") if path.is_file()]
    assert len(files) == 7
    assert json.loads((run / "extract" / "lineage.json").read_text())["hash"] == "abc.dir"


def test_the_features_are_a_sample_of_the_held_out_ones(run, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "POINTS", 5)
    keep(run, tmp_path / "out")
    manifest, values = load_set(tmp_path / "out" / FEATURE_SAMPLE)
    rows, whole = load_set(run / "features")
    assert len(manifest) == 5
    for row, value in zip(manifest.itertuples(), values, strict=True):
        (place,) = rows.index[rows["image"] == row.image]
        assert np.array_equal(value, whole[place])


def test_the_sample_is_seeded_and_bounded():
    sample = pick_sample(5 * extract.POINTS, 1)
    assert len(set(sample)) == extract.POINTS
    assert (np.diff(sample) > 0).all()
    assert np.array_equal(sample, pick_sample(5 * extract.POINTS, 1))
    assert not np.array_equal(sample, pick_sample(5 * extract.POINTS, 2))
    assert np.array_equal(pick_sample(7, 1), np.arange(7))


def test_a_judged_picture_that_is_nowhere_is_named(run, tmp_path):
    shutil.copytree(run / "evaluation", tmp_path / "evaluation")
    scores = pd.read_parquet(tmp_path / "evaluation" / "test_scores.parquet")
    scores.assign(image="lost.png").to_parquet(tmp_path / "evaluation" / "test_scores.parquet")
    sets = [run / "dataset", run / "distorted"]
    with pytest.raises(ExtractError, match=r"^lost\.png: judged, but in none of"):
        keep_extract(run / "features", tmp_path / "evaluation", sets, tmp_path / "out", seed=1)
    assert not (tmp_path / "out").exists()
