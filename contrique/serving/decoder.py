"""Pictures of strangers are decoded by processes of their own, which are killed at a limit of time or memory.

One picture can then neither stop the server nor fill its memory: the process ends, another takes its place, and the
picture has an error. Parent and child speak over pipes, in frames of a JSON header and bytes (no pickle).
"""

import base64
import binascii
import json
import os
import queue
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import IO, Any, Final

import numpy as np

from contrique import images
from contrique.config import ServingLimits
from contrique.errors import ContriqueError

LARGE: Final = 2**22  # pixels, or bytes of a file or a request, from which it may take all of `decode_seconds`
_SMALL_SHARE: Final = 0.2  # of `decode_seconds`, for smaller ones
_LEAST_SECONDS: Final = 1.0  # for smaller ones: on a processor that others share, the same work counts for more
_WALL: Final = 6  # times `decode_seconds`: on a busy machine a decoder gets little of a processor
_LEAST_WALL: Final = 60.0  # seconds below which the limit of `_WALL` never goes: the start of a process counts too
_IDLE: Final = 20  # seconds after which a decoder that has nothing to do ends; another takes its place when needed
_FRAME: Final = struct.Struct(">IQ")  # bytes of the header, and of what follows it
_WHITE: Final = b" \t\n\r\v\f"
_PLAIN_PNM: Final = (b"P1", b"P2", b"P3")
_NOT_BASE64: Final = "not base64; send the image file's bytes in base64"
_COMMAND: Final = "from contrique.serving.decoder import serve_parent; serve_parent()"


class DecoderFault(RuntimeError):
    """A fault of the decoder's own code; holds its stack trace, for the log."""


class Malformed(ContriqueError):
    """A request that does not have the form of the schema."""


@dataclass(frozen=True)
class Upload:
    """One image of a request.

    Attributes:
        name: as the client gave it.
        data: the file's bytes.
        error: why there are none; else empty.
    """

    name: str
    data: bytes
    error: str


class Decoders:
    """Some processes that decode; each call takes a free one, from any thread.

    They are started when they are first needed, and end with this process or when they have long had nothing to do.
    """

    def __init__(self, limits: ServingLimits) -> None:
        self._limits = limits
        self._free: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        self._children: set[_Child] = set()
        for _ in range(limits.decoders):
            self._free.put(None)

    def start(self) -> None:
        """Start the processes now, so that the first pictures need not wait for them."""
        for child in [self._free.get() for _ in range(self._limits.decoders)]:
            self._free.put(child or self._start_child())

    def read_request(self, body: bytes, form: str) -> list[Upload]:
        """The images of a request.

        Args:
            body: JSON.
            form: class of `schema`, `Picture` or `Pictures`.
        Raises:
            Malformed: it is not as the schema says, in one line.
            BadImage: it takes longer or more memory than a picture may.
        """
        header, data = self._ask({"task": "read", "form": form}, body, "the request")
        if "malformed" in header:
            raise Malformed(header["malformed"])
        uploads, at = [], 0
        for item in header["items"]:
            uploads.append(Upload(item["name"], bytes(data[at : at + item["size"]]), item["error"]))
            at += item["size"]
        return uploads

    def decode(self, value: bytes | str, name: str, large: bool = True) -> images.Picture | None:
        """Decode an image file, which may be in base64 or a `data:` URL if it is text.

        Args:
            value: the file.
            name: what errors call it.
            large: whether to decode one of LARGE pixels or bytes, or more; else it gives None.
        Returns:
            RGB. Shape (H, W, 3), uint8.
        Raises:
            BadImage: as `images.decode`; not base64; over a limit, of time and memory as well.
            DecoderFault: the decoder's own code failed.
        """
        text = isinstance(value, str)
        data = value.encode(errors="replace") if isinstance(value, str) else value
        header, pixels = self._ask({"task": "decode", "name": name, "text": text, "large": large}, data, name)
        if header.get("large"):
            return None
        return np.frombuffer(pixels, np.uint8).reshape(header["shape"])

    def close(self) -> None:
        """End the processes, whatever they do."""
        for child in list(self._children):
            child.close()

    def _start_child(self) -> "_Child":
        child = _Child(self._limits)
        self._children.add(child)
        return child

    def _ask(self, header: dict[str, Any], data: bytes, name: str) -> tuple[dict[str, Any], bytearray]:
        child = self._free.get()
        try:
            child = child or self._start_child()
            try:
                answer, content = child.ask(header, data)
            except (OSError, EOFError):
                if not child.has_left():
                    raise
                self._children.discard(child)
                child = self._start_child()
                answer, content = child.ask(header, data)
        except (OSError, EOFError):  # it was killed, or has no memory left to go on with
            assert child
            self._children.discard(child)
            reason, child = child.explain_end(), None
            raise images.BadImage(f"{name}: {reason}; send it smaller, or as another format") from None
        finally:
            self._free.put(child)
        if "fault" in answer:
            raise DecoderFault(answer["fault"])
        if "error" in answer:
            raise images.BadImage(answer["error"])
        return answer, content


