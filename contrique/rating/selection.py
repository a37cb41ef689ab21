"""Which pictures are worth a rater's time."""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrique.config import RatingConfig
from contrique.data.leaks import near_duplicates
from contrique.rating.candidates import Candidate

Choice = Literal["model", "random"]
BINS: Final = 5  # equal parts of the model's scores, over which half of the pictures are spread
_NOISE: Final = 0.1  # variance of a rating, in units of the mean squared length of the features


def choose(
    candidates: Sequence[Candidate], features: ArrayLike, count: int, *, by: Choice, seed: int, config: RatingConfig
) -> list[int]:
    """Pictures to ask about, most useful first, without near-duplicates.

    By `model`, every other picture is the one of which a ridge on those before it would know least: the variance of its
    prediction is largest, as it is for pictures unlike all others (sequential experimental design; MacKay 1992). The
    rest are spread over the quantiles of the model's scores, by chance within each. Of near-duplicates that the model
    finds equally good only the first is asked about.

    Args:
        candidates: all pictures.
        features: of the model. Shape (N, D); not looked at by `random`.
        count: how many will be asked about; the order of those behind them means nothing.
        by: `model`, or `random`.
        seed: of chance.
        config: when two pictures are near-duplicates.
    Returns:
        indices of `candidates`, all but duplicates.
    """
    close = _find_duplicates(candidates, config)
    order = np.random.default_rng(seed).permutation(len(candidates)).tolist()
    if by == "random":
        return _drop(order, close)
    order = _spread(candidates, order)
    design = _Design(features)
    free = np.ones(len(candidates), bool)
    picks: list[int] = []
    waiting = iter(order)
    while free.any() and len(picks) < count:
        is_design_turn = len(picks) % 2 == 0
        i = design.find_unknown(free) if is_design_turn else next(i for i in waiting if free[i])
        picks.append(i)
        design.add(i)
        free[[i, *close.get(i, ())]] = False
    return _drop([*picks, *order], close)


class _Design:
    """What a ridge on some pictures would know of all of them: the variance of each prediction."""

    def __init__(self, features: ArrayLike) -> None:
        x = np.asarray(features, np.float32)
        self._x = x - x.mean(axis=0)
        squares = np.square(self._x).sum(axis=1, dtype=np.float64)
        self._scale = float(squares.mean()) or 1.0
        self._variance = squares / self._scale
        self._factors: list[NDArray[np.float64]] = []  # rows of the Cholesky factor of what is known

    def find_unknown(self, free: NDArray[np.bool_]) -> int:
        return int(np.argmax(np.where(free, self._variance, -np.inf)))

    def add(self, i: int) -> None:
        column = np.asarray(self._x @ self._x[i], np.float64) / self._scale
        for factor in self._factors:
            column -= factor[i] * factor
        self._factors.append(column / np.sqrt(max(column[i], 0.0) + _NOISE))
        self._variance -= self._factors[-1] ** 2


def _spread(candidates: Sequence[Candidate], order: Sequence[int]) -> list[int]:
    """Round by round one picture of each part of the scores, in `order` within it."""
    scores = np.array([candidates[i].score or 0.0 for i in order])
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    part = ranks * BINS // max(1, len(order))
    place = np.empty(len(order), np.intp)  # of each picture among those of its part
    for number in range(BINS):
        members = np.flatnonzero(part == number)
        place[members] = np.arange(len(members))
    return [order[i] for i in np.lexsort((part, place))]


def _find_duplicates(candidates: Sequence[Candidate], config: RatingConfig) -> dict[int, list[int]]:
    """For each picture its near-duplicates that are as good, by the model."""
    hashes = [candidate.phash for candidate in candidates]
    own = [str(i) for i in range(len(hashes))]
    close: dict[int, list[int]] = {}
    for a, b in near_duplicates(hashes, hashes, config.near_duplicate_bits, apart=(own, own)):
        if _as_good(candidates[a], candidates[b], config.alike):
            close.setdefault(a, []).append(b)
    return close


def _drop(order: Sequence[int], close: dict[int, list[int]]) -> list[int]:
    """The order without pictures that came before, and near-duplicates of such."""
    survivors: dict[int, None] = {}
    for i in order:
        if i not in survivors and not survivors.keys() & close.get(i, ()):
            survivors[i] = None
    return list(survivors)


def _as_good(a: Candidate, b: Candidate, points: float) -> bool:
    return a.score is None or b.score is None or abs(a.score - b.score) <= points


def name_contents(hashes: Sequence[str], names: Sequence[str], bits: int) -> list[str]:
    """What each picture shows: the first name of those that look alike, however good they are."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    own = [str(i) for i in range(len(hashes))]
    pairs = np.array(near_duplicates(hashes, hashes, bits, apart=(own, own)), np.intp).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(hashes), len(hashes)))
    _, group = connected_components(graph, directed=False)
    first: dict[int, str] = {}
    for name, number in sorted(zip(names, group, strict=True)):
        first.setdefault(int(number), name)
    return [first[int(number)] for number in group]
