"""Scores as spreadsheets write them, and folders of pictures as people keep them."""

import csv
import io
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from contrique import images
from contrique.data.manifest import DatasetError
from contrique.errors import ContriqueError
from contrique.sources.folders import Source, import_folder
from contrique.sources.labels import read_labels


def labels(folder: Path, content: str | bytes, *names: str) -> Path:
    for name in names or ("a.png", "b.png"):
        (folder / name).touch()
    path = folder / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def scores(path: Path) -> list[float]:
    return [row["mos"] for row in read_labels(path)]


@pytest.mark.parametrize(
    "content",
    [
        "image,mos\na.png,1.5\nb.png,2\n",
        "\ufeffimage,mos\r\na.png,1.5\r\nb.png,2\r\n",
        "image;mos\na.png;1,5\nb.png;2,0\n",
        "image\tmos\na.png\t1,5\nb.png\t2\n",
        "sep=;\nimage;mos\na.png;1,5\nb.png;2\n",
        'image,mos\na.png,"1,5"\nb.png,"2,0"\n',
        " Image , MOS \n a.png , 1.5 \n\n b.png ,2\n",
        "image,mos,\na.png,1.5,\nb.png,2,\n",
        "image,mos\na.png,1.5,\nb.png,2,,\n",
        ",image,mos\n0,a.png,1.5\n1,b.png,2\n",
        "image,mos\na.png,1.5\nb.png,2\n".encode("utf-16"),
        "image,mos,distortion\na.png,1.5,fl\xfcster\nb.png,2,\n".encode("latin-1"),
    ],
)
def test_scores_are_understood_as_spreadsheets_write_them(tmp_path, content):
    rows = read_labels(labels(tmp_path, content))
    assert [(row["image"], row["mos"]) for row in rows] == [("a.png", 1.5), ("b.png", 2.0)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,mos\na.png,high\n", "line 2, column mos: 'high' is not a number"),
        ("image,mos\na.png,1\n\nb.png,1.2.3\n", "line 4, column mos: '1.2.3'"),
        ('image,mos\na.png,1.5\nb.png,"2,5"\n', "line 3, column mos: '2,5' has a comma where others"),
        ("image,mos\na.png,1e400\n", "line 2, column mos: '1e400' is too large"),
        ("image,mos,level\na.png,1,high\n", "line 2, column level: 'high' is not a number"),
        ("image,mos,level\na.png,1,1.5\n", "line 2, column level: '1.5' is not a whole number"),
        ("image,mos,level\na.png,1,1e400\n", "line 2, column level: '1e400' is too large"),
        ("image,mos\na.png,3,5\n", "line 2 has 3 cells for 2 columns"),
        ("image,mos,MOS\na.png,3,5\n", "has the column mos twice"),
        ("image,mos\n,1\n", "line 2, column image: '' names no image"),
        ("image,mos\n../a.png,1\n", "line 2, column image: '../a.png' leads out"),
        ("image,mos\nx\\a.png,1\n", "holds a backslash"),
        ('image,mos\n"x\ry.png",1\n', "are not in the folder"),
        ("image,mos\n" + "a" * 5000 + ",1\n", "1 images are not in the folder"),
        ('image,mos\n"a.png"x,1\n', "not a readable CSV"),
        ("image,mos\n", "no rows"),
        ("image,mos\na.png,1\n".encode("utf-16-le"), "bytes of zero"),
        (b"\xff\xfeimage\x00\xd8", "damaged UTF-16"),
        (b"image,mos\n\x81.png,1\n", "line 2 is neither UTF-8 nor Latin-1"),
    ],
)
def test_a_bad_cell_is_named_by_line_column_and_content(tmp_path, content, words):
    with pytest.raises(DatasetError) as error:
        read_labels(labels(tmp_path, content))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "labels.csv") in str(error.value)


def test_names_that_look_equal_are_equal(tmp_path):
    """Systems compose accents in different ways, and nobody sees a space at the end."""
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    text = f"image,mos,reference\na.png,1,{composed}\nb.png,2,{decomposed} \n"
    rows = read_labels(labels(tmp_path, text))
    assert {row["reference"] for row in rows} == {composed}
    (tmp_path / f"{decomposed}.png").touch()
    (row,) = read_labels(labels(tmp_path, f"image,mos\n{composed}.png,1\n"))
    assert (tmp_path / row["image"]).is_file()


