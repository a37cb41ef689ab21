"""Weak labels: full-reference scores that stand in for human ones where nobody has rated the pictures.

KADIS-700k carries such labels (11 full-reference metrics; Lin et al. 2020). Here two are averaged: HaarPSI
(Reisenhofer et al. 2018) and MDSI (Nafchi et al. 2016), both of the library `piq`. They were chosen by their published
agreement with people (SRCC on TID2013 .873 and .890, on KADID-10k .885 and .885), both see colour, and both are fast.
They are never called MOS.
"""

from typing import TYPE_CHECKING

from contrique.images import Picture

if TYPE_CHECKING:
    from torch import Tensor


def _tensor(picture: Picture) -> "Tensor":
    import torch

    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def weak_label(distorted: Picture, reference: Picture) -> float:
    """Mean of HaarPSI and 1 - MDSI: 1 for identical pictures, falling towards 0, higher is better.

    Args:
        distorted: RGB. Shape (H, W, 3), uint8, H and W at least 16.
        reference: the pristine picture of the same shape.
    Returns:
        the weak label, in [0, 1].
    Raises:
        ValueError: the shapes differ.
    """
    import piq
    import torch

    if distorted.shape != reference.shape:
        raise ValueError(f"distorted {distorted.shape} and reference {reference.shape} must have one shape")
    with torch.inference_mode():
        x, y = _tensor(distorted), _tensor(reference)
        value = (piq.haarpsi(x, y) + 1 - piq.mdsi(x, y)) / 2
    return min(1.0, max(0.0, float(value)))
