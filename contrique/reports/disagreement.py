"""Two models on pictures that nobody rated: the pairs on which they differ most, and a page to look at them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contrique.evaluation.disagreement import LEVELS, PAIRS, TOLERANCE, find_pairs
from contrique.files import write_aside
from contrique.metrics import EvaluationError, srcc
from contrique.reports.render import render
from contrique.reports.tiles import draw_paired
from contrique.scoring.results import Failure, Score

if TYPE_CHECKING:
    from contrique.scoring.scorer import Scorer

NAMES: Final = ("A", "B")  # two models may have one name


@dataclass(frozen=True)
class ScoredPicture:
    """A picture and its scores by A and by B, 0 to 100."""

    path: str
    scores: tuple[float, float]


@dataclass(frozen=True)
class ScoredPair:
    """Two pictures that the defender calls equal and the attacker tells apart.

    Attributes:
        defender, attacker: `A` or `B`.
        level: `low`, `middle` or `high`: which third of the pictures they are of, by the defender's scores.
        gap: points by which the attacker puts `better` above `worse`.
    """

    defender: str
    attacker: str
    level: str
    gap: float
    worse: ScoredPicture
    better: ScoredPicture


@dataclass(frozen=True)
class Disagreement:
    """Two models on the same pictures.

    Attributes:
        models: names of A and B.
        labels: what each learned from: `human` or `weak`.
        pictures: that both scored.
        srcc: rank correlation of the two models' scores; None where it is undefined.
        tolerance: points within which a defender calls two pictures equal.
        pairs: A defends first, then B; by level from low to high; the widest gap first.
        failures: pictures that one of the models could not score.
    """

    models: tuple[str, str]
    labels: tuple[str, str]
    pictures: int
    srcc: float | None
    tolerance: float
    pairs: list[ScoredPair]
    failures: list[Failure]

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return asdict(self)


def find_disagreement(
    models: "tuple[Scorer, Scorer]",
    paths: Iterable[str | Path],
    *,
    tolerance: float = TOLERANCE,
    count: int = PAIRS,
) -> Disagreement:
    """Score pictures with two models and find the pairs on which they differ most, in both directions.

    Args:
        models: A and B, ready to score.
        paths: files, folders and globs, as `find_images` takes them.
        tolerance, count: as `evaluation.disagreement.find_pairs`.
    Raises:
        EvaluationError: fewer than two pictures that both models score.
    """
    failures: list[Failure] = []
    first = dict(_score(models[0], paths, failures))
    second = dict(_score(models[1], list(first), failures))
    pictures = [ScoredPicture(path, (first[path], score)) for path, score in second.items()]
    if len(pictures) < 2:
        reason = f", the first that fails: {failures[0].error}" if failures else ""
        raise EvaluationError(f"{len(pictures)} pictures that both models score{reason}; give at least 2")
    scores = [[picture.scores[i] for picture in pictures] for i in (0, 1)]
    pairs = [
        ScoredPair(
            NAMES[defender],
            NAMES[1 - defender],
            pair.level,
            pair.gap,
            pictures[pair.worse],
            pictures[pair.better],
        )
        for defender in (0, 1)
        for pair in find_pairs(scores[defender], scores[1 - defender], tolerance=tolerance, count=count)
    ]
    return Disagreement(
        (models[0].version, models[1].version),
        (models[0].labels, models[1].labels),
        len(pictures),
        _correlate(*scores),
        tolerance,
        pairs,
        failures,
    )


def _score(model: "Scorer", paths: Iterable[str | Path], failures: list[Failure]) -> Iterator[tuple[str, float]]:
    """Path and score of each picture; what cannot be scored goes to `failures`."""
    import sys

    from tqdm import tqdm

    results = model.score_paths(paths)
    for item in tqdm(results, desc=f"score by {model.version}", unit="img", file=sys.stderr, disable=None):
        if isinstance(item, Score):
            yield item.path, item.score
        else:
            failures.append(item)


def _correlate(first: Sequence[float], second: Sequence[float]) -> float | None:
    try:
        return srcc(first, second)
    except EvaluationError:  # of two pictures, or of a model that gives all the same score: there is none to show
        return None


def write_page(out: Path, disagreement: Disagreement) -> None:
    """Write the pairs as one HTML page that loads nothing from outside itself; each picture whole and at its own scale.

    Raises:
        BadImage: a picture has gone since it was scored.
    """
    from contrique import images

    def draw(picture: ScoredPicture) -> dict[str, Any]:
        whole, middle = draw_paired(images.read(picture.path))
        return asdict(picture) | {"whole": whole, "middle": middle}

    directions = [
        {
            "defender": NAMES[defender],
            "attacker": NAMES[1 - defender],
            "levels": {
                level: [
                    {"gap": pair.gap, "pictures": [draw(pair.worse), draw(pair.better)]}
                    for pair in disagreement.pairs
                    if (pair.defender, pair.level) == (NAMES[defender], level)
                ]
                for level in LEVELS
            },
        }
        for defender in (0, 1)
    ]
    html = render("disagreement.html", disagreement.as_dict() | {"names": NAMES, "directions": directions})
    with write_aside(out) as aside:
        aside.write_text(html, encoding="utf-8")
