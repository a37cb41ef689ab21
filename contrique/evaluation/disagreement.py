"""Where two models disagree most: group maximum differentiation (gMAD; Ma et al., CVPR 2016 and IEEE TPAMI 2020).

One model, the defender, calls two pictures equal; the other, the attacker, calls them as far apart as it calls any
such pair. A person who looks at the pair sees which of them is wrong, and nobody has to have rated a picture. Then the
two change sides.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrique.metrics import Array, EvaluationError

TOLERANCE: Final = 1.0  # points of 100 within which the defender calls two pictures equal
LEVELS: Final = ("low", "middle", "high")
PAIRS: Final = 3  # of each level
_SLACK: Final = 1e-6  # standard deviations: rounding


@dataclass(frozen=True)
class Pair:
    """Two pictures that the defender calls equal and the attacker does not.

    Attributes:
        worse, better: numbers of the pictures, as the attacker orders them.
        level: of the defender's scores: one of the names that `find_pairs` was given.
        gap: the attacker's score of `better` minus that of `worse`.
        strength: `gap` in standard deviations of all the attacker's scores.
    """

    worse: int
    better: int
    level: str
    gap: float
    strength: float


def find_pairs(
    defender: ArrayLike,
    attacker: ArrayLike,
    *,
    tolerance: float = TOLERANCE,
    levels: Sequence[str] = LEVELS,
    count: int = PAIRS,
) -> list[Pair]:
    """The pairs that the defender calls equal and the attacker tells apart, widest gap first at each level.

    The pictures are cut by the defender's scores into as many equal parts as there are levels; both pictures of a pair
    are of one part, differ by at most the tolerance for the defender and by more than it for the attacker. Greedy: the
    widest gap is taken, its two pictures are used, and so on, so that no picture stands in two pairs.

    Two models may have scales of different width. Measured in standard deviations of each model's own scores, the
    attacker's gap must therefore also be wider than the defender's difference: a model has no pairs against itself, nor
    against a copy that is stretched or shifted.

    Args:
        defender, attacker: scores of the same pictures. Shape (N,), N at least 2, finite.
        tolerance: in the unit of the scores.
        levels: names, from the lowest scores to the highest.
        count: pairs of each level, at most.
    Returns:
        pairs, level by level.
    Raises:
        EvaluationError: shapes differ, fewer than two pictures, NaN or infinite scores.
    """
    d, a = np.asarray(defender, np.float64), np.asarray(attacker, np.float64)
    if d.ndim != 1 or d.shape != a.shape or len(d) < 2:
        raise EvaluationError(f"scores of shapes {d.shape} and {a.shape}; give two models' of 2 pictures or more")
    if not (np.isfinite(d).all() and np.isfinite(a).all()):
        raise EvaluationError("some scores are NaN or infinite; leave those pictures out")
    spreads = float(d.std()) or 1.0, float(a.std()) or 1.0
    order = np.argsort(d, kind="stable")
    pairs = []
    for name, part in zip(levels, np.array_split(order, len(levels)), strict=True):
        for i, j in _pick_greedily(d[part], a[part], tolerance, spreads, count):
            worse, better = sorted((int(part[i]), int(part[j])), key=lambda k: a[k])
            gap = float(a[better] - a[worse])
            pairs.append(Pair(worse, better, name, gap, gap / spreads[1]))
    return pairs


def _pick_greedily(
    defender: Array, attacker: Array, tolerance: float, spreads: tuple[float, float], count: int
) -> list[tuple[int, int]]:
    """Positions of disjoint pairs, widest gap first; of equal gaps, the pair that comes first.

    The best partner of each picture is looked for once, and again only if a pair used it up.

    Args:
        defender: rising. Shape (n,).
        attacker: shape (n,).
        tolerance, count: as `find_pairs`.
        spreads: standard deviations of all scores of defender and attacker.
    """
    ends = np.searchsorted(defender, defender + tolerance, side="right")
    in_pair: NDArray[np.bool_] = np.zeros(len(defender), bool)

    def best(i: int) -> tuple[float, int, int]:
        window = slice(i + 1, int(ends[i]))
        gaps, differences = np.abs(attacker[window] - attacker[i]), defender[window] - defender[i]
        wider = gaps / spreads[1] > differences / spreads[0] + _SLACK
        gaps = np.where(wider & (gaps > tolerance) & ~in_pair[window], gaps, 0.0)
        j = int(np.argmax(gaps)) if len(gaps) else 0
        return (-float(gaps[j]) if len(gaps) else 0.0), i, i + 1 + j

    heap = [entry for i in range(len(defender)) if (entry := best(i))[0] < 0]
    heapq.heapify(heap)
    pairs: list[tuple[int, int]] = []
    while heap and len(pairs) < count:
        _, i, j = heapq.heappop(heap)
        if in_pair[i]:
            continue
        if not in_pair[j]:
            in_pair[[i, j]] = True
            pairs.append((i, j))
        elif (entry := best(i))[0] < 0:
            heapq.heappush(heap, entry)
    return pairs


def find_strongest(first: ArrayLike, second: ArrayLike, count: int) -> list[tuple[int, Pair]]:
    """The strongest pairs of two models at all levels together, whichever of the two defends.

    Args:
        first, second: as `find_pairs`.
        count: of pairs, at most.
    Returns:
        which model defends, 0 or 1, and the pair; the widest gap first, each in its attacker's standard deviations.
    Raises:
        EvaluationError: as `find_pairs`.
    """
    duels = ((0, first, second), (1, second, first))
    pairs = [(i, pair) for i, d, a in duels for pair in find_pairs(d, a, levels=("",), count=count)]
    return sorted(pairs, key=lambda item: -item[1].strength)[:count]
