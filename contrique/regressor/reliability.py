"""How far a score can be trusted: conformal intervals, and how unlike the training pictures a picture is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

COVERAGE: Final = 0.9  # of the interval
ALIKE: Final = 0.99  # share of pictures like the training ones that raise no warning
# a score's warning, of how many times as far a picture is
UNLIKE: Final = (
    f"unlike the training pictures ({{:.1f}} times as far from them as {100 * ALIKE:g} % of pictures like them)"
)
NEIGHBOURS: Final = 5
BANK: Final = 1000  # training pictures kept for comparison: 4 MB for ResNet-18, 16 MB for ResNet-50
CALIBRATION: Final = 2000  # pictures that set the threshold, at most
Array = NDArray[np.float64]


def conformal_radius(residuals: ArrayLike, coverage: float = COVERAGE) -> float | None:
    """Half-width of the conformal interval around a prediction (Lei et al. 2018, algorithm 2).

    A new label, exchangeable with those of the residuals, is within it with a probability of at least `coverage`.

    Args:
        residuals: label minus prediction, of pictures that the predictor was not fitted to. Shape (N,).
        coverage: between 0 and 1.
    Returns:
        the ceil((N + 1) coverage)-th smallest absolute residual; None if there are too few (under 9 for 0.9).
    """
    sizes = np.sort(np.abs(np.asarray(residuals, np.float64)))
    rank = math.ceil(round((len(sizes) + 1) * coverage, 9))
    return float(sizes[rank - 1]) if 1 <= rank <= len(sizes) else None


@dataclass(frozen=True)
class Novelty:
    """Distance to the nearest training pictures (Sun et al. 2022), in units of its 99 % quantile.

    Attributes:
        bank: features of training pictures. Shape (M, D), float32, at least NEIGHBOURS.
        threshold: the distance that ALIKE of the pictures like the training ones do not exceed.
    """

    bank: NDArray[np.float32]
    threshold: float

    def distance(self, features: ArrayLike) -> Array:
        """Distance to the NEIGHBOURS-th nearest of the bank, over `threshold`: above 1 is unlike.

        Args:
            features: shape (N, D).
        Returns:
            shape (N,), float64.
        """
        return self._index.nearest(features) / self.threshold

    @cached_property
    def _index(self) -> "_Index":
        return _Index(self.bank)


def fit_novelty(
    train: ArrayLike, train_contents: Sequence[str], others: ArrayLike, other_contents: Sequence[str], *, seed: int = 0
) -> Novelty | None:
    """Keep some training pictures, and set the threshold on pictures of contents that are not compared with.

    Args:
        train: features. Shape (N, D).
        train_contents: length N; a training picture is compared with those of other contents.
        others: features of pictures of other contents. Shape (M, D), M may be 0.
        other_contents: length M.
        seed: draws the bank and the pictures that set the threshold.
    Returns:
        None if no picture has enough pictures of other contents to be compared with.
    """
    generator = np.random.default_rng(seed)
    values, names = np.asarray(train, np.float32), np.asarray(train_contents, dtype=str)
    bank = np.sort(generator.permutation(len(values))[:BANK])
    both = np.concatenate([values, np.asarray(others, np.float32).reshape(-1, values.shape[1])])
    groups = np.r_[names, np.asarray(other_contents, dtype=str)]
    sample = np.sort(generator.permutation(len(both))[:CALIBRATION])
    distances = _Index(values[bank]).nearest(both[sample], groups[sample, None] == names[bank])
    finite = distances[np.isfinite(distances)]
    threshold = float(np.quantile(finite, ALIKE)) if len(finite) else 0.0
    return Novelty(values[bank], threshold) if threshold > 0 else None


class _Index:
    """Exact nearest neighbours. Centred, so that the squares of nearly equal vectors do not cancel in float32."""

    def __init__(self, bank: NDArray[np.float32]) -> None:
        self._mean = bank.mean(axis=0)
        self._bank = bank - self._mean
        self._squares = (self._bank**2).sum(axis=1)

    def nearest(self, features: ArrayLike, excluded: Any = False) -> Array:
        """Distance of each row to its NEIGHBOURS-th nearest; infinite if so many are not left.

        Args:
            features: shape (N, D).
            excluded: which pairs not to compare. Shape (N, M).
        """
        x = np.asarray(features, np.float32) - self._mean
        squares = (x**2).sum(axis=1)[:, None] + self._squares - 2 * x @ self._bank.T
        if squares.shape[1] < NEIGHBOURS:
            return np.full(len(x), np.inf)
        squares = np.where(excluded, np.inf, np.maximum(squares, 0))
        return np.asarray(np.sqrt(np.partition(squares, NEIGHBOURS - 1, axis=1)[:, NEIGHBOURS - 1]), np.float64)
