"""Decoded pictures that all loader processes share."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contrique.errors import ContriqueError
from contrique.images import Picture, half_scale

_SHARE = 0.75  # of the free space: what else is written to the folder meanwhile needs room, too


class PictureSource(Protocol):
    """Pictures by row number, and height and width of each."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Picture: ...

    def size(self, row: int, /) -> tuple[int, int]: ...


class PictureCache:
    """Pictures at both scales, decoded once for all loader processes, which map one file.

    To read, decode and halve a picture costs 30 times as much as to cut two views from it. The file has no name, so
    nothing is left of it however the run ends.

    Args:
        pictures: source of the pictures.
        folder: of the file, which grows to 1.25 times the size of the pixels; on /dev/shm it is in memory.
        room: bytes that the file may take; pictures beyond it are decoded each time.
    """

    def __init__(self, pictures: PictureSource, folder: str, room: int) -> None:
        self.pictures, self.room = pictures, room
        self.sizes = [pictures.size(row) for row in range(len(pictures))]
        # the file begins with one byte per picture, which says whether it is there
        self.ends = np.cumsum([3 * (h * w + (h // 2) * (w // 2)) for h, w in self.sizes]) + len(pictures)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (open as long as this object lives)
        self._file.truncate(int(self.ends[-1]))
        self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        self._bytes: NDArray[np.uint8] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_bytes": None}

    def __getitem__(self, row: int) -> tuple[Picture, Picture | None]:
        """The picture and its half scale, or None for a picture that is not in the file. Both are read-only views."""
        if self.ends[row] > self.room:
            return self.pictures[row], None
        if self._bytes is None:
            self._bytes = np.memmap(self.path, np.uint8, "r+")
        height, width = self.sizes[row]
        end, middle = self.ends[row], self.ends[row] - 3 * (height // 2) * (width // 2)
        full = self._bytes[middle - 3 * height * width : middle].reshape(height, width, 3)
        half = self._bytes[middle:end].reshape(height // 2, width // 2, 3)
        if not self._bytes[row]:
            picture = self.pictures[row]
            if picture.shape != full.shape:  # the manifest is wrong
                return picture, None
            full[:], half[:] = picture, half_scale(picture)
            self._bytes[row] = 1  # two processes at once write the same bytes
        full.flags.writeable = half.flags.writeable = False
        return full, half


def measure_room(folder: str, in_advance: int, sharing: int) -> int:
    """Bytes that a cache may take.

    Args:
        folder: of the cache, `pretrain.cache`.
        in_advance: bytes of the batches that the loader prepares in advance: they lie on /dev/shm, as the cache may.
        sharing: processes on this machine that have a cache each.
    Raises:
        ContriqueError: there is no such folder, or no file in it can be shared on this system.
    """
    is_linux = Path("/proc/self/fd").is_dir()
    if not is_linux or not Path(folder).is_dir() or not os.access(folder, os.W_OK):
        reason = "no folder that can be written to" if is_linux else "a cache needs Linux"
        raise ContriqueError(f"pretrain.cache={folder}: {reason}; name another folder, or none (pretrain.cache=)")
    return max(0, int(_SHARE * (shutil.disk_usage(folder).free / sharing - in_advance)))
