"""Arrays of an `.npz` that somebody hands in: without pickles, bounded, and of the type and shape that are expected."""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from contrique.files import StorageError, read_regular

Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path, limit: int) -> Arrays:
    """Every array of an `.npz`, without pickles; what it claims to hold is added up before memory is asked for.

    Raises:
        StorageError: as `read_regular`, or it unpacks to over `limit` bytes.
        ValueError, zipfile.BadZipFile and others: damaged, or holds Python objects.
    """
    arrays, total = {}, 0
    with zipfile.ZipFile(io.BytesIO(read_regular(path, limit))) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = npy.read_magic(member)
                read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read_header(member)
            total += math.prod(shape) * max(1, dtype.itemsize)
            if total > limit:
                raise StorageError(f"{path}: unpacks to over {limit} bytes, more than such a file may have")
            with archive.open(name) as member:  # anew: after a seek the checksum is no longer looked at
                arrays[name.removesuffix(".npy")] = npy.read_array(member, allow_pickle=False)
                if member.read(1):  # at the end the checksum is
                    raise StorageError(f"{path}: {name} is longer than its header says")
    return arrays


def pick_array(
    arrays: Arrays, name: str, kind: type[np.generic], shape: tuple[int | None, ...], max_rows: int = 0, least: int = 1
) -> NDArray[Any]:
    """One of the arrays, as native `kind`.

    Args:
        arrays: by name.
        name: of it.
        kind: expected; floats may be of another width.
        shape: expected; None stands for `least` to `max_rows`.
        max_rows, least: see `shape`.
    Raises:
        ValueError: it is absent, of another kind or shape, or holds NaN or infinite values.
    """
    if name not in arrays:
        raise ValueError(f"no {name}")
    array = arrays[name]
    expected = np.dtype(kind)
    if array.dtype.kind != expected.kind or (expected.kind == "f" and array.dtype.itemsize > 8):
        raise ValueError(f"{name} holds {array.dtype}, expected {expected}")
    fits = len(array.shape) == len(shape) and all(
        least <= size <= max_rows if exact is None else size == exact
        for size, exact in zip(array.shape, shape, strict=True)
    )
    if not fits:
        pattern = ", ".join("N" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {array.shape}, expected ({pattern})")
    if expected.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(kind, copy=False)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    return np.ascontiguousarray(array).reshape(array.shape)


def pick_number(arrays: Arrays, name: str) -> float:
    """One of the arrays that is a single number. Raises as `pick_array`."""
    return float(pick_array(arrays, name, np.float64, ()))
