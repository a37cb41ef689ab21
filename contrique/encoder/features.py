"""Frozen two-scale features (paper, section III-D; spec section 5)."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contrique.encoder.architectures import MIN_SIDE
from contrique.encoder.backends import Backend, Torch
from contrique.errors import ContriqueError
from contrique.images import Picture, half_scale

if TYPE_CHECKING:
    from contrique.encoder.network import Encoder


STRIDE = 32  # pixels from one cell of conv5 to the next
HALO = 224  # pixels that a cell sees to each side of its centre: 217 in ResNet-18, 213 in ResNet-50
TILE = 2304  # the side of the largest piece that is computed at once
Features = NDArray[np.float32]


class ImageTooSmall(ContriqueError):
    """A picture with a side under MIN_SIDE pixels: nothing is left of it at half scale."""


def extract_batch(pictures: NDArray[np.uint8], backend: Backend) -> Features:
    """f = [h(full), h(half)] of whole pictures of one size, no crop; any size at bounded memory (see `maps`).

    Args:
        pictures: RGB. Shape (N, H, W, 3), uint8, H and W at least 64.
        backend: runs the encoder.
    Returns:
        Shape (N, 2 * width), float32; each half has norm 1.
    Raises:
        ImageTooSmall: a side is under 64 pixels.
    """
    check_size(pictures[0])
    parts = []
    for scale in (pictures, np.stack([half_scale(picture) for picture in pictures])):
        totals = sum(cells.sum(axis=(2, 3), dtype=np.float64) for _, _, cells in compute_maps(scale, backend))
        # the mean of conv5 and its sum have one direction
        parts.append(totals / np.maximum(np.linalg.norm(totals, axis=1, keepdims=True), 1e-12))
    return np.concatenate(parts, axis=1).astype(np.float32)


def compute_maps(pictures: NDArray[np.uint8], backend: Backend) -> Iterator[tuple[int, int, Features]]:
    """conv5 of whole pictures, in parts that fit into memory: the same numbers as in one piece, whatever the size.

    A picture with a side over TILE is cut into tiles that overlap by what a cell of conv5 can see beyond its centre, so
    that every cell that is kept saw all of the picture it would have seen.

    Args:
        pictures: RGB, of one size. Shape (N, H, W, 3), uint8.
        backend: runs the encoder.
    Yields:
        the place (row, column) of a part in conv5, and the part. Shape (N, width, h, w), float32.
    """
    height, width = pictures.shape[1:3]
    for top, bottom, row, rows in _spans(height):
        for left, right, column, columns in _spans(width):
            cells = backend(pictures[:, top:bottom, left:right])
            down, along = row - top // STRIDE, column - left // STRIDE
            yield row, column, cells[:, :, down : down + rows, along : along + columns]


def _spans(length: int) -> Iterator[tuple[int, int, int, int]]:
    """Cuts of one side: first and last pixel to compute, first cell of conv5 to keep, and how many."""
    cells = -(-length // STRIDE)
    each = cells if length <= TILE else (TILE - 2 * HALO) // STRIDE
    for first in range(0, cells, each):
        count = min(each, cells - first)
        stop = STRIDE * (first + count - 1) + HALO if first + count < cells else length
        yield max(0, STRIDE * first - HALO), min(length, stop), first, count


def local_products(picture: Picture, backend: Backend, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each cell's conv5 vector, normalised, times the weights. Shape (ceil(H / 32), ceil(W / 32)), float64."""
    height, width = picture.shape[:2]
    products = np.empty((-(-height // STRIDE), -(-width // STRIDE)))
    for row, column, cells in compute_maps(picture[None], backend):
        vectors = np.moveaxis(cells[0], 0, -1).astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        products[row : row + vectors.shape[0], column : column + vectors.shape[1]] = vectors @ weights
    return products


def interpolate(grid: NDArray[Any], shape: tuple[int, ...], step: float) -> NDArray[Any]:
    """Values between the points of a grid, `step` apart and the first at 0, linear. Of the shape given."""
    import cv2

    y, x = (np.arange(size, dtype=np.float32) / step for size in shape)
    rows, columns = np.repeat(y[:, None], len(x), 1), np.repeat(x[None], len(y), 0)
    return np.asarray(cv2.remap(grid.astype(np.float32), columns, rows, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE))


def check_size(picture: Picture) -> None:
    """Raise ImageTooSmall if a side is under MIN_SIDE pixels."""
    height, width = picture.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageTooSmall(f"{width}x{height} is under {MIN_SIDE} pixels a side; give a larger picture")


def extract_one(picture: Picture, encoder: "Encoder", precision: str = "float32") -> Features:
    """`describe` of one picture by PyTorch.

    Args:
        picture: RGB. Shape (H, W, 3), uint8, H and W at least 64.
        encoder: in eval mode; its parameters are not touched.
        precision: `float32`, or `bfloat16` for autocast (faster, agrees to about 1e-2).
    Returns:
        Shape (2 * encoder.width,), float32; each half has norm 1.
    Raises:
        ImageTooSmall: a side is under 64 pixels.
    """
    return np.asarray(extract_batch(picture[None], Torch(encoder, precision))[0])


def extract(pictures: Iterable[Picture], encoder: "Encoder", precision: str = "float32") -> Features:
    """`extract_one` of each picture; they may differ in size. Shape (N, 2 * encoder.width), float32."""
    rows = [extract_one(picture, encoder, precision) for picture in pictures]
    return np.stack(rows) if rows else np.empty((0, 2 * encoder.width), np.float32)
