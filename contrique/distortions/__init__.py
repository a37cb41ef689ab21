"""The distortion bank of KADIS-700k (spec section 6): 25 distortions at 5 levels, seeded.

`distort` makes one picture on the CPU, `distort_batch` a batch of tensors on the CPU or a GPU. Nothing here reads
a file or a clock, and every random number comes from the generator that the caller passes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contrique.distortions.bank import (
    IDENTITY,
    LEVELS,
    MIN_SIDE,
    NAMES,
    DistortionError,
    class_id,
    distort,
    generator,
    parameter,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "IDENTITY",
    "LEVELS",
    "MIN_SIDE",
    "NAMES",
    "DistortionError",
    "class_id",
    "contact_sheet",
    "distort",
    "distort_batch",
    "generator",
    "parameter",
]


def distort_batch(
    images: "torch.Tensor", names: Sequence[str], levels: Sequence[int], generator: "torch.Generator"
) -> "torch.Tensor":
    """Distort a batch on its own device; see `contrique.distortions.batch.distort_batch`."""
    from contrique.distortions import batch

    return batch.distort_batch(images, names, levels, generator)


def contact_sheet(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """One picture under all 25 x 5, labelled; see `contrique.distortions.sheet.contact_sheet`."""
    from contrique.distortions import sheet

    return sheet.contact_sheet(image, seed)
