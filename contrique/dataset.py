"""Picture sets: a folder with a Parquet manifest, its pictures as files or inside tar shards.

Every stage reads and writes this one form, so that any of them can be run, inspected and repeated alone.
"""

import hashlib
import os
from collections import namedtuple
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm import tqdm

from contrique import images
from contrique.errors import ContriqueError
from contrique.storage import write_aside

MANIFEST = "manifest.parquet"
LABELS = "labels.csv"

Kind = Literal["pristine", "authentic", "distorted"]
Split = Literal["pretrain", "train", "validation", "test"]
KINDS = ("pristine", "authentic", "distorted")
SPLITS = ("pretrain", "train", "validation", "test")

# column -> dtype. `image` is relative to the folder, or a member of `shard` where that is not empty.
COLUMNS: dict[str, str] = {
    "image": "str",
    "sha256": "str",
    "dataset": "str",
    "reference": "str",
    "kind": "str",
    "distortion": "str",
    "level": "int64",
    "mos": "float64",
    "weak_label": "float64",
    "split": "str",
    "width": "int64",
    "height": "int64",
    "channels": "int64",
    "phash": "str",
    "source": "str",
    "licence": "str",
    "error": "str",
    "shard": "str",
    "offset": "int64",
    "size": "int64",
}
_DEFAULTS: dict[str, Any] = {"str": "", "int64": 0, "float64": float("nan")}


# a manifest row outside pandas; unlike the named tuples of `itertuples` it can be sent to another process
Row = namedtuple("Row", list(COLUMNS))  # type: ignore[misc]


class DatasetError(ContriqueError):
    """A picture set that cannot be used as it is; the message names the file and the remedy."""


