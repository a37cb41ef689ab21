"""What a client sent, made into a result: base64 in, a score or a failure out, whatever it is that came.

The registered model (`mlflow_model`) and `contrique serve` both answer through this, so that limits, words and
contract are the same. The client names nothing here: errors call its images by their place in the request.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

from contrique.config import ServingLimits
from contrique.errors import ContriqueError
from contrique.images import Picture
from contrique.scoring.results import Failure
from contrique.serving.decoder import LARGE, Decoders, Upload, describe_too_large

Result = TypeVar("Result")
_POLL = 0.2  # seconds between looks whether somebody still waits
_log = logging.getLogger("contrique.serving")


class Unwanted(Exception):
    """Nobody waits for the result any more."""


class Turns:
    """Decodes a few pictures at once and computes one at a time, whatever the number of requests.

    Memory is then that of as many pictures as there are decoders. Large pictures take all decoders but one, so that a
    small one does not wait for those that take long.
    """

    def __init__(self, limits: ServingLimits) -> None:
        self._limits = limits
        self._decoders = Decoders(limits)
        self._slots = threading.Semaphore(limits.decoders)
        self._large = threading.Semaphore(max(1, limits.decoders - 1))
        self._pool = ThreadPoolExecutor(1, "score")  # another thread would need memory of its own

    def start(self) -> None:
        """Start the decoders now."""
        self._decoders.start()

    def read_request(self, body: bytes, form: str) -> list[Upload]:
        """As `Decoders.read_request`."""
        with self._large if len(body) >= LARGE else nullcontext():
            return self._decoders.read_request(body, form)

    def answer(
        self,
        value: Any,
        index: int,
        work: Callable[[Picture, str], Result],
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Result | Failure:
        """Do something with one image of a request; nothing that the client sent makes this raise.

        Args:
            value: an encoded image file, as bytes or as a string of base64 or a `data:` URL.
            index: its place in the request, from 0.
            work: takes the picture, RGB, shape (H, W, 3), uint8, and its name for messages, `image INDEX`.
            is_wanted: whether somebody still waits.
        Returns:
            what `work` gives; a Failure if the image is one too many, over a limit or no image, if `work` refuses it
            by a ContriqueError, or if it fails otherwise, which the log alone says.
        Raises:
            Unwanted: nobody waits any more, and it was not begun.
        """
        name = f"image {index}"
        if index >= self._limits.max_images:
            return Failure(name, f"{name}: over {self._limits.max_images} images a request; send the rest in another")
        if not isinstance(value, str | bytes | bytearray):
            return Failure(name, f"{name}: neither base64 nor bytes; send the image file's bytes in base64")
        if len(value) > (1.5 if isinstance(value, str) else 1) * self._limits.max_bytes:  # base64 may have line breaks
            return Failure(name, f"{name}: {describe_too_large(self._limits.max_bytes)}")
        value = bytes(value) if isinstance(value, bytearray) else value
        try:
            return self._take_turn(value, name, work, is_wanted)
        except ContriqueError as error:
            return Failure.of(name, error)
        except Unwanted:
            raise
        except Exception:  # in the log, whole; let through, a server might send its stack trace to the client
            _log.exception("%s could not be scored", name)
            return Failure(name, f"{name}: could not be scored (an error of the server; see its log)")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    def _take_turn(
        self, value: str | bytes, name: str, work: Callable[[Picture, str], Result], is_wanted: Callable[[], bool]
    ) -> Result:
        with _Turn(self._slots, is_wanted):
            picture = self._decoders.decode(value, name, large=False)
            if picture is not None:
                return self._compute(partial(work, picture, name), is_wanted)
        with _Turn(self._large, is_wanted), _Turn(self._slots, is_wanted):
            picture = self._decoders.decode(value, name)
            assert picture is not None
            return self._compute(partial(work, picture, name), is_wanted)

    def _compute(self, work: Callable[[], Result], is_wanted: Callable[[], bool]) -> Result:
        def start() -> Result:
            if not is_wanted():
                raise Unwanted
            return work()

        return self._pool.submit(start).result()


class _Turn:
    """Holds a semaphore; whoever waits for it leaves when nobody wants the result any more."""

    def __init__(self, semaphore: threading.Semaphore, is_wanted: Callable[[], bool]) -> None:
        self._semaphore = semaphore
        self._is_wanted = is_wanted

    def __enter__(self) -> None:
        while not self._semaphore.acquire(timeout=_POLL):
            if not self._is_wanted():
                raise Unwanted

    def __exit__(self, *_: object) -> None:
        self._semaphore.release()
