"""CPU kernels of the 25 distortions. Each takes (image, parameter, draws) and returns a new array, not yet clipped.

`image` is RGB float32 in [0, 1], shape (H, W, 3), C-contiguous; `parameter` is the level's value in LEVELS. Filters
replicate the border. Definitions: spec section 6; MATLAB's functions where they are named.
"""

import io
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image as Pillow

from contrique.distortions.palette import minimum_variance_palette

Image = NDArray[np.float32]
Plane = NDArray[np.float32]

REPLICATE = cv2.BORDER_REPLICATE
PATCH = 16  # side of the patches of non_eccentricity
REACH = 8  # how far they move
BLOCK = 32  # side of the blocks of color_block
JITTER_ITERATIONS = 5
CV2_DFT_AREA = 120  # cv2.filter2D takes the DFT above
QCD = 0x5C  # second byte of JPEG 2000's marker of the quantisation steps
TV_WEIGHT = 0.8  # of the noise's sigma: the best PSNR over the five levels of denoise
TV_ITERATIONS = 10  # twice as many gain less than 0.1 dB

# MATLAB's rgb2ycbcr: BT.601, studio swing, on [0, 1].
YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
YCBCR_OFFSET = np.array([16, 128, 128]) / 255

# OpenCV's, so that both banks and OpenCV's way back from Lab agree
RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = np.array([0.950456, 1.0, 1.088754])
ROOTS_TO_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])  # then L - 16
LAB_KNEE = (6 / 29) ** 3  # below it CIE's cube root is its tangent there
LAB_SLOPE = (29 / 6) ** 2 / 3

# glibc keeps freed blocks at hand only up to the size of the largest freed before, at most 32 MB. Without this one the
# temporary arrays cost a page fault every 4 kB, which doubles the time of some kernels.
np.empty(31 << 20, np.uint8)


@lru_cache
def _normal_quantiles() -> NDArray[np.float32]:
    from scipy.special import ndtri

    quantiles = ndtri((np.arange(65536) + 0.5) / 65536)
    return cast(NDArray[np.float32], (quantiles / quantiles.std()).astype(np.float32))


@lru_cache
def _srgb_to_linear() -> NDArray[np.float32]:
    value = np.arange(65536) / 65535
    return np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92).astype(np.float32)


@lru_cache
def _linear_to_srgb() -> NDArray[np.float32]:
    value = np.arange(65536) / 65535
    return np.where(value > 0.0031308, 1.055 * value ** (1 / 2.4) - 0.055, 12.92 * value).astype(np.float32)


