"""Is the encoder learning? A linear probe of distortion type and level on photographs that it is not trained on."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrique.distortions import IDENTITY
from contrique.pretraining.batches import OnTheFly, Pictures
from contrique.pretraining.crops import choose_centre_cut, cut_views

if TYPE_CHECKING:
    import pandas as pd


CONTENTS = 8  # at most; each is judged by a probe that was fitted on the others
FEWEST = 4  # contents outside `pretrain` that are enough
RESERVE = 10  # photographs are withheld from training only if there are this many times FEWEST of them
_RIDGE = 0.1  # of the mean eigenvalue scale: features are standardised
_BATCH = 64
Embed = Callable[[Tensor], Tensor]


def split_probe_rows(rows: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Part the rows of synthetic pictures into those to train on and those to probe with.

    Contents outside the split `pretrain` serve, whose pictures are never trained on. If there are too few, CONTENTS of
    the `pretrain` ones are withheld, provided that there are many; else the second part is empty.

    Args:
        rows: manifest rows with `split` and `reference`.
    Returns:
        rows to train on, rows to probe with: different contents. Which ones hangs on their names alone.
    """
    train, others = rows[rows["split"] == "pretrain"], rows[rows["split"] != "pretrain"]
    chosen = _choose_contents(others["reference"])
    if len(chosen) >= FEWEST:
        return train, others[others["reference"].isin(chosen)]
    chosen = _choose_contents(train["reference"]) if train["reference"].nunique() >= RESERVE * FEWEST else []
    withheld = train["reference"].isin(chosen)
    return train[~withheld], train[withheld]


def _choose_contents(references: Sequence[str]) -> list[str]:
    """CONTENTS of the contents, in the order of a hash of their names."""
    return sorted(set(references), key=lambda name: hashlib.sha256(str(name).encode()).digest())[:CONTENTS]


class Probe:
    """A fixed sample of distorted pictures, a central crop of each at both scales, and what can be read off them.

    Pristine pictures and the classes that equal them are left out: there is nothing to tell.

    Args:
        pool, on_the_fly: as `Pictures` takes them; every content with its distortions.
        crop: side of the crops in pixels.
    """

    def __init__(self, pool: "pd.DataFrame", crop: int, on_the_fly: OnTheFly | None = None) -> None:
        pictures = Pictures(pool, on_the_fly)
        crops, types, levels, contents = [], [], [], []
        for row in range(len(pictures)):
            name, level = pictures.version_of(row)
            if not name or (name, level) in IDENTITY:
                continue
            image = pictures[row]
            crops.append(np.stack(cut_views(image, crop, choose_centre_cut(image.shape[0], image.shape[1], crop))))
            types.append(name)
            levels.append(level)
            contents.append(pictures.reference(row))
        self.crops = torch.from_numpy(np.stack(crops)).permute(0, 1, 4, 2, 3).flatten(0, 1)  # full, half, full, ...
        self.types, self.levels, self.contents = np.array(types), np.array(levels), np.array(contents)

    def measure(self, embed: Embed) -> dict[str, float]:
        """Accuracy, leaving out one content after the other.

        Args:
            embed: RGB (N, 3, crop, crop) uint8 -> frozen features (N, width).
        Returns:
            `probe_type`: share of pictures whose distortion is told (one in 25 by chance); `probe_level`: share whose
            level is told by a probe of their own distortion (one in 5 by chance).
        """
        parts = [embed(self.crops[i : i + _BATCH]).float().cpu() for i in range(0, len(self.crops), _BATCH)]
        features = torch.cat(parts).view(len(self.types), -1).double().numpy()
        told = np.zeros((2, len(features)), bool)
        for content in np.unique(self.contents):
            judged = self.contents == content
            known = (features - features[~judged].mean(0)) / (features[~judged].std(0) + 1e-9)
            told[0, judged] = _predict_classes(known, self.types, ~judged)[judged]
            for name in np.unique(self.types[judged]):
                rows = self.types == name
                told[1, rows & judged] = _predict_classes(known[rows], self.levels[rows], ~judged[rows])[judged[rows]]
        return {"probe_type": float(told[0].mean()), "probe_level": float(told[1].mean())}


def _predict_classes(
    features: NDArray[np.float64], labels: NDArray[np.generic], fitted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether a ridge classifier (one-hot targets, dual form), fitted on some rows, tells the label of each."""
    classes, index = np.unique(labels, return_inverse=True)
    known = features[fitted]
    gram = known @ known.T / features.shape[1]
    targets = np.eye(len(classes))[index[fitted]] - 1 / len(classes)
    weights = np.linalg.solve(gram + _RIDGE * np.eye(len(known)), targets)
    told = (features @ known.T / features.shape[1]) @ weights
    return np.asarray(told.argmax(1) == index)
