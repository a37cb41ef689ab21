"""The answers of a session as a table of labels, and what is to be said of them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contrique.config import RatingConfig
from contrique.files import write_aside
from contrique.rating.candidates import RatingError
from contrique.rating.scale import (
    MIN_RATERS,
    correlate,
    krippendorff,
    mean_opinions,
    scale_pairs,
    screen_correlation,
    screen_outliers,
    screen_pairs,
    share_agreed,
)
from contrique.rating.selection import name_contents
from contrique.rating.session import Answer, Session, Store

COLUMNS: Final = ("image", "mos", "interval", "n", "reference")
_RISKY: Final = ("=", "+", "-", "@", "'")  # at the start of a cell; spreadsheets take it for something else
_MIN_BT500: Final = 6  # raters, below which its rejection cannot reject
_STEPS_APART: Final = 1.0  # between two answers about a picture, on average, from which on a rater is inconsistent
_BAD: Final = 2  # a rating up to which a damaged version may have the same
_SAME_CHOICE: Final = 0.6  # of repeated pairs, up to which a rater is inconsistent

Comparison = tuple[int, int]


@dataclass
class Rater:
    """One rater's answers, by what they are for.

    Attributes:
        name: of the rater.
        scores: of single pictures: index in `Session.pictures` -> answer.
        comparisons: of pairs: (better, worse).
        gaps: of single pictures asked twice: first answer less the second.
        same: of pairs asked twice: how many were answered alike.
        repeats: how often something was asked twice.
        golden_failed, golden: golden pictures that were not found better than their damaged version, of how many.
        scaled: answers about pictures that the browser had to scale.
        agreement: with the others: correlation, or share of pairs.
        reason: why the rater is left out; empty if not.
    """

    name: str
    scores: dict[int, int] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    same: int = 0
    repeats: int = 0
    golden_failed: int = 0
    golden: int = 0
    scaled: int = 0
    agreement: float = float("nan")
    reason: str = ""

    @property
    def answers(self) -> int:
        return len(self.scores) + len(self.comparisons)


@dataclass(frozen=True)
class Labels:
    """What a session has come to.

    Attributes:
        rows: image (path below the folder), score, half-width of its 95 % interval (NaN if unknown), answers, and the
            content: pictures that look alike share one.
        raters: all of them, those that were left out too.
        notes: lines for people.
    """

    rows: list[tuple[str, float, float, int, str]]
    raters: list[Rater]
    notes: list[str]


def analyse(session: Session, store: Store, config: RatingConfig) -> Labels:
    """Screen the raters and scale the pictures.

    Raises:
        RatingError: there is no answer that counts, or a rater's file is damaged.
    """
    raters = [_sort_answers(session, name, store.read(name)) for name in store.raters()]
    raters = [rater for rater in raters if rater.answers]
    if not raters:
        raise RatingError("no picture of this session is rated yet; rate some, then export")
    analyse_method = _analyse_pairs if session.method == "pairs" else _analyse_single
    indices, values, widths, counts, notes = analyse_method(raters, len(session.pictures), config)
    pictures = [session.pictures[i] for i in indices]
    names = [picture.image for picture in pictures]
    contents = name_contents([picture.phash for picture in pictures], names, config.near_duplicate_bits)
    rows = [
        (name, float(value), float(width), int(count), content)
        for name, value, width, count, content in zip(names, values, widths, counts, contents, strict=True)
    ]
    notes += [_describe(rater, session.method) for rater in raters]
    return Labels(rows, raters, [*notes, *_describe_widths(widths, counts, session.method)])


def _sort_answers(session: Session, name: str, answers: Sequence[Answer]) -> Rater:
    place = {picture.image: i for i, picture in enumerate(session.pictures)}
    rater = Rater(name)
    damaged: dict[int, int] = {}
    again: list[tuple[Comparison | int, int]] = []
    for answer in answers:
        try:
            indices = [place[image] for image in answer.images]
        except KeyError as error:
            raise RatingError(f"the answers of '{name}' name {error}, which is no picture of this session") from error
        rater.scaled += answer.part != "training" and answer.scale < 1
        if session.method == "pairs":
            better, worse = indices[answer.answer], indices[1 - answer.answer]
            if answer.part == "test":
                rater.comparisons.append((better, worse))
            elif answer.part == "repeat":
                again.append(((better, worse), 0))
            elif answer.part == "golden":
                rater.golden += 1
                rater.golden_failed += answer.damaged[answer.answer]
        elif answer.part == "test":
            rater.scores[indices[0]] = answer.answer
        elif answer.part == "repeat":
            again.append((indices[0], answer.answer))
        elif answer.part == "golden":
            damaged[indices[0]] = answer.answer
    for item, value in again:
        if isinstance(item, tuple):
            rater.same += item in rater.comparisons
        else:
            rater.gaps.append(rater.scores[item] - value)
    rater.repeats = len(again)
    both = damaged.keys() & rater.scores.keys()
    rater.golden += len(both)
    # of a picture that was bad before, the damage may go unseen
    rater.golden_failed += sum(damaged[i] > rater.scores[i] or damaged[i] == rater.scores[i] > _BAD for i in both)
    return rater


Analysis = tuple[list[int], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], list[str]]


def _analyse_single(raters: Sequence[Rater], count: int, config: RatingConfig) -> Analysis:
    ratings = np.full((len(raters), count), np.nan)
    for row, rater in zip(ratings, raters, strict=True):
        row[list(rater.scores)] = list(rater.scores.values())
    ratings = ratings[:, np.isfinite(ratings).any(axis=0)]
    for rater, value in zip(raters, correlate(ratings), strict=True):
        rater.agreement = float(value)
    for rater, is_outlier in zip(raters, screen_outliers(ratings), strict=True):
        if is_outlier:
            rater.reason = "scattered far from the others (BT.500-15, kurtosis)"
    left = [i for i, rater in enumerate(raters) if not rater.reason]
    for i, value in screen_correlation(ratings[left], config.correlation).items():
        raters[left[i]].reason = f"correlation {value:.2f} with the mean is under {config.correlation:g} (P.913)"
    reliable = [rater for rater in raters if not rater.reason]
    indices = sorted(set().union(*(rater.scores for rater in reliable)))
    table = np.array([[rater.scores.get(i, np.nan) for i in indices] for rater in reliable], np.float64)
    gaps = reliable[0].gaps if len(reliable) == 1 else ()
    values, widths = mean_opinions(table, gaps)
    notes = _describe_screening(raters, reliable)
    if MIN_RATERS <= len(raters) < _MIN_BT500:
        notes.append(f"BT.500's own rejection needs {_MIN_BT500} raters to reject one; the correlation screened alone")
    if len(reliable) > 1:
        notes.append(f"agreement of those kept: Krippendorff's alpha {krippendorff(table):.2f} (1 is perfect)")
    return indices, values, widths, np.isfinite(table).sum(axis=0), notes


def _analyse_pairs(raters: Sequence[Rater], count: int, config: RatingConfig) -> Analysis:
    for i, value in screen_pairs(count, [rater.comparisons for rater in raters], config.significance).items():
        raters[i].reason = f"agrees with the others in {value:.0%} of the pairs, which may be chance"
    reliable = [rater for rater in raters if not rater.reason]
    for rater in raters:
        others = [pair for other in reliable if other is not rater for pair in other.comparisons]
        agreed, total = share_agreed(count, rater.comparisons, others) if others else (0, 0)
        rater.agreement = agreed / total if total else float("nan")
    comparisons = [pair for rater in reliable for pair in rater.comparisons]
    indices = sorted({i for pair in comparisons for i in pair})
    place = {i: k for k, i in enumerate(indices)}
    values, widths = scale_pairs(len(indices), [(place[a], place[b]) for a, b in comparisons])
    counts = np.bincount([place[i] for pair in comparisons for i in pair], minlength=len(indices))
    notes = _describe_screening(raters, reliable)
    if len(reliable) > 1:
        mean = float(np.nanmean([rater.agreement for rater in reliable]))
        notes.append(f"agreement of those kept: each with the scale of the others in {mean:.0%} of the pairs")
    return indices, values, widths, counts, notes


def _describe_screening(raters: Sequence[Rater], reliable: Sequence[Rater]) -> list[str]:
    notes = [f"left out: rater '{rater.name}': {rater.reason}" for rater in raters if rater.reason]
    if len(raters) < MIN_RATERS:
        notes.append(
            f"nobody can be screened: that takes {MIN_RATERS} raters, here are {len(raters)}; all are believed"
        )
    return [f"{len(reliable)} of {len(raters)} raters count", *notes]


def _describe(rater: Rater, method: str) -> str:
    parts = [f"{rater.answers} answers"]
    if np.isfinite(rater.agreement):
        what = "agrees with the others in {:.0%}" if method == "pairs" else "correlation with the mean {:.2f}"
        parts.append(what.format(rater.agreement))
    if rater.golden:
        failed = ", FAILED" if 2 * rater.golden_failed > rater.golden else ""
        parts.append(f"{rater.golden - rater.golden_failed} of {rater.golden} golden pairs right{failed}")
    if rater.repeats and method == "pairs":
        odd = ", INCONSISTENT" if rater.same <= _SAME_CHOICE * rater.repeats else ""
        parts.append(f"{rater.same} of {rater.repeats} repeats alike{odd}")
    elif rater.repeats:
        apart = float(np.mean(np.abs(rater.gaps)))
        odd = ", INCONSISTENT" if apart > _STEPS_APART else ""
        parts.append(f"{rater.repeats} repeats {apart:.1f} steps apart{odd}")
    if rater.scaled:
        parts.append(f"{rater.scaled} answers about pictures that the browser had scaled")
    return f"rater '{rater.name}': {'; '.join(parts)}"


def _describe_widths(widths: NDArray[np.float64], counts: NDArray[np.int64], method: str) -> list[str]:
    """How sure the scores are, and what it would take to be twice as sure."""
    unit = "logits" if method == "pairs" else "of the 4 steps between bad and excellent"
    if not np.isfinite(widths).all():
        return ["no intervals: they need two raters, or one who was asked some pictures twice"]
    each, more = float(np.mean(counts)), 3 * int(counts.sum())
    answers = "comparisons" if method == "pairs" else "answers"
    if method == "pairs":
        more //= 2  # one answer is a comparison of two pictures
    return [
        f"95 % interval of a score: {np.mean(widths):.2f} {unit} to either side, from {each:.1f} {answers} a picture; "
        f"half of that takes four times as many: {3 * each:.0f} more a picture, {more} answers in all"
    ]


def write_labels(labels: Labels, folder: Path, out: Path) -> Path:
    """Write a table that `contrique adapt --labels` reads.

    Args:
        labels: of `analyse`.
        folder: of the pictures.
        out: CSV with the columns image, mos, interval (half-width, 95 %), n and reference.
    Returns:
        the folder that the column `image` is relative to: that of `out` if the pictures are below it, else `folder`.
    """
    base = out.resolve().parent
    below = folder.resolve().is_relative_to(base)
    prefix = folder.resolve().relative_to(base) if below else Path()
    with write_aside(out) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for image, value, width, count, content in labels.rows:
            interval = f"{width:.4f}" if np.isfinite(width) else ""
            writer.writerow([_name(prefix / image), f"{value:.4f}", interval, count, _name(prefix / content)])
    return out.parent if below else folder


def _name(path: Path) -> str:
    """A path as a cell that neither spreadsheets nor readers of CSV take for anything else."""
    name = path.as_posix()
    return f"./{name}" if name.startswith(_RISKY) or name.casefold().startswith("sep=") else name
