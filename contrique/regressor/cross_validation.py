"""Folds by content, and candidates chosen and predicted out of fold."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from contrique.config import EvaluationConfig
from contrique.metrics import EvaluationError, srcc
from contrique.regressor.ridge import Array, Rows, Task, fit_path, predict_tasks


def choose_candidate(candidates: Array, labels: Array) -> int:
    """Index of the candidate with the highest validation SRCC; ties go to the last, of alphas the largest.

    Args:
        candidates: predictions of each candidate. Shape (A, N).
        labels: of the validation part. Shape (N,).
    Returns:
        a row number of `candidates`.
    Raises:
        EvaluationError: no candidate has a defined SRCC.
    """
    values = _correlate(candidates, labels)
    return int(np.flatnonzero(values == np.nanmax(values))[-1])


def choose_within_error(candidates: Array, labels: Array) -> int:
    """Index of the candidate with the smallest squared error among those that rank about as well as the best one.

    About as well: with an SRCC at most one standard error below the highest, and above 0 if any is. The error is that
    of Fisher's transform of an SRCC (Bonett and Wright 2000), as if pictures of one content told as much as those of
    many; an SRCC of 1 counts as halfway to one with two neighbours exchanged. The pictures of a few contents hardly
    tell ranks apart, and the largest alpha that ranks them can draw all scores together; of many contents the error is
    small, and nearly the same alpha comes out as of `choose_candidate`. After the rule of Breiman et al. (1984), which
    takes the simplest where this takes the most accurate. Ties go to the last.

    Args, returns and raises as `choose_candidate`.
    """
    values, n = _correlate(candidates, labels), len(labels)
    perfect = 1 - 6 / (n * (n**2 - 1))
    values = np.clip(values, -perfect, perfect)
    highest = np.nanmax(values)
    near = np.arctanh(values) >= np.arctanh(highest) - np.sqrt((1 + highest**2 / 2) / max(1, n - 3))
    if highest > 0:
        near &= values > 0
    squares = np.where(near, np.mean((candidates - labels) ** 2, axis=1), np.inf)
    return int(np.flatnonzero(squares == squares.min())[-1])


def _correlate(candidates: Array, labels: Array) -> Array:
    """SRCC of each candidate, NaN where it is undefined. Shape (A,).

    Raises:
        EvaluationError: it is undefined for all.
    """
    values, reason = np.full(len(candidates), np.nan), None
    for i, scores in enumerate(candidates):
        try:
            values[i] = srcc(scores, labels)
        except EvaluationError as error:  # a candidate that predicts a constant is no candidate
            reason = error
    if np.isnan(values).all():
        raise EvaluationError(f"no candidate can be chosen on the validation part: {reason}")
    return values


LEAVE_ONE_OUT: Final = "leave-one-content-out"
RANDOM: Final = "random splits by content"
OFFICIAL: Final = "official split"
MIN_CHOSEN_ON: Final = 3  # pictures, for a rank correlation
MIN_JUDGED: Final = 5  # pictures, for the logistic of four parameters


@dataclass(frozen=True)
class Learner:
    """What is fitted to features, in variants among which validation pictures choose.

    Attributes:
        fit: from features (N, D), labels (N,) and tasks (training rows, held-out rows) to predictions of the held-out
            rows by every candidate, a task each. Shape (A, rows).
        candidates: what the candidates are called (ridge: the alphas, rising). Length A.
    """

    fit: Callable[[ArrayLike, ArrayLike, Sequence[Task]], list[Array]]
    candidates: tuple[float, ...]


@dataclass(frozen=True)
class Fold:
    """Row numbers of one split; no content is in two parts.

    Attributes:
        train: fits the candidates.
        validation: chooses among them. Empty: they are chosen inside the training part, content by content.
        test: is scored by the chosen one.
    """

    train: Rows
    validation: Rows
    test: Rows


def make_folds(
    contents: Sequence[str], *, config: EvaluationConfig, seed: int, official: Sequence[str] = ()
) -> tuple[str, list[Fold]]:
    """The protocol's folds: leave-one-content-out when contents are few, else random splits by content.

    Contents are few below `config.few_contents`, and as long as a random split could leave fewer pictures than figures
    can be computed from: MIN_CHOSEN_ON to choose on, MIN_JUDGED to judge.

    Args:
        contents: of each row. Length N.
        config: number of splits, their fractions, and when contents are few.
        seed: of the random splits.
        official: `train`, `validation` or `test` for each row, where a set comes in a split of its own: the one fold.
    Returns:
        LEAVE_ONE_OUT, RANDOM or OFFICIAL, and the folds. Of the random splits each part has at least one content.
    Raises:
        EvaluationError: fewer than three contents.
    """
    if len(official):
        part = np.asarray(official, dtype=str)
        return OFFICIAL, [Fold(*(np.flatnonzero(part == name) for name in ("train", "validation", "test")))]
    from sklearn.model_selection import GroupShuffleSplit, LeaveOneGroupOut

    groups = np.asarray(contents, dtype=str)
    sizes = np.sort(np.unique(groups, return_counts=True)[1])
    total = len(sizes)
    if total < 3:
        raise EvaluationError(f"{total} contents cannot be trained on, validated and tested apart; give at least 3")
    n_test = min(max(1, round(config.fractions[2] * total)), total - 2)
    n_validation = min(max(1, round(config.fractions[1] * total)), total - n_test - 1)
    enough = sizes[:n_test].sum() >= MIN_JUDGED and sizes[:n_validation].sum() >= MIN_CHOSEN_ON
    if total < config.few_contents or not enough:
        pairs = LeaveOneGroupOut().split(groups, groups=groups)
        return LEAVE_ONE_OUT, [Fold(train, np.array([], dtype=np.intp), test) for train, test in pairs]
    outer = GroupShuffleSplit(config.splits, test_size=n_test, random_state=seed)
    inner = GroupShuffleSplit(1, test_size=n_validation, random_state=seed)
    folds = []
    for rest, test in outer.split(groups, groups=groups):
        ((train, validation),) = inner.split(rest, groups=groups[rest])
        folds.append(Fold(rest[train], rest[validation], test))
    return RANDOM, folds


def predict_out_of_fold(
    features: ArrayLike, labels: ArrayLike, contents: Sequence[str], folds: Sequence[Fold], learner: Learner
) -> tuple[list[Array], list[int]]:
    """Scores of each fold's test rows by the candidate that ranks its validation rows best.

    A fold without validation rows chooses inside its training contents: each is left out in turn, and the candidate
    with the best SRCC over all those inner out-of-fold scores wins. With a handful of contents that choice is noisy
    whatever the rule; equals go to the smoothest candidate.

    Args:
        features: shape (N, D).
        labels: shape (N,); those of test rows are never read.
        contents: of each row. Length N.
        folds: from `make_folds`.
        learner: fits every candidate on training rows and predicts held-out rows, for many tasks at once.
    Returns:
        scores of each fold's test rows, and the index of the chosen candidate.
    """
    y, names = np.asarray(labels, np.float64), np.asarray(contents, dtype=str)
    tasks: list[Task] = []
    number: dict[frozenset[str], int] = {}  # inner folds by the two contents they leave out: each serves two outer ones
    for fold in folds:
        tasks.append((fold.train, np.r_[fold.validation, fold.test]))
    for fold in folds:
        left_out = set(names[fold.test])
        for content in sorted(set(names[fold.train])) if not len(fold.validation) else []:
            key = frozenset(left_out | {content})
            if key not in number:
                number[key] = len(tasks)
                away = np.isin(names, sorted(key))
                tasks.append((np.flatnonzero(~away), np.flatnonzero(away)))
    predictions = learner.fit(features, labels, tasks)
    scores, indices = [], []
    for i, fold in enumerate(folds):
        if len(fold.validation):
            inner, judged = predictions[i][:, : len(fold.validation)], fold.validation
        else:
            parts, rows = [], []
            for content in sorted(set(names[fold.train])):
                task = number[frozenset(set(names[fold.test]) | {content})]
                held_out = tasks[task][1]
                mine = names[held_out] == content
                parts.append(predictions[task][:, mine])
                rows.append(held_out[mine])
            inner, judged = np.concatenate(parts, axis=1), np.concatenate(rows)
        best = choose_candidate(inner, y[judged])
        indices.append(best)
        scores.append(predictions[i][best, len(fold.validation) :])
    return scores, indices


def ridge_learner(alphas: Sequence[float]) -> Learner:
    """Ridge with each alpha as a candidate, weakest penalty first."""
    candidates = tuple(sorted(alphas))
    return Learner(lambda features, labels, tasks: predict_tasks(features, labels, tasks, candidates), candidates)


def full_reference_learner(alphas: Sequence[float], perfect: float) -> Learner:
    """As `ridge_learner`, for the anchored full-reference variant (`regressor.fit_full_reference`).

    Args:
        alphas: the candidates, weakest penalty first.
        perfect: the label of an undistorted picture, at least every label.
    Returns:
        a learner whose features are distances |f_ref - f_dist|.
    """

    def fit(features: ArrayLike, labels: ArrayLike, tasks: Sequence[Task]) -> list[Array]:
        x, losses = np.asarray(features, np.float64), perfect - np.asarray(labels, np.float64)
        predictions = []
        for train, held_out in tqdm(tasks, desc="ridge, full reference", unit="fit", delay=2, disable=None):
            models = fit_path(x[train], losses[train], sorted(alphas), intercept=False)
            predictions.append(np.stack([np.minimum(perfect, perfect - m.predict(x[held_out])) for m in models]))
        return predictions

    return Learner(fit, tuple(sorted(alphas)))
