"""The bank on torch tensors, for synthesis on the fly, on the CPU or a GPU.

Each kernel takes (images, parameter, draws): RGB float32 in [0, 1], shape (N, 3, H, W), all at one level, and returns a
new tensor, not yet clipped. JPEG, JPEG 2000 (entropy coders) and color_quantization (error diffusion, each pixel after
its neighbours) have no batched form: they run in threads on the CPU while the device works on the rest.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contrique.distortions import bank, kernels

SERIAL = frozenset({"color_quantization", "jpeg", "jpeg2000"})

GREY = (0.299, 0.587, 0.114)  # OpenCV's


class Draws:
    """Random tensors from a torch generator, on its device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal values."""
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform values in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device)


def distort_batch(
    images: Tensor, names: Sequence[str], levels: Sequence[int], generator: torch.Generator, workers: int = 0
) -> Tensor:
    """Distort each picture of a batch by its own distortion and level, on the batch's device.

    Agrees with `distort` given the same random numbers (docs/distortions.md has the tolerances); its own come from
    `generator`, so the two banks draw different noise.

    Args:
        images: RGB in [0, 1]. Shape (N, 3, H, W), float32, H and W at least 32. It is not written to.
        names: the distortion of each picture, from NAMES. Length N.
        levels: the level of each picture, 1 to 5. Length N.
        generator: on the device of `images`.
        workers: threads for the distortions in SERIAL; 0: one per core.
    Returns:
        RGB in [0, 1], as `images`.
    Raises:
        DistortionError: names, levels, images or generator do not fit.
    """
    _check(images, names, levels, generator)
    groups: dict[tuple[str, int], list[int]] = {}
    for i, key in enumerate(zip(names, levels, strict=True)):
        groups.setdefault((key[0], int(key[1])), []).append(i)
    draws = Draws(generator)
    out = torch.empty_like(images)
    serial = [(i, name, level) for (name, level), members in groups.items() if name in SERIAL for i in members]
    with ThreadPoolExecutor(max(1, min(workers or len(os.sched_getaffinity(0)), len(serial)))) as pool:
        pictures = images[[i for i, _, _ in serial]].permute(0, 2, 3, 1).cpu().numpy() if serial else ()
        distorted = pool.map(_serial, pictures, [name for _, name, _ in serial], [level for _, _, level in serial])
        for (name, level), members in sorted(groups.items()):
            if name not in SERIAL:
                index = torch.tensor(members, device=images.device)
                out[index] = BATCHED[name](images[index], bank.parameter(name, level), draws).clamp_(0, 1)
        for (i, _, _), picture in zip(serial, distorted, strict=True):
            out[i] = torch.from_numpy(np.require(picture, requirements=("C", "W"))).permute(2, 0, 1)
    return out


def _serial(picture: kernels.Image, name: str, level: int) -> kernels.Image:
    return bank.distort(picture, name, level, np.random.default_rng(0))  # none of SERIAL draws anything


def _check(images: Tensor, names: Sequence[str], levels: Sequence[int], generator: torch.Generator) -> None:
    if images.dtype != torch.float32 or images.ndim != 4 or images.shape[1] != 3:
        raise bank.DistortionError(
            f"images must be float32 of shape (N, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if min(images.shape[2:]) < bank.MIN_SIDE:
        side = bank.MIN_SIDE
        raise bank.DistortionError(f"images must be at least {side} x {side} pixels, got {tuple(images.shape[2:])}")
    if not len(images) == len(names) == len(levels):
        raise bank.DistortionError(
            f"{len(images)} images need as many names and levels, got {len(names)} and {len(levels)}"
        )
    if generator.device.type != images.device.type:
        raise bank.DistortionError(
            f"the generator is on {generator.device}, the images are on {images.device}; use one device"
        )
    for name, level in zip(names, levels, strict=True):
        bank.parameter(name, level)
    if len(images) and not bool(((images >= 0) & (images <= 1)).all()):  # NaN fails both
        raise bank.DistortionError("images must lie in [0, 1] without NaN; divide 8-bit by 255")


# filters and colour spaces


def _filter(planes: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every plane (N, C, H, W) with one kernel (h, w) of odd sides, replicating the border."""
    n, c, height, width = planes.shape
    down, right = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = F.pad(planes, (right, right, down, down), mode="replicate").reshape(n * c, 1, -1, width + 2 * right)
    return F.conv2d(padded, kernel[None, None]).reshape(n, c, height, width)


