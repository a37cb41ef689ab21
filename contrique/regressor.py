"""Ridge regression from frozen features to scores: every alpha from one factorisation (spec section 5).

Features and labels are centred, so the intercept is not penalised, as in scikit-learn. Features are not divided by
their standard deviations: both halves of f = [h(full), h(half)] have norm one already, and scaling up the channels that
hardly vary would scale up their noise.

Three ways to the same coefficients, by the sizes at hand:

- more features than training pictures: the eigenvectors of their kernel matrix, a block of one kernel shared by all
  splits;
- one training set: the eigenvectors of its Gram matrix;
- many training sets, all large parts of one set (random splits): conjugate gradients for all splits and alphas at once,
  preconditioned by the eigenvectors of the shared Gram matrix. The whole set's Gram differs little from that of any
  70 % of it, so that on average some twenty steps reach `TOLERANCE`, which keeps predictions within about 1e-5 of their
  standard deviation; the rare system that does not get there is solved exactly.
"""

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import linalg
from tqdm import tqdm

from contrique.config import RegressorConfig
from contrique.dataset import judged_rows, label_kind, pretrain_rows
from contrique.errors import ContriqueError
from contrique.explain import Diagnosis, fit_diagnosis
from contrique.features import load_set
from contrique.metrics import EvaluationError, interval, resample, srcc, srcc_resampled
from contrique.reliability import Novelty, conformal_radius, fit_novelty
from contrique.storage import write_aside

COEFFICIENTS: Final = "ridge.npz"
DESCRIPTION: Final = "regressor.json"
FORMAT: Final = 1
ADAPT_MIN: Final = 20  # pictures
ADAPT_FOLDS: Final = 10
RESIDUAL_FOLDS: Final = 10
ENOUGH_CONTENTS: Final = 30  # of the validation part, to set the interval alone
TOLERANCE: Final = 3e-8  # of the conjugate gradients' residual, relative, in the preconditioner's norm
REDUCTION: Final = 1e-4  # of it by one run of float32 steps
MAX_STEPS: Final = 200
MAX_REFINEMENTS: Final = 6

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Task = tuple[Rows, Rows]
Operator = Callable[[Any, Rows], Any]


