"""Is the whole picture in the file? What decoders pass over without a word, for the formats where it can be seen.

JPEG, WebP and QOI decoders fill in what a file lost, and give a picture. The functions here raise ValueError instead,
with a reason that a sentence can take in brackets.
"""

import re
import zlib

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

MAX_SCANS = 100  # of a JPEG; encoders write about ten, and each takes the time of a picture
QOI = b"qoif"
_QOI_END = b"\0\0\0\0\0\0\0\1"
_QOI_MARKS = (b"\xfe\x01\xfe\x03", b"\xfe\xf0\x02\x80")  # one pixel each, of colours that differ
_NEXT_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")  # behind a scan: neither a stuffed byte nor a restart
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_TABLES, _SCAN, _END = 0xC4, 0xDA, 0xD9
_ZEROS = bytes(32)  # of code; in the usual tables, 85 coefficients of -1 in a row
_PIECE = 2**24  # bytes
_DAMAGE = ("Corrupt", "Premature", "Inconsistent")  # how libjpeg-turbo's warnings of lost data begin


class Unsupported(ValueError):
    """A file that may be whole, of a kind that is not read; the message says which."""


def decode_jpeg(data: bytes, colours: str) -> NDArray[np.uint8] | None:
    """Decode a JPEG as Pillow does, to the bit, and refuse it if data are missing.

    Args:
        data: the file.
        colours: `RGB`, `GRAY` or `CMYK` (whose values Adobe's files hold inverted).
    Returns:
        Shape (H, W, 3), (H, W, 1) or (H, W, 4), uint8; None if this decoder cannot read it.
    Raises:
        ValueError: scans, restart intervals or bytes are missing, or it has over MAX_SCANS scans.
    """
    _check_scans(data)
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace=colours, strict=True))
    except ValueError as error:
        if str(error).startswith(_DAMAGE):
            raise
        return None  # a header that it does not know: a newer version of JFIF, an odd sampling of colour


def _check_scans(data: bytes) -> None:
    """Every coefficient of every component must have come, to its last bit, in at most MAX_SCANS scans."""
    precision: dict[int, bytearray] = {}  # of each coefficient of a component: how many low bits are yet to come
    zeros_end_block: dict[int, bool] = {}  # by the number of a Huffman table
    progressive, may_be_zeros, scans, at = False, True, 0, 2
    while match := _NEXT_MARKER.search(data, at):
        if not may_be_zeros and data.find(_ZEROS, at, match.start()) >= 0:
            raise ValueError("zeros in place of data")
        if (marker := data[match.end() - 1]) == _END:
            break
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
        body = data[match.end() + 2 : at]
        if marker in _FRAMES and len(body) > 5:
            progressive = marker in _PROGRESSIVE
            precision = {component: bytearray(b"\xff" * 64) for component in body[6::3]}
        elif marker == _TABLES:
            zeros_end_block |= _list_tables(body)
        elif marker == _SCAN and len(body) == 2 * body[0] + 4:
            scans += 1
            if scans > MAX_SCANS:
                raise ValueError(f"over {MAX_SCANS} scans")
            may_be_zeros = progressive or all(zeros_end_block.get(table & 15, True) for table in body[2:-3:2])
            first, last, bits = body[-3:] if progressive else (0, 63, 0)
            for component in body[1:-3:2]:
                if component in precision and last < 64:
                    precision[component][first : last + 1] = bytes([bits & 15]) * (last + 1 - first)
    if any(map(any, precision.values())):
        raise ValueError("scans are missing")


def _list_tables(body: bytes) -> dict[int, bool]:
    """Whether each AC table of a segment writes the end of a block in zeros, so that flat areas are nothing else."""
    tables, at = {}, 0
    while at + 17 < len(body):
        if body[at] >> 4:
            tables[body[at] & 15] = body[at + 17] == 0
        at += 17 + sum(body[at + 1 : at + 17])
    return tables


def check_webp(data: bytes) -> None:
    """Refuse a WebP whose decoder is done long before the data end: some of what it read was not the picture's.

    Zeros in place of data are valid code, and decode to something in fewer bytes than there are. So a decoder that
    gets all but the last bytes must fail.

    Raises:
        ValueError: it does not.
    """
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            break
        at += 24 if kind == b"ANMF" else 8 + size + size % 2  # a frame holds chunks of its own
    short = data[at + 8 : at + 8 + size - 16]
    if at + 8 + size > len(data) or len(short) < 32:  # too small to be without its last bytes
        return
    short = short[: len(short) // 2 * 2]
    chunk = kind + len(short).to_bytes(4, "little") + short
    try:
        imagecodecs.webp_decode(b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk)
    except imagecodecs.WebpError:
        return
    raise ValueError("data are missing or overwritten")


def decode_qoi(data: bytes) -> NDArray[np.uint8]:
    """Decode a QOI file whose data give neither more nor fewer pixels than it declares.

    A mark follows the data, and one row more is asked for: the mark must be its first pixel, and no other's.

    Returns:
        Shape (H, W, 3) or (H, W, 4), uint8.
    Raises:
        ValueError: no end marker, too few pixels or too many.
    """
    if not data.endswith(_QOI_END):
        raise ValueError("no end marker")
    height = int.from_bytes(data[8:12], "big")
    header, body = data[:8] + (height + 1).to_bytes(4, "big") + data[12:14], data[14:-8]
    for mark in _QOI_MARKS:
        pixels = imagecodecs.qoi_decode(header + body + mark + _QOI_END)
        colour = np.frombuffer(mark[1:], np.uint8)
        if not (pixels[height, :, :3] == colour).all():
            raise ValueError("more data than pixels")
        if (pixels[height - 1, -1, :3] != colour).any():  # else it may be the picture's own, by chance
            return np.asarray(pixels[:height])
    raise ValueError("less data than pixels")


def check_deflate(data: bytes, size: int) -> None:
    """Refuse a zlib stream that does not end, checksum and all, after at most `size` bytes.

    Raises:
        ValueError: it does not.
    """
    stream = zlib.decompressobj()
    try:
        while data and size > 0 and not stream.eof:
            size -= len(stream.decompress(data, min(size, _PIECE)))
            data = stream.unconsumed_tail
        stream.decompress(data, 1)  # the end itself
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not stream.eof:
        raise ValueError("the compressed data do not end")
