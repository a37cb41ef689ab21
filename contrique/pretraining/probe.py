"""Linear probe of distortion type and level, on photographs that the encoder is not trained on."""

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


CONTENTS = 8  # at most; each is predicted by a probe that was fitted on the others
FEWEST = 4  # contents outside `pretrain` that suffice
RESERVE = 10  # photographs are withheld from training only if there are at least RESERVE * FEWEST of them
_RIDGE = 0.1  # of the mean eigenvalue scale: features are standardised
_BATCH = 64
Embed = Callable[[Tensor], Tensor]


def split_probe_rows(rows: "pd.DataFrame") -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Split the rows of synthetic pictures into training rows and probe rows.

    Probe rows are of contents outside the split `pretrain`, which are never trained on. If there are fewer than FEWEST,
    CONTENTS of the `pretrain` ones are withheld, if there are many; else there are no probe rows.

    Args:
        rows: manifest rows with `split` and `reference`.
    Returns:
        training rows, probe rows: of different contents. The choice depends on the names of the contents only.
    """
    train, others = rows[rows["split"] == "pretrain"], rows[rows["split"] != "pretrain"]
    contents = _choose_contents(others["reference"])
    if len(contents) >= FEWEST:
        return train, others[others["reference"].isin(contents)]
    contents = _choose_contents(train["reference"]) if train["reference"].nunique() >= RESERVE * FEWEST else []
    withheld = train["reference"].isin(contents)
    return train[~withheld], train[withheld]


def _choose_contents(references: Sequence[str]) -> list[str]:
    """The first CONTENTS of the contents, in the order of a hash of their names."""
    return sorted(set(references), key=lambda name: hashlib.sha256(str(name).encode()).digest())[:CONTENTS]


class Probe:
    """Measures how well distortion type and level can be read off features of a fixed sample of distorted pictures.

    Each picture is represented by a central crop at both scales. Pristine pictures, and levels that equal them, are
    left out.

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
        """Accuracy by leave-one-content-out cross-validation.

        Args:
            embed: RGB (N, 3, crop, crop) uint8 -> frozen features (N, width).
        Returns:
            `probe_type`: fraction of pictures whose distortion is predicted (1/25 by chance); `probe_level`: fraction
            whose level is predicted by a probe of their own distortion (1/5 by chance).
        """
        parts = [embed(self.crops[i : i + _BATCH]).float().cpu() for i in range(0, len(self.crops), _BATCH)]
        features = torch.cat(parts).view(len(self.types), -1).double().numpy()
        correct = np.zeros((2, len(features)), bool)
        for content in np.unique(self.contents):
            held_out = self.contents == content
            scaled = (features - features[~held_out].mean(0)) / (features[~held_out].std(0) + 1e-9)
            correct[0, held_out] = _is_predicted(scaled, self.types, ~held_out)[held_out]
            for name in np.unique(self.types[held_out]):
                rows = self.types == name
                correct_levels = _is_predicted(scaled[rows], self.levels[rows], ~held_out[rows])
                correct[1, rows & held_out] = correct_levels[held_out[rows]]
        return {"probe_type": float(correct[0].mean()), "probe_level": float(correct[1].mean())}


def _is_predicted(
    features: NDArray[np.float64], labels: NDArray[np.generic], fitted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Whether a ridge classifier (one-hot targets, dual form), fitted on some rows, predicts the label of each row."""
    classes, index = np.unique(labels, return_inverse=True)
    examples = features[fitted]
    gram = examples @ examples.T / features.shape[1]
    targets = np.eye(len(classes))[index[fitted]] - 1 / len(classes)
    weights = np.linalg.solve(gram + _RIDGE * np.eye(len(examples)), targets)
    scores = (features @ examples.T / features.shape[1]) @ weights
    return np.asarray(scores.argmax(1) == index)
