"""Correlations against SciPy and slow definitions; the bootstrap against repeated rows."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from contrique import metrics
from contrique.metrics import EvaluationError

few_values = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30)
wide_values = st.lists(
    st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32)), min_size=3, max_size=30
)


def average_ranks(values):
    return np.array([np.sum(values < v) + (np.sum(values == v) + 1) / 2 for v in values])


def tau_b(x, y):
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    agree = sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i, j in pairs)
    untied = [sum(bool(v[i] != v[j]) for i, j in pairs) for v in (x, y)]
    return agree / np.sqrt(untied[0] * untied[1])


def columns(pairs):
    x, y = np.array(pairs, dtype=np.float64).T
    assume(np.ptp(x) > 1e-9 * np.abs(x).max() and np.ptp(y) > 1e-9 * np.abs(y).max())
    return x, y


@settings(deadline=None)
@given(st.one_of(few_values, wide_values))
def test_correlations_equal_scipy_and_their_definitions(pairs):
    x, y = columns(pairs)
    assert metrics.srcc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert metrics.krcc(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert metrics.plcc(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert metrics.srcc(x, y) == pytest.approx(np.corrcoef(average_ranks(x), average_ranks(y))[0, 1], abs=1e-12)
    assert metrics.krcc(x, y) == pytest.approx(tau_b(x, y), abs=1e-12)
    assert metrics.rmse(x, y) == pytest.approx(
        np.sqrt(np.mean((x - y) ** 2)), rel=1e-12, abs=1e-15 * np.abs([x, y]).max() + 1e-12
    )


@settings(deadline=None)
@given(few_values)
def test_ranks_ignore_a_monotone_change_and_follow_a_reversal(pairs):
    x, y = columns(pairs)
    for metric in (metrics.srcc, metrics.krcc):
        assert metric(np.exp(x), y) == pytest.approx(metric(x, y), abs=1e-12)
        assert metric(-x, y) == pytest.approx(-metric(x, y), abs=1e-12)
        assert metric(y, x) == pytest.approx(metric(x, y), abs=1e-12)
    assert metrics.plcc(3 * x - 7, y) == pytest.approx(metrics.plcc(x, y), abs=1e-12)


def test_correlation_of_huge_and_tiny_values_is_the_same():
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    for factor in (1e-200, 1e200):
        assert metrics.plcc(x * factor, y) == pytest.approx(metrics.plcc(x, y), abs=1e-12)


@pytest.mark.parametrize("metric", [metrics.srcc, metrics.plcc, metrics.krcc, metrics.rmse, metrics.fit_logistic])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6], "scores are the same"),
        ([1e9, 1e9, 1e9, 1e9 + 1e-6, 1e9, 1e9], [1, 2, 3, 4, 5, 6], "scores are the same"),
        ([1, 2, 3, 4, 5, 6], [2, 2, 2, 2, 2, 2], "labels are the same"),
        ([1, 2], [1, 2], "too few"),
        ([1, np.nan, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], "1 of 6 scores are NaN"),
        ([1, 2, 3, 4, 5, 6], [1, 2, np.inf, 4, 5, -np.inf], "2 of 6 labels are NaN or infinite"),
        ([1, 2, 3, 4], [1, 2, 3], "same length"),
        ([[1, 2, 3]], [[1, 2, 3]], "same length"),
    ],
)
def test_what_has_no_correlation_is_an_error(metric, scores, labels, message):
    with pytest.raises(EvaluationError, match=message):
        metric(scores, labels)


def test_logistic_finds_the_curve_that_made_the_labels():
    x = np.linspace(-3, 5, 60)
    expected = [80.0, 10.0, 1.0, 0.7]
    y = metrics.logistic(x, expected)
    actual = metrics.fit_logistic(x, y)
    np.testing.assert_allclose([*actual[:3], abs(actual[3])], expected, rtol=1e-5)
    b1, b2, b3, b4 = expected
    np.testing.assert_allclose(y, (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4))) + b2)


def test_logistic_is_no_worse_than_scipys_curve_fit_from_the_same_start():
    generator = np.random.default_rng(1)
    x = generator.normal(50, 20, 200)
    y = 1 / (1 + np.exp(-(x - 55) / 12)) + generator.normal(0, 0.1, 200)

    def curve(v, b1, b2, b3, b4):
        return (b1 - b2) / (1 + np.exp(-(v - b3) / abs(b4))) + b2

    reference, _ = optimize.curve_fit(curve, x, y, [y.max(), y.min(), x.mean(), x.std() / 4], maxfev=10_000)
    ours = metrics.rmse(metrics.logistic(x, metrics.fit_logistic(x, y)), y)
    assert ours <= metrics.rmse(curve(x, *reference), y) * (1 + 1e-6)


def test_logistic_needs_five_pictures():
    with pytest.raises(EvaluationError, match="at least 5"):
        metrics.fit_logistic([1, 2, 3, 4], [1, 2, 3, 5])


@settings(deadline=None)
@given(few_values, st.integers(0, 1000))
def test_resampled_statistics_are_those_of_the_repeated_rows(pairs, seed):
    x, y = columns(pairs)
    contents = [str(i % 4) for i in range(len(x))]
    counts, _ = metrics.resample(contents, 8, np.random.default_rng(seed))
    for name, statistic in metrics.RESAMPLED.items():
        values = statistic(x, y, counts)
        for value, repeats in zip(values, counts, strict=True):
            rows = np.repeat(np.arange(len(x)), repeats.astype(int))
            degenerate = len(rows) < 3 or np.ptp(x[rows]) == 0 or np.ptp(y[rows]) == 0
            if degenerate:
                assert name == "rmse" or np.isnan(value)
            else:
                assert value == pytest.approx(metrics.POINT[name](x[rows], y[rows]), abs=1e-9)


def test_resampling_in_chunks_changes_nothing(monkeypatch):
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(2, 40))
    counts, _ = metrics.resample([str(i % 7) for i in range(40)], 50, generator)
    whole = {name: f(x, y, counts) for name, f in metrics.RESAMPLED.items()}
    monkeypatch.setattr(metrics, "_CELLS", 64)
    for name, f in metrics.RESAMPLED.items():
        np.testing.assert_allclose(f(x, y, counts), whole[name], atol=1e-14)


def test_resample_draws_whole_contents():
    contents = ["a", "a", "b", "c", "c", "c", "d"]
    counts, unit = metrics.resample(contents, 200, np.random.default_rng(0))
    assert unit == metrics.BY_CONTENT
    assert counts.shape == (200, 7)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 3] == counts[:, 5]).all()
    assert (counts[:, [0, 2, 3, 6]].sum(axis=1) == 4).all()
    assert len(np.unique(counts, axis=0)) > 20


@pytest.mark.parametrize("contents", [["a"] * 6, ["a", "a", "a", "b", "b", "b"]])
def test_resample_draws_pictures_within_contents_when_contents_are_too_few(contents):
    counts, unit = metrics.resample(contents, 100, np.random.default_rng(0))
    assert unit == metrics.WITHIN_CONTENT
    for content in set(contents):
        members = np.array([c == content for c in contents])
        assert (counts[:, members].sum(axis=1) == members.sum()).all()
    assert len(np.unique(counts, axis=0)) > 20


def test_interval_over_contents_is_wider_than_over_pictures_when_pictures_of_a_content_agree():
    generator = np.random.default_rng(3)
    contents = np.repeat(np.arange(12), 20)
    x = generator.normal(size=12)[contents] + 0.05 * generator.normal(size=240)
    y = x + generator.normal(size=12)[contents]  # the error is the content's, not the picture's
    widths = []
    for groups in (contents, np.arange(240)):
        counts, _ = metrics.resample([str(g) for g in groups], 500, np.random.default_rng(0))
        low, high = metrics.interval(metrics.srcc_resampled(x, y, counts), 0.95)
        assert low < metrics.srcc(x, y) < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_interval_is_the_percentiles_of_the_defined_resamples():
    values = np.r_[np.arange(101.0), np.full(20, np.nan)]
    assert metrics.interval(values, 0.9) == pytest.approx((5.0, 95.0))


@pytest.mark.parametrize("values", [np.full(10, np.nan), np.r_[np.full(6, np.nan), np.arange(4.0)], np.array([])])
def test_an_interval_of_mostly_undefined_resamples_is_an_error(values):
    with pytest.raises(EvaluationError, match="too few"):
        metrics.interval(values, 0.95)


def test_median_over_splits_skips_undefined_ones():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan], [9.0, 7.0, np.nan]])
    np.testing.assert_array_equal(metrics.median(values), [3.0, 6.0, np.nan])


@pytest.mark.parametrize("seed", [90, 228, 229])
def test_scores_that_say_little_still_have_a_curve(seed):
    """The usual start ends on a constant there, after which no correlation would be defined."""
    scores, labels = np.random.default_rng(seed).normal(size=12), np.array([(7 * i) % 13 for i in range(12)], float)
    curve = metrics.logistic(scores, metrics.fit_logistic(scores, labels))
    line = np.polyval(np.polyfit(scores, labels, 1), scores)
    assert np.sum((curve - labels) ** 2) <= np.sum((line - labels) ** 2)
    assert 0.3 < metrics.plcc(curve, labels) < 0.6
