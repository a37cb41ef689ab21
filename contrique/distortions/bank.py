"""The 25 distortions at 5 levels by name and number, and one picture distorted on the CPU (spec section 6)."""

import hashlib

import numpy as np

from contrique.distortions.kernels import KERNELS, Draws, Image
from contrique.errors import ContriqueError

# name -> the parameter at levels 1 to 5; the order is the numbering 1 to 25 of KADIS.
LEVELS: dict[str, tuple[float, ...]] = {
    "gaussian_blur": (0.1, 0.5, 1, 2, 5),  # sigma, pixels
    "lens_blur": (1, 2, 4, 6, 8),  # radius, pixels
    "motion_blur": (1, 2, 4, 6, 10),  # length, pixels
    "color_diffusion": (1, 3, 6, 8, 12),  # gain of a and b, blurred with sigma 1.5 * gain + 2
    "color_shift": (1, 3, 6, 8, 12),  # shift of green, pixels
    "color_quantization": (64, 48, 32, 16, 8),  # colours
    "saturation_hsv": (0.4, 0.2, 0.1, 0, -0.4),  # factor of S
    "saturation_lab": (1, 2, 3, 6, 9),  # factor of a and b
    "jpeg2000": (16, 32, 45, 120, 400),  # compression ratio
    "jpeg": (43, 36, 24, 7, 4),  # quality
    "white_noise": (0.001, 0.002, 0.003, 0.005, 0.01),  # variance
    "color_noise": (0.0001, 0.0005, 0.001, 0.002, 0.003),  # variance
    "impulse_noise": (0.001, 0.005, 0.01, 0.02, 0.03),  # density
    "multiplicative_noise": (0.001, 0.005, 0.01, 0.02, 0.05),  # variance
    "denoise": (0.01, 0.03, 0.05, 0.1, 0.15),  # variance of the noise that is then removed
    "brighten": (0.1, 0.2, 0.4, 0.7, 1.1),  # twice the lift of mid-grey
    "darken": (0.05, 0.1, 0.2, 0.4, 0.8),  # twice the drop of mid-grey
    "mean_shift": (0.15, 0.08, 0, -0.08, -0.15),  # added
    "jitter": (0.05, 0.1, 0.2, 0.5, 1),  # sigma of a displacement, pixels
    "non_eccentricity": (20, 40, 60, 80, 100),  # patches
    "pixelate": (0.01, 0.05, 0.1, 0.2, 0.5),  # strength s; the scale is 0.95 - s ** 0.6
    "quantization": (20, 16, 13, 10, 7),  # thresholds
    "color_block": (2, 4, 6, 8, 10),  # blocks
    "sharpen": (1, 2, 3, 6, 12),  # amount
    "contrast": (0.3, 0.15, 0, -0.4, -0.6),  # four times the push of the quartiles outwards
}
NAMES: tuple[str, ...] = tuple(LEVELS)

# Classes that leave a picture (nearly) as it is: labels of their own would make them false negatives of pristine.
IDENTITY: frozenset[tuple[str, int]] = frozenset(
    {("gaussian_blur", 1), ("motion_blur", 1), ("saturation_lab", 1), ("mean_shift", 3)}
)

MIN_SIDE = 32


class DistortionError(ContriqueError):
    """An unknown distortion or level, or an image of the wrong kind."""


def parameter(name: str, level: int) -> float:
    """The parameter of a distortion at a level 1 to 5 (spec section 6).

    Raises:
        DistortionError: there is no such distortion or level.
    """
    if name not in LEVELS:
        raise DistortionError(f"unknown distortion {name!r}; choose one of {', '.join(NAMES)}")
    if isinstance(level, bool) or not isinstance(level, int | np.integer) or not 1 <= level <= 5:
        raise DistortionError(f"{name}: level must be 1, 2, 3, 4 or 5, got {level!r}")
    return LEVELS[name][level - 1]


def class_id(name: str, level: int, merge_identity: bool = True) -> int:
    """The class of a synthetic picture in the auxiliary task (spec section 2).

    Args:
        name: one of NAMES, or "" for a pristine picture.
        level: 1 to 5, or 0 for a pristine picture.
        merge_identity: give the classes of IDENTITY the class of pristine; False restores the original labels.
    Returns:
        0 for pristine, 5 * (number - 1) + level in 1..125 otherwise.
    Raises:
        DistortionError: there is no such distortion or level.
    """
    if name == "" and level == 0:
        return 0
    parameter(name, level)
    if merge_identity and (name, level) in IDENTITY:
        return 0
    return 5 * NAMES.index(name) + int(level)


def generator(content: str, name: str, level: int, seed: int) -> np.random.Generator:
    """The generator of one distorted picture, whoever makes it and in whatever order.

    Args:
        content: hash of the pristine file's bytes, in hex.
        name, level: the distortion.
        seed: of the whole set.
    """
    digest = hashlib.sha256(f"{content}/{name}/{level}/{seed}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))


def distort(image: Image, name: str, level: int, rng: np.random.Generator) -> Image:
    """Distort a picture (spec section 6; docs/distortions.md says what each of the 25 does exactly).

    Args:
        image: RGB in [0, 1]. Shape (H, W, 3), float32, H and W at least 32. It is not written to.
        name: one of NAMES.
        level: 1 to 5; mostly the stronger the higher, but see docs/distortions.md for mean_shift and contrast.
        rng: source of every random number; distortions without any leave it as it is.
    Returns:
        RGB in [0, 1], shape and dtype as given, a new array.
    Raises:
        DistortionError: unknown name or level, or an image of another shape, type, size or range, or with NaN.
    """
    value = parameter(name, level)
    _check(image)
    if not isinstance(rng, np.random.Generator):
        raise DistortionError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
    distorted = KERNELS[name](np.ascontiguousarray(image), value, Draws(rng))
    return np.clip(distorted, 0, 1, out=distorted)


def _check(image: Image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.float32:
        kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
        raise DistortionError(f"image must be a float32 array, got {kind}; use contrique.images.as_float")
    if image.ndim != 3 or image.shape[2] != 3:
        raise DistortionError(f"image must have the shape (H, W, 3), got {image.shape}")
    if min(image.shape[:2]) < MIN_SIDE:
        raise DistortionError(f"image must be at least {MIN_SIDE} x {MIN_SIDE} pixels, got {image.shape[:2]}")
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise DistortionError(f"image must lie in [0, 1] without NaN, got {low:g} to {high:g}; divide 8-bit by 255")
