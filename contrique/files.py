"""Write files so that nobody ever sees half of one, and know them by their content."""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from contrique.errors import ContriqueError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left on device (os error 28)", "database or disk is full")  # of safetensors and of SQLite


class StorageError(ContriqueError):
    """A file or an object that cannot be copied; the message names it and the remedy."""


class DiskFull(StorageError):
    """No room for a file."""


@contextmanager
def room(path: Path) -> Iterator[None]:
    """Turn a full disk, whichever library met it, into one line with a remedy.

    Args:
        path: what is being written, for the message.
    Raises:
        DiskFull: an error of the block, or one behind it, says that a disk is full.
    """
    try:
        yield
    except DiskFull:  # told already, by the file nearest to it
        raise
    except Exception as error:
        if reason := _full(error):
            message = f"{path}: no space left ({reason}); make room or choose another disk, and run again"
            raise DiskFull(message) from error
        raise


def _full(error: BaseException | None) -> str:
    """What is said of a full disk, empty if it is another error."""
    while error:
        if isinstance(error, OSError) and error.errno in _FULL:
            return os.strerror(error.errno)
        if found := next((words for words in _FULL_WORDS if words in str(error)), ""):
            return found
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of `path`; on success it takes the place of `path`, on failure it goes.

    Works for files and for directories (the body decides which it makes). A file's data reach the disk before the
    rename, so a crash leaves either the old content or the new one. An old directory is renamed out of the way, and
    removed only once the new one stands.

    Args:
        path: where the finished file or directory shall stand. Its parent is made if missing.
    Yields:
        the temporary path to write to; it does not exist yet.
    Raises:
        DiskFull: there is no room for it.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with room(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            _replace(path, aside)
        finally:
            if aside.is_dir():
                shutil.rmtree(aside)
            else:
                aside.unlink(missing_ok=True)


def _replace(path: Path, aside: Path) -> None:
    if aside.is_dir() and path.exists():
        old = aside.with_suffix(".old")
        path.replace(old)
        try:
            aside.replace(path)
        except BaseException:
            old.replace(path)
            raise
        shutil.rmtree(old)
    else:
        if aside.is_file():
            with aside.open("rb") as written:
                os.fsync(written.fileno())
        aside.replace(path)


def inside(name: str, where: str) -> PurePosixPath:
    """A relative path that stays below the folder it is relative to.

    Raises:
        StorageError: it is absolute or climbs up; `where` says whose name it is.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise StorageError(f"{where}: the name leads out of its folder; rename it")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
