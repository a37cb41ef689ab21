"""What no input may do: raise anything but one clear line, take long, take much memory, or write or start anything."""

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contrique.errors import ContriqueError

SECONDS = 10.0  # of a processor, for one input
BYTES = 800_000_000  # that the process may grow by for one input
SECRET = b"the secret of a neighbour"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
_CHANGING = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate")
_REACHING = ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request")
_MARKER = "contrique-fuzz-"


class Fault(Exception):
    """What an input did that none may do."""


class _Watch:
    """The audit hook of the process; idle outside of `watch`."""

    def __init__(self) -> None:
        self.folder: str = ""
        self.events: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & _WRITING:
            self._check_place(event, arguments[0])
        elif event in _CHANGING:
            for place in arguments[: 2 if event == "os.rename" else 1]:
                self._check_place(event, _resolve(place, arguments[-1]))
        elif event == "subprocess.Popen" and list(arguments[1])[:3] == [sys.executable, "-P", "-c"]:
            return  # the product's own, which reads for it
        elif event in _STARTING or event in _REACHING or event == "pickle.find_class":
            self.events.append(f"{event} {arguments!r:.200}")

    def _check_place(self, event: str, place: Any) -> None:
        path = os.path.realpath(os.fsdecode(place)) if isinstance(place, str | bytes | os.PathLike) else ""
        if path and not path.startswith((self.folder, "/dev/null", "/proc/self")) and "__pycache__" not in path:
            self.events.append(f"{event} {path}")


def _resolve(place: Any, folder: Any) -> Any:
    """A path that is relative to an open folder, as `shutil.rmtree` has them, in full."""
    if isinstance(folder, int) and folder >= 0 and isinstance(place, str) and not place.startswith("/"):
        return Path(f"/proc/self/fd/{folder}").readlink() / place
    return place


_watch: _Watch | None = None


@contextmanager
def watch(folder: Path) -> Iterator[None]:
    """Raise Fault if the block writes outside of a folder, starts a program, connects, or looks up a class to load."""
    global _watch
    _watch = _watch or _Watch()
    _watch.folder, _watch.events = os.path.realpath(folder), []
    try:
        yield
    finally:
        _watch.folder = ""
        if _watch.events:  # also where the block ended in one clear line
            raise Fault(f"it reached outside: {_watch.events[:3]}")


def try_input(read: Callable[[Path, bytes], object], data: bytes) -> None:
    """Hand one input to a reader, in a folder of its own.

    Args:
        read: takes the folder, which it may write in, and the input; raises an AssertionError if what it got from it
            makes no sense.
        data: the input.
    Raises:
        Fault: anything else than a valid result or one clear line, at bounded time and memory, and nothing outside.
    """
    former = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix=_MARKER) as name:
        outside, folder = Path(name) / "outside", Path(name) / "inside"
        for place in (outside, folder, folder / "tmp"):
            place.mkdir()
        (outside / "secret").write_bytes(SECRET)
        tempfile.tempdir = str(folder / "tmp")
        start, memory = time.process_time(), _resident_bytes()
        try:
            with watch(folder):
                read(folder, data)
        except ContriqueError as error:
            check_message(str(error))
        except (Fault, AssertionError):
            raise
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise Fault(f"{type(error).__name__}: {error!s:.300}") from error
        finally:
            tempfile.tempdir = former
        seconds, growth = time.process_time() - start, _resident_bytes() - memory
        if seconds > SECONDS:
            raise Fault(f"it took {seconds:.0f} s")
        if growth > BYTES:
            raise Fault(f"it took {growth / 1e6:.0f} MB")
        if {path.name for path in outside.iterdir()} != {"secret"} or (outside / "secret").read_bytes() != SECRET:
            raise Fault("it wrote beside its folder")
        shutil.rmtree(folder, ignore_errors=True)


def check_message(message: str) -> None:
    """Raise Fault unless a message is one line of a bearable length."""
    if not message or set("\n\r") & set(message):
        raise Fault(f"no clear line: {message!r:.300}")
    if len(message) > 4000:
        raise Fault(f"a line of {len(message)} characters: {message[:300]!r}")


def _resident_bytes() -> int:
    """The most that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