class RegressorError(ContriqueError):
    """Features, labels or a regressor file from which no regressor can be had."""


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regressor.

    Attributes:
        coef: weights of the features. Shape (D,), float64.
        intercept: score where the weighted features sum to zero.
        alpha: strength of the penalty alpha |w|^2 beside the summed squared error.
    """

    coef: Array
    intercept: float
    alpha: float

    def predict(self, features: ArrayLike) -> Array:
        """Scores in the unit of the training labels.

        Args:
            features: shape (N, D).
        Returns:
            shape (N,), float64.
        Raises:
            RegressorError: another number of features, NaN or infinite values.
        """
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.coef):
            raise RegressorError(
                f"features have shape {x.shape}, the regressor expects (N, {len(self.coef)}); "
                "use the encoder it was fitted with"
            )
        if not np.isfinite(x).all():
            raise RegressorError("features hold NaN or infinite values; extract them again in float32")
        return np.asarray(x @ self.coef + self.intercept)


def _checked(features: ArrayLike, labels: ArrayLike, alphas: Sequence[float]) -> tuple[Array, Array, Array]:
    x, y, a = np.asarray(features, np.float64), np.asarray(labels, np.float64), np.asarray(alphas, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or x.shape[1] == 0:
        raise RegressorError(f"features {x.shape} and labels {y.shape} do not fit; expected (N, D) and (N,)")
    if not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        raise RegressorError(f"features of {len(bad)} pictures hold NaN or infinite values, first row {bad[0]}")
    if a.ndim != 1 or len(a) == 0 or not (np.isfinite(a) & (a > 0)).all():
        raise RegressorError(f"alphas must be positive numbers, got {list(alphas)}")
    return x, y, a


def _trainable(x: Array, y: Array, rows: Rows) -> None:
    if len(rows) < 2:
        raise RegressorError(f"{len(rows)} training pictures; give at least 2")
    bad = rows[~np.isfinite(y[rows])]
    if len(bad):
        raise RegressorError(f"{len(bad)} labels are NaN or infinite, first row {bad[0]}; drop those rows")
    if np.ptp(y[rows]) == 0:
        raise RegressorError(f"all {len(rows)} training labels are {y[rows[0]]:g}; there is nothing to learn from them")
    if all(np.array_equal(x[row], x[rows[0]]) for row in rows[1:]):  # ends at the first that differs
        raise RegressorError(f"all {len(rows)} training pictures have the same features; check the encoder")


def path(features: ArrayLike, labels: ArrayLike, alphas: Sequence[float], *, intercept: bool = True) -> list[Ridge]:
    """Ridge for every alpha, exactly: one eigendecomposition of the smaller of Gram and kernel matrix.

    Equals `sklearn.linear_model.Ridge(alpha, fit_intercept=intercept)`.

    Args:
        features: shape (N, D), N at least 2.
        labels: shape (N,).
        alphas: positive.
        intercept: whether to centre features and labels.
    Returns:
        one regressor an alpha, in the order given.
    Raises:
        RegressorError: shapes, values or alphas that cannot be fitted; constant labels or features.
    """
    x, y, a = _checked(features, labels, alphas)
    _trainable(x, y, np.arange(len(y)))
    x_mean = x.mean(axis=0) if intercept else np.zeros(x.shape[1])
    y_mean = float(y.mean()) if intercept else 0.0
    coefs = _coefficients(x - x_mean, y - y_mean, a)
    return [Ridge(w, y_mean - float(x_mean @ w), float(k)) for w, k in zip(coefs, a, strict=True)]


def fit(features: ArrayLike, labels: ArrayLike, alpha: float, *, intercept: bool = True) -> Ridge:
    """Ridge for one alpha; as `path`."""
    return path(features, labels, [alpha], intercept=intercept)[0]


def _coefficients(x: Array, y: Array, alphas: Array) -> Array:
    """Exact weights for centred features and labels. Shape (A, D)."""
    primal = x.shape[0] > x.shape[1]
    values, vectors = linalg.eigh(x.T @ x if primal else x @ x.T, driver="evd", check_finite=False)
    target = vectors.T @ (x.T @ y if primal else y)
    solved = (target[:, None] / (np.maximum(values, 0)[:, None] + alphas)).T @ vectors.T
    return np.asarray(solved if primal else solved @ x)


def predict_tasks(
    features: ArrayLike, labels: ArrayLike, tasks: Sequence[Task], alphas: Sequence[float]
) -> list[Array]:
    """Ridge fitted on each task's training rows for every alpha, predicting its held-out rows.

    Args:
        features: shape (N, D).
        labels: shape (N,); those of held-out rows are never read.
        tasks: pairs of row numbers, (training, held out).
        alphas: positive.
    Returns:
        one array a task, shape (A, held-out rows), in the unit of the labels.
    Raises:
        RegressorError: as `path`.
    """
    x, y, a = _checked(features, labels, alphas)
    for train, _ in tasks:
        _trainable(x, y, train)
    x = x - x.mean(axis=0)  # every task centres again; this keeps its differences of large sums small
    if max((len(train) for train, _ in tasks), default=0) <= x.shape[1]:
        kernel = x @ x.T
        bar = tqdm(tasks, desc="ridge", unit="fit", delay=2, disable=None)
        return [_predict_by_kernel(kernel, y, task, a) for task in bar]
    return _predict_by_gram(x, y, tasks, a)


def _predict_by_kernel(kernel: Array, labels: Array, task: Task, alphas: Array) -> Array:
    train, held_out = task
    block, cross = kernel[np.ix_(train, train)], kernel[np.ix_(held_out, train)]
    mean = block.mean(axis=0)
    cross = cross - mean - cross.mean(axis=1, keepdims=True) + mean.mean()
    values, vectors = linalg.eigh(block - mean - mean[:, None] + mean.mean(), driver="evd", check_finite=False)
    target = vectors.T @ (labels[train] - labels[train].mean())
    solved = target[:, None] / (np.maximum(values, 0)[:, None] + alphas)
    return np.asarray((cross @ (vectors @ solved)).T + labels[train].mean())


def _predict_by_gram(x: Array, y: Array, tasks: Sequence[Task], alphas: Array) -> list[Array]:
    """Conjugate gradients, one column a (task, alpha), all sharing each pass over the features.

    Steps in float32, residuals in float64 (iterative refinement): half the time of float64 alone, and as exact.
    """
    member = np.zeros((len(x), len(tasks)), dtype=np.float32)
    for t, (train, _) in enumerate(tasks):
        member[train, t] = 1
    counts = member.sum(axis=0, dtype=np.float64)
    known = np.where(member.any(axis=1), y, 0)  # labels of rows that no task trains on may be NaN
    x_means, y_means = (x.T @ member) / counts, (known @ member) / counts  # (D, T), (T,)
    right = x.T @ (member * (known[:, None] - y_means))  # (D, T); the centring of x drops out of it
    task_of, alpha_of = np.repeat(np.arange(len(tasks)), len(alphas)), np.tile(alphas, len(tasks))

    def apply(rows: Any, means: Any, columns: Any, live: Rows) -> Any:
        """(centred Gram of each column's training rows + alpha) times the column, in the type of the arguments."""
        t = task_of[live]
        projected = rows @ columns
        projected *= member[:, t]
        image = rows.T @ projected
        image -= means[:, t] * projected.sum(axis=0)
        image += alpha_of[live].astype(columns.dtype) * columns
        return image

    narrow, narrow_means = x.astype(np.float32), x_means.astype(np.float32)
    values, vectors = linalg.eigh(narrow.T @ narrow, driver="evd", overwrite_a=True, check_finite=False)
    values = np.maximum(values, values[-1] * np.finfo(np.float32).eps)[:, None]
    share = (counts / len(x)).astype(np.float32)

    def precondition(columns: Any, live: Rows) -> Any:
        return vectors @ ((vectors.T @ columns) / (values * share[task_of[live]] + alpha_of[live].astype(np.float32)))

    weights = np.zeros((x.shape[1], len(task_of)))
    live = np.arange(len(task_of))  # columns not yet solved
    residual = right[:, task_of]
    enough = TOLERANCE**2 * np.einsum("dk,dk->k", residual, precondition(residual.astype(np.float32), live))
    with tqdm(total=len(live), desc="ridge", unit="fit", delay=2, disable=None) as bar:
        for _ in range(MAX_REFINEMENTS):
            size = np.maximum(np.abs(residual).max(axis=0), np.finfo(float).tiny)  # float32 has little range
            scaled = (residual / size).astype(np.float32)
            step = _conjugate_gradients(
                scaled, live, partial(apply, narrow, narrow_means), precondition, enough / size**2
            )
            weights[:, live] += step * size
            residual = right[:, task_of[live]] - apply(x, x_means, weights[:, live], live)
            energy = np.einsum("dk,dk->k", residual, precondition(residual.astype(np.float32), live))
            go = energy > enough
            bar.update(int(np.count_nonzero(~go)))
            live, residual, enough = live[go], residual[:, go], enough[go]
            if not len(live):
                break
    for t in np.unique(task_of[live]):  # did not converge
        columns = live[task_of[live] == t]
        train = tasks[t][0]
        weights[:, columns] = _coefficients(x[train] - x_means[:, t], y[train] - y_means[t], alpha_of[columns]).T
    return [
        ((x[held_out] - x_means[:, t]) @ weights[:, task_of == t]).T + y_means[t]
        for t, (_, held_out) in enumerate(tasks)
    ]


def _conjugate_gradients(right: Any, names: Rows, apply: Operator, precondition: Operator, enough: Array) -> Any:
    """Approximate solutions of many systems at once, each until its residual's energy is `enough` or REDUCTION of it.

    Args:
        right: right-hand sides. Shape (D, K), float32.
        names: what `apply` and `precondition` call each system. Shape (K,).
        apply, precondition: from columns and their names to as many columns.
        enough: energy (residual times preconditioned residual) at which a system is solved. Shape (K,).
    Returns:
        shape (D, K), float32.
    """
    solution, residual, direction = np.zeros_like(right), right, np.zeros_like(right)
    live, energy = np.arange(right.shape[1]), np.ones(right.shape[1], dtype=np.float32)
    for step in range(MAX_STEPS):
        downhill = precondition(residual, names[live])
        previous, energy = energy, np.einsum("dk,dk->k", residual, downhill)
        if step == 0:
            enough = np.maximum(enough, REDUCTION**2 * energy)
        go = energy > enough
        direction = (downhill + direction * (energy / previous))[:, go]
        live, residual, energy, enough = live[go], residual[:, go], energy[go], enough[go]
        if not len(live):
            break
        image = apply(direction, names[live])
        length = energy / np.einsum("dk,dk->k", direction, image)
        solution[:, live] += length * direction
        residual = residual - length * image
    return solution


def choose(candidates: Array, labels: Array) -> int:
    """Which candidate ranks the validation pictures best; of equals the last, which for alphas is the smoothest.

    Args:
        candidates: predictions of each candidate. Shape (A, N).
        labels: of the validation part. Shape (N,).
    Returns:
        a row number of `candidates`.
    Raises:
        EvaluationError: no candidate has a defined SRCC.
    """
    best, chosen, why = -np.inf, -1, None
    for i, scores in enumerate(candidates):
        try:
            value = srcc(scores, labels)
        except EvaluationError as error:  # a candidate that predicts a constant is no candidate
            why = error
            continue
        if value >= best:
            best, chosen = value, i
    if chosen < 0:
        raise EvaluationError(f"no candidate can be chosen on the validation part: {why}")
    return chosen


@dataclass(frozen=True)
class FullReference:
    """Ridge on how far a picture's features are from its reference's, anchored at perfect quality.

    Attributes:
        coef: loss of quality for each unit of distance. Shape (D,), float64.
        perfect: the score of a picture identical to its reference, exactly; no score is above it.
        alpha: strength of the penalty.
    """

    coef: Array
    perfect: float
    alpha: float

    def predict(self, features: ArrayLike, references: ArrayLike) -> Array:
        """Scores in the unit of the training labels, at most `perfect`.

        Args:
            features: of the distorted pictures. Shape (N, D).
            references: of their references, row by row. Shape (N, D).
        Returns:
            shape (N,), float64.
        Raises:
            RegressorError: shapes differ or do not fit, NaN or infinite values.
        """
        return np.minimum(
            self.perfect, Ridge(-self.coef, self.perfect, self.alpha).predict(_distance(features, references))
        )


def _distance(features: ArrayLike, references: ArrayLike) -> Array:
    x, r = np.asarray(features, np.float64), np.asarray(references, np.float64)
    if x.shape != r.shape:
        raise RegressorError(f"features {x.shape} and references {r.shape} differ; give one reference a picture")
    return np.abs(x - r)


def fit_full_reference(
    features: ArrayLike, references: ArrayLike, labels: ArrayLike, alpha: float, *, perfect: float
) -> FullReference:
    """Full-reference variant: |f_ref - f_dist| -> ridge (spec section 5), anchored.

    The original fits an intercept, by which two identical pictures differ. Here the loss of quality, `perfect` minus
    the label, is fitted without one, so that no distance means no loss.

    Args:
        features: of the distorted pictures. Shape (N, D).
        references: of their references, row by row. Shape (N, D).
        labels: higher is better. Shape (N,).
        alpha: strength of the penalty, positive.
        perfect: the label of an undistorted picture, at least every label.
    Raises:
        RegressorError: as `path`, or a label above `perfect`.
    """
    y = np.asarray(labels, np.float64)
    if y.size and not y.max() <= perfect:
        raise RegressorError(f"the highest label, {y.max():g}, is above the score of a perfect picture, {perfect:g}")
    ridge = fit(_distance(features, references), perfect - y, alpha, intercept=False)
    return FullReference(ridge.coef, perfect, alpha)


@dataclass(frozen=True)
class RegressorSummary:
    """What a regressor was fitted on; `regressor.json` holds it.

    Attributes:
        labels: `human` (MOS) or `weak` (full-reference metrics).
        label_low, label_high: declared range of the labels, higher is better: [0, 1] for weak labels, lowest and
            highest training label for human ones.
        alpha: chosen by SRCC on the validation part.
        n: training pictures.
        contents: training contents.
        validation_n: validation pictures.
        validation_srcc: SRCC that chose alpha, hence optimistic.
        features_dim: D.
        interval: half-width of the conformal interval of `reliability.COVERAGE`, in the unit of the labels; None if
            there were too few residuals, or in a file from before it was kept.
        interval_n: residuals that set it.
        diagnosis_accuracy: share of held-out synthesized pictures whose distortion is named right; None without them.
        format: version of the two files.
    """

    labels: str
    label_low: float
    label_high: float
    alpha: float
    n: int
    contents: int
    validation_n: int
    validation_srcc: float
    features_dim: int
    interval: float | None = None
    interval_n: int = 0
    diagnosis_accuracy: float | None = None
    format: int = FORMAT


@dataclass(frozen=True)
class Companions:
    """What is fitted beside a ridge on the same features; None for what could not be, or was not yet kept.

    Attributes:
        novelty: tells pictures unlike the training ones.
        diagnosis: names the likeliest distortion.
    """

    novelty: Novelty | None = None
    diagnosis: Diagnosis | None = None


def fit_set(features: Path, out: Path, *, config: RegressorConfig) -> RegressorSummary:
    """Fit on a feature set's training part, with the alpha that ranks its validation part best.

    Without human labels the weak-labelled pretraining pictures join the training part: their labels are as good.
    The test part is not touched, and the model is not fitted again with the validation part added. The conformal
    interval comes from the residuals of the validation part; where that has few contents, the training pictures'
    residuals out of fold, by content, join them (cross-conformal, Vovk 2015).

    Args:
        features: folder with `manifest.parquet` and `features.npz` (`contrique.features.extract_set`).
        out: folder to write: `ridge.npz` (with what `Companions` holds) and `regressor.json`.
        config: the alphas.
    Returns:
        what was fitted.
    Raises:
        RegressorError: no judged rows in the training or validation part, or they cannot be fitted.
        EvaluationError: the validation part cannot tell the alphas apart (too few or constant labels).
    """
    manifest, values = load_set(features)
    kind, column = label_kind(manifest)
    rows = judged_rows(manifest)
    part = {name: rows.index[rows["split"] == name].to_numpy() for name in ("train", "validation")}
    if kind == "weak":
        part["train"] = np.r_[part["train"], pretrain_rows(manifest).index]
    for name, index in part.items():
        if not len(index):
            raise RegressorError(f"{features}: no rows with {kind} labels in the {name} part; assign splits again")
    labels = manifest[column].to_numpy()
    train, validation = part["train"], part["validation"]
    models = path(values[train], labels[train], sorted(config.alphas))
    candidates = np.stack([model.predict(values[validation]) for model in models])
    chosen = choose(candidates, labels[validation])
    low, high = (0.0, 1.0) if kind == "weak" else (float(labels[train].min()), float(labels[train].max()))
    contents = manifest["reference"].to_numpy(dtype=str)
    residuals = labels[validation] - candidates[chosen]
    if len(np.unique(contents[validation])) < ENOUGH_CONTENTS:
        inner = _residuals_out_of_fold(values[train], labels[train], contents[train], models[chosen].alpha)
        residuals = np.concatenate([residuals, inner])
    diagnosis, accuracy = _diagnosis(manifest, values)
    summary = RegressorSummary(
        labels=kind,
        label_low=low,
        label_high=high,
        alpha=models[chosen].alpha,
        n=len(train),
        contents=len(np.unique(contents[train])),
        validation_n=len(validation),
        validation_srcc=srcc(candidates[chosen], labels[validation]),
        features_dim=values.shape[1],
        interval=conformal_radius(residuals),
        interval_n=len(residuals),
        diagnosis_accuracy=accuracy,
    )
    novelty = fit_novelty(values[train], contents[train], values[validation], contents[validation])
    save(models[chosen], summary, out, Companions(novelty, diagnosis))
    return summary


def _residuals_out_of_fold(features: ArrayLike, labels: Array, contents: NDArray[np.str_], alpha: float) -> Array:
    """Label minus prediction by a ridge that saw no picture of the content; empty if there is but one content."""
    names, ids = np.unique(contents, return_inverse=True)
    count = min(RESIDUAL_FOLDS, len(names))
    if count < 2:
        return np.empty(0)
    fold = (np.random.default_rng(0).permutation(len(names)) % count)[ids]
    tasks = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(count)]
    tasks = [task for task in tasks if np.ptp(labels[task[0]]) > 0]  # constant labels cannot be fitted
    predictions = predict_tasks(features, labels, tasks, [alpha])
    return np.concatenate(
        [np.empty(0), *(labels[held] - scores[0] for (_, held), scores in zip(tasks, predictions, strict=True))]
    )


