"""Few bytes that would take a server's time, memory or connections; for `serve.py --attacks` and the tests."""

import base64
import http.client
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image


def jpeg_of_scans(count: int, side: int = 4096) -> bytes:
    """A progressive JPEG whose last scan, which refines nothing, comes again and again."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + b"\xff\xd9"


def png_of_chunks(count: int, size: int = 64) -> bytes:
    """A PNG of empty chunks, each read by Python."""
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return _png(size, size, 8, zlib.compress(bytes(size * (3 * size + 1))), empty * count)


def png_of_megapixels(width: int, height: int) -> bytes:
    """A black PNG of 8 bits with alpha, which is white where it is seen."""
    stream = zlib.compressobj(1)
    data = b"".join(stream.compress(bytes(4 * width + 1)) for _ in range(height)) + stream.flush()
    return _png(width, height, 8, data, kind=6)


def _png(width: int, height: int, depth: int, data: bytes, between: bytes = b"", kind: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    head, body, end = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts)
    return b"\x89PNG\r\n\x1a\n" + head + between + body + end


def ppm_of_comments(size: int) -> bytes:
    return b"P3 8 8 255 " + b"#a\n" * (size // 3) + b"9 " * 192


def ppm_with_long_header(size: int) -> bytes:
    return b"P6 " + b"#a\n" * (size // 3) + b"8 8 255 " + bytes(192)


def tiff_of_one_tile(side: int) -> bytes:
    """96 x 80 pixels in one tile of `side` x `side`."""
    tile = zlib.compress(bytes(96 * 80 * 3))
    short, long = 3, 4
    bits_at = 8 + 2 + 12 * 11 + 4
    data_at = bits_at + 6
    tags = [(256, short, 1, 96), (257, short, 1, 80), (258, short, 3, bits_at), (259, short, 1, 8), (262, short, 1, 2)]
    tags += [(277, short, 1, 3), (284, short, 1, 1), (322, long, 1, side), (323, long, 1, side)]
    tags += [(324, long, 1, data_at), (325, long, 1, len(tile))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 8, 8, 8) + tile


def body(*pictures: bytes) -> bytes:
    return json.dumps({"images": [{"image": base64.b64encode(data).decode()} for data in pictures]}).encode()


def body_of_spaces(size: int) -> bytes:
    """Base64 in which every second character is a space."""
    return b'{"images": [{"image": "' + b"A " * (size // 2) + b'"}]}'


def body_of_escapes(size: int) -> bytes:
    """A string of escapes, each a character."""
    return b'{"images": [{"image": "' + b"\\n" * (size // 2) + b'"}]}'


def body_of_names(size: int) -> bytes:
    name = "\\u00e4" * 999
    item = f'{{"image": "", "name": "{name}"}}'
    return ('{"images": [' + ",".join([item] * min(900, size // len(item))) + "]}").encode()


@contextmanager
def half_sent(port: int, count: int, text: bytes) -> Iterator[list[socket.socket]]:
    """Connections on which a request has begun and does not end; the server may close some."""
    connections = []
    try:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=60)
            connections.append(connection)
            try:
                connection.sendall(text)
            except OSError:  # the server has closed it
                continue
        yield connections
    finally:
        for connection in connections:
            connection.close()


HALF_A_HEADER = b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
HALF_A_BODY = (
    b"POST /score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"
)


def photograph(seed: int = 0) -> bytes:
    """A small picture of an honest client."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (80, 96, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _post(data: bytes) -> Callable[[int], None]:
    def attack(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        try:
            connection.request("POST", "/score", data, {"content-type": "application/json"})
            connection.getresponse().read()
        finally:
            connection.close()

    return attack


def _hold(count: int, text: bytes) -> Callable[[int], None]:
    def attack(port: int) -> None:
        with half_sent(port, count, text):
            time.sleep(3)

    return attack


def list_attacks() -> dict[str, Callable[[int], None]]:
    """What an attacker does to a port again and again, by name."""
    return {
        "JPEG of 400 scans": _post(body(jpeg_of_scans(400))),
        "JPEG of 90 scans": _post(body(jpeg_of_scans(90))),
        "PNG of empty chunks": _post(body(png_of_chunks(1_800_000))),
        "text PPM of comments": _post(body(ppm_of_comments(20_000_000))),
        "TIFF of one tile": _post(body(tiff_of_one_tile(26_000))),
        "49 megapixels of alpha": _post(body(png_of_megapixels(7000, 7000))),
        "60 MB of white space": _post(body_of_spaces(60_000_000)),
        "60 MB of escapes": _post(body_of_escapes(60_000_000)),
        "half-sent headers": _hold(300, HALF_A_HEADER),
        "half-sent bodies": _hold(40, HALF_A_BODY),
    }


@contextmanager
def under_attack(attack: Callable[[int], None], port: int, attackers: int) -> Iterator[list[str]]:
    """Attackers who go on until the end; what their attacks raised."""
    over, errors = threading.Event(), list[str]()

    def go_on() -> None:
        while not over.is_set():
            try:
                attack(port)
            except (OSError, http.client.HTTPException) as error:  # the server may well close their connections
                errors.append(repr(error))

    threads = [threading.Thread(target=go_on, daemon=True) for _ in range(attackers)]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        over.set()
        for thread in threads:
            thread.join()
