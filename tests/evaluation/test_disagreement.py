"""gMAD pairs against a search through all pairs, and what must hold of any two models."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contrique.evaluation.disagreement import LEVELS, find_pairs, find_strongest
from contrique.metrics import EvaluationError


def search_all_pairs(defender, attacker, tolerance, levels, count):
    """The definition, pair by pair: (worse, better, level), in order."""
    order = np.argsort(defender, kind="stable")
    pairs = []
    for level, part in zip(levels, np.array_split(order, len(levels)), strict=True):
        candidates = []
        for i, j in combinations(range(len(part)), 2):
            difference = abs(defender[part[j]] - defender[part[i]])
            gap = abs(attacker[part[j]] - attacker[part[i]])
            wider = gap / (np.std(attacker) or 1) > difference / (np.std(defender) or 1) + 1e-6
            if difference <= tolerance and gap > tolerance and wider:
                candidates.append((-gap, i, j))
        members = set()
        for _, i, j in sorted(candidates):
            if not members & {i, j} and len(members) < 2 * count:
                members |= {i, j}
                pairs.append((*sorted((part[i], part[j]), key=lambda k: attacker[k]), level))
    return pairs


def models(seed, n, noise, whole):
    """Scores of two models; `whole` numbers have many ties, and differences that equal the tolerance."""
    generator = np.random.default_rng(seed)
    quality = generator.uniform(0, 100, n)
    scores = [np.clip(quality + noise * generator.normal(size=n), 0, 100) for _ in range(2)]
    return [np.round(each) for each in scores] if whole else scores


any_models = (st.integers(0, 10_000), st.integers(2, 40), st.floats(0, 40), st.booleans())


@given(*any_models, st.sampled_from([0.0, 1.0, 5.0, 200.0]), st.integers(1, 4), st.integers(1, 30))
def test_pairs_are_those_of_a_search_through_all(seed, n, noise, whole, tolerance, levels, count):
    defender, attacker = models(seed, n, noise, whole)
    names = [f"level {i}" for i in range(levels)]
    pairs = find_pairs(defender, attacker, tolerance=tolerance, levels=names, count=count)
    expected = search_all_pairs(defender, attacker, tolerance, names, count)
    assert [(pair.worse, pair.better, pair.level) for pair in pairs] == expected
    for pair in pairs:
        assert pair.gap == attacker[pair.better] - attacker[pair.worse] > tolerance
        assert pair.strength == pytest.approx(pair.gap / attacker.std())


@given(*any_models)
def test_a_picture_stands_in_one_pair(seed, n, noise, whole):
    pairs = find_pairs(*models(seed, n, noise, whole), tolerance=5, count=40)
    numbers = [number for pair in pairs for number in (pair.worse, pair.better)]
    assert len(numbers) == len(set(numbers))


@given(*any_models)
def test_models_that_change_places_change_their_tables(seed, n, noise, whole):
    first, second = models(seed, n, noise, whole)
    pairs, mirror_pairs = find_strongest(first, second, 100), find_strongest(second, first, 100)
    assert sorted((i, pair.worse, pair.better) for i, pair in pairs) == sorted(
        (1 - i, pair.worse, pair.better) for i, pair in mirror_pairs
    )


@given(st.integers(0, 10_000), st.integers(2, 60), st.floats(0.01, 100), st.floats(-1000, 1000), st.booleans())
def test_a_model_has_no_pairs_against_itself_or_a_stretched_copy(seed, n, slope, shift, whole):
    scores = models(seed, n, 20, whole)[0]
    for copy in (scores, slope * scores + shift):
        assert find_strongest(scores, copy, 10) == []


def test_a_planted_pair_is_the_strongest_and_says_who_defends():
    generator = np.random.default_rng(0)
    first = generator.uniform(0, 100, 200)
    second = first + generator.normal(size=200)
    second[[20, 30]] = 5, 95
    first[[20, 30]] = 50.0, 50.4
    (defender, pair), *others = find_strongest(first, second, 5)
    assert (defender, pair.worse, pair.better, pair.gap) == (0, 20, 30, 90)
    assert all(pair.strength > other.strength for _, other in others)
    assert find_strongest(second, first, 1)[0] == (1, pair)


def test_a_defender_that_calls_everything_equal_is_beaten_by_anything():
    pairs = find_pairs(np.full(9, 50.0), np.arange(9) * 10.0, levels=("",), count=9)
    assert [(pair.worse, pair.better) for pair in pairs] == [(0, 8), (1, 7), (2, 6), (3, 5)]


def test_every_level_has_its_own_pairs():
    generator = np.random.default_rng(1)
    defender, attacker = generator.uniform(0, 100, (2, 300))
    pairs = find_pairs(defender, attacker)
    assert [pair.level for pair in pairs] == [level for level in LEVELS for _ in range(3)]
    means = [np.mean([defender[pair.worse] for pair in pairs if pair.level == level]) for level in LEVELS]
    assert means[0] < 33 < means[1] < 67 < means[2]


def test_thousands_of_pictures_are_no_matter():
    defender, attacker = np.random.default_rng(0).uniform(0, 100, (2, 20_000))
    assert len(find_pairs(defender, attacker, count=50)) == 150


@pytest.mark.parametrize(
    ("defender", "attacker", "words"),
    [([1.0], [1.0], "2 pictures or more"), ([1, 2, 3], [1, 2], "shapes"), ([1, np.nan], [1, 2], "NaN or infinite")],
)
def test_scores_that_cannot_be_compared_are_an_error(defender, attacker, words):
    with pytest.raises(EvaluationError, match=words):
        find_pairs(defender, attacker)
