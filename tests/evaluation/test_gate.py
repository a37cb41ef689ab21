"""The gate's promises, mostly as properties: never below the floor, deterministic on itself, slices, NaN holds."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrique import metrics
from contrique.config import GateConfig
from contrique.evaluation import gate
from contrique.metrics import EvaluationError

CONFIG = GateConfig(floor=0.6, margin=0.02, slice_margin=0.15, min_slice=10)


def pictures(seed, contents=8, per_content=15, noise=0.3):
    """Labels, a good model's scores, contents and distortions."""
    generator = np.random.default_rng(seed)
    n = contents * per_content
    labels = generator.normal(size=n)
    scores = labels + noise * generator.normal(size=n)
    return labels, scores, [f"c{i % contents}" for i in range(n)], [("jpeg", "blur", "")[i % 3] for i in range(n)]


def decide(challenger, champion, labels, contents, distortions, config=CONFIG, seed=0):
    return gate.decide(
        challenger, champion, labels, contents, distortions, config=config, resamples=200, confidence=0.95, seed=seed
    )


noise = st.floats(0.01, 30.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), noise, noise, st.floats(-1, 1), st.integers(1, 9), st.booleans())
def test_it_promotes_exactly_when_all_conditions_hold(seed, own, rival, floor, contents, first):
    labels, challenger, groups, kinds = pictures(seed, contents, 12, own)
    champion = (
        None if first else pictures(seed + 1, contents, 12, rival)[1] - pictures(seed + 1, contents, 12)[0] + labels
    )
    config = dataclasses.replace(CONFIG, floor=floor)
    verdict = decide(challenger, champion, labels, groups, kinds, config)
    numbers = verdict.numbers
    if verdict.promote:
        assert metrics.srcc(challenger, labels) >= floor
    expected = numbers["challenger_srcc"] >= floor
    if not first:
        expected &= numbers["difference_low"] >= -config.margin
        for part in numbers["slices"].values():
            if part["n"] >= config.min_slice and part["fall"] is not None:
                expected &= part["fall"] <= config.slice_margin
    assert verdict.promote == expected
    assert verdict.reason.startswith("promote: " if expected else "hold: ")
    json.dumps(verdict.as_dict(), allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), noise, st.integers(1, 9), st.integers(0, 100))
def test_a_model_against_itself_promotes_if_the_floor_is_met_whatever_the_seed(seed, spread, contents, gate_seed):
    labels, scores, groups, kinds = pictures(seed, contents, 12, spread)
    verdict = decide(scores, scores.copy(), labels, groups, kinds, seed=gate_seed)
    assert verdict.promote == (metrics.srcc(scores, labels) >= CONFIG.floor)
    assert verdict.numbers["difference"] == verdict.numbers["difference_low"] == verdict.numbers["difference_high"] == 0
    assert all(part["fall"] == 0 for part in verdict.numbers["slices"].values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 119), st.sampled_from([np.nan, np.inf, -np.inf]), st.sampled_from(["own", "rival", "label"]))
def test_one_undefined_number_anywhere_holds(where, value, which):
    labels, scores, groups, kinds = pictures(0)
    own, rival = scores.copy(), scores.copy()
    {"own": own, "rival": rival, "label": labels}[which][where] = value
    verdict = decide(own, rival, labels, groups, kinds)
    assert not verdict.promote
    assert "1 of 120" in verdict.reason
    json.dumps(verdict.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("challenger", "words"), [([0.5] * 120, "challenger cannot be judged.*same"), (None, "champion cannot be compared")]
)
def test_constant_scores_hold(challenger, words):
    labels, scores, groups, kinds = pictures(0)
    verdict = decide(challenger or scores, scores if challenger else [1.0] * 120, labels, groups, kinds)
    assert not verdict.promote
    assert re.search(words, verdict.reason)


@pytest.mark.parametrize("option", ["floor", "margin", "slice_margin"])
def test_a_threshold_that_is_no_number_holds(option):
    labels, scores, groups, kinds = pictures(0)
    assert not decide(scores, scores, labels, groups, kinds, dataclasses.replace(CONFIG, **{option: np.nan})).promote


def test_the_first_model_meets_the_floor_like_any_other():
    labels, scores, groups, kinds = pictures(0)
    assert decide(scores, None, labels, groups, kinds).promote
    verdict = decide(-scores, None, labels, groups, kinds)
    assert not verdict.promote
    assert "below the floor 0.600" in verdict.reason


