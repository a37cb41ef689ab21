"""Read, write and measure images; every format and every bad input is handled here."""

import hashlib
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from contrique import completeness, tiff
from contrique.errors import ContriqueError
from contrique.files import StorageError, read_regular
from contrique.walk import SUFFIXES

EXTENSIONS = SUFFIXES
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow's; others can run programs
MAX_PIXELS = 200_000_000  # a decompression bomb is refused before a pixel is decoded
MAX_BYTES = 2_000_000_000  # of a file
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow's own limit, which is lower, would warn of scans and panoramas
warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata; what is wrong with a picture is refused here
tiff.silence_libtiff()
_STRIP: Final = 2**22  # pixels that are converted at once
_FLOAT_SLACK: Final = 1 / 512  # beyond 0 and 1, as rounding leaves it
_ORIENTATION: Final = 0x0112
_EXIF: Final = 0x8769  # where the camera's own entries are
_DATE_TAKEN: Final = 0x9003
_JPEG_COLOURS: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # by Pillow's mode
_DAMAGED: Final = "damaged or truncated ({}); fetch the file again"
_PNM_KINDS: Final = b"0123456fy"  # as Pillow tells them apart, by their second byte
_PLAIN_PNM: Final = (b"P1", b"P2", b"P3")
_PNM_HEADER_BYTES: Final = 2**16
_PNM_NUMBER = rb"(?:\s|#[^\r\n]*[\r\n])+[\d.+-]+"
_PNM_HEADER = re.compile(rb"(?:P[14](?:%b){2}|P(?:0CMYK|y\w+|[2356f])(?:%b){3})\s" % (_PNM_NUMBER, _PNM_NUMBER))
_PNM_COMMENT = re.compile(rb"#[^\r\n]*")

Picture = NDArray[np.uint8]


class BadImage(ContriqueError):
    """An image that cannot be read; the message names the file, the reason and the remedy."""


@dataclass(frozen=True)
class Decoded:
    """A decoded picture and what its file declared.

    Attributes:
        pixels: RGB. Shape (H, W, 3), uint8.
        channels: channels that the file stored (1 grey, 3 colour, 4 with alpha).
    """

    pixels: Picture
    channels: int