class _Child:
    """One process, as its parent sees it."""

    def __init__(self, limits: ServingLimits) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path),  # noqa: PTH109
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._limits = limits
        self._expired = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, json.dumps(asdict(limits))],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what C libraries print there
        )

    def ask(self, header: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytearray]:
        """Send a task and wait for its answer; killed if it does not come, or comes not whole."""
        assert self._process.stdin
        assert self._process.stdout
        timer = threading.Timer(max(_LEAST_WALL, _WALL * self._limits.decode_seconds), self._expire)
        timer.daemon = True
        timer.start()
        try:
            _send(self._process.stdin, header, data)
            return _receive(self._process.stdout)
        except BaseException:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)  # it is on its way out, and its status says why
            self.close()
            raise
        finally:
            timer.cancel()

    def has_left(self) -> bool:
        """Whether it ended of itself, with nothing to do."""
        return self._process.poll() == 0

    def explain_end(self) -> str:
        if self._expired or self._process.returncode == -signal.SIGXCPU:
            return f"takes over {self._limits.decode_seconds:g} s to decode"
        return "takes more time or memory to decode than there is"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with _ignore_broken_pipe():
                    pipe.close()

    def _expire(self) -> None:
        self._expired = True
        self._process.kill()


@contextmanager
def _ignore_broken_pipe() -> Iterator[None]:
    """Closing a pipe writes what is left for a process that is gone."""
    try:
        yield
    except BrokenPipeError:
        return


def _send(stream: IO[bytes], header: dict[str, Any], data: Any = b"") -> None:
    line = json.dumps(header).encode()
    stream.write(_FRAME.pack(len(line), len(data)) + line)
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytearray]:
    """Raises EOFError if the other end is gone."""
    line, size = _FRAME.unpack(_read_exactly(stream, _FRAME.size))
    header = json.loads(_read_exactly(stream, line))
    return header, _read_exactly(stream, size)


def _read_exactly(stream: Any, size: int) -> bytearray:
    content = bytearray(size)
    view, position = memoryview(content), 0
    while position < size:
        count = stream.readinto(view[position:])
        if not count:
            raise EOFError
        position += count
    return content


def serve_parent() -> None:
    """What a decoder runs: tasks from standard input, answers to standard output, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C ends the parent, and that ends this
    limits = ServingLimits(**json.loads(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (limits.decode_bytes, limits.decode_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not be taken for an answer
    with suppress(MemoryError):  # the pictures are refused, one by one
        # imports what the first picture would import within its limit
        images.decode(images.encode_png(np.zeros((8, 8, 3), np.uint8)), "blank")
    while select.select([sys.stdin], [], [], _IDLE)[0]:  # the parent waits for each answer, so nothing is in a buffer
        try:
            header, data = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = _do(header, data, limits)
        except images.BadImage as error:
            answer = {"error": " ".join(str(error).split())}, b""
        except MemoryError:
            answer = {"error": f"{header.get('name', 'the request')}: takes more memory to decode than there is"}, b""
        except Exception:  # the parent logs it
            answer = {"fault": traceback.format_exc()}, b""
        # `_do` limits the time of one picture; to wait for the next one and to read it has no limit
        resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        _send(answers, *answer)


def _do(header: dict[str, Any], data: bytearray, limits: ServingLimits) -> tuple[dict[str, Any], Any]:
    if header["task"] == "read":
        return _read_items(bytes(data), header["form"], limits)
    _allow_seconds(max(_SMALL_SHARE * limits.decode_seconds, min(_LEAST_SECONDS, limits.decode_seconds)))
    name = header["name"]
    content = _decode_base64(data, limits.max_bytes) if header["text"] else bytes(data)
    if isinstance(content, str):
        return {"error": f"{name}: {content}"}, b""
    if content[:2] in _PLAIN_PNM:
        return {"error": f"{name}: text in place of pixels (P1 to P3) is slow to read; send it as P6 or PNG"}, b""
    width, height = images.declared_size(content, name)
    if max(width * height, len(content)) >= LARGE and width * height <= limits.max_pixels:
        if not header["large"]:
            return {"large": True}, b""
        _allow_seconds(limits.decode_seconds)
    pixels = images.decode(content, name, limits.max_pixels).pixels
    return {"shape": pixels.shape}, np.ascontiguousarray(pixels).data.cast("B")


def _allow_seconds(seconds: float) -> None:
    """Of a processor, from now on; the system kills this process after them."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _read_items(body: bytes, form: str, limits: ServingLimits) -> tuple[dict[str, Any], bytes]:
    from pydantic import ValidationError

    from contrique.serving import schema

    _allow_seconds(limits.decode_seconds)  # not of the imports
    try:
        request = getattr(schema, form).model_validate_json(body)
    except ValidationError as error:
        return {"malformed": schema.describe_fault(error)}, b""
    pictures = request.images if isinstance(request, schema.Pictures) else [request]
    items, contents = [], []
    for picture in pictures[: limits.max_images]:
        content = _decode_base64(picture.image.encode(errors="replace"), limits.max_bytes)
        reason, content = (content, b"") if isinstance(content, str) else ("", content)
        items.append({"name": picture.name, "size": len(content), "error": reason})
        contents.append(content)
    items += [{"name": picture.name, "size": 0, "error": ""} for picture in pictures[limits.max_images :]]
    return {"items": items}, b"".join(contents)


def _decode_base64(text: bytes | bytearray, max_bytes: int) -> bytes | str:
    """The bytes of an image file from base64 or a `data:` URL, or why there are none."""
    if text[:5].lower() == b"data:":
        head, _, text = text.partition(b",")
        if not head.lower().rstrip().endswith(b";base64"):
            return _NOT_BASE64
    text = text.translate(None, _WHITE)
    if len(text) > 4 * (max_bytes // 3 + 1):
        return describe_too_large(max_bytes)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return _NOT_BASE64
    return describe_too_large(max_bytes) if len(content) > max_bytes else content


def describe_too_large(max_bytes: int) -> str:
    return f"over {max_bytes / 1e6:g} MB; send it smaller"