class Draws:
    """Random arrays from a NumPy generator.

    Normal and uniform values take one of 65,536 quantiles, looked up: five times faster than the ziggurat, the same
    variance, and a tail that ends at 4.2 sigma, far below what 8-bit pixels in [0, 1] can show.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def _words(self, shape: tuple[int, ...]) -> NDArray[np.uint16]:
        count = math.prod(shape)
        words = self.rng.integers(0, 2**64 - 1, (count + 3) // 4, dtype=np.uint64, endpoint=True)
        return words.view(np.uint16)[:count].reshape(shape)

    def normal(self, shape: tuple[int, ...], sigma: float = 1) -> NDArray[np.float32]:
        """Normal values of mean 0."""
        return cast(NDArray[np.float32], cv2.LUT(self._words(shape), _normal_quantiles() * np.float32(sigma)))

    def uniform(self, shape: tuple[int, ...], low: float = 0, high: float = 1) -> NDArray[np.float32]:
        """Uniform values in (low, high), the middles of 65,536 equal bins."""
        width = (high - low) / 65536
        values = np.multiply(self._words(shape), np.float32(width), dtype=np.float32)
        values += np.float32(low + width / 2)
        return values


def to_bytes(image: Image) -> NDArray[np.uint8]:
    """[0, 1] to 8-bit, rounded."""
    return cast(NDArray[np.uint8], cv2.convertScaleAbs(image, alpha=255))


def from_bytes(image: NDArray[np.uint8]) -> Image:
    """8-bit to [0, 1]."""
    return np.divide(image, np.float32(255), dtype=np.float32)


def _look_up(values: NDArray[np.float32], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """A function of [0, 1] by its table of 65,536 values."""
    index = cv2.addWeighted(values, 65535, values, 0, 0, dtype=cv2.CV_16U)  # rounds and saturates in one pass
    return cast(NDArray[np.float32], cv2.LUT(index, table))


def to_lab(image: Image, chroma: float = 1) -> Image:
    """sRGB to CIE Lab, D65, a and b times `chroma`. OpenCV's own path is slower, and errs by 0.2 in L from sRGB."""
    xyz = cv2.transform(_look_up(image, _srgb_to_linear()), RGB_TO_XYZ / WHITE[:, None])
    dark = cv2.threshold(xyz, LAB_KNEE, 0, cv2.THRESH_TRUNC)[1]
    logarithms = cv2.log(np.clip(xyz, np.float32(LAB_KNEE), np.inf, out=xyz), dst=xyz)
    logarithms *= np.float32(1 / 3)
    roots = cv2.scaleAdd(dark, LAB_SLOPE, cv2.exp(logarithms, dst=xyz), dst=dark)  # LAB_SLOPE * LAB_KNEE too large
    matrix = ROOTS_TO_LAB * np.array([1, chroma, chroma])[:, None]
    offset = np.array([-16, 0, 0]) - matrix.sum(axis=1) * LAB_SLOPE * LAB_KNEE
    return cast(Image, cv2.transform(roots, np.column_stack([matrix, offset]), dst=roots))


def from_lab(lab: Image) -> Image:
    """CIE Lab to sRGB, clipped to [0, 1]."""
    return _look_up(cast(Image, cv2.cvtColor(lab, cv2.COLOR_Lab2LRGB)), _linear_to_srgb())


def gaussian_size(sigma: float) -> int:
    """Side of a Gaussian kernel that reaches two sigma (MATLAB's imgaussfilt)."""
    return 2 * math.ceil(2 * sigma) + 1


