"""Attacks change what they say, rises are plain differences of scores, and the gate holds who is easier to game."""

import dataclasses
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import tiny_model
import tiny_run

from contrique.artifacts import EVALUATION
from contrique.config import EvaluationConfig, GateConfig
from contrique.data.manifest import read_manifest
from contrique.evaluation import gaming
from contrique.evaluation.decision import decide_set
from contrique.evaluation.evaluate import Champion, evaluate_set
from contrique.evaluation.gaming import ATTACKS, EPSILON, NAMES, climb, cut_middle, measure_rises, pick_sample
from contrique.registry.challenge import attack_test_part
from contrique.regressor.head import Head
from contrique.regressor.ridge import Ridge
from contrique.scoring.scorer import Scorer

BOOTSTRAP = {"resamples": 50, "confidence": 0.95, "seed": 0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return tiny_model.build(tmp_path_factory.mktemp("model") / "parts")


@pytest.fixture(scope="module")
def scorer(parts):
    return Scorer(parts.encoder, parts.regressor)


@pytest.fixture(scope="module")
def pictures():
    return [tiny_model.picture(i, 96, 112) for i in range(4)]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gives_the_same_other_picture_each_time(name, pictures):
    picture = pictures[0].copy()
    output = ATTACKS[name].change(picture)
    assert output.dtype == np.uint8
    assert output.ndim == 3
    np.testing.assert_array_equal(picture, pictures[0])
    np.testing.assert_array_equal(output, ATTACKS[name].change(picture))
    assert output.shape != picture.shape or (output != picture).any()


def test_what_each_attack_does(pictures):
    picture = pictures[0]
    change = {name: attack.change(picture) for name, attack in ATTACKS.items()}
    assert change["upscaling_1.5"].shape == (144, 168, 3)
    assert change["upscaling_2"].shape == (192, 224, 3)
    for name, level in (("black_border", 0), ("white_border", 255)):
        assert change[name].shape == (96 + 12, 112 + 12, 3)
        np.testing.assert_array_equal(change[name][6:-6, 6:-6], picture)
        assert {*change[name][:6].ravel(), *change[name][:, -6:].ravel()} == {level}
    assert np.abs(change["jpeg_100"].astype(int) - picture).mean() < 2
    jpeg = ATTACKS["jpeg_30_saved_at_100"]
    assert np.abs(jpeg.before(picture).astype(int) - picture).mean() > 5
    assert np.abs(change["jpeg_30_saved_at_100"].astype(int) - jpeg.before(picture)).mean() < 2
    rows = np.flatnonzero((change["text"] != picture).any(axis=(1, 2)))
    assert rows.min() >= 96 / 2, "the caption stands in the lower half"
    assert {0, 255} <= set(change["text"].ravel())
    flat = (picture // 4 + 90).astype(np.uint8)
    assert np.ptp(ATTACKS["contrast_stretch"].change(flat)) > 2 * np.ptp(flat)
    assert ATTACKS["sharpening"].change(flat).std() > flat.std()
    np.testing.assert_array_equal(ATTACKS["sharpening"].change(np.full_like(flat, 77)), 77)


def test_the_gradient_raises_the_score_within_its_bound(scorer, pictures):
    generator = np.random.default_rng(0)
    for picture in pictures:
        output = climb(scorer, picture[None])[0]
        difference = output.astype(int) - picture
        assert np.abs(difference).max() == EPSILON
        noise = np.clip(picture + generator.choice([-EPSILON, EPSILON], picture.shape), 0, 255).astype(np.uint8)
        plain, high, noisy = scorer.raw([picture, output, noise])
        assert high - plain > 3 * abs(noisy - plain), "and by far more than noise of its size"


def test_the_gradient_stays_in_the_range_of_a_picture(scorer):
    for level in (0, 255):
        output = climb(scorer, np.full((1, 80, 81, 3), level, np.uint8))  # odd: half is rounded down
        assert np.abs(output.astype(int) - level).max() <= EPSILON


def test_rises_are_differences_of_scores(scorer, pictures):
    contents = ["a", "b", "c", "d"]
    rises = measure_rises(scorer, pictures, contents, **BOOTSTRAP, fidelity=True)
    assert tuple(rises) == NAMES

    def score(picture):
        return scorer.head.to_points(scorer.raw([picture])[0], clip=False)

    for name, rise in rises.items():
        attack = ATTACKS.get(name)
        change = attack.change if attack else (lambda picture: climb(scorer, picture[None])[0])
        before = (attack and attack.before) or (lambda picture: picture)
        expected = [score(change(picture)) - score(before(picture)) for picture in pictures]
        rounding = 0.02 if attack else 1.0  # in a batch, the sign of a gradient near zero may be another
        assert rise.values == pytest.approx(expected, abs=rounding), name
        assert rise.mean == pytest.approx(np.mean(expected), abs=rounding)
        assert rise.low <= rise.mean <= rise.high
        assert rise.share == np.mean(np.array(rise.values) > 5)
        assert rise.n == 4
    assert rises["jpeg_100"].fidelity > 0.9
    assert rises["jpeg_100"].fidelity > rises["sharpening"].fidelity > 0
    assert rises["gradient"].fidelity > 0.9
    assert rises["black_border"].fidelity is rises["upscaling_2"].fidelity is None


def test_a_score_that_is_no_number_has_no_mean(scorer, pictures):
    summary = scorer.head.summary
    steep = Head(Ridge(np.full(summary.features_dim, 1e308), 0.0, 1.0), summary)

    class OverflowingScorer:
        head, encoder, backend = steep, scorer.encoder, scorer.backend

    names = ["text", "white_border"]
    with np.errstate(over="ignore", invalid="ignore"):
        rise = measure_rises(OverflowingScorer(), pictures, list("abcd"), names=names, **BOOTSTRAP)
    assert (rise["white_border"].mean, rise["white_border"].values) == (None, [None] * 4)
    json.dumps(dataclasses.asdict(rise["white_border"]), allow_nan=False)


def test_the_sample_is_seeded_and_the_middle_keeps_its_scale():
    assert list(pick_sample(5, 12, 0)) == [0, 1, 2, 3, 4]
    sample = pick_sample(1000, 12, 3)
    assert len(set(sample)) == 12
    assert list(sample) == sorted(pick_sample(1000, 12, 3)) != list(pick_sample(1000, 12, 4))
    picture = tiny_model.picture(0, 200, 90)
    np.testing.assert_array_equal(cut_middle(picture, 128), picture[36:164])


# ------------------------------------------------------------------------------------------- to the gate and back


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.build(tmp_path_factory.mktemp("run"), champion=True)["trained"].extract.parent


def sensitive(parts, folder, factor):
    """The same encoder with a ridge that is `factor` times as steep."""
    head = Head.load(parts.regressor)
    Head(Ridge(factor * head.ridge.coef, head.ridge.intercept, 1.0), head.summary).save(folder / "regressor")
    return Scorer(parts.encoder, folder / "regressor")


def judge(run, out, challenger, champion, **options):
    config = EvaluationConfig(resamples=50, gaming_pictures=5, gaming_side=80, **options)
    sets = [run / "distorted"]
    return evaluate_set(
        run / "features",
        run / "regressor",
        out,
        config=config,
        seed=tiny_run.SEED,
        champion=Champion(lambda rows: rows["weak_label"], "7") if champion else None,
        attack=partial(attack_test_part, challenger, champion, sets, config, tiny_run.SEED),
    )


GATE = GateConfig(floor=-1, margin=2, slice_margin=2)


def test_a_challenger_that_is_easier_to_game_is_held_and_an_equal_one_is_not(run, parts, scorer, tmp_path):
    evaluation = judge(run, tmp_path / "equal", scorer, scorer)
    assert evaluation.gaming.challenger == evaluation.gaming.champion
    assert {rise.n for rise in evaluation.gaming.challenger.values()} == {5}
    verdict = decide_set(tmp_path / "equal", tmp_path / "verdict.json", config=GATE)
    assert verdict.promote
    assert "no attack surely raises it by 5.0 points more than the champion" in verdict.reason
    assert verdict.numbers["gaming"].keys() == set(NAMES)

    judge(run, tmp_path / "steep", sensitive(parts, tmp_path, 20), scorer)
    verdict = decide_set(tmp_path / "steep", tmp_path / "verdict.json", config=GATE)
    assert not verdict.promote
    assert "gradient, which makes no picture better, raises the scores by" in verdict.reason
    assert json.loads((tmp_path / "verdict.json").read_text())["numbers"]["gaming"]["gradient"]["difference_low"] > 5
    wide = dataclasses.replace(GATE, gaming_margin=1e6)
    assert decide_set(tmp_path / "steep", tmp_path / "verdict.json", config=wide).promote


def test_the_first_model_is_attacked_and_not_held_for_it(run, parts, tmp_path):
    evaluation = judge(run, tmp_path / "out", sensitive(parts, tmp_path, 20), None, gaming_gradient=False)
    assert evaluation.gaming.champion is None
    assert tuple(evaluation.gaming.challenger) == tuple(ATTACKS)
    verdict = decide_set(tmp_path / "out", tmp_path / "verdict.json", config=GATE)
    assert verdict.promote
    assert "gaming" not in verdict.numbers


def test_an_evaluation_from_before_there_were_attacks_is_decided(run, tmp_path):
    facts = json.loads((run / "evaluation" / EVALUATION).read_text())
    assert facts.pop("gaming") is None
    table = pd.read_parquet(run / "evaluation" / "test_scores.parquet")
    (tmp_path / "old").mkdir()
    table.to_parquet(tmp_path / "old" / "test_scores.parquet")
    (tmp_path / "old" / EVALUATION).write_text(json.dumps(facts))
    assert decide_set(tmp_path / "old", tmp_path / "verdict.json", config=GATE).promote


def test_a_rise_that_is_no_number_holds(run, scorer, tmp_path):
    judge(run, tmp_path / "out", scorer, scorer, gaming_gradient=False)
    path = tmp_path / "out" / EVALUATION
    facts = json.loads(path.read_text())
    facts["gaming"]["challenger"]["text"]["values"][2] = None
    path.write_text(json.dumps(facts))
    verdict = decide_set(tmp_path / "out", tmp_path / "verdict.json", config=GATE)
    assert not verdict.promote
    assert "what text does to the scores is no finite number" in verdict.reason


def test_the_attacked_pictures_are_a_sample_of_the_test_part(run, scorer, monkeypatch, tmp_path):
    rows = read_manifest(run / "features")
    test = rows[rows["split"] == "test"]
    config = EvaluationConfig(resamples=50, gaming_pictures=5, gaming_side=80, gaming_gradient=False)
    calls = []
    monkeypatch.setattr(gaming, "measure_rises", lambda _, pictures, contents, **__: calls.append(pictures) or {})
    result = attack_test_part(scorer, None, [run / "distorted"], config, 0, test)
    assert len(result.contents) == 5
    assert set(result.contents) <= set(test["reference"])
    assert {picture.shape for picture in calls[0]} == {(80, 80, 3)}
