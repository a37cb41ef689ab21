"""How well scores agree with labels, and how sure that is: correlations, the logistic, the bootstrap over contents.

Pure functions on arrays. A number that would mean nothing (constant scores, too few pictures, NaN) is an error, never
a number. The point values are SciPy's; the `*_resampled` forms give the same statistic for many bootstrap resamples at
once, from how often each resample holds each picture, so that nothing is sorted or fitted a thousand times.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from contrique.errors import ContriqueError

Array = NDArray[np.float64]

BY_CONTENT: Final = "contents"
WITHIN_CONTENT: Final = "pictures within contents"
MIN_CONTENTS: Final = 3  # with one or two contents, resampling contents has one or three outcomes: no interval
MIN_VALID: Final = 0.5  # share of the resamples in which a statistic must be defined
_NEAR_CONSTANT: Final = 1e-13  # relative spread below which a correlation would be rounding noise (SciPy's threshold)
_CELLS: Final = 2**21  # array cells worked on at once: 16 MiB of float64


class EvaluationError(ContriqueError):
    """Scores, labels or splits from which no honest figure can be computed."""


def check(scores: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Scores and labels as float64 vectors from which a correlation can be computed.

    Raises:
        EvaluationError: shapes differ, fewer than three pictures, NaN or infinite values, or either is constant.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise EvaluationError(f"scores {x.shape} and labels {y.shape} must be two vectors of the same length")
    if len(x) < 3:
        raise EvaluationError(f"{len(x)} pictures are too few for a correlation; give at least 3")
    for name, values in (("scores", x), ("labels", y)):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            raise EvaluationError(
                f"{bad} of {len(values)} {name} are NaN or infinite; score or label them, or drop them"
            )
        if np.ptp(values) <= _NEAR_CONSTANT * float(np.abs(values).max()):
            raise EvaluationError(f"all {len(values)} {name} are the same ({values[0]:g}); no correlation is defined")
    return x, y


def srcc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Spearman's rank correlation, ties by average rank. Range [-1, 1].

    Args:
        scores: predictions. Shape (N,), N at least 3.
        labels: what they should agree with. Shape (N,).
    Raises:
        EvaluationError: as `check`.
    """
    return float(stats.spearmanr(*check(scores, labels)).statistic)


def plcc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Pearson's linear correlation. Arguments, range and errors as `srcc`."""
    x, y = check(scores, labels)
    return float(stats.pearsonr(_unit(x), _unit(y)).statistic)


def krcc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Kendall's rank correlation, tau-b (ties corrected). Arguments, range and errors as `srcc`."""
    return float(stats.kendalltau(*check(scores, labels)).statistic)


def rmse(scores: ArrayLike, labels: ArrayLike) -> float:
    """Root mean squared error in the unit of the labels. Arguments and errors as `srcc`."""
    x, y = check(scores, labels)
    scale = max(float(np.abs(x).max()), float(np.abs(y).max()))
    return scale * float(np.sqrt(np.mean((x / scale - y / scale) ** 2)))


def _unit(values: Array) -> Array:
    """Centred, largest magnitude one: squares neither overflow nor vanish."""
    scaled = values / np.abs(values).max()
    centred = scaled - scaled.mean()
    return np.asarray(centred / np.abs(centred).max())


def logistic(scores: ArrayLike, parameters: ArrayLike) -> Array:
    """The 4-parameter logistic q(x) = (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2. Shape as `scores`."""
    b1, b2, b3, b4 = np.asarray(parameters, dtype=np.float64)
    steps = (np.asarray(scores, dtype=np.float64) - b3) / max(abs(b4), np.finfo(float).tiny)
    return np.asarray((b1 - b2) * special.expit(steps) + b2)