def _gaussian(planes: Tensor, sigma: float) -> Tensor:
    reach = kernels.gaussian_size(sigma) // 2
    x = torch.arange(-reach, reach + 1, device=planes.device, dtype=torch.float64)
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).float()
    return _filter(_filter(planes, weights[None, :]), weights[:, None])


def _mix(images: Tensor, matrix: Sequence[Sequence[float]] | np.ndarray) -> Tensor:
    weights = torch.as_tensor(np.asarray(matrix), dtype=torch.float32, device=images.device)
    return torch.einsum("dc,nchw->ndhw", weights, images)


def _to_lab(images: Tensor) -> Tensor:
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    xyz = _mix(linear, kernels.RGB_TO_XYZ / kernels.WHITE[:, None])
    root = torch.where(xyz > 0.008856, xyz.clamp(min=1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _from_lab(lab: Tensor) -> Tensor:
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(root > 6 / 29, root**3, (root - 16 / 116) / 7.787)
    linear = _mix(xyz, np.linalg.inv(kernels.RGB_TO_XYZ) * kernels.WHITE).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


# 1 to 3: blur


def gaussian_blur(images: Tensor, sigma: float, draws: Draws) -> Tensor:
    return _gaussian(images, sigma)


def lens_blur(images: Tensor, radius: float, draws: Draws) -> Tensor:
    return _filter(images, torch.from_numpy(kernels.disk(radius)).to(images.device))


def motion_blur(images: Tensor, length: float, draws: Draws) -> Tensor:
    n, _, height, width = images.shape
    angles = (draws.uniform((n, 1)) * 181).long().flatten().tolist()
    weights = torch.from_numpy(np.stack([kernels.motion(length, angle) for angle in angles])).to(images.device)
    reach = weights.shape[-1] // 2
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    planes = padded.transpose(0, 1)  # (3, N, H, W): each picture a group of its own
    return F.conv2d(planes, weights[:, None], groups=n).transpose(0, 1).reshape(n, 3, height, width)


# 4, 5, 7, 8: colour


def color_diffusion(images: Tensor, amount: float, draws: Draws) -> Tensor:
    lab = _to_lab(images)
    return _from_lab(torch.cat([lab[:, :1], _gaussian(lab[:, 1:], 1.5 * amount + 2) * amount], 1))


def _edge_mask(images: Tensor) -> Tensor:
    grey = F.pad(_mix(images, [GREY]), (1, 1, 1, 1), mode="replicate")
    dx = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    dy = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    edges = _gaussian(torch.sqrt(dx * dx + dy * dy), 4).flatten(1)
    low, high = edges.amin(1, keepdim=True), edges.amax(1, keepdim=True)
    edges = torch.where(high > low, (edges - low) / (high - low).clamp(min=1e-30), edges).clamp(0.1, 1)
    count = edges.shape[1]
    ranked = torch.floor(edges.sort(1).values * 65535) / 65535
    first = ranked[:, math.ceil(0.01 * count) - 1, None]
    last = ranked[:, math.ceil(0.99 * count) - 1, None]
    stretched = ((edges - first) / (last - first).clamp(min=1e-30)).clamp(0, 1)
    mask = torch.where(last > first, stretched, (edges > last).float())
    return mask.reshape(len(images), *images.shape[2:])


def color_shift(images: Tensor, amount: float, draws: Draws) -> Tensor:
    n, _, height, width = images.shape
    angle = 2 * math.pi * draws.uniform((n, 1)).double()
    rows = torch.arange(height, device=images.device) - torch.round(amount * torch.sin(angle)).long()
    columns = torch.arange(width, device=images.device) - torch.round(amount * torch.cos(angle)).long()
    each = torch.arange(n, device=images.device)[:, None, None]
    green = images[:, 1]
    moved = green[each, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    out = images.clone()
    out[:, 1] += _edge_mask(images) * (moved - green)
    return out


def saturation_hsv(images: Tensor, factor: float, draws: Draws) -> Tensor:
    return torch.lerp(images.amax(1, keepdim=True).expand_as(images), images, factor)


def saturation_lab(images: Tensor, factor: float, draws: Draws) -> Tensor:
    lab = _to_lab(images)
    return _from_lab(torch.cat([lab[:, :1], lab[:, 1:] * factor], 1))


# 11 to 15: noise


def white_noise(images: Tensor, variance: float, draws: Draws) -> Tensor:
    return images + math.sqrt(variance) * draws.normal(tuple(images.shape))


def color_noise(images: Tensor, variance: float, draws: Draws) -> Tensor:
    offset = torch.as_tensor(kernels.YCBCR_OFFSET, dtype=torch.float32, device=images.device)[:, None, None]
    ycbcr = _mix(images, kernels.YCBCR) + offset
    noisy = (ycbcr + math.sqrt(variance) * draws.normal(tuple(images.shape))).clamp(0, 1)
    return _mix(noisy - offset, np.linalg.inv(kernels.YCBCR))


def impulse_noise(images: Tensor, density: float, draws: Draws) -> Tensor:
    chance = draws.uniform(tuple(images.shape))
    salted = torch.where(chance < density / 2, 0.0, images)
    return torch.where(chance >= 1 - density / 2, 1.0, salted)


def multiplicative_noise(images: Tensor, variance: float, draws: Draws) -> Tensor:
    return images * (1 + math.sqrt(12 * variance) * (draws.uniform(tuple(images.shape)) - 0.5))


def denoise(images: Tensor, variance: float, draws: Draws) -> Tensor:
    """Chambolle's projection (2004), as scikit-image iterates it."""
    noisy = white_noise(images, variance, draws).clamp(0, 1)
    weight = kernels.TV_WEIGHT * math.sqrt(variance)
    step = 0.25
    down = torch.zeros_like(noisy)
    right = torch.zeros_like(noisy)
    smooth = noisy
    for _ in range(kernels.TV_ITERATIONS):
        divergence = -down - right
        divergence[:, :, 1:] += down[:, :, :-1]
        divergence[:, :, :, 1:] += right[:, :, :, :-1]
        smooth = noisy + divergence
        gradient_down = F.pad(smooth.diff(dim=2), (0, 0, 0, 1))
        gradient_right = F.pad(smooth.diff(dim=3), (0, 1))
        norm = 1 + step / weight * torch.hypot(gradient_down, gradient_right)
        down = (down - step * gradient_down) / norm
        right = (right - step * gradient_right) / norm
    return smooth


# 16 to 18: brightness


def _midtone_curve(values: Tensor, lift: float) -> Tensor:
    return (values * (1 + 4 * lift * (1 - values))).clamp(0, 1)


def brighten(images: Tensor, amount: float, draws: Draws) -> Tensor:
    lab = _to_lab(images)
    lightness = 100 * _midtone_curve(lab[:, :1] / 100, amount / 2)
    return (2 * _midtone_curve(images, amount / 2) + _from_lab(torch.cat([lightness, lab[:, 1:]], 1))) / 3


def darken(images: Tensor, amount: float, draws: Draws) -> Tensor:
    return _midtone_curve(images, -amount / 2)


def mean_shift(images: Tensor, amount: float, draws: Draws) -> Tensor:
    return images + amount


# 19 to 23: spatial


def jitter(images: Tensor, sigma: float, draws: Draws) -> Tensor:
    n, _, height, width = images.shape
    columns = torch.arange(width, device=images.device)
    rows = torch.arange(height, device=images.device)[:, None]
    for _ in range(kernels.JITTER_ITERATIONS):
        down, right = (sigma * draws.normal((n, 2, height, width))).unbind(1)
        grid = torch.stack([(columns + right) * (2 / (width - 1)) - 1, (rows + down) * (2 / (height - 1)) - 1], -1)
        images = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=True)
    return images


def non_eccentricity(images: Tensor, patches: float, draws: Draws) -> Tensor:
    n, _, height, width = images.shape
    patch, reach = kernels.PATCH, kernels.REACH
    y, x, dy, dx = draws.uniform((n, 4, int(patches))).unbind(1)
    down = (dy * (2 * reach + 1)).long() - reach
    right = (dx * (2 * reach + 1)).long() - reach
    top = reach + (y * (height - patch - 2 * reach + 1)).long() + down
    left = reach + (x * (width - patch - 2 * reach + 1)).long() + right
    inside = torch.arange(patch, device=images.device)
    covered = (top[..., None, None] + inside[:, None]) * width + left[..., None, None] + inside
    number = torch.arange(int(patches), device=images.device)[None, :, None, None].expand_as(covered)
    # the last patch on each pixel, or -1
    owner = torch.full((n, height * width), -1, device=images.device)
    owner = owner.scatter_reduce(1, covered.flatten(1), number.flatten(1), "amax")
    shift = (down * width + right).gather(1, owner.clamp(min=0)) * (owner >= 0)
    source = torch.arange(height * width, device=images.device) - shift
    return images.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).reshape(images.shape)


def pixelate(images: Tensor, strength: float, draws: Draws) -> Tensor:
    rows, columns = (torch.from_numpy(kernels.pixelate_index(side, strength)) for side in images.shape[2:])
    return images[:, :, rows.to(images.device)][..., columns.to(images.device)]


def quantization(images: Tensor, thresholds: float, draws: Draws) -> Tensor:
    n, count = len(images), int(thresholds)
    flat = images.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = (high - low).double()
    bins = torch.round((flat - low) * (255 / span.clamp(min=1e-30)).float()).long().clamp(0, 255)
    histogram = torch.zeros(n, 256, device=images.device, dtype=torch.float64)
    histogram.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.float64))
    ends = _otsu_thresholds(histogram, count)
    upper = low + ends[:, 1:] / 255 * span
    values = torch.cat([torch.zeros_like(low), upper.float(), torch.ones_like(low)], 1)
    classes = torch.searchsorted(ends, bins)
    unchanged = ((histogram > 0).sum(1, keepdim=True) <= count + 1) | (high <= low)
    return torch.where(unchanged, flat, values.gather(1, classes)).reshape(images.shape)


