"""The distortion bank, measured: error against the definitions, severity, and time beside other libraries.

    taskset -c 1 python benchmarks/bank.py PHOTOGRAPHS [--count 30] [--rounds 5] [--sheet SHEET.jpg] [--devices cuda]

Times are CPU time of one thread at 512 x 384 on six photographs spread over the folder, the least of the rounds. A
Pillow JPEG 2000 round trip is timed before each distortion and counted alike: the least of the rounds at each of these
places, then their mean. Trust the ratio to it rather than the milliseconds when the machine is shared; both depend on
how detailed the photographs are. About seven minutes on a quiet core.
"""

import argparse
import io
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import piq
import torch
from PIL import Image

from contrique import distortions, images
from contrique.distortions import batch, kernels

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import reference_distortions as reference

SIZE = (512, 384)
SLOW = ("denoise", "color_quantization")  # not in the mean


def generator(name: str, level: int, k: int = 0) -> np.random.Generator:
    return distortions.generator(str(k), name, level, 0)


def read(folder: Path, count: int) -> list[kernels.Image]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in images.EXTENSIONS)
    sample = files[:: max(1, len(files) // count)][:count]
    return [images.as_float(np.asarray(Image.fromarray(images.read(file)).resize(SIZE))) for file in sample]


def reference_error(name: str, pictures: list[kernels.Image]) -> str:
    """The largest absolute error of any pixel and level against the slow float64 definition."""
    if not hasattr(reference, name):
        return "measured"
    worst = 0.0
    for k, picture in enumerate(pictures):
        small = cv2.resize(picture, (131, 97), interpolation=cv2.INTER_AREA)
        for level in range(1, 6):
            draws = kernels.Draws(generator(name, level, k))
            expected = getattr(reference, name)(small.astype(float), distortions.parameter(name, level), draws)
            output = distortions.distort(small, name, level, generator(name, level, k))
            worst = max(worst, float(np.abs(output - np.clip(expected, 0, 1)).max()))
    return f"{worst:.0e}"


def severity(name: str, pictures: list[kernels.Image]) -> dict[str, list[float]]:
    """Mean of 1 - SSIM and of MDSI over the photographs, at each level; 0 is no change."""

    def tensor(picture: kernels.Image) -> torch.Tensor:
        return torch.from_numpy(picture).permute(2, 0, 1)[None]

    result: dict[str, list[float]] = {"1 - SSIM": [], "MDSI": []}
    with torch.inference_mode():
        for level in range(1, 6):
            outputs = [distortions.distort(x, name, level, generator(name, 0, k)) for k, x in enumerate(pictures)]
            pairs = [(tensor(x), tensor(y)) for x, y in zip(outputs, pictures, strict=True)]
            result["1 - SSIM"].append(float(np.mean([1 - piq.ssim(x, y) for x, y in pairs])))
            result["MDSI"].append(float(np.mean([piq.mdsi(x, y) for x, y in pairs])))
    return result


def peers() -> dict[tuple[str, str], Callable[[kernels.Image, torch.Tensor, int], Any]]:
    """The same operation elsewhere: (distortion, library) to a call on the picture or its tensor at a level."""
    from scipy import ndimage
    from skimage import color, filters, util
    from torchvision.transforms.v2 import functional as tv

    def p(name: str, level: int) -> float:
        return distortions.parameter(name, level)

    calls: dict[tuple[str, str], Callable[[kernels.Image, torch.Tensor, int], Any]] = {
        ("gaussian_blur", "torchvision"): lambda x, t, n: tv.gaussian_blur(
            t, [kernels.gaussian_size(p("gaussian_blur", n))] * 2, [p("gaussian_blur", n)] * 2
        ),
        ("gaussian_blur", "scikit-image"): lambda x, t, n: filters.gaussian(
            x, p("gaussian_blur", n), truncate=2, mode="nearest", channel_axis=-1
        ),
        ("lens_blur", "SciPy"): lambda x, t, n: ndimage.correlate(
            x, kernels.disk(p("lens_blur", n))[..., None], mode="nearest"
        ),
        ("saturation_lab", "scikit-image"): lambda x, t, n: color.lab2rgb(color.rgb2lab(x) * [1, 2, 2]),
        ("saturation_hsv", "scikit-image"): lambda x, t, n: color.hsv2rgb(color.rgb2hsv(x) * [1, 0.4, 1]),
        ("jpeg2000", "Pillow"): lambda x, t, n: pillow_jpeg2000(x, int(p("jpeg2000", n))),
        ("jpeg", "torchvision"): lambda x, t, n: tv.jpeg((t * 255).byte(), int(p("jpeg", n))),
        ("white_noise", "torchvision"): lambda x, t, n: tv.gaussian_noise(t, sigma=p("white_noise", n) ** 0.5),
        ("white_noise", "scikit-image"): lambda x, t, n: util.random_noise(x, "gaussian", var=p("white_noise", n)),
        ("impulse_noise", "scikit-image"): lambda x, t, n: util.random_noise(x, "s&p", amount=p("impulse_noise", n)),
        ("multiplicative_noise", "scikit-image"): lambda x, t, n: util.random_noise(
            x, "speckle", var=p("multiplicative_noise", n)
        ),
        ("sharpen", "scikit-image"): lambda x, t, n: filters.unsharp_mask(x[..., 0], 3, p("sharpen", n)),
        ("color_quantization", "Pillow"): lambda x, t, n: Image.fromarray(kernels.to_bytes(x)).quantize(
            int(p("color_quantization", n)), dither=Image.Dither.FLOYDSTEINBERG
        ),
        ("pixelate", "Pillow"): lambda x, t, n: (
            Image.fromarray(kernels.to_bytes(x)).resize((200, 150), 0).resize(SIZE, 0)
        ),
    }
    try:
        import kornia
    except ModuleNotFoundError:
        return calls
    return calls | {
        ("gaussian_blur", "kornia"): lambda x, t, n: kornia.filters.gaussian_blur2d(
            t[None], kernels.gaussian_size(p("gaussian_blur", n)), (p("gaussian_blur", n),) * 2, "replicate"
        ),
        ("saturation_lab", "kornia"): lambda x, t, n: kornia.color.lab_to_rgb(kornia.color.rgb_to_lab(t[None])),
        ("saturation_hsv", "kornia"): lambda x, t, n: kornia.color.hsv_to_rgb(kornia.color.rgb_to_hsv(t[None])),
    }


def pillow_jpeg2000(picture: kernels.Image, ratio: int) -> kernels.Image:
    """Pillow's JPEG 2000 as peers call it: a compression ratio and defaults else."""
    buffer = io.BytesIO()
    Image.fromarray(kernels.to_bytes(picture)).save(
        buffer, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True
    )
    return kernels.from_bytes(np.asarray(Image.open(buffer)))


def milliseconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def times(
    pictures: list[kernels.Image], rounds: int
) -> tuple[dict[str, list[float]], dict[tuple[str, str], float], float]:
    """Per distortion the five levels, per peer the mean of its levels, and the JPEG 2000 round trip, ms a picture."""
    pairs = [(x, torch.from_numpy(x).permute(2, 0, 1).contiguous()) for x in pictures]
    others = peers()
    bank: dict[tuple[str, int], list[float]] = {}
    peer: dict[tuple[str, str, int], list[float]] = {}
    unit: dict[str, list[float]] = {}

    def time_call(call: Callable[..., Any], *arguments: Any) -> float:
        return float(np.mean([milliseconds(partial(call, x, t, *arguments)) for x, t in pairs]))

    def distort(x: kernels.Image, t: torch.Tensor, name: str, level: int) -> kernels.Image:
        return distortions.distort(x, name, level, generator(name, level))

    for _ in range(rounds):
        for name in distortions.NAMES:
            unit.setdefault(name, []).append(time_call(lambda x, t: pillow_jpeg2000(x, 45)))
            for level in range(1, 6):
                bank.setdefault((name, level), []).append(time_call(distort, name, level))
                for (of, library), call in others.items():
                    if of == name:
                        peer.setdefault((of, library, level), []).append(time_call(call, level))
    best = {name: [min(bank[name, level]) for level in range(1, 6)] for name in distortions.NAMES}
    peer_best = {key: float(np.mean([min(peer[*key, level]) for level in range(1, 6)])) for key in others}
    return best, peer_best, float(np.mean([min(rounds) for rounds in unit.values()]))


def batches(device: str, count: int = 256, side: int = 256) -> None:
    """Pictures a second of distort_batch, per distortion and mixed."""
    rng = torch.Generator(device).manual_seed(0)
    crops = torch.rand(count, 3, side, side, generator=rng, device=device)

    def rate(names: list[str], levels: list[int]) -> float:
        best = float("inf")
        for _ in range(3):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            distortions.distort_batch(crops, names, levels, rng)
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        return count / best

    print(f"\n{count} crops of {side} x {side} on {device}\n\n| distortion | crops a second |\n|---|---|")
    levels = [1 + k % 5 for k in range(count)]
    for name in distortions.NAMES:
        print(f"| {name} | {rate([name] * count, levels):,.0f} |", flush=True)
    mixed = [distortions.NAMES[k * 7 % 25] for k in range(count)]
    print(f"| all mixed | {rate(mixed, levels):,.0f} |")
    batched = list(batch.BATCHED)
    mixed = [batched[k * 7 % len(batched)] for k in range(count)]
    print(f"| all but the {len(batch.SERIAL)} on the CPU, mixed | {rate(mixed, levels):,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--count", type=int, default=30, help="photographs whose severity is averaged")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first photograph there")
    parser.add_argument("--devices", nargs="*", default=[], help="also time distort_batch on these")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    pictures = read(options.photographs, options.count)
    ours, theirs, unit = times(pictures[:: max(1, len(pictures) // 6)][:6], options.rounds)
    print("| # | distortion | error | severity: 1 - SSIM | severity: MDSI | ms | elsewhere, ms |\n" + "|---" * 7 + "|")
    for number, name in enumerate(distortions.NAMES, 1):
        severities = severity(name, pictures)
        columns = [" ".join(f"{value:.2f}" for value in values) for values in severities.values()]
        notes = [
            "" if (np.diff(v) > 0).all() or name in ("mean_shift", "contrast") else " (not rising)"
            for v in severities.values()
        ]
        others = ", ".join(f"{library} {ms:.2f}" for (of, library), ms in theirs.items() if of == name)
        cells = [reference_error(name, pictures[:2]), *(c + n for c, n in zip(columns, notes, strict=True))]
        print(f"| {number} | {name} | {' | '.join(cells)} | {np.mean(ours[name]):.2f} | {others} |", flush=True)
    mean = np.mean([np.mean(ms) for name, ms in ours.items() if name not in SLOW])
    print(
        f"\nPillow JPEG 2000 round trip: {unit:.1f} ms. Mean over the 23 types but {' and '.join(SLOW)}, 5 levels: ",
        end="",
    )
    print(f"{mean:.2f} ms, {mean / unit:.4f} of it. ", end="")
    print(", ".join(f"{name}: {np.mean(ours[name]):.1f} ms" for name in SLOW))
    if options.sheet:
        Image.fromarray(distortions.contact_sheet(images.as_uint8(pictures[0]), 0)).save(options.sheet, quality=85)
    for device in options.devices:
        batches(device)


if __name__ == "__main__":
    main()