def fit_logistic(scores: ArrayLike, labels: ArrayLike) -> Array:
    """Least-squares parameters of `logistic` from scores to labels, by Levenberg-Marquardt.

    The start is the usual one, [max y, min y, mean x, std x / 4]. With scores that say next to nothing it may end on a
    flat curve; where it ends worse than the straight line of least squares, that line is the start. Nothing keeps b1
    above b2: scores that rank the wrong way round are fitted by a falling curve, so that PLCC after the logistic tells
    the strength of a relation and SRCC its sign.

    Args:
        scores: predictions. Shape (N,), N at least 5.
        labels: what they should agree with. Shape (N,).
    Returns:
        b1 to b4. Shape (4,).
    Raises:
        EvaluationError: as `check`, or fewer than five pictures.
    """
    x, y = check(scores, labels)
    if len(x) < 5:
        raise EvaluationError(f"{len(x)} pictures are too few for a logistic of four parameters; give at least 5")
    mean, spread, low, high = x.mean(), x.std(), y.min(), y.max()
    u, v = (x - mean) / spread, (y - low) / (high - low)  # in these units the start is the same for every data set

    def fit(start: list[float]) -> Any:
        return optimize.least_squares(lambda b: logistic(u, b) - v, start, method="lm", max_nfev=5000)

    curve = fit([1.0, 0.0, 0.0, 0.25])
    slope, height = np.polyfit(u, v, 1)
    if 2 * curve.cost > np.sum((slope * u + height - v) ** 2):
        curve = fit([height + 20 * slope, height - 20 * slope, 0.0, 10.0])
    b1, b2, b3, b4 = curve.x
    return np.array([low + b1 * (high - low), low + b2 * (high - low), mean + b3 * spread, b4 * spread])


def resample(contents: Sequence[str], resamples: int, generator: np.random.Generator) -> tuple[Array, str]:
    """Bootstrap resamples as how often each holds each picture.

    Whole contents are drawn with replacement, because pictures of one content are not independent. With fewer than
    MIN_CONTENTS contents that has no more than three outcomes; there, pictures are drawn with replacement within each
    content instead, which leaves out how contents differ and so gives too narrow an interval: the unit says so.

    Args:
        contents: the content of each picture. Length N.
        resamples: how many, B.
        generator: the only source of randomness.
    Returns:
        counts, shape (B, N), and the unit that was drawn, BY_CONTENT or WITHIN_CONTENT.
    """
    names, ids = np.unique(np.asarray(contents, dtype=str), return_inverse=True)
    if len(names) >= MIN_CONTENTS:
        draws = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        return draws[:, ids].astype(np.float64), BY_CONTENT
    counts = np.empty((resamples, len(ids)))
    for content in range(len(names)):
        members = np.flatnonzero(ids == content)
        counts[:, members] = generator.multinomial(
            len(members), np.full(len(members), 1 / len(members)), size=resamples
        )
    return counts, WITHIN_CONTENT


def _constant(values: Array, counts: Array) -> NDArray[np.bool_]:
    """Which resamples hold fewer than two different values. Shape (B,)."""
    order, starts = _groups(values)
    return np.asarray(np.count_nonzero(np.add.reduceat(counts[:, order], starts, axis=1), axis=1) < 2)


