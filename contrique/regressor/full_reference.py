"""Full-reference scores: ridge on the distance between a picture's features and its reference's."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from contrique.arrays import pick_array, pick_number, read_arrays
from contrique.errors import one_line
from contrique.files import write_aside
from contrique.regressor.head import MAX_DIMENSION
from contrique.regressor.ridge import Array, RegressorError, Ridge, fit_ridge

_MAX_BYTES = 2**22


@dataclass(frozen=True)
class FullReference:
    """Ridge on how far a picture's features are from its reference's, anchored at perfect quality.

    Attributes:
        coef: loss of quality for each unit of distance. Shape (D,), float64.
        perfect: the score of a picture identical to its reference, exactly; no score is above it.
        alpha: strength of the penalty.
        worst: the label that counts as 0 points; `perfect` counts as 100.
    """

    coef: Array
    perfect: float
    alpha: float
    worst: float = 0.0

    @classmethod
    def load(cls, path: Path) -> "FullReference":
        """Read what `save` wrote.

        Raises:
            RegressorError: missing, damaged, not finite, or without a range.
        """
        try:
            arrays = read_arrays(path, _MAX_BYTES)
            coef = pick_array(arrays, "coef", np.float64, (None,), MAX_DIMENSION)
            perfect, alpha, worst = (pick_number(arrays, name) for name in ("perfect", "alpha", "worst"))
            if not 0 < perfect - worst < math.inf:
                raise ValueError(f"its range is empty: {worst:g} to {perfect:g}")
        except Exception as error:  # a damaged or hostile file raises many unrelated types
            reason = one_line(error)
            raise RegressorError(f"{path}: not a readable full-reference head ({reason}); fit it again") from error
        return cls(coef, perfect, alpha, worst)

    def save(self, path: Path) -> None:
        """Write an npz file, whole or not at all; the same head gives the same bytes."""
        with write_aside(path) as aside, aside.open("wb") as file:
            np.savez(
                file,
                coef=self.coef.astype(np.float32),
                perfect=np.float64(self.perfect),
                alpha=np.float64(self.alpha),
                worst=np.float64(self.worst),
            )

    def to_points(self, raw: Array) -> Array:
        """Scores from 0 (`worst` or below) to 100 (`perfect`, and that exactly). Of the shape given."""
        return np.asarray(np.clip(100 - 100 * (self.perfect - raw) / (self.perfect - self.worst), 0, 100))

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
            self.perfect, Ridge(-self.coef, self.perfect, self.alpha).predict(_compute_distance(features, references))
        )


def _compute_distance(features: ArrayLike, references: ArrayLike) -> Array:
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
    ridge = fit_ridge(_compute_distance(features, references), perfect - y, alpha, intercept=False)
    return FullReference(ridge.coef, perfect, alpha)