def test_a_planted_regression_on_one_distortion_is_caught():
    labels, champion, groups, _ = pictures(1, contents=10, per_content=30, noise=0.6)
    kinds = ["jpeg" if i % 6 == 0 else "blur" for i in range(len(labels))]
    jpeg = np.array(kinds) == "jpeg"
    challenger = labels + 0.2 * (champion - labels)  # better on the whole
    challenger[jpeg] = labels[jpeg] + np.random.default_rng(0).normal(size=jpeg.sum())  # but not on JPEG
    config = dataclasses.replace(CONFIG, slice_margin=2.0)
    assert decide(challenger, champion, labels, groups, kinds, config).promote
    verdict = decide(challenger, champion, labels, groups, kinds)
    assert not verdict.promote
    assert "on jpeg (50 pictures) SRCC fell by" in verdict.reason
    assert "blur" not in verdict.reason


def test_a_distortion_that_the_challenger_no_longer_tells_apart_holds():
    labels, champion, groups, kinds = pictures(1, contents=10, per_content=30, noise=0.1)
    jpeg = np.array(kinds) == "jpeg"
    challenger = np.where(jpeg, 0.0, champion)
    verdict = decide(challenger, champion, labels, groups, kinds, dataclasses.replace(CONFIG, margin=2.0, floor=-1))
    assert not verdict.promote
    assert "all 100 pictures of jpeg the same score" in verdict.reason


def test_a_slice_of_few_pictures_is_told_but_not_judged():
    labels, champion, groups, kinds = pictures(2)
    kinds = ["rare" if i < 9 else "" for i in range(len(labels))]
    challenger = champion.copy()
    challenger[:9] = -challenger[:9]
    verdict = decide(challenger, champion, labels, groups, kinds, dataclasses.replace(CONFIG, margin=1.0))
    assert verdict.promote
    assert verdict.numbers["slices"]["rare"]["fall"] > CONFIG.slice_margin
    kinds = ["rare" if i < 10 else "" for i in range(len(labels))]
    assert not decide(challenger, champion, labels, groups, kinds, dataclasses.replace(CONFIG, margin=1.0)).promote


def test_a_clearly_worse_challenger_holds_and_the_margin_decides():
    labels, champion, groups, kinds = pictures(3, noise=0.1)
    challenger = champion + 0.5 * np.random.default_rng(0).normal(size=len(labels))
    verdict = decide(challenger, champion, labels, groups, kinds)
    assert not verdict.promote
    assert "lower bound" in verdict.reason
    low = verdict.numbers["difference_low"]
    for margin, promote in ((-low + 1e-9, True), (-low - 1e-9, False)):
        config = dataclasses.replace(CONFIG, margin=margin, slice_margin=2.0)
        assert decide(challenger, champion, labels, groups, kinds, config).promote == promote


@pytest.mark.parametrize(
    ("contents", "unit"), [(1, "pictures within contents"), (2, "pictures within contents"), (3, "contents")]
)
def test_few_contents_are_resampled_as_documented(contents, unit):
    labels, champion, groups, kinds = pictures(4, contents, 40)
    verdict = decide(champion + 0.1 * labels, champion, labels, groups, kinds)
    assert verdict.numbers["unit"] == unit
    assert verdict.numbers["difference_low"] < verdict.numbers["difference_high"]


def test_the_same_arguments_give_the_same_verdict_and_are_not_changed():
    labels, champion, groups, kinds = pictures(5)
    challenger = champion + 0.2 * np.random.default_rng(0).normal(size=len(labels))
    before = challenger.copy(), champion.copy(), labels.copy()
    first = decide(challenger, champion, labels, groups, kinds)
    np.random.seed(1)  # noqa: NPY002  the global state must not matter
    assert decide(challenger, champion, labels, groups, kinds) == first
    for array, copy in zip((challenger, champion, labels), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_any_scale_of_the_scores_gives_the_same_verdict():
    labels, champion, groups, kinds = pictures(6)
    challenger = champion + 0.2 * np.random.default_rng(0).normal(size=len(labels))
    plain = decide(challenger, champion, labels, groups, kinds)
    scaled = decide(np.exp(challenger), 100 * champion - 5, labels, groups, kinds)
    assert (scaled.promote, scaled.reason, scaled.numbers) == (plain.promote, plain.reason, plain.numbers)


def test_arrays_of_different_lengths_are_an_error():
    labels, scores, groups, kinds = pictures(0)
    with pytest.raises(EvaluationError, match="differ in length"):
        decide(scores, scores[:-1], labels, groups, kinds)


def test_gate_and_metrics_import_nothing_that_reads_files_or_clocks():
    allowlist = {"collections.abc", "dataclasses", "typing", "numpy", "numpy.typing", "scipy"}
    allowlist |= {"contrique", "contrique.config", "contrique.errors", "contrique.metrics"}
    for module in (gate, metrics):
        tree = ast.parse(Path(module.__file__).read_text())
        modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert modules <= allowlist
        names = {
            a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "contrique" for a in n.names
        }
        assert names <= {"metrics"}
        functions = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert not functions & {"open", "print", "input", "__import__", "exec", "eval"}


# ---------------------------------------------------------------------------------------------- gaming the score


def decide_rises(ours, theirs, config=CONFIG, seed=0):
    """The verdict on a model that ranks as the champion does, with these rises by one attack."""
    labels, scores, groups, kinds = pictures(0)
    return gate.decide(
        scores,
        scores,
        labels,
        groups,
        kinds,
        config=config,
        resamples=200,
        confidence=0.95,
        seed=seed,
        rises=gate.Rises([f"c{i}" for i in range(len(ours))], {"black_border": (ours, theirs)}),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 15), st.floats(0, 80), st.floats(-80, 80), st.floats(0, 20))