def _groups(values: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The sorting order of the values and where in it each run of equal values starts."""
    order = np.argsort(values, kind="stable")
    return order, np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])


def _ranks(values: Array, counts: Array) -> Array:
    """Average ranks of each picture inside each resample. Shape (B, N)."""
    order, starts = _groups(values)
    totals = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks = np.cumsum(totals, axis=1) - totals + (totals + 1) / 2
    group = np.empty(len(values), dtype=np.intp)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    return np.asarray(ranks[:, group])


def _pearson(x: Array, y: Array, counts: Array) -> Array:
    """Pearson's correlation under counts; x and y of shape (N,) or (B, N). NaN or infinite where undefined."""
    total = counts.sum(axis=1, keepdims=True)
    dx = x - (counts * x).sum(axis=1, keepdims=True) / total
    dy = y - (counts * y).sum(axis=1, keepdims=True) / total
    products = [(counts * a * b).sum(axis=1) for a, b in ((dx, dy), (dx, dx), (dy, dy))]
    return np.asarray(products[0] / np.sqrt(products[1] * products[2]))


def _in_chunks(statistic: Callable[[Array], Array], x: Array, y: Array, counts: Array) -> Array:
    """A statistic of each resample, some resamples at a time; NaN where a correlation is undefined."""
    parts = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for chunk in np.array_split(counts, -(-counts.size // _CELLS) or 1):
            undefined = _constant(x, chunk) | _constant(y, chunk) | (chunk.sum(axis=1) < 3)
            parts.append(np.where(undefined, np.nan, statistic(chunk)))
    return np.asarray(np.clip(np.concatenate(parts), -1.0, 1.0))


def srcc_resampled(scores: Array, labels: Array, counts: Array) -> Array:
    """`srcc` of each resample; NaN where it is undefined.

    Args:
        scores, labels: finite. Shape (N,).
        counts: how often a resample holds a picture. Shape (B, N).
    Returns:
        shape (B,).
    """
    return _in_chunks(lambda c: _pearson(_ranks(scores, c), _ranks(labels, c), c), scores, labels, counts)


def plcc_resampled(scores: Array, labels: Array, counts: Array) -> Array:
    """`plcc` of each resample; as `srcc_resampled`."""
    x, y = _unit(scores), _unit(labels)
    return _in_chunks(lambda c: _pearson(x, y, c), scores, labels, counts)


def krcc_resampled(scores: Array, labels: Array, counts: Array) -> Array:
    """`krcc` of each resample; as `srcc_resampled`.

    With S the matrix of signs of differences, tau-b of a resample c is c'(Sx Sy)c / sqrt(c'|Sx|c c'|Sy|c). S is built
    some rows at a time; its cells and the counts are small integers, so that float32 sums of them are exact.
    """
    weights = counts.astype(np.float32).T
    sums = np.zeros((3, len(counts)))
    block = max(1, _CELLS // max(1, len(scores)))
    for start in range(0, len(scores), block):
        rows = slice(start, start + block)
        dx = np.sign(scores[rows, None] - scores[None, :]).astype(np.float32)
        dy = np.sign(labels[rows, None] - labels[None, :]).astype(np.float32)
        for i, signs in enumerate((dx * dy, np.abs(dx), np.abs(dy))):
            sums[i] += np.einsum("nb,nb->b", signs @ weights, weights[rows], dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        tau = sums[0] / np.sqrt(sums[1] * sums[2])
    return np.where(counts.sum(axis=1) < 3, np.nan, tau)


def rmse_resampled(scores: Array, labels: Array, counts: Array) -> Array:
    """`rmse` of each resample; as `srcc_resampled`."""
    total = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(total < 3, np.nan, np.sqrt(counts @ (scores - labels) ** 2 / total))


def interval(values: Array, confidence: float) -> tuple[float, float]:
    """Percentile interval of a bootstrapped statistic.

    Args:
        values: one a resample, NaN where it was undefined. Shape (B,).
        confidence: in (0, 1); 0.95 leaves out 2.5 % at either end.
    Raises:
        EvaluationError: the statistic is undefined in more than half of the resamples.
    """
    valid = values[np.isfinite(values)]
    if len(valid) == 0 or len(valid) < MIN_VALID * len(values):
        raise EvaluationError(
            f"the statistic is defined in {len(valid)} of {len(values)} resamples: too few different pictures "
            "for an interval; judge on more"
        )
    low, high = np.quantile(valid, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


POINT: Final[dict[str, Callable[[Any, Any], float]]] = {"srcc": srcc, "plcc": plcc, "krcc": krcc, "rmse": rmse}
RESAMPLED: Final[dict[str, Callable[[Array, Array, Array], Array]]] = {
    "srcc": srcc_resampled,
    "plcc": plcc_resampled,
    "krcc": krcc_resampled,
    "rmse": rmse_resampled,
}


def median(values: Array) -> Array:
    """Median over splits of each resample, of the splits in which the statistic is defined; NaN if in none.

    Args:
        values: shape (splits, B).
    Returns:
        shape (B,).
    """
    undefined = ~np.isfinite(values).any(axis=0)
    return np.where(undefined, np.nan, np.nanmedian(np.where(undefined, 0.0, values), axis=0))
