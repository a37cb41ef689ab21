"""The protocol of spec section 5, for any learner: on one set's own labels, and from one set to another."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrique.config import EvaluationConfig
from contrique.data.leaks import LeakError
from contrique.evaluation.judgement import CROSS_SET, METRICS, Judgement, Rated, estimate_agreement
from contrique.metrics import EvaluationError
from contrique.regressor.cross_validation import LEAVE_ONE_OUT, Fold, Learner, make_folds, predict_out_of_fold
from contrique.regressor.ridge import Rows


def cross_validate(
    features: ArrayLike,
    rated: Rated,
    learner: Learner,
    *,
    config: EvaluationConfig,
    seed: int,
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
        rated: labels of each row.
        learner: what is fitted.
        config, seed: of folds and bootstrap.
        extra: the last rows, that many, are fitted to in every fold and never judged.
        official: as `make_folds`.
    Raises:
        EvaluationError: too few contents or pictures, or scores without a correlation.
    """
    n = len(rated.contents) - extra
    protocol, folds = make_folds(rated.contents[:n], config=config, seed=seed, official=official)
    folds = [replace(fold, train=np.r_[fold.train, n : n + extra]) for fold in folds]
    scores, indices = predict_out_of_fold(features, rated.labels, rated.contents, folds, learner)
    splits = [(fold.test, values) for fold, values in zip(folds, scores, strict=True)]
    if protocol == LEAVE_ONE_OUT:
        splits = [(np.concatenate([rows for rows, _ in splits]), np.concatenate(scores))]
    alphas = [learner.candidates[i] for i in indices]
    return estimate_agreement(
        splits, rated, config=config, seed=seed, protocol=protocol, n_splits=len(folds), alphas=alphas
    )


def transfer(
    source_features: ArrayLike,
    source: Rated,
    features: ArrayLike,
    rated: Rated,
    learner: Learner,
    *,
    config: EvaluationConfig,
    seed: int,
    protocol: str = CROSS_SET,
) -> Judgement:
    """Fitted on the whole of one set, judged on another: across sets, or from weak labels to human scores.

    The candidate is chosen inside the source set, as the protocol would: by leave-one-content-out when its contents
    are few, else on as many of them as the protocol would test with, fitted on the rest. Then it is fitted on all. Two
    sets' labels have units of their own, so an RMSE is computed after the logistic only.

    Args:
        source_features, source: to fit on. Shape (M, D), and labels of two contents or more.
        features, rated: to be judged on. Shape (N, D), and labels.
        learner, config, seed: as `cross_validate`.
        protocol: CROSS_SET or OPINION_UNAWARE.
    Raises:
        EvaluationError: fewer than two contents to fit on.
        LeakError: a content is on both sides.
    """
    shared = sorted(set(source.contents) & set(rated.contents))
    if shared:
        raise LeakError(f"contents {shared[:3]} are in the set to fit on and in the one to judge; drop them from one")
    groups = np.asarray(source.contents, dtype=str)
    everything, judged = np.arange(len(groups)), len(groups) + np.arange(len(rated.contents))
    train, validation = _split_source(groups, config, seed)
    both = np.concatenate([np.asarray(source_features), np.asarray(features)])
    labels = np.concatenate([np.asarray(source.labels, np.float64), np.full(len(judged), np.nan)])
    fold = Fold(train, validation, judged)
    _, (index,) = predict_out_of_fold(both, labels, [*groups, *rated.contents], [fold], learner)
    scores = learner.fit(both, labels, [(everything, judged)])[0][index]
    return estimate_agreement(
        [(np.arange(len(judged)), scores)],
        rated,
        config=config,
        seed=seed,
        protocol=protocol,
        alphas=[learner.candidates[index]],
        metrics=[name for name in METRICS if name != "rmse"],
    )


def _split_source(groups: NDArray[np.str_], config: EvaluationConfig, seed: int) -> tuple[Rows, Rows]:
    """Rows to fit and to choose on; no rows to choose on where contents are few, which leaves one out at a time."""
    from sklearn.model_selection import GroupShuffleSplit

    total = len(np.unique(groups))
    if total < 2:
        raise EvaluationError(f"{total} contents to fit on; give at least 2, to fit and to choose alpha")
    if total < config.few_contents:
        return np.arange(len(groups)), np.array([], dtype=np.intp)
    splitter = GroupShuffleSplit(1, test_size=max(1, round(config.fractions[2] * total)), random_state=seed)
    ((train, validation),) = splitter.split(groups, groups=groups)
    return train, validation
