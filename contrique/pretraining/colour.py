"""Views in other colour spaces."""

from collections.abc import Callable

import cv2
import torch
from torch import Tensor

from contrique.distortions import kernels

COLOUR_SPACES = ("gray", "lab", "hsv", "ms", "rgb")


def convert_views(views: Tensor, colours: Tensor) -> Tensor:
    """Convert each view to its colour space, on the views' device.

    gray (three equal channels), LAB (L / 100, (a + 128) / 255, (b + 128) / 255; D65), HSV (in [0, 1]), MS (the local
    mean, a 7-tap Gaussian of sigma 7 / 6, subtracted: in [-1, 1]) and RGB in [0, 1].

    Args:
        views: RGB. Shape (N, 3, H, W), uint8.
        colours: index into COLOUR_SPACES of each, on the CPU, or the host would wait for a GPU. Shape (N,).
    Returns:
        Shape (N, 3, H, W), float32.
    """
    if (colours == COLOUR_SPACES.index("rgb")).all():
        return views.float().div_(255)
    converted = torch.empty(views.shape, device=views.device)
    conversions: tuple[Callable[[Tensor], Tensor], ...] = (_to_gray, _to_lab, _to_hsv, _subtract_mean, torch.clone)
    for index, convert in enumerate(conversions):
        rows = (colours == index).nonzero()[:, 0]
        if len(rows):
            rows = rows.to(views.device, non_blocking=True)
            converted[rows] = convert(views[rows].float().div_(255))
    return converted


def _to_gray(rgb: Tensor) -> Tensor:
    weights = rgb.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (rgb * weights).sum(1, keepdim=True).expand_as(rgb)


def _to_lab(rgb: Tensor) -> Tensor:
    levels = torch.arange(256, dtype=rgb.dtype, device=rgb.device) / 255
    linear_of = torch.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    linear = linear_of.index_select(0, (rgb * 255).round().int().flatten()).view_as(rgb)
    to_xyz = rgb.new_tensor(kernels.RGB_TO_XYZ) / rgb.new_tensor(kernels.WHITE)[:, None]
    xyz = (to_xyz @ linear.flatten(2)).view_as(rgb)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-8) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack([1.16 * y - 0.16, (500 * (x - y) + 128) / 255, (200 * (y - z) + 128) / 255], 1)


def _to_hsv(rgb: Tensor) -> Tensor:
    r, g, b = rgb.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    spread = value - torch.minimum(torch.minimum(r, g), b)
    safe = spread.clamp(min=1e-8)
    hue = torch.where(value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    return torch.stack([(hue / 6) % 1, spread / value.clamp(min=1e-8), value], 1)


def _subtract_mean(rgb: Tensor) -> Tensor:
    mean = torch.nn.functional.pad(rgb, (3, 3, 3, 3), mode="reflect")
    for axis in (2, 3):
        mean = _blur_along(mean, axis)
    return rgb - mean


def _blur_along(x: Tensor, axis: int) -> Tensor:
    """Weighted mean of 7 neighbours along an axis, without padding; faster than a convolution of one channel."""
    taps = cv2.getGaussianKernel(7, 7 / 6)[:, 0].tolist()
    size = x.shape[axis] - 6
    out: Tensor = x.narrow(axis, 0, size) * taps[0]
    for i in range(1, 7):
        out.add_(x.narrow(axis, i, size), alpha=taps[i])
    return out