def as_manifest(rows: Sequence[dict[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """A manifest with every column of COLUMNS, in order and typed; missing ones take their empty value.

    Raises:
        DatasetError: a column holds values of another type.
    """
    frame = pd.DataFrame(rows).reset_index(drop=True)
    typed = {}
    for column, dtype in COLUMNS.items():
        values = frame[column] if column in frame else pd.Series(_DEFAULTS[dtype], index=frame.index)
        try:
            typed[column] = (
                values.fillna(_DEFAULTS[dtype]).astype(dtype) if dtype != "float64" else values.astype(dtype)
            )
        except (TypeError, ValueError) as error:
            raise DatasetError(f"manifest column '{column}' must be {dtype}: {error}") from error
    return pd.DataFrame(typed)


def write_manifest(frame: pd.DataFrame, directory: Path) -> None:
    """Write `directory/manifest.parquet`, whole or not at all; the same rows give the same bytes."""
    with write_aside(directory / MANIFEST) as aside:
        as_manifest(frame).to_parquet(aside, index=False, compression="zstd")


def read_manifest(directory: Path) -> pd.DataFrame:
    """Read the manifest of a picture set.

    Raises:
        DatasetError: there is none, it is damaged, or columns are missing.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise DatasetError(f"{path}: no manifest there; give a picture set, or import the folder first")
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises several types for a damaged file
        raise DatasetError(f"{path}: damaged manifest ({error}); restore it with `dvc pull`") from error
    missing = [column for column in ("image", "sha256", "reference", "kind", "split") if column not in frame]
    if missing:
        raise DatasetError(f"{path}: columns {missing} are missing; build the manifest again")
    return as_manifest(frame)


def rows_of(manifest: pd.DataFrame) -> list[Any]:
    """The rows of a manifest as `Row`s."""
    return [Row(*values) for values in manifest[list(COLUMNS)].itertuples(index=False, name=None)]


def picture_bytes(directory: Path, row: Any) -> bytes:
    """The encoded bytes of one manifest row (a named tuple of `itertuples`), from its file or its shard.

    Raises:
        images.BadImage: the file or the shard is missing or shorter than the manifest says.
    """
    if not row.shard:
        path = directory / str(row.image)
        try:
            return path.read_bytes()
        except OSError as error:
            raise images.BadImage(f"{path}: cannot be read ({error.strerror}); restore it with `dvc pull`") from error
    path = directory / str(row.shard)
    try:
        with path.open("rb") as shard:
            data: bytes = os.pread(shard.fileno(), int(row.size), int(row.offset))
    except OSError as error:
        raise images.BadImage(f"{path}: cannot be read ({error.strerror}); synthesize the set again") from error
    if len(data) != row.size:
        raise images.BadImage(f"{path}: ends before {row.image}; synthesize the set again")
    return data


def picture(directory: Path, row: Any) -> images.Picture:
    """One manifest row's picture, RGB. Shape (H, W, 3), uint8."""
    return images.decode(picture_bytes(directory, row), picture_name(row)).pixels


def picture_name(row: Any) -> str:
    """What messages call a row's picture: its file, or its shard and the member of it."""
    return f"{row.shard}:{row.image}" if row.shard else str(row.image)


def describe(path: Path) -> dict[str, Any]:
    """What a manifest row says of an image file: hash, size, channels, perceptual hash.

    A file that cannot be decoded gives a row whose `error` says why, so that validation can name it.
    """
    data = path.read_bytes()
    row: dict[str, Any] = {"sha256": images.content_hash(data)}
    try:
        decoded = images.decode(data, path.name)
    except images.BadImage as error:
        return row | {"error": str(error)}
    height, width = decoded.pixels.shape[:2]
    return row | {
        "width": width,
        "height": height,
        "channels": decoded.channels,
        "phash": images.perceptual_hash(decoded.pixels),
    }


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
        described = pool.map(lambda row: describe(folder / row["image"]), rows)
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


def assign_splits(references: pd.Series, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)) -> pd.Series:
    """Assign whole contents to train, validation and test, the same whatever the order of the rows.

    The part of a content follows from a hash of its name alone, so that a set may grow and none of its contents moves:
    one that a champion was trained on does not come into the test part of its challenger. Only where chance leaves
    the test or validation part less than half of its share of the rows, as it may with few contents, do the next by
    hash join it.

    Args:
        references: the content of each row.
        fractions: probabilities of train, validation and test for a content; they sum to 1.
    Returns:
        the split of each row, index as given.
    Raises:
        DatasetError: fewer than three contents.
    """
    place = {name: int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64 for name in set(references)}
    if len(place) < 3:
        raise DatasetError(f"{len(place)} contents cannot be split into train, validation and test; give at least 3")
    ranked = sorted(place, key=lambda name: (place[name], name))
    _, validation, test = fractions
    sizes = references.value_counts()

    def end(start: int, below: float, share: float, last: int) -> int:
        stop = min(start + sum(place[name] < below for name in ranked[start:]), last)
        while stop < last and sizes[ranked[start:stop]].sum() < share * len(references) / 2:
            stop += 1
        return stop

    tested = end(0, test, test, len(ranked) - 2)
    held = end(tested, test + validation, validation, len(ranked) - 1)
    parts = ["test"] * tested + ["validation"] * (held - tested) + ["train"] * (len(ranked) - held)
    return references.map(dict(zip(ranked, parts, strict=True))).astype("str")


def judged_rows(manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows whose labels judge the model: outside `pretrain`, with a MOS or, failing any MOS, a weak label."""
    rows = manifest[manifest["split"] != "pretrain"]
    labelled = rows[rows["mos"].notna()]
    return labelled if len(labelled) else rows[rows["weak_label"].notna()]


def label_kind(manifest: pd.DataFrame) -> tuple[str, str]:
    """Which labels judge a set and their column: ("human", "mos") if any judged row has a MOS, else weak labels."""
    human = bool((manifest["mos"].notna() & (manifest["split"] != "pretrain")).any())
    return ("human", "mos") if human else ("weak", "weak_label")


def pretrain_rows(manifest: pd.DataFrame) -> pd.DataFrame:
    """The `pretrain` rows with a weak label: a regressor may be fitted to them, nothing is judged by them."""
    return manifest[manifest["weak_label"].notna() & (manifest["split"] == "pretrain")]


def class_ids(values: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Integer ids of strings, numbered in sorted order. Shape (N,), int64."""
    return np.unique(np.asarray(values, dtype=str), return_inverse=True)[1].astype(np.int64)


def near_duplicates(
    hashes_a: Sequence[str],
    hashes_b: Sequence[str],
    bits: int,
    *,
    flip: Literal["", "horizontal", "vertical", "both"] = "",
    apart: tuple[Sequence[str], Sequence[str]] | None = None,
) -> list[tuple[int, int]]:
    """Pairs of pictures whose perceptual hashes differ in at most `bits` of 64.

    A flip of the picture turns the sign of every other DCT coefficient, so that the hash of the flipped picture is
    known from the hash alone but for the few bits near the median (on 250 photographs: 3 bits on average, 12 at most;
    two different photographs differ in 14 or more).

    Args:
        hashes_a, hashes_b: `images.perceptual_hash` of each picture; an empty one (undecodable) matches nothing.
        bits: the largest difference that counts as a near-duplicate.
        flip: compare the pictures of a with those of b flipped.
        apart: a group of each picture of a and of b; only pairs from different groups are given.
    Returns:
        pairs (index in a, index in b), in order.
    """
    rows_a = np.flatnonzero([bool(value) for value in hashes_a])
    rows_b = np.flatnonzero([bool(value) for value in hashes_b])
    a, b = _hash_codes(filter(None, hashes_a)), _hash_codes(filter(None, hashes_b)) ^ _FLIPPED[flip]
    ids = (
        class_ids([*apart[0], *apart[1]]) if apart else np.r_[np.zeros(len(hashes_a), int), np.ones(len(hashes_b), int)]
    )
    groups_a, groups_b = ids[: len(hashes_a)][rows_a], ids[len(hashes_a) :][rows_b]
    pairs = []
    block = max(1, 2**22 // max(1, len(b)))
    for start in range(0, len(a), block):
        rows = slice(start, start + block)
        close = (np.bitwise_count(a[rows, None] ^ b) <= bits) & (groups_a[rows, None] != groups_b)
        pairs += [(int(rows_a[start + i]), int(rows_b[j])) for i, j in np.argwhere(close)]
    return pairs


def _hash_codes(hashes: Iterable[str]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array([int(value, 16) for value in hashes], dtype=np.uint64)


# flip -> bits of a perceptual hash, row by row from the highest, whose coefficient changes sign
_FLIPPED = {
    "": np.uint64(0),
    "horizontal": np.uint64(0x5555555555555555),
    "vertical": np.uint64(0x00FF00FF00FF00FF),
    "both": np.uint64(0x55AA55AA55AA55AA),
}
