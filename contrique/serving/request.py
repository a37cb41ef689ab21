"""What a client sent, made into a result: base64 in, a score or a failure out, whatever it is that came.

The registered model (`mlflow_model`) and `contrique serve` both answer through this, so that limits, words and
contract are the same. The client names nothing here: errors call its images by their place in the request.
"""

import base64
import binascii
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from contrique.config import ServingConfig
from contrique.errors import ContriqueError
from contrique.scoring.results import Failure

Result = TypeVar("Result")
_log = logging.getLogger("contrique.serving")


def answer(value: Any, index: int, limits: ServingConfig, work: Callable[[bytes, str], Result]) -> Result | Failure:
    """Do something with one image of a request; nothing that the client sent makes this raise.

    Args:
        value: an encoded image file, as a base64 string or bytes.
        index: its place in the request, from 0.
        limits: of which `max_images` and `max_bytes` are held here; `max_pixels` is for `work`.
        work: takes the file's bytes and the image's name for messages, `image INDEX`.
    Returns:
        what `work` gives; a Failure if the image is one too many, too large or no base64, if `work` refuses it by a
        ContriqueError, or if it fails otherwise, which is told in the log alone.
    """
    name = f"image {index}"
    if index >= limits.max_images:
        return Failure(name, f"{name}: over {limits.max_images} images a request; send the rest in another")
    try:
        data = _decode(value, limits.max_bytes)
        return Failure(name, f"{name}: {data}") if isinstance(data, str) else work(data, name)
    except ContriqueError as error:
        return Failure.of(name, error)
    except Exception:  # told in the log, whole; let through, a server might send its stack trace to the client
        _log.exception("%s could not be scored", name)
        return Failure(name, f"{name}: could not be scored (an error of the server, told in its log)")


def _decode(value: Any, max_bytes: int) -> bytes | str:
    """The bytes of an image file, or why there are none."""
    too_large = f"over {max_bytes / 1e6:g} MB; send it smaller"
    if isinstance(value, str):
        if len(value) > 1.5 * max_bytes:  # base64 is a third longer, and may have line breaks
            return too_large
        try:
            value = base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            return "not base64; send the image file's bytes in base64"
    if not isinstance(value, bytes | bytearray):
        return "neither base64 nor bytes; send the image file's bytes in base64"
    return too_large if len(value) > max_bytes else bytes(value)
