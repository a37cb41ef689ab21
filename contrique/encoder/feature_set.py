"""Features of whole picture sets, kept in files."""

import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contrique.artifacts import FEATURES
from contrique.config import FeaturesConfig
from contrique.encoder.features import Features, extract_batch
from contrique.files import write_aside

if TYPE_CHECKING:
    import pandas as pd


def extract_set(
    dataset: Path,
    distorted: Path,
    encoder: Path,
    out: Path,
    *,
    config: FeaturesConfig | None = None,
    part: tuple[int, int] = (0, 1),
) -> int:
    """Features of every picture whose label is used: the judged rows of `dataset`, weak-labelled rows of `distorted`.

    Args:
        dataset: a picture set.
        distorted: the picture set synthesized from it.
        encoder: a `.safetensors` file.
        out: folder to write: `manifest.parquet` and `features.npz` (arrays `features` and `images`), row by row alike.
        config: precision, and what runs the encoder.
        part: (k, n) takes the k-th of n equal runs of the rows, for `join_sets` to join with the others.
    Returns:
        the number of pictures.
    """
    import pandas as pd

    from contrique.data.manifest import read_manifest, read_picture, write_manifest
    from contrique.data.splits import judged_rows
    from contrique.encoder.parity import load_backend
    from contrique.encoder.weights import EncoderFile

    config = config or FeaturesConfig()
    file = EncoderFile(encoder)
    # there is no head yet whose scores could be compared: features alone are
    _, backend = load_backend(config.backend, file, config.precision, lambda features: np.zeros(len(features)))
    labelled, synthesized = read_manifest(dataset), read_manifest(distorted)
    judged = judged_rows(labelled)
    weak = synthesized[synthesized["weak_label"].notna()]
    rows = pd.concat([judged, weak], ignore_index=True)
    folders = [dataset] * len(judged) + [distorted] * len(weak)
    mine = slice(*(len(rows) * k // part[1] for k in (part[0], part[0] + 1)))
    rows, folders = rows[mine], folders[mine]
    pictures = (read_picture(folder, row) for folder, row in zip(folders, rows.itertuples(), strict=True))
    batches = [extract_batch(picture[None], backend) for picture in _show_progress(pictures, len(rows), "features")]
    features = np.concatenate([np.empty((0, 2 * file.width), np.float32), *batches])
    with write_aside(out) as aside:
        aside.mkdir()
        write_manifest(rows, aside)
        save_features(features, list(rows["image"]), aside / FEATURES)
    return len(rows)


def join_sets(parts: Sequence[Path], out: Path) -> int:
    """Join the feature sets of the parts, in order; the same as one call of `extract_set` for everything.

    Returns:
        the number of pictures.
    Raises:
        DatasetError: a part is damaged.
    """
    import pandas as pd

    from contrique.data.manifest import write_manifest

    manifests, features = zip(*(load_set(part) for part in parts), strict=True)
    rows = pd.concat(manifests, ignore_index=True)
    with write_aside(out) as aside:
        aside.mkdir()
        write_manifest(rows, aside)
        save_features(np.concatenate(features), list(rows["image"]), aside / FEATURES)
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
    from contrique.data.manifest import DatasetError, read_manifest

    manifest = read_manifest(features)
    try:
        with np.load(features / FEATURES, allow_pickle=False) as file:
            values, images = file["features"], file["images"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{features / FEATURES}: not a readable feature file ({error}); extract again") from error
    if list(images) != list(manifest["image"]):
        raise DatasetError(f"{features}: manifest and features name different images; extract the features again")
    return manifest, values


def _show_progress(items: Iterator[Any], total: int, label: str) -> Iterator[Any]:
    from tqdm import tqdm

    yield from tqdm(items, total=total, desc=label, unit="img", file=sys.stderr, disable=None)
