"""Judge scores: the protocol by content, slices, intervals; and the gate's files.

Three figures, each with n, contents and an interval (spec section 5):

- protocol: the regressor fitted and judged on the same set's labels, out of fold, whole contents at a time;
- opinion-unaware: fitted on the weak labels of the pretraining photographs, judged on human scores it never saw;
- the fixed test part, on which challenger and champion are compared.

Labels of a test part choose nothing. The contents are the unit of everything: of splits, of the choice of alpha, and of
the bootstrap.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from contrique import gate, metrics, regressor
from contrique.config import EvaluationConfig, GateConfig, RegressorConfig
from contrique.dataset import judged_rows, label_kind, pretrain_rows
from contrique.features import load_set
from contrique.leaks import LeakError, check_leaks
from contrique.metrics import EvaluationError
from contrique.storage import write_aside

EVALUATION: Final = "evaluation.json"
TEST_SCORES: Final = "test_scores.parquet"
LEAVE_ONE_OUT: Final = "leave-one-content-out"
RANDOM: Final = "random splits by content"
OFFICIAL: Final = "official split"
CROSS_SET: Final = "cross-set"
OPINION_UNAWARE: Final = "opinion-unaware"
TEST_PART: Final = "test part"

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Learner = Callable[[ArrayLike, ArrayLike, Sequence[regressor.Task]], list[Array]]
Champion = Callable[[pd.DataFrame], ArrayLike]


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
class Evaluation:
    """What `evaluation.json` holds.

    Attributes:
        labels: `human` or `weak`.
        seed, resamples, confidence: of the bootstrap.
        protocol: out of fold over all judged rows.
        opinion_unaware: None without human labels, or with weak labels on fewer than two pretraining photographs.
        challenger, champion: on the test part; champion None if there is none or `champion_fault` says why not.
        champion_version: registry version that was rescored; empty if none.
        champion_fault: why the champion's scores cannot be judged; the gate then holds.
    """

    labels: str
    seed: int
    resamples: int
    confidence: float
    protocol: Judgement
    opinion_unaware: Judgement | None
    challenger: Judgement
    champion: Judgement | None
    champion_version: str
    champion_fault: str

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return asdict(self)

    def figures(self) -> dict[str, float]:
        """The protocol's figures with their intervals, flat, as a page of metrics shows them."""
        told: dict[str, float] = {}
        for name, estimate in self.protocol.metrics.items():
            told |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        return told


# ---------------------------------------------------------------------------------------------------- splits


def make_folds(
    contents: Sequence[str], *, config: EvaluationConfig, seed: int, official: Sequence[str] = ()
) -> tuple[str, list[Fold]]:
    """The protocol's folds: leave-one-content-out when contents are few, else random splits by content.

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
    names, ids = np.unique(np.asarray(contents, dtype=str), return_inverse=True)
    total = len(names)
    if total < 3:
        raise EvaluationError(f"{total} contents cannot be trained on, validated and tested apart; give at least 3")
    empty = np.array([], dtype=np.intp)
    if total < config.few_contents:
        return LEAVE_ONE_OUT, [Fold(np.flatnonzero(ids != i), empty, np.flatnonzero(ids == i)) for i in range(total)]
    n_test = min(max(1, round(config.fractions[2] * total)), total - 2)
    n_validation = min(max(1, round(config.fractions[1] * total)), total - n_test - 1)
    generator = np.random.default_rng(seed)
    folds = []
    for _ in range(config.splits):
        order = generator.permutation(total)
        parts = np.split(order, [n_test, n_test + n_validation])
        test, validation, train = (np.flatnonzero(np.isin(ids, part)) for part in parts)
        folds.append(Fold(train, validation, test))
    return RANDOM, folds


def out_of_fold(
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
        scores of each fold's test rows, and which candidate was chosen.
    """
    y, names = np.asarray(labels, np.float64), np.asarray(contents, dtype=str)
    tasks: list[regressor.Task] = []
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
    predictions = learner(features, labels, tasks)
    scores, chosen = [], []
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
        best = regressor.choose(inner, y[judged])
        chosen.append(best)
        scores.append(predictions[i][best, len(fold.validation) :])
    return scores, chosen


