"""A head that another one starts from: what few ratings cannot teach a ridge, the other head knows already."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from contrique.regressor.head import Head
from contrique.regressor.ridge import Array, Ridge

WEIGHT: Final = 100.0  # of the column of scores: the penalty of its slope is 1e-4 of that of a feature's


@dataclass(frozen=True)
class Prior:
    """Scores of another head on the same features, as one more feature, which the penalty hardly touches.

    A ridge on the features alone shrinks towards one score for every picture; with this column it shrinks towards a
    line in the other head's scores, whose slope and offset the labels give. Both are linear in the features, so
    what was fitted becomes a ridge on the features alone again (`absorb`).

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
        return np.column_stack([np.asarray(features, np.float64), WEIGHT * self.scores.predict(features)])

    def absorb(self, ridge: Ridge) -> Ridge:
        """The ridge on the features alone that predicts what one on extended features does."""
        slope = WEIGHT * float(ridge.coef[-1])
        return Ridge(
            ridge.coef[:-1] + slope * self.scores.coef, ridge.intercept + slope * self.scores.intercept, ridge.alpha
        )


def extend(features: ArrayLike, prior: Prior | None) -> ArrayLike:
    """`Prior.extend`, or the features as they are without a prior."""
    return prior.extend(features) if prior else features


def absorb(ridge: Ridge, prior: Prior | None) -> Ridge:
    """`Prior.absorb`, or the ridge as it is without a prior."""
    return prior.absorb(ridge) if prior else ridge
