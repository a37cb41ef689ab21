"""Folders of pictures, with or without scores, as manifest rows."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm import tqdm

from contrique.artifacts import LABELS
from contrique.data.manifest import DatasetError, as_manifest, inspect_file
from contrique.data.splits import assign_splits
from contrique.files import StorageError, inside
from contrique.sources.labels import read_labels
from contrique.text import escape_control
from contrique.walk import SUFFIXES, Skipped, summarize_skipped, walk_pictures


@dataclass(frozen=True)
class Source:
    """A folder to import and what its pictures are for.

    Attributes:
        path: a folder of images; a `labelled` one holds `labels.csv`.
        role: `labelled` pictures are judged; `pristine` and `authentic` ones only train the encoder.
    """

    path: Path
    role: Literal["labelled", "pristine", "authentic"]


def import_folder(source: Source) -> pd.DataFrame:
    """Manifest rows of a folder of images, `image` relative to it.

    A labelled folder's `labels.csv` is read by `labels.read_labels`. DMOS (higher is worse) is mirrored within its own
    range, so that `mos` is always higher-is-better. Without `reference` each image is a content of its own. Without
    `split`, whole contents are assigned to train, validation and test by `assign_splits`, each by the name of its
    reference or else by its picture: never by where it lies or what its file is called. Unlabelled folders take every
    picture that `walk.walk_pictures` finds, split `pretrain`; what it leaves out is counted on stderr.

    Raises:
        DatasetError: no folder, no images, labels missing or unreadable, a labelled image is absent, or a file or a
            folder cannot be read.
    """
    folder = source.path
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; check the path")
    name = folder.resolve().name
    rows = read_labels(folder / LABELS) if source.role == "labelled" else _unlabelled_rows(folder, source.role)
    _refuse_odd_names([name, *(row["image"] for row in rows)], folder)
    described = describe_rows(rows, folder, name)
    frame = as_manifest(described)
    if source.role == "labelled" and not frame["split"].astype(bool).any():
        frame["split"] = assign_splits(_identities(rows, described))
    return frame


def describe_rows(rows: Sequence[dict[str, Any]], folder: Path, name: str) -> list[dict[str, Any]]:
    """Complete rows that name `image` and `reference` below a folder by what their files are (`inspect_file`).

    Args:
        rows: `image` relative to `folder`; `reference` tells the contents of this set apart.
        name: of the set; it becomes `dataset` and the front of `reference`.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        described = pool.map(lambda row: inspect_file(folder / row["image"]), rows)
        bar = tqdm(zip(rows, described, strict=True), escape_control(name), len(rows), unit="picture", disable=None)
        return [row | {"dataset": name, "reference": f"{name}:{row['reference']}"} | facts for row, facts in bar]


def _identities(rows: Sequence[dict[str, Any]], described: Sequence[dict[str, Any]]) -> pd.Series:
    """What each row's content is known by, wherever it lies: its reference's name, or else its picture's hash."""
    references = {row["reference"] for row in rows if row["reference"] != row["image"]}
    return pd.Series(
        [
            row["reference"] if row["reference"] in references else facts["content"]
            for row, facts in zip(rows, described, strict=True)
        ]
    )


def _unlabelled_rows(folder: Path, role: str) -> list[dict[str, Any]]:
    walked = list(walk_pictures(folder))
    skipped = [entry for entry in walked if isinstance(entry, Skipped)]
    unreadable = [entry for entry in skipped if entry.lost and "cannot be read" in entry.reason]
    if unreadable:
        place = escape_control(str(unreadable[0].path))
        raise DatasetError(f"{place}: {unreadable[0].reason}; check its permissions, or move it out of {folder}")
    files = sorted(entry for entry in walked if isinstance(entry, Path))
    if not files:
        expected = ", ".join(sorted(SUFFIXES))
        more = f"; {summarize_skipped(skipped)}" if skipped else ""
        raise DatasetError(f"{folder}: no image files below it; expected {expected}{more}")
    if skipped:
        print(f"{escape_control(str(folder))}: {summarize_skipped(skipped)}", file=sys.stderr)
    relative = [path.relative_to(folder).as_posix() for path in files]
    return [{"image": path, "reference": path, "kind": role, "split": "pretrain"} for path in relative]


def _refuse_odd_names(names: Sequence[str], folder: Path) -> None:
    """A manifest holds UTF-8, and is read on every system."""
    for name in names:
        text = escape_control(name)
        try:
            name.encode()
        except UnicodeEncodeError as error:
            place = escape_control(str(folder))
            raise DatasetError(f"{place}: the name '{text}' is not UTF-8; rename it (convmv does many)") from error
        try:
            inside(name, escape_control(str(folder)))
        except StorageError as error:
            raise DatasetError(
                f"{folder}: the name '{text}' holds what other systems take for a path; rename it"
            ) from error
