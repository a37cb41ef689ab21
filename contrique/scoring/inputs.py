"""Which pictures paths stand for, decoded ahead of their turn."""

import glob
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from contrique import images
from contrique.errors import ContriqueError
from contrique.scoring.results import Failure
from contrique.walk import SUFFIXES, Skipped, walk_pictures

AHEAD = 8  # pictures decoded before their turn
AHEAD_PIXELS = 2**22  # a picture with more is read and decoded in its turn
BATCH_PIXELS = {"cpu": 2**18, "cuda": 2**23}  # in one pass of the encoder, unless one picture has more
NamedPicture = tuple[str, images.Picture]


def find_images(paths: Iterable[str | Path], skipped: list[Skipped] | None = None) -> Iterator[Path | Failure]:
    """The image files that paths stand for, in the order of `paths`, lazily.

    Args:
        paths: files (taken whatever their name), folders (every picture below, as `walk_pictures` finds them) or globs
            (`**` goes down folders; matches sorted).
        skipped: takes what folders hold besides pictures.
    Yields:
        files; a failure for a path that stands for none, and for what may well be a picture and cannot be read.
    """
    skipped = [] if skipped is None else skipped
    for path in paths:
        try:
            yield from _expand(str(path), skipped)
        except OSError as error:  # a name that is too long, a parent that may not be entered
            yield _fail_unreadable(error)


def _expand(name: str, skipped: list[Skipped]) -> Iterator[Path | Failure]:
    path = Path(name)
    if not name:
        yield Failure(name, "a path is empty; give a file, a folder or a pattern")
    elif path.is_dir():
        yield from _walk(path, skipped)
    elif path.exists():
        yield path
    elif not glob.has_magic(name):
        yield Failure(name, f"{name}: no such file; check the path")
    else:
        # Path.glob takes no absolute pattern
        matches = sorted(Path(match) for match in glob.iglob(name, recursive=True))  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        yield from files
        if not files:
            yield Failure(name, f"{name}: matches no file; check the pattern")


def _walk(folder: Path, skipped: list[Skipped]) -> Iterator[Path | Failure]:
    count = 0
    for item in walk_pictures(folder):
        if isinstance(item, Path):
            yield item
        elif item.lost:
            yield Failure(str(item.path), f"{item.path}: {item.reason}; mend it, or score the other files by name")
        else:
            skipped.append(item)
            continue
        count += 1
    if not count:
        yield Failure(str(folder), f"{folder}: no image files below it; expected {', '.join(sorted(SUFFIXES))}")


def decode_ahead(paths: Iterable[Path | Failure]) -> Iterator[NamedPicture | Failure]:
    """Decoded pictures in order; threads decode the next ones while one is scored."""
    pool = ThreadPoolExecutor(2, "decode")
    waiting: deque[Future[NamedPicture | Path | Failure]] = deque()
    try:
        for item in paths:
            waiting.append(pool.submit(_decode, item))
            if len(waiting) > AHEAD:
                yield _take_turn(waiting.popleft().result())
        while waiting:
            yield _take_turn(waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(path: Path | Failure, large: float = AHEAD_PIXELS) -> NamedPicture | Path | Failure:
    """A picture; the path as it is if it has more than `large` pixels."""
    if isinstance(path, Failure):
        return path
    try:
        data = images.read_bytes(path)
        width, height = images.declared_size(data, str(path))
        return path if width * height > large else (str(path), images.decode(data, str(path)).pixels)
    except ContriqueError as error:
        return Failure.of(str(path), error)


def _take_turn(item: NamedPicture | Path | Failure) -> NamedPicture | Failure:
    if not isinstance(item, Path):
        return item
    picture = _decode(item, math.inf)
    assert not isinstance(picture, Path)
    return picture


def batch_pictures(items: Iterable[NamedPicture | Failure], budget: int) -> Iterator[list[NamedPicture] | Failure]:
    """Neighbours of one size together, at most `budget` pixels; failures in their place."""
    batch: list[NamedPicture] = []
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
