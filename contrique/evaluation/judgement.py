"""How well scores agree with labels: figures with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from contrique import metrics as statistics
from contrique.config import EvaluationConfig
from contrique.metrics import EvaluationError
from contrique.regressor.ridge import Array, Rows

CROSS_SET: Final = "cross-set"
OPINION_UNAWARE: Final = "opinion-unaware"
TEST_PART: Final = "test part"
METRICS: Final = ("srcc", "plcc", "plcc_logistic", "krcc", "rmse", "rmse_logistic")


@dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap interval.

    Attributes:
        value: over all pictures, or the median over splits.
        low, high: percentile interval.
        n: different pictures judged.
        contents: different contents judged.
        splits: from how many splits the value comes.
        unit: what was resampled, `contents` or, with under three contents, `pictures within contents`.
    """

    value: float
    low: float
    high: float
    n: int
    contents: int
    splits: int
    unit: str


@dataclass(frozen=True)
class Slice:
    """SRCC on the pictures of one distortion; None, with the reason, where it is undefined."""

    n: int
    contents: int
    srcc: Estimate | None
    reason: str = ""


@dataclass(frozen=True)
class Judgement:
    """How scores agree with labels.

    Attributes:
        protocol: LEAVE_ONE_OUT, RANDOM, OFFICIAL, CROSS_SET, OPINION_UNAWARE or TEST_PART.
        labels: `human` or `weak`: what was judged against.
        n, contents, splits: pictures and contents judged; splits made.
        metrics: srcc, plcc, krcc, rmse on the raw scores, and plcc_logistic and rmse_logistic after the 4-parameter
            logistic, which is fitted on the judged pictures once a split and not again for each resample.
        within_content: mean of the SRCC inside each content, weighted by its pictures; None where no content has
            three. It is free of what differs between contents and of each fold's own intercept.
        slices: by distortion.
        alphas: the chosen candidate of each split (ridge: alpha).
    """

    protocol: str
    labels: str
    n: int
    contents: int
    splits: int
    metrics: dict[str, Estimate]
    within_content: Estimate | None
    slices: dict[str, Slice]
    alphas: list[float]


@dataclass(frozen=True)
class Rated:
    """Labels of pictures, row by row.

    Attributes:
        labels: higher is better. Shape (N,).
        contents: length N.
        distortions: length N; "" for none.
        label_source: `human` opinion scores or `weak` full-reference labels.
    """

    labels: ArrayLike
    contents: Sequence[str]
    distortions: Sequence[str]
    label_source: str = "human"


