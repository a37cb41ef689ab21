"""Pictures of a run, drawn small: the sheet of distortions, and the test pictures at the ends."""

import base64
import io
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
        middle = _encode_jpeg(_crop_middle(read_picture(distorted, row)))
        sheet[str(row.distortion)].append((int(row.level), middle))
    whole = manifest[manifest["distortion"] == ""]
    photograph = next((_draw_thumbnail(read_picture(distorted, row)) for row in whole.itertuples()), "")
    return Sheet(photograph, sheet)


def _crop_middle(pixels: "images.Picture") -> "images.Picture":
    height, width = pixels.shape[:2]
    left, top = max(0, (width - TILE[0]) // 2), max(0, (height - TILE[1]) // 2)
    return pixels[top : top + TILE[1], left : left + TILE[0]]


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
    from contrique.data.manifest import read_manifest, read_picture
    from contrique.evaluation.extract import pick_extremes

    rows_of = {
        (row.image, row.reference): (folder, row) for folder in sets for row in read_manifest(folder).itertuples()
    }

    def tile(row: Any) -> JudgedPicture:
        if (row.image, row.reference) not in rows_of:
            raise ReportError(f"{row.image}: judged, but in none of {list(map(str, sets))}; evaluate those sets again")
        folder, source = rows_of[row.image, row.reference]
        name = f"{row.distortion or source.kind} {source.level or ''}".strip()
        uri = _draw_thumbnail(read_picture(folder, source))
        return JudgedPicture(uri, row.reference, name, float(row.challenger), float(row.label))

    return {heading: [tile(row) for row in rows.itertuples()] for heading, rows in pick_extremes(scores).items()}


def _draw_thumbnail(pixels: "images.Picture") -> str:
    from contrique.images import fit_within

    return _encode_jpeg(fit_within(pixels, THUMBNAIL))


def _encode_jpeg(pixels: "images.Picture") -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
