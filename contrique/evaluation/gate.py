"""Decide whether a challenger becomes champion: a pure function of two models' scores on the same pictures.

It promotes if and only if

1. the challenger's SRCC meets the floor;
2. there is no champion, or the challenger's SRCC minus the champion's has a lower confidence bound of at least
   -margin, by a paired bootstrap over contents;
3. no distortion with enough pictures has lost more than slice_margin of SRCC against the champion;
4. no attack (`evaluation.gaming`) surely raises the challenger's scores by more than gaming_margin points beyond the
   champion's: it holds if the lower confidence bound of the paired difference is above the margin. Attacks are tried on
   a dozen pictures, where the mean alone would hold good models by chance. A fall of the champion's is no rise.

Anything undefined (NaN, infinite or constant scores, too few pictures) holds. The first model only has to meet the
floor. A model against itself has a difference of exactly 0 in every resample and every slice, whatever the seed, and no
attack raises it beyond itself, so it is promoted if it meets the floor and no margin is negative.

No files, no clock, no global random state: the same arguments give the same verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from contrique import metrics
from contrique.config import GateConfig
from contrique.metrics import EvaluationError


@dataclass(frozen=True)
class Rises:
    """How far attacks raise the scores of two models, on the same M pictures.

    Attributes:
        contents: of each picture. Length M.
        points: attack -> points by which it raises the scores of challenger and champion, NaN for a score that is no
            finite number. Each of shape (M,).
    """

    contents: Sequence[str]
    points: Mapping[str, tuple[ArrayLike, ArrayLike]]


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and from what.

    Attributes:
        promote: whether the challenger shall become champion.
        reason: in plain words, every ground for a hold.
        numbers: n, contents, unit (what the bootstrap drew), challenger_srcc, and with a champion champion_srcc,
            difference, difference_low, difference_high, slices (name -> n, challenger, champion, fall; None where
            undefined) and gaming (attack -> n, challenger, champion, difference, difference_low in points, falls of the
            champion's as 0; likewise). Only what was computed before a hold.
        thresholds: floor, margin, slice_margin, min_slice, gaming_margin, confidence, resamples and seed.
    """

    promote: bool
    reason: str
    numbers: dict[str, Any]
    thresholds: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON; no NaN."""
        return asdict(self)


def decide(
    challenger: ArrayLike,
    champion: ArrayLike | None,
    labels: ArrayLike,
    contents: Sequence[str],
    distortions: Sequence[str],
    *,
    config: GateConfig,
    resamples: int,
    confidence: float,
    seed: int,
    rises: Rises | None = None,
) -> Verdict:
    """Compare two models' scores on the same pictures.

    With fewer than `metrics.MIN_CONTENTS` contents, drawing contents has no more than three outcomes; pictures are then
    drawn within each content instead, and the verdict's `unit` says so.

    Args:
        challenger: higher is better, any scale. Shape (N,).
        champion: the same pictures scored by the champion; None if there is none. Shape (N,).
        labels: higher is better. Shape (N,).
        contents: of each picture. Length N.
        distortions: of each picture, "" for none. Length N.
        config: floor, margins and the smallest slice.
        resamples: of the bootstrap.
        confidence: of the interval of the difference, in (0, 1).
        seed: of the bootstrap.
        rises: of challenger and champion, by the attacks that were tried; None if none was.
    Returns:
        the verdict.
    Raises:
        EvaluationError: the arguments differ in length, which no pair of models explains.
    """
    y, ours = np.asarray(labels, np.float64), np.asarray(challenger, np.float64)
    theirs = None if champion is None else np.asarray(champion, np.float64)
    lengths = {len(values) for values in (y, ours, contents, distortions, *([] if theirs is None else [theirs]))}
    if len(lengths) != 1:
        raise EvaluationError(f"scores, labels, contents and distortions differ in length: {sorted(lengths)}")
    attacks = rises or Rises((), {})
    for pair in attacks.points.values():
        if {len(np.asarray(each)) for each in pair} != {len(attacks.contents)}:
            counts = " and ".join(str(len(np.asarray(each))) for each in pair)
            raise EvaluationError(f"{counts} rises of {len(attacks.contents)} attacked pictures")
    thresholds = asdict(config) | {"resamples": resamples, "confidence": confidence, "seed": seed}
    numbers: dict[str, Any] = {"n": len(y), "contents": len(set(contents))}

    try:
        numbers["challenger_srcc"] = metrics.srcc(ours, y)
    except EvaluationError as error:
        return Verdict(False, f"hold: the challenger cannot be judged: {error}", numbers, thresholds)
    if theirs is not None:
        try:
            numbers["champion_srcc"] = metrics.srcc(theirs, y)
            _compare(numbers, ours, theirs, y, contents, distortions, thresholds)
            numbers["gaming"] = {
                name: _compare_rises(pair, attacks.contents, thresholds) for name, pair in attacks.points.items()
            }
        except EvaluationError as error:
            return Verdict(False, f"hold: the champion cannot be compared with: {error}", numbers, thresholds)

    grounds, passed = _floor(numbers, config), []
    if not grounds:
        passed.append(f"SRCC {numbers['challenger_srcc']:.3f} meets the floor {config.floor:.3f}")
    if theirs is None:
        passed.append("there is no champion to compare with")
    else:
        grounds += _difference(numbers, config) + _falls(numbers["slices"], config)
        grounds += _rises(numbers["gaming"], thresholds)
        passed.append(
            f"against the champion {numbers['difference']:+.3f} (lower bound {numbers['difference_low']:+.3f}, "
            f"allowed {-config.margin:+.3f}); no distortion fell by more than {config.slice_margin:.3f}"
        )
        if attacks.points:
            passed.append(f"no attack surely raises it by {config.gaming_margin:.1f} points more than the champion")
    if grounds:
        return Verdict(False, "hold: " + "; ".join(grounds), numbers, thresholds)
    return Verdict(True, "promote: " + "; ".join(passed), numbers, thresholds)


def _compare(
    numbers: dict[str, Any],
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    labels: NDArray[np.float64],
    contents: Sequence[str],
    distortions: Sequence[str],
    thresholds: dict[str, Any],
) -> None:
    """Add the paired difference, its interval and the slices to the numbers."""
    counts, unit = metrics.resample(contents, thresholds["resamples"], np.random.default_rng(thresholds["seed"]))
    differences = metrics.srcc_resampled(ours, labels, counts) - metrics.srcc_resampled(theirs, labels, counts)
    low, high = metrics.interval(differences, thresholds["confidence"])
    numbers["unit"] = unit
    numbers["difference"] = numbers["challenger_srcc"] - numbers["champion_srcc"]
    numbers["difference_low"], numbers["difference_high"] = low, high
    kinds = np.asarray(distortions, dtype=str)
    numbers["slices"] = {}
    for name in sorted(set(kinds) - {""}):
        rows = np.flatnonzero(kinds == name)
        mine, other = _srcc_or_none(ours[rows], labels[rows]), _srcc_or_none(theirs[rows], labels[rows])
        fall = None if mine is None or other is None else other - mine
        numbers["slices"][str(name)] = {"n": len(rows), "challenger": mine, "champion": other, "fall": fall}


def _compare_rises(
    pair: tuple[ArrayLike, ArrayLike], contents: Sequence[str], thresholds: dict[str, Any]
) -> dict[str, Any]:
    """Mean rises, their difference and its lower bound; None where a rise is no finite number.

    A fall of the champion's mean counts as no rise: a challenger that falls less is no easier to game.
    """
    ours, theirs = (np.asarray(each, np.float64) for each in pair)
    if not len(ours) or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return {"n": len(ours), "challenger": None, "champion": None, "difference": None, "difference_low": None}
    counts, _ = metrics.resample(contents, thresholds["resamples"], np.random.default_rng(thresholds["seed"]))
    weights = counts / counts.sum(axis=1, keepdims=True)
    low, _ = metrics.interval(weights @ ours - np.maximum(weights @ theirs, 0.0), thresholds["confidence"])
    return {
        "n": len(ours),
        "challenger": float(ours.mean()),
        "champion": float(theirs.mean()),
        "difference": float(ours.mean() - max(theirs.mean(), 0.0)),
        "difference_low": low,
    }


def _srcc_or_none(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float | None:
    try:
        return metrics.srcc(scores, labels)
    except EvaluationError:  # undefined; `_falls` decides what that means
        return None


# Each ground is phrased so that a NaN among the numbers or thresholds holds: `not (a >= b)`, never `a < b`.


def _floor(numbers: dict[str, Any], config: GateConfig) -> list[str]:
    value = numbers["challenger_srcc"]
    return [] if value >= config.floor else [f"SRCC {value:.3f} is below the floor {config.floor:.3f}"]


def _difference(numbers: dict[str, Any], config: GateConfig) -> list[str]:
    if numbers["difference_low"] >= -config.margin:
        return []
    return [
        f"SRCC minus the champion's is {numbers['difference']:+.3f} with a lower bound of "
        f"{numbers['difference_low']:+.3f}, below the allowed {-config.margin:+.3f}"
    ]


def _falls(slices: dict[str, dict[str, Any]], config: GateConfig) -> list[str]:
    grounds = []
    for name, part in slices.items():
        if part["n"] < config.min_slice or part["champion"] is None:
            continue  # too few to judge, or constant labels or champion: there is nothing to fall from
        if part["fall"] is None:
            grounds.append(f"the challenger gives all {part['n']} pictures of {name} the same score")
        elif not part["fall"] <= config.slice_margin:
            grounds.append(
                f"on {name} ({part['n']} pictures) SRCC fell by {part['fall']:.3f}, from {part['champion']:.3f} to "
                f"{part['challenger']:.3f}, more than {config.slice_margin:.3f}"
            )
    return grounds


def _rises(gaming: dict[str, dict[str, Any]], thresholds: dict[str, Any]) -> list[str]:
    grounds = []
    for name, part in gaming.items():
        attack, low, margin = name.replace("_", " "), part["difference_low"], thresholds["gaming_margin"]
        if low is None:
            grounds.append(f"what {attack} does to the scores is no finite number")
        elif not low <= margin:
            grounds.append(
                f"{attack}, which makes no picture better, raises the scores by {part['challenger']:.1f} points and "
                f"the champion's by {part['champion']:.1f}: the lower bound of the difference, {low:.1f}, is above "
                f"the allowed {margin:.1f}"
            )
    return grounds