def test_the_champion_against_itself_is_never_held_for_what_raises_it(seed, n, spread, mean, margin):
    rises = mean + spread * np.random.default_rng(seed).normal(size=n)
    assert decide_rises(rises, rises.copy(), dataclasses.replace(CONFIG, gaming_margin=margin), seed).promote


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 15), st.floats(-50, 50), st.floats(-50, 50), st.floats(0, 30))
def test_it_holds_exactly_when_the_lower_bound_is_above_the_margin(seed, n, own, rival, spread):
    generator = np.random.default_rng(seed)
    ours, theirs = (mean + spread * generator.normal(size=n) for mean in (own, rival))
    verdict = decide_rises(ours, theirs)
    numbers = verdict.numbers["gaming"]["black_border"]
    assert numbers["difference"] == pytest.approx(ours.mean() - max(theirs.mean(), 0))
    assert verdict.promote == (numbers["difference_low"] <= CONFIG.gaming_margin)
    assert numbers["difference_low"] <= numbers["difference"] + 1e-9
    assert verdict.promote or numbers["challenger"] > CONFIG.gaming_margin, "only a score that rises can be gamed"
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_an_attack_that_raises_the_challenger_alone_is_told_in_plain_words():
    verdict = decide_rises(np.full(12, 20.0), np.full(12, -30.0))
    assert not verdict.promote
    assert verdict.reason == (
        "hold: black border, which makes no picture better, raises the scores by 20.0 points and the champion's by "
        "-30.0: the lower bound of the difference, 20.0, is above the allowed 5.0"
    )


def test_a_champion_whose_rises_cancel_out_buys_no_leniency():
    """Up by 20 on every other picture and down by 20 on the rest: nothing is gained by that attack on the champion."""
    verdict = decide_rises(np.full(12, 20.0), np.tile([20.0, -20.0], 6))
    assert verdict.numbers["gaming"]["black_border"]["champion"] == 0
    assert verdict.numbers["gaming"]["black_border"]["difference"] == 20


def test_noise_on_a_dozen_pictures_holds_no_good_model():
    """Rises that differ by 3 points on average, within the margin, and by 12 from picture to picture."""
    generator = np.random.default_rng(0)
    holds = [
        not decide_rises(3 + 12 * generator.normal(size=12), np.zeros(12), seed=seed).promote for seed in range(100)
    ]
    assert np.mean(holds) <= 0.03
    by_mean = [np.mean(3 + 12 * generator.normal(size=12)) > 5 for _ in range(100)]
    assert np.mean(by_mean) > 0.15, "as the mean alone would"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_an_undefined_rise_holds(value, which):
    rises = np.zeros((2, 12))
    rises[which, 3] = value
    verdict = decide_rises(*rises)
    assert not verdict.promote
    assert "what black border does to the scores is no finite number" in verdict.reason
    json.dumps(verdict.as_dict(), allow_nan=False)


def test_no_attacked_pictures_and_no_margin_hold():
    assert not decide_rises([], []).promote
    assert not decide_rises([0.0] * 5, [0.0] * 5, dataclasses.replace(CONFIG, gaming_margin=np.nan)).promote


def test_rises_of_other_pictures_are_an_error():
    with pytest.raises(EvaluationError, match="3 and 4 rises of 3 attacked pictures"):
        decide_rises([0.0] * 3, [0.0] * 4)
