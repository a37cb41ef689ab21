"""The pictures of a folder that can be asked about: decoded by the guarded reader, measured by the model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contrique import images
from contrique.config import ServingLimits
from contrique.encoder.architectures import MIN_SIDE
from contrique.errors import ContriqueError
from contrique.files import StorageError, inside
from contrique.scoring.scorer import Scorer
from contrique.serving.decoder import Decoders
from contrique.text import escape_control
from contrique.walk import Skipped, walk_pictures


class RatingError(ContriqueError):
    """A session, an answer or a folder that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True)
class Candidate:
    """A picture that can be asked about.

    Attributes:
        image: its path below the folder, with `/`.
        sha256: of its file.
        phash: `images.perceptual_hash`.
        width, height: pixels, upright.
        score: of the model, 0 to 100; None if no model was asked.
    """

    image: str
    sha256: str
    phash: str
    width: int
    height: int
    score: float | None = None


def check_folder(folder: Path) -> None:
    """Refuse what is no folder."""
    if not folder.is_dir():
        raise RatingError(f"{folder}: no folder; give the folder of the pictures to rate")


def find_names(folder: Path, skipped: list[Skipped]) -> Iterator[str]:
    """Paths of the pictures below a folder, with `/`; those that no table could name are skipped."""
    for item in walk_pictures(folder):
        if isinstance(item, Skipped):
            skipped.append(item)
            continue
        name = item.relative_to(folder).as_posix()
        if reason := _find_fault(name):
            skipped.append(Skipped(item, reason, lost=True))
        else:
            yield name


def _find_fault(name: str) -> str:
    """Why a table of labels could not name a picture; else empty."""
    try:
        inside(name, "")
    except StorageError:
        return "whose names hold a backslash or a drive letter (rename them)"
    if escape_control(name) != name or name != name.strip():
        return "whose names hold control characters, or begin or end in white space (rename them)"
    return ""


def measure(
    folder: Path, names: Iterable[str], skipped: list[Skipped], limits: ServingLimits, scorer: Scorer | None
) -> Iterator[tuple[Candidate, NDArray[np.float32]]]:
    """Decode each picture, hash it and, with a model, score it; what cannot be shown or scored is skipped.

    Yields:
        the picture, and its features, shape (D,); D is 0 without a model.
    """
    decoders = Decoders(limits)
    try:
        for name in names:
            try:
                yield _measure(folder, name, decoders, scorer)
            except ContriqueError as error:
                reason = str(error).removeprefix(f"{name}: ").removeprefix(f"{folder / name}: ")
                skipped.append(Skipped(folder / name, reason, lost=True))
    finally:
        decoders.close()


def _measure(
    folder: Path, name: str, decoders: Decoders, scorer: Scorer | None
) -> tuple[Candidate, NDArray[np.float32]]:
    data = images.read_bytes(folder / name)
    pixels = decoders.decode(data, name)
    assert pixels is not None
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise RatingError(f"{name}: under {MIN_SIDE} pixels a side")
    facts = (name, images.content_hash(data), images.perceptual_hash(pixels), width, height)
    if scorer is None:
        return Candidate(*facts), np.empty(0, np.float32)
    features = scorer.features(pixels)
    return Candidate(*facts, scorer.contract(name, features).score), features