def _gaussian(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    size = gaussian_size(sigma)
    return cast(NDArray[np.float32], cv2.GaussianBlur(image, (size, size), sigma, borderType=REPLICATE))


def _correlate(image: Image, kernel: NDArray[np.float32]) -> Image:
    """Correlation with an odd-sided kernel, in strips of rows small enough that cv2 does not turn to slow DFTs."""
    height, width = image.shape[:2]
    down, right = kernel.shape[0] // 2, kernel.shape[1] // 2
    strip = CV2_DFT_AREA // kernel.shape[1]
    if strip >= kernel.shape[0]:
        return cast(Image, cv2.filter2D(image, -1, kernel, borderType=REPLICATE))
    padded = cv2.copyMakeBorder(image, down, down, right, right, REPLICATE)
    total = np.zeros_like(image)
    for start in range(0, kernel.shape[0], strip):
        part = kernel[start : start + strip]
        top = start + part.shape[0] // 2
        total += cv2.filter2D(padded, -1, part)[top : top + height, right : right + width]
    return total


# 1 to 3: blur


def gaussian_blur(image: Image, sigma: float, draws: Draws) -> Image:
    """Gaussian filter of side 2 * ceil(2 * sigma) + 1."""
    return _gaussian(image, sigma)


@lru_cache
def disk(radius: float) -> NDArray[np.float32]:
    """Pillbox kernel: the area of each pixel inside a circle (MATLAB's fspecial('disk')).

    Shape (2 * ceil(radius - 0.5) + 1,) * 2, sum 1.
    """
    reach = math.ceil(radius - 0.5)
    edge = np.arange(2 * reach + 2) - reach - 0.5

    def area_below(x: NDArray[np.float64]) -> NDArray[np.float64]:  # of the circle's upper half, from 0 to x
        x = np.clip(x, -radius, radius)
        area: NDArray[np.float64] = 0.5 * (x * np.sqrt(radius**2 - x**2) + radius**2 * np.arcsin(x / radius))
        return area

    def area_above(y: float) -> NDArray[np.float64]:  # of each column's part of the circle above a height y >= 0
        end = math.sqrt(max(radius**2 - y**2, 0.0))
        x = np.clip(edge, -end, end)
        return cast(NDArray[np.float64], np.diff(area_below(x)) - y * np.diff(x))

    above = [area_above(max(y, 0.0)) for y in (*edge[reach + 1 :], math.inf) if math.isfinite(y)]
    upper = np.array([above[k] - above[k + 1] for k in range(reach)])
    centre = 2 * (area_above(0.0) - above[0])
    kernel = np.vstack([upper[::-1], centre, upper])
    return cast(NDArray[np.float32], (kernel / kernel.sum()).astype(np.float32))


def lens_blur(image: Image, radius: float, draws: Draws) -> Image:
    """Pillbox filter."""
    return _correlate(image, disk(radius))


@lru_cache(maxsize=1024)
def motion(length: float, angle: int) -> NDArray[np.float32]:
    """Linear motion kernel (MATLAB's fspecial('motion')), sum 1.

    A pixel weighs 1 minus its distance to a segment of length - 1 pixels through the centre.

    Args:
        length: pixels, at least 1.
        angle: degrees, counter-clockwise.
    """
    half = (max(length, 1) - 1) / 2
    phi = math.radians(angle % 180)
    reach = math.ceil(half)
    y, x = np.mgrid[reach : -reach - 1 : -1, -reach : reach + 1]
    along = np.abs(x * math.cos(phi) + y * math.sin(phi))
    across = np.abs(y * math.cos(phi) - x * math.sin(phi))
    # beyond the reach of the segment MATLAB measures to its end point, even beside its last pixel
    distance = np.where(np.hypot(x, y) >= half, np.hypot(across, half - along), across)
    kernel = np.maximum(1 - distance, 0)
    return cast(NDArray[np.float32], (kernel / kernel.sum()).astype(np.float32))


def motion_blur(image: Image, length: float, draws: Draws) -> Image:
    """Linear motion at an angle drawn from 0, 1, ..., 180 degrees."""
    angle = int(draws.uniform((1,))[0] * 181)
    return _correlate(image, motion(length, angle))


# 4 to 8: colour


def color_diffusion(image: Image, amount: float, draws: Draws) -> Image:
    """Lab: a and b blurred with sigma 1.5 * amount + 2, times amount."""
    lightness, *colours = cv2.split(to_lab(image, amount))
    return from_lab(cv2.merge([lightness, *(_gaussian(colour, 1.5 * amount + 2) for colour in colours)]))


def edge_mask(image: Image) -> Plane:
    """Where color_shift shows: 0 away from edges, 1 on them. Shape (H, W).

    Gradient magnitude (central differences) of grey, Gaussian sigma 4, min-max, clip to [0.1, 1], stretch of the
    1st to the 99th percentile to [0, 1].
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    dx = cv2.Sobel(grey, cv2.CV_32F, 1, 0, ksize=1, borderType=REPLICATE)
    dy = cv2.Sobel(grey, cv2.CV_32F, 0, 1, ksize=1, borderType=REPLICATE)
    magnitude = np.sqrt(dx * dx + dy * dy)  # cv2.magnitude rounds differently from one call to the next
    edges = _gaussian(magnitude, 4)
    low, high = edges.min(), edges.max()
    if high > low:
        edges -= low
        edges /= high - low
    np.clip(edges, np.float32(0.1), np.float32(1), out=edges)
    counts = np.cumsum(np.bincount((edges.ravel() * np.float32(65535)).astype(np.uint16), minlength=65536))
    first, last = np.searchsorted(counts, np.array([0.01, 0.99]) * counts[-1]) / 65535
    if last > first:
        edges -= np.float32(first)
        edges /= np.float32(last - first)
        return np.clip(edges, 0, 1, out=edges)
    return cast(Plane, (edges > last).astype(np.float32))  # the limit of the stretch


def translate(plane: Plane, dy: int, dx: int) -> Plane:
    """Move a plane down by dy and right by dx pixels, replicating the border."""
    padded = cv2.copyMakeBorder(plane, max(dy, 0), max(-dy, 0), max(dx, 0), max(-dx, 0), REPLICATE)
    height, width = plane.shape
    return cast(Plane, padded[max(-dy, 0) :, max(-dx, 0) :][:height, :width])


def color_shift(image: Image, amount: float, draws: Draws) -> Image:
    """Green moved by round(amount * a random unit vector), blended by the edge mask."""
    angle = 2 * math.pi * float(draws.uniform((1,))[0])
    green = cv2.extractChannel(image, 1)
    change = translate(green, round(amount * math.sin(angle)), round(amount * math.cos(angle))) - green
    change *= edge_mask(image)
    return cast(Image, cv2.insertChannel(cv2.add(green, change, dst=change), image.copy(), 1))


def color_quantization(image: Image, colours: float, draws: Draws) -> Image:
    """A palette of minimum variance (Wu), Floyd-Steinberg dithered."""
    pixels = to_bytes(image)
    palette = minimum_variance_palette(pixels, int(colours))
    holder = Pillow.new("P", (1, 1))
    holder.putpalette(palette.tobytes())
    indexed = Pillow.fromarray(pixels).quantize(palette=holder, dither=Pillow.Dither.FLOYDSTEINBERG)
    return from_bytes(palette[np.asarray(indexed)])


def saturation_hsv(image: Image, factor: float, draws: Draws) -> Image:
    """HSV: S times factor. With V = max(R, G, B) that is V - factor * (V - x), without leaving RGB."""
    red, green, blue = cv2.split(image)
    value = cv2.cvtColor(cv2.max(cv2.max(red, green, dst=red), blue, dst=red), cv2.COLOR_GRAY2RGB)
    return cast(Image, cv2.addWeighted(value, 1 - factor, image, factor, 0, dst=value))


def saturation_lab(image: Image, factor: float, draws: Draws) -> Image:
    """Lab: a and b times factor."""
    return from_lab(to_lab(image, factor))


# 9 and 10: codecs


def spare_bit_planes(pixels: NDArray[np.uint8], target: float) -> int:
    """How many of the lowest bit planes JPEG 2000 can leave out at a size of `target` bytes, as rate control would.

    The size of a JPEG less what a flat picture takes tells how detailed the picture is. Fitted to photographs, so that
    the coarser step costs 0.04 dB on average (docs/distortions.md).
    """
    size = len(simplejpeg.encode_jpeg(pixels, 75, "RGB", "420", fastdct=True))
    detail = max(1.0, size - 623 - pixels[..., 0].size / 64)
    return min(5, max(0, math.floor(1.5 + 0.65 * math.log2(detail / target))))


def _coarser_step(codestream: bytes, planes: int) -> bytes:
    """Multiply the quantisation steps of a JPEG 2000 codestream by 2**planes (the QCD marker, ISO/IEC 15444-1 A.6.4).

    Exponents fall, guard bits rise as much: the coded bit planes stay those that they are.
    """
    data = bytearray(codestream)
    marker = 2  # after SOC
    while data[marker + 1] != QCD:
        marker += 2 + int.from_bytes(data[marker + 2 : marker + 4])
    data[marker + 4] += planes << 5
    for exponent in range(marker + 5, marker + 2 + int.from_bytes(data[marker + 2 : marker + 4]), 2):
        data[exponent] -= planes << 3
    return bytes(data)


def encode_jpeg2000(pixels: NDArray[np.uint8], ratio: float) -> bytes:
    """OpenJPEG codestream of about `pixels.nbytes / ratio` bytes: 9/7 wavelet, colour transform, one layer.

    OpenJPEG always quantises to one grey level and codes every bit plane, most of them for rate control to drop. Here
    the picture is scaled down by 2**planes and the codestream's steps up as much, in about half of the time.
    """
    planes = spare_bit_planes(pixels, pixels.nbytes / ratio)
    scaled = np.rint((np.arange(256) - 128) / 2**planes) + 128
    resolutions = min(6, int(math.log2(min(pixels.shape[:2]))) + 1)
    buffer = io.BytesIO()
    Pillow.fromarray(cv2.LUT(pixels, scaled.astype(np.uint8))).save(
        buffer,
        format="JPEG2000",
        quality_mode="rates",
        quality_layers=[ratio],
        num_resolutions=resolutions,
        irreversible=True,
        mct=1,
        no_jp2=True,
    )
    return _coarser_step(buffer.getvalue(), planes)


def jpeg2000(image: Image, ratio: float, draws: Draws) -> Image:
    """JPEG 2000 at a compression ratio; headers of some 180 bytes bound it on the smallest pictures."""
    with Pillow.open(io.BytesIO(encode_jpeg2000(to_bytes(image), ratio))) as decoded:
        return from_bytes(np.asarray(decoded))


def encode_jpeg(pixels: NDArray[np.uint8], quality: float) -> bytes:
    """libjpeg-turbo, chroma at half resolution (libjpeg's default, as MATLAB's imwrite)."""
    return cast(bytes, simplejpeg.encode_jpeg(pixels, int(quality), "RGB", "420", fastdct=False))


def jpeg(image: Image, quality: float, draws: Draws) -> Image:
    """JPEG at a quality."""
    data = encode_jpeg(to_bytes(image), quality)
    return from_bytes(simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False))


# 11 to 15: noise


def white_noise(image: Image, variance: float, draws: Draws) -> Image:
    """Gaussian noise in RGB."""
    noise = draws.normal(image.shape, math.sqrt(variance))
    noise += image
    return noise


def color_noise(image: Image, variance: float, draws: Draws) -> Image:
    """Gaussian noise in MATLAB's YCbCr, clipped to [0, 1] there."""
    ycbcr = cv2.transform(image, np.column_stack([YCBCR, YCBCR_OFFSET]))
    ycbcr += draws.normal(image.shape, math.sqrt(variance))
    np.clip(ycbcr, 0, 1, out=ycbcr)
    inverse = np.linalg.inv(YCBCR)
    return cast(Image, cv2.transform(ycbcr, np.column_stack([inverse, -inverse @ YCBCR_OFFSET]), dst=ycbcr))


def impulse_noise(image: Image, density: float, draws: Draws) -> Image:
    """Salt and pepper: each channel value becomes 0 or 1 with the probability `density`, half and half."""
    distorted = image.copy()
    hits = draws.rng.binomial(image.size, density)
    where = draws.rng.choice(image.size, hits, replace=False)
    distorted.reshape(-1)[where] = draws.rng.integers(0, 2, hits)
    return distorted


def multiplicative_noise(image: Image, variance: float, draws: Draws) -> Image:
    """x + x n; n is uniform with mean 0 and this variance (MATLAB's imnoise 'speckle')."""
    reach = math.sqrt(3 * variance)
    gain = draws.uniform(image.shape, 1 - reach, 1 + reach)
    gain *= image
    return gain


def denoise(image: Image, variance: float, draws: Draws) -> Image:
    """White noise, then total-variation denoising of each channel (Chambolle, scikit-image)."""
    from skimage.restoration import denoise_tv_chambolle

    noisy = np.clip(white_noise(image, variance, draws), 0, 1)
    options = {"weight": TV_WEIGHT * math.sqrt(variance), "max_num_iter": TV_ITERATIONS, "eps": 0}
    planes = [denoise_tv_chambolle(plane, **options) for plane in cv2.split(noisy)]
    return cast(Image, cv2.merge(planes))


# 16 to 18: brightness


def _midtone_curve(values: NDArray[np.float32], lift: float, top: float = 1) -> NDArray[np.float32]:
    """The parabola through 0, 0.5 + lift and 1 (times `top`) at 0, 0.5 and 1: MATLAB's spline on three points."""
    curved = values * np.float32(-4 * lift / top)
    curved += np.float32(1 + 4 * lift)
    curved *= values
    return np.clip(curved, 0, np.float32(top), out=curved)


def brighten(image: Image, amount: float, draws: Draws) -> Image:
    """(2 * the curve of RGB + the curve of Lab's L) / 3, midpoint 0.5 + amount / 2."""
    lab = to_lab(image)
    cv2.insertChannel(_midtone_curve(cv2.extractChannel(lab, 0), amount / 2, top=100), lab, 0)
    curved = _midtone_curve(image, amount / 2)
    return cast(Image, cv2.addWeighted(curved, 2 / 3, from_lab(lab), 1 / 3, 0, dst=curved))


def darken(image: Image, amount: float, draws: Draws) -> Image:
    """The curve of RGB, midpoint 0.5 - amount / 2."""
    return _midtone_curve(image, -amount / 2)


def mean_shift(image: Image, amount: float, draws: Draws) -> Image:
    """x + amount."""
    return image + np.float32(amount)


# 19 to 23: spatial


def jitter(image: Image, sigma: float, draws: Draws) -> Image:
    """Five times: every pixel from a place N(0, sigma) away on each axis, bicubic (OpenCV's, a = -0.75)."""
    for _ in range(JITTER_ITERATIONS):
        down, right = draws.normal((2, *image.shape[:2]), sigma)
        image = cv2.remap(image, right, down, cv2.INTER_CUBIC | cv2.WARP_RELATIVE_MAP, borderMode=REPLICATE)
    return image


def non_eccentricity(image: Image, patches: float, draws: Draws) -> Image:
    """Patches of 16 x 16 copied from the image to places within 8 pixels on each axis; later ones cover earlier."""
    height, width = image.shape[:2]
    y, x, dy, dx = draws.uniform((4, int(patches)))
    top = REACH + (y * (height - PATCH - 2 * REACH + 1)).astype(int)
    left = REACH + (x * (width - PATCH - 2 * REACH + 1)).astype(int)
    to_top = top - REACH + (dy * (2 * REACH + 1)).astype(int)
    to_left = left - REACH + (dx * (2 * REACH + 1)).astype(int)
    distorted = image.copy()
    for t, s, to_t, to_s in zip(top, left, to_top, to_left, strict=True):
        distorted[to_t : to_t + PATCH, to_s : to_s + PATCH] = image[t : t + PATCH, s : s + PATCH]
    return distorted


def pixelate_index(side: int, strength: float) -> NDArray[np.int64]:
    """Where each of `side` pixels comes from: nearest-neighbour resize to ceil(z * side), z = 0.95 - strength ** 0.6,
    and back. Integers decide the ties, so that every bank decides them alike.
    """
    small = math.ceil((0.95 - strength**0.6) * side)
    down = (2 * np.arange(small) + 1) * side // (2 * small)
    up = (2 * np.arange(side) + 1) * small // (2 * side)
    return cast(NDArray[np.int64], down[up])


def pixelate(image: Image, strength: float, draws: Draws) -> Image:
    """Nearest-neighbour resize to 0.95 - strength ** 0.6 of the size, and back."""
    height, width = image.shape[:2]
    rows = pixelate_index(height, strength).astype(np.float32)
    columns = pixelate_index(width, strength).astype(np.float32)
    return cast(Image, cv2.remap(image, *np.meshgrid(columns, rows), cv2.INTER_NEAREST))


def otsu_thresholds(histogram: NDArray[Any], thresholds: int) -> NDArray[np.int64]:
    """Bins after which to cut a histogram for the least variance within classes: multi-level Otsu, exact.

    Dynamic programming over the occupied bins (Fisher 1958), which must outnumber the thresholds.

    Args:
        histogram: counts. Shape (B,).
        thresholds: K; the classes are K + 1.
    Returns:
        the last bin of each class but the topmost, ascending. Shape (K,).
    """
    bins = np.flatnonzero(histogram)
    mass = np.concatenate([[0.0], np.cumsum(histogram[bins], dtype=np.float64)])
    moment = np.concatenate([[0.0], np.cumsum(histogram[bins] * bins, dtype=np.float64)])
    width = mass[:, None] - mass  # [end, start] of a class
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(width > 0, (moment[:, None] - moment) ** 2 / width, -np.inf)
    best = [gain[:, 0]]  # [end] of the first k + 1 classes
    for _ in range(thresholds - 1):
        best.append((gain + best[-1]).max(axis=1))
    ends = np.empty(thresholds, dtype=np.int64)
    end = len(bins)
    for k in reversed(range(thresholds)):
        end = int((gain[end] + best[k]).argmax())
        ends[k] = bins[end - 1]
    return ends


def quantization(image: Image, thresholds: float, draws: Draws) -> Image:
    """Otsu's thresholds on all channels together; classes become 0, their upper threshold, ..., and 1.

    A picture with no more values than classes stays as it is.
    """
    count = int(thresholds)
    low, high = float(image.min()), float(image.max())
    if high <= low:
        return image.copy()
    bins = cv2.convertScaleAbs(image - np.float32(low), alpha=255 / (high - low))
    histogram = cv2.calcHist([bins.reshape(len(bins), -1)], [0], None, [256], [0, 256]).ravel()
    if np.count_nonzero(histogram) <= count + 1:
        return image.copy()
    ends = otsu_thresholds(histogram, count)
    values = np.concatenate([[0.0], low + ends[1:] / 255 * (high - low), [1.0]])
    table = values[np.searchsorted(ends, np.arange(256))].astype(np.float32)
    return cast(Image, cv2.LUT(bins, table))


def color_block(image: Image, blocks: float, draws: Draws) -> Image:
    """Squares of 32 x 32 in random colours at random places."""
    height, width = image.shape[:2]
    distorted = image.copy()
    for y, x, *colour in draws.uniform((int(blocks), 5)):
        top, left = int(y * (height - BLOCK + 1)), int(x * (width - BLOCK + 1))
        distorted[top : top + BLOCK, left : left + BLOCK] = colour
    return distorted


# 24 and 25: sharpness and contrast


def sharpen(image: Image, amount: float, draws: Draws) -> Image:
    """Unsharp mask of Lab's L: L + amount * (L - Gaussian sigma 3 of L) (MATLAB's imsharpen, radius 3)."""
    lab = to_lab(image)
    lightness = cv2.extractChannel(lab, 0)
    sharp = cv2.addWeighted(lightness, 1 + amount, _gaussian(lightness, 3), -amount, 0, dst=lightness)
    return from_lab(cv2.insertChannel(sharp, lab, 0))


def contrast_cubic(amount: float) -> tuple[float, float]:
    """(p, q) of the curve 0.5 + p u + q u^3, u = x - 0.5.

    MATLAB's spline (not-a-knot) through (0, 0), (.3, .25 - a / 4), (.5, .5), (.7, .75 + a / 4), (1, 1): two cubics,
    and by the points' symmetry the same odd one.
    """
    p, q = np.linalg.solve([[0.2, 0.2**3], [0.5, 0.5**3]], [0.25 + amount / 4, 0.5])
    return float(p), float(q)


def contrast(image: Image, amount: float, draws: Draws) -> Image:
    """A tone curve that pushes the quartiles outwards (amount > 0) or inwards."""
    p, q = contrast_cubic(amount)
    centred = image - np.float32(0.5)
    curved = centred * centred
    curved *= np.float32(q)
    curved += np.float32(p)
    curved *= centred
    curved += np.float32(0.5)
    return curved


KERNELS: dict[str, Callable[[Image, float, Draws], Image]] = {
    kernel.__name__: kernel
    for kernel in (
        gaussian_blur,
        lens_blur,
        motion_blur,
        color_diffusion,
        color_shift,
        color_quantization,
        saturation_hsv,
        saturation_lab,
        jpeg2000,
        jpeg,
        white_noise,
        color_noise,
        impulse_noise,
        multiplicative_noise,
        denoise,
        brighten,
        darken,
        mean_shift,
        jitter,
        non_eccentricity,
        pixelate,
        quantization,
        color_block,
        sharpen,
        contrast,
    )
}
