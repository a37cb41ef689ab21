"""Two-scale views of pictures for pretraining, and the samplers that compose a step (spec section 2).

Everything random is a function of (seed, step) alone: a step's batch is the same whatever the number of loader
processes and wherever training was resumed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from contrique.dataset import DatasetError, picture, rows_of
from contrique.images import Picture, half_scale

if TYPE_CHECKING:
    import pandas as pd

COLOUR_SPACES = ("gray", "lab", "hsv", "ms", "rgb")
_BORDER = 8  # context kept around a crop, so that its half scale equals the whole picture's


@dataclass(frozen=True)
class Batch:
    """One step's views. `views` are two: of each picture one at full and one at half scale, in random order.

    Attributes:
        views: two tensors, RGB uint8. Shape (images, 3, crop, crop) each.
        colours: index into COLOUR_SPACES of each view. Shape (2, images).
        labels: class of each image: (distortion, level) classes, then one of its own per authentic image.
        rows: row of each image in the pool.
    """

    views: tuple[Tensor, Tensor]
    colours: Tensor
    labels: Tensor
    rows: Tensor


class Views(Dataset[Batch]):
    """Step number -> Batch, from a pool of synthetic and authentic pictures.

    Args:
        pool: manifest rows with the columns of a manifest and `folder` (its picture set) and `label`: the class id of
            a synthetic row, -1 for an authentic one.
        images: pictures a step.
        authentic_share: of them.
        crop: side of a view in pixels.
        balanced: draw classes uniformly and `contents_per_class` different photographs of each, instead of pictures
            uniformly without replacement over an epoch.
        seed: of everything drawn.
    Raises:
        DatasetError: the pool lacks synthetic or authentic pictures that the step needs.
    """

    def __init__(
        self,
        pool: "pd.DataFrame",
        *,
        images: int,
        authentic_share: float,
        crop: int,
        balanced: bool,
        contents_per_class: int,
        seed: int,
    ) -> None:
        self.crop, self.seed = crop, seed
        self.folders = [Path(folder) for folder in pool["folder"]]
        self.records = rows_of(pool)
        self.label = pool["label"].to_numpy(np.int64)
        self.authentic = np.flatnonzero(self.label < 0)
        self.synthetic = np.flatnonzero(self.label >= 0)
        self.n_authentic = round(images * authentic_share)
        self.n_synthetic = images - self.n_authentic
        for count, rows, kind in (
            (self.n_authentic, self.authentic, "authentic"),
            (self.n_synthetic, self.synthetic, "synthetic"),
        ):
            if count and not len(rows):
                raise DatasetError(
                    f"no {kind} pictures to pretrain on; give some or set pretrain.authentic_share "
                    f"to {0 if kind == 'authentic' else 1}"
                )
        self.balanced, self.contents_per_class = balanced, contents_per_class
        references = pool["reference"].to_numpy(str)
        self.by_class: dict[int, dict[str, list[int]]] = {}
        for row in self.synthetic:
            self.by_class.setdefault(int(self.label[row]), {}).setdefault(references[row], []).append(int(row))

    @property
    def steps_per_epoch(self) -> float:
        """Steps after which as many synthetic pictures were drawn as there are."""
        return len(self.synthetic) / max(1, self.n_synthetic)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Rows of the pool that make a step: synthetic ones first. Shape (images,)."""
        rng = np.random.default_rng([self.seed, 1, step])
        synthetic = self._balanced(rng) if self.balanced else self._epoch(self.synthetic, self.n_synthetic, step, 2)
        return np.concatenate([synthetic, self._epoch(self.authentic, self.n_authentic, step, 3)])

    def _balanced(self, rng: np.random.Generator) -> NDArray[np.int64]:
        chosen: list[int] = []
        classes = sorted(self.by_class)
        order: list[int] = []
        while len(chosen) < self.n_synthetic:
            order = order or list(rng.permutation(len(classes)))
            contents = self.by_class[classes[order.pop()]]
            names = sorted(contents)
            for i in rng.permutation(len(names))[: self.contents_per_class]:
                chosen.append(int(rng.choice(contents[names[i]])))
        return np.array(chosen[: self.n_synthetic], np.int64)

    def _epoch(self, rows: NDArray[np.int64], count: int, step: int, stream: int) -> NDArray[np.int64]:
        """`count` rows from a sequence of permutations of `rows`, one per pass over them."""
        positions = np.arange(step * count, (step + 1) * count)
        out = np.empty(count, np.int64)
        for epoch in np.unique(positions // max(1, len(rows))):
            order = np.random.default_rng([self.seed, stream, int(epoch)]).permutation(len(rows))
            here = positions // len(rows) == epoch
            out[here] = rows[order[positions[here] % len(rows)]]
        return out

    def __getitem__(self, step: int) -> Batch:
        rows = self.rows(step)
        rng = np.random.default_rng([self.seed, 4, step])
        first, second = [], []
        for row in rows:
            a, b = two_views(picture(self.folders[row], self.records[row]), self.crop, rng)
            first.append(a)
            second.append(b)
        labels = self.label[rows]
        own = labels < 0
        labels[own] = 1_000_000 + np.arange(own.sum())
        colours = rng.integers(len(COLOUR_SPACES), size=(2, len(rows)))
        return Batch(
            (_stack(first), _stack(second)), torch.from_numpy(colours), torch.from_numpy(labels), torch.from_numpy(rows)
        )


def _stack(crops: list[Picture]) -> Tensor:
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def two_views(image: Picture, crop: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    """One view at full and one at half scale, in random order, each a random crop, flipped half of the time.

    Where a scale is smaller than the crop it is extended by reflection (the original pads half of all KADIS views with
    black, a cue that has nothing to do with quality).

    Args:
        image: RGB. Shape (H, W, 3), uint8.
        crop: side of the views.
        rng: drawn from.
    Returns:
        two views, RGB. Shape (crop, crop, 3), uint8.
    """
    views = [_full_crop(image, crop, rng), _half_crop(image, crop, rng)]
    views = [np.ascontiguousarray(view[:, ::-1]) if rng.random() < 0.5 else view for view in views]
    return (views[1], views[0]) if rng.random() < 0.5 else (views[0], views[1])


def _full_crop(image: Picture, crop: int, rng: np.random.Generator) -> Picture:
    image = _reflect_to(image, crop)
    top = int(rng.integers(image.shape[0] - crop + 1))
    left = int(rng.integers(image.shape[1] - crop + 1))
    return image[top : top + crop, left : left + crop]


def _half_crop(image: Picture, crop: int, rng: np.random.Generator) -> Picture:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    if height < crop or width < crop or image.shape[0] % 2 or image.shape[1] % 2:
        return _full_crop(half_scale(image), crop, rng)
    top = int(rng.integers(height - crop + 1))
    left = int(rng.integers(width - crop + 1))
    # only the crop and its surroundings are downscaled: the same pixels for a fraction of the work
    y0, x0 = max(0, 2 * top - _BORDER), max(0, 2 * left - _BORDER)
    region = image[y0 : 2 * (top + crop) + _BORDER, x0 : 2 * (left + crop) + _BORDER]
    half = half_scale(region)
    y, x = top - y0 // 2, left - x0 // 2
    return half[y : y + crop, x : x + crop]


def _reflect_to(image: Picture, side: int) -> Picture:
    dy, dx = max(0, side - image.shape[0]), max(0, side - image.shape[1])
    if not dy and not dx:
        return image
    return np.pad(image, ((dy // 2, dy - dy // 2), (dx // 2, dx - dx // 2), (0, 0)), mode="symmetric")


def colour_views(views: Tensor, colours: Tensor) -> Tensor:
    """Convert each view to its colour space, on the views' device.

    gray (three equal channels), LAB (L / 100, (a + 128) / 255, (b + 128) / 255; D65), HSV (in [0, 1]), MS (the local
    mean, a 7-tap Gaussian of sigma 7 / 6, subtracted: in [-1, 1]) and RGB in [0, 1].

    Args:
        views: RGB. Shape (N, 3, H, W), uint8.
        colours: index into COLOUR_SPACES of each. Shape (N,).
    Returns:
        Shape (N, 3, H, W), float32.
    """
    rgb = views.float().div_(255)
    out = rgb.clone()
    for index, convert in enumerate((_gray, _lab, _hsv, _mean_subtracted)):
        rows = (colours == index).nonzero()[:, 0]
        if len(rows):
            out[rows] = convert(rgb[rows])
    return out


def _gray(rgb: Tensor) -> Tensor:
    weights = rgb.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (rgb * weights).sum(1, keepdim=True).expand_as(rgb)


def _lab(rgb: Tensor) -> Tensor:
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = rgb.new_tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    ) / rgb.new_tensor([[0.950456], [1.0], [1.088754]])
    xyz = torch.einsum("ij,njhw->nihw", to_xyz, linear)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-8) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack([1.16 * y - 0.16, (500 * (x - y) + 128) / 255, (200 * (y - z) + 128) / 255], 1)


def _hsv(rgb: Tensor) -> Tensor:
    value, which = rgb.max(1)
    spread = value - rgb.min(1).values
    safe = spread.clamp(min=1e-8)
    r, g, b = rgb.unbind(1)
    hue = torch.where(which == 0, (g - b) / safe, torch.where(which == 1, 2 + (b - r) / safe, 4 + (r - g) / safe))
    hue = torch.where(spread > 0, (hue / 6) % 1, torch.zeros_like(hue))
    return torch.stack([hue, spread / value.clamp(min=1e-8), value], 1)


def _mean_subtracted(rgb: Tensor) -> Tensor:
    taps = torch.from_numpy(cv2.getGaussianKernel(7, 7 / 6)[:, 0]).to(rgb)
    padded = torch.nn.functional.pad(rgb, (3, 3, 3, 3), mode="reflect").flatten(0, 1)[:, None]
    rows = torch.nn.functional.conv2d(padded, taps.view(1, 1, 7, 1))
    return rgb - torch.nn.functional.conv2d(rows, taps.view(1, 1, 1, 7)).view_as(rgb)
