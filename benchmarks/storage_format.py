"""Which lossless format should the shards of distorted pictures hold? Decode time against bytes.

    python benchmarks/storage_format.py PHOTOGRAPHS [--count 4]

Encodes photographs (at most 512 pixels a side) and their distorted versions in each format and decodes them again, in
one process and thread; CPU time. About a minute.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from contrique import distortions, images


def pillow(format_: str, **options: object) -> Callable[[images.Picture], bytes]:
    def encode(pixels: images.Picture) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format_, **options)
        return buffer.getvalue()

    return encode


def decode(data: bytes) -> images.Picture:
    return images.decode(data).pixels


FORMATS: dict[str, tuple[Callable[..., bytes], Callable[[bytes], object]]] = {
    "raw": (lambda pixels: pixels.tobytes(), lambda data: np.frombuffer(data, np.uint8)),
    "PNG, level 1": (pillow("PNG", compress_level=1), decode),
    "PNG, level 6": (pillow("PNG", compress_level=6), decode),
    "PNG by spng": (lambda pixels: imagecodecs.spng_encode(pixels, level=1), imagecodecs.spng_decode),
    "QOI": (images.encode_qoi, decode),
    "WebP lossless, method 0": (lambda p: imagecodecs.webp_encode(p, 0, lossless=True, method=0), decode),
    "WebP lossless, method 4": (pillow("WEBP", lossless=True, quality=50, method=4), decode),
    "JPEG XL, effort 1": (
        lambda p: imagecodecs.jpegxl_encode(p, lossless=True, effort=1, numthreads=1),
        lambda data: imagecodecs.jpegxl_decode(data, numthreads=1),
    ),
    "JPEG XL, effort 3": (
        lambda p: imagecodecs.jpegxl_encode(p, lossless=True, effort=3, numthreads=1),
        lambda data: imagecodecs.jpegxl_decode(data, numthreads=1),
    ),
}


def pictures(folder: Path, count: int) -> list[images.Picture]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in images.EXTENSIONS)
    samples = []
    for file in files[:: max(1, len(files) // count)][:count]:
        photograph = images.fit_within(images.read(file), 512)
        samples.append(photograph)
        for name in distortions.NAMES:
            for level in (2, 4):
                rng = distortions.generator(file.name, name, level, 0)
                samples.append(images.as_uint8(distortions.distort(images.as_float(photograph), name, level, rng)))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--count", type=int, default=4, help="photographs; each gives 51 pictures")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    stored = pictures(options.photographs, options.count)
    raw = sum(pixels.nbytes for pixels in stored)
    print(f"{len(stored)} pictures, {raw / len(stored) / 1e3:.0f} kB raw each\n")
    print("| format | encode ms | decode ms | bytes / raw |\n|---|---|---|---|")
    for name, (encode, decode_) in FORMATS.items():
        start = time.process_time()
        files = [encode(pixels) for pixels in stored]
        middle = time.process_time()
        outputs = [decode_(data) for data in files]
        end = time.process_time()
        for pixels, output in zip(stored, outputs, strict=True):
            assert (np.asarray(output).ravel() == pixels.ravel()).all(), name
        times = [1000 * t / len(stored) for t in (middle - start, end - middle)]
        print(f"| {name} | {times[0]:.2f} | {times[1]:.2f} | {sum(map(len, files)) / raw:.3f} |")


if __name__ == "__main__":
    main()
