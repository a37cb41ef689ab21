"""The 25 distortions again, slowly, from their definitions: SciPy and NumPy in float64, loops where they are plainest.

Each function takes (image, parameter, draws) as the kernels do, `draws` giving the same random numbers. Codecs, the
palette, impulse noise and the denoiser have no closed definition: the tests measure those.
"""

import math

import numpy as np
from scipy import integrate, interpolate, ndimage
from skimage import color

A = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
D65 = np.array([0.95047, 1.0, 1.08883])


def each_channel(image, function):
    return np.stack([function(image[..., c]) for c in range(image.shape[2])], -1)


def correlate(image, kernel):
    return each_channel(image, lambda plane: ndimage.correlate(plane, kernel, mode="nearest"))


def gaussian_kernel(sigma):
    reach = math.ceil(2 * sigma)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def blur(image, sigma):
    """A Gaussian of two sigma, row by row and column by column (81 x 81 at once is too slow even here)."""
    line = gaussian_kernel(sigma)[math.ceil(2 * sigma)]
    line = line / line.sum()
    return correlate(correlate(image, line[None]), line[:, None])


def gaussian_blur(image, sigma, draws):
    return correlate(image, gaussian_kernel(sigma))


def disk_kernel(radius):
    """The area of each pixel inside the circle, by numerical integration."""
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    for i in range(-radius, radius + 1):
        for j in range(-radius, radius + 1):

            def height(x, i=i):
                top = math.sqrt(max(radius**2 - x**2, 0))
                return max(0.0, min(i + 0.5, top) - max(i - 0.5, -top))

            kernel[i + radius, j + radius] = integrate.quad(height, j - 0.5, j + 0.5, limit=200)[0]
    return kernel / kernel.sum()


def lens_blur(image, radius, draws):
    return correlate(image, disk_kernel(radius))


def motion_kernel(length, angle):
    """1 - distance to the segment; beside its last pixel the distance is that to the end (fspecial's own rule)."""
    half = (length - 1) / 2
    reach = math.ceil(half) + 1
    direction = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for row in range(-reach, reach + 1):
        for column in range(-reach, reach + 1):
            point = np.array([column, -row])
            along = abs(point @ direction)
            across = abs(direction[0] * point[1] - direction[1] * point[0])
            distance = math.hypot(across, along - half) if np.hypot(*point) >= half else across
            kernel[row + reach, column + reach] = max(0.0, 1 - distance)
    return kernel / kernel.sum()


def motion_blur(image, length, draws):
    return correlate(image, motion_kernel(length, int(draws.uniform((1,))[0] * 181)))


def lab_to_rgb(lab):
    """CIE Lab to sRGB as MATLAB's lab2rgb: nothing is clipped before the end."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D65
    linear = np.clip(xyz @ np.linalg.inv(A).T, 0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def color_diffusion(image, amount, draws):
    lab = color.rgb2lab(image)
    lab[..., 1:] = blur(lab[..., 1:], 1.5 * amount + 2) * amount
    return lab_to_rgb(lab)


def edge_mask(image):
    grey = image @ np.array([0.299, 0.587, 0.114])
    padded = np.pad(grey, 1, mode="edge")
    dx = padded[1:-1, 2:] - padded[1:-1, :-2]
    dy = padded[2:, 1:-1] - padded[:-2, 1:-1]
    edges = blur(np.hypot(dx, dy)[..., None], 4)[..., 0]
    edges = (edges - edges.min()) / (edges.max() - edges.min())
    edges = np.clip(edges, 0.1, 1)
    low, high = np.percentile(edges, [1, 99])
    return np.clip((edges - low) / (high - low), 0, 1)


def color_shift(image, amount, draws):
    angle = 2 * math.pi * float(draws.uniform((1,))[0])
    down, right = round(amount * math.sin(angle)), round(amount * math.cos(angle))
    green = image[..., 1]
    moved = ndimage.shift(green, (down, right), order=0, mode="nearest")
    mask = edge_mask(image)
    out = image.copy()
    out[..., 1] = mask * moved + (1 - mask) * green
    return out


def saturation_hsv(image, factor, draws):
    hsv = color.rgb2hsv(image)
    hue, saturation, value = hsv[..., 0] * 6, hsv[..., 1] * factor, hsv[..., 2]
    sector, f = np.floor(hue).astype(int) % 6, hue - np.floor(hue)
    p, q, t = value * (1 - saturation), value * (1 - saturation * f), value * (1 - saturation * (1 - f))
    choices = [(value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q)]
    return np.stack([np.choose(sector, [choice[c] for choice in choices]) for c in range(3)], -1)


def saturation_lab(image, factor, draws):
    lab = color.rgb2lab(image)
    lab[..., 1:] *= factor
    return lab_to_rgb(lab)


def white_noise(image, variance, draws):
    return image + math.sqrt(variance) * draws.normal(image.shape)


def color_noise(image, variance, draws):
    """skimage's YCbCr is MATLAB's, times 255."""
    ycbcr = color.rgb2ycbcr(image) / 255 + math.sqrt(variance) * draws.normal(image.shape)
    return color.ycbcr2rgb(np.clip(ycbcr, 0, 1) * 255)


def multiplicative_noise(image, variance, draws):
    return image + image * math.sqrt(12 * variance) * (draws.uniform(image.shape).astype(float) - 0.5)


def curve(values, x, y):
    """MATLAB's spline: not-a-knot, a parabola on three points."""
    if len(x) == 3:
        return np.clip(np.polyval(np.polyfit(x, y, 2), values), 0, 1)
    return np.clip(interpolate.CubicSpline(x, y, bc_type="not-a-knot")(values), 0, 1)