def decode(data: bytes, name: str = "image", max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an image file to 8-bit RGB, upright.

    EXIF orientation is applied, alpha is composed over white, 16-bit is scaled to 8, CMYK and palettes are
    converted, and of an animation the first frame is taken. The whole policy: docs/inputs.md.

    Args:
        data: the file's bytes, in one of FORMATS or QOI.
        name: what error messages call the file.
        max_pixels: above which it is refused before a pixel is decoded; at most MAX_PIXELS.
    Returns:
        the picture, RGB, uint8.
    Raises:
        BadImage: empty, truncated, damaged, not an image, of a kind that is not supported, transparent throughout, or
            more than `max_pixels`.
    """
    with _decoding_errors(data, name):
        if data[:4] == completeness.QOI:
            return _decode_qoi(data, name, max_pixels)
        with Image.open(io.BytesIO(_without_comments(data)), formats=FORMATS) as image:
            _refuse_bomb(image.width, image.height, name, max_pixels)
            channels = len(image.getbands())
            if image.format in ("JPEG", "MPO") and (pixels := _decode_jpeg(data, image)) is not None:
                return Decoded(pixels, channels)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                tiff.check_kind(image, max_pixels)
                tiff.check_data(image, data)
            if image.format == "WEBP":
                completeness.check_webp(data)
            _scale_key(image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # a copy of 100 megapixels would be 400 MB
            pixels = _to_rgb(image, name)
            _refuse_invisible(pixels, image, name)
            return Decoded(pixels, channels)


def declared_size(data: bytes, name: str = "image") -> tuple[int, int]:
    """Width and height that an image file declares, before rotation; no pixel is decoded.

    Raises:
        BadImage: as `decode`, as far as the header shows.
    """
    with _decoding_errors(data, name):
        if data[:4] == completeness.QOI:
            return int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
        with Image.open(io.BytesIO(_without_comments(data)), formats=FORMATS) as image:
            return image.size


@contextmanager
def _decoding_errors(data: bytes, name: str) -> Iterator[None]:
    """Turn what Pillow and imagecodecs raise into one line that names the file and the remedy."""
    if not data:
        raise BadImage(f"{name}: the file is empty; replace it or remove its row")
    try:
        yield
    except BadImage:
        raise
    except completeness.Unsupported as error:
        raise BadImage(f"{name}: {error} is not supported; convert it to an 8-bit PNG") from None
    except Image.DecompressionBombError:  # more than twice MAX_PIXELS
        raise BadImage(f"{name}: over {2 * MAX_PIXELS // 10**6} megapixels; downscale it first") from None
    except UnidentifiedImageError:
        if data.startswith(tiff.MAGIC):
            kind = tiff.describe(data)
            what = f"{kind} is not supported; convert it to an 8-bit PNG" if kind else _DAMAGED.format("no TIFF tags")
            raise BadImage(f"{name}: {what}") from None
        raise BadImage(f"{name}: not an image in a known format; remove it or convert it to PNG") from None
    except MemoryError:
        raise BadImage(f"{name}: takes more memory to decode than there is; downscale it first") from None
    except Exception as error:  # Pillow and imagecodecs raise many types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{name}: {_DAMAGED.format(reason)}") from error


def _without_comments(data: bytes) -> bytes:
    """A PNM without the comments that Pillow takes long over; anything else as it is."""
    if data[:1] != b"P" or data[1:2] not in _PNM_KINDS:
        return data
    header = _PNM_HEADER.match(data, 0, _PNM_HEADER_BYTES)
    if not header:
        raise ValueError(f"no header in its first {_PNM_HEADER_BYTES} bytes")
    body = data[header.end() :]
    if data[:2] in _PLAIN_PNM:
        body = _PNM_COMMENT.sub(b"", body)
    return b" ".join(_PNM_COMMENT.sub(b"", header[0]).split()) + b"\n" + body


def _decode_qoi(data: bytes, name: str, max_pixels: int) -> Decoded:
    _refuse_bomb(int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big"), name, max_pixels)
    pixels = completeness.decode_qoi(data)
    if pixels.shape[-1] == 3:
        return Decoded(pixels, 3)
    image = Image.fromarray(pixels)
    rgb = _to_rgb(image, name)
    _refuse_invisible(rgb, image, name)
    return Decoded(rgb, 4)


def _decode_jpeg(data: bytes, image: Image.Image) -> Picture | None:
    """Shape (H, W, 3), upright; None if Pillow alone can make RGB of it."""
    pixels = completeness.decode_jpeg(data, _JPEG_COLOURS[image.mode])
    if pixels is None or image.mode == "CMYK":
        return None
    if image.mode == "L":
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return np.ascontiguousarray(_turn_upright(pixels, image.getexif().get(_ORIENTATION)))


def _turn_upright(pixels: Picture, orientation: object) -> Picture:
    """By EXIF's number; any other value leaves the picture as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _refuse_bomb(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImage(f"{name}: {width}x{height} is over {max_pixels / 10**6:g} megapixels; downscale it first")


def _refuse_invisible(pixels: Picture, image: Image.Image, name: str) -> None:
    """Some writers of BMP and TIFF leave an alpha of 0 in pictures that have none."""
    if not _has_alpha(image) or pixels.min() < 255:
        return
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (0, 0):
        raise BadImage(f"{name}: transparent throughout; remove its alpha channel")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa") or (image.mode in "1LPRGB" and "transparency" in image.info)


def _scale_key(image: ImageFile.ImageFile) -> None:
    """Bring the transparent level of a grey PNG of 2 or 4 bits to the scale to which Pillow brings its pixels."""
    key, stored = image.info.get("transparency"), str(image.tile[0].args) if image.tile else ""
    if image.format != "PNG" or key is None:
        return
    if stored == "RGB;16B":
        raise completeness.Unsupported("a PNG with a transparent colour of 16 bits")
    if stored in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if stored == "L;2" else 17)


def _to_rgb(image: Image.Image, name: str) -> Picture:
    """Shape (H, W, 3). Strip by strip: several whole copies of 200 megapixels would be gigabytes."""
    if image.mode in ("LAB", "HSV"):
        raise BadImage(f"{name}: stored in the colour space {image.mode}; convert it to RGB")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    convert = _choose_conversion(image, name)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        whole = rows >= image.height
        pixels[top:bottom] = convert(image if whole else image.crop((0, top, image.width, bottom)))
    return pixels


def _choose_conversion(image: Image.Image, name: str) -> Callable[[Image.Image], NDArray[Any]]:
    """What makes RGB, or grey of shape (h, w, 1), of a strip of the picture."""
    if image.mode.startswith("I"):
        levels = _list_levels(image)
        return lambda strip: levels[np.clip(np.asarray(strip), 0, len(levels) - 1)][..., None]
    if image.mode == "F":
        white = 0.0 if tiff.is_inverted(image) else 1.0
        return lambda strip: _scale_floats(strip, white, name)[..., None]
    if _has_alpha(image) or image.mode == "La":
        return _compose_over_white
    return lambda strip: np.asarray(strip.convert("RGB"))


def _list_levels(image: Image.Image) -> Picture:
    """The 8-bit level of each value of an integer picture: scaled, white if it stands for transparency."""
    top = 2 ** tiff.count_bits(image) - 1
    levels: Picture = np.floor(np.arange(top + 1) * (255 / top) + 0.5).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        levels[min(key, top)] = 255
    return levels[::-1] if tiff.is_inverted(image) else levels


def _scale_floats(strip: Image.Image, white: float, name: str) -> Picture:
    values = np.asarray(strip, dtype=np.float64)
    if not np.isfinite(values).all():
        raise BadImage(f"{name}: holds NaN or infinite values; replace them, or convert it to PNG")
    if values.min() < -_FLOAT_SLACK or values.max() > 1 + _FLOAT_SLACK:
        raise BadImage(f"{name}: holds floats outside 0 to 1; scale them, or convert it to PNG")
    return np.clip(np.abs(1 - white - values) * 255 + 0.5, 0, 255).astype(np.uint8)


