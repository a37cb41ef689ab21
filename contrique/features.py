"""Frozen two-scale features (paper, section III-D; spec section 5)."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contrique.config import FeaturesConfig
from contrique.errors import ContriqueError
from contrique.images import Picture, half_scale
from contrique.storage import write_aside

if TYPE_CHECKING:
    import pandas as pd

    from contrique.encoder import Encoder

FEATURES = "features.npz"
Features = NDArray[np.float32]


class ImageTooSmall(ContriqueError):
    """A picture with a side under encoder.MIN_SIDE pixels: nothing is left of it at half scale."""


def extract_one(picture: Picture, encoder: "Encoder", precision: str = "float32") -> Features:
    """f = [h(full), h(half)] of one whole picture, no crop.

    Args:
        picture: RGB. Shape (H, W, 3), uint8, H and W at least 64.
        encoder: in eval mode; its parameters are not touched.
        precision: `float32`, or `bfloat16` for autocast (faster, agrees to about 1e-2).
    Returns:
        Shape (2 * encoder.width,), float32; each half has norm 1.
    Raises:
        ImageTooSmall: a side is under 64 pixels.
    """
    import torch

    from contrique.encoder import MIN_SIDE

    height, width = picture.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageTooSmall(f"{width}x{height} is under {MIN_SIDE} pixels a side; give a larger picture")
    device = next(encoder.parameters()).device
    parts = []
    for scale in (picture, half_scale(picture)):
        pixels = torch.from_numpy(np.ascontiguousarray(scale)).to(device)
        # (H, W, 3) viewed as (1, 3, H, W) is channels_last already, the layout the convolutions are fastest in
        batch = pixels.permute(2, 0, 1)[None].float().div_(255)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            parts.append(encoder(batch)[0].float().cpu().numpy())
    return np.concatenate(parts)


def extract(pictures: Iterable[Picture], encoder: "Encoder", precision: str = "float32") -> Features:
    """`extract_one` of each picture; they may differ in size. Shape (N, 2 * encoder.width), float32."""
    rows = [extract_one(picture, encoder, precision) for picture in pictures]
    return np.stack(rows) if rows else np.empty((0, 2 * encoder.width), np.float32)


def extract_set(
    dataset: Path, distorted: Path, encoder: Path, out: Path, *, config: FeaturesConfig | None = None
) -> int:
    """Features of every picture whose label is used: the judged rows of `dataset`, weak-labelled rows of `distorted`.

    Weak labels of `pretrain` photographs serve the opinion-unaware figure, so they are left out without human labels.

    Args:
        dataset: a picture set.
        distorted: the picture set synthesized from it.
        encoder: a `.safetensors` file.
        out: folder to write: `manifest.parquet` and `features.npz` (arrays `features` and `images`), row by row alike.
        config: precision.
    Returns:
        the number of pictures.
    """
    import pandas as pd
    import torch

    from contrique.dataset import judged_rows, picture, read_manifest, write_manifest
    from contrique.encoder import load_encoder

    config = config or FeaturesConfig()
    net = load_encoder(encoder).to("cuda" if torch.cuda.is_available() else "cpu")
    given, made = read_manifest(dataset), read_manifest(distorted)
    judged = judged_rows(given)
    weak = made[made["weak_label"].notna() & (bool(len(judged)) | (made["split"] != "pretrain"))]
    rows = pd.concat([judged, weak], ignore_index=True)
    folders = [dataset] * len(judged) + [distorted] * len(weak)
    pictures = (picture(folder, row) for folder, row in zip(folders, rows.itertuples(), strict=True))
    features = extract(_progress(pictures, len(rows), "features"), net, config.precision)
    with write_aside(out) as aside:
        aside.mkdir()
        write_manifest(rows, aside)
        save_features(features, list(rows["image"]), aside / FEATURES)
    return len(rows)


def save_features(features: Features, images: Sequence[str], path: Path) -> None:
    """Write `features` (N, D) float32 and `images` (N,) as npz, whole or not at all."""
    with write_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, features=features, images=np.asarray(images, dtype=str))


def load_set(features: Path) -> "tuple[pd.DataFrame, Features]":
    """The manifest and the features of a feature set, row by row alike.

    Raises:
        DatasetError: they do not belong together.
    """
    from contrique.dataset import DatasetError, read_manifest

    manifest = read_manifest(features)
    try:
        with np.load(features / FEATURES, allow_pickle=False) as file:
            values, images = file["features"], file["images"]
    except (OSError, KeyError, ValueError) as error:
        raise DatasetError(f"{features / FEATURES}: not a readable feature file ({error}); extract again") from error
    if list(images) != list(manifest["image"]):
        raise DatasetError(f"{features}: manifest and features name different images; extract the features again")
    return manifest, values


def _progress(items: Iterator[Any], total: int, label: str) -> Iterator[Any]:
    from tqdm import tqdm

    yield from tqdm(items, total=total, desc=label, unit="img", file=sys.stderr, disable=None)
