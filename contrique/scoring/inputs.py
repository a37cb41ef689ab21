"""Which pictures paths stand for, decoded ahead of their turn."""

import glob
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from contrique import images
from contrique.errors import ContriqueError
from contrique.scoring.results import Failure

AHEAD = 8  # pictures decoded before their turn
AHEAD_PIXELS = 2**22  # a picture with more is read and decoded in its turn
BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**23}  # in one pass of the encoder, unless one picture has more
Named = tuple[str, images.Picture]


def find_images(paths: Iterable[str | Path]) -> Iterator[Path | Failure]:
    """The image files that paths stand for, in the order of `paths`, lazily.

    Args:
        paths: files (taken whatever their name), folders (every file below with a suffix of `images.EXTENSIONS`,
            sorted) or globs (`**` goes down folders; matches sorted).
    """
    for given in paths:
        try:
            yield from _expand(str(given))
        except OSError as error:  # a name that is too long, a parent that may not be entered
            yield _fail_unreadable(error)


def _expand(given: str) -> Iterator[Path | Failure]:
    path = Path(given)
    if path.is_dir():
        yield from _walk(path)
    elif path.exists():
        yield path
    elif not glob.has_magic(given):
        yield Failure(given, f"{given}: no such file; check the path")
    else:
        # Path.glob takes no absolute pattern
        matches = sorted(Path(match) for match in glob.iglob(given, recursive=True))  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        yield from files
        if not files:
            yield Failure(given, f"{given}: matches no file; check the pattern")


def _walk(folder: Path) -> Iterator[Path | Failure]:
    failures: list[Failure] = []
    found = 0
    for parent, folders, files in os.walk(folder, onerror=lambda error: failures.append(_fail_unreadable(error))):
        folders.sort()
        for name in sorted(files):
            path = Path(parent) / name
            if path.suffix.lower() in images.EXTENSIONS and path.is_file():
                found += 1
                yield path
    if not found and not failures:
        expected = ", ".join(sorted(images.EXTENSIONS))
        failures.append(Failure(str(folder), f"{folder}: no image files below it; expected {expected}"))
    yield from failures


def decode_ahead(found: Iterable[Path | Failure]) -> Iterator[Named | Failure]:
    """Decoded pictures in order; threads decode the next ones while one is scored."""
    pool = ThreadPoolExecutor(2, "decode")
    waiting: deque[Future[Named | Path | Failure]] = deque()
    try:
        for item in found:
            waiting.append(pool.submit(_decode, item))
            if len(waiting) > AHEAD:
                yield _take_turn(waiting.popleft().result())
        while waiting:
            yield _take_turn(waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(found: Path | Failure, large: float = AHEAD_PIXELS) -> Named | Path | Failure:
    """A picture; the path as it is if it has more than `large` pixels."""
    if isinstance(found, Failure):
        return found
    try:
        data = images.read_bytes(found)
        width, height = images.declared_size(data, str(found))
        return found if width * height > large else (str(found), images.decode(data, str(found)).pixels)
    except ContriqueError as error:
        return Failure.of(str(found), error)


def _take_turn(item: Named | Path | Failure) -> Named | Failure:
    if not isinstance(item, Path):
        return item
    done = _decode(item, math.inf)
    assert not isinstance(done, Path)
    return done


def batch_pictures(items: Iterable[Named | Failure], budget: int) -> Iterator[list[Named] | Failure]:
    """Neighbours of one size together, at most `budget` pixels; failures in their place."""
    batch: list[Named] = []
    for item in items:
        alike = batch and not isinstance(item, Failure) and item[1].shape == batch[0][1].shape
        if batch and not (alike and (len(batch) + 1) * batch[0][1].size <= 3 * budget):
            yield batch
            batch = []
        if isinstance(item, Failure):
            yield item
        else:
            batch.append(item)
    if batch:
        yield batch


def _fail_unreadable(error: OSError) -> Failure:
    return Failure(str(error.filename), f"{error.filename}: cannot be read ({error.strerror}); check its permissions")