def _diagnosis(manifest: pd.DataFrame, values: Any) -> tuple[Diagnosis | None, float | None]:
    """The linear head of distortions, fitted to the synthesized pictures outside the test part, and its accuracy."""
    made = manifest[manifest["weak_label"].notna() & (manifest["split"] != "test")]
    return fit_diagnosis(values[made.index], list(made["distortion"]), list(made["level"]), list(made["reference"]))


@dataclass(frozen=True)
class Adaptation:
    """A head fitted to somebody's own scores, and how well such heads rank pictures they were not fitted on.

    Attributes:
        ridge: fitted on every picture.
        summary: of `ridge`; its `validation_srcc` chose alpha, its `interval` is set out of fold.
        novelty: how unlike these pictures another one is.
        srcc: out of fold: each picture scored by a head that saw none of its content, with an alpha chosen without it.
        low, high: interval of `srcc` by bootstrap over contents.
    """

    ridge: Ridge
    summary: RegressorSummary
    novelty: Novelty | None
    srcc: float
    low: float
    high: float


def adapt(
    features: ArrayLike,
    labels: ArrayLike,
    contents: Sequence[str],
    *,
    config: RegressorConfig,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Adaptation:
    """A new head for 50 to 500 scores of one's own, on an encoder that stays as it is.

    Contents are dealt into `ADAPT_FOLDS` folds. Alpha is the one that ranks all pictures best with each fold predicted
    from the others; to judge the head, the same is done again inside the other folds of each, so that neither the fit
    nor the choice knows the pictures it is judged on. Then the head is fitted on every picture.

    Args:
        features: shape (N, D).
        labels: higher is better, any range. Shape (N,).
        contents: of each picture. Length N.
        config: the alphas.
        resamples, confidence: of the interval.
        seed: deals the contents and draws the bootstrap.
    Raises:
        RegressorError: fewer than `ADAPT_MIN` pictures or `ADAPT_FOLDS` contents, or they cannot be fitted.
        EvaluationError: no alpha ranks the pictures at all.
    """
    from contrique.evaluation import Fold, out_of_fold, ridge_learner  # it imports this module

    y, names = np.asarray(labels, np.float64), np.asarray(contents, dtype=str)
    found, ids = np.unique(names, return_inverse=True)
    if len(y) < ADAPT_MIN or len(found) < ADAPT_FOLDS:
        raise RegressorError(
            f"{len(y)} scored pictures of {len(found)} contents are too few to adapt to; give at least {ADAPT_MIN} "
            f"pictures of {ADAPT_FOLDS} contents, better 50 to 500"
        )
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        raise RegressorError(
            f"{len(bad)} scores are missing or no numbers, first that of picture {bad[0] + 1}; drop it"
        )
    generator = np.random.default_rng(seed)
    group = (generator.permutation(len(found)) % ADAPT_FOLDS)[ids]
    empty = np.array([], dtype=np.intp)
    folds = [Fold(np.flatnonzero(group != k), empty, np.flatnonzero(group == k)) for k in range(ADAPT_FOLDS)]
    alphas = sorted(config.alphas)
    parts, _ = out_of_fold(features, y, [str(k) for k in group], folds, ridge_learner(alphas))
    judged = np.empty_like(y)
    candidates = np.empty((len(alphas), len(y)))
    predictions = predict_tasks(features, y, [(fold.train, fold.test) for fold in folds], alphas)
    for fold, part, prediction in zip(folds, parts, predictions, strict=True):
        judged[fold.test], candidates[:, fold.test] = part, prediction
    chosen = choose(candidates, y)
    ridge = fit(features, y, alphas[chosen])
    counts, _ = resample(list(names), resamples, generator)
    low, high = interval(srcc_resampled(judged, y, counts), confidence)
    summary = RegressorSummary(
        labels="human",
        label_low=float(y.min()),
        label_high=float(y.max()),
        alpha=alphas[chosen],
        n=len(y),
        contents=len(found),
        validation_n=len(y),
        validation_srcc=srcc(candidates[chosen], y),
        features_dim=len(ridge.coef),
        interval=conformal_radius(y - judged),
        interval_n=len(y),
    )
    novelty = fit_novelty(features, list(names), np.empty((0, len(ridge.coef))), [], seed=seed)
    return Adaptation(ridge, summary, novelty, srcc(judged, y), low, high)


def save(ridge: Ridge, summary: RegressorSummary, directory: Path, companions: Companions | None = None) -> None:
    """Write `ridge.npz` (coef, intercept, alpha, and what `companions` hold) and `regressor.json`.

    The same regressor gives the same bytes.
    """
    arrays: dict[str, Any] = {
        "coef": ridge.coef,
        "intercept": np.float64(ridge.intercept),
        "alpha": np.float64(ridge.alpha),
    }
    novelty, diagnosis = (companions.novelty, companions.diagnosis) if companions else (None, None)
    if novelty:
        arrays |= {"novelty_bank": novelty.bank, "novelty_threshold": np.float64(novelty.threshold)}
    if diagnosis:
        arrays |= {
            "diagnosis_coef": diagnosis.coef,
            "diagnosis_intercept": diagnosis.intercept,
            "diagnosis_distortions": np.asarray(diagnosis.distortions, dtype=str),
            "diagnosis_levels": np.asarray(diagnosis.levels, dtype=np.int64),
        }
    with write_aside(directory) as aside:
        aside.mkdir()
        with (aside / COEFFICIENTS).open("wb") as file:
            np.savez(file, **arrays)
        (aside / DESCRIPTION).write_text(json.dumps(asdict(summary), indent=2, allow_nan=False) + "\n")


def load(directory: Path) -> tuple[Ridge, RegressorSummary]:
    """Read what `save` wrote.

    Raises:
        RegressorError: missing or damaged files, another format, NaN, or two files that do not belong together.
    """
    try:
        summary = RegressorSummary(**json.loads((directory / DESCRIPTION).read_text()))
        with np.load(directory / COEFFICIENTS, allow_pickle=False) as file:
            ridge = Ridge(file["coef"], float(file["intercept"]), float(file["alpha"]))
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise RegressorError(f"{directory}: not a readable regressor ({error}); fit it again") from error
    if summary.format != FORMAT:
        raise RegressorError(
            f"{directory}: regressor format {summary.format}, this version reads {FORMAT}; fit it again"
        )
    if ridge.coef.shape != (summary.features_dim,) or not np.isfinite([*ridge.coef, ridge.intercept]).all():
        raise RegressorError(f"{directory}: {COEFFICIENTS} does not fit {DESCRIPTION}; fit the regressor again")
    return ridge, summary


def load_companions(directory: Path) -> Companions:
    """Read what `save` wrote beside the coefficients; a file from before it was kept gives None for each.

    Raises:
        RegressorError: as `load`, or arrays that do not belong together.
    """
    ridge, _ = load(directory)
    with np.load(directory / COEFFICIENTS, allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    try:
        novelty, diagnosis = None, None
        if "novelty_bank" in held:
            novelty = Novelty(held["novelty_bank"], float(held["novelty_threshold"]))
        if "diagnosis_coef" in held:
            diagnosis = Diagnosis(
                held["diagnosis_coef"],
                held["diagnosis_intercept"],
                tuple(map(str, held["diagnosis_distortions"])),
                tuple(map(int, held["diagnosis_levels"])),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise RegressorError(f"{directory}: {COEFFICIENTS} is incomplete ({error}); fit the regressor again") from error
    held_widths = [held[name].shape[1:] for name in ("novelty_bank", "diagnosis_coef") if name in held]
    if any(width != ridge.coef.shape for width in held_widths):
        raise RegressorError(f"{directory}: {COEFFICIENTS} holds arrays of another width; fit the regressor again")
    return Companions(novelty, diagnosis)
