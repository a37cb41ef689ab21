"""A new head for somebody's own scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from contrique.config import RegressorConfig
from contrique.metrics import interval, resample, srcc, srcc_resampled
from contrique.regressor.cross_validation import Fold, choose_candidate, predict_out_of_fold, ridge_learner
from contrique.regressor.head import RegressorSummary
from contrique.regressor.prior import Prior, absorb, extend
from contrique.regressor.reliability import Novelty, conformal_radius, fit_novelty
from contrique.regressor.ridge import RegressorError, Ridge, fit_ridge, predict_tasks

ADAPT_MIN: Final = 20  # pictures
ADAPT_ADVISED: Final = 50  # pictures from which on a gain can be expected to show
ADAPT_FOLDS: Final = 10


@dataclass(frozen=True)
class Gain:
    """What a new head gains over a model as it is, on the same pictures.

    Attributes:
        before, before_low, before_high: SRCC of the model as it is, with its interval.
        value: SRCC of the new head, out of fold, less `before`.
        low, high: interval of `value`: both heads on the same resamples of contents.
    """

    before: float
    before_low: float
    before_high: float
    value: float
    low: float
    high: float

    @property
    def is_proven(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


@dataclass(frozen=True)
class Adaptation:
    """A head fitted to somebody's own scores, and how well such heads rank pictures they were not fitted on.

    Attributes:
        ridge: fitted on every picture.
        summary: of `ridge`; its `validation_srcc` chose alpha, its `interval` is set out of fold.
        novelty: how unlike these pictures another one is.
        srcc: out of fold: each picture scored by a head that saw none of its content, with an alpha chosen without it.
        low, high: interval of `srcc` by bootstrap over contents.
        gain: over the model as it is; None if its scores were not given, or are all the same.
    """

    ridge: Ridge
    summary: RegressorSummary
    novelty: Novelty | None
    srcc: float
    low: float
    high: float
    gain: Gain | None = None


def adapt(
    features: ArrayLike,
    labels: ArrayLike,
    contents: Sequence[str],
    *,
    config: RegressorConfig,
    prior: Prior | None = None,
    before: ArrayLike | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Adaptation:
    """A new head for 50 to 500 scores of one's own, on an encoder that stays as it is.

    Contents are divided into `ADAPT_FOLDS` folds. Alpha is the one that ranks all pictures best, each fold predicted
    from the others; to judge the head, the same is done again inside the other folds of each, so that neither the fit
    nor the choice knows the pictures it is judged on. Then the head is fitted on every picture.

    Args:
        features: shape (N, D).
        labels: higher is better, any range. Shape (N,).
        contents: of each picture. Length N.
        config: the alphas.
        prior: scores of another head, as one more feature.
        before: what the model as it is says of the pictures, higher is better, any range. Shape (N,).
        resamples, confidence: of the interval.
        seed: of the folds and of the bootstrap.
    Raises:
        RegressorError: fewer than `ADAPT_MIN` pictures or `ADAPT_FOLDS` contents, or they cannot be fitted.
        EvaluationError: no alpha ranks the pictures at all.
    """
    from sklearn.model_selection import GroupKFold

    y, names = np.asarray(labels, np.float64), np.asarray(contents, dtype=str)
    total = len(np.unique(names))
    if len(y) < ADAPT_MIN or total < ADAPT_FOLDS:
        raise RegressorError(
            f"{len(y)} scored pictures of {total} contents are too few to adapt to; give at least {ADAPT_MIN} "
            f"pictures of {ADAPT_FOLDS} contents, better 50 to 500"
        )
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        raise RegressorError(
            f"{len(bad)} scores are missing or no numbers, first that of picture {bad[0] + 1}; drop it"
        )
    splitter = GroupKFold(ADAPT_FOLDS, shuffle=True, random_state=seed)
    empty = np.array([], dtype=np.intp)
    folds = [Fold(train, empty, test) for train, test in splitter.split(y, groups=names)]
    group = np.empty(len(y), dtype=np.intp)
    for k, fold in enumerate(folds):
        group[fold.test] = k
    alphas = sorted(config.alphas)
    inputs = extend(features, prior)
    parts, _ = predict_out_of_fold(inputs, y, [str(k) for k in group], folds, ridge_learner(alphas))
    scores = np.empty_like(y)
    candidates = np.empty((len(alphas), len(y)))
    predictions = predict_tasks(inputs, y, [(fold.train, fold.test) for fold in folds], alphas)
    for fold, part, prediction in zip(folds, parts, predictions, strict=True):
        scores[fold.test], candidates[:, fold.test] = part, prediction
    index = choose_candidate(candidates, y)
    ridge = absorb(fit_ridge(inputs, y, alphas[index]), prior)
    counts, _ = resample(list(names), resamples, np.random.default_rng(seed))
    after = srcc_resampled(scores, y, counts)
    low, high = interval(after, confidence)
    summary = RegressorSummary(
        labels="human",
        label_low=float(y.min()),
        label_high=float(y.max()),
        alpha=alphas[index],
        n=len(y),
        contents=total,
        validation_n=len(y),
        validation_srcc=srcc(candidates[index], y),
        features_dim=len(ridge.coef),
        interval=conformal_radius(y - scores),
        interval_n=len(y),
        prior=prior.name if prior else "",
    )
    novelty = fit_novelty(features, list(names), np.empty((0, len(ridge.coef))), [], seed=seed)
    gain = None
    if before is not None and np.ptp(old := np.asarray(before, np.float64)) > 0:
        resampled, value = srcc_resampled(old, y, counts), srcc(old, y)
        ends = interval(resampled, confidence)
        gain = Gain(value, *ends, srcc(scores, y) - value, *interval(after - resampled, confidence))
    return Adaptation(ridge, summary, novelty, srcc(scores, y), low, high, gain)
