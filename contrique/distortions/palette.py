"""A palette of minimum variance: Wu's greedy orthogonal bipartition (Graphics Gems II, 1991)."""

import numpy as np
from numpy.typing import NDArray

BITS = 5  # of each channel that the colour cube keeps
SIDE = 2**BITS

Box = tuple[int, int, int, int, int, int]  # r0, r1, g0, g1, b0, b1: cells r0 + 1 .. r1 and so on


def minimum_variance_palette(pixels: NDArray[np.uint8], colours: int) -> NDArray[np.uint8]:
    """Split the colour cube into boxes, each time where the variance within boxes falls most.

    The method of MATLAB's rgb2ind ("minimum variance quantization").

    Args:
        pixels: RGB. Shape (H, W, 3), uint8.
        colours: the most that the palette may hold.
    Returns:
        the mean colour of each box; fewer than `colours` when no box can be split. Shape (K, 3), uint8.
    """
    moments = _cumulative_moments(pixels)
    boxes: list[Box] = [(0, SIDE, 0, SIDE, 0, SIDE)]
    splits = [_best_split(moments, boxes[0])]
    while len(boxes) < colours:
        k = max(range(len(boxes)), key=lambda i: splits[i][0])
        gain, axis, position = splits[k]
        if gain <= 0:
            break
        low, high = list(boxes[k]), list(boxes[k])
        low[2 * axis + 1] = high[2 * axis] = position
        boxes[k] = (low[0], low[1], low[2], low[3], low[4], low[5])
        boxes.append((high[0], high[1], high[2], high[3], high[4], high[5]))
        splits[k] = _best_split(moments, boxes[k])
        splits.append(_best_split(moments, boxes[-1]))
    sums = np.array([_volume(moments, box) for box in boxes])
    palette: NDArray[np.uint8] = np.rint(sums[:, 1:] / sums[:, :1]).astype(np.uint8)
    return palette


def _cumulative_moments(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Count, sum of R, of G and of B of all cells up to each corner. Shape (SIDE + 1, SIDE + 1, SIDE + 1, 4)."""
    flat = pixels.reshape(-1, 3)
    cells = (flat >> (8 - BITS)).astype(np.int64) @ np.array([SIDE**2, SIDE, 1])
    moments = np.zeros((SIDE + 1, SIDE + 1, SIDE + 1, 4))
    moments[1:, 1:, 1:, 0] = np.bincount(cells, minlength=SIDE**3).reshape(SIDE, SIDE, SIDE)
    for channel in range(3):
        sums = np.bincount(cells, weights=flat[:, channel], minlength=SIDE**3)
        moments[1:, 1:, 1:, channel + 1] = sums.reshape(SIDE, SIDE, SIDE)
    return moments.cumsum(axis=0).cumsum(axis=1).cumsum(axis=2)


def _volume(moments: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    r0, r1, g0, g1, b0, b1 = box
    faces = moments[r1] - moments[r0]
    edges = faces[g1] - faces[g0]
    total: NDArray[np.float64] = edges[b1] - edges[b0]
    return total


def _best_split(moments: NDArray[np.float64], box: Box) -> tuple[float, int, int]:
    """(fall of the sum of squared errors, axis, first cell of the upper part); (0, 0, 0) if nothing can be split."""
    whole = _volume(moments, box)
    best = (0.0, 0, 0)
    for axis in range(3):
        start, end = box[2 * axis], box[2 * axis + 1]
        if end - start < 2:
            continue
        r0, r1, g0, g1, b0, b1 = box
        if axis == 0:
            slab = moments[start + 1 : end]
            slab = slab - moments[start]
            lines = slab[:, g1] - slab[:, g0]
            lower = lines[:, b1] - lines[:, b0]
        elif axis == 1:
            faces = moments[r1] - moments[r0]
            lines = faces[start + 1 : end] - faces[start]
            lower = lines[:, b1] - lines[:, b0]
        else:
            faces = moments[r1] - moments[r0]
            edges = faces[g1] - faces[g0]
            lower = edges[start + 1 : end] - edges[start]
        upper = whole - lower
        both = (lower[:, 0] > 0) & (upper[:, 0] > 0)
        if not both.any():
            continue
        lower, upper = lower[both], upper[both]
        gains = _explained_squares(lower) + _explained_squares(upper) - _explained_squares(whole[None])
        k = int(gains.argmax())
        if gains[k] > best[0]:
            best = (float(gains[k]), axis, int(np.flatnonzero(both)[k]) + start + 1)
    return best


def _explained_squares(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = (sums[:, 1:] ** 2).sum(axis=1) / sums[:, 0]
    return result
