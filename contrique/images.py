"""Read, write and measure images; every format and every bad input is handled here."""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from contrique.errors import ContriqueError
from contrique.files import StorageError, read_regular
from contrique.walk import SUFFIXES

EXTENSIONS = SUFFIXES
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow's; others can run programs
MAX_PIXELS = 200_000_000  # a decompression bomb is refused before a pixel is decoded
MAX_BYTES = 2_000_000_000  # of a file
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow's own limit, which is lower, would warn of scans and panoramas
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # what is over the limit is refused here
_QOI = b"qoif"

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
        BadImage: empty, truncated, not an image, or more than `max_pixels`.
    """
    with _explained(data, name):
        if data[:4] == _QOI:
            return _decode_qoi(data, name, max_pixels)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_bomb(image.width, image.height, name, max_pixels)
            image.load()
            channels = len(image.getbands())
            ImageOps.exif_transpose(image, in_place=True)  # a copy of 100 megapixels would be 400 MB
            return Decoded(np.array(_to_rgb(image, name)), channels)


def declared_size(data: bytes, name: str = "image") -> tuple[int, int]:
    """Width and height that an image file declares, before rotation; no pixel is decoded.

    Raises:
        BadImage: as `decode`, as far as the header shows.
    """
    with _explained(data, name):
        if data[:4] == _QOI:
            return int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size


@contextmanager
def _explained(data: bytes, name: str) -> Iterator[None]:
    """Turn what Pillow and imagecodecs raise into one line that names the file and the remedy."""
    if not data:
        raise BadImage(f"{name}: the file is empty; replace it or remove its row")
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError:  # more than twice MAX_PIXELS
        raise BadImage(f"{name}: over {2 * MAX_PIXELS // 10**6} megapixels; downscale it first") from None
    except UnidentifiedImageError:
        raise BadImage(f"{name}: not an image in a known format; remove it or convert it to PNG") from None
    except Exception as error:  # Pillow and imagecodecs raise many types for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{name}: damaged or truncated ({reason}); fetch the file again") from error


def _decode_qoi(data: bytes, name: str, max_pixels: int) -> Decoded:
    _refuse_bomb(int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big"), name, max_pixels)
    if not data.endswith(b"\0\0\0\0\0\0\0\1"):  # the decoder fills what is missing with black, and says nothing
        raise ValueError("no end marker")
    pixels = imagecodecs.qoi_decode(data)
    channels = pixels.shape[2]
    return Decoded(pixels if channels == 3 else np.array(_to_rgb(Image.fromarray(pixels), name)), channels)


def _refuse_bomb(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadImage(f"{name}: {width}x{height} is over {max_pixels / 10**6:g} megapixels; downscale it first")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise BadImage(f"{name}: holds NaN or infinite values; replace them, or convert it to PNG")
        scale = 255.0 / 65535.0 if image.mode.startswith("I") else 255.0
        return Image.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("LAB", "HSV"):
        raise BadImage(f"{name}: stored in the colour space {image.mode}; convert it to RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


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
    import torch

    # Pillow's very values in a seventh of the time, but for the two outermost pixels, where taps are missing
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
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
