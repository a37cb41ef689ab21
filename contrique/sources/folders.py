"""Folders of pictures, with or without scores, as manifest rows."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm import tqdm

from contrique import images
from contrique.artifacts import LABELS
from contrique.data.manifest import DatasetError, as_manifest, inspect_file
from contrique.data.splits import assign_splits


@dataclass(frozen=True)
class Source:
    """A folder to import and what its pictures are for.

    Attributes:
        path: a folder of images; a `labelled` one holds `labels.csv`.
        role: `labelled` pictures are judged; `pristine` and `authentic` ones only train the encoder.
    """

    path: Path
    role: Literal["labelled", "pristine", "authentic"]


def import_folder(source: Source) -> pd.DataFrame:
    """Manifest rows of a folder of images, `image` relative to it.

    A labelled folder's `labels.csv` has the columns image, mos or dmos, and optionally reference, distortion,
    level, split. DMOS (higher is worse) is mirrored within its own range, so that `mos` is always higher-is-better.
    Without `reference` each image is a content of its own. Without `split`, whole contents are assigned to train,
    validation and test by `assign_splits`. Unlabelled folders take every image file below them, split `pretrain`.

    Raises:
        DatasetError: no folder, no images, labels missing or unreadable, or a labelled image is absent.
    """
    folder = source.path
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; check the path")
    name = folder.resolve().name
    rows = read_labels(folder / LABELS) if source.role == "labelled" else _unlabelled_rows(folder, source.role)
    frame = describe_rows(rows, folder, name)
    if source.role == "labelled" and not frame["split"].astype(bool).any():
        frame["split"] = assign_splits(frame["reference"])
    return frame


def describe_rows(rows: Sequence[dict[str, Any]], folder: Path, name: str) -> pd.DataFrame:
    """Complete rows that name `image` and `reference` below a folder to a manifest, by `describe`.

    Args:
        rows: `image` relative to `folder`; `reference` tells the contents of this set apart.
        name: of the set; it becomes `dataset` and the front of `reference`.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        described = pool.map(lambda row: inspect_file(folder / row["image"]), rows)
        bar = tqdm(zip(rows, described, strict=True), name, len(rows), unit="picture", disable=None)
        return as_manifest(
            [row | {"dataset": name, "reference": f"{name}:{row['reference']}"} | facts for row, facts in bar]
        )


def _unlabelled_rows(folder: Path, role: str) -> list[dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in images.EXTENSIONS and p.is_file())
    if not files:
        raise DatasetError(f"{folder}: no image files below it; expected {', '.join(sorted(images.EXTENSIONS))}")
    relative = [p.relative_to(folder).as_posix() for p in files]
    return [{"image": path, "reference": path, "kind": role, "split": "pretrain"} for path in relative]


def read_labels(path: Path) -> list[dict[str, Any]]:
    """Manifest rows of a CSV file of scores (see `import_folder`); its images are relative to its own folder.

    Returns:
        rows with image, reference, kind, distortion, level, mos (higher is better) and split.
    Raises:
        DatasetError: it is missing, unreadable, lacks a column, or names an image that is not there.
    """
    folder = path.parent
    if not path.is_file():
        raise DatasetError(
            f"{path}: not found; a labelled folder needs it with columns image and mos (or dmos). "
            "Pass a folder without scores as --pristine or --authentic"
        )
    try:
        labels = pd.read_csv(path, dtype=dict.fromkeys(("image", "reference", "distortion", "split"), "str"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a readable CSV file ({error})") from error
    score = next((column for column in ("mos", "dmos") if column in labels), None)
    if "image" not in labels or score is None:
        raise DatasetError(f"{path}: needs the columns image and mos (or dmos), has {list(labels.columns)}")
    scores = pd.to_numeric(labels[score], errors="coerce").astype(float)
    if score == "dmos":
        scores = scores.max() + scores.min() - scores
    absent = [name for name in labels["image"] if not (folder / str(name)).is_file()]
    if absent:
        raise DatasetError(f"{path}: {len(absent)} images are not in the folder, first {absent[:3]}; restore or remove")
    text = {
        column: labels[column].fillna("") if column in labels else pd.Series("", index=labels.index)
        for column in ("image", "reference", "distortion", "split")
    }
    levels = pd.to_numeric(labels.get("level", pd.Series(0, labels.index)), errors="coerce").fillna(0).astype(int)
    return [
        {
            "image": text["image"][i],
            "reference": text["reference"][i] or text["image"][i],
            "kind": "distorted" if text["distortion"][i] else "authentic",
            "distortion": text["distortion"][i],
            "level": int(levels[i]),
            "mos": scores[i],
            "split": text["split"][i],
        }
        for i in labels.index
    ]
