"""The page of a folder at a glance."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from contrique import images
from contrique.config import ValidationConfig
from contrique.files import write_aside
from contrique.regressor.head import DIRECTION, RANGE
from contrique.reports.render import render
from contrique.reports.tiles import draw_thumbnail
from contrique.scoring.overview import MOST_COMPARED, Observation, group_copies
from contrique.scoring.results import Failure

MAX_TILES: Final = 12  # pictures at each end, and groups of copies
_BARS: Final = 20  # of the histogram, 5 points each
_LINES: Final = 200  # of a table


@dataclass(frozen=True)
class Tile:
    """A picture on the page, by its name below the folder of all; `uri` is empty if the file has gone since."""

    uri: str
    name: str
    item: Observation


@dataclass(frozen=True)
class Group:
    """Pictures that have something in common."""

    name: str
    count: int
    median: float
    low: float
    high: float


def write_overview(out: Path, results: Sequence[Observation | Failure], skipped: str = "") -> None:
    """Write the page; it loads nothing from outside itself. Pictures that are shown are read again.

    Args:
        out: the HTML file.
        results: of `scoring.overview.observe`.
        skipped: what a folder held besides pictures, in words.
    Raises:
        OSError: the page cannot be written.
    """
    scored = [item for item in results if isinstance(item, Observation)]
    failures = [item for item in results if isinstance(item, Failure)]
    ranked = sorted(scored, key=lambda item: (item.score.score, item.score.path))
    half = min(MAX_TILES, (len(ranked) + 1) // 2)
    root = os.path.commonpath([Path(item.score.path).absolute().parent for item in scored]) if scored else ""

    def name(path: str | Path) -> str:
        return os.path.relpath(path, root)

    def draw(item: Observation) -> Tile:
        return Tile(_draw_thumbnail(item.score.path), name(item.score.path), item)

    copies = group_copies(scored, ValidationConfig.near_duplicate_bits)
    values = {
        "scored": scored,
        "failures": failures[:_LINES],
        "failed": len(failures),
        "skipped": skipped,
        "model": scored[0].score.model if scored else "",
        "labels": scored[0].score.labels if scored else "",
        "range": RANGE,
        "direction": DIRECTION,
        "median": median(item.score.score for item in scored) if scored else None,
        "unlike": sum(bool(item.score.warning) for item in scored),
        "bars": count_bars(scored),
        "root": root,
        "worst": [draw(item) for item in ranked[:half]],
        "best": [draw(item) for item in ranked[::-1][: len(ranked) - half][:MAX_TILES]],
        "tables": {
            "Likeliest fault": group_by([(item.fault.replace("_", " "), item) for item in scored if item.fault]),
            "Subfolder": group_by([(name(Path(item.score.path).parent), item) for item in scored]),
            "Month taken": group_by([(item.day[:7], item) for item in scored if item.day], by_name=True),
        },
        "copies": [
            (draw(group[0]), [(name(item.score.path), item.score.score) for item in group[1:]])
            for group in copies[:MAX_TILES]
        ],
        "copied": sum(len(group) - 1 for group in copies),
        "groups": len(copies),
        "compared": MOST_COMPARED if len(scored) > MOST_COMPARED else 0,
        "lines": _LINES,
    }
    with write_aside(out) as aside:
        aside.write_text(render("overview.html", values), encoding="utf-8")


def count_bars(scored: Sequence[Observation]) -> list[int]:
    """How many scores fall into each fifth of ten points. Length 20; the last one holds the highest score, too."""
    low, high = RANGE
    counts = [0] * _BARS
    for item in scored:
        counts[min(int((item.score.score - low) / (high - low) * _BARS), _BARS - 1)] += 1
    return counts


def group_by(pairs: Sequence[tuple[str, Observation]], *, by_name: bool = False) -> list[Group]:
    """Groups of pictures by a name, the largest first or in order of name; none if all have the same name."""
    scores: dict[str, list[float]] = {}
    for name, item in pairs:
        scores.setdefault(name, []).append(item.score.score)
    groups = [Group(name, len(own), median(own), min(own), max(own)) for name, own in scores.items()]
    ordered = sorted(groups, key=lambda group: group.name if by_name else (-group.count, group.name))
    return ordered if len(ordered) > 1 else []


def _draw_thumbnail(path: str) -> str:
    try:
        return draw_thumbnail(images.read(path))
    except images.BadImage:  # deleted or replaced since it was scored
        return ""