def ridge_learner(alphas: Sequence[float]) -> Learner:
    """Ridge with each alpha as a candidate, weakest penalty first."""
    return lambda features, labels, tasks: regressor.predict_tasks(features, labels, tasks, sorted(alphas))


def full_reference_learner(alphas: Sequence[float], perfect: float) -> Learner:
    """As `ridge_learner`, for the anchored full-reference variant (`regressor.fit_full_reference`).

    Args:
        alphas: the candidates, weakest penalty first.
        perfect: the label of an undistorted picture, at least every label.
    Returns:
        a learner whose features are distances |f_ref - f_dist|.
    """

    def learn(features: ArrayLike, labels: ArrayLike, tasks: Sequence[regressor.Task]) -> list[Array]:
        x, losses = np.asarray(features, np.float64), perfect - np.asarray(labels, np.float64)
        predictions = []
        for train, held_out in tqdm(tasks, desc="ridge, full reference", unit="fit", delay=2, disable=None):
            models = regressor.path(x[train], losses[train], sorted(alphas), intercept=False)
            found = [np.minimum(perfect, perfect - model.predict(x[held_out])) for model in models]
            predictions.append(np.stack(found))
        return predictions

    return learn


# -------------------------------------------------------------------------------------------------- judgement


def judge(
    splits: Sequence[tuple[Rows, ArrayLike]],
    labels: ArrayLike,
    contents: Sequence[str],
    distortions: Sequence[str],
    *,
    config: EvaluationConfig,
    seed: int,
    protocol: str,
    kind: str,
    made: int = 1,
    alphas: Sequence[float] = (),
    names: Sequence[str] = ("srcc", "plcc", "plcc_logistic", "krcc", "rmse", "rmse_logistic"),
) -> Judgement:
    """All figures of some scores: the median over splits of each, with an interval by bootstrap over contents.

    One resample draws contents from all that were judged and recomputes every split with them, so that the interval
    knows that the splits share their pictures.

    Args:
        splits: row numbers and their scores, a pair a split.
        labels, contents, distortions: of all rows. Length N; distortion "" for none.
        config: resamples and confidence.
        seed: of the bootstrap.
        protocol, kind, made, alphas: go into the result: what was done, with human or weak labels, in how many splits.
        names: which metrics.
    Raises:
        EvaluationError: a metric is undefined on a split (constant scores, too few pictures, NaN).
    """
    y, groups, kinds = np.asarray(labels, np.float64), np.asarray(contents, str), np.asarray(distortions, str)
    pairs = [(rows, np.asarray(scores, np.float64)) for rows, scores in splits]
    for rows, scores in pairs:
        metrics.check(scores, y[rows])
    universe = np.unique(np.concatenate([rows for rows, _ in pairs]))
    counts, unit = metrics.resample(groups[universe], config.resamples, np.random.default_rng([seed, 0]))
    shape = (len(universe), len(set(groups[universe])), made)

    def estimate(values: Sequence[float], resampled: Sequence[Array]) -> Estimate:
        low, high = metrics.interval(metrics.median(np.stack(resampled)), config.confidence)
        return Estimate(float(np.median(values)), low, high, *shape, unit)

    mapped = [(rows, metrics.logistic(s, metrics.fit_logistic(s, y[rows]))) for rows, s in pairs]
    estimates = {}
    for name in tqdm(names, desc=f"bootstrap, {protocol}", delay=2, disable=None):
        metric = name.removesuffix("_logistic")
        chosen = mapped if name.endswith("_logistic") else pairs
        estimates[name] = estimate(
            [metrics.POINT[metric](scores, y[rows]) for rows, scores in chosen],
            [
                metrics.RESAMPLED[metric](scores, y[rows], counts[:, np.searchsorted(universe, rows)])
                for rows, scores in chosen
            ],
        )
    inside = [_within(s, y[rows], groups[rows], np.ones((1, len(rows))))[0] for rows, s in pairs]
    within = None
    if np.isfinite(inside).all():
        resampled = [_within(s, y[r], groups[r], counts[:, np.searchsorted(universe, r)]) for r, s in pairs]
        within = estimate([float(value) for value in inside], resampled)
    slices = {
        str(name): _slice(pairs, y, groups, kinds == name, config, [seed, 1 + i])
        for i, name in enumerate(sorted(set(kinds[universe]) - {""}))
    }
    return Judgement(protocol, kind, *shape, estimates, within, slices, [float(alpha) for alpha in alphas])


