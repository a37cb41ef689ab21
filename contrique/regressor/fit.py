"""Fit a head to a feature set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from contrique.config import RegressorConfig
from contrique.data.splits import judged_rows, label_kind, pretrain_rows
from contrique.encoder.feature_set import load_set
from contrique.metrics import srcc
from contrique.regressor.cross_validation import MIN_CHOSEN_ON, choose_within_error
from contrique.regressor.diagnosis import Diagnosis, fit_diagnosis
from contrique.regressor.head import Head, RegressorSummary
from contrique.regressor.prior import Prior, absorb, extend
from contrique.regressor.reliability import conformal_radius, fit_novelty
from contrique.regressor.ridge import Array, RegressorError, Rows, fit_path, predict_tasks

RESIDUAL_FOLDS: Final = 10
ENOUGH_CONTENTS: Final = 30  # of the validation part, to set the interval alone


def fit_set(features: Path, out: Path, *, config: RegressorConfig, prior: Prior | None = None) -> RegressorSummary:
    """Fit on a feature set's training part, with an alpha that its validation part chooses (`choose_within_error`).

    Where the validation part has too few pictures for a rank correlation, alpha is chosen by leave-one-content-out over
    both parts.

    Without human labels the weak-labelled pretraining pictures join the training part: their labels are as good.
    The test part is not touched, and the model is not fitted again with the validation part added. The conformal
    interval comes from the residuals of the validation part; where that has few contents, the training pictures'
    residuals out of fold, by content, join them (cross-conformal, Vovk 2015).

    Args:
        features: folder with `manifest.parquet` and `features.npz` (`contrique.encoder.feature_set.extract_set`).
        out: folder to write: `ridge.npz` and `regressor.json`, as `Head.load` reads them.
        config: the alphas.
        prior: scores of another head, as one more feature.
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
    contents = manifest["reference"].to_numpy(dtype=str)
    inputs = np.asarray(extend(values, prior))
    models = fit_path(inputs[train], labels[train], sorted(config.alphas))
    candidates = np.stack([model.predict(inputs[validation]) for model in models])
    choice = Choice(candidates, labels[validation])
    if len(validation) < MIN_CHOSEN_ON:
        choice = _leave_one_out(inputs, labels, contents, np.r_[train, validation], sorted(config.alphas))
    best = choose_within_error(choice.candidates, choice.labels)
    low, high = (0.0, 1.0) if kind == "weak" else (float(labels[train].min()), float(labels[train].max()))
    residuals = labels[validation] - candidates[best]
    if len(np.unique(contents[validation])) < ENOUGH_CONTENTS:
        inner = predict_residuals(inputs[train], labels[train], contents[train], models[best].alpha)
        residuals = np.concatenate([residuals, inner])
    diagnosis, accuracy = _fit_diagnosis(manifest, values)
    summary = RegressorSummary(
        labels=kind,
        label_low=low,
        label_high=high,
        alpha=models[best].alpha,
        n=len(train),
        contents=len(np.unique(contents[train])),
        validation_n=len(choice.labels),
        validation_srcc=srcc(choice.candidates[best], choice.labels),
        features_dim=values.shape[1],
        interval=conformal_radius(residuals),
        interval_n=len(residuals),
        diagnosis_accuracy=accuracy,
        prior=prior.name if prior else "",
    )
    novelty = fit_novelty(values[train], contents[train], values[validation], contents[validation])
    Head(absorb(models[best], prior), summary, novelty, diagnosis).save(out)
    return summary


@dataclass(frozen=True)
class Choice:
    """What alpha is chosen on.

    Attributes:
        candidates: scores by each alpha of pictures that it was not fitted to. Shape (A, N).
        labels: of those pictures. Shape (N,).
    """

    candidates: Array
    labels: Array


def _leave_one_out(
    values: Any, labels: Array, contents: NDArray[np.str_], rows: Rows, alphas: Sequence[float]
) -> Choice:
    """Scores of the rows, whole contents at a time, by ridges fitted to the others."""
    tasks = [(rows[contents[rows] != name], rows[contents[rows] == name]) for name in np.unique(contents[rows])]
    tasks = [task for task in tasks if len(task[0]) > 1 and np.ptp(labels[task[0]]) > 0]
    if not tasks:
        raise RegressorError(f"{len(rows)} pictures to fit and to choose alpha on are too few; label more contents")
    predictions = predict_tasks(values, labels, tasks, alphas)
    return Choice(np.concatenate(predictions, axis=1), labels[np.concatenate([held_out for _, held_out in tasks])])


def predict_residuals(features: ArrayLike, labels: Array, contents: NDArray[np.str_], alpha: float) -> Array:
    """Label minus prediction by a ridge that saw no picture of the content; empty if there is but one content.

    Args:
        features: shape (N, D).
        labels, contents: of each row. Length N.
        alpha: of the ridge.
    Returns:
        in the unit of the labels, fold by fold, less folds whose training labels are constant.
    """
    names, ids = np.unique(contents, return_inverse=True)
    count = min(RESIDUAL_FOLDS, len(names))
    if count < 2:
        return np.empty(0)
    fold = (np.random.default_rng(0).permutation(len(names)) % count)[ids]
    tasks = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(count)]
    tasks = [task for task in tasks if np.ptp(labels[task[0]]) > 0]  # constant labels cannot be fitted
    predictions = predict_tasks(features, labels, tasks, [alpha])
    return np.concatenate(
        [np.empty(0), *(labels[held_out] - scores[0] for (_, held_out), scores in zip(tasks, predictions, strict=True))]
    )


def _fit_diagnosis(manifest: pd.DataFrame, values: Any) -> tuple[Diagnosis | None, float | None]:
    """The linear head of distortions, fitted to the synthesized pictures outside the test part, and its accuracy."""
    rows = manifest[manifest["weak_label"].notna() & (manifest["split"] != "test")]
    return fit_diagnosis(values[rows.index], list(rows["distortion"]), list(rows["level"]), list(rows["reference"]))
