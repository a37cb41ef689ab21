"""A corpus of odd, hostile and broken image files, each a few kilobytes, made anew each time.

python tests/bad_inputs.py FOLDER
"""

import io
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from PIL import Image

from contrique.images import Picture, encode_qoi

HEIGHT, WIDTH = 80, 96
ORIENTATION = 0x0112


def photo() -> Picture:
    """Smooth colours, edges and noise. Shape (HEIGHT, WIDTH, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 12
    waves = np.stack([np.sin(x * (1 + c)) + np.cos(y * (2 + c)) for c in range(3)], axis=-1)
    return np.clip(128 + 40 * waves + rng.normal(0, 9, waves.shape), 0, 255).astype(np.uint8)


def build(folder: Path) -> list[Path]:
    """Write the corpus; returns its paths, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in [*_same_pixels(), *_readable(), *_broken(), *_foreign(), *_bombs()]:
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    return sorted(folder.iterdir())


def _encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _rotate(kind: str, **options: Any) -> bytes:
    """Stored on its side, with the orientation that turns it upright."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return _encode(Image.fromarray(np.ascontiguousarray(np.rot90(photo()))), kind, exif=exif, **options)


def _same_pixels() -> Iterator[tuple[str, bytes]]:
    """Files of the same pixels: the same score."""
    pixels = photo()
    picture = Image.fromarray(pixels)
    other = Image.new("RGB", picture.size, (9, 9, 9))
    yield "same_png.png", _encode(picture, "PNG")
    yield "same_bmp.bmp", _encode(picture, "BMP")
    yield "same_tiff.tif", _encode(picture, "TIFF")
    yield "same_tiff_lzw.tif", _encode(picture, "TIFF", compression="tiff_lzw")
    yield "same_webp_lossless.webp", _encode(picture, "WEBP", lossless=True)
    yield "same_ppm.ppm", _encode(picture, "PPM")
    yield "same_qoi.qoi", encode_qoi(pixels)
    yield "same_jpeg2000_lossless.jp2", _encode(picture, "JPEG2000")
    yield "same_opaque_alpha.png", _encode(picture.convert("RGBA"), "PNG")
    yield "same_16_bit.png", imagecodecs.png_encode(pixels.astype(np.uint16) * 257)
    yield "same_exif_rotated.png", _rotate("PNG")
    yield "same_exif_rotated.tif", _rotate("TIFF")
    yield "same_exif_rotated.webp", _rotate("WEBP", lossless=True)
    yield "same_animated.png", _encode(picture, "PNG", save_all=True, append_images=[other])
    yield "same_animated.webp", _encode(picture, "WEBP", lossless=True, save_all=True, append_images=[other])
    yield "same_pages.tif", _encode(picture, "TIFF", save_all=True, append_images=[other])
    yield "same_wrong_suffix.jpg", _encode(picture, "PNG")
    yield "same_junk_after_the_end.png", _encode(picture, "PNG") + b"junk" * 100
    yield "same_no_end_chunk.png", _encode(picture, "PNG")[:-12]


def _readable() -> Iterator[tuple[str, bytes]]:
    """Files that decode, each by a rule."""
    pixels = photo()
    picture = Image.fromarray(pixels)
    grey = picture.convert("L")
    exif = Image.Exif()
    exif[ORIENTATION] = 99
    yield "grey.png", _encode(grey, "PNG")
    yield "grey.jpg", _encode(grey, "JPEG")
    yield "grey_16_bit.png", _encode(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG")
    yield "grey_16_bit.tif", _encode(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "TIFF")
    white = np.asarray(grey).astype(np.uint16) * 257
    yield "white_is_zero.tif", _encode(Image.fromarray(65535 - white), "TIFF", tiffinfo={262: 0})
    yield "float.tif", _encode(Image.fromarray(np.asarray(grey).astype(np.float32) / 255), "TIFF")
    yield "one_bit.png", _encode(picture.convert("1"), "PNG")
    yield "cmyk.jpg", _encode(picture.convert("CMYK"), "JPEG")
    yield "cmyk.tif", _encode(picture.convert("CMYK"), "TIFF")
    yield "ycbcr.tif", _encode(picture.convert("YCbCr"), "TIFF")
    yield "palette.png", _encode(picture.quantize(32), "PNG")
    yield "palette_transparent.png", _encode(picture.quantize(32), "PNG", transparency=0)
    yield "palette.gif", _encode(picture, "GIF")
    yield "animated.gif", _encode(picture, "GIF", save_all=True, append_images=[Image.new("RGB", picture.size)])
    clear = np.dstack([pixels, np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)])
    yield "alpha.png", _encode(Image.fromarray(clear), "PNG")
    yield "alpha.webp", _encode(Image.fromarray(clear), "WEBP", lossless=True)
    yield "grey_alpha.png", _encode(Image.fromarray(clear).convert("LA"), "PNG")
    yield "progressive.jpg", _encode(picture, "JPEG", progressive=True)
    yield "exif_orientation_99.jpg", _encode(picture, "JPEG", exif=exif)
    yield "exif_garbage.jpg", _encode(picture, "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    yield "junk_after_the_end.jpg", _encode(picture, "JPEG") + b"x" * 500
    yield "black.png", _encode(Image.new("RGB", (96, 80)), "PNG")
    yield "smallest_64x64.png", _encode(picture.crop((0, 0, 64, 64)), "PNG")
    yield "thin_3000x64.png", _encode(picture.resize((3000, 64)), "PNG")


def _broken() -> Iterator[tuple[str, bytes]]:
    """Files that lost or changed something."""
    picture = Image.fromarray(photo())
    kinds = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "GIF": "gif", "PPM": "ppm"}
    for kind, suffix in kinds.items():
        data = _encode(picture, kind)
        yield f"half.{suffix}", data[: len(data) // 2]
    qoi = encode_qoi(photo())
    yield "half.qoi", qoi[: len(qoi) // 2]
    yield "header_only.png", _encode(picture, "PNG")[:33]
    copy = bytearray(_encode(picture, "PNG"))
    copy[60] ^= 255
    yield "changed_byte.png", bytes(copy)
    yield "too_little_data.png", _png(WIDTH, HEIGHT, bytes(100))
    yield "no_width.png", _png(0, HEIGHT, b"")
    progressive = _encode(picture, "JPEG", progressive=True)
    yield "half_progressive.jpg", progressive[: len(progressive) // 2]
    yield "nan.tif", _encode(Image.fromarray(np.full((HEIGHT, WIDTH), np.nan, np.float32)), "TIFF")
    yield "lab.tif", _encode(Image.new("LAB", (WIDTH, HEIGHT), (100, 10, 10)), "TIFF")
    yield "one_pixel.png", _encode(picture.crop((0, 0, 1, 1)), "PNG")
    yield "thin_3000x63.png", _encode(picture.resize((3000, 63)), "PNG")
    yield "empty.png", b""
    jpeg, webp = _encode(picture, "JPEG"), _encode(picture, "WEBP")
    yield "hole.jpg", jpeg[:1300] + jpeg[-200:]
    yield "first_scan.jpg", progressive[: progressive.index(b"\xff\xc4", progressive.index(b"\xff\xda"))] + b"\xff\xd9"
    yield "hole.qoi", qoi[:5000] + qoi[-5000:]
    yield "zero_tail.webp", webp[: len(webp) // 2] + bytes(len(webp) - len(webp) // 2)
    yield "transparent.png", _encode(Image.new("RGBA", picture.size, (9, 9, 9, 0)), "PNG")


def _foreign() -> Iterator[tuple[str, bytes]]:
    """Files that are no images, or in formats that are not read."""
    yield "text.png", b"hello\n"
    yield "page.jpg", b"<!doctype html><html><body>404 Not Found</body></html>"
    yield "drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"/>'
    yield "document.pdf", b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"
    yield "postscript.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n"
    yield "archive.zip", b"PK\3\4" + bytes(60)
    yield "film.mp4", b"\0\0\0\x20ftypisom" + bytes(60)
    yield "phone.heic", b"\0\0\0\x20ftypheic" + bytes(60)
    yield "signed.tif", _encode(Image.fromarray(photo()[..., 0].astype(np.int32)), "TIFF")
    yield "icon.ico", _encode(Image.fromarray(photo()), "ICO")
    yield "zeros.jpg", bytes(1000)
    yield "noise.png", np.random.default_rng(1).bytes(2000)


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Few bytes that ask for gigabytes."""
    yield "bomb_900_megapixels.png", _png(30_000, 30_000, b"")
    yield "bomb_300_megapixels.png", _png(20_000, 15_000, b"")
    yield "bomb.ppm", b"P6 60000 60000 255 "
    yield "bomb.qoi", b"qoif" + struct.pack(">II", 60_000, 60_000) + bytes([3, 0]) + bytes(100)
    yield "bomb.gif", b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\0\0\0"
    yield "bomb.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    text = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    yield "bomb_of_text.png", _png(WIDTH, HEIGHT, bytes(HEIGHT * (3 * WIDTH + 1)), (b"zTXt", text))


def _png(width: int, height: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    frames = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(frames)


if __name__ == "__main__":
    for path in build(Path(sys.argv[1])):
        print(path)
