"""Which pictures are worth a rater's time."""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from contrique.config import RatingConfig
from contrique.data.leaks import near_duplicates
from contrique.rating.candidates import Candidate

Choice = Literal["model", "random"]
BINS: Final = 5  # equal parts of the model's scores, over which the chosen pictures are spread


def choose(candidates: Sequence[Candidate], count: int, *, by: Choice, seed: int, config: RatingConfig) -> list[int]:
    """Pictures to ask about, most useful first.

    By `model`, they are spread over the quantiles of its scores, and in each part those come first whose interval is
    widest and that are most unlike the pictures it has learned from. Of near-duplicates that the model finds equally
    good only the first is asked about.

    Args:
        candidates: all pictures.
        count: how many, at most.
        by: `model`, or `random`.
        seed: of chance; it also settles ties.
        config: when two pictures are near-duplicates.
    Returns:
        indices of `candidates`.
    """
    order = np.random.default_rng(seed).permutation(len(candidates))
    if by == "model":
        order = _spread(candidates, order)
    return drop_duplicates(candidates, order.tolist(), config)[:count]


def _spread(candidates: Sequence[Candidate], order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Round by round one picture of each part of the scores, the most urgent first; ties stay in `order`."""
    urgency = _ranks([candidates[i].spread for i in order]) + _ranks([candidates[i].distance for i in order])
    scores = _ranks([candidates[i].score for i in order])
    part = np.minimum((scores * BINS / max(1, len(order))).astype(np.intp), BINS - 1)
    place = np.empty(len(order), np.intp)  # of each picture among those of its part
    for number in range(BINS):
        members = np.flatnonzero(part == number)
        place[members[np.argsort(-urgency[members], kind="stable")]] = np.arange(len(members))
    return order[np.lexsort((part, place))]


def _ranks(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Average ranks from 0; what is unknown is 0."""
    from scipy.stats import rankdata

    known = np.array([np.nan if value is None else value for value in values], np.float64)
    ranks: NDArray[np.float64] = rankdata(np.nan_to_num(known)) - 1
    return ranks


def drop_duplicates(candidates: Sequence[Candidate], order: Sequence[int], config: RatingConfig) -> list[int]:
    """The order without near-duplicates, of equal quality by the model, of an earlier picture."""
    hashes = [candidate.phash for candidate in candidates]
    own = [str(i) for i in range(len(hashes))]
    close: dict[int, set[int]] = {}
    for a, b in near_duplicates(hashes, hashes, config.near_duplicate_bits, apart=(own, own)):
        if _as_good(candidates[a], candidates[b], config.alike):
            close.setdefault(a, set()).add(b)
    kept: dict[int, None] = {}
    for i in order:
        if not close.get(i, set()) & kept.keys():
            kept[i] = None
    return list(kept)


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
