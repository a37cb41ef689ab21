"""Picture sets: a folder with a Parquet manifest, its pictures as files or inside tar shards.

Every stage reads and writes this one form, so that any of them can be run, inspected and repeated alone.
"""

import os
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from contrique import images
from contrique.artifacts import MANIFEST
from contrique.errors import ContriqueError
from contrique.files import UNSAFE_NAME, StorageError, open_regular, write_aside
from contrique.text import escape_control

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
_MAX_MANIFEST = 2**33  # bytes
_FREE_ROWS, _ROW_BYTES = 100_000, 8  # each row's SHA-256 alone takes more
_FREE_BYTES, _RATIO = 2**26, 200
_MAX_TEXT = 32_767  # characters of a cell
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
    if not path.exists():
        raise DatasetError(f"{path}: no manifest there; give a picture set, or import the folder first")
    try:
        frame = _read_table(path)
    except DatasetError:
        raise
    except StorageError as error:
        raise DatasetError(str(error)) from error
    except Exception as error:  # pyarrow raises several types for a damaged file
        reason = " ".join(str(error).split())[:300]
        raise DatasetError(f"{path}: damaged manifest ({reason}); restore it with `dvc pull`") from error
    missing = [column for column in ("image", "sha256", "reference", "kind", "split") if column not in frame]
    if missing:
        raise DatasetError(f"{path}: columns {missing} are missing; build the manifest again")
    manifest = as_manifest(frame)
    for column in ("image", "shard"):
        names = manifest[column] if column == "image" else manifest.loc[manifest["shard"] != "", "shard"]
        unsafe = names[names.str.contains(UNSAFE_NAME, regex=True)]
        if len(unsafe):
            name = escape_control(unsafe.iloc[0][:200])
            raise DatasetError(
                f"{path}: row {unsafe.index[0]}, column {column}: the name '{name}' leads out of its folder; build the "
                "manifest again"
            )
    return manifest


def _read_table(path: Path) -> pd.DataFrame:
    """The known columns of a Parquet file, which must not claim to hold far more than its size allows.

    Text is read as codes for its distinct values: a megabyte can stand for terabytes.
    """
    import pyarrow.parquet as pq

    with open_regular(path, _MAX_MANIFEST) as source:
        size = os.fstat(source.fileno()).st_size
        names = [name for name in pq.read_schema(source).names if name in COLUMNS]
        file = pq.ParquetFile(source, read_dictionary=[name for name in names if COLUMNS[name] == "str"])
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        unpacked = sum(max(0, group.total_byte_size) for group in groups)
        if file.metadata.num_rows > _FREE_ROWS + size // _ROW_BYTES or unpacked > _FREE_BYTES + _RATIO * size:
            claim = f"{file.metadata.num_rows} rows and {unpacked} bytes in a file of {size} bytes"
            raise DatasetError(f"{path}: {claim} are no manifest; build it again")
        table = file.read(columns=names)
    for name in table.column_names:
        for chunk in table[name].chunks:
            values = getattr(chunk, "dictionary", None)
            if values is not None and len(values) and max(map(len, values.to_pylist())) > _MAX_TEXT:
                raise DatasetError(f"{path}: column {name} holds texts of over {_MAX_TEXT} characters; build it again")
    frame: pd.DataFrame = table.to_pandas()
    coded = {name: "str" for name in frame if isinstance(frame[name].dtype, pd.CategoricalDtype)}
    return frame.astype(coded)


def rows_of(manifest: pd.DataFrame) -> list[Any]:
    """The rows of a manifest as `Row`s."""
    return [Row(*values) for values in manifest[list(COLUMNS)].itertuples(index=False, name=None)]


def read_picture_bytes(directory: Path, row: Any) -> bytes:
    """The encoded bytes of one manifest row (a named tuple of `itertuples`), from its file or its shard.

    Raises:
        images.BadImage: the file or the shard is missing or shorter than the manifest says.
    """
    if not row.shard:
        try:
            return images.read_bytes(directory / str(row.image))
        except images.BadImage as error:
            raise images.BadImage(f"{error}, or restore it with `dvc pull`") from error
    path = directory / str(row.shard)
    if not 0 <= row.size <= images.MAX_BYTES or row.offset < 0:
        raise images.BadImage(f"{path}: {row.image} cannot have {row.size} bytes from {row.offset}; synthesize again")
    try:
        with open_regular(path, 2**63) as shard:
            data: bytes = os.pread(shard.fileno(), int(row.size), int(row.offset))
    except StorageError as error:
        raise images.BadImage(f"{error}, or synthesize the set again") from error
    except OSError as error:
        raise images.BadImage(f"{path}: cannot be read ({error.strerror}); synthesize the set again") from error
    if len(data) != row.size:
        raise images.BadImage(f"{path}: ends before {row.image}; synthesize the set again")
    return data


def read_picture(directory: Path, row: Any) -> images.Picture:
    """One manifest row's picture, RGB. Shape (H, W, 3), uint8."""
    return images.decode(read_picture_bytes(directory, row), picture_name(row)).pixels


def picture_name(row: Any) -> str:
    """What messages call a row's picture: its file, or its shard and the member of it."""
    return f"{row.shard}:{row.image}" if row.shard else str(row.image)


def inspect_file(path: Path) -> dict[str, Any]:
    """What a manifest row says of an image file: hash, size, channels, perceptual hash.

    Beside columns of a manifest it holds `content`, a hash of the decoded pixels, which a lossless conversion keeps.
    A file that cannot be decoded gives a row whose `error` says why, so that validation can name it.

    Raises:
        images.BadImage: the file cannot be read.
    """
    data = images.read_bytes(path)
    sha256 = images.content_hash(data)
    row: dict[str, Any] = {"sha256": sha256, "content": sha256}
    try:
        decoded = images.decode(data, path.name)
    except images.BadImage as error:
        return row | {"error": str(error)}
    height, width = decoded.pixels.shape[:2]
    return row | {
        "width": width,
        "height": height,
        "channels": decoded.channels,
        "content": images.content_hash(f"{width}x{height}:".encode() + decoded.pixels.tobytes()),
        "phash": images.perceptual_hash(decoded.pixels),
    }
