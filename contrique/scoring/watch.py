"""A folder that fills while it is watched: a camera's, or that of uploads."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from contrique.scoring.inputs import find_images
from contrique.scoring.results import Failure

State = tuple[int, int]  # size in bytes, time of change in nanoseconds


def watch_images(
    paths: Iterable[str | Path], seconds: float, wait: Callable[[float], bool]
) -> Iterator[list[Path | Failure]]:
    """The image files that paths stand for, and those that come later, until somebody ends it.

    A file comes when its size and time have been the same for two looks, so that one that is being copied is not read
    half; once more when it has changed. Folders are looked through rather than subscribed to: a share in a network, as
    cameras write to, tells nobody of changes.

    Args:
        paths: as `find_images` takes them; one that does not exist yet may come later.
        seconds: between two looks.
        wait: waits so long, and says whether to end: `threading.Event.wait`.
    Yields:
        what is new, never an empty list; a fault is told once, and again when it has been away.
    """
    before: dict[Path, State] = {}
    latest: dict[Path, State] = {}
    faults: set[Failure] = set()
    patterns = list(paths)
    while True:
        now: dict[Path, State] = {}
        current: set[Failure] = set()
        for item in find_images(patterns):
            if isinstance(item, Failure):
                current.add(item)
            elif state := _read_state(item):
                now[item] = state
        fresh: list[Path | Failure] = [
            path for path, state in now.items() if before.get(path) == state != latest.get(path)
        ]
        latest |= {path: now[path] for path in fresh if isinstance(path, Path)}
        for fault in sorted(current - faults, key=lambda fault: fault.path):
            fresh.append(fault)
        before, faults = now, current
        if fresh:
            yield fresh
        if wait(seconds):
            return


def _read_state(path: Path) -> State | None:
    try:
        facts = path.stat()
    except OSError:  # gone since it was listed
        return None
    return facts.st_size, facts.st_mtime_ns
