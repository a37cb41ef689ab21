"""Pictures beside their reference: how much of its quality is left (full reference; paper, section IV-E)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from contrique import images
from contrique.errors import ContriqueError
from contrique.regressor.full_reference import FullReference
from contrique.regressor.head import DIRECTION, RANGE
from contrique.scoring.inputs import find_images
from contrique.scoring.results import Failure
from contrique.scoring.scorer import Scorer


class CompareError(ContriqueError):
    """Two pictures that are no version of each other."""


@dataclass(frozen=True)
class Comparison:
    """How near a picture comes to its reference.

    Attributes:
        path: the picture.
        reference: what it was compared with.
        score: in `range`; exactly the highest for identical pictures, and never above it.
        raw: the same on the scale of the labels that the head was fitted to.
        model: version in the registry, or `bundled`.
        range: lowest and highest possible `score`.
        direction: `higher is better`.
    """

    path: str
    reference: str
    score: float
    raw: float
    model: str
    range: tuple[float, float] = RANGE
    direction: str = DIRECTION


def compare(
    scorer: Scorer, head: FullReference, reference: Path, paths: Iterable[str | Path]
) -> Iterator[Comparison | Failure]:
    """Score pictures by the distance of their features to those of one reference.

    Args:
        scorer: computes the features.
        head: fitted on features of the same encoder.
        reference: the undistorted picture.
        paths: versions of it, as `find_images` takes them; each of the reference's size.
    Yields:
        a result a picture, in order; one that cannot be read, or has another size, is a Failure.
    Raises:
        BadImage: the reference cannot be read.
        ImageTooSmall: the reference has a side under 64 pixels.
    """
    original = images.read(str(reference))
    anchor = scorer.features(original)
    for item in find_images(paths):
        if isinstance(item, Failure):
            yield item
            continue
        try:
            picture = images.read(str(item))
            if picture.shape != original.shape:
                sizes = [f"{shape[1]}x{shape[0]}" for shape in (picture.shape, original.shape)]
                raise CompareError(f"{item}: is {sizes[0]} and {reference} is {sizes[1]}; bring them to one size")
            raw = head.predict(scorer.features(picture)[None], anchor[None])
        except ContriqueError as error:
            yield Failure.of(str(item), error)
            continue
        yield Comparison(str(item), str(reference), float(head.to_points(raw)[0]), float(raw[0]), scorer.version)
