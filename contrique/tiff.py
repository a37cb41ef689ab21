"""What the numbers of a TIFF mean by its own tags. Pillow takes some for what they are not; those are refused."""

import ctypes
import io
import struct
from pathlib import Path
from typing import Any, Final

import PIL
from PIL import Image, TiffImagePlugin

from contrique.completeness import Unsupported, check_deflate, decode_jpeg

MAGIC: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUBFILE, _WIDTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _ROWS, _PLANES = 254, 256, 258, 259, 262, 278, 284
_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES, _TILE_WIDTH, _TILE_HEIGHT = 273, 279, 324, 325, 322, 323
_COLOURS, _INKS, _EXTRA, _FORMAT, _JPEG_TABLES, _RAW = 320, 332, 338, 339, 347, 50706
_UNSIGNED, _SEPARATE, _CMYK, _PREVIEW, _ALPHA = 1, 2, 1, 1, (1, 2)
_DEFLATE, _JPEG = (8, 32946), 7


def silence_libtiff() -> None:
    """Keep libtiff, as Pillow's wheels bring it, from printing what Pillow's exceptions say as well."""
    for library in Path(PIL.__file__).parents[1].glob("pillow.libs/libtiff*.so*"):
        ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)


def is_inverted(image: Image.Image) -> bool:
    """Whether zero is white in samples that Pillow leaves as they are stored: 16 bits, and floats."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0


def count_bits(image: Image.Image) -> int:
    """Bits that a sample of an integer picture has in the file."""
    return int(image.tag_v2.get(_BITS, (16,))[0]) if isinstance(image, TiffImagePlugin.TiffImageFile) else 16


def check_kind(image: TiffImagePlugin.TiffImageFile, max_pixels: int) -> None:
    """Refuse what Pillow would misread, before a pixel is decoded.

    Raises:
        Unsupported: signed or 32-bit integers, 16 bits in separate planes, a fourth channel without a stated meaning,
            inks other than CMYK, 8-bit colour maps, WebP inside, camera raw files, or tiles of over `max_pixels`.
    """
    tags: Any = image.tag_v2
    bits, extra = tags.get(_BITS, (1,)), tags.get(_EXTRA, (0,))
    kinds = {
        "a preview before the picture, as cameras' raw files have": _RAW in tags or tags.get(_SUBFILE, 0) & _PREVIEW,
        "signed integers": image.mode != "F" and set(tags.get(_FORMAT, ())) & {2, 3},
        "32-bit integers": image.mode == "I",
        "16 bits in separate planes": len(bits) > 1 and max(bits) > 8 and tags.get(_PLANES) == _SEPARATE,
        "a fourth channel that may be alpha or not": image.mode == "RGBA" and extra[0] not in _ALPHA,
        "inks other than CMYK": image.mode == "CMYK" and tags.get(_INKS, _CMYK) != _CMYK,
        "a colour map of 8 bits": image.mode == "P" and 0 < max(tags.get(_COLOURS, (0,))) < 256,
        "WebP inside": image.info.get("compression") == "webp",
    }
    for kind, present in kinds.items():
        if present:
            raise Unsupported(f"a TIFF with {kind}")
    width, height = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1)
    if _pad(image.width, width) * _pad(image.height, height) > max_pixels:
        raise Unsupported(f"a TIFF with tiles of {width}x{height}, over {max_pixels / 10**6:g} megapixels")


def check_data(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """Refuse JPEG and deflated data that are damaged: libtiff takes what it gets.

    Raises:
        ValueError: data are missing or overwritten.
    """
    tags: Any = image.tag_v2
    compression, tables = tags.get(_COMPRESSION), tags.get(_JPEG_TABLES, b"\xff\xd8")
    starts, sizes = tags.get(_STRIPS) or tags.get(_TILES, ()), tags.get(_STRIP_SIZES) or tags.get(_TILE_SIZES, ())
    width = tags.get(_TILE_WIDTH) or image.width
    height = tags.get(_TILE_HEIGHT) or min(tags.get(_ROWS, image.height), image.height)
    count = -(-image.width // width) * -(-image.height // height) * len(tags.get(_BITS, (1,)))  # at most
    for start, size in zip(starts[:count], sizes[:count], strict=False):
        part = data[start : start + size]
        if compression in _DEFLATE:
            check_deflate(part, width * height * sum(tags.get(_BITS, (1,))) // 8 + height)
        elif compression == _JPEG:
            decode_jpeg(tables.removesuffix(b"\xff\xd9") + part[2:], "GRAY")


def describe(data: bytes) -> str:
    """What is in a TIFF that Pillow does not know; empty if it has no tags of a picture."""
    try:
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(data[:8], prefix=data[:2])
        stream = io.BytesIO(data)
        stream.seek(struct.unpack({b"I": "<I", b"M": ">I"}[data[:1]], data[4:8])[0])
        tags.load(stream)
        values = [tags[tag] for tag in (_WIDTH, _PHOTOMETRIC, _COMPRESSION)]
        bits, kinds = tags.get(_BITS, (1,)), tags.get(_FORMAT, (_UNSIGNED,))
    except Exception:  # a header of anything
        return ""
    form = f"{'/'.join(map(str, bits[:4]))} bits, sample format {'/'.join(map(str, kinds[:4]))}"
    return f"a TIFF with {form}, photometric interpretation {values[1]}, compression {values[2]}"


def _pad(size: int, step: int) -> int:
    return -(-size // max(step, 1)) * step