def test_a_pipe_or_an_endless_file_for_labels_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(DatasetError, match="not a regular file"):
        read_labels(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").unlink()
    with (tmp_path / "labels.csv").open("wb") as file:
        file.truncate(10**13)
    with pytest.raises(DatasetError, match="10 TB is over"):
        read_labels(tmp_path / "labels.csv")


def rated(folder: Path, count: int = 40) -> Path:
    folder.mkdir(parents=True)
    rows = ["image,mos"]
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (folder / f"i{number:03d}.png").write_bytes(images.encode_png(pixels))
        rows.append(f"i{number:03d}.png,{number % 7}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def splits(folder: Path) -> list[str]:
    return list(import_folder(Source(folder, "labelled"))["split"])


def rename(folder: Path, suffix: str) -> None:
    """Other names, and another lossless format, in the order of the names."""
    table = pd.read_csv(folder / "labels.csv")
    names = []
    for number, name in enumerate(table["image"]):
        names.append(f"deep/photo_{number:04d}{suffix}")
        (folder / names[-1]).parent.mkdir(exist_ok=True)
        Image.open(folder / name).save(folder / names[-1])
        (folder / name).unlink()
    table.assign(image=names).to_csv(folder / "labels.csv", index=False)


@pytest.mark.parametrize("how", ["copied", "moved", "linked", "png", "bmp", "tif"])
def test_the_parts_of_a_rated_set_do_not_depend_on_its_place(tmp_path, how):
    first = splits(rated(tmp_path / "rated"))
    other = tmp_path / "elsewhere" / "rated_v2"
    shutil.copytree(tmp_path / "rated", other)
    if how == "linked":
        (tmp_path / "link").symlink_to(other)
        other = tmp_path / "link"
    elif how not in ("copied", "moved"):
        rename(other, f".{how}")
    assert splits(other) == first
    assert {"train", "validation", "test"} == set(first)


def test_the_parts_follow_the_names_of_references_whatever_the_pictures(tmp_path):
    parts = []
    for name, seed in (("one", 0), ("two", 100)):
        folder = rated(tmp_path / name)
        table = pd.read_csv(folder / "labels.csv")
        table["reference"] = [f"scene{number // 4}" for number in range(len(table))]
        table.sample(frac=1, random_state=seed).to_csv(folder / "labels.csv", index=False)
        frame = import_folder(Source(folder, "labelled"))
        parts.append(dict(zip(frame["image"], frame["split"], strict=True)))
    assert parts[0] == parts[1]


@pytest.mark.parametrize("role", ["labelled", "pristine"])
def test_a_name_that_a_manifest_cannot_hold_is_refused_by_name(tmp_path, role):
    folder = rated(tmp_path / os.fsdecode("caf\u00e9".encode("latin-1")), 5)
    with pytest.raises(DatasetError, match=r"'caf\\udce9' is not UTF-8; rename it"):
        import_folder(Source(folder, role))
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / os.fsdecode(b"\xff.png")).write_bytes((folder / "i000.png").read_bytes())
    with pytest.raises(DatasetError, match=r"'\\udcff.png' is not UTF-8"):
        import_folder(Source(tmp_path / "good", "pristine"))


def test_what_is_left_out_is_told(tmp_path, capsys):
    folder = rated(tmp_path / "set", 3)
    for name in ("a.heic", "._i000.png", "notes.txt"):
        (folder / name).touch()
    (tmp_path / "other").mkdir()
    (folder / "i000.png").rename(tmp_path / "other" / "x.jfif")
    (folder / "year").symlink_to("../other")
    frame = import_folder(Source(folder, "pristine"))
    assert list(frame["image"]) == ["i001.png", "i002.png", "year/x.jfif"]
    assert "a.heic" in capsys.readouterr().err


SETTINGS = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CELL = st.sampled_from(
    ["a.png", "b.png", "1", "2,5", "3.5", "nan", "image", "mos", "high", "", " ", "../a.png"]
) | st.text(max_size=5)
TABLE = st.lists(st.lists(CELL, max_size=5), max_size=6)
ENCODING = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252", "shift-jis"])


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Any bytes, any text, and tables of scores in any order, delimiter and encoding."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=200))
    header = draw(st.permutations(["image", "mos", "reference", "level", "split"]))
    table = [header, *draw(TABLE)] if draw(st.booleans()) else draw(TABLE)
    text = io.StringIO()
    csv.writer(text, delimiter=draw(st.sampled_from(",;\t"))).writerows(table)
    return text.getvalue().encode(draw(ENCODING), errors="replace")


@SETTINGS
@given(contents())
def test_any_labels_are_valid_rows_or_one_clear_line(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "any-labels"
    folder.mkdir(exist_ok=True)
    try:
        rows, message = read_labels(labels(folder, content)), ""
    except ContriqueError as error:
        rows, message = [], str(error)
    assert bool(rows) != bool(message)
    assert "\n" not in message
    assert not message or "labels.csv" in message
    for row in rows:
        assert (folder / row["image"]).resolve().parent == folder.resolve()
        assert row["reference"] == unicodedata.normalize("NFC", row["reference"].strip())
        assert np.isnan(row["mos"]) or np.isfinite(row["mos"])
