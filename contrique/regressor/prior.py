"""What another head says of a picture as one more feature: a ridge on a few ratings need not learn it again."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from contrique.regressor.head import Head
from contrique.regressor.ridge import Array, Ridge


@dataclass(frozen=True)
class Prior:
    """Scores of another head on the same features, as a column beside them.

    They vary far more than any single feature does, so that the penalty, which is the same for all, costs them least:
    with few ratings the ridge leans on them, with many it follows the ratings. They are linear in the features, so what
    was fitted is a ridge on the features alone again (`absorb`).

    Attributes:
        scores: features to the other head's scores, 0 at the lowest of its labels and 1 at the highest.
        name: whose head that is.
    """

    scores: Ridge
    name: str

    @classmethod
    def of(cls, head: Head, name: str) -> "Prior":
        """The scores of a head as a prior."""
        low, width = head.summary.label_low, head.summary.label_high - head.summary.label_low
        ridge = head.ridge
        return cls(Ridge(ridge.coef / width, (ridge.intercept - low) / width, ridge.alpha), name)

    def extend(self, features: ArrayLike) -> Array:
        """The features with the column of scores as the last one. From shape (N, D) to (N, D + 1).

        Raises:
            RegressorError: as `Ridge.predict`.
        """
        return np.column_stack([np.asarray(features, np.float64), self.scores.predict(features)])

    def absorb(self, ridge: Ridge) -> Ridge:
        """The ridge on the features alone that predicts what one on extended features does."""
        slope = float(ridge.coef[-1])
        return Ridge(
            ridge.coef[:-1] + slope * self.scores.coef, ridge.intercept + slope * self.scores.intercept, ridge.alpha
        )


def extend(features: ArrayLike, prior: Prior | None) -> ArrayLike:
    """`Prior.extend`, or the features as they are without a prior."""
    return prior.extend(features) if prior else features


def absorb(ridge: Ridge, prior: Prior | None) -> Ridge:
    """`Prior.absorb`, or the ridge as it is without a prior."""
    return prior.absorb(ridge) if prior else ridge
