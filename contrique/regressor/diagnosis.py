"""Which distortion a picture looks like: a linear head on frozen features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRISTINE: Final = "pristine"
ANY: Final = -1  # level of the row that names a distortion
SHRINKAGE: Final = 0.5  # of the covariance; of 0.1 to 0.99 it named most distortions of held-out photographs
MIN_CONTENTS: Final = 5  # photographs, to fit the head of distortions and to try it on others
_HELD_OUT: Final = 0.2  # of them, to try it on
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Suspect:
    """A distortion that a picture may have.

    Attributes:
        distortion: one of the 25 names, or `pristine`.
        level: the likeliest of 1 to 5 if it has that distortion; 0 for pristine.
        probability: as the linear head sees it; those of all suspects sum to 1.
    """

    distortion: str
    level: int
    probability: float


@dataclass(frozen=True)
class Diagnosis:
    """A linear head on frozen features that names distortions and their levels.

    Attributes:
        coef: a row for each distortion (level ANY) and for each of its levels. Shape (K, D), float32.
        intercept: shape (K,), float32.
        distortions, levels: of each row. Length K.
    """

    coef: Floats
    intercept: Floats
    distortions: tuple[str, ...]
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.coef.shape[:1] == self.intercept.shape == (len(self.distortions),) == (len(self.levels),):
            raise ValueError("a diagnosis whose rows do not fit together")
        names, with_level = (
            [name for name, level in zip(self.distortions, self.levels, strict=True) if (level == ANY) == head]
            for head in (True, False)
        )
        if not names or len(set(names)) < len(names) or set(names) != set(with_level):
            raise ValueError("a diagnosis needs one row for each distortion, and one for each of its levels")

    def suspects(self, features: ArrayLike) -> list[Suspect]:
        """Every distortion and pristine, likeliest first.

        Args:
            features: of one picture. Shape (D,).
        """
        logits = self.coef.astype(np.float64) @ np.asarray(features, np.float64) + self.intercept
        names = [k for k, level in enumerate(self.levels) if level == ANY]
        shares = np.exp(logits[names] - logits[names].max())
        best = {self.distortions[k]: self.levels[k] for k in np.argsort(logits) if self.levels[k] != ANY}
        suspects = [
            Suspect(self.distortions[k], best[self.distortions[k]], float(share))
            for k, share in zip(names, shares / shares.sum(), strict=True)
        ]
        return sorted(suspects, key=lambda suspect: -suspect.probability)


def fit_diagnosis(
    features: ArrayLike, distortions: Sequence[str], levels: Sequence[int], contents: Sequence[str], *, seed: int = 0
) -> tuple[Diagnosis | None, float | None]:
    """Fit a linear head that names distortion and level, and try it on photographs that it was not fitted to.

    Classes that leave a picture as it is count as pristine (spec section 6).

    Args:
        features: of synthesized pictures. Shape (N, D).
        distortions: names of the bank, "" for pristine. Length N.
        levels: 1 to 5, 0 for pristine. Length N.
        contents: the photograph of each. Length N.
        seed: draws the photographs that are held out to try the head.
    Returns:
        the head, fitted to all pictures, and the share of held-out pictures whose distortion (of whatever level) a
        head fitted to the others named right; None and None with under MIN_CONTENTS photographs or one class.
    """
    from contrique.distortions import IDENTITY

    x, photographs = np.asarray(features, np.float64), np.asarray(contents, dtype=str)
    classes = [
        (PRISTINE, 0) if not name or (name, level) in IDENTITY else (name, int(level))
        for name, level in zip(distortions, levels, strict=True)
    ]
    shuffled = np.random.default_rng(seed).permutation(np.unique(photographs))
    if len(shuffled) < MIN_CONTENTS or len(set(classes)) < 2:
        return None, None
    away = np.isin(photographs, shuffled[: max(1, round(_HELD_OUT * len(shuffled)))])
    trial = _fit_discriminant(x[~away], [classes[i] for i in np.flatnonzero(~away)])
    right = [trial.suspects(x[i])[0].distortion == classes[i][0] for i in np.flatnonzero(away)]
    return _fit_discriminant(x, classes), float(np.mean(right))


def _fit_discriminant(x: NDArray[np.float64], classes: Sequence[tuple[str, int]]) -> Diagnosis:
    """Linear discriminant analysis with equal priors, one covariance and SHRINKAGE, for distortions and for levels.

    Equal priors, because how often a distortion was synthesized says nothing about how often it will be met. Solved by
    Cholesky: scikit-learn's solvers decompose a matrix of 4,096 rows by its singular values, which takes minutes.
    """
    from scipy import linalg

    kinds = sorted(set(classes))
    id_of = {kind: k for k, kind in enumerate(kinds)}
    ids = np.array([id_of[kind] for kind in classes])
    names = sorted({name for name, _ in kinds})
    name_ids = np.array([names.index(name) for name, _ in classes])
    means = np.stack([x[ids == k].mean(axis=0) for k in range(len(kinds))])
    name_means = np.stack([x[name_ids == k].mean(axis=0) for k in range(len(names))])
    centred = x - means[ids]
    covariance = centred.T @ centred / len(x)
    scale = max(float(np.trace(covariance)) / len(covariance), float(np.finfo(np.float32).tiny))
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * scale * np.eye(len(covariance))
    middle = x.mean(axis=0)
    both = np.concatenate([name_means, means]) - middle  # what all classes share would only cost digits
    coef = linalg.cho_solve(linalg.cho_factor(shrunk), both.T).T
    return Diagnosis(
        coef.astype(np.float32),
        (-(0.5 * both + middle) * coef).sum(axis=1).astype(np.float32),
        (*names, *(name for name, _ in kinds)),
        (*([ANY] * len(names)), *(level for _, level in kinds)),
    )
