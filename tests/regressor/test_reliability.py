"""Conformal intervals against their definition and their promise; novelty against scikit-learn."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from contrique.regressor.reliability import BANK, COVERAGE, NEIGHBOURS, Novelty, conformal_radius, fit_novelty


@pytest.mark.parametrize(("n", "rank"), [(9, 9), (10, 10), (19, 18), (99, 90), (1000, 901)])
def test_the_radius_is_an_order_statistic(n, rank):
    residuals = np.random.default_rng(0).permutation(np.arange(1, n + 1)) * np.resize([1, -1], n)
    assert conformal_radius(residuals) == rank


@pytest.mark.parametrize("n", [0, 1, 8])
def test_too_few_residuals_give_no_interval(n):
    assert conformal_radius(np.arange(n)) is None


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_new_residuals_are_covered_as_often_as_promised(coverage):
    """The promise is on average over the draws that set the radius; heavy tails, so that no normal theory helps."""
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(400):
        draws = rng.standard_t(2, size=120)
        shares.append(np.mean(np.abs(draws[40:]) <= conformal_radius(draws[:40], coverage)))
    exact = np.ceil(41 * coverage) / 41
    assert np.mean(shares) == pytest.approx(exact, abs=4 * np.std(shares) / np.sqrt(len(shares)))
    assert exact >= coverage


def clouds(n, contents, seed):
    rng = np.random.default_rng(seed)
    ids = np.arange(n) % contents
    return rng.normal(size=(contents, 12))[ids] + 0.3 * rng.normal(size=(n, 12)), [f"c{i}" for i in ids]


def test_distance_is_that_of_scikit_learn():
    train, contents = clouds(200, 10, 0)
    others, _ = clouds(50, 5, 1)
    novelty = fit_novelty(train, contents, others, ["x"] * 50)
    exact = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(novelty.bank).kneighbors(others)[0][:, -1]
    np.testing.assert_allclose(novelty.distance(others) * novelty.threshold, exact, rtol=1e-5)


def test_nearly_parallel_features_keep_their_digits():
    rng = np.random.default_rng(2)
    bank = (1 + 1e-3 * rng.normal(size=(100, 64))).astype(np.float32) / 8
    novelty = Novelty(bank, 1.0)
    exact = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(bank.astype(np.float64)).kneighbors(bank[:5])[0][:, -1]
    np.testing.assert_allclose(novelty.distance(bank[:5]), exact, rtol=1e-3)


def test_one_in_a_hundred_of_new_contents_is_called_unlike_and_strangers_are():
    """Contents are points of one cloud; new ones of the same cloud are alike, a shifted cloud is not."""
    train, contents = clouds(2000, 1000, 0)
    others, names = clouds(600, 300, 1)
    novelty = fit_novelty(train, contents, others, [f"o{name}" for name in names])
    fresh, _ = clouds(4000, 4000, 2)
    share = np.mean(novelty.distance(fresh) > 1)
    assert 0.002 < share < 0.03
    assert (novelty.distance(fresh[:100] + 4) > 1).all()
    assert len(novelty.bank) == BANK


def test_the_threshold_compares_across_contents_only():
    """Thirty near-copies of each content: compared with each other they make every new content a stranger."""
    train, contents = clouds(300, 10, 0)
    novelty = fit_novelty(train, contents, np.empty((0, 12)), [])
    fresh, _ = clouds(50, 50, 3)
    leaky = fit_novelty(train, [str(i) for i in range(300)], np.empty((0, 12)), [])
    assert np.mean(novelty.distance(fresh) > 1) < 0.4
    assert np.mean(leaky.distance(fresh) > 1) > 0.9


@pytest.mark.parametrize(("n", "contents"), [(NEIGHBOURS - 1, 2), (40, 1)])
def test_too_little_to_compare_with_gives_none(n, contents):
    train, names = clouds(n, contents, 0)
    assert fit_novelty(train, names, np.empty((0, 12)), []) is None


def test_the_nominal_coverage_is_the_documented_one():
    assert COVERAGE == 0.9