def estimate_agreement(
    splits: Sequence[tuple[Rows, ArrayLike]],
    rated: Rated,
    *,
    config: EvaluationConfig,
    seed: int,
    protocol: str,
    n_splits: int = 1,
    alphas: Sequence[float] = (),
    metrics: Sequence[str] = METRICS,
) -> Judgement:
    """All figures of some scores: the median over splits of each, with an interval by bootstrap over contents.

    One resample draws contents from all that were judged and recomputes every split with them, so that the interval
    knows that the splits share their pictures.

    Args:
        splits: row numbers and their scores, a pair a split.
        rated: labels of all rows.
        config: resamples and confidence.
        seed: of the bootstrap.
        protocol, n_splits, alphas: go into the result: what was done, in how many splits, with which candidates.
        metrics: some of METRICS.
    Raises:
        EvaluationError: a metric is undefined on a split (constant scores, too few pictures, NaN).
    """
    y, groups = np.asarray(rated.labels, np.float64), np.asarray(rated.contents, str)
    kinds = np.asarray(rated.distortions, str)
    pairs = [(rows, np.asarray(scores, np.float64)) for rows, scores in splits]
    for rows, scores in pairs:
        statistics.check(scores, y[rows])
    universe = np.unique(np.concatenate([rows for rows, _ in pairs]))
    counts, unit = statistics.resample(groups[universe], config.resamples, np.random.default_rng([seed, 0]))
    shape = (len(universe), len(set(groups[universe])), n_splits)

    def estimate(values: Sequence[float], resampled: Sequence[Array]) -> Estimate:
        low, high = statistics.interval(statistics.median(np.stack(resampled)), config.confidence)
        return Estimate(float(np.median(values)), low, high, *shape, unit)

    mapped = [(rows, statistics.logistic(s, statistics.fit_logistic(s, y[rows]))) for rows, s in pairs]
    estimates = {}
    for name in tqdm(metrics, desc=f"bootstrap, {protocol}", delay=2, disable=None):
        metric = name.removesuffix("_logistic")
        columns = mapped if name.endswith("_logistic") else pairs
        estimates[name] = estimate(
            [statistics.POINT[metric](scores, y[rows]) for rows, scores in columns],
            [
                statistics.RESAMPLED[metric](scores, y[rows], counts[:, np.searchsorted(universe, rows)])
                for rows, scores in columns
            ],
        )
    inside = [_estimate_within(s, y[rows], groups[rows], np.ones((1, len(rows))))[0] for rows, s in pairs]
    within = None
    if np.isfinite(inside).all():
        resampled = [_estimate_within(s, y[r], groups[r], counts[:, np.searchsorted(universe, r)]) for r, s in pairs]
        within = estimate([float(value) for value in inside], resampled)
    slices = {
        str(name): _estimate_slice(pairs, y, groups, kinds == name, config, [seed, 1 + i])
        for i, name in enumerate(sorted(set(kinds[universe]) - {""}))
    }
    return Judgement(
        protocol, rated.label_source, *shape, estimates, within, slices, [float(alpha) for alpha in alphas]
    )


def _estimate_within(scores: Array, labels: Array, contents: NDArray[np.str_], counts: Array) -> Array:
    """Mean of the SRCC inside each content, weighted by pictures, for each resample. NaN if none is defined."""
    total, weight = np.zeros(len(counts)), np.zeros(len(counts))
    _, ids, sizes = np.unique(contents, return_inverse=True, return_counts=True)
    for content in np.flatnonzero(sizes >= 3):
        rows = np.flatnonzero(ids == content)
        inside = statistics.srcc_resampled(scores[rows], labels[rows], counts[:, rows])
        pictures = np.where(np.isfinite(inside), counts[:, rows].sum(axis=1), 0.0)
        total += np.where(pictures > 0, inside, 0.0) * pictures
        weight += pictures
    with np.errstate(invalid="ignore"):
        return np.asarray(total / weight)


def _estimate_slice(
    pairs: Sequence[tuple[Rows, Array]],
    labels: Array,
    contents: NDArray[np.str_],
    mine: NDArray[np.bool_],
    config: EvaluationConfig,
    seed: Sequence[int],
) -> Slice:
    """SRCC on the rows of one distortion; the median over the splits in which it is defined."""
    parts = [(rows[mine[rows]], scores[mine[rows]]) for rows, scores in pairs]
    universe = np.unique(np.concatenate([rows for rows, _ in parts]))
    n, n_contents = len(universe), len(set(contents[universe]))
    values, usable, reason = [], [], ""
    for rows, scores in parts:
        try:
            values.append(statistics.srcc(scores, labels[rows]))
            usable.append((rows, scores))
        except EvaluationError as error:  # named in the slice; the other splits may still define it
            reason = str(error)
    if not usable:
        return Slice(n, n_contents, None, reason)
    counts, unit = statistics.resample(contents[universe], config.resamples, np.random.default_rng(seed))
    resampled = [statistics.srcc_resampled(s, labels[r], counts[:, np.searchsorted(universe, r)]) for r, s in usable]
    try:
        low, high = statistics.interval(statistics.median(np.stack(resampled)), config.confidence)
    except EvaluationError as error:
        return Slice(n, n_contents, None, str(error))
    return Slice(n, n_contents, Estimate(float(np.median(values)), low, high, n, n_contents, len(usable), unit))