def _compose_over_white(strip: Image.Image) -> Picture:
    rgba = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def read_bytes(path: Path | str) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImage: missing, unreadable, not a regular file (a pipe, a device), or over MAX_BYTES.
    """
    try:
        return read_regular(path, MAX_BYTES)
    except StorageError as error:
        raise BadImage(str(error)) from error


def read(path: Path | str) -> Picture:
    """Read an image file as RGB. Shape (H, W, 3), uint8.

    Raises:
        BadImage: as `decode` and `read_bytes`.
    """
    return read_decoded(path).pixels


def read_decoded(path: Path | str) -> Decoded:
    """As `read`, with what the file declared."""
    return decode(read_bytes(path), str(path))


def read_day(path: Path | str) -> str:
    """The day on which a picture was taken, as its EXIF has it. ISO 8601; empty if it has none that is a day.

    Raises:
        BadImage: as `read_bytes`.
    """
    data = read_bytes(path)
    try:
        with _decoding_errors(data, str(path)), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            text = str(image.getexif().get_ifd(_EXIF).get(_DATE_TAKEN, ""))
        return date(*map(int, text[:10].split(":"))).isoformat()
    except (BadImage, ValueError, TypeError):  # damaged EXIF says nothing; the pixels may be whole all the same
        return ""


def encode_png(pixels: Picture) -> bytes:
    """Encode RGB (H, W, 3) uint8 as PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def encode_qoi(pixels: Picture) -> bytes:
    """Encode RGB (H, W, 3) uint8 as QOI: lossless, decoded three times faster than PNG."""
    return bytes(imagecodecs.qoi_encode(pixels))


def half_scale(pixels: Picture) -> Picture:
    """The half-scale picture, (W // 2, H // 2), by Pillow's bicubic on the 8-bit image (spec section 5).

    Args:
        pixels: RGB. Shape (H, W, 3), uint8, H and W at least 2.
    Returns:
        RGB. Shape (H // 2, W // 2, 3), uint8.
    """
    height, width = pixels.shape[:2]
    # elsewhere Pillow takes the columns first, or its weights are no multiples of 1/256
    if height % 2 or width % 2 or height > 2 * width or min(height, width) < 16:
        return _half_by_pillow(pixels, 0, width)
    if sys.modules.get("torch") is None:  # a process that scores without it shall not wait for its import
        return _half_by_pillow(pixels, 0, width)
    import torch

    # Pillow's very values in a seventh of the time, but for the two outermost pixels, where taps are missing
    planes = torch.from_numpy(np.require(pixels, requirements=("C", "W"))).permute(2, 0, 1)[None]
    half = torch.nn.functional.interpolate(planes, (height // 2, width // 2), mode="bicubic", antialias=True)
    out: Picture = half[0].permute(1, 2, 0).numpy()
    out[:2], out[-2:] = _half_by_pillow(pixels[:8], 0, width)[:2], _half_by_pillow(pixels[-8:], 0, width)[-2:]
    out[:, :2], out[:, -2:] = _half_by_pillow(pixels, 0, 4), _half_by_pillow(pixels, width - 4, width)
    return out


def _half_by_pillow(pixels: Picture, left: int, right: int) -> Picture:
    """What becomes of the columns from `left` to `right`."""
    height = len(pixels)
    size, box = ((right - left) // 2, height // 2), (left, 0, right, height)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=box))


def fit_within(pixels: Picture, max_side: int) -> Picture:
    """Downscale so that the longer side is at most `max_side`; smaller pictures come back as they are."""
    height, width = pixels.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def content_hash(data: bytes) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def perceptual_hash(pixels: Picture) -> str:
    """64-bit DCT perceptual hash of a picture, in hex: near-duplicates differ in few bits.

    The 8 x 8 lowest frequencies of the 32 x 32 grey picture, each against their median (Zauner 2010; the
    construction of ImageHash's `phash`, with an orthonormal DCT).
    """
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float64)
    low = cv2.dct(small)[:8, :8]
    bits = (low > np.median(low)).ravel()
    return f"{int(''.join('1' if b else '0' for b in bits), 2):016x}"


def hamming(a: str, b: str) -> int:
    """Bits by which two hex hashes of the same length differ."""
    return (int(a, 16) ^ int(b, 16)).bit_count()


def as_float(pixels: Picture) -> NDArray[np.float32]:
    """8-bit RGB to float32 in [0, 1], the same shape."""
    return pixels.astype(np.float32) / np.float32(255)


def as_uint8(pixels: NDArray[Any]) -> Picture:
    """Float RGB in [0, 1] to 8-bit, rounded and clipped, the same shape."""
    return np.asarray(np.clip(np.rint(pixels * 255.0), 0, 255), dtype=np.uint8)
