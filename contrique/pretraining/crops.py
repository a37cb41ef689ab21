"""Where two views are cut from a picture, at full and at half scale."""

from typing import NamedTuple

import cv2
import numpy as np

from contrique.images import Picture, half_scale

_BORDER = 8  # context kept around a crop, so that its half scale equals the whole picture's


class Cut(NamedTuple):
    """Where two views are cut from a picture: (top, left) at full and at half scale, and what happens to the crops."""

    full: tuple[int, int]
    half: tuple[int, int]
    flips: tuple[bool, bool] = (False, False)
    half_first: bool = False


def draw_cut(height: int, width: int, crop: int, rng: np.random.Generator) -> Cut:
    """A uniform position at each scale; each view is flipped, and their order reversed, with probability 1/2."""
    full, half = _measure_room(height, width, crop)
    corners = [(int(rng.integers(y + 1)), int(rng.integers(x + 1))) for y, x in (full, half)]
    flips = (bool(rng.random() < 0.5), bool(rng.random() < 0.5))
    return Cut(corners[0], corners[1], flips, bool(rng.random() < 0.5))


def choose_centre_cut(height: int, width: int, crop: int) -> Cut:
    """The middle of the picture at each scale."""
    (full_y, full_x), (half_y, half_x) = _measure_room(height, width, crop)
    return Cut((full_y // 2, full_x // 2), (half_y // 2, half_x // 2))


def _measure_room(height: int, width: int, crop: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """How far a crop can move down and right, at full and at half scale; smaller scales are extended to the crop."""
    return (
        (max(0, height - crop), max(0, width - crop)),
        (max(0, height // 2 - crop), max(0, width // 2 - crop)),
    )


def cut_views(image: Picture, crop: int, cut: Cut, half: Picture | None = None) -> tuple[Picture, Picture]:
    """One view at full and one at half scale.

    Where a scale is smaller than the crop it is extended by reflection (the original pads half of all KADIS views with
    black, a cue that has nothing to do with quality).

    Args:
        image: RGB. Shape (H, W, 3), uint8.
        crop: side of the views.
        cut: of a picture of this size.
        half: `half_scale` of the picture, if known; else only the part of it that is needed is computed.
    Returns:
        two views, RGB. Shape (crop, crop, 3), uint8.
    """
    halved = _cut_half(image, crop, cut.half) if half is None else _cut_full(half, crop, cut.half)
    views = [_cut_full(image, crop, cut.full), halved]
    a, b = [cv2.flip(view, 1) if flip else view for view, flip in zip(views, cut.flips, strict=True)]
    return (b, a) if cut.half_first else (a, b)


def _cut_full(image: Picture, crop: int, corner: tuple[int, int]) -> Picture:
    top, left = corner
    return _reflect_to(image, crop)[top : top + crop, left : left + crop]


def _cut_half(image: Picture, crop: int, corner: tuple[int, int]) -> Picture:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    if height < crop or width < crop or image.shape[0] % 2 or image.shape[1] % 2:
        return _cut_full(half_scale(image), crop, corner)
    top, left = corner
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
    extended: Picture = cv2.copyMakeBorder(
        image, dy // 2, dy - dy // 2, dx // 2, dx - dx // 2, cv2.BORDER_REFLECT
    )  # numpy.pad needs ten times as long
    return extended
