"""Pictures on a page, drawn small: the sheet of distortions, the test pictures at the ends, pairs of pictures."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contrique.reports.facts import ReportError

if TYPE_CHECKING:
    import pandas as pd

    from contrique import images


TILE = (192, 144)  # width and height, in pixels, of a tile of the contact sheet, at the picture's own scale
THUMBNAIL = 240  # pixels of the longer side
PAIRED = 480  # likewise, of a picture beside another that it is compared with
PAIRED_MIDDLE = (256, 192)  # width and height, in pixels, of its middle at its own scale


@dataclass(frozen=True)
class Sheet:
    """The contact sheet of one photograph.

    Attributes:
        photograph: data URI of the whole of it.
        rows: distortion to (level, data URI of the middle of the picture at its own scale), levels rising.
    """

    photograph: str
    rows: dict[str, list[tuple[int, str]]]


@dataclass(frozen=True)
class JudgedPicture:
    """A picture of the test part.

    Attributes:
        uri: data URI of a thumbnail.
        content: which photograph it shows.
        version: its distortion and level, or its kind.
        predicted, label: by the challenger and as given, both on the labels' scale.
    """

    uri: str
    content: str
    version: str
    predicted: float
    label: float


@dataclass(frozen=True)
class RivalPicture:
    """A picture of the test part as two models see it.

    Attributes:
        whole, middle: data URIs of a thumbnail, and of the middle at the picture's own scale.
        name: what it shows, with its distortion and level.
        scores: of challenger and champion, 0 to 100.
        label: as given.
    """

    whole: str
    middle: str
    name: str
    scores: tuple[float, float]
    label: float


@dataclass(frozen=True)
class RivalPair:
    """Two pictures of the test part that one model calls equal and the other tells apart.

    Attributes:
        defender: which of challenger (0) and champion (1) calls them equal.
        worse, better: as the other one orders them.
    """

    defender: int
    worse: RivalPicture
    better: RivalPicture


def contact_sheet(distorted: Path) -> Sheet | None:
    """Every distortion of one photograph at every level, as small JPEGs.

    Args:
        distorted: synthesized picture set.
    Returns:
        the sheet, of the first photograph in order of name; None if the set holds no distorted picture.
    """
    from contrique.data.manifest import read_manifest, read_picture
    from contrique.distortions import NAMES
    from contrique.evaluation.extract import pick_sheet

    manifest = pick_sheet(read_manifest(distorted))
    rows = manifest[manifest["distortion"].isin(NAMES)].sort_values("level")
    if rows.empty:
        return None
    sheet: dict[str, list[tuple[int, str]]] = {name: [] for name in NAMES if name in set(rows["distortion"])}
    for row in rows.itertuples():
        sheet[str(row.distortion)].append((int(row.level), draw_middle(read_picture(distorted, row))))
    whole = manifest[manifest["distortion"] == ""]
    photograph = next((draw_thumbnail(read_picture(distorted, row)) for row in whole.itertuples()), "")
    return Sheet(photograph, sheet)


def extremes(scores: "pd.DataFrame", *sets: Path) -> dict[str, list[JudgedPicture]]:
    """The test pictures that the challenger puts highest and lowest, and those it is most wrong about.

    Args:
        scores: columns image, reference, distortion, label, challenger.
        sets: the picture sets that hold them.
    Returns:
        heading to at most `extract.EXTREMES` pictures, the most extreme first.
    Raises:
        ReportError: a picture is in none of the sets.
    """
    from contrique.evaluation.extract import pick_extremes

    find = _index_pictures(sets)

    def tile(row: Any) -> JudgedPicture:
        pixels, name = find(row)
        return JudgedPicture(draw_thumbnail(pixels), row.reference, name, float(row.challenger), float(row.label))

    return {heading: [tile(row) for row in rows.itertuples()] for heading, rows in pick_extremes(scores).items()}


def disagreements(scores: "pd.DataFrame", *sets: Path) -> list[RivalPair]:
    """The strongest pairs that challenger or champion calls equal and the other one tells apart.

    Args:
        scores: as `evaluation.evaluate_set` writes them.
        sets: the picture sets that hold them.
    Returns:
        at most `extract.DISAGREEMENTS` pairs, the strongest first; none without a champion.
    Raises:
        ReportError: a picture is in none of the sets.
    """
    from contrique.evaluation.extract import pick_disagreements

    find = _index_pictures(sets)

    def tile(row: Any) -> RivalPicture:
        pixels, version = find(row)
        points = float(row.challenger_points), float(row.champion_points)
        return RivalPicture(*draw_paired(pixels), f"{row.reference}, {version}", points, float(row.label))

    rows = list(scores.itertuples())
    return [
        RivalPair(defender, tile(rows[pair.worse]), tile(rows[pair.better]))
        for defender, pair in pick_disagreements(scores)
    ]


def _index_pictures(sets: Sequence[Path]) -> Callable[[Any], "tuple[images.Picture, str]"]:
    """What finds the pixels of a judged row, and its distortion and level, or its kind."""
    from contrique.data.manifest import read_manifest, read_picture

    rows_of = {
        (row.image, row.reference): (folder, row) for folder in sets for row in read_manifest(folder).itertuples()
    }

    def find(row: Any) -> "tuple[images.Picture, str]":
        if (row.image, row.reference) not in rows_of:
            raise ReportError(f"{row.image}: judged, but in none of {list(map(str, sets))}; evaluate those sets again")
        folder, source = rows_of[row.image, row.reference]
        return read_picture(folder, source), f"{row.distortion or source.kind} {source.level or ''}".strip()

    return find


def draw_thumbnail(pixels: "images.Picture", side: int = THUMBNAIL) -> str:
    """Data URI of a whole picture, its longer side at most `side` pixels."""
    from contrique.images import fit_within

    return _encode_jpeg(fit_within(pixels, side))


def draw_middle(pixels: "images.Picture", size: tuple[int, int] = TILE, quality: int = 85) -> str:
    """Data URI of the middle of a picture at its own scale, of at most that width and height, at a JPEG quality."""
    height, width = pixels.shape[:2]
    left, top = max(0, (width - size[0]) // 2), max(0, (height - size[1]) // 2)
    return _encode_jpeg(pixels[top : top + size[1], left : left + size[0]], quality)


def draw_paired(pixels: "images.Picture") -> tuple[str, str]:
    """Data URIs of a picture that is compared with another: the whole, and the middle with hardly any damage added."""
    return draw_thumbnail(pixels, PAIRED), draw_middle(pixels, PAIRED_MIDDLE, 95)


def _encode_jpeg(pixels: "images.Picture", quality: int = 85) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality)
    return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
