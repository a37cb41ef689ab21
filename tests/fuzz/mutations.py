"""Bytes that a stranger might hand in: small files, changed in ways that readers stumble over."""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Edit = Callable[[bytearray], bytearray]
_INTERESTING = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_FORMATS = ("B", "<H", ">H", "<I", ">I", "<Q", ">Q")
_PLACE = st.integers(0, 63) | st.integers(0, 2**24)  # headers are short, and decide most


def mutate(seeds: Sequence[bytes], tokens: Sequence[bytes] = ()) -> st.SearchStrategy[bytes]:
    """A seed after one to six edits.

    Args:
        seeds: whole files.
        tokens: pieces of the format, to be put anywhere.
    """
    edits = st.lists(st.sampled_from(_EDITS).flatmap(lambda edit: edit(tokens)), min_size=1, max_size=6)
    return st.builds(_apply, st.sampled_from(seeds), edits)


def _apply(seed: bytes, edits: Sequence[Edit]) -> bytes:
    data = bytearray(seed)
    for edit in edits:
        data = edit(data) if data else data
    return bytes(data)


def _set_byte(_: Sequence[bytes]) -> st.SearchStrategy[Edit]:
    def edit(place: int, value: int) -> Edit:
        def change(data: bytearray) -> bytearray:
            data[place % len(data)] = value
            return data

        return change

    return st.builds(edit, _PLACE, st.integers(0, 255))


def _set_number(_: Sequence[bytes]) -> st.SearchStrategy[Edit]:
    """Sizes, offsets and counts at and beyond the ends of their range."""

    def edit(place: int, form: str, value: int) -> Edit:
        def change(data: bytearray) -> bytearray:
            width = struct.calcsize(form)
            if width <= len(data):
                struct.pack_into(form, data, place % (len(data) - width + 1), value % 2 ** (8 * width))
            return data

        return change

    values = st.sampled_from(_INTERESTING) | st.integers(0, 2**64 - 1) | st.just(-1)
    return st.builds(edit, _PLACE, st.sampled_from(_FORMATS), values)


def _cut(_: Sequence[bytes]) -> st.SearchStrategy[Edit]:
    def edit(place: int, size: int) -> Edit:
        def change(data: bytearray) -> bytearray:
            at = place % len(data)
            del data[at : at + size]
            return data

        return change

    return st.builds(edit, _PLACE, st.integers(1, 16) | st.integers(1, 10_000))


def _repeat(_: Sequence[bytes]) -> st.SearchStrategy[Edit]:
    def edit(place: int, size: int, times: int) -> Edit:
        def change(data: bytearray) -> bytearray:
            at = place % len(data)
            data[at:at] = data[at : at + size] * times
            return data

        return change

    return st.builds(edit, _PLACE, st.integers(1, 64), st.integers(1, 4) | st.integers(1, 300))


def _overwrite(_: Sequence[bytes]) -> st.SearchStrategy[Edit]:
    """A stretch of zeros or of one byte, as a failing disk leaves it."""

    def edit(place: int, size: int, value: int) -> Edit:
        def change(data: bytearray) -> bytearray:
            at = place % len(data)
            end = min(len(data), at + size)
            data[at:end] = bytes([value]) * (end - at)
            return data

        return change

    return st.builds(edit, _PLACE, st.integers(1, 600), st.sampled_from((0, 0xFF, 0x20)))


def _insert(tokens: Sequence[bytes]) -> st.SearchStrategy[Edit]:
    def edit(place: int, token: bytes) -> Edit:
        def change(data: bytearray) -> bytearray:
            at = place % (len(data) + 1)
            data[at:at] = token
            return data

        return change

    pieces = st.binary(min_size=1, max_size=8)
    return st.builds(edit, _PLACE, st.sampled_from(tokens) | pieces if tokens else pieces)


def _move(_: Sequence[bytes]) -> st.SearchStrategy[Edit]:
    def edit(source: int, size: int, target: int) -> Edit:
        def change(data: bytearray) -> bytearray:
            at = source % len(data)
            piece = data[at : at + size]
            del data[at : at + size]
            place = target % (len(data) + 1)
            data[place:place] = piece
            return data

        return change

    return st.builds(edit, _PLACE, st.integers(1, 200), _PLACE)


_EDITS: tuple[Callable[[Sequence[bytes]], st.SearchStrategy[Edit]], ...] = (
    _set_byte,
    _set_number,
    _cut,
    _repeat,
    _overwrite,
    _insert,
    _move,
)


def mend_png(data: bytes) -> bytes:
    """A PNG whose chunks have true checksums again, so that what they hold is looked at."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size > len(data) - at - 12:
            break
        body = data[at + 4 : at + 8 + size]
        parts.append(data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big"))
        at += 12 + size
    return b"".join(parts) + data[at:]


LEAF: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.integers(),
    st.sampled_from((0.0, -1.5, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"))),
    st.sampled_from(("", "human", "weak", "..", "../x", "/etc/passwd", "a\nb", "\x1b[2J", "\ud800", "x" * 70_000)),
    st.text(max_size=9),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


def alter(valid: dict[str, Any], values: st.SearchStrategy[Any] = JSON) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping of which some entries have other values, are missing, or are new."""
    others = st.dictionaries(st.sampled_from(sorted(valid)) | st.text(max_size=9), values, max_size=4)
    return st.builds(
        lambda new, missing: {name: value for name, value in (valid | new).items() if name not in missing},
        others,
        st.sets(st.sampled_from(sorted(valid)), max_size=2),
    )
