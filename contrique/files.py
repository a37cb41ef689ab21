"""Write files so that nobody ever sees half of one, and know them by their content."""

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from contrique.errors import ContriqueError, one_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_BYTES: Final = 2_000_000_000  # of a file that is read whole
_MAX_QUOTE = 200  # characters of a name that a message repeats
_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
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
        if phrase := next((words for words in _FULL_WORDS if words in str(error)), ""):
            return phrase
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
    aside = _name_aside(path)
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


def _name_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Refuse a place that cannot be written, before the work that shall end there. Nothing is left behind.

    Args:
        path: of the file; missing parents are no fault.
        folder: `path` is a folder to write files in.
    Raises:
        StorageError: the message names the place and the remedy.
    """
    try:
        if path.is_dir() and not folder:
            raise StorageError(f"{path}: is a folder; give the name of a file")
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            raise StorageError(f"{path}: is no {'folder' if folder else 'regular file'}; choose another place")
        target = path / _name_aside(Path("x")) if folder else _name_aside(path)
        ancestor = next(parent for parent in target.parents if parent.exists())
        if not ancestor.is_dir():
            raise StorageError(f"{path}: cannot be written ({ancestor} is a file); choose another place")
        for part in target.relative_to(ancestor).parts:
            if len(os.fsencode(part)) > os.pathconf(ancestor, "PC_NAME_MAX"):
                raise StorageError(f"{path}: the name is too long; choose a shorter one")
        with room(path):
            descriptor, probe = tempfile.mkstemp(prefix=".contrique-", dir=ancestor)
            os.close(descriptor)
            Path(probe).unlink()
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise StorageError(f"{path}: cannot be written ({reason}); choose another place") from error


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


# RE2's syntax as well as Python's, so that columns of names can be searched with it
UNSAFE_NAME: Final = r"^(?:\./*)*$|^/|^[A-Za-z]:|(?:^|/)\.\.(?:/|$)|[\\\x00]"


def inside(name: str, where: str) -> PurePosixPath:
    """A relative path that stays below the folder it is relative to, on every system.

    Args:
        name: parts separated by `/`.
        where: whose name it is, for the message.
    Returns:
        the path, without empty parts and single dots.
    Raises:
        StorageError: it is empty or absolute, climbs up by `..`, or holds a backslash, a drive letter or a NUL.
    """
    if re.search(UNSAFE_NAME, name):
        quoted = repr(name) if len(name) <= _MAX_QUOTE else f"{name[:_MAX_QUOTE]!r}..."
        raise StorageError(f"{where}: the name {quoted} leads out of its folder; rename it")
    return PurePosixPath(name)


def open_regular(path: Path | str, limit: int = MAX_BYTES) -> BinaryIO:
    """Open a file that somebody names; a pipe, a device or an endless file is refused at once.

    Args:
        path: of the file; links are followed.
        limit: bytes above which it is refused.
    Raises:
        StorageError: missing, unreadable, not a regular file, or over `limit`.
    """
    try:
        # without O_NONBLOCK, to open a pipe waits for a writer
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
        return file
    file.close()
    if not stat.S_ISREG(status.st_mode):
        raise StorageError(f"{path}: cannot be read (not a regular file); give a file")
    raise StorageError(f"{path}: {_format_bytes(status.st_size)} is over {_format_bytes(limit)}; check what it is")


def read_regular(path: Path | str, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file, read as `open_regular` opens it.

    Raises:
        StorageError: as `open_regular`, or the file cannot be read or grows while it is.
    """
    with open_regular(path, limit) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read ({error.strerror}); check the disk") from error
    if len(data) > limit:
        raise StorageError(f"{path}: over {_format_bytes(limit)}; check what it is")
    return data


def _format_bytes(count: int) -> str:
    unit, name = next(((unit, name) for unit, name in _UNITS if count >= unit), (1, "bytes"))
    return f"{count / unit:.3g} {name}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