def _within(scores: Array, labels: Array, contents: NDArray[np.str_], counts: Array) -> Array:
    """Mean of the SRCC inside each content, weighted by pictures, for each resample. NaN if none is defined."""
    total, weight = np.zeros(len(counts)), np.zeros(len(counts))
    _, ids, sizes = np.unique(contents, return_inverse=True, return_counts=True)
    for content in np.flatnonzero(sizes >= 3):
        rows = np.flatnonzero(ids == content)
        inside = metrics.srcc_resampled(scores[rows], labels[rows], counts[:, rows])
        pictures = np.where(np.isfinite(inside), counts[:, rows].sum(axis=1), 0.0)
        total += np.where(pictures > 0, inside, 0.0) * pictures
        weight += pictures
    with np.errstate(invalid="ignore"):
        return np.asarray(total / weight)


def _slice(
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
            values.append(metrics.srcc(scores, labels[rows]))
            usable.append((rows, scores))
        except EvaluationError as error:  # told in the slice; the other splits may still define it
            reason = str(error)
    if not usable:
        return Slice(n, n_contents, None, reason)
    counts, unit = metrics.resample(contents[universe], config.resamples, np.random.default_rng(seed))
    resampled = [metrics.srcc_resampled(s, labels[r], counts[:, np.searchsorted(universe, r)]) for r, s in usable]
    try:
        low, high = metrics.interval(metrics.median(np.stack(resampled)), config.confidence)
    except EvaluationError as error:
        return Slice(n, n_contents, None, str(error))
    return Slice(n, n_contents, Estimate(float(np.median(values)), low, high, n, n_contents, len(usable), unit))


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
    scores, chosen = out_of_fold(features, labels, contents, folds, learner)
    splits = [(fold.test, values) for fold, values in zip(folds, scores, strict=True)]
    if protocol == LEAVE_ONE_OUT:
        splits = [(np.concatenate([rows for rows, _ in splits]), np.concatenate(scores))]
    return judge(
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
    _, (best,) = out_of_fold(both, known, [*groups, *contents], [fold], learner)
    scores = learner(both, known, [(everything, judged)])[0][best]
    return judge(
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


# ------------------------------------------------------------------------------------------------------ files


def evaluate_set(
    features: Path,
    fitted: Path,
    out: Path,
    *,
    config: EvaluationConfig,
    seed: int,
    alphas: RegressorConfig | None = None,
    champion: Champion | None = None,
    champion_version: str = "",
) -> Evaluation:
    """Judge a feature set: protocol, opinion-unaware figure, and challenger beside champion on the test part.

    Args:
        features: folder with `manifest.parquet` and `features.npz`.
        fitted: folder of the challenger's regressor (`regressor.fit_set`).
        out: folder to write: `evaluation.json` and `test_scores.parquet` (image, reference, distortion, label,
            challenger, champion; champion NaN if there is none).
        config: protocol and bootstrap.
        seed: of splits and bootstrap.
        alphas: of the protocol's ridge; the defaults of `RegressorConfig` unless given.
        champion: scores the manifest rows of the test part; higher is better, any scale. Prefer unclipped scores.
        champion_version: the registry version that `champion` is.
    Returns:
        what was written.
    Raises:
        LeakError: parts or contents share pictures.
        EvaluationError: too few contents or pictures, constant or non-finite challenger scores.
    """
    manifest, values = load_set(features)
    ridge, _ = regressor.load(fitted)
    kind, column = label_kind(manifest)
    judged = judged_rows(manifest).index.to_numpy()
    if not len(judged):
        raise EvaluationError(f"{features}: no row outside pretraining has a label; give a labelled set")
    rows = manifest.loc[judged]
    check_leaks(manifest, bits=config.near_duplicate_bits)
    check_leaks(rows, bits=config.near_duplicate_bits, parts=rows["reference"])
    grid = sorted((alphas or RegressorConfig()).alphas)
    target = (rows[column].to_numpy(), list(rows["reference"]), list(rows["distortion"]))
    learner = ridge_learner(grid)
    weak = pretrain_rows(manifest)
    extra = weak if kind == "weak" else weak[:0]  # where people judge, weak labels are no labels to fit beside theirs
    pool = pd.concat([rows, extra])
    protocol = cross_validate(
        values[pool.index],
        pool[column].to_numpy(),
        list(pool["reference"]),
        list(pool["distortion"]),
        learner,
        grid,
        config=config,
        seed=seed,
        kind=kind,
        extra=len(extra),
    )
    unaware = None
    if kind == "human" and weak["reference"].nunique() >= 2:
        source = (values[weak.index], weak["weak_label"].to_numpy(), list(weak["reference"]))
        unaware = transfer(
            *source, values[judged], *target, learner, grid, config=config, seed=seed, protocol=OPINION_UNAWARE
        )

    test = rows[rows["split"] == "test"]
    if test.empty:
        raise EvaluationError(f"{features}: no labelled rows in the test part; assign splits again")
    table = pd.DataFrame(
        {
            "image": test["image"],
            "reference": test["reference"],
            "distortion": test["distortion"],
            "label": test[column],
            "challenger": ridge.predict(values[test.index]),
        }
    ).reset_index(drop=True)
    table["champion"] = np.nan
    if champion is not None:
        given = np.asarray(champion(test.reset_index(drop=True)), np.float64)
        if given.shape != (len(test),):
            raise EvaluationError(f"the champion gave {given.shape} scores for {len(test)} pictures")
        table["champion"] = given

    def on_test(scores: pd.Series) -> Judgement:
        return judge(
            [(np.arange(len(table)), scores.to_numpy())],
            table["label"],
            list(table["reference"]),
            list(table["distortion"]),
            config=config,
            seed=seed,
            protocol=TEST_PART,
            kind=kind,
        )

    rival, fault = None, ""
    if champion is not None:
        try:
            rival = on_test(table["champion"])
        except EvaluationError as error:  # a broken champion must not end the run: the gate holds, and says this
            fault = str(error)
    evaluation = Evaluation(
        labels=kind,
        seed=seed,
        resamples=config.resamples,
        confidence=config.confidence,
        protocol=protocol,
        opinion_unaware=unaware,
        challenger=on_test(table["challenger"]),
        champion=rival,
        champion_version=champion_version,
        champion_fault=fault,
    )
    with write_aside(out) as aside:
        aside.mkdir()
        table.to_parquet(aside / TEST_SCORES, index=False)
        text = json.dumps(evaluation.as_dict() | {"has_champion": champion is not None}, indent=2, allow_nan=False)
        (aside / EVALUATION).write_text(text + "\n")
    return evaluation


def decide_set(evaluation: Path, out: Path, *, config: GateConfig) -> gate.Verdict:
    """Let the gate decide from what `evaluate_set` wrote; write the verdict as JSON.

    Args:
        evaluation: folder with `evaluation.json` and `test_scores.parquet`.
        out: JSON file to write.
        config: floor and margins.
    Raises:
        EvaluationError: the folder is missing, damaged or not from `evaluate_set`.
    """
    try:
        told = json.loads((evaluation / EVALUATION).read_text())
        table = pd.read_parquet(evaluation / TEST_SCORES)
        challenger, rival, labels = (table[column].to_numpy() for column in ("challenger", "champion", "label"))
        contents, distortions = list(table["reference"]), list(table["distortion"])
        has_champion, version = told["has_champion"], told["champion_version"]
        bootstrap = {name: told[name] for name in ("resamples", "confidence", "seed")}
    except (OSError, KeyError, ValueError) as error:
        raise EvaluationError(f"{evaluation}: not a readable evaluation ({error}); evaluate again") from error
    verdict = gate.decide(
        challenger, rival if has_champion else None, labels, contents, distortions, config=config, **bootstrap
    )
    with write_aside(out) as aside:
        text = json.dumps(verdict.as_dict() | {"champion_version": version}, indent=2, allow_nan=False)
        aside.write_text(text + "\n")
    return verdict
