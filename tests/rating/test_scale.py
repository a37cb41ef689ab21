"""Screening, means, agreement and pairs, against slow obvious references and on planted raters."""

import math

import numpy as np
import pytest
from scipy import stats

from contrique.rating.scale import (
    correlate,
    krippendorff,
    mean_opinions,
    scale_pairs,
    screen_correlation,
    screen_outliers,
    screen_pairs,
)

NAN = float("nan")


def rate(truth, raters, noise, seed, strictness=0.0):
    rng = np.random.default_rng(seed)
    bias = rng.normal(0, strictness, (raters, 1))
    return np.clip(np.rint(truth + bias + rng.normal(0, noise, (raters, len(truth)))), 1, 5)


def screen_slowly(ratings):
    """ITU-R BT.500-13, Annex 2, section 2.3.1, step by step as it is printed."""
    raters, pictures = len(ratings), len(ratings[0])
    p, q = [0] * raters, [0] * raters
    for k in range(pictures):
        scores = [row[k] for row in ratings if not math.isnan(row[k])]
        n = len(scores)
        mean = sum(scores) / n
        spread = math.sqrt(sum((mean - score) ** 2 / (n - 1) for score in scores)) if n > 1 else 0
        if not spread:
            continue
        m2 = sum((score - mean) ** 2 for score in scores) / n
        m4 = sum((score - mean) ** 4 for score in scores) / n
        limit = 2 * spread if 2 <= m4 / m2**2 <= 4 else math.sqrt(20) * spread
        for i in range(raters):
            if ratings[i][k] >= mean + limit:
                p[i] += 1
            if ratings[i][k] <= mean - limit:
                q[i] += 1
    outliers = []
    for i in range(raters):
        count = sum(not math.isnan(score) for score in ratings[i])
        extremes = p[i] + q[i]
        outliers.append(extremes / count > 0.05 and abs((p[i] - q[i]) / extremes) < 0.3)
    return outliers


def test_outliers_as_the_recommendation_counts_them():
    counts = np.zeros(14, int)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        ratings = rate(rng.uniform(1, 5, 80), 14, 0.5, seed)
        ratings[3] = rng.integers(1, 6, 80)
        ratings[5, ::7] = np.nan
        assert screen_outliers(ratings).tolist() == screen_slowly(ratings.tolist())
        counts += screen_outliers(ratings)
    assert counts[3] > 1, "often the one who answers at random, though not always"
    assert counts.sum() == counts[3]


def test_among_five_raters_the_recommendation_rejects_nobody():
    rng = np.random.default_rng(0)
    for raters in (2, 3, 4, 5):
        ratings = rate(rng.uniform(1, 5, 80), raters, 0.3, raters)
        ratings[0] = rng.integers(1, 6, 80)
        assert not screen_outliers(ratings).any()


@pytest.mark.parametrize("seed", range(4))
def test_the_one_who_answers_at_random_goes_and_no_other(seed):
    rng = np.random.default_rng(seed)
    ratings = rate(rng.uniform(1, 5, 60), 4, 0.5, seed, strictness=0.5)
    ratings[2] = rng.integers(1, 6, 60)
    assert list(screen_correlation(ratings, 0.75)) == [2]
    values = correlate(ratings)
    assert values[0] == pytest.approx(stats.pearsonr(ratings[0], ratings.mean(axis=0)).statistic)
    assert screen_correlation(ratings[:2], 0.99) == {}


def test_one_who_says_the_same_of_everything_goes():
    ratings = rate(np.linspace(1, 5, 40), 4, 0.3, 0)
    ratings[1] = 3
    assert screen_correlation(ratings, 0.75) == {1: -1.0}


def test_means_intervals_and_strictness():
    ratings = np.array([[1.0, 3, 5, 4], [2, 3, 4, 4], [1, 2, 5, 5]])
    mean, half = mean_opinions(ratings)
    np.testing.assert_allclose(mean, ratings.mean(axis=0))
    residuals = ratings - ratings.mean(axis=0) - (ratings.mean(axis=1, keepdims=True) - ratings.mean())
    freedom = 12 - 4 - 2
    width = stats.t.ppf(0.975, freedom) * math.sqrt((residuals**2).sum() / freedom / 3)
    np.testing.assert_allclose(half, width)
    # whoever is strict and saw the good half alone does not make it worse than it is
    truth = np.linspace(1, 5, 40)
    table = np.vstack([truth, truth, np.where(truth > 3, truth - 1, np.nan)])
    np.testing.assert_allclose(stats.spearmanr(mean_opinions(table)[0], truth).statistic, 1)


def test_a_single_rater_is_as_sure_as_the_repeats():
    mean, half = mean_opinions([[1.0, 3, 5]], [1, -1, 0, 0])
    assert mean.tolist() == [1, 3, 5]
    np.testing.assert_allclose(half, stats.t.ppf(0.975, 4) * math.sqrt(2 / 2 / 4))
    assert np.isnan(mean_opinions([[1.0, 3, 5]])[1]).all()


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    truth = rng.uniform(1.5, 4.5, 200)
    inside = []
    for _ in range(20):
        ratings = truth + rng.normal(0, 0.7, (4, 200))
        mean, half = mean_opinions(ratings)
        inside.append(np.abs(mean - truth) <= half)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.03)