def _otsu_thresholds(histogram: Tensor, thresholds: int) -> Tensor:
    """`kernels.otsu_thresholds` of each row. Shape (N, 256) to (N, thresholds)."""
    n, size = histogram.shape
    bins = torch.arange(size, device=histogram.device, dtype=histogram.dtype)
    mass = F.pad(histogram.cumsum(1), (1, 0))
    moment = F.pad((histogram * bins).cumsum(1), (1, 0))
    width = mass[:, :, None] - mass[:, None, :]
    gain = torch.where(width > 0, (moment[:, :, None] - moment[:, None, :]) ** 2 / width.clamp(min=1e-30), -math.inf)
    best, cuts = gain[:, :, 0], []
    for _ in range(thresholds):
        best, cut = (gain + best[:, None, :]).max(2)
        cuts.append(cut)
    ends = []
    end = torch.full((n, 1), size, device=histogram.device)
    for cut in reversed(cuts):
        end = cut.gather(1, end)
        ends.append(end - 1)
    return torch.cat(ends[::-1], 1)


def color_block(images: Tensor, blocks: float, draws: Draws) -> Tensor:
    n, _, height, width = images.shape
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    out = images
    for block in draws.uniform((n, int(blocks), 5)).unbind(1):
        top = (block[:, 0] * (height - kernels.BLOCK + 1)).long()[:, None, None]
        left = (block[:, 1] * (width - kernels.BLOCK + 1)).long()[:, None, None]
        inside = (rows >= top) & (rows < top + kernels.BLOCK) & (columns >= left) & (columns < left + kernels.BLOCK)
        out = torch.where(inside[:, None], block[:, 2:, None, None], out)
    return out


# 24 and 25: sharpness and contrast


def sharpen(images: Tensor, amount: float, draws: Draws) -> Tensor:
    lab = _to_lab(images)
    lightness = lab[:, :1]
    return _from_lab(torch.cat([(1 + amount) * lightness - amount * _gaussian(lightness, 3), lab[:, 1:]], 1))


def contrast(images: Tensor, amount: float, draws: Draws) -> Tensor:
    p, q = kernels.contrast_cubic(amount)
    centred = images - 0.5
    return 0.5 + centred * (p + q * centred * centred)


BATCHED: dict[str, Callable[[Tensor, float, Draws], Tensor]] = {
    name: globals()[name] for name in bank.NAMES if name not in SERIAL
}
