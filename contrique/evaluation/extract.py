"""The few pictures that are shown or asked for after the judgement, out of picture sets that may be terabytes.

The run's report shows them, and the registry has a model that it serves score them: with this folder neither needs the
sets themselves.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from contrique.artifacts import FEATURES, LINEAGE, TEST_SCORES
from contrique.data.manifest import read_manifest, read_picture_bytes, write_manifest
from contrique.encoder.feature_set import load_set, save_features
from contrique.errors import ContriqueError
from contrique.evaluation.disagreement import Pair, find_strongest
from contrique.files import write_aside

SHEET = "sheet"  # picture set: one photograph and all that was made of it
TEST_PICTURES = "test_pictures"  # picture set: those of the test part that are shown or asked for
FEATURE_SAMPLE = "feature_sample"  # feature set of held-out pictures
KNOWN_PICTURES = 4  # pictures that a served model is asked for
EXTREMES = 6  # pictures of each kind
DISAGREEMENTS = 5  # pairs of pictures
POINTS = 600  # rows of the feature sample
_PICTURES = "pictures.bin"  # the bytes of all pictures of a set, one after the other


class ExtractError(ContriqueError):
    """A picture that was judged is in none of the picture sets."""


def keep_extract(features: Path, evaluation: Path, sets: Sequence[Path], out: Path, *, seed: int) -> int:
    """Copy what later stages show or ask for.

    Args:
        features: feature set that was judged.
        evaluation: folder with `test_scores.parquet`.
        sets: the dataset, with its `lineage.json`, and the picture set synthesized from it.
        out: folder to write: the sets SHEET, TEST_PICTURES and FEATURE_SAMPLE, and `lineage.json`.
        seed: of the sample.
    Returns:
        the number of pictures.
    Raises:
        ExtractError: a picture that was judged is in none of the sets.
    """
    dataset, distorted = sets
    scores = pd.read_parquet(evaluation / TEST_SCORES)
    paired = [number for _, pair in pick_disagreements(scores) for number in (pair.worse, pair.better)]
    keys = set(_keys(pd.concat([pick_known_pictures(scores), *pick_extremes(scores).values(), scores.iloc[paired]])))
    parts = []
    for folder in sets:
        rows = read_manifest(folder)
        parts.append((folder, rows.loc[np.array([key in keys for key in _keys(rows)], bool)]))
    missing = keys.difference(*(_keys(rows) for _, rows in parts))
    if missing:
        raise ExtractError(
            f"{min(missing)[0]}: judged, but in none of {list(map(str, sets))}; evaluate those sets again"
        )
    manifest, values = load_set(features)
    held_out = np.flatnonzero(manifest["split"] != "pretrain")
    sample = held_out[pick_sample(len(held_out), seed)]
    with write_aside(out) as aside:
        count = _write_subset([(distorted, pick_sheet(read_manifest(distorted)))], aside / SHEET)
        count += _write_subset(parts, aside / TEST_PICTURES)
        (aside / FEATURE_SAMPLE).mkdir()
        write_manifest(manifest.iloc[sample], aside / FEATURE_SAMPLE)
        save_features(values[sample], list(manifest["image"].iloc[sample]), aside / FEATURE_SAMPLE / FEATURES)
        shutil.copyfile(dataset / LINEAGE, aside / LINEAGE)
    return count


def pick_known_pictures(scores: pd.DataFrame) -> pd.DataFrame:
    """At most KNOWN_PICTURES rows of the test part, from the worst to the best as predicted."""
    rows = scores.sort_values(["challenger", "image"])
    return rows.iloc[np.linspace(0, len(rows) - 1, min(KNOWN_PICTURES, len(rows))).astype(int)]


def pick_extremes(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Heading to at most EXTREMES rows of the test part, the most extreme first: put highest, lowest, most wrong."""
    error = (scores["challenger"] - scores["label"]).abs()
    return {
        "Best, as predicted": scores.nlargest(EXTREMES, "challenger"),
        "Worst, as predicted": scores.nsmallest(EXTREMES, "challenger"),
        "Farthest from their labels": scores.loc[error.nlargest(EXTREMES).index],
    }


def pick_disagreements(scores: pd.DataFrame) -> list[tuple[int, Pair]]:
    """The DISAGREEMENTS strongest pairs of the test part that challenger (0) or champion (1) calls equal.

    None without a champion, or where its scores are no numbers; nor in an evaluation from before points were kept.
    """
    columns = ("challenger_points", "champion_points")
    if len(scores) < 2 or not {*columns} <= {*scores}:
        return []
    challenger, champion = (scores[column].to_numpy() for column in columns)
    if not (np.isfinite(challenger).all() and np.isfinite(champion).all()):
        return []
    return find_strongest(challenger, champion, DISAGREEMENTS)


def pick_sheet(manifest: pd.DataFrame) -> pd.DataFrame:
    """The first photograph in order of name that was distorted, and all its versions; no rows if none was."""
    distorted = manifest[manifest["distortion"].astype(bool)]
    return manifest[manifest["reference"] == (min(distorted["reference"]) if len(distorted) else None)]


def pick_sample(total: int, seed: int) -> NDArray[np.intp]:
    """Which of `total` rows: all, or POINTS of them, the same for the same seed; rising."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:POINTS])


def _keys(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    """What tells pictures apart."""
    return list(zip(rows["image"], rows["reference"], rows["distortion"], strict=True))


def _write_subset(parts: Sequence[tuple[Path, pd.DataFrame]], out: Path) -> int:
    """A picture set of some rows of others, their bytes in one file; returns their number."""
    out.mkdir(parents=True)
    frames = []
    with (out / _PICTURES).open("wb") as file:
        for folder, rows in parts:
            places = []
            for row in rows.itertuples():
                data = read_picture_bytes(folder, row)
                places.append((_PICTURES, file.tell(), len(data)))
                file.write(data)
            frame = pd.DataFrame(places, columns=["shard", "offset", "size"], index=rows.index)
            frames.append(rows.assign(**{name: frame[name] for name in frame}))
    whole = pd.concat(frames, ignore_index=True)
    write_manifest(whole, out)
    return len(whole)
