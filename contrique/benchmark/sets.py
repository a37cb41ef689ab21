"""Rated sets to judge on, and what two of them share."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from contrique.artifacts import LABELS, MANIFEST
from contrique.benchmark.tables import WEAK
from contrique.data import leaks
from contrique.data.manifest import read_manifest, read_picture, rows_of
from contrique.data.splits import pretrain_rows
from contrique.errors import ContriqueError
from contrique.evaluation.judgement import Rated
from contrique.sources import public_sets
from contrique.sources.folders import Source, import_folder
from contrique.text import count_noun

MAX_SCENE_PAIRS: Final = 5000  # of contents compared by key points, some 10 ms each; more are compared by hashes alone


class BenchmarkError(ContriqueError):
    """A set, a picture or a baseline with which no table can be made; the message names it."""


@dataclass(frozen=True)
class JudgedSet:
    """Pictures to fit a head on or to be judged on.

    Attributes:
        name: in tables of two sets, and what published figures are looked up by.
        title: as in papers.
        folder: of the pictures.
        rows: manifest rows with a label; no two contents share a picture.
        photographs: manifest rows by which its contents are compared with those of another set.
        label: column of `rows` that holds it, `mos` or `weak_label`.
        official: part of each row where the set comes in a split of its own, else empty.
        references: file of each row's reference picture, relative to `folder`; empty where there are none.
        perfect: declared label of an undistorted picture.
        notes: what a reader of its figures should know.
    """

    name: str
    title: str
    folder: Path
    rows: pd.DataFrame
    photographs: pd.DataFrame
    label: str = "mos"
    official: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    perfect: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def contents(self) -> list[str]:
        """Of each row."""
        return list(self.rows["reference"])

    @property
    def labels(self) -> NDArray[np.float64]:
        """Of each row, higher is better. Shape (N,)."""
        return np.asarray(self.rows[self.label], dtype=np.float64)

    def rated(self, rows: NDArray[np.intp] | None = None) -> Rated:
        """Labels of some rows, or of all."""
        table = self.rows if rows is None else self.rows.iloc[rows]
        return Rated(table[self.label].to_numpy(np.float64), list(table["reference"]), list(table["distortion"]))

    @cached_property
    def scenes(self) -> dict[str, leaks.KeyPoints]:
        """Key points of the best picture of each content."""
        best = self.photographs.sort_values(self.label, kind="stable").drop_duplicates("reference", keep="last")
        bar = tqdm(rows_of(best), f"{self.name}: scenes", delay=2, unit="content", disable=None)
        return {str(row.reference): leaks.key_points(read_picture(self.folder, row)) for row in bar}


def open_set(data: str, *, bits: int) -> JudgedSet:
    """Read a judged set where it lies.

    Args:
        data: NAME:PATH or PATH; the path of a public set as distributed (then NAME is one of `public_sets.SETS`), of a
            folder with `labels.csv`, or of a picture set. Without NAME it is called as its folder.
        bits: by which near-duplicates differ at most; contents that share one are taken as one.
    Raises:
        BenchmarkError: no such folder, neither of the three, no human scores.
        DatasetError, PublicSetError: it cannot be read.
    """
    name, colon, path = data.partition(":")
    if not colon or Path(data).exists():
        name, path = Path(data).resolve().name, data
    folder, notes = Path(path), []
    official: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    public = public_sets.SETS.get(name)
    if not folder.is_dir():
        raise BenchmarkError(
            f"{data}: no folder {path or '.'!r}; give NAME:PATH or PATH of a judged set on this machine"
        )
    if (folder / MANIFEST).is_file():
        rows = read_manifest(folder)
    elif (folder / LABELS).is_file():
        rows = import_folder(Source(folder, "labelled"))
        rows["reference"] = name + ":" + rows["reference"].str.partition(":")[2]
    elif public:
        rows = public_sets.read(name, folder)
        official = tuple(rows["split"]) if public.official_split else ()
        references = tuple(public_sets.reference_pictures(rows))
    else:
        raise BenchmarkError(
            f"{data}: neither a labels.csv nor a manifest.parquet in it; name the public set that it is, one of "
            f"{', '.join(public_sets.SETS)}, as NAME:PATH"
        )
    if not official:
        rows = rows[rows["mos"].notna() & (rows["split"] != "pretrain")].reset_index(drop=True)
    if rows.empty:
        raise BenchmarkError(f"{data}: no human scores in it; a benchmark needs them")
    if public and len(rows) != public.pictures:
        notes.append(f"{len(rows)} of the {public.pictures} pictures of {public.title}; published figures are of all")
    merged = leaks.merge_contents(rows, bits=bits, loader=lambda row: read_picture(folder, row))
    fewer = rows["reference"].nunique() - merged.nunique()
    if fewer:
        notes.append(f"taken as one with another that shares a picture: {count_noun(fewer, 'content')}")
    parts = pd.Series(official).groupby(merged.to_numpy()).nunique() if official else pd.Series()
    if (parts > 1).any():
        notes.append(f"in more than one part of its official split: {count_noun(int((parts > 1).sum()), 'content')}")
    rows = rows.assign(reference=merged)
    return JudgedSet(
        name,
        public.title if public else name,
        folder,
        rows,
        rows,
        official=official,
        references=references if all(references) else (),
        perfect=public.high if public else math.nan,
        notes=tuple(notes),
    )


def open_weak(folder: Path, count: int, seed: int) -> JudgedSet:
    """A random sample of the weak-labelled pictures of a synthesized set, to fit an opinion-unaware head on.

    Args:
        folder: picture set of `contrique synthesize` or of a run; pictures of judged parts are left out.
        count: pictures at most.
        seed: of the sample.
    Raises:
        BenchmarkError: no weak labels of two photographs or more.
        DatasetError: no picture set.
    """
    manifest = read_manifest(folder)
    rows = pretrain_rows(manifest)
    if rows["reference"].nunique() < 2:
        raise BenchmarkError(
            f"{folder}: weak labels of {rows['reference'].nunique()} photographs in part `pretrain`; "
            "give the distorted set of a run, or make one with `contrique synthesize`"
        )
    rows = rows.sample(min(len(rows), count), random_state=seed).sort_index().reset_index(drop=True)
    photographs = manifest[(manifest["distortion"] == "") & manifest["reference"].isin(rows["reference"])]
    note = f"{len(rows)} synthesized pictures of {rows['reference'].nunique()} photographs"
    return JudgedSet(WEAK, WEAK, folder, rows, photographs, "weak_label", notes=(note,))


def find_shared_contents(a: JudgedSet, b: JudgedSet, *, bits: int) -> tuple[set[tuple[str, str]], bool]:
    """Contents that two sets have in common: by name, file, perceptual hash and, if they are few, key points.

    Args:
        a, b: the sets.
        bits: by which near-duplicates differ at most.
    Returns:
        pairs (content of a, content of b), and whether key points were compared: only they see a crop.
    """
    photographs = [side.photographs.assign(folder=str(side.folder)) for side in (a, b)]
    pairs = leaks.shared_contents(*photographs, bits=bits, loader=lambda row: read_picture(Path(row.folder), row))
    few = int(a.photographs["reference"].nunique()) * int(b.photographs["reference"].nunique()) <= MAX_SCENE_PAIRS
    if few:
        pairs |= leaks.same_scenes(a.scenes, b.scenes, f"{a.name}, {b.name}: same scenes")
    return pairs, few