def test_four_times_the_raters_halve_the_interval():
    rng = np.random.default_rng(1)
    ratings = rng.uniform(1, 5, 300) + rng.normal(0, 0.7, (40, 300))
    few, many = mean_opinions(ratings[:10])[1].mean(), mean_opinions(ratings)[1].mean()
    assert few / many == pytest.approx(2, rel=0.05)


def test_alpha_as_its_definition_counts_pairs():
    ratings = np.array([[1, 2, 3, 3, NAN], [1, 2, 4, NAN, 5], [2, 2, 3, 3, NAN]])
    units = [[v for v in column if not math.isnan(v)] for column in ratings.T]
    units = [unit for unit in units if len(unit) > 1]
    every = [v for unit in units for v in unit]
    n = len(every)
    observed = sum((a - b) ** 2 / (len(u) - 1) for u in units for a in u for b in u) / n
    expected = sum((a - b) ** 2 for a in every for b in every) / (n * (n - 1))
    assert krippendorff(ratings) == pytest.approx(1 - observed / expected)
    assert krippendorff(np.tile([1.0, 2, 3], (3, 1))) == 1
    assert math.isnan(krippendorff([[1.0, NAN], [NAN, 2]]))


def compare(truth, number, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        a, b = rng.choice(len(truth), 2, replace=False)
        first_wins = rng.random() < 1 / (1 + math.exp(-scale * (truth[a] - truth[b])))
        pairs.append((int(a), int(b)) if first_wins else (int(b), int(a)))
    return pairs


def test_pairs_are_scaled_with_intervals_that_cover():
    truth = np.linspace(-2, 2, 20)
    values, half = scale_pairs(20, compare(truth, 600, 0))
    assert stats.spearmanr(values, truth).statistic > 0.95
    assert np.mean(np.abs(values - truth) <= half) >= 0.9
    assert (scale_pairs(20, compare(truth, 2400, 1))[1].mean() / half.mean()) == pytest.approx(0.5, rel=0.1)


def test_unbeaten_and_uncompared_pictures_stay_finite():
    values, half = scale_pairs(4, [(0, 1), (1, 2)])
    assert np.isfinite(values).all()
    assert np.isfinite(half).all()
    assert values[0] > values[1] > values[2]
    assert half[3] == max(half)


def test_a_random_rater_of_pairs_is_screened():
    truth = np.linspace(-2, 2, 20)
    raters = [compare(truth, 120, seed) for seed in range(3)]
    raters[1] = compare(truth, 120, 9, scale=0.0)
    assert list(screen_pairs(20, raters, 0.01)) == [1]
    assert screen_pairs(20, raters[:2], 0.01) == {}


@pytest.mark.parametrize("seed", range(5))
def test_a_newcomer_with_few_answers_saves_no_random_rater(seed):
    """He cannot be screened yet, is not rejected for it, and is no third opinion about the others."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(1, 5, 60)
    honest = [np.clip(np.rint(truth + rng.normal(0, 0.5, 60)), 1, 5) for _ in range(2)]
    random = rng.integers(1, 6, 60).astype(float)
    newcomer = np.full(60, np.nan)
    newcomer[:2] = honest[0][:2]
    assert list(screen_correlation([*honest, random, newcomer], 0.75)) == [2]
    assert screen_correlation([honest[0], random, newcomer], 0.75) == {}, "of two who disagree nobody can say"


@pytest.mark.parametrize("seed", range(5))
def test_nobody_agrees_with_himself_on_pictures_that_nobody_else_rated(seed):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(1, 5, 120)
    honest = [np.clip(np.rint(truth + rng.normal(0, 0.5, 120)), 1, 5) for _ in range(3)]
    for k, scores in enumerate(honest):
        scores[60 + 20 * k :] = np.nan
    random = np.concatenate([rng.integers(1, 6, 40).astype(float), np.full(40, np.nan), rng.integers(1, 6, 40)])
    outliers = screen_correlation([*honest, random], 0.75)
    assert list(outliers) == [3]
    alone = np.vstack([honest[0], np.full(120, np.nan)])
    assert np.isnan(correlate(alone)).all()


def test_few_pairs_say_nothing_of_a_rater():
    pairs = [(i, j) for i in range(12) for j in range(12) if i < j]
    honest = pairs[:80] if len(pairs) > 80 else pairs
    rng = np.random.default_rng(0)
    random = [pair if rng.random() < 0.5 else pair[::-1] for pair in honest]
    newcomer = honest[:3]
    assert 2 not in screen_pairs(12, [honest, random, newcomer], 0.01)
    assert list(screen_pairs(12, [honest, honest[::-1], random, newcomer], 0.01)) == [2]
