"""Which part a content belongs to, and which rows judge, fit or pretrain."""

import hashlib
from typing import Final

import pandas as pd

from contrique.data.manifest import DatasetError

LEAST_TRAINED: Final = 2  # pictures of the training part: fewer cannot be fitted to
LEAST_VALIDATED: Final = 3  # pictures of the validation part: fewer have no correlation
LEAST_TESTED: Final = 5  # pictures of the test part: its figures are computed after a logistic of four parameters


def assign_splits(references: pd.Series, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)) -> pd.Series:
    """Assign whole contents to train, validation and test, the same whatever the order of the rows.

    The part of a content follows from a hash of its name alone, so that a set may grow and none of its contents moves:
    one that a champion was trained on does not come into the test part of its challenger. Only where chance leaves
    the test or validation part less than half of its share of the rows, as it may with few contents, do the next by
    hash join it; likewise where a part would have fewer pictures than it takes to fit or to compute figures.

    Args:
        references: what the content of each row is known by, wherever it lies.
        fractions: probabilities of train, validation and test for a content; they sum to 1.
    Returns:
        the split of each row, index as given.
    Raises:
        DatasetError: fewer than three contents.
    """
    place = {name: int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64 for name in set(references)}
    if len(place) < 3:
        raise DatasetError(f"{len(place)} contents cannot be split into train, validation and test; give at least 3")
    ranked = sorted(place, key=lambda name: (place[name], name))
    _, validation, test = fractions
    sizes = references.value_counts()

    def end(start: int, below: float, share: float, least: int, contents: int, pictures: int) -> int:
        """Where a part ends that begins at `start`, and leaves so many contents and pictures to the parts after it."""
        last = len(ranked) - contents
        while last > start + 1 and sizes[ranked[last:]].sum() < pictures:
            last -= 1
        stop = min(start + sum(place[name] < below for name in ranked[start:]), last)
        while stop < last and sizes[ranked[start:stop]].sum() < max(share * len(references) / 2, least):
            stop += 1
        return stop

    test_end = end(0, test, test, LEAST_TESTED, 2, LEAST_VALIDATED + LEAST_TRAINED)
    validation_end = end(test_end, test + validation, validation, LEAST_VALIDATED, 1, LEAST_TRAINED)
    parts = (
        ["test"] * test_end + ["validation"] * (validation_end - test_end) + ["train"] * (len(ranked) - validation_end)
    )
    return references.map(dict(zip(ranked, parts, strict=True))).astype("str")


def judged_rows(manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows whose labels judge the model: outside `pretrain`, with a MOS or, failing any MOS, a weak label."""
    rows = manifest[manifest["split"] != "pretrain"]
    labelled = rows[rows["mos"].notna()]
    return labelled if len(labelled) else rows[rows["weak_label"].notna()]


def label_kind(manifest: pd.DataFrame) -> tuple[str, str]:
    """Which labels judge a set and their column: ("human", "mos") if any judged row has a MOS, else weak labels."""
    human = bool((manifest["mos"].notna() & (manifest["split"] != "pretrain")).any())
    return ("human", "mos") if human else ("weak", "weak_label")


def pretrain_rows(manifest: pd.DataFrame) -> pd.DataFrame:
    """The `pretrain` rows with a weak label: a regressor may be fitted to them, nothing is judged by them."""
    return manifest[manifest["weak_label"].notna() & (manifest["split"] == "pretrain")]
