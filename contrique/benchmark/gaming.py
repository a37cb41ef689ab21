"""A model under attack on files: how far its scores rise without a better picture, as a table."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrique import images
from contrique.encoder.features import check_size
from contrique.errors import ContriqueError
from contrique.evaluation.gaming import NAMES, Rise, cut_middle, measure_rises, pick_sample
from contrique.metrics import MIN_CONTENTS, EvaluationError
from contrique.scoring.inputs import find_images
from contrique.scoring.results import Failure

if TYPE_CHECKING:
    from contrique.config import EvaluationConfig
    from contrique.images import Picture
    from contrique.scoring.scorer import Scorer


@dataclass(frozen=True)
class AttackTable:
    """Attacks on one model.

    Attributes:
        model, labels: as `Scorer.version` and `Scorer.labels`.
        pictures: attacked.
        side: pixels to which the middle of each was cut.
        seed, resamples, confidence: of the sample and of the bootstrap over pictures.
        rises: attack to what it did.
        failures: pictures that could not be read.
    """

    model: str
    labels: str
    pictures: int
    side: int
    seed: int
    resamples: int
    confidence: float
    rises: dict[str, Rise]
    failures: list[Failure]

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return asdict(self)


def attack_files(
    model: "Scorer",
    paths: Iterable[str | Path],
    *,
    config: "EvaluationConfig",
    seed: int,
    names: Sequence[str] = NAMES,
) -> AttackTable:
    """Attack a model on a sample of pictures; each picture counts as a content of its own.

    Args:
        model: ready to score; the gradient is of its encoder in PyTorch.
        paths: files, folders and globs, as `find_images` takes them.
        config: how many pictures, to what side they are cut, and the bootstrap.
        seed: of the sample and of the bootstrap.
        names: of the attacks, of NAMES.
    Raises:
        EvaluationError: fewer than three pictures could be read.
    """
    from tqdm import tqdm

    files: list[Path] = []
    failures: list[Failure] = []
    for item in find_images(paths):
        if isinstance(item, Failure):
            failures.append(item)
        else:
            files.append(item)
    pictures: list[Picture] = []
    for number in pick_sample(len(files), config.gaming_pictures, seed):
        try:
            picture = images.read(files[number])
            check_size(picture)
        except ContriqueError as error:
            failures.append(Failure.of(str(files[number]), error))
        else:
            pictures.append(cut_middle(picture, config.gaming_side))
    if len(pictures) < MIN_CONTENTS:
        reason = f", the first that fails: {failures[0].error}" if failures else ""
        raise EvaluationError(f"{len(pictures)} pictures to attack{reason}; give at least {MIN_CONTENTS}")
    rises: dict[str, Rise] = {}
    for name in tqdm(names, desc=f"attack {model.version}", unit="attack", file=sys.stderr, disable=None):
        rises |= measure_rises(
            model,
            pictures,
            [str(i) for i in range(len(pictures))],
            names=[name],
            resamples=config.resamples,
            confidence=config.confidence,
            seed=seed,
            fidelity=True,
        )
    return AttackTable(
        model.version,
        model.labels,
        len(pictures),
        config.gaming_side,
        seed,
        config.resamples,
        config.confidence,
        rises,
        failures,
    )