def brighten(image, amount, draws):
    points = [0, 0.5, 1], [0, 0.5 + amount / 2, 1]
    lab = color.rgb2lab(image)
    lab[..., 0] = 100 * curve(lab[..., 0] / 100, *points)
    return (2 * curve(image, *points) + lab_to_rgb(lab)) / 3


def darken(image, amount, draws):
    return curve(image, [0, 0.5, 1], [0, 0.5 - amount / 2, 1])


def mean_shift(image, amount, draws):
    return image + amount


def cubic(s, a=-0.75):
    s = np.abs(s)
    near = (a + 2) * s**3 - (a + 3) * s**2 + 1
    far = a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a
    return np.where(s <= 1, near, np.where(s < 2, far, 0))


def jitter(image, sigma, draws):
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(float)
    for _ in range(5):
        down, right = sigma * draws.normal((2, height, width)).astype(float)
        y, x = rows + down, columns + right
        top, left = np.floor(y).astype(int), np.floor(x).astype(int)
        out = np.zeros_like(image)
        for i in range(-1, 3):
            for j in range(-1, 3):
                taps = image[np.clip(top + i, 0, height - 1), np.clip(left + j, 0, width - 1)]
                out += (cubic(y - top - i) * cubic(x - left - j))[..., None] * taps
        image = out
    return image


def non_eccentricity(image, patches, draws):
    height, width = image.shape[:2]
    out = image.copy()
    for y, x, dy, dx in draws.uniform((4, patches)).T:
        top, left = 8 + int(y * (height - 31)), 8 + int(x * (width - 31))
        to_top, to_left = top + int(dy * 17) - 8, left + int(dx * 17) - 8
        for i in range(16):
            for j in range(16):
                out[to_top + i, to_left + j] = image[top + i, left + j]
    return out


def nearest(plane, height, width):
    """Each pixel of the result takes the source pixel that its centre falls into."""
    rows = [math.floor((i + 0.5) * plane.shape[0] / height) for i in range(height)]
    columns = [math.floor((j + 0.5) * plane.shape[1] / width) for j in range(width)]
    return plane[np.ix_(rows, columns)]


def pixelate(image, strength, draws):
    height, width = image.shape[:2]
    z = 0.95 - strength**0.6
    return nearest(nearest(image, math.ceil(z * height), math.ceil(z * width)), height, width)


def quantization(image, thresholds, draws):
    """Multi-level Otsu by memoised recursion on the variance within classes."""
    low, high = image.min(), image.max()
    levels = np.rint((image - low) / (high - low) * 255).astype(int)
    values, counts = np.unique(levels, return_counts=True)
    if len(values) <= thresholds + 1:
        return image
    spread = np.full((len(values), len(values)), np.inf)  # of the class of values i .. j
    for i in range(len(values)):
        for j in range(i, len(values)):
            inside, weight = values[i : j + 1], counts[i : j + 1]
            spread[i, j] = weight @ (inside - weight @ inside / weight.sum()) ** 2
    cost, back = spread[0], []
    for _ in range(thresholds):
        options = np.full(spread.shape, np.inf)  # [last value, first value] of the topmost class
        options[:, 1:] = (cost[:-1, None] + spread[1:]).T
        back.append(options.argmin(axis=1))
        cost = options.min(axis=1)
    ends, j = [], len(values) - 1
    for cut in reversed(back):
        j = cut[j] - 1
        ends.append(values[j])
    ends = ends[::-1]
    outputs = [0.0, *(low + end / 255 * (high - low) for end in ends[1:]), 1.0]
    return np.array(outputs)[np.searchsorted(ends, levels)]


def color_block(image, blocks, draws):
    height, width = image.shape[:2]
    out = image.copy()
    for y, x, *colour in draws.uniform((blocks, 5)):
        top, left = int(y * (height - 31)), int(x * (width - 31))
        out[top : top + 32, left : left + 32] = colour
    return out


def sharpen(image, amount, draws):
    lab = color.rgb2lab(image)
    lightness = lab[..., :1].copy()
    lab[..., :1] = lightness + amount * (lightness - blur(lightness, 3))
    return lab_to_rgb(lab)


def contrast(image, amount, draws):
    return curve(image, [0, 0.3, 0.5, 0.7, 1], [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1])
