"""The protocol of spec section 5, for any learner: on one set's own labels, and from one set to another."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from contrique.config import EvaluationConfig
from contrique.data.leaks import LeakError
from contrique.evaluation.judgement import CROSS_SET, Judgement, estimate_agreement
from contrique.metrics import EvaluationError
from contrique.regressor.cross_validation import LEAVE_ONE_OUT, Fold, Learner, make_folds, predict_out_of_fold


def cross_validate(
    features: ArrayLike,
    labels: ArrayLike,
    contents: Sequence[str],
    distortions: Sequence[str],
    learner: Learner,
    candidates: Sequence[float],
    *,
    config: EvaluationConfig,
    seed: int,
    kind: str = "human",
    extra: int = 0,
    official: Sequence[str] = (),
) -> Judgement:
    """The protocol of spec section 5 for any learner, out of fold.

    Leave-one-content-out pools the scores of all folds, as they are. Each fold has its own intercept, lower where its
    held-out content is better than the rest (the mean of the others is what it was fitted to), so that the pooled
    correlations err on the low side; nothing is done about it, for that would take the test labels.
    `within_content` is free of it.

    Args:
        features: shape (N, D).
        labels, contents, distortions: of each row. Length N.
        learner: from features to candidates' predictions.
        candidates: what the learner's candidates are called in the result (ridge: the alphas, sorted).
        config, seed: of folds and bootstrap.
        kind: `human` or `weak`.
        extra: the last rows, that many, are fitted to in every fold and never judged.
        official: as `make_folds`.
    """
    n = len(contents) - extra
    protocol, folds = make_folds(contents[:n], config=config, seed=seed, official=official)
    folds = [replace(fold, train=np.r_[fold.train, n : n + extra]) for fold in folds]
    scores, chosen = predict_out_of_fold(features, labels, contents, folds, learner)
    splits = [(fold.test, values) for fold, values in zip(folds, scores, strict=True)]
    if protocol == LEAVE_ONE_OUT:
        splits = [(np.concatenate([rows for rows, _ in splits]), np.concatenate(scores))]
    return estimate_agreement(
        splits,
        labels,
        contents,
        distortions,
        config=config,
        seed=seed,
        protocol=protocol,
        kind=kind,
        made=len(folds),
        alphas=[candidates[i] for i in chosen],
    )


def transfer(
    fitted_features: ArrayLike,
    fitted_labels: ArrayLike,
    fitted_contents: Sequence[str],
    features: ArrayLike,
    labels: ArrayLike,
    contents: Sequence[str],
    distortions: Sequence[str],
    learner: Learner,
    candidates: Sequence[float],
    *,
    config: EvaluationConfig,
    seed: int,
    protocol: str = CROSS_SET,
) -> Judgement:
    """Fitted on the whole of one set, judged on another: across sets, or from weak labels to human scores.

    The candidate is chosen inside the fitted set, as the protocol would: by leave-one-content-out when its contents
    are few, else on as many of them as the protocol would test with, fitted on the rest. Then it is fitted on all. Two
    sets' labels have units of their own, so an RMSE is told after the logistic only.

    Args:
        fitted_features, fitted_labels, fitted_contents: to fit on. Shapes (M, D), (M,) and length M, two contents or
            more.
        features, labels, contents, distortions: to be judged on. Shapes (N, D), (N,) and length N.
        learner, candidates, config, seed: as `cross_validate`.
        protocol: CROSS_SET or OPINION_UNAWARE.
    Raises:
        EvaluationError: fewer than two contents to fit on.
        LeakError: a content is on both sides.
    """
    shared = sorted(set(fitted_contents) & set(contents))
    if shared:
        raise LeakError(f"contents {shared[:3]} are in the set to fit on and in the one to judge; drop them from one")
    groups = np.asarray(fitted_contents, dtype=str)
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    if len(names) < 2:
        raise EvaluationError(f"{len(names)} contents to fit on; give at least 2, to fit and to choose alpha")
    everything, judged = np.arange(len(groups)), len(groups) + np.arange(len(contents))
    fold = Fold(everything, np.array([], dtype=np.intp), judged)
    if len(names) >= config.few_contents:
        chosen = np.isin(groups, names[: max(1, round(config.fractions[2] * len(names)))])
        fold = Fold(np.flatnonzero(~chosen), np.flatnonzero(chosen), judged)
    both = np.concatenate([np.asarray(fitted_features), np.asarray(features)])
    known = np.concatenate([np.asarray(fitted_labels, np.float64), np.full(len(judged), np.nan)])
    _, (best,) = predict_out_of_fold(both, known, [*groups, *contents], [fold], learner)
    scores = learner(both, known, [(everything, judged)])[0][best]
    return estimate_agreement(
        [(np.arange(len(judged)), scores)],
        labels,
        contents,
        distortions,
        config=config,
        seed=seed,
        protocol=protocol,
        kind="human",
        alphas=[candidates[best]],
        names=("srcc", "plcc", "plcc_logistic", "krcc", "rmse_logistic"),
    )
