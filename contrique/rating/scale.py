"""From answers to scores: means with intervals, raters who are left out, pairs on a scale, agreement.

Ratings are an array of shape (raters, pictures), NaN where somebody was not asked.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Array = NDArray[np.float64]
CONFIDENCE: Final = 0.95
MIN_RATERS: Final = 3  # with two who disagree, nobody can say which one is wrong
MIN_SHARED: Final = 10  # pictures that a rater and others rated, below which nothing is said of the rater
_OUTLIERS: Final = 0.05  # share of a rater's answers, from which on a rater is looked at
_LOPSIDED: Final = 0.3  # beyond which outliers are a matter of strictness and no reason
_PENALTY: Final = 0.1  # of squared values of pairs: a normal prior of 2.2 logits, which keeps unbeaten ones finite


def screen_outliers(ratings: ArrayLike) -> NDArray[np.bool_]:
    """Which raters ITU-R BT.500-15 rejects (Part 1, Annex 1, post-screening; section 2.3.1 of Annex 2 in BT.500-13).

    For each picture, scores that lie 2 standard deviations from the mean, or the square root of 20 where the kurtosis
    is not from 2 to 4, are outliers. A rater is rejected with over 5 % of outliers if those are high and low ones in
    like numbers. Among fewer than six raters no score can lie so far off, so that nobody is ever rejected.

    Args:
        ratings: shape (raters, pictures).
    Returns:
        shape (raters,).
    """
    x = np.asarray(ratings, np.float64)
    high, low = np.zeros(len(x)), np.zeros(len(x))
    for scores in x.T:
        present = scores[np.isfinite(scores)]
        if len(present) < 2 or np.ptp(present) == 0:
            continue
        deviations = present - present.mean()
        kurtosis = np.mean(deviations**4) / np.mean(deviations**2) ** 2
        limit = (2.0 if 2 <= kurtosis <= 4 else np.sqrt(20)) * present.std(ddof=1)
        with np.errstate(invalid="ignore"):
            high += scores >= present.mean() + limit
            low += scores <= present.mean() - limit
    both = high + low
    counts = np.maximum(np.isfinite(x).sum(axis=1), 1)
    return np.asarray((both / counts > _OUTLIERS) & (np.abs(high - low) < _LOPSIDED * np.maximum(both, 1)))


def correlate(ratings: ArrayLike) -> Array:
    """Pearson's correlation of each rater with the mean of all raters, over the pictures that somebody else rated too.

    Args:
        ratings: shape (raters, pictures).
    Returns:
        shape (raters,); NaN for fewer than MIN_SHARED such pictures; -1 for answers that are all alike.
    """
    x = np.asarray(ratings, np.float64)
    present = np.isfinite(x)
    shared = present.sum(axis=0) > 1  # alone on a picture, everybody agrees with the mean
    mean = np.where(present, x, 0.0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    values = np.full(len(x), np.nan)
    for i, scores in enumerate(x):
        own = np.isfinite(scores) & shared
        if own.sum() >= MIN_SHARED and np.ptp(mean[own]) > 0:
            alike = np.ptp(scores[own]) == 0
            values[i] = -1.0 if alike else stats.pearsonr(scores[own], mean[own]).statistic
    return values


def screen_correlation(ratings: ArrayLike, threshold: float) -> dict[int, float]:
    """Raters who do not go with the others (ITU-T P.913, section 11.3; ITU-R BT.1788 has the like).

    The one with the lowest correlation with the mean goes first, as long as it is below the threshold and at least
    MIN_RATERS are left; then the means are taken again. Who shares too few pictures with others cannot be screened, and
    counts for nobody's screening.

    Args:
        ratings: shape (raters, pictures).
        threshold: of `correlate`.
    Returns:
        row numbers of the rejected, with the correlation that rejected them, in that order; -1 for one who said the
        same of every picture.
    """
    x = np.array(ratings, np.float64)
    left = list(range(len(x)))
    rejected: dict[int, float] = {}
    while True:
        values = correlate(x[left])
        if np.isfinite(values).sum() < MIN_RATERS:
            return rejected
        worst = int(np.nanargmin(values))
        if values[worst] >= threshold:
            return rejected
        rejected[left.pop(worst)] = float(values[worst])


def mean_opinions(ratings: ArrayLike, differences: ArrayLike = ()) -> tuple[Array, Array]:
    """Mean opinion scores, and half the width of their 95 % intervals.

    From each rater's scores the rater's strictness is taken first: by how much they lie above the means of the same
    pictures, on average (ITU-T P.913, section 12.4). Where everybody rated everything, the means stay what they are.
    The standard deviation of an answer is pooled over the pictures, so that few raters suffice for Student's t.

    Args:
        ratings: shape (raters, pictures), each picture rated by somebody.
        differences: between two answers of one rater about the same picture. Of a single rater they alone tell how far
            an answer can be trusted, and only as that person's own.
    Returns:
        means and half-widths, each of shape (pictures,); half-widths are NaN if nothing tells them.
    """
    x = np.asarray(ratings, np.float64)
    mean = np.nanmean(x, axis=0)
    bias = np.nanmean(x - mean, axis=1)
    bias -= bias.mean()
    mean = np.nanmean(x - bias[:, None], axis=0)
    counts = np.isfinite(x).sum(axis=0)
    freedom = int(counts.sum() - len(mean) - (len(x) - 1))
    squares = float(np.nansum((x - bias[:, None] - mean) ** 2))
    if len(x) == 1:
        gaps = np.asarray(differences, np.float64)
        freedom, squares = len(gaps), float(np.sum(gaps**2) / 2)
    if freedom < 1:
        return mean, np.full(len(mean), np.nan)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    return mean, np.asarray(quantile * np.sqrt(squares / freedom / counts))


def krippendorff(ratings: ArrayLike) -> float:
    """Krippendorff's alpha for interval data: 1 for raters who agree, 0 for such as answer by chance.

    Args:
        ratings: shape (raters, pictures).
    Returns:
        NaN if no picture has two answers, or all answers are alike.
    """
    x = np.asarray(ratings, np.float64)
    units = [unit for scores in x.T if len(unit := scores[np.isfinite(scores)]) > 1]
    if not units or np.ptp(every := np.concatenate(units)) == 0:
        return float("nan")
    observed = sum(len(unit) * unit.var(ddof=1) for unit in units) / len(every)
    return float(1 - observed / every.var(ddof=1))


def scale_pairs(count: int, comparisons: Sequence[tuple[int, int]]) -> tuple[Array, Array]:
    """A scale from comparisons: the model of Bradley and Terry, by `choix`.

    Args:
        count: pictures.
        comparisons: (better, worse), numbers below `count`.
    Returns:
        values in logits with a mean of 0 (a difference of 1: the better one is preferred 73 times of 100) and half the
        width of their 95 % intervals, each of shape (count,).
    """
    import choix

    values = np.asarray(choix.opt_pairwise(count, list(comparisons), alpha=_PENALTY))
    values -= values.mean()
    information = 2 * _PENALTY * np.eye(count)
    for better, worse in comparisons:
        p = special.expit(values[better] - values[worse])
        information[[better, worse], [better, worse]] += p * (1 - p)
        information[[better, worse], [worse, better]] -= p * (1 - p)
    centred = np.eye(count) - 1 / count  # nothing is known, or said, of the level of all
    variances = np.diag(centred @ np.linalg.inv(information) @ centred)
    return values, np.asarray(stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(variances))


def share_agreed(count: int, own: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """How many of a rater's comparisons the scale of the others would have made alike, and of how many it can tell."""
    values, _ = scale_pairs(count, others)
    scaled = {i for pair in others for i in pair}
    gaps = [values[better] - values[worse] for better, worse in own if {better, worse} <= scaled]
    return sum(gap > 0 for gap in gaps), len(gaps)


def screen_pairs(count: int, comparisons: Sequence[Sequence[tuple[int, int]]], significance: float) -> dict[int, float]:
    """Raters of pairs whose agreement with the others may be chance (binomial test); the worst goes first.

    Args:
        count: pictures.
        comparisons: of each rater.
        significance: above which chance explains it.
    Returns:
        numbers of the rejected, with the share that agreed; none among fewer than MIN_RATERS.
    """
    left = list(range(len(comparisons)))
    rejected: dict[int, float] = {}
    while True:
        tests: dict[int, tuple[float, float]] = {}
        for i in left:
            others = [pair for j in left if j != i for pair in comparisons[j]]
            agreed, total = share_agreed(count, comparisons[i], others)
            if 0.5**total <= significance:  # of fewer pairs even agreement in all may be chance: nothing to judge by
                chance = float(stats.binomtest(agreed, total, 0.5, "greater").pvalue)
                tests[i] = (chance, agreed / max(1, total))
        if len(tests) < MIN_RATERS:
            return rejected
        worst = max(tests, key=lambda rater: tests[rater])
        if tests[worst][0] <= significance:
            return rejected
        left.remove(worst)
        rejected[worst] = tests[worst][1]
