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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from contrique.errors import ContriqueError

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


def _check_inputs(features: ArrayLike, labels: ArrayLike, alphas: Sequence[float]) -> tuple[Array, Array, Array]:
    x, y, a = np.asarray(features, np.float64), np.asarray(labels, np.float64), np.asarray(alphas, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or x.shape[1] == 0:
        raise RegressorError(f"features {x.shape} and labels {y.shape} do not fit; expected (N, D) and (N,)")
    if not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        raise RegressorError(f"features of {len(bad)} pictures hold NaN or infinite values, first row {bad[0]}")
    if a.ndim != 1 or len(a) == 0 or not (np.isfinite(a) & (a > 0)).all():
        raise RegressorError(f"alphas must be positive numbers, got {list(alphas)}")
    return x, y, a


def _check_trainable(x: Array, y: Array, rows: Rows) -> None:
    if len(rows) < 2:
        raise RegressorError(f"{len(rows)} training pictures; give at least 2")
    bad = rows[~np.isfinite(y[rows])]
    if len(bad):
        raise RegressorError(f"{len(bad)} labels are NaN or infinite, first row {bad[0]}; drop those rows")
    if np.ptp(y[rows]) == 0:
        raise RegressorError(f"all {len(rows)} training labels are {y[rows[0]]:g}; there is nothing to learn from them")
    if all(np.array_equal(x[row], x[rows[0]]) for row in rows[1:]):  # ends at the first that differs
        raise RegressorError(f"all {len(rows)} training pictures have the same features; check the encoder")


def fit_path(features: ArrayLike, labels: ArrayLike, alphas: Sequence[float], *, intercept: bool = True) -> list[Ridge]:
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
    x, y, a = _check_inputs(features, labels, alphas)
    _check_trainable(x, y, np.arange(len(y)))
    x_mean = x.mean(axis=0) if intercept else np.zeros(x.shape[1])
    y_mean = float(y.mean()) if intercept else 0.0
    coefs = _coefficients(x - x_mean, y - y_mean, a)
    return [Ridge(w, y_mean - float(x_mean @ w), float(k)) for w, k in zip(coefs, a, strict=True)]


def fit_ridge(features: ArrayLike, labels: ArrayLike, alpha: float, *, intercept: bool = True) -> Ridge:
    """Ridge for one alpha; as `path`."""
    return fit_path(features, labels, [alpha], intercept=intercept)[0]


def _coefficients(x: Array, y: Array, alphas: Array) -> Array:
    """Exact weights for centred features and labels. Shape (A, D)."""
    primal = x.shape[0] > x.shape[1]
    values, vectors = _decompose(x.T @ x if primal else x @ x.T)
    target = vectors.T @ (x.T @ y if primal else y)
    solved = (target[:, None] / (np.maximum(values, 0)[:, None] + alphas)).T @ vectors.T
    return np.asarray(solved if primal else solved @ x)


def _decompose(matrix: Any, *, overwrite_a: bool = False) -> tuple[Any, Any]:
    """Eigenvalues, rising, and eigenvectors of a symmetric matrix."""
    from scipy import linalg  # a quarter of a second, which those who only predict need not wait

    values, vectors = linalg.eigh(matrix, driver="evd", overwrite_a=overwrite_a, check_finite=False)
    return values, vectors


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
    x, y, a = _check_inputs(features, labels, alphas)
    for train, _ in tasks:
        _check_trainable(x, y, train)
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
    values, vectors = _decompose(block - mean - mean[:, None] + mean.mean())
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
    targets = np.where(member.any(axis=1), y, 0)  # labels of rows that no task trains on may be NaN
    x_means, y_means = (x.T @ member) / counts, (targets @ member) / counts  # (D, T), (T,)
    right = x.T @ (member * (targets[:, None] - y_means))  # (D, T); the centring of x drops out of it
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
    values, vectors = _decompose(narrow.T @ narrow, overwrite_a=True)
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
